"""When a run is ready, what is done with it, and what is left alone: every rule of the one function that decides."""

from __future__ import annotations

import re
from dataclasses import replace
from fractions import Fraction
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.lifecycle import (
    Action,
    Do,
    Now,
    Phase,
    Sight,
    WriterState,
    backoff,
    clearable,
    covering,
    fingerprint,
    intervals,
    next_action,
    outdated,
    quiet_limit,
    settle_limit,
    stall_limit,
    stricter_cleanup,
    unchanged,
)
from stepwatch.core.model import Attempts, Covered, Frame, Outcome, Published, Receipt, Render, Role, Run, RunKey, Sidecar, Word
from stepwatch.core.policy import CleanupPolicy, DetectPolicy, FramesPolicy, Policy

AWAKE = 1000.0
WALL = 1_700_000_000.0
YEAR = 365 * 86400.0
KEY = RunKey(folder="/runs/one")
TRASH = Policy(cleanup=CleanupPolicy(intermediates="trash"))
HOLD = Policy(detect=DetectPolicy(incomplete="hold"))
IGNORE = Policy(detect=DetectPolicy(incomplete="ignore"))
INCOMPLETE = [(Outcome.RUNNING, Phase.STALLED), (Outcome.INTERRUPTED, Phase.INTERRUPTED), (Outcome.FAILED, Phase.FAILED)]


def frame(step: int, *, at: float | None = None, name: str | None = None) -> Frame:
    written = int((WALL + (step if at is None else at)) * 1e9)
    return Frame(step=step, name=name or f"{step:05d}.png", size=100 + step, mtime_ns=written, ctime_ns=written, inode=500 + step, device=1)


def make_run(
    steps: int = 10,
    *,
    gaps: list[float] | None = None,
    state: Outcome | None = None,
    count: int | None = -1,
    planned: int | None = None,
    lost: tuple[int, ...] = (),
) -> Run:
    """A run whose frames came a second apart, or after *gaps*; with a sidecar where *state* is given, which by default counts right."""
    times = [float(step) for step in range(steps)] if gaps is None else [sum(gaps[:index]) for index in range(len(gaps) + 1)]
    frames = tuple(frame(step, at=at) for step, at in enumerate(times, start=1))
    number = len(frames) if count == -1 else count
    sidecar = None if state is None else Sidecar(run_id="one", state=state, frame_count=number, frames_planned=planned, lost=lost)
    return Run(key=KEY, name="one", frames=frames, sidecar=sidecar)


def covers(run: Run, *roles: Role) -> tuple[Covered, ...]:
    """The files of *run* with their contents, shown unless *roles* says otherwise."""
    files = (*run.frames, *run.duplicates)
    given_roles = (*roles, *[Role.SHOWN] * (len(files) - len(roles)))
    return tuple(Covered(frame=file, digest=f"content of {file.name}", role=role) for file, role in zip(files, given_roles, strict=True))


def output(path: str = "/runs/animation/one.mp4") -> Published:
    return Published(
        path=path, codec="h264", size=1, mtime_ns=1, inode=1, device=1, sha256=f"of {path}", plan="plan", pictures=1, duration="1", superseded=False
    )


def rendered(
    run: Run,
    *roles: Role,
    incomplete: bool = False,
    cleanup: Literal["keep", "trash", "delete"] = "keep",
    skipped: Literal["keep", "clear"] = "keep",
    missing: tuple[int, ...] = (),
    guessed: bool = False,
    path: str = "/runs/animation/one.mp4",
    at: float = WALL,
    cleared: int = 0,
    note: str = "",
) -> Render:
    return Render(
        generation=f"generation of {len(run.frames)}",
        frames=covers(run, *roles),
        outputs=(output(path),),
        incomplete=incomplete,
        at=at,
        cleanup=CleanupPolicy(intermediates=cleanup, skipped=skipped),
        missing=missing,
        guessed=guessed,
        cleared=cleared,
        clear_note=note,
    )


def receipt_of(run: Run, *renders: Render, attempts: Attempts | None = None, word: Word = Word.NONE) -> Receipt:
    """A receipt whose attempts and word are about *run* as it is."""
    mark = fingerprint(run)
    tried = replace(attempts, fingerprint=mark) if attempts else Attempts()
    return Receipt(key=KEY, run_id=run.run_id, name="one", watched="/runs", renders=renders, attempts=tried, word=word, word_for=mark)


def decide(run: Run, policy: Policy | None = None, *, quiet: float = 0.0, wall: float = WALL, **seen: Any) -> Action:
    """What is to be done with *run*, watched as it is for *quiet* seconds; every answer is held to what all of them promise."""
    now = Now(awake=AWAKE + quiet, wall=wall)
    action = next_action(Sight(run=run, since=AWAKE, **seen), policy or Policy(), now)
    hold_to_promises(action, now)
    return action


def hold_to_promises(action: Action, now: Now) -> None:
    assert (action.at is not None) == (action.do is Do.WAIT)
    assert action.at is None or action.at > now.awake
    assert re.fullmatch(r"[a-z0-9][^\n{}<>]{5,300}[^.\s]", action.reason), action.reason
    assert not re.search(r"None|  |Outcome|Phase|\b1 frames", action.reason), action.reason


# --- limits -------------------------------------------------------------------------------------------------------------------------------


def test_the_first_interval_loads_the_model_and_does_not_count() -> None:
    """A minute before the second frame says nothing about the cadence."""
    assert intervals(make_run(gaps=[60.0, 1.0, 2.0])) == [1.0, 2.0]
    assert intervals(make_run(1)) == []
    assert intervals(make_run(2)) == []


def test_only_the_last_32_intervals_count() -> None:
    """A run that has become faster is judged by what it is now."""
    assert intervals(make_run(gaps=[9.0] * 40 + [1.0] * 32)) == [1.0] * 32


def test_intervals_go_by_the_order_of_writing() -> None:
    """Steps that were written backwards still have intervals that are not negative."""
    run = make_run(6)
    assert intervals(replace(run, frames=tuple(replace(one, step=10 - one.step) for one in run.frames))) == [1.0] * 4


