"""A stream of anchors becomes the whole animation: see `fades` for which they are, `avc` and `hevc` for what is put between them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Protocol

from stepwatch.core import avc, boxes, hevc
from stepwatch.core.fades import Fades


class _Weaver(Protocol):
    units: list[bytes]
    key: bool

    def anchor(self, units: Sequence[bytes], gap: int) -> list[bytes]: ...

    def fades(self, gap: int) -> Iterator[bytes]: ...


WEAVERS: Mapping[str, Callable[[Sequence[bytes]], _Weaver]] = {"h264": avc.Weaver, "hevc": hevc.Weaver}
"""For each stream that can be woven."""


class Weave:
    """Takes an encoder's fragments as they come and gives those of the whole animation, one for each picture.

    *fps* are pictures a second, *stream* is ffmpeg's name of it. Raises ValueError for what is not as expected.
    """

    def __init__(self, fades: Fades, fps: Fraction, stream: str) -> None:
        self._gaps = iter(fades.gaps)
        self._keys = frozenset(fades.keys)
        self._fps = fps
        self._kind = WEAVERS[stream]
        self._fragments = boxes.Fragments()
        self._header: boxes.Header | None = None
        self._weaver: _Weaver | None = None
        self._start = b""
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
        if self._weaver is not None or tick.denominator != 1:
            raise ValueError("its times count in ticks that no picture falls on")
        self._weaver, self._tick = self._kind(header.units), tick.numerator
        self._start = header.with_units(self._weaver.units)

    def _anchor(self, sample: bytes) -> Iterator[bytes]:
        gap = next(self._gaps, None)
        if self._weaver is None or gap is None:
            raise ValueError("it holds a picture that nobody asked for")
        if self._anchors == self._last:
            gap = min(gap, 1)
        self._shown += gap
        units = self._weaver.anchor(boxes.units_of(sample), gap)
        if self._weaver.key is not (self._anchors in self._keys):
            raise ValueError("a key frame is not where it was asked for")
        self._anchors += 1
        yield self._picture(units, self._shown, key=self._weaver.key)
        for step, unit in enumerate(self._weaver.fades(gap), 1):
            yield self._picture([unit], self._shown - gap + step, key=False)

    def _picture(self, units: Sequence[bytes], shown: int, *, key: bool) -> bytes:
        start, self._start = self._start, b""
        # What is shown waits for one picture, so that nothing is shown before it is decoded.
        made = boxes.fragment(
            self.made + 1,
            boxes.sample_of(units),
            decoded=self.made * self._tick,
            shown=(shown + 1) * self._tick,
            duration=self._tick,
            key=key,
        )
        self.made += 1
        return start + made
