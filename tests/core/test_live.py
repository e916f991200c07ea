"""What a run that goes on promises, and when it breaks its promise."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from stepwatch.core.live import Promise, arrived, differs, ended_early, promise
from stepwatch.core.model import Frame, Outcome, Run, RunKey, Sidecar
from stepwatch.core.plan import OutputPlan, at, plan_digest, plan_output, plan_render, retimed
from stepwatch.core.policy import DetectPolicy, FramesPolicy, OutputPolicy, Policy, TimelinePolicy

ENCODERS = frozenset({"libx264", "libx265", "libsvtav1", "libvpx-vp9", "prores_ks", "prores", "gif", "libwebp", "apng"})


def file(index: int, *, every: int = 1, skip: int = 0, **facts: Any) -> Frame:
    """A frame as it lies on the disk."""
    return Frame(step=1 + skip + index * every, name=f"{index:05d}.png", size=100 + index, inode=10 + index, mtime_ns=index, **facts)


def going_on(count: int = 3, *, planned: int = 6, every: int = 1, skip: int = 0, **said: Any) -> Run:
    """A run of which *count* of *planned* frames are there."""
    facts: Mapping[str, Any] = {
        "run_id": "r",
        "state": Outcome.RUNNING,
        "frame_name": "{index:05d}.png",
        "frames_planned": planned,
        "width": 64,
        "height": 48,
        "every": every,
        "skip": skip,
    }
    frames = tuple(file(index, every=every, skip=skip) for index in range(count))
    return Run(key=RunKey(folder="/w/r"), name="r", frames=frames, layout="sidecar", sidecar=Sidecar(**{**facts, **said}))


def kept(run: Run, policy: Policy | None = None) -> Promise:
    found = promise(run, policy or Policy())
    assert isinstance(found, Promise), found
    return found


@given(
    planned=st.integers(2, 40),
    every=st.integers(1, 4),
    skip=st.integers(0, 5),
    skip_first=st.integers(0, 3),
    shown_every=st.integers(1, 4),
    first=st.integers(1, 40),
)
def test_a_promise_that_is_kept_is_the_very_plan_of_the_finished_run(
    planned: int, every: int, skip: int, skip_first: int, shown_every: int, first: int
) -> None:
    """What is planned of the first frames and a promise has the same digest as what is planned of all frames in the end."""
    policy = Policy(frames=FramesPolicy(skip_first=min(skip_first, planned - 1), every=shown_every))
    early = kept(going_on(min(first, planned), planned=planned, every=every, skip=skip), policy)
    late = kept(going_on(planned, planned=planned, every=every, skip=skip), policy)
    plans = [plan_render(one.run, one.survey, policy, encoders=ENCODERS, incomplete=False) for one in (early, late)]
    assert plan_digest(plans[0], plans[0].outputs[0]) == plan_digest(plans[1], plans[1].outputs[0])
    assert [frame.step for frame in early.run.frames] == [1 + skip + index * every for index in range(planned)]


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"state": Outcome.COMPLETE}, "it has ended"),
        ({"frames_planned": None}, "how many frames"),
        ({"frames_planned": 10**6}, "how many frames"),
        ({"frame_name": None}, "under which names"),
        ({"width": None}, "how large"),
        ({"lost": (2,)}, "a step is lost"),
        ({"frames_planned": 2}, "more frames than it promised"),
        ({"frames_planned": 1}, "detect.min_frames is 2"),
    ],
)
def test_a_sidecar_that_does_not_say_what_will_come_is_not_encoded_live(said: Mapping[str, Any], words: str) -> None:
    """Number, names and size of the frames must be promised, and nothing may be amiss yet."""
    found = promise(going_on(**said), Policy())
    assert isinstance(found, str)
    assert words in found


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Policy(live="off"), "live: off"),
        (Policy(create=False), "create: false"),
        (Policy(frames=FramesPolicy(append=True)), "several runs"),
        (Policy(frames=FramesPolicy(skip_last=1)), "left out"),
        (Policy(timeline=TimelinePolicy(direction="reverse")), "reverse begins"),
        (Policy(timeline=TimelinePolicy(direction="pingpong")), "pingpong begins"),
        (Policy(timeline=TimelinePolicy(interpolation="mci")), "motion interpolation"),
        (Policy(outputs=(OutputPolicy(), OutputPolicy(codec="gif"))), "colours of a gif"),
        (Policy(outputs=(OutputPolicy(max_size=1000),)), "max_size"),
        (Policy(detect=DetectPolicy(min_frames=7)), "detect.min_frames is 7"),
    ],
)
def test_a_policy_that_needs_the_whole_run_is_not_encoded_live(policy: Policy, words: str) -> None:
    """Where the first picture depends on the last frame, there is nothing to begin with."""
    found = promise(going_on(), policy)
    assert isinstance(found, str)
    assert words in found


def test_a_run_without_a_sidecar_promises_nothing() -> None:
    """Numbered frames alone say nothing about what will come."""
    assert promise(replace(going_on(), sidecar=None), Policy()) == "no sidecar promises anything"


@given(planned=st.integers(2, 12), looks=st.lists(st.integers(0, 12), max_size=8))
def test_frames_are_fed_once_each_in_their_order(planned: int, looks: list[int]) -> None:
    """Whatever each look sees, and however many frames came between two looks, every frame arrives once and behind the one before it."""
    promised = kept(going_on(1, planned=planned)).run
    fed: list[Frame] = []
    for count in sorted(min(look, planned) for look in looks):
        seen = going_on(count, planned=planned)
        if count < len(fed):
            continue
        assert differs(promised, seen, len(fed)) == ""
        fed += arrived(promised, seen, len(fed))
        promised = replace(promised, frames=(*fed, *promised.frames[len(fed) :]))
    assert fed == list(going_on(len(fed), planned=planned).frames)


def test_nothing_is_fed_past_a_hole() -> None:
    """A frame whose predecessor is not there waits for it."""
    whole = going_on(6)
    promised = kept(going_on(1)).run
    with_hole = replace(whole, frames=(*whole.frames[:2], *whole.frames[3:]), missing=(3,))
    assert differs(promised, with_hole, 0) == ""
    assert arrived(promised, with_hole, 0) == whole.frames[:2]
    assert arrived(promised, whole, 2) == whole.frames[2:]


@pytest.mark.parametrize("fact", ["size", "mtime_ns", "ctime_ns", "inode"])
def test_a_frame_that_was_fed_must_stay_the_file_that_it_was(fact: str) -> None:
    """Whatever changes about a fed frame, what was encoded of it may be wrong; one that has not been fed may still change."""
    promised = kept(going_on(3)).run
    now = going_on(4)
    rewritten = replace(now.frames[1], **{fact: 999})  # type: ignore[arg-type]
    changed = replace(now, frames=(now.frames[0], rewritten, *now.frames[2:]))
    assert "the frame of step 2 was rewritten" in differs(promised, changed, 3)
    assert differs(promised, changed, 1) == ""


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (going_on(3, run_id="other"), "another run"),
        (going_on(3, planned=7), "promises something else"),
        (going_on(3, width=65), "promises something else"),
        (going_on(3, scale=2), "promises something else"),
        (going_on(3, lost=(1,)), "a step is lost"),
        (replace(going_on(3), duplicates=(file(9),)), "there twice"),
        (replace(going_on(3), sidecar=None), "another run"),
        (going_on(2), "step 3 was rewritten or went away"),
        (going_on(7, planned=6), "more frames than it promised"),
    ],
)
def test_a_broken_promise_is_seen_at_once(now: Run, words: str) -> None:
    """Each of these makes what was encoded worth nothing."""
    assert words in differs(kept(going_on(3)).run, now, 3)


def test_a_run_that_ends_early_is_told_apart_from_one_that_goes_on() -> None:
    """Ending early breaks the promise, but nothing that was fed is wrong for it."""
    promised = kept(going_on(3)).run
    for state in (Outcome.COMPLETE, Outcome.INTERRUPTED):
        ended = going_on(4, state=state)
        assert differs(promised, ended, 3) == ""
        assert ended_early(promised, ended) == f"it ended ({state}) after 4 of 6 frames"
    assert ended_early(promised, going_on(4)) == ""
    assert ended_early(promised, going_on(6, state=Outcome.COMPLETE)) == ""


def test_a_run_that_ends_as_promised_is_as_promised() -> None:
    """The sidecar's last word breaks no promise when all frames are there."""
    assert differs(kept(going_on(3)).run, going_on(6, state=Outcome.COMPLETE), 3) == ""