@pytest.mark.parametrize(("cadence", "limit"), [(0.1, 1.0), (0.5, 1.0), (2.0, 4.0), (5.0, 10.0), (90.0, 10.0)])
def test_settle_is_twice_the_cadence_within_one_and_ten_seconds(cadence: float, limit: float) -> None:
    """Frames count as written after two intervals without a change."""
    assert settle_limit(make_run(gaps=[cadence] * 10), Policy()) == pytest.approx(limit)


@pytest.mark.parametrize("steps", [1, 2])
def test_settle_without_a_cadence_is_two_seconds(steps: int) -> None:
    """One or two frames say nothing about a cadence."""
    assert settle_limit(make_run(steps), Policy()) == 2.0


def test_explicit_settle_is_taken_as_it_is() -> None:
    """Whoever names a time gets it, for frames and for a run without a sidecar."""
    policy = Policy(detect=DetectPolicy(settle=Fraction(1, 2)))
    assert settle_limit(make_run(), policy) == 0.5
    assert quiet_limit(make_run(), policy) == 0.5


@pytest.mark.parametrize(
    ("gaps", "limit"),
    [([0.1] * 10, 2.0), ([1.0] * 10, 3.0), ([1.0] * 9 + [4.0], 8.0), ([1.0] * 9 + [500.0], 300.0), ([1.0] * 4, 10.0), ([9.0, 1.0], 10.0)],
)
def test_quiet_is_longer_than_any_pause_of_the_run(gaps: list[float], limit: float) -> None:
    """Three times the cadence or twice the longest pause, within 2 and 300 seconds; 10 where there are too few intervals."""
    assert quiet_limit(make_run(gaps=gaps), Policy()) == pytest.approx(limit)


@pytest.mark.parametrize(
    ("gaps", "limit"),
    [
        ([0.1] * 10, 10.0),
        ([2.0] * 10, 16.0),
        ([2.0] * 9 + [10.0], 30.0),
        ([99.0, *[1.0, 3.0] * 5], 2.0 + 10 * 1.4826),
        ([400.0] * 10, 900.0),
        ([1.0] * 4, 120.0),
        ([1.0] * 5, 10.0),
    ],
)
def test_stall_follows_the_cadence_of_the_run(gaps: list[float], limit: float) -> None:
    """8 x median, median + 10 x spread or 3 x the longest, within 10 s and 15 min; 120 s with fewer than four intervals."""
    assert stall_limit(make_run(gaps=gaps, state=Outcome.RUNNING), Policy()) == pytest.approx(limit)


def test_a_living_writer_may_be_silent_four_times_as_long() -> None:
    """A model swap is no stall while the process is known to live."""
    run = make_run(gaps=[2.0] * 10, state=Outcome.RUNNING)
    assert stall_limit(run, Policy(), writer=WriterState.ALIVE) == pytest.approx(64.0)


@pytest.mark.parametrize("known", [{"writer": WriterState.DEAD}, {"succeeded": True}])
def test_a_writer_that_is_gone_or_has_gone_on_needs_no_patience(known: dict[str, WriterState]) -> None:
    """Then only settle remains of the limit."""
    run = make_run(gaps=[2.0] * 10, state=Outcome.RUNNING)
    assert stall_limit(run, Policy(), **known) == settle_limit(run, Policy()) == pytest.approx(4.0)  # type: ignore[arg-type]


def test_explicit_stall_is_taken_as_it_is() -> None:
    """Not even a living writer stretches what a person has named."""
    policy = Policy(detect=DetectPolicy(stall=Fraction(7)))
    run = make_run(gaps=[2.0] * 10, state=Outcome.RUNNING)
    assert [stall_limit(run, policy, writer=writer) for writer in (WriterState.UNKNOWN, WriterState.ALIVE, WriterState.DEAD)] == [7, 7, 4]


@pytest.mark.parametrize(("count", "lost"), [(10, ()), (9, (4,)), (12, ())])
def test_a_promised_count_that_is_reached_shortens_the_limit(count: int, lost: tuple[int, ...]) -> None:
    """All promised frames are there, lost ones included: three intervals more, and nobody is to be expected, alive or not."""
    run = make_run(count, state=Outcome.RUNNING, planned=10, lost=lost)
    assert stall_limit(run, Policy(), writer=WriterState.ALIVE) == 3.0
    assert stall_limit(replace(run, frames=run.frames[:8]), Policy()) == 10.0


def test_a_promise_without_a_cadence_shortens_nothing() -> None:
    """Two frames of two promised: there is no interval to go by."""
    assert stall_limit(make_run(2, state=Outcome.RUNNING, planned=2), Policy()) == 120.0


DETECT = st.builds(
    DetectPolicy,
    settle=st.one_of(st.just("auto"), st.fractions(0, 3600)),
    stall=st.one_of(st.just("auto"), st.fractions(Fraction(1, 10), 3600)),
)
GAPS = st.lists(st.floats(0, 2000), max_size=12)


@given(gaps=GAPS, detect=DETECT, planned=st.one_of(st.none(), st.integers(0, 15)))
def test_what_is_known_of_the_writer_moves_the_limit_its_own_way(gaps: list[float], detect: DetectPolicy, planned: int | None) -> None:
    """Known dead never lengthens, known alive never shortens, a promise never lengthens, whatever the policy names."""
    run = make_run(gaps=gaps, state=Outcome.RUNNING, planned=planned)
    policy = Policy(detect=detect)
    dead, unknown, alive = (stall_limit(run, policy, writer=writer) for writer in (WriterState.DEAD, WriterState.UNKNOWN, WriterState.ALIVE))
    assert dead <= unknown <= alive
    assert unknown <= stall_limit(make_run(gaps=gaps, state=Outcome.RUNNING), policy)
    assert detect.stall != "auto" or unknown >= settle_limit(run, policy)


@given(gaps=GAPS)
def test_automatic_limits_are_bounded_whatever_the_times_say(gaps: list[float]) -> None:
    """No cadence, however odd, makes anybody wait for ever."""
    run = make_run(gaps=gaps, state=Outcome.RUNNING)
    assert 1 <= settle_limit(run, Policy()) <= 10
    assert settle_limit(run, Policy()) <= quiet_limit(run, Policy()) <= 300
    assert stall_limit(run, Policy(), writer=WriterState.ALIVE) <= 3600


