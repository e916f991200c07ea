"""Pictures against their timeline: which moment of the run a 32x32 thumbnail shows.

Theory of operation. The timeline says what each picture should show, as a mix of two source images' thumbnails. Two things are held against that:

* the mean difference, which may be no more than what the encoder's loss explains (``Codec.tolerance``), and how fine cross-fades are made
  (``OutputPlan.off``);
* the direction of the difference. Project it on the line from one image to the next: 0 is where the picture belongs, 1 is a whole image
  late, -1 one early. Loss is nearly at right angles to that line, so even images that differ by less than the loss are told apart: the
  displacement may be ``DISPLACED`` of the way and ``SLACK`` levels on top. Neighbours closer than that are the same picture to anybody.
  An encoder may well shift the brightness of all of a flat picture alike, though, so the mean is measured by itself, with more patience
  (``BIAS``), and taken out of the line.

There are a thousand values in a thumbnail and a thousand pictures in a file, and this is Python. So Pillow first bounds both from above, on whole
bytes; only where the bound says nothing is the exact value worked out. The verdict is that of the exact arithmetic.
"""

from __future__ import annotations

import functools
import math
import operator
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, cast

from PIL import Image, ImageChops

from stepwatch.core.plan import OutputPlan
from stepwatch.core.timeline import Mix
from stepwatch.errors import VerifyError

SIDE: Final = 32
"""Thumbnails are SIDE x SIDE luma values, limited range, BT.709."""
PIXELS: Final = SIDE * SIDE
DISPLACED = 0.6
"""Share of the way to a neighbouring image beyond which a picture shows the wrong moment."""
SLACK = 0.2
"""Levels of displacement (root mean square) that loss may cause on top; 0.08 is the most that was seen, at the small quality of h265."""
BIAS = 2.0
"""Levels by which loss may shift the mean of a picture towards its neighbour on top; vp9 shifts flat colours by one and a half."""
MOTION = 0.75
"""Motion interpolation goes its own way between two images: this share of their difference is allowed on top."""
AMPLE_SIDE = 256
"""Pixels; the tolerances of the codecs were measured on pictures whose shorter side has at least so many."""
COARSE = 4.0
"""The same for an encode that was asked to be worse than our own qualities: the square root of it for the mean difference."""


def refuse(what: str) -> VerifyError:
    return VerifyError(f"the rendered file is not what was planned: {what}", hint="nothing was published; the frames are untouched")


class _Line:
    """The way from one image's thumbnail to another's: a direction without its mean, and the mean, each a witness of where a picture is.

    *slack* and *bias* are levels of the shape and of the mean that are to be forgiven; the one that leaves less to forgive is the better witness.
    """

    def __init__(self, one: bytes, other: bytes, slack: float, bias: float) -> None:
        self._one = one
        self._steps: list[int] = list(map(operator.sub, other, one)) if one and other else [0] * PIXELS
        self._mean: float = sum(self._steps) / PIXELS
        self._length: int = sum(map(operator.mul, self._steps, self._steps))
        self._square = self._length - PIXELS * self._mean * self._mean  # Exact, as PIXELS is a power of two.
        by_shape = slack / math.sqrt(self._square / PIXELS) if self._square else math.inf
        by_mean = bias / abs(self._mean) if self._mean else math.inf
        self._shaped = by_shape <= by_mean
        self.forgiven = min(by_shape, by_mean)
        """Share of the way that is to be forgiven; infinite where the two are the same."""

    @functools.cached_property
    def _start(self) -> int:
        return sum(map(operator.mul, self._one, self._steps))

    @property
    def distance(self) -> float:
        """Mean difference between the two images."""
        return sum(map(abs, self._steps)) / PIXELS

    def reach(self, squares: float) -> float:
        """The most that an error, of so great a sum of squares at most, can be of the way."""
        across = self._square if self._shaped else PIXELS * self._mean * self._mean
        return math.sqrt(squares / across) if across else 0.0

    def moved(self, picture: bytes, share: float, error: float) -> float:
        """How much of the way *picture* is from where it belongs, at *share* of the line; *error* is the sum of its differences."""
        if not self._shaped:
            return error / PIXELS / self._mean
        projected: int = sum(map(operator.mul, picture, self._steps))
        return (projected - self._start - share * self._length - self._mean * error) / self._square


@dataclass(slots=True, kw_only=True)
class _Stretch:
    """What the pictures from one image to another are held against."""

    one: bytes
    other: bytes
    images: tuple[Image.Image, Image.Image]
    allowed: float
    lines: list[tuple[_Line, bool, float, str]]
    """Each with whether it runs the other way, how far along it a picture may be from its place, and its ends in words."""


