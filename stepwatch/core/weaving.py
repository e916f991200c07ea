"""A stream of anchors becomes the whole animation: see `fades` for which they are, `avc`, `hevc`, `vp9` and `av1` for what is put
between them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Protocol

from stepwatch.core import av1, avc, boxes, hevc, vp9
from stepwatch.core.fades import Fades


class Unasked(ValueError):
    """There are more pictures than anchors."""


class _Weaver(Protocol):
    units: list[bytes]
    key: bool


class _OfUnits(_Weaver, Protocol):
    def anchor(self, units: Sequence[bytes], gap: int) -> list[bytes]: ...

    def fades(self, gap: int) -> Iterator[bytes]: ...


class _OfSamples(_Weaver, Protocol):
    def pictures(self, sample: bytes, gap: int) -> list[bytes]: ...


class _Way(Protocol):
    """How a stream is woven."""

    waits: int
    """Pictures that what shows waits for, so that nothing shows before it is decoded."""

    @property
    def weaver(self) -> _Weaver: ...

    def samples(self, sample: bytes, gap: int) -> Iterator[tuple[int, bytes]]:
        """What becomes of an anchor, in the order of decoding: samples, and how many pictures before the anchor each shows."""
        ...


class _Backwards:
    """An anchor is decoded before the fade that leads to it, and shows after it."""

    waits = 1

    def __init__(self, make: Callable[[Sequence[bytes]], _OfUnits], units: Sequence[bytes]) -> None:
        self.weaver = make(units)

    def samples(self, sample: bytes, gap: int) -> Iterator[tuple[int, bytes]]:
        yield 0, boxes.sample_of(self.weaver.anchor(boxes.units_of(sample), gap))
        for number, unit in enumerate(self.weaver.fades(gap), 1):
            yield gap - number, boxes.sample_of([unit])


class _InOrder:
    """All shows in the order of decoding; what has to be decoded before is part of another sample, and hidden."""

    waits = 0

    def __init__(self, make: Callable[[Sequence[bytes]], _OfSamples], units: Sequence[bytes]) -> None:
        self.weaver = make(units)

    def samples(self, sample: bytes, gap: int) -> Iterator[tuple[int, bytes]]:
        pictures = self.weaver.pictures(sample, gap)
        for number, picture in enumerate(pictures, 1):
            yield len(pictures) - number, picture


WAYS: Mapping[str, Callable[[Sequence[bytes]], _Way]] = {
    "h264": functools.partial(_Backwards, avc.Weaver),
    "hevc": functools.partial(_Backwards, hevc.Weaver),
    "av1": functools.partial(_InOrder, av1.Weaver),
    "vp9": functools.partial(_InOrder, vp9.Weaver),
}
"""For each stream that can be woven."""


class Weave:
    """Takes an encoder's fragments as they come and gives those of the whole animation, one for each picture.

    *fps* are pictures a second, *stream* is ffmpeg's name of it. Raises ValueError for what is not as expected, and Unasked among that.
    """

    def __init__(self, fades: Fades, fps: Fraction, stream: str) -> None:
        self._gaps = iter(fades.gaps)
        self._keys = frozenset(fades.keys)
        self._fps = fps
        self._find_way = WAYS[stream]
        self._fragments = boxes.Fragments()
        self._header: boxes.Header | None = None
        self._way: _Way | None = None
        self._tick = 0
        self._anchors = 0
        self._last: int | None = None
        self._shown = 0
        """Number of the last anchor's picture."""
        self.made = 0
        """Pictures so far."""

    def take(self, data: bytes) -> Iterator[bytes]:
        """The pictures that *data* completes, in the order of decoding; the file's start is joined to the first."""
        for kind, contents in self._fragments.take(data):
            if kind == b"moov":
                self._begin(boxes.Header.read(contents))
            else:
                yield from self._anchor(contents)

    def end_with(self, number: int) -> None:
        """The anchor of this number, not made yet, is the last one, and comes right behind the one before it.

        So the picture that shows last is also decoded last, and as long as a container says of that.
        """
        self._last = number

    def _begin(self, header: boxes.Header) -> None:
        tick = header.timescale / self._fps
        if self._way is not None or tick.denominator != 1:
            raise ValueError("its times count in ticks that no picture falls on")
        self._way, self._tick, self._header = self._find_way(header.units), tick.numerator, header

    def _anchor(self, sample: bytes) -> Iterator[bytes]:
        gap = next(self._gaps, None)
        if self._way is None or gap is None:
            raise Unasked("it holds a picture that nobody asked for")
        if self._anchors == self._last:
            gap = min(gap, 1)
        self._shown += gap
        wanted = self._anchors in self._keys
        for earlier, made in self._way.samples(sample, gap):
            if self._way.weaver.key is not wanted:
                raise ValueError("a key frame is not where it was asked for")
            yield self._picture(made, self._shown - earlier + self._way.waits, key=wanted and not earlier)
        self._anchors += 1

    def _picture(self, sample: bytes, shown: int, *, key: bool) -> bytes:
        start = b""
        if not self.made and self._header is not None and self._way is not None:
            # Some streams tell their parameters for good with the first picture.
            start = self._header.with_units(self._way.weaver.units)
        decoded, self.made = self.made, self.made + 1
        return start + boxes.fragment(self.made, sample, decoded=decoded * self._tick, shown=shown * self._tick, duration=self._tick, key=key)