# --- ready? -------------------------------------------------------------------------------------------------------------------------------


def test_no_frame_is_a_run_that_has_just_begun() -> None:
    """A sidecar alone waits for what comes; one that has ended so is nothing."""
    nothing = replace(make_run(state=Outcome.RUNNING), frames=())
    assert (decide(nothing).do, decide(nothing).phase) == (Do.REST, Phase.RECORDING)
    ended = replace(make_run(state=Outcome.FAILED), frames=())
    assert (decide(ended).do, decide(ended).phase) == (Do.REST, Phase.IGNORED)


def test_without_a_sidecar_quiet_means_complete() -> None:
    """Nobody will ever say so; until then it is recording, and the time to look again is known."""
    run = make_run(10)
    waiting = decide(run, quiet=1.0)
    assert (waiting.do, waiting.phase, waiting.at) == (Do.WAIT, Phase.RECORDING, AWAKE + 3.0)
    ready = decide(run, quiet=3.0)
    assert (ready.do, ready.phase, ready.incomplete) == (Do.RENDER, Phase.COMPLETE, False)


@pytest.mark.parametrize(("state", "phase"), [(Outcome.COMPLETE, Phase.COMPLETE), *INCOMPLETE[1:]])
def test_a_last_word_with_all_frames_is_believed_at_once(state: Outcome, phase: Phase) -> None:
    """The decode is the proof."""
    action = decide(make_run(state=state))
    assert (action.do, action.phase, action.incomplete) == (Do.RENDER, phase, phase is not Phase.COMPLETE)


@pytest.mark.parametrize("count", [12, 7, None, 0])
def test_a_last_word_that_counts_other_frames_waits_for_settle(count: int | None) -> None:
    """Row 23, 29: frames that are missing may be under way, frames too many are late ones, and others may follow them."""
    run = make_run(state=Outcome.COMPLETE, count=count)
    waiting = decide(run, quiet=0.5)
    assert (waiting.do, waiting.phase, waiting.at) == (Do.WAIT, Phase.RECORDING, AWAKE + settle_limit(run, Policy()))
    ready = decide(run, quiet=2.0)
    assert (ready.do, ready.phase) == (Do.RENDER, Phase.COMPLETE)
    assert "10" in ready.reason


@pytest.mark.parametrize(("promised", "arrived"), [(50, 20), (20, 50)])
def test_a_sampler_that_ends_early_or_late_is_complete(promised: int, arrived: int) -> None:
    """Row 23: planned counts are hints; the last word is not."""
    action = decide(make_run(arrived, state=Outcome.COMPLETE, planned=promised))
    assert (action.do, action.phase) == (Do.RENDER, Phase.COMPLETE)


def test_fewer_frames_than_promised_and_no_last_word_is_a_stall() -> None:
    """Row 23: expected 50, 20 arrive, and then nothing."""
    run = make_run(20, state=Outcome.RUNNING, planned=50)
    assert decide(run, quiet=9.0).phase is Phase.RECORDING
    action = decide(run, quiet=10.0)
    assert (action.do, action.phase, action.incomplete) == (Do.RENDER, Phase.STALLED, True)


@pytest.mark.parametrize(
    ("known", "words"),
    [({"writer": WriterState.DEAD}, "its writer is gone"), ({"succeeded": True}, "begun another run"), ({}, "nobody said complete")],
)
def test_a_stall_says_what_it_was_concluded_from(known: dict[str, Any], words: str) -> None:
    """The reason names the evidence."""
    assert words in decide(make_run(state=Outcome.RUNNING), quiet=10.0, **known).reason


@pytest.mark.parametrize("state", [None, *Outcome])
def test_nothing_is_rendered_while_a_frame_is_open_for_writing(state: Outcome | None) -> None:
    """Row 4, 23: a known writer is stronger than any quiet and any word; it is looked at again soon."""
    waiting = decide(make_run(state=state), quiet=5000.0, open_files=True)
    assert (waiting.do, waiting.phase) == (Do.WAIT, Phase.RECORDING)
    assert waiting.at is not None
    assert waiting.at <= AWAKE + 5000.0 + 10.0
    assert decide(make_run(state=state), quiet=5000.0).do is Do.RENDER


# --- clocks -------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [None, Outcome.RUNNING])
@pytest.mark.parametrize("age", [3600.0, 50 * YEAR])
def test_an_old_run_is_judged_after_one_settle(state: Outcome | None, age: float) -> None:
    """After a restart what was quiet long enough is watched for a settle all the same, with mtimes of 1970 too (row 60)."""
    run = make_run(state=state)
    assert decide(run, age=age).at == AWAKE + settle_limit(run, Policy())
    assert decide(run, age=age, quiet=2.0).do is Do.RENDER


def test_an_age_shortens_the_wait_by_just_as_much() -> None:
    """A restart in the middle of a silence does not start it anew."""
    assert decide(make_run(state=Outcome.RUNNING), age=6.0).at == AWAKE + 4.0


@pytest.mark.parametrize("state", [None, Outcome.RUNNING])
@pytest.mark.parametrize("ahead", [1.0, 600.0, YEAR])
def test_frames_from_the_future_do_not_make_it_wait_for_them(state: Outcome | None, ahead: float) -> None:
    """Row 60, 62: an age below zero is a clock that is wrong; only what was watched counts."""
    assert decide(make_run(state=state), age=-ahead, quiet=10.0).do is Do.RENDER
    assert decide(make_run(state=state), age=-ahead).do is Do.WAIT


@given(jump=st.floats(-2 * YEAR, 2 * YEAR), quiet=st.floats(0, 100))
def test_the_wall_clock_says_nothing_about_quiet(jump: float, quiet: float) -> None:
    """Row 60, 61: a step of NTP, a summer's hour, eight hours of suspend change no verdict on a run."""
    for state in (None, *Outcome):
        run = make_run(state=state)
        assert decide(run, quiet=quiet, wall=WALL + jump) == decide(run, quiet=quiet)


