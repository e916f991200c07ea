"""A cross-fade made of nothing but means: the plan for streams whose decoders mix two pictures half and half and in no other way (`vp9`).

Theory of operation. The mean of two anchors lies halfway between them, the mean of that and an anchor at a quarter, and so on: whoever halves
*depth* times reaches every multiple of 1/2^depth. A picture of the fade shows the multiple that is nearest to its place in time. Means that lead to
others are kept in slots, out of sight until their own time comes, and a slot is used again as soon as nobody asks for what is in it.

The multiples are visited in ascending order, like a binary tree from left to right: what is kept at a time is the way from the root.
"""

from __future__ import annotations

import functools
import heapq
from collections import Counter
from collections.abc import Iterator
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
def halved(gap: int, depth: int) -> tuple[Mean | Shown, ...]:
    """What is to be made for the gap - 1 pictures between two anchors, in order.

    No more than *depth* halvings lead to a picture, and fewer where those are exact; else it is off by half a multiple at most. Slots are
    0 .. depth - 2.
    """
    if gap < 2:
        return ()
    fewer = (used for used in range(depth) if not (1 << used) % gap)
    whole = 1 << next(fewer, depth)
    times = Counter((2 * number * whole + gap) // (2 * gap) for number in range(1, gap))
    return _with_slots([_Step(0, 0, 0)] * times[0] + list(_between(0, whole, times)) + [_Step(whole, whole, whole)] * times[whole])


@dataclass(frozen=True, slots=True)
class _Step:
    """A mean that is made, or that was made and is shown now; by places, in multiples from the anchor before."""

    place: int
    first: int
    """Place of a picture that it is made of; its own, where it was made before."""
    second: int
    shown: bool = True


def _between(first: int, second: int, times: Counter[int]) -> Iterator[_Step]:
    """All that is to be made between two places, when each place is shown *times*."""
    place = (first + second) // 2
    left = any(times[other] for other in range(first + 1, place))
    right = any(times[other] for other in range(place + 1, second))
    if not (left or right):
        # Nobody refers to it; if it is shown twice it is made twice, for which it needs no slot.
        yield from [_Step(place, first, second)] * times[place]
        return
    early = not left and times[place] > 0
    yield _Step(place, first, second, shown=early)
    if left:
        yield from _between(first, place, times)
    yield from [_Step(place, place, place)] * (times[place] - early)
    if right:
        yield from _between(place, second, times)


def _with_slots(steps: list[_Step]) -> tuple[Mean | Shown, ...]:
    ends = (0, BEFORE), (max((step.second for step in steps), default=0), AFTER)
    slots = dict(ends)
    # A place that is made twice is referred to by nobody.
    last = {place: number for number, step in enumerate(steps) for place in (step.first, step.second)}
    free = list(range(len(steps)))
    plan: list[Mean | Shown] = []
    for number, step in enumerate(steps):
        first, second = slots[step.first], slots[step.second]
        # What is read here for the last time makes room at once: a picture is put in a slot after it is made.
        for place in {step.first, step.second}:
            if last[place] == number and slots[place] >= 0:
                heapq.heappush(free, slots.pop(place))
        if step.first == step.second:
            plan.append(Shown(first))
            continue
        kept = heapq.heappop(free) if last.get(step.place, -1) > number else None
        if kept is not None:
            slots[step.place] = kept
        plan.append(Mean(first, second, kept, step.shown))
    return tuple(plan)
