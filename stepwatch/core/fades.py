"""Which pictures of a cross-fade an encoder has to see, when the others are written without it (`weaving`).

Theory of operation. Between two images the animation goes in a straight line, picture by picture. Whoever knows both ends of a straight line knows
all of it; so only the pictures at its ends, the *anchors*, are encoded. Where an image falls exactly on a picture, that picture is one. Where it
falls between two, both are, for neither line reaches beyond its image. A line that is too long for how a stream makes fades gets anchors on its way.

A key frame refers to nothing, so that no fade may lead to it: it comes right behind another anchor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

from stepwatch.core.timeline import Timeline

KEYFRAME_EVERY = 250
"""Pictures between key frames, at most: as far as a player goes back to seek."""
MOST_KEYS = 2000
"""Key frames; each is named to the encoder in a single argument, of which the system takes 128 KiB. That is half a million pictures."""
WORTH = 2
"""Pictures for each anchor, at least; with fewer there is nothing to be gained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fades:
    """An animation as anchors with cross-fades between them."""

    anchors: tuple[int, ...]
    """Numbers of the pictures that are encoded, in order; the first and the last picture of all are among them."""
    keys: tuple[int, ...]
    """Which of the anchors are key frames, counted among the anchors."""
    period: int | None = None
    """Every so many anchors there is a key frame; None: where one is due."""

    @property
    def gaps(self) -> tuple[int, ...]:
        """How many pictures each anchor comes after the one before it; 0 for the first."""
        return (0, *(after - before for before, after in pairwise(self.anchors)))


def fades_of(timeline: Timeline, longest: int, *, regular: bool = False) -> Fades | None:
    """The cross-fades of *timeline*, with anchors at most *longest* pictures apart; *regular*: there are as many from each key frame to the next.

    None where it has none, or hardly any picture lies between the images.
    """
    if timeline.dense or timeline.interpolation != "blend":
        return None
    last = timeline.total - 1
    ends = {0, min(timeline.head, last), last}
    for position in range(1, timeline.positions):
        begins = timeline.head + Fraction(position * timeline.pictures, timeline.positions)
        ends |= {math.floor(begins), math.ceil(begins)}
    # Between an anchor and the key frame that comes behind it there is no fade.
    anchors = _filled(sorted(ends), min(longest, KEYFRAME_EVERY - 2))
    made = _with_regular_keys(anchors) if regular else _with_keys(anchors)
    return made if WORTH * len(made.anchors) <= timeline.total and len(made.keys) <= MOST_KEYS else None


def _filled(ends: Iterable[int], longest: int) -> list[int]:
    """Anchors on the way, evenly, where two ends lie too far apart."""
    anchors = [0]
    for begin, end in pairwise(ends):
        parts = -(-(end - begin) // longest)
        anchors += [begin + (end - begin) * part // parts for part in range(1, parts + 1)]
    return anchors


def _with_keys(anchors: list[int]) -> Fades:
    """Key frames, no more than KEYFRAME_EVERY apart: an anchor that no fade leads to, or one more behind an anchor."""
    placed, keys, begun = [0], [0], 0
    for number, following in zip(anchors[1:], [*anchors[2:], anchors[-1]], strict=True):
        late = following + 1 - begun > KEYFRAME_EVERY  # Behind the following one it would be.
        if late and number == placed[-1] + 1:
            keys.append(len(placed))
            begun = number
            late = following + 1 - begun > KEYFRAME_EVERY
        placed.append(number)
        if late and following > number + 1:
            keys.append(len(placed))
            placed.append(begun := number + 1)
    return Fades(anchors=tuple(placed), keys=tuple(keys))


def _with_regular_keys(anchors: list[int]) -> Fades:
    """The same, for an encoder that takes no orders: from each to the next there are equally many anchors, as many as there can be."""
    most = min(KEYFRAME_EVERY, max(len(anchors), 2))
    return next(made for made in (_with_key_at_every(period, anchors) for period in range(most, 1, -1)) if made is not None)


def _with_key_at_every(period: int, anchors: list[int]) -> Fades | None:
    """None where that would be too seldom. It is not with two, for no anchors are that far apart."""
    placed: list[int] = []
    for number in anchors:
        if placed and len(placed) % period == 0 and number > placed[-1] + 1:
            placed.append(placed[-1] + 1)
        placed.append(number)
        begun = placed[(len(placed) - 1) // period * period]
        if number + 1 - begun > KEYFRAME_EVERY:
            return None
    return Fades(anchors=tuple(placed), keys=tuple(range(0, len(placed), period)), period=period)