@given(shift=st.integers(-(10**18), 10**18))
def test_a_server_whose_clock_is_wrong_changes_nothing(shift: int) -> None:
    """Row 62: only differences between times of one clock are ever taken."""
    run = make_run(state=Outcome.RUNNING)
    moved = replace(run, frames=tuple(replace(one, mtime_ns=one.mtime_ns + shift) for one in run.frames))
    assert decide(moved, quiet=3.0) == decide(run, quiet=3.0)


@given(outlier=st.integers(-(2**62), 2**62), index=st.integers(0, 9))
def test_one_frame_of_1970_or_of_next_year_postpones_nothing_for_long(outlier: int, index: int) -> None:
    """Row 60: a single odd time may make the limits longer, but only up to their bounds."""
    for state, bound in ((None, 300.0), (Outcome.RUNNING, 900.0), (Outcome.COMPLETE, 0.0)):
        run = make_run(state=state)
        frames = tuple(replace(one, mtime_ns=outlier) if number == index else one for number, one in enumerate(run.frames))
        assert decide(replace(run, frames=frames), quiet=bound).do is Do.RENDER


@given(awake=st.floats(0, 1e9), part=st.floats(0, 1), state=st.sampled_from([None, Outcome.RUNNING]))
def test_looking_again_when_told_to_is_never_too_early(awake: float, part: float, state: Outcome | None) -> None:
    """Rounding does not ask for a look at the very same instant, nor for two looks in a row."""
    run = make_run(gaps=[0.3, 0.7, 1 / 3, 0.1, 0.9, 0.2], state=state)
    now = Now(awake=awake + part * 9, wall=WALL)
    action = next_action(Sight(run=run, since=awake, age=part), Policy(), now)
    hold_to_promises(action, now)
    if action.at is not None:
        later = next_action(Sight(run=run, since=awake, age=part), Policy(), Now(awake=action.at, wall=WALL))
        assert later.do is Do.RENDER


# --- wanted? ------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "phase"), INCOMPLETE)
def test_incomplete_runs_are_rendered_held_or_ignored_by_policy(state: Outcome, phase: Phase) -> None:
    """Stalled, interrupted and failed runs are all incomplete; a person's word brings a held one on."""
    run = make_run(state=state)
    action = decide(run, quiet=10.0)
    assert (action.do, action.phase, action.incomplete) == (Do.RENDER, phase, True)
    held = decide(run, HOLD, quiet=10.0)
    assert (held.do, held.phase) == (Do.REST, Phase.HELD)
    assert str(phase) in held.reason
    assert "runs retry" in held.reason
    ignored = decide(run, IGNORE, quiet=10.0)
    assert (ignored.do, ignored.phase) == (Do.REST, Phase.IGNORED)
    for policy in (HOLD, IGNORE):
        retried = decide(run, policy, quiet=10.0, receipt=receipt_of(run, word=Word.RETRY))
        assert (retried.do, retried.phase, retried.incomplete) == (Do.RENDER, phase, True)


@pytest.mark.parametrize("policy", [HOLD, IGNORE])
def test_hold_and_ignore_are_about_incomplete_runs_only(policy: Policy) -> None:
    """What is complete is rendered."""
    assert decide(make_run(state=Outcome.COMPLETE), policy).do is Do.RENDER
    assert decide(make_run(), policy, quiet=3.0).do is Do.RENDER


def test_too_few_frames_are_left_alone_until_a_person_asks() -> None:
    """min_frames guides the daemon; the reason names number and option."""
    run = make_run(1, state=Outcome.COMPLETE)
    action = decide(run)
    assert (action.do, action.phase) == (Do.REST, Phase.IGNORED)
    assert "1 frame," in action.reason
    assert "min_frames is 2" in action.reason
    assert decide(run, receipt=receipt_of(run, word=Word.RETRY)).do is Do.RENDER
    assert decide(run, Policy(detect=DetectPolicy(min_frames=1))).do is Do.RENDER


@pytest.mark.parametrize("word", [Word.NONE, Word.RETRY])
def test_create_false_makes_no_animation(word: Word) -> None:
    """Not even on a word about one run: the policy is about all of them."""
    run = make_run(state=Outcome.COMPLETE)
    action = decide(run, Policy(create=False), receipt=receipt_of(run, word=word))
    assert (action.do, action.phase) == (Do.REST, Phase.IGNORED)


@pytest.mark.parametrize("state", [None, *Outcome])
def test_a_discarded_run_is_left_alone_until_its_frames_change(state: Outcome | None) -> None:
    """The word is about the frames as they were."""
    run = make_run(state=state)
    receipt = receipt_of(run, word=Word.DISCARD)
    action = decide(run, quiet=500.0, receipt=receipt)
    assert (action.do, action.phase) == (Do.REST, Phase.IGNORED)
    more = replace(run, frames=(*run.frames, frame(11)))
    assert decide(more, quiet=500.0, receipt=receipt).do is Do.RENDER


def test_a_person_gets_what_is_there_ready_or_not() -> None:
    """By hand neither settling, min_frames, policy on incomplete runs, quarantine nor discarding stands in the way."""
    for state in (None, *Outcome):
        run = make_run(1, state=state)
        receipt = receipt_of(run, attempts=Attempts(count=9), word=Word.DISCARD)
        action = decide(run, HOLD, by_hand=True, receipt=receipt, open_files=True)
        assert action.do is Do.RENDER
        assert action.incomplete == (state is not Outcome.COMPLETE)
    assert decide(make_run(state=Outcome.FAILED), by_hand=True).phase is Phase.FAILED


def test_a_run_without_a_sidecar_that_was_found_complete_stays_so_by_hand() -> None:
    """Rendering again what the daemon has rendered makes no incomplete animation of it."""
    run = make_run()
    assert not decide(run, by_hand=True, receipt=receipt_of(run, rendered(run))).incomplete


# --- tried already ------------------------------------------------------------------------------------------------------------------------


def test_a_failed_try_waits_for_the_next() -> None:
    """The error of the last one is in the reason, and waiting goes by the wall clock, which outlives the process."""
    run = make_run(state=Outcome.COMPLETE)
    receipt = receipt_of(run, attempts=Attempts(count=1, not_before=WALL + 8, error="ffmpeg stopped"))
    action = decide(run, receipt=receipt)
    assert (action.do, action.phase, action.at) == (Do.WAIT, Phase.RENDER_FAILED, AWAKE + 8)
    assert "ffmpeg stopped" in action.reason
    assert decide(run, receipt=receipt, wall=WALL + 8).do is Do.RENDER


