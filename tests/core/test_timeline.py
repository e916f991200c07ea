"""When each frame shows."""

from __future__ import annotations

from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.timeline import HALF, Timeline, half_up, make_timeline, play_order

RATES = st.sampled_from([Fraction(24), Fraction(25), Fraction(30), Fraction(30000, 1001), Fraction(60), Fraction(1, 2)])
SECONDS = st.fractions(min_value=0, max_value=20, max_denominator=1000)


@st.composite
def timelines(draw: st.DrawFn) -> Timeline:
    return make_timeline(
        draw(st.integers(1, 400)),
        duration=draw(st.fractions(min_value=Fraction(1, 100), max_value=30, max_denominator=1000)),
        fps=draw(RATES),
        fps_in=draw(st.none() | st.fractions(min_value=Fraction(1, 10), max_value=100, max_denominator=100)),
        interpolation=draw(st.sampled_from(["none", "blend", "mci"])),
        hold_first=draw(SECONDS),
        hold_last=draw(SECONDS),
        direction=draw(st.sampled_from(["forward", "reverse", "pingpong"])),
    )


@given(timelines(), SECONDS, SECONDS)
def test_each_part_is_rounded_half_up_by_itself(timeline: Timeline, hold_first: Fraction, hold_last: Fraction) -> None:
    """The length never depends on interpolation, direction or the number of images; holds come on top."""
    other = make_timeline(3, duration=Fraction(2), fps=timeline.fps, hold_first=hold_first, hold_last=hold_last, interpolation=timeline.interpolation)
    assert other.pictures == max(1, half_up(2 * timeline.fps))
    assert other.total == other.pictures + half_up(hold_first * timeline.fps) + half_up(hold_last * timeline.fps)
    assert other.duration == other.total / timeline.fps


def test_halves_are_rounded_up() -> None:
    """2.5 pictures are 3, 2.49 are 2."""
    assert [half_up(Fraction(value)) for value in ("0.5", "2.5", "2.49", "0")] == [1, 3, 2, 0]


@given(timelines())
def test_the_first_and_the_last_image_are_always_shown(timeline: Timeline) -> None:
    """The animation begins with its first image and ends with its last one, purely."""
    first, last = timeline.picture(0), timeline.picture(timeline.total - 1)
    assert last.pure
    assert timeline.order[last.first] == timeline.order[-1]
    if timeline.pictures > 1:
        assert first.first == 0
        assert first.weight == 0


@given(timelines())
def test_pictures_move_forward_only(timeline: Timeline) -> None:
    """The place on the timeline never goes back, and weights stay below one."""
    places = [mix.first + mix.weight for mix in map(timeline.picture, range(min(timeline.total, 500)))]
    assert all(one <= other for one, other in pairwise(places))
    assert all(0 <= timeline.picture(number).weight < 1 for number in range(min(timeline.total, 500)))


@given(timelines())
def test_image_j_starts_at_j_spans(timeline: Timeline) -> None:
    """Picture k of the moving part lies at k * n / pictures, floor of it being the image that has started."""
    for number in range(0, timeline.pictures - 1, max(1, timeline.pictures // 50)):
        place = Fraction(number * timeline.positions, timeline.pictures)
        mix = timeline.picture(timeline.head + number)
        assert mix.first == place // 1
        still = timeline.interpolation == "none" or mix.first == timeline.positions - 1
        assert mix.weight == (0 if still else place % 1)


@given(timelines())
def test_spans_and_holds_sum_to_the_duration(timeline: Timeline) -> None:
    """Positions times span, plus both holds, is the whole."""
    assert timeline.positions * timeline.span + (timeline.head + timeline.tail) / timeline.fps == timeline.duration


@given(timelines())
def test_true_times_rise_and_stay_within_the_duration(timeline: Timeline) -> None:
    """With one encoded picture for each image the times rise strictly, from 0, and the last image has time left."""
    starts = list(timeline.starts())
    assert len(starts) == timeline.feed_count
    assert starts[0] == 0
    assert all(one < other for one, other in pairwise(starts))
    assert starts[-1] < timeline.duration


@given(timelines())
def test_every_image_is_shown_unless_there_are_too_many(timeline: Timeline) -> None:
    """Only with more images than pictures is an image unshown; an image is shown when some picture is half of it at least."""
    images = frozenset(timeline.order)
    if not timeline.dense:
        assert timeline.shown() == images
        return
    expected = set()
    for number in range(timeline.head, timeline.head + timeline.pictures):
        mix = timeline.picture(number)
        if 1 - mix.weight >= HALF:
            expected.add(timeline.order[mix.first])
        if mix.weight >= HALF:
            expected.add(timeline.order[mix.second])
    assert timeline.shown() == expected
    assert timeline.order[-1] in timeline.shown()


@given(timelines())
def test_images_are_fed_once_and_never_more_than_pictures(timeline: Timeline) -> None:
    """What goes to the encoder is bounded by images and by pictures, in order of first need."""
    fed = list(timeline.feed())
    assert len(fed) == timeline.feed_count <= min(timeline.positions, timeline.pictures)
    assert all(one.first <= other.first for one, other in pairwise(fed))


@pytest.mark.parametrize(
    ("count", "direction", "order"),
    [
        (3, "forward", (0, 1, 2)),
        (3, "reverse", (2, 1, 0)),
        (4, "pingpong", (0, 1, 2, 3, 2, 1)),
        (2, "pingpong", (0, 1)),
        (1, "pingpong", (0,)),
    ],
)
def test_order_of_play(count: int, direction: str, order: tuple[int, ...]) -> None:
    """pingpong is 1..n..2: played in a loop, no image comes twice in a row."""
    assert play_order(count, direction) == order  # type: ignore[arg-type]


def test_fps_in_replaces_the_duration() -> None:
    """Ten steps a second: 25 images take two and a half seconds."""
    timeline = make_timeline(25, duration=Fraction(99), fps=Fraction(30), fps_in=Fraction(10))
    assert timeline.duration == Fraction(5, 2)


def test_one_image_fills_the_whole_duration() -> None:
    """A run of one frame is a still of the right length."""
    timeline = make_timeline(1, duration=Fraction(10), fps=Fraction(30), hold_last=Fraction(1))
    assert timeline.total == 330
    assert {timeline.picture(number).first for number in range(330)} == {0}


@given(timelines(), st.integers(1, 40))
def test_a_sample_is_spread_over_the_whole_feed(timeline: Timeline, most: int) -> None:
    """So many as asked, or all; in their order, with the first and the last, and no two gaps differ by more than one."""
    feed, sample = list(timeline.feed()), list(timeline.sample(most))
    places = [feed.index(mix) for mix in sample]
    assert len(sample) == min(most, len(feed))
    assert places[0] == 0
    if len(places) > 1:
        gaps = [after - before for before, after in pairwise(places)]
        assert places[-1] == len(feed) - 1
        assert max(gaps) - min(gaps) <= 1
        assert min(gaps) > 0
