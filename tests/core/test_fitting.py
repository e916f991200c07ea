"""The search for the encode that fits max_size."""

from __future__ import annotations

import math
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.fitting import MOST_TRIES, SMALLEST_LONG_SIDE, Try, next_try


def search(limit: int, *, start: int | None, coarsest: int, long_side: int, size_at: object) -> list[Try]:
    """Run the search against an encoder whose sizes are *size_at(value, scale)*."""
    tries: list[Try] = []
    value, scale = start, Fraction(1)
    while True:
        tries.append(Try(value=value, scale=scale, size=size_at(value, scale)))  # type: ignore[operator]
        following = next_try(tries, limit, start=start, coarsest=coarsest, long_side=long_side)
        if following is None:
            return tries
        value, scale = following


def test_a_video_that_fits_at_some_quality_is_found_and_not_much_too_small() -> None:
    """An encoder that halves the file every five steps of crf is fitted within a few encodes, well filled."""
    tries = search(400_000, start=23, coarsest=45, long_side=512, size_at=lambda value, scale: int(1_600_000 * 2 ** ((23 - value) / 5) * scale**2))
    fitting = [one.size for one in tries if one.size <= 400_000]
    assert max(fitting) > 320_000
    assert all(one.scale == 1 for one in tries)
    assert len(tries) <= 6


def test_quality_that_counts_downwards_works_the_same() -> None:
    """webp: lower is smaller."""
    tries = search(300_000, start=85, coarsest=4, long_side=512, size_at=lambda value, scale: int(10_000 * value * scale**2))
    assert max(one.size for one in tries if one.size <= 300_000) > 200_000


def test_the_picture_shrinks_when_the_coarsest_quality_is_still_too_large() -> None:
    """After the quality's end the scale goes down until it fits."""
    tries = search(50_000, start=23, coarsest=45, long_side=1024, size_at=lambda value, scale: int(2_000_000 * 2 ** ((23 - value) / 6) * scale**2))
    assert tries[-1].scale < 1
    assert any(one.size <= 50_000 for one in tries)


def test_a_codec_without_quality_shrinks_at_once() -> None:
    """gif and apng have only their size."""
    tries = search(100_000, start=None, coarsest=0, long_side=512, size_at=lambda _value, scale: int(900_000 * scale**2))
    assert any(one.size <= 100_000 for one in tries)


def test_a_limit_that_nothing_meets_ends_without_a_fit() -> None:
    """100 bytes are no animation: the search gives up instead of making stamps."""
    tries = search(
        100, start=23, coarsest=45, long_side=512, size_at=lambda value, scale: 2_000 + int(1_000_000 * 2 ** ((23 - value) / 6) * scale**2)
    )
    assert all(one.size > 100 for one in tries)
    assert len(tries) <= MOST_TRIES


@given(
    limit=st.integers(1, 10**8),
    first=st.integers(1, 10**9),
    slope=st.floats(1.5, 20),
    start=st.sampled_from([23, 34, None]),
    side=st.integers(2, 8192),
)
def test_the_search_ends_and_never_leaves_its_bounds(limit: int, first: int, slope: float, start: int | None, side: int) -> None:
    """Whatever the encoder does: a bounded number of tries, values between start and coarsest, no picture below the smallest."""
    base = start or 0
    tries = search(
        limit,
        start=start,
        coarsest=60,
        long_side=side,
        size_at=lambda value, scale: max(1, int(first * math.pow(2, (base - (value or 0)) / slope) * scale**2)),
    )
    assert len(tries) <= MOST_TRIES
    for one in tries:
        assert one.value is None or base <= one.value <= 60
        assert one.scale == 1 or side * one.scale >= SMALLEST_LONG_SIDE
    pairs = [(one.value, one.scale) for one in tries]
    assert len(set(pairs)) == len(pairs), "nothing is encoded twice"