def test_a_try_that_ended_without_a_word_counts() -> None:
    """Row 56: the attempt was committed before the render, so what kills the daemon every time is given up in the end."""
    run = make_run(state=Outcome.COMPLETE)
    actions = [decide(run, receipt=receipt_of(run, attempts=Attempts(count=count, not_before=WALL))) for count in range(5)]
    assert [action.do for action in actions] == [Do.RENDER] * 4 + [Do.REST]
    assert actions[4].phase is Phase.QUARANTINED
    assert "4 times" in actions[4].reason
    assert "without a word" in actions[4].reason


def test_quarantine_is_over_when_frames_change() -> None:
    """Other frames are another chance; so is a person's word, which empties the count."""
    run = make_run(state=Outcome.COMPLETE)
    receipt = receipt_of(run, attempts=Attempts(count=4, error="no"))
    assert decide(run, receipt=receipt).phase is Phase.QUARANTINED
    changed = replace(run, frames=(*run.frames[:-1], replace(run.frames[-1], ctime_ns=1)))
    assert decide(changed, receipt=receipt).do is Do.RENDER
    assert decide(run, receipt=receipt, max_attempts=5).do is Do.RENDER


def test_a_wall_clock_that_went_back_does_not_postpone_the_next_try() -> None:
    """Row 60: nobody waits for a time that was never set; looking again and again comes to a try within the longest wait."""
    run = make_run(state=Outcome.COMPLETE)
    for count in (1, 2, 3):
        receipt = receipt_of(run, attempts=Attempts(count=count, not_before=WALL + backoff(count, 0.5), error="no"))
        for back in (1.0, 60.0, 3600.0, YEAR):
            passed = 0.0
            while (action := decide(run, quiet=passed, wall=WALL - back + passed, receipt=receipt)).do is Do.WAIT:
                assert action.at is not None
                passed = action.at - AWAKE
                assert passed <= 3600 * 1.25 + 1
            assert action.do is Do.RENDER


@given(count=st.integers(1, 10**6), jitter=st.floats(0, 1))
def test_the_wait_after_a_failure_grows_to_an_hour(count: int, jitter: float) -> None:
    """10 s, four times as long after each failure, a quarter of jitter to either side, an hour at most."""
    middle = min(3600.0, 10.0 * 4 ** min(count - 1, 20))
    assert backoff(count, 0.5) == pytest.approx(middle)
    assert middle * 0.75 <= backoff(count, jitter) <= middle * 1.25


# --- covered? -----------------------------------------------------------------------------------------------------------------------------


def test_what_is_rendered_is_at_rest() -> None:
    """O4: asking again does nothing, for complete and incomplete runs."""
    for state in (None, *Outcome):
        run = make_run(state=state)
        receipt = receipt_of(run, rendered(run, incomplete=state not in (None, Outcome.COMPLETE)))
        for quiet in (0.0, 500.0):
            action = decide(run, quiet=quiet, receipt=receipt)
            assert (action.do, action.phase) == (Do.REST, Phase.RENDERED)


def test_the_absence_of_covered_frames_does_not_matter() -> None:
    """Somebody tidied up, or clearing has begun: what is still here is known."""
    run = make_run()
    receipt = receipt_of(run, rendered(run))
    assert covering(replace(run, frames=run.frames[3:5]), receipt) == receipt.renders[0]
    gone = replace(run, frames=())
    action = decide(gone, receipt=receipt)
    assert (action.do, action.phase) == (Do.REST, Phase.RENDERED)
    assert "no longer here" in action.reason


@pytest.mark.parametrize("fact", ["size", "mtime_ns", "ctime_ns", "inode"])
def test_a_frame_with_any_other_fact_is_another_frame(fact: str) -> None:
    """Row 28: a rewrite of the same size with its mtime put back still has another ctime."""
    run = make_run()
    changed = replace(run.frames[4], **{fact: 7})  # type: ignore[arg-type]
    assert not unchanged(changed, covers(run)[4])
    receipt = receipt_of(run, rendered(run, cleanup="trash"))
    rewritten = replace(run, frames=(*run.frames[:4], changed, *run.frames[5:]))
    assert covering(rewritten, receipt) is None
    assert fingerprint(rewritten) != fingerprint(run)
    assert decide(rewritten, TRASH, receipt=receipt).phase is Phase.RECORDING


def test_a_file_on_another_device_number_is_the_same_file() -> None:
    """A remount may give its file system another number."""
    run = make_run()
    assert unchanged(replace(run.frames[0], device=99), covers(run)[0])


@pytest.mark.parametrize(("settle", "patience"), [("auto", 120.0), (Fraction(3), 30.0)])
def test_frames_without_a_sidecar_are_cleared_only_after_a_longer_quiet(settle: Any, patience: float) -> None:
    """Quiet made the run complete, and its writer may be at it still; a terminal sidecar, or a person who asks, needs no such patience."""
    run = make_run(state=None)
    receipt = receipt_of(run, rendered(run, cleanup="delete"))
    policy = Policy(cleanup=CleanupPolicy(intermediates="delete"), detect=DetectPolicy(settle=settle))
    waiting = decide(run, policy, receipt=receipt, quiet=patience - 1.0)
    assert (waiting.do, waiting.phase) == (Do.WAIT, Phase.RENDERED)
    assert waiting.at == pytest.approx(AWAKE + patience)
    assert decide(run, policy, receipt=receipt, quiet=patience).do is Do.CLEAR
    assert decide(run, policy, receipt=receipt, asked=True, as_it_is=True).do is Do.CLEAR
    said = make_run(state=Outcome.COMPLETE)
    assert decide(said, policy, receipt=receipt_of(said, rendered(said, cleanup="delete"))).do is Do.CLEAR


