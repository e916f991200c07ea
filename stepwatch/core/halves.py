"""A cross-fade made of nothing but means: the plan for streams whose decoders mix two pictures half and half and in no other way (`av1`, `vp9`).

Theory of operation. The mean of two anchors lies halfway between them, the mean of that and an anchor at a quarter, and so on: whoever halves
*depth* times reaches every multiple of 1/2^depth. A picture of the fade shows the multiple that is nearest to its place in time. Means that lead to
others are kept in slots, out of sight until their own time comes, and a slot is used again as soon as nobody asks for what is in it.

The multiples are visited in ascending order, like a binary tree from left to right: what is kept at a time is the way from the root.
"""

from __future__ import annotations

import functools
import heapq
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

BEFORE = -2
"""Stands for the slot of the anchor that the fade comes from."""
AFTER = -1
"""Stands for the slot of the anchor that the fade leads to."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A picture that is the mean of two others."""

    first: int
    """Slot of the one that is nearer to the anchor before: BEFORE, or 0.."""
    second: int
    """Slot of the one that is nearer to the anchor after: AFTER, or 0.."""
    kept: int | None
    """Slot that it is kept in, once it is made; None where nobody refers to it later."""
    shown: bool
    """At once."""


@dataclass(frozen=True, slots=True)
class Shown:
    """A picture that was made before, shown now."""

    slot: int
    """Where it is; BEFORE and AFTER are possible too, where pictures are more than twice as many as multiples."""


@functools.lru_cache(maxsize=256)
def halved(gap: int, depth: int, slots: int | None = None) -> tuple[Mean | Shown, ...]:
    """What is to be made for the gap - 1 pictures between two anchors, in order.

    No more than *depth* halvings lead to a picture, and fewer where those are exact; else it is off by half a multiple at most. Means are kept in
    slots 0 .. slots - 1. All of them find room in depth - 1; with one slot less, of three at least, some are made twice. Raises ValueError where
    *slots* are fewer than it takes.
    """
    if gap < 2:
        return ()
    fewer = (used for used in range(depth) if not (1 << used) % gap)
    whole = 1 << next(fewer, depth)
    times = Counter((2 * number * whole + gap) // (2 * gap) for number in range(1, gap))
    steps = [_Step(0, made=False)] * times[0] + list(_between(0, whole, times)) + [_Step(whole, made=False)] * times[whole]
    return tuple(_Slots(steps, whole, depth - 1 if slots is None else slots).plan())


@dataclass(frozen=True, slots=True)
class _Step:
    """A mean that is made, or that was made and is shown now."""

    place: int
    """In multiples from the anchor before."""
    made: bool = True
    shown: bool = True

    @property
    def needs(self) -> tuple[int, ...]:
        """Places of the pictures that must be there."""
        return _parents(self.place) if self.made else (self.place,)


def _parents(place: int) -> tuple[int, int]:
    """What a mean is made of: the nearest places on either side that fewer halvings lead to."""
    half = place & -place
    return place - half, place + half


def _between(first: int, second: int, times: Counter[int]) -> Iterator[_Step]:
    """All that is to be made between two places, when each place is shown *times*."""
    place = (first + second) // 2
    left = any(times[other] for other in range(first + 1, place))
    right = any(times[other] for other in range(place + 1, second))
    if not (left or right):
        # Nobody refers to it; if it is shown twice it is made twice, for which it needs no slot.
        yield from [_Step(place)] * times[place]
        return
    early = not left and times[place] > 0
    yield _Step(place, shown=early)
    if left:
        yield from _between(first, place, times)
    yield from [_Step(place, made=False)] * (times[place] - early)
    if right:
        yield from _between(place, second, times)


class _Slots:
    """Says which slot each mean is kept in, when there are no more than *count*.

    Where there is no other slot, the one gives way that is needed last, and is made again then.
    """

    def __init__(self, steps: Sequence[_Step], whole: int, count: int) -> None:
        self._steps = steps
        self._slots = {0: BEFORE, whole: AFTER}
        self._free = list(range(count))
        self._uses: dict[int, list[int]] = {}
        """For each place the steps that need it, last one first."""
        for number, step in reversed(list(enumerate(steps))):
            for place in step.needs:
                self._uses.setdefault(place, []).append(number)

    def plan(self) -> Iterator[Mean | Shown]:
        for step in self._steps:
            for place in step.needs:
                self._uses[place].pop()
            if step.made or step.place not in self._slots:
                yield from self._made(step.place, set(), shown=step.shown)
            else:
                yield Shown(self._slots[step.place])
                self._release(step.place)

    def _made(self, place: int, needed: set[int], *, shown: bool) -> Iterator[Mean]:
        """What it takes to make a mean, without those that are *needed* for another giving way."""
        parents = _parents(place)
        for parent in parents:
            if parent not in self._slots:
                yield from self._made(parent, needed | {*parents}, shown=False)
        first, second = (self._slots[parent] for parent in parents)
        # What is read here for the last time makes room at once: a picture is put in a slot after it is made.
        for parent in parents:
            if parent not in needed:
                self._release(parent)
        kept = self._keep(place, needed) if place in needed or self._uses.get(place) else None
        yield Mean(first, second, kept, shown)

    def _release(self, place: int) -> None:
        if self._slots[place] >= 0 and not self._uses[place]:
            heapq.heappush(self._free, self._slots.pop(place))

    def _keep(self, place: int, needed: set[int]) -> int:
        if not self._free:
            yielding = [other for other, slot in self._slots.items() if slot >= 0 and other not in needed]
            if not yielding:
                raise ValueError("the slots are too few")
            last = max(yielding, key=lambda other: self._uses[other][-1:])
            heapq.heappush(self._free, self._slots.pop(last))
        self._slots[place] = heapq.heappop(self._free)
        return self._slots[place]
