"""Which pictures of a cross-fade are encoded."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.fades import KEYFRAME_EVERY, WORTH, fades_of
from stepwatch.core.timeline import Timeline, make_timeline

LONGEST = 63, 16
"""Pictures that fades may lead over, of streams that there are."""


@st.composite
def cross_fades(draw: st.DrawFn) -> Timeline:
    return make_timeline(
        draw(st.integers(1, 60)),
        duration=draw(st.fractions(min_value=Fraction(1, 10), max_value=40, max_denominator=97)),
        fps=draw(st.sampled_from([Fraction(24), Fraction(30), Fraction(30000, 1001), Fraction(60)])),
        interpolation="blend",
        hold_first=draw(st.fractions(min_value=0, max_value=8, max_denominator=30)),
        hold_last=draw(st.fractions(min_value=0, max_value=8, max_denominator=30)),
        direction=draw(st.sampled_from(["forward", "reverse", "pingpong"])),
    )


def shares(timeline: Timeline, number: int) -> dict[int, Fraction]:
    """How much of the image at each position a picture shows."""
    mix = timeline.picture(number)
    return {mix.first: Fraction(1)} if mix.pure else {mix.first: 1 - mix.weight, mix.second: mix.weight}


@given(cross_fades(), st.sampled_from(LONGEST))
def test_between_two_anchors_every_picture_is_on_the_straight_line(timeline: Timeline, longest: int) -> None:
    """Each picture that is not encoded is the mix of the anchors around it, by its distance from them, and nothing else."""
    fades = fades_of(timeline, longest)
    if fades is None:
        return
    assert (fades.anchors[0], fades.anchors[-1]) == (0, timeline.total - 1)
    for before, after in pairwise(fades.anchors):
        assert 0 < after - before <= longest
        ends = shares(timeline, before), shares(timeline, after)
        for number in range(before + 1, after):
            way = Fraction(number - before, after - before)
            mixed = {place: (1 - way) * ends[0].get(place, 0) + way * ends[1].get(place, 0) for place in {*ends[0], *ends[1]}}
            assert {place: share for place, share in mixed.items() if share} == shares(timeline, number)


@given(cross_fades(), st.sampled_from(LONGEST))
def test_a_key_frame_comes_often_enough_and_no_fade_leads_to_it(timeline: Timeline, longest: int) -> None:
    """From any picture a player goes back KEYFRAME_EVERY pictures at most; what comes before a key frame is encoded itself."""
    fades = fades_of(timeline, longest)
    if fades is None:
        return
    places = [fades.anchors[key] for key in fades.keys]
    assert places[0] == 0
    assert all(gap <= KEYFRAME_EVERY for gap in (after - before for before, after in pairwise([*places, timeline.total])))
    assert all(fades.gaps[key] == 1 for key in fades.keys[1:])
    assert sum(fades.gaps) == timeline.total - 1


@given(cross_fades(), st.sampled_from(LONGEST))
def test_key_frames_that_nobody_can_order_come_every_so_many_anchors(timeline: Timeline, longest: int) -> None:
    """All that is true of the others, and there are as many anchors from each to the next."""
    fades = fades_of(timeline, longest, regular=True)
    if fades is None:
        return
    assert fades.period is not None
    assert fades.keys == tuple(range(0, len(fades.anchors), fades.period))
    assert (fades.anchors[0], fades.anchors[-1]) == (0, timeline.total - 1)
    assert all(0 < gap <= longest for gap in fades.gaps[1:])
    assert all(fades.gaps[key] == 1 for key in fades.keys[1:])
    assert all(after - before <= KEYFRAME_EVERY for before, after in pairwise([*(fades.anchors[key] for key in fades.keys), timeline.total]))


def test_a_long_hold_has_no_more_key_frames_elsewhere() -> None:
    """20 images in 10 s, of which the last one stays for 5 s more: the far apart anchors of the hold say nothing about those of the fades."""
    timeline = make_timeline(20, duration=Fraction(10), fps=Fraction(30), interpolation="blend", hold_last=Fraction(5))
    fades = fades_of(timeline, LONGEST[0], regular=True)
    assert fades is not None
    assert [fades.anchors[key] for key in fades.keys] == [0, 241]


@given(cross_fades(), st.sampled_from(LONGEST))
def test_what_has_to_be_encoded_anyway_is_not_woven(timeline: Timeline, longest: int) -> None:
    """There are at least as many pictures between the anchors as anchors; every image is in one of them."""
    fades = fades_of(timeline, longest)
    if fades is not None:
        assert WORTH * len(fades.anchors) <= timeline.total
        assert {place for number in fades.anchors for place in shares(timeline, number)} == set(range(timeline.positions))


@pytest.mark.parametrize("interpolation", ["none", "mci"])
def test_only_cross_fades_are_woven(interpolation: str) -> None:
    timeline = make_timeline(10, duration=Fraction(10), fps=Fraction(30), interpolation=interpolation)  # type: ignore[arg-type]
    assert fades_of(timeline, LONGEST[0]) is None


def test_images_on_whole_pictures_are_all_that_is_encoded() -> None:
    """100 images in 30 s at 30: every ninth picture, the end of the last one's time, and a key frame behind an image wherever one is due."""
    fades = fades_of(make_timeline(100, duration=Fraction(30), fps=Fraction(30), interpolation="blend"), LONGEST[0])
    assert fades is not None
    assert [fades.anchors[key] for key in fades.keys] == [0, 244, 487, 730]
    assert set(fades.anchors) == {*range(0, 900, 9), 244, 487, 730, 899}


def test_more_images_than_every_second_picture_are_encoded_as_they_are() -> None:
    assert fades_of(make_timeline(60, duration=Fraction(3), fps=Fraction(30), interpolation="blend"), LONGEST[0]) is None