@pytest.mark.parametrize("state", [None, Outcome.COMPLETE])
def test_a_late_frame_makes_a_new_generation_and_is_never_cleared_before(state: Outcome | None) -> None:
    """Row 29: whatever was due stops, the new frames settle together, and the older animation stays."""
    run = make_run(state=state)
    old = rendered(run, cleanup="delete")
    receipt = receipt_of(run, old)
    late = replace(run, frames=(*run.frames, frame(11)))
    policy = Policy(cleanup=CleanupPolicy(intermediates="delete"))
    assert decide(run, policy, receipt=receipt, quiet=500.0).do is Do.CLEAR
    waiting = decide(late, policy, receipt=receipt)
    assert (waiting.do, waiting.phase) == (Do.WAIT, Phase.RECORDING)
    assert decide(late, policy, quiet=10.0, receipt=receipt).do is Do.RENDER
    newer = rendered(late, path="/runs/animation/one-1.mp4")
    assert outdated(receipt_of(late, old, newer), newer) == ()


def test_rewriting_the_frames_of_a_rendered_run_makes_one_animation_more() -> None:
    """Row 23: the last word knows nothing of what came after it; whoever rewrites one frame may go on to the next."""
    run = make_run(state=Outcome.COMPLETE)
    receipt = receipt_of(run, rendered(run))
    rewritten = replace(run, frames=(replace(run.frames[0], ctime_ns=1), *run.frames[1:]))
    assert decide(rewritten, receipt=receipt).do is Do.WAIT
    action = decide(rewritten, quiet=2.0, receipt=receipt)
    assert (action.do, action.phase) == (Do.RENDER, Phase.COMPLETE)
    assert "changed since it was rendered" in action.reason


def test_a_duplicate_of_a_step_keeps_the_run_from_being_covered() -> None:
    """Row 17: a second file of a step is a file of the run."""
    run = make_run()
    receipt = receipt_of(run, rendered(run))
    twin = replace(run, duplicates=(frame(10, name="00010.jpg"),))
    assert covering(twin, receipt) is None
    assert fingerprint(twin) != fingerprint(run)


def test_of_a_step_with_two_files_neither_is_cleared() -> None:
    """Row 17: only one of them was rendered; the others of the run may go."""
    run = replace(make_run(), duplicates=(frame(10, name="00010.jpg"),))
    render = rendered(run, *[Role.SHOWN] * 10, Role.DUPLICATE, cleanup="trash", skipped="clear")
    assert [covered.frame.step for covered in clearable(render, render.cleanup)] == list(range(1, 10))
    left = replace(run, frames=run.frames[9:])
    action = decide(left, TRASH, receipt=receipt_of(left, render))
    assert action.do is Do.REST
    assert "no frame is left that may be cleared" in action.reason


def test_two_runs_in_one_folder_know_nothing_of_one_another() -> None:
    """Row 18: seeds 12 and 123 have their own keys, receipts and coverings, whatever their names begin with."""

    def flat(seed: int) -> Run:
        frames = tuple(replace(frame(step, name=f"{seed}-{step:03d}.png"), inode=seed * 1000 + step) for step in range(1, 6))
        return Run(key=RunKey(folder="/flat", group=str(seed)), name=str(seed), frames=frames)

    short, long = flat(12), flat(123)
    assert fingerprint(short) != fingerprint(long)
    assert short.run_id != long.run_id
    render = rendered(short, cleanup="delete")
    assert {covered.frame.name for covered in clearable(render, render.cleanup)} == {one.name for one in short.frames}
    assert covering(long, receipt_of(short, render)) is None


def test_a_run_that_was_stalled_and_goes_on_is_recording_again() -> None:
    """Row 67: new frames after an incomplete animation; nothing is concluded until it ends."""
    stalled = make_run(state=Outcome.RUNNING)
    receipt = receipt_of(stalled, rendered(stalled, incomplete=True))
    resumed = replace(stalled, frames=(*stalled.frames, frame(11, at=400.0)))
    assert decide(resumed, quiet=500.0, receipt=receipt).phase is Phase.RECORDING
    # The pause is now part of its cadence.
    assert stall_limit(resumed, Policy()) == 900.0


@pytest.mark.parametrize("more", [0, 1])
def test_a_complete_run_is_rendered_again_after_an_incomplete_animation(more: int) -> None:
    """Row 67: also when the last word is all that was missing; then the incomplete one is outdated."""
    stalled = make_run(state=Outcome.RUNNING)
    old = rendered(stalled, incomplete=True, path="/runs/animation/one-incomplete.mp4")
    ended = make_run(10 + more, state=Outcome.COMPLETE)
    action = decide(ended, receipt=receipt_of(ended, old))
    assert (action.do, action.phase, action.incomplete) == (Do.RENDER, Phase.COMPLETE, False)
    new = rendered(ended)
    both = receipt_of(ended, old, new)
    assert decide(ended, TRASH, receipt=both).do is Do.SUPERSEDE
    assert outdated(both, new) == old.outputs
    done = replace(old, outputs=tuple(replace(one, superseded=True) for one in old.outputs))
    assert decide(ended, receipt=receipt_of(ended, done, new)).do is Do.REST


def test_an_incomplete_animation_is_not_at_rest_while_its_run_may_prove_complete() -> None:
    """The last word has come, two frames have not: the look after settle must not be forgotten because something is rendered."""
    run = make_run(state=Outcome.COMPLETE, count=12)
    receipt = receipt_of(run, rendered(run, incomplete=True))
    waiting = decide(run, receipt=receipt)
    assert (waiting.do, waiting.phase) == (Do.WAIT, Phase.RECORDING)
    assert decide(run, quiet=2.0, receipt=receipt).do is Do.RENDER
    by_hand = make_run()
    assert decide(by_hand, receipt=receipt_of(by_hand, rendered(by_hand, incomplete=True))).do is Do.WAIT


def test_a_run_that_a_person_calls_finished_is_not_waited_for() -> None:
    """`prune --finished` takes what was rendered by hand as it is, complete or not."""
    run = make_run()
    receipt = receipt_of(run, rendered(run, incomplete=True))
    assert decide(run, TRASH, receipt=receipt, asked=True).do is Do.WAIT
    assert decide(run, TRASH, receipt=receipt, asked=True, as_it_is=True).do is Do.CLEAR


