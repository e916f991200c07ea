"""Finding the encode that fits ``max_size``, from the sizes that earlier encodes really had."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

MOST_TRIES = 9
CLOSE_ENOUGH = 0.85
"""A file that fills this share of the limit is good; another encode would not be worth its time."""
STEEPEST = 1000.0
SMALLEST_LONG_SIDE = 32
"""Pixels; nobody wants a smaller clip, so a limit that needs one cannot be met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Try:
    """One encode: what was asked, and the size that came out."""

    value: int | None
    """Of the codec's quality option; None: the codec has none."""
    scale: Fraction
    """Of width and height."""
    size: int
    """Bytes."""


def next_try(
    tries: Sequence[Try], limit: int, *, start: int | None, coarsest: int, long_side: int, smallest_scale: Fraction = Fraction(0)
) -> tuple[int | None, Fraction] | None:
    """The value and scale to encode with next, or None: there is nothing better to try.

    The quality goes first, towards *coarsest*; the size of the picture follows only when the coarsest encode is still too large, and no further
    than to *smallest_scale*, below which the encoder takes no picture.
    """
    last = tries[-1]
    if len(tries) >= MOST_TRIES:
        return None
    fitting = [one for one in tries if one.size <= limit]
    scale = min(one.scale for one in tries)
    here = [one for one in tries if one.scale == scale]
    if start is not None:
        assert last.value is not None
        sign = 1 if coarsest > start else -1
        too_large = max((sign * one.value for one in here if one.size > limit and one.value is not None), default=None)
        fits = min((sign * one.value for one in here if one.size <= limit and one.value is not None), default=None)
        if fits is not None:
            best = max(one.size for one in here if one.size <= limit)
            if too_large is None or fits - too_large <= 1 or best >= CLOSE_ENOUGH * limit:
                return None
            return sign * ((fits + too_large + 1) // 2), scale
        if too_large is not None and too_large < sign * coarsest:
            step = max(1, math.ceil(_steps_to_half(here, sign) * math.log2(last.size / limit)))
            return sign * min(too_large + step, sign * coarsest), scale
    elif fitting:
        return None
    smallest = min(one.size for one in here)
    shrink = Fraction(math.sqrt(limit / smallest) * 0.92).limit_denominator(100)
    following = scale * min(shrink, Fraction(85, 100))
    if long_side * following < SMALLEST_LONG_SIDE or following < smallest_scale:
        return None
    return (coarsest if start is not None else None), following


def _steps_to_half(tries: Sequence[Try], sign: int) -> float:
    """How many steps of the quality option halve the file, by what the last two encodes show."""
    if len(tries) >= 2:
        (one, other) = tries[-2:]
        steps = abs((other.value or 0) - (one.value or 0))
        halvings = math.log2(one.size / other.size) if other.size < one.size else 0.0
        if steps and halvings:
            return 1.1 * steps / halvings  # a little more than that, for the curve flattens
        return STEEPEST  # The last step changed nothing: take the longest there is.
    # Video encoders halve the file about every six steps of crf; still-image quality about every sixty.
    return 6 if sign > 0 else 60
