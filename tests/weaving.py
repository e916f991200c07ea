"""Small streams to weave cross-fades into, what decoders make of them, and the arithmetic decoder that the standards describe."""

from __future__ import annotations

import random
import re
import subprocess
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

from stepwatch.core import cabac
from stepwatch.core.bits import Reader
from stepwatch.core.cabac import Context

GAPS = (0, 9, 1, 2, 63, 1, 9)
"""Pictures from each anchor to the next: what is usual, what is next to it, and the longest; the second 1 leads to a picture that begins anew."""
ANEW = 5
"""The anchor of GAPS that does."""
LEVELS = 1.5
"""How far a picture of 8 bits may be from the exact mix; 0.5 of it is the rounding to whole levels."""


class Weaver(Protocol):
    """What `avc.Weaver` and `hevc.Weaver` have in common."""

    units: list[bytes]

    def anchor(self, units: Sequence[bytes], gap: int) -> list[bytes]: ...

    def fades(self, gap: int) -> Iterator[bytes]: ...


class MakeWeaver(Protocol):
    def __call__(self, units: Sequence[bytes]) -> Weaver: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """What differs between the two standards as far as a stream is only cut into its parts."""

    format: str
    """Of a stream without a container, as ffmpeg calls it."""
    header: int
    """Bytes of a unit before its payload; of the first slice of a picture, a one follows."""
    slices: frozenset[int]
    parameters: frozenset[int]

    def kind(self, unit: bytes) -> int:
        return unit[0] & 31 if self.header == 1 else unit[0] >> 1 & 63


