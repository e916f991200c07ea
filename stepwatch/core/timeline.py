"""When each frame shows, in exact fractions.

Theory of operation. The moving part of an animation has ``pictures`` output pictures at ``fps``; ``head`` and ``tail`` more hold its first and
last image. Image j of n starts at j/n of the moving part. There are two ways to get there:

* sparse (n <= pictures, nearly always): every image is fed to ffmpeg once, at the rate n / (pictures / fps), and ffmpeg's filter graph makes
  the pictures between them. The first picture is the first image, and since (pictures - 1) / pictures >= (n - 1) / n, the last image is
  reached by the last picture, whatever the numbers.
* dense (more images than pictures): every picture is made here, from one image or two, and fed as it is. Images that are not at least half
  of any picture are *unshown*. The last picture is always the last image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

Interpolation = Literal["none", "blend", "mci"]
Direction = Literal["forward", "reverse", "pingpong"]

HALF = Fraction(1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What one picture shows: ``(1 - weight)`` of the image at position ``first`` and ``weight`` of the one at ``second``."""

    first: int
    """Position in the timeline's ``order``."""
    second: int
    weight: Fraction
    """0 <= weight < 1."""

    @property
    def pure(self) -> bool:
        return not self.weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """The order and timing of an animation's images; images are counted from 0 in the order of the run's chosen frames."""

    order: tuple[int, ...]
    """Image shown at each position; pingpong has most images twice."""
    fps: Fraction
    """Pictures a second."""
    interpolation: Interpolation
    pictures: int
    """Pictures of the moving part, at least 1."""
    head: int
    """Pictures that hold the first image longer."""
    tail: int
    """Pictures that hold the last image longer."""

    @property
    def total(self) -> int:
        """Pictures in all, holds included."""
        return self.head + self.pictures + self.tail

    @property
    def duration(self) -> Fraction:
        """Seconds in all, holds included."""
        return self.total / self.fps

    @property
    def positions(self) -> int:
        return len(self.order)

    @property
    def dense(self) -> bool:
        """Whether there are more images than pictures to show them in."""
        return self.positions > self.pictures

    @property
    def span(self) -> Fraction:
        """Seconds from the start of one position to the start of the next, holds aside."""
        return self.pictures / self.fps / self.positions

    def picture(self, number: int) -> Mix:
        """What picture *number* (0 .. total - 1) shows."""
        moving = min(max(number - self.head, 0), self.pictures - 1)
        if number >= self.head and moving == self.pictures - 1:
            return Mix(first=self.positions - 1, second=self.positions - 1, weight=Fraction(0))
        index, rest = divmod(moving * self.positions, self.pictures)
        if self.interpolation == "none" or index == self.positions - 1:
            return Mix(first=index, second=index, weight=Fraction(0))
        return Mix(first=index, second=index + 1, weight=Fraction(rest, self.pictures))

    def feed(self) -> Iterator[Mix]:
        """What goes to ffmpeg, in order: every image once (sparse), or every picture of the moving part ready-made (dense)."""
        if self.dense:
            yield from (self.picture(self.head + number) for number in range(self.pictures))
        else:
            yield from (Mix(first=place, second=place, weight=Fraction(0)) for place in range(self.positions))

    def sample(self, most: int) -> Iterator[Mix]:
        """So many of what `feed` gives, evenly spread, its first and last among them; all, where there are no more."""
        count, last = min(most, self.feed_count), self.feed_count - 1
        chosen = {half_up(Fraction(number * last, max(1, count - 1))) for number in range(count)}
        return (mix for number, mix in enumerate(self.feed()) if number in chosen)

    @property
    def feed_count(self) -> int:
        return min(self.positions, self.pictures)

    @property
    def feed_rate(self) -> Fraction:
        """Fed images a second of animation."""
        return self.feed_count * self.fps / self.pictures

    def starts(self) -> Iterator[Fraction]:
        """Seconds at which each fed image starts, the head hold included: the true times of ``none`` without repeated frames."""
        yield Fraction(0)
        for number in range(1, self.feed_count):
            yield self.head / self.fps + number / self.feed_rate

    def shown(self) -> frozenset[int]:
        """Images that are at least half of some picture."""
        if not self.dense:
            return frozenset(self.order)
        shown: set[int] = set()
        for mix in self.feed():
            if mix.weight <= HALF:
                shown.add(self.order[mix.first])
            if mix.weight >= HALF:
                shown.add(self.order[mix.second])
        return frozenset(shown)


def half_up(value: Fraction) -> int:
    """Round to the nearest whole number, halves away from zero downwards never: 2.5 -> 3."""
    return math.floor(value + HALF)


def play_order(count: int, direction: Direction) -> tuple[int, ...]:
    """Positions of *count* images: forward, reverse, or 1..n..2 for pingpong, so that a loop shows no image twice in a row."""
    forward = tuple(range(count))
    if direction == "reverse":
        return forward[::-1]
    if direction == "pingpong":
        return forward + forward[-2:0:-1]
    return forward


def make_timeline(
    count: int,
    *,
    duration: Fraction,
    fps: Fraction,
    fps_in: Fraction | None = None,
    interpolation: Interpolation = "blend",
    hold_first: Fraction = Fraction(0),
    hold_last: Fraction = Fraction(0),
    direction: Direction = "forward",
) -> Timeline:
    """Lay out *count* >= 1 images; *fps_in*, when given, replaces *duration* by positions / fps_in seconds.

    The three parts are rounded half up to whole pictures, each by itself; the moving part has at least one.
    """
    order = play_order(count, direction)
    if fps_in is not None:
        duration = len(order) / fps_in
    return Timeline(
        order=order,
        fps=fps,
        interpolation=interpolation,
        pictures=max(1, half_up(duration * fps)),
        head=half_up(hold_first * fps),
        tail=half_up(hold_last * fps),
    )