# --- other times for what ended early -------------------------------------------------------------------------------------------------------


def planned(count: int, policy: Policy, *, codec: str = "h264") -> OutputPlan:
    output = replace(policy.outputs[0], codec=codec)  # type: ignore[arg-type]
    return plan_output(output, policy, count, (64, 48), ENCODERS)


durations = st.fractions(min_value=2, max_value=40, max_denominator=7)
holds = st.fractions(min_value=0, max_value=3, max_denominator=5)


@given(promised=st.integers(2, 60), data=st.data(), duration=durations, first=holds, last=holds)
def test_a_run_that_ended_early_shows_each_image_when_its_own_plan_would(
    promised: int, data: st.DataObject, duration: Fraction, first: Fraction, last: Fraction
) -> None:
    """Whatever was promised, and however many pictures the encoder made of the end: length, order and moments are those of the images that came."""
    images = data.draw(st.integers(1, promised))
    timeline = TimelinePolicy(duration=duration, hold_first=first, hold_last=last, fps=Fraction(12))
    whole, now = (planned(count, Policy(timeline=timeline)) for count in (promised, images))
    assume(not whole.timeline.dense)
    reaches_last = whole.timeline.head + math.ceil((images - 1) * whole.timeline.span * whole.fps) + 1
    made = data.draw(st.integers(reaches_last, reaches_last + 40))
    found = retimed(whole, now, made=made, images=images)
    assert found is not None
    cut, _ = found
    assert (cut.pictures, cut.duration) == (made, now.duration)
    starts = cut.starts()
    assert starts[0] == 0
    assert all(earlier < later for earlier, later in itertools.pairwise((*starts, cut.duration)))
    begin = now.timeline.head / now.fps
    for start, mix in zip(starts, cut.shown(), strict=True):
        place = min(max(start - begin, Fraction(0)) / now.timeline.span, Fraction(images - 1))
        assert mix.first + mix.weight == place or (mix.first, mix.weight) == (images - 1, Fraction(0))
    assert plan_digest_of(cut) != plan_digest_of(now)