AVC = Kind(format="h264", header=1, slices=frozenset({1, 5}), parameters=frozenset({7, 8}))
HEVC = Kind(format="hevc", header=2, slices=frozenset(range(32)), parameters=frozenset({32, 33, 34}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Coded:
    """A stream in its parts."""

    parameters: list[bytes]
    pictures: list[list[bytes]]
    """Units of each."""

    def stream(self) -> bytes:
        return joined([*self.parameters, *(unit for picture in self.pictures for unit in picture)])


def joined(units: Sequence[bytes]) -> bytes:
    return b"".join(b"\0\0\0\1" + unit for unit in units)


def parted(stream: bytes, kind: Kind) -> Coded:
    """Cut a stream with start codes into its parts; parameters that are told once more are left out."""
    parameters: list[bytes] = []
    pictures: list[list[bytes]] = []
    before: list[bytes] = []
    for found in re.split(rb"\x00*\x00\x00\x01", stream)[1:]:
        unit = found.rstrip(b"\0")
        if kind.kind(unit) in kind.parameters:
            if unit not in parameters:
                parameters.append(unit)
        elif kind.kind(unit) not in kind.slices:
            before.append(unit)
        elif unit[kind.header] & 0x80:
            pictures.append([*before, unit])
            before = []
        else:
            pictures[-1].append(unit)
    return Coded(parameters=parameters, pictures=pictures)


def images(count: int, size: tuple[int, int], *, pixels: str = "yuv420p", seed: int = 1) -> bytes:
    """Raw pictures that have much to do with one another, as the steps of a run do: blocks whose levels wander, under a little noise."""
    chance = random.Random(seed)
    deep = 2 if pixels.endswith("10le") else 1
    planes = _planes(size, pixels)
    levels = [[chance.randrange(256) for _ in range(64)] for _ in planes]
    out = array("H" if deep == 2 else "B")
    for _ in range(count):
        for (across, down), blocks in zip(planes, levels, strict=True):
            for place in range(64):
                blocks[place] = min(255, max(0, blocks[place] + chance.randrange(-40, 41)))
            out.extend(
                min(255, max(0, blocks[8 * y // down * 8 + 8 * x // across] + chance.randrange(-3, 4))) << 2 * (deep - 1)
                for y in range(down)
                for x in range(across)
            )
    return out.tobytes()


def _planes(size: tuple[int, int], pixels: str) -> list[tuple[int, int]]:
    colours = size if "444" in pixels else (size[0] // 2, size[1] // 2)
    return [size] if pixels == "gray" else [size, colours, colours]


def encoded(
    ffmpeg: str,
    kind: Kind,
    options: Sequence[str],
    *,
    count: int = len(GAPS),
    size: tuple[int, int] = (64, 48),
    pixels: str = "yuv420p",
    anew: int = 0,
) -> Coded:
    """A few images, encoded; the picture *anew* begins anew, unless it is 0, which does so anyway."""
    argv = [ffmpeg, "-v", "error", "-f", "rawvideo", "-pix_fmt", pixels, "-s", f"{size[0]}x{size[1]}", "-framerate", "30", "-i", "-"]
    argv += [*options, *(["-force_key_frames", f"expr:eq(n,{anew})", "-forced-idr", "1"] if anew else []), "-f", kind.format, "-"]
    done = subprocess.run(argv, input=images(count, size, pixels=pixels), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return parted(done.stdout, kind)


def woven(make: MakeWeaver, coded: Coded, gaps: Sequence[int]) -> bytes:
    """A whole stream: the anchors of *coded* at their places, and the cross-fades between them."""
    weaver = make(coded.parameters)
    anchors = [(weaver.anchor(picture, gap), list(weaver.fades(gap))) for picture, gap in zip(coded.pictures, gaps, strict=True)]
    return joined([*weaver.units, *(unit for anchor, fades in anchors for unit in [*anchor, *fades])])


def decoded(ffmpeg: str, kind: Kind, stream: bytes, *, size: tuple[int, int] = (64, 48), pixels: str = "yuv420p") -> list[array[int]]:
    """Samples of every picture in order, from a decoder that stops at the first thing it does not like."""
    argv = [ffmpeg, "-v", "error", "-xerror", "-err_detect", "explode", "-f", kind.format, "-i", "-"]
    argv += ["-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", pixels, "-"]
    done = subprocess.run(argv, input=stream, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b""), done.stderr.decode(errors="replace")
    samples = array("H" if pixels.endswith("10le") else "B", done.stdout)
    each = sum(across * down for across, down in _planes(size, pixels))
    assert len(samples) % each == 0
    return [samples[start : start + each] for start in range(0, len(samples), each)]


def check_fades(pictures: Sequence[array[int]], anchors: Sequence[array[int]], gaps: Sequence[int], *, levels: float = LEVELS) -> None:
    """Every anchor is in its place and as it was, and every picture between two is their mix in proportion."""
    assert len(anchors) == len(gaps)
    assert len(pictures) == sum(gaps) + 1
    place = 0
    for number, gap in enumerate(gaps):
        place += gap
        assert pictures[place] == anchors[number], f"anchor {number} is not what it was"
        for step in range(1, gap):
            share = float(Fraction(step, gap))
            before, after, shown = anchors[number - 1], anchors[number], pictures[place - gap + step]
            worst = max(abs(a + (b - a) * share - c) for a, b, c in zip(before, after, shown, strict=True))
            assert worst <= levels, f"picture {step} of {gap} before anchor {number} is {worst} levels off"


class Decoder:
    """The arithmetic decoder (ITU-T H.264, clause 9.3.3.2; H.265, clause 9.3.4.3)."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._range = cabac.FIRST_RANGE
        self._offset = reader.bits(9)

    def take(self, context: Context) -> int:
        """The next bit, which was put in this context."""
        width = cabac._LEAST_PROBABLE[context.state][self._range >> 6 & 3]
        self._range -= width
        bit = context.expected
        if self._offset < self._range:
            context.state = min(context.state + 1, 62)
        else:
            bit = 1 - bit
            self._offset -= self._range
            self._range = width
            if context.state == 0:
                context.expected = bit
            context.state = cabac._AFTER_LEAST[context.state]
        self._renew()
        return bit

    def ended(self) -> bool:
        """Whether the slice ends here; then the last bit that was read is the one that ends a payload."""
        self._range -= 2
        if self._offset >= self._range:
            return True
        self._renew()
        return False

    def _renew(self) -> None:
        while self._range < 256:
            self._range *= 2
            self._offset = 2 * self._offset + self._reader.bits(1)