def test_what_counts_as_older_does_not_go_by_a_clock() -> None:
    """Row 60: the newer animation is dated a year before the incomplete one, and supersedes it all the same."""
    run = make_run(state=Outcome.COMPLETE)
    old, new = rendered(run, incomplete=True, path="/a.mp4", at=WALL + YEAR), rendered(run, path="/b.mp4")
    assert outdated(receipt_of(run, old, new), new) == old.outputs
    assert outdated(receipt_of(run, old, new), old) == ()


def test_an_incomplete_animation_with_frames_of_its_own_stays() -> None:
    """Nothing is superseded whose frames the newer one does not contain: rewritten, gone or damaged since."""
    run = make_run(state=Outcome.COMPLETE)
    old = rendered(run, incomplete=True, path="/old.mp4")
    shorter = replace(run, frames=run.frames[1:])
    rewritten = tuple(replace(covered, digest="other") if covered.frame.step == 3 else covered for covered in covers(run))
    damaged = covers(run, Role.DAMAGED)
    for frames in (covers(shorter), rewritten, damaged):
        new = replace(rendered(run), frames=frames)
        assert outdated(receipt_of(run, old, new), new) == ()


def test_a_damaged_frame_that_was_repaired_does_not_keep_the_incomplete_animation() -> None:
    """What the older one could not show, the newer need not contain."""
    run = make_run(state=Outcome.COMPLETE)
    old = rendered(run, Role.DAMAGED, incomplete=True, path="/old.mp4")
    repaired = tuple(replace(covered, digest="repaired") if covered.frame.step == 1 else covered for covered in covers(run))
    new = replace(rendered(run), frames=repaired)
    assert outdated(receipt_of(run, old, new), new) == old.outputs


def test_complete_animations_and_the_newer_ones_own_file_are_never_outdated() -> None:
    """Only incomplete ones go, and what took over an old name is not that old file."""
    run = make_run(state=Outcome.COMPLETE)
    new = rendered(run, path="/new.mp4")
    assert outdated(receipt_of(run, rendered(run, path="/old.mp4"), new), new) == ()
    assert outdated(receipt_of(run, rendered(run, incomplete=True, path="/new.mp4"), new), new) == ()


def test_nothing_is_superseded_by_an_animation_that_is_gone() -> None:
    """Somebody deleted or changed the newer one: the incomplete one is all there is."""
    run = make_run(state=Outcome.COMPLETE)
    receipt = receipt_of(run, rendered(run, incomplete=True, path="/old.mp4"), rendered(run, path="/new.mp4"))
    assert decide(run, receipt=receipt, outputs_there=False).do is Do.REST
    gone = replace(run, frames=())
    assert decide(gone, receipt=receipt, outputs_there=False).do is Do.REST
    assert decide(gone, receipt=receipt).do is Do.SUPERSEDE


# --- clearing -----------------------------------------------------------------------------------------------------------------------------

CLEANUPS = st.builds(
    CleanupPolicy,
    intermediates=st.sampled_from(["keep", "trash", "delete"]),
    skipped=st.sampled_from(["keep", "clear"]),
    grace=st.fractions(0, 10**6),
)


@given(one=CLEANUPS, other=CLEANUPS)
def test_the_stricter_of_two_policies_is_never_looser_than_either(one: CleanupPolicy, other: CleanupPolicy) -> None:
    """Whichever comes first, and the same again with either of them."""
    both = stricter_cleanup(one, other)
    order = ("keep", "trash", "delete")
    assert both == stricter_cleanup(other, one)
    assert stricter_cleanup(one, one) == one
    assert stricter_cleanup(both, one) == stricter_cleanup(both, other) == both
    for each in (one, other):
        assert order.index(both.intermediates) <= order.index(each.intermediates)
        assert both.skipped == "keep" or each.skipped == "clear"
        assert both.grace >= each.grace


@given(one=CLEANUPS, other=CLEANUPS, third=CLEANUPS)
def test_three_policies_may_be_joined_in_any_order(one: CleanupPolicy, other: CleanupPolicy, third: CleanupPolicy) -> None:
    """There is one strictest."""
    assert stricter_cleanup(stricter_cleanup(one, other), third) == stricter_cleanup(one, stricter_cleanup(other, third))


@pytest.mark.parametrize("skipped", ["keep", "clear"])
def test_only_shown_frames_go_and_skipped_ones_where_the_policy_names_them(skipped: Literal["keep", "clear"]) -> None:
    """D3: damaged and unshown frames, duplicates, and what could not be read never go."""
    render = rendered(make_run(6), Role.SHOWN, Role.SKIPPED, Role.UNSHOWN, Role.DAMAGED, Role.DUPLICATE)
    unread = replace(render.frames[5], digest="")
    render = replace(render, frames=(*render.frames[:5], unread))
    due = [covered.frame.step for covered in clearable(render, CleanupPolicy(skipped=skipped))]
    assert due == ([1, 2] if skipped == "clear" else [1])


@pytest.mark.parametrize("then", ["keep", "trash", "delete"])
@pytest.mark.parametrize("today", ["keep", "trash", "delete"])
def test_clearing_obeys_the_policy_of_then_and_of_today(then: Literal["keep", "trash", "delete"], today: Literal["keep", "trash", "delete"]) -> None:
    """Row 65: an edit clears nothing that is finished, and stops what is not; only who asks gets today's alone."""
    run = make_run(state=Outcome.COMPLETE)
    policy = Policy(cleanup=CleanupPolicy(intermediates=today))
    receipt = receipt_of(run, rendered(run, cleanup=then))
    action = decide(run, policy, receipt=receipt)
    assert action.do is (Do.REST if "keep" in (then, today) else Do.CLEAR)
    assert action.phase is Phase.RENDERED
    asked = decide(run, policy, receipt=receipt, asked=True)
    assert asked.do is (Do.REST if today == "keep" else Do.CLEAR)


def clear_decision(run: Run, render: Render, policy: Policy = TRASH, **seen: Any) -> Action:
    return decide(run, policy, quiet=500.0, receipt=receipt_of(run, render), **seen)


