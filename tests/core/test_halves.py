"""Cross-fades made of means: what is shown, how near it is, and that nothing is asked of a slot that is not in it."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.halves import AFTER, BEFORE, Mean, Shown, halved


def shows(gap: int, depth: int, slots: int | None = None) -> list[Fraction]:
    """Where between its anchors each picture of a fade lies."""
    held = {BEFORE: Fraction(0), AFTER: Fraction(1)}
    seen = []
    for step in halved(gap, depth, slots):
        if isinstance(step, Shown):
            seen.append(held[step.slot])
            continue
        place = (held[step.first] + held[step.second]) / 2
        assert held[step.first] < held[step.second]
        if step.kept is not None:
            assert 0 <= step.kept < (depth - 1 if slots is None else slots)
            held[step.kept] = place
        if step.shown:
            seen.append(place)
    return seen


@given(gap=st.integers(1, 200), depth=st.integers(1, 7))
def test_each_picture_is_near_its_place(gap: int, depth: int) -> None:
    """As many as lie between the anchors, in order, none farther off than half of what the last halving makes."""
    places = shows(gap, depth)
    assert len(places) == gap - 1
    assert places == sorted(places)
    error = max((abs(place - Fraction(number, gap)) for number, place in enumerate(places, 1)), default=Fraction(0))
    assert error <= max(Fraction(1, 2 << depth), Fraction(1, 4 * gap))


@given(gap=st.integers(2, 200), depth=st.integers(1, 7))
def test_what_nobody_asks_for_is_not_made(gap: int, depth: int) -> None:
    """A mean is shown, or another is made of it before its slot is used again."""
    plan = halved(gap, depth)
    for number, step in enumerate(plan):
        if not isinstance(step, Mean):
            continue
        asked = False
        for later in plan[number + 1 :]:
            asked |= step.kept is not None and step.kept in ((later.slot,) if isinstance(later, Shown) else (later.first, later.second))
            if isinstance(later, Mean) and step.kept is not None and later.kept == step.kept:
                break
        assert asked if step.kept is not None else step.shown


@given(gap=st.integers(1, 200), depth=st.integers(4, 7))
def test_one_slot_less_shows_the_same(gap: int, depth: int) -> None:
    """What had to give way is made again, a few times at most."""
    assert shows(gap, depth, depth - 2) == shows(gap, depth)
    assert len(halved(gap, depth, depth - 2)) <= len(halved(gap, depth)) + 2 * depth


def test_too_few_slots_are_an_error() -> None:
    """Where no mean could give way, nothing is promised."""
    with pytest.raises(ValueError, match="too few"):
        halved(20, 5, 1)


@pytest.mark.parametrize("gap", [2, 4, 8, 16, 32])
def test_a_fade_that_can_be_exact_is(gap: int) -> None:
    """Powers of two take no picture that is not shown."""
    assert shows(gap, 5) == [Fraction(number, gap) for number in range(1, gap)]
    assert sum(isinstance(step, Mean) for step in halved(gap, 5)) == gap - 1


@pytest.mark.parametrize("gap", [0, 1])
def test_neighbours_have_nothing_between_them(gap: int) -> None:
    """Nor has a first anchor anything before it."""
    assert halved(gap, 5) == ()
