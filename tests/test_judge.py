"""Which moment of the run a thumbnail shows: the verdict is that of exact arithmetic, however it is reached."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.codecs import CODECS
from stepwatch.core.plan import OutputPlan
from stepwatch.core.timeline import Interpolation, Mix, make_timeline
from stepwatch.errors import VerifyError
from stepwatch.judge import BIAS, DISPLACED, MOTION, PIXELS, SLACK, Judge


def planned(count: int, pictures: int, interpolation: Interpolation = "blend") -> OutputPlan:
    timeline = make_timeline(count, duration=Fraction(pictures, 30), fps=Fraction(30), interpolation=interpolation)
    codec = CODECS["h264"]
    return OutputPlan(
        codec=codec,
        encoding=codec.qualities["default"],
        quality="default",
        fps=Fraction(30),
        timeline=timeline,
        width=512,
        height=512,
        variable=False,
        max_size=None,
        template="",
    )


def images(count: int, spread: int, seed: int) -> list[bytes]:
    """Thumbnails that wander away from each other by a few levels, or many."""
    chance = random.Random(seed)
    values = [chance.randrange(40, 200) for _ in range(PIXELS)]
    made = []
    for _ in range(count):
        made.append(bytes(values))
        values = [min(max(value + chance.randint(-spread, spread), 16), 235) for value in values]
    return made


def mixed(one: bytes, other: bytes, share: float) -> list[float]:
    return [a + share * (b - a) for a, b in zip(one, other, strict=True)]


def rounded(values: Sequence[float]) -> bytes:
    return bytes(min(max(round(value), 0), 255) for value in values)


def refuses(plan: OutputPlan, thumbnails: Sequence[bytes], pictures: Sequence[bytes]) -> bool:
    judge = Judge(plan, thumbnails)
    try:
        for picture in pictures:
            judge.see(picture)
        judge.close()
    except VerifyError:
        return True
    return False


def exactly_wrong(plan: OutputPlan, thumbnails: Sequence[bytes], mix: Mix, picture: bytes) -> bool:
    """The rule itself, value by value."""
    expected = mixed(thumbnails[mix.first], thumbnails[mix.second], float(mix.weight))
    error = [seen - value for seen, value in zip(picture, expected, strict=True)]
    between = plan.timeline.interpolation == "mci" and not mix.pure
    allowed = plan.codec.tolerance
    if between:
        allowed += MOTION * sum(abs(a - b) for a, b in zip(thumbnails[mix.first], thumbnails[mix.second], strict=True)) / PIXELS
    if sum(map(abs, error)) / PIXELS > allowed:
        return True
    others = [mix.second] if not mix.pure else [place for place in (mix.first - 1, mix.first + 1) if 0 <= place < len(thumbnails)]
    for other in others:
        steps = [b - a for a, b in zip(thumbnails[mix.first], thumbnails[other], strict=True)]
        mean = sum(steps) / PIXELS
        shape = [step - mean for step in steps]
        square = sum(value * value for value in shape)
        by_shape = SLACK / math.sqrt(square / PIXELS) if square else math.inf
        by_mean = BIAS / abs(mean) if mean else math.inf
        if math.inf in (by_shape, by_mean) and by_shape == by_mean:
            continue
        along = sum(a * b for a, b in zip(error, shape, strict=True))
        moved = along / square if by_shape <= by_mean else sum(error) / PIXELS / mean
        if abs(moved) > (1.0 if between else DISPLACED) + min(by_shape, by_mean):
            return True
    return False


@given(
    st.integers(0, 10**6),
    st.sampled_from([1, 2, 6, 30]),
    st.floats(-1.2, 1.2),
    st.integers(0, 8),
    st.integers(-4, 4),
    st.sampled_from(["blend", "mci"]),
)
def test_the_verdict_is_that_of_the_exact_rule(seed: int, spread: int, late: float, noise: int, shift: int, interpolation: Interpolation) -> None:
    """Pictures early or late by any share of an image, with noise and a shift of brightness: bounds and shortcuts decide as plain arithmetic does."""
    plan = planned(3, 7, interpolation)
    thumbnails = images(3, spread, seed)
    chance = random.Random(seed + 1)
    judge = Judge(plan, thumbnails)
    for number in range(plan.timeline.total):
        mix = plan.timeline.picture(number)
        place = min(max(mix.first + float(mix.weight) + late, 0), 2)
        first = min(int(place), 1)
        values = mixed(thumbnails[first], thumbnails[first + 1], place - first)
        picture = rounded([value + shift + chance.uniform(-noise, noise) for value in values])
        if exactly_wrong(plan, thumbnails, mix, picture):
            with pytest.raises(VerifyError):
                judge.see(picture)
            return
        judge.see(picture)
    judge.close()


@pytest.mark.parametrize("order", [sorted, lambda numbers: sorted(numbers, reverse=True)], ids=["in order", "the last one first"])
def test_thumbnails_may_come_later_than_their_pictures(order: Callable[[range], list[int]]) -> None:
    """What is judged late is judged all the same: a picture of another moment is refused when its images are there, and at the latest at the end."""
    plan, thumbnails = planned(4, 12), images(4, 30, 7)
    right = [rounded(mixed(thumbnails[mix.first], thumbnails[mix.second], float(mix.weight))) for mix in map(plan.timeline.picture, range(12))]
    wrong = [*right[:4], right[7], *right[5:]]
    for pictures, refused in ((right, False), (wrong, True)):
        known = [b""] * 4
        judge = Judge(plan, known)
        for picture in pictures:
            judge.see(picture)
        for number in order(range(4)):
            known[number] = thumbnails[number]
        if refused:
            with pytest.raises(VerifyError, match="picture 4 is not image 2 on its way to 3"):
                judge.close()
        else:
            judge.close()
            assert judge.worst < 2


def test_a_wrong_picture_is_refused_as_soon_as_it_can_be_judged() -> None:
    """The encode need not go on to its end."""
    plan, thumbnails = planned(4, 12), images(4, 30, 7)
    judge = Judge(plan, thumbnails)
    with pytest.raises(VerifyError, match="picture 0 is not image 1"):
        judge.see(bytes(PIXELS))


def test_the_number_of_pictures_counts() -> None:
    """One less or one more is refused, whatever they show."""
    plan, thumbnails = planned(2, 4), images(2, 5, 1)
    right = [rounded(mixed(thumbnails[mix.first], thumbnails[mix.second], float(mix.weight))) for mix in map(plan.timeline.picture, range(4))]
    assert not refuses(plan, thumbnails, right)
    assert refuses(plan, thumbnails, right[:-1])
    assert refuses(plan, thumbnails, [*right, right[-1]])


def test_an_image_that_was_never_fed_is_named() -> None:
    """A picture cannot be right where its image is unknown."""
    plan = planned(2, 4)
    judge = Judge(replace(plan, codec=CODECS["prores"]), [b"", b""])
    judge.see(bytes(PIXELS))
    with pytest.raises(VerifyError, match="which was never given"):
        judge.close()