def plan_digest_of(output: OutputPlan) -> str:
    run = kept(going_on(3))
    plan = plan_render(run.run, run.survey, Policy(), encoders=ENCODERS)
    return plan_digest(plan, output)


@given(promised=st.integers(2, 60), data=st.data(), duration=durations, first=holds, last=holds, codec=st.sampled_from(["h264", "vp9", "prores"]))
def test_with_a_picture_for_each_image_other_times_make_it_what_would_be_encoded(
    promised: int, data: st.DataObject, duration: Fraction, first: Fraction, last: Fraction, codec: str
) -> None:
    """Without interpolation the packets of the first images are those of a shorter run, and its plan is met to the letter."""
    images = data.draw(st.integers(1, promised))
    timeline = TimelinePolicy(duration=duration, hold_first=first, hold_last=last, fps=Fraction(30), interpolation="none")
    whole, now = (planned(count, Policy(timeline=timeline), codec=codec) for count in (promised, images))
    found = retimed(whole, now, made=images, images=images)
    assert found is not None
    plan, pace = found
    assert plan == now
    assert [at(pace, start) for start in whole.starts()[:images]] == list(now.starts())


def test_what_other_times_cannot_make_right_is_encoded_anew() -> None:
    """Another size, another rate, an animated image, pictures that do not reach the last image, or another order."""
    policy = Policy(timeline=TimelinePolicy(duration=Fraction(10)))
    whole, now = planned(20, policy), planned(12, policy)
    assert retimed(whole, now, made=200, images=12) is not None
    assert retimed(whole, now, made=100, images=12) is None
    assert retimed(whole, replace(now, width=32), made=200, images=12) is None
    assert retimed(whole, now, made=200, images=11) is None
    slow = Policy(timeline=TimelinePolicy(duration=Fraction(10), fps=Fraction(25)))
    assert retimed(whole, planned(12, slow), made=200, images=12) is None
    for codec in ("webp", "apng"):
        assert retimed(planned(20, policy, codec=codec), planned(12, policy, codec=codec), made=200, images=12) is None
    dense = Policy(timeline=TimelinePolicy(duration=Fraction(1, 2)))
    assert retimed(planned(20, dense), planned(12, dense), made=15, images=12) is None