def test_clearing_is_due_once_everything_allows_it() -> None:
    """And its phase stays rendered until the frames are gone."""
    run = make_run(state=Outcome.COMPLETE)
    action = clear_decision(run, rendered(run, cleanup="trash"))
    assert (action.do, action.phase) == (Do.CLEAR, Phase.RENDERED)
    assert "trash" in action.reason


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("only a guess", {"guessed": True}),
        ("steps are missing (3, 4, 5, 6, 7 ...)", {"missing": (3, 4, 5, 6, 7, 8)}),
        ("a frame is damaged", {"damaged": True}),
        ("its animation is no longer where it was published", {"outputs_there": False}),
        ("when a change is safe on the disk", {"durable": False}),
        ("appended", {"append": True}),
        ("still says running", {"running": True}),
        ("no frame is left that may be cleared", {"unshown": True}),
    ],
)
def test_every_reason_that_keeps_frames_is_named(words: str, change: dict[str, Any]) -> None:
    """D4 and its kin: each of them alone is enough, asked for or not."""
    run = make_run(state=Outcome.RUNNING if "running" in change else Outcome.COMPLETE)
    roles = [Role.DAMAGED] if "damaged" in change else [Role.UNSHOWN] * 10 if "unshown" in change else []
    missing = (3, 4, 5, 6, 7, 8) if "missing" in change else ()
    render = rendered(run, *roles, cleanup="trash", guessed="guessed" in change, missing=missing, incomplete="running" in change)
    policy = replace(TRASH, frames=FramesPolicy(append="append" in change))
    seen = {key: value for key, value in change.items() if key in ("outputs_there", "durable")}
    for asked in (False, True):
        action = clear_decision(run, render, policy, asked=asked, **seen)
        assert (action.do, action.phase) == (Do.REST, Phase.RENDERED)
        assert f"its frames stay: {words}" in action.reason or words in action.reason


def test_a_run_that_is_only_guessed_today_is_not_cleared() -> None:
    """The pattern was taken out of the policy after the render."""
    run = replace(make_run(), guessed=True)
    assert "only a guess" in clear_decision(run, rendered(run, cleanup="trash")).reason


def test_skipped_frames_are_cleared_by_the_stricter_policy() -> None:
    """`skipped: clear` counts when both say so."""
    run = make_run(state=Outcome.COMPLETE)
    left = replace(run, frames=run.frames[:1])
    clear = Policy(cleanup=CleanupPolicy(intermediates="trash", skipped="clear"))
    for policy, then, due in ((TRASH, "clear", False), (clear, "keep", False), (clear, "clear", True)):
        render = rendered(run, Role.SKIPPED, cleanup="trash", skipped=then)  # type: ignore[arg-type]
        assert (clear_decision(left, render, policy).do is Do.CLEAR) == due


def test_a_clearing_that_has_ended_is_not_begun_again() -> None:
    """What it left behind stays, with its reason, until a person asks."""
    run = make_run(state=Outcome.COMPLETE)
    render = rendered(run, cleanup="trash", note="9 files moved to the trash; 1 file left alone", cleared=9)
    left = replace(run, frames=run.frames[:1])
    action = clear_decision(left, render)
    assert action.do is Do.REST
    assert "1 file left alone" in action.reason
    assert clear_decision(left, render, asked=True).do is Do.CLEAR


@pytest.mark.parametrize("note", ["", "3 files moved to the trash"])
def test_a_clearing_cut_short_goes_on(note: str) -> None:
    """With frames here, with none here, and with none but such as stay anyway; the holes are its own and forbid nothing."""
    run = make_run(state=Outcome.COMPLETE)
    render = rendered(run, Role.SKIPPED, cleanup="trash", cleared=3 if note else 0, note=note)
    for left in (run.frames[5:], (), run.frames[:1]):
        action = clear_decision(replace(run, frames=left, missing=(2, 3)), render, clearing_begun=True)
        assert (action.do, action.phase) == (Do.CLEAR, Phase.RENDERED)
        assert "cut short" in action.reason


def test_a_clearing_cut_short_ends_there_when_its_reasons_are_gone() -> None:
    """The animation vanished, or the policy says keep now: what is in the trash stays in it, and can be brought back."""
    run = make_run(state=Outcome.COMPLETE)
    render = rendered(run, cleanup="delete")
    gone = replace(run, frames=())
    for policy, there in ((TRASH, False), (Policy(), True)):
        action = clear_decision(gone, render, policy, clearing_begun=True, outputs_there=there)
        assert action.do is Do.REST
        assert "in the trash" in action.reason


def test_a_cleared_run_is_at_rest() -> None:
    """The note that ended its clearing is what is told of it."""
    run = make_run(state=Outcome.COMPLETE)
    gone = replace(run, frames=())
    action = clear_decision(gone, rendered(run, cleanup="trash", cleared=10, note="10 files moved to the trash"))
    assert (action.do, action.phase, action.reason) == (Do.REST, Phase.CLEARED, "10 files moved to the trash")


def test_a_new_run_in_the_folder_of_a_cleared_one_is_recording() -> None:
    """Its sidecar says running under another name; what was cleared was not it."""
    old = make_run(state=Outcome.COMPLETE)
    receipt = receipt_of(old, rendered(old, cleanup="trash", cleared=10, note="10 files moved to the trash"))
    new = Run(key=KEY, name="two", frames=(), sidecar=Sidecar(run_id="two", state=Outcome.RUNNING))
    assert decide(new, receipt=receipt).phase is Phase.RECORDING


# --- the mark of what was seen ------------------------------------------------------------------------------------------------------------


def test_the_mark_changes_with_all_that_a_look_can_see() -> None:
    """Frames, duplicates, and the sidecar's last word and count; not with what it says of prompts or clocks."""
    run = make_run(state=Outcome.RUNNING)
    assert run.sidecar is not None
    others = (
        replace(run, frames=run.frames[1:]),
        replace(run, frames=(replace(run.frames[0], name="bad\udcff.png"), *run.frames[1:])),
        replace(run, duplicates=(frame(99),)),
        replace(run, sidecar=None),
        replace(run, sidecar=replace(run.sidecar, state=Outcome.COMPLETE)),
        replace(run, sidecar=replace(run.sidecar, frame_count=11)),
        replace(run, sidecar=replace(run.sidecar, run_id="two")),
    )
    assert len({fingerprint(one) for one in (run, *others)}) == len(others) + 1
    assert fingerprint(replace(run, sidecar=replace(run.sidecar, updated="later", steps_done=9))) == fingerprint(run)