class Judge:
    """Holds each decoded picture against what the timeline expects at its time.

    *thumbnails* has SIDE x SIDE bytes for each image, in the order of the run; those that are not there yet are empty, and may be filled in while
    pictures come: a picture is judged as soon as the images around it are there, and at the latest by `close`.
    """

    def __init__(self, plan: OutputPlan, thumbnails: Sequence[bytes]) -> None:
        self._plan = plan
        self._thumbnails = thumbnails
        self._mixes = plan.shown()
        self._last = plan.timeline.positions - 1
        """Position of the last image that came."""
        self._short = False
        self._fed = {place for mix in plan.feed() for place in ((mix.first,) if mix.pure else (mix.first, mix.second))}
        # A thumbnail's value is the mean of many pixels, which hides the loss in each; of a tiny picture it is the mean of few.
        few = max(1.0, AMPLE_SIDE / min(plan.width, plan.height)) * (COARSE if plan.coarse else 1.0)
        self._tolerance = plan.codec.tolerance * few**0.75
        self._displaced = min(DISPLACED + 0.05 * (few - 1), 0.8)
        self._slack = SLACK * few
        self._bias = BIAS * math.sqrt(few)
        self._lines: dict[tuple[int, int], _Line] = {}
        self._stretch: tuple[tuple[int, int, bool], _Stretch] | None = None
        self._waiting: deque[tuple[Mix, bytes]] = deque()
        self.seen = 0
        """Pictures that have come."""
        self._judged = 0
        self.worst = 0.0
        """The largest mean difference, levels of 255; up to one level more than it is."""

    def see(self, picture: bytes) -> None:
        """Take the next picture; VerifyError for this or an earlier one that is not what was planned."""
        mix = next(self._mixes, None)
        if mix is None:
            raise refuse(f"it decodes to more than the {self._plan.pictures} pictures that were planned")
        self.seen += 1
        self._waiting.append((mix, picture))
        while self._waiting and self._ready(self._waiting[0][0]):
            self._compare(*self._waiting.popleft())

    def cut(self, images: int) -> None:
        """No more than so many images will come: what was to show a later one shows the last of them, for however many pictures."""
        self._last, self._short, self._stretch = images - 1, True, None

    def close(self) -> None:
        """There are no more pictures: judge those that still wait, and their number."""
        while self._waiting:
            mix, picture = self._waiting.popleft()
            self._compare(mix if mix.first < self._last else Mix(first=self._last, second=self._last, weight=Fraction(0)), picture)
        if self.seen != self._plan.pictures and not self._short:
            raise refuse(f"it decodes to {self.seen} pictures, {self._plan.pictures} were planned")

    def _ready(self, mix: Mix) -> bool:
        if self._stretch is not None and self._stretch[0] == (mix.first, mix.second, mix.pure):
            return True
        places = {mix.first, mix.second, *self._neighbours(mix)} & self._fed
        return all(self._thumbnails[self._plan.timeline.order[place]] for place in places)

    def _compare(self, mix: Mix, picture: bytes) -> None:
        number = self._judged
        self._judged += 1
        stretch = self._stretch_of(mix, number)
        share = float(mix.weight)
        total, squares = _bounds(picture, stretch, share)
        difference = total / PIXELS
        if difference > stretch.allowed:
            exact = [seen - a - share * (b - a) for seen, a, b in zip(picture, stretch.one, stretch.other, strict=True)]
            difference = sum(map(abs, exact)) / PIXELS
        self.worst = max(self.worst, difference)
        if difference > stretch.allowed:
            order = self._plan.timeline.order
            raise refuse(
                f"picture {number} is not image {order[mix.first] + 1}"
                + ("" if mix.pure else f" on its way to {order[mix.second] + 1}")
                + f" (its thumbnail differs by {difference:.1f} levels, {stretch.allowed:.1f} are allowed)"
            )
        for line, backwards, limit, ends in stretch.lines:
            if line.reach(squares) > limit:
                error = sum(picture) - (1 - share) * sum(stretch.one) - share * sum(stretch.other)
                moved = line.moved(picture, 1 - share if backwards else share, error)
                if abs(moved) > limit:
                    raise refuse(f"picture {number} shows another moment: {abs(moved):.0%} of the way {ends}")

    def _stretch_of(self, mix: Mix, number: int) -> _Stretch:
        key = (mix.first, mix.second, mix.pure)
        if self._stretch is not None and self._stretch[0] == key:
            return self._stretch[1]
        order = self._plan.timeline.order
        first, second = order[mix.first], order[mix.first if mix.pure else mix.second]
        one, other = self._thumbnails[first], self._thumbnails[second]
        if not one or not other:
            raise refuse(f"picture {number} shows image {first + 1}, which was never given to ffmpeg")
        moving = self._plan.timeline.interpolation == "mci" and not mix.pure
        off = MOTION if moving else float(self._plan.off)
        lines = []
        for place in self._neighbours(mix):
            neighbour = order[place]
            line, limit = self._line(first, neighbour), 1.0 if moving else self._displaced
            ends = f"from image {first + 1} to {neighbour + 1}"
            lines.append((line, neighbour < first, limit + line.forgiven, ends))
        made = _Stretch(
            one=one,
            other=other,
            images=(Image.frombytes("L", (SIDE, SIDE), one), Image.frombytes("L", (SIDE, SIDE), other)),
            allowed=self._tolerance + (off * self._line(first, second).distance if off else 0.0),
            lines=lines,
        )
        self._stretch = key, made
        return made

    def _neighbours(self, mix: Mix) -> list[int]:
        """Where the lines lead to, from the picture's first image, on which its place is measured."""
        if not mix.pure:
            return [mix.second]
        return [place for place in (mix.first - 1, mix.first + 1) if 0 <= place <= self._last]

    def _line(self, first: int, second: int) -> _Line:
        """The way from the earlier of two images to the later one; of no length where one of them is never fed."""
        key = (first, second) if first <= second else (second, first)
        if key not in self._lines:
            if len(self._lines) > 8:
                self._lines.clear()
            self._lines[key] = _Line(self._thumbnails[key[0]], self._thumbnails[key[1]], self._slack, self._bias)
        return self._lines[key]


def _bounds(picture: bytes, stretch: _Stretch, share: float) -> tuple[float, float]:
    """The most that the sum of the absolute differences to the mix, and that of their squares, can be."""
    expected, other = stretch.images
    # Pillow cuts off what is behind the point, which is less than one.
    cut = 1 if share else 0
    if share:
        expected = Image.blend(expected, other, share)
    off = ImageChops.difference(Image.frombytes("L", (SIDE, SIDE), picture), expected)
    total = sum(off.tobytes()) + cut * PIXELS
    largest = cast("tuple[int, int]", off.getextrema())[1] + cut
    return total, largest * total
