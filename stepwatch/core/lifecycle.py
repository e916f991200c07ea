"""What is to be done with a run: facts in, exactly one action out, with its reason in plain words.

Nothing here remembers anything. `Sight` is what one look at a run has brought: its frames and sidecar, its receipt, and how long they have been
as they are. `next_action` says what to do; whoever asked does that one thing, looks again and asks again, so that no state can run ahead of
the disk. All quiet times are counted while somebody was awake to watch, so that neither a jump of the wall clock nor eight hours of suspend
makes a run look stalled.
"""

from __future__ import annotations

import hashlib
import itertools
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from stepwatch.core.model import Covered, Frame, Outcome, Published, Receipt, Render, Role, Run, Word
from stepwatch.core.plan import plural
from stepwatch.core.policy import CleanupPolicy, Policy

REMEMBERED_INTERVALS = 32
FEWEST_INTERVALS = 4
"""With fewer, a cadence says too little to judge a stall by."""
UNKNOWN_STALL = 120.0
SHORTEST_STALL = 10.0
LONGEST_STALL = 900.0
ALIVE_FACTOR = 4
"""How much longer a run may be silent whose writer is known to live: a model swap, a slow step on a processor."""
PATIENT_CLEARING = 120.0
FIRST_BACKOFF = 10.0
LONGEST_BACKOFF = 3600.0
MOMENT = 0.001
"""Seconds that are not worth waiting for; they keep rounding from asking for a look at the very instant of this one."""


class Phase(StrEnum):
    """Where a run stands; the same words in logs, ``status`` and JSON."""

    RECORDING = "recording"
    COMPLETE = "complete"
    STALLED = "stalled"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    HELD = "held"
    IGNORED = "ignored"
    RENDERING = "rendering"
    RENDERED = "rendered"
    CLEARED = "cleared"
    RENDER_FAILED = "render-failed"
    QUARANTINED = "quarantined"


class Do(StrEnum):
    """The one thing to be done next."""

    WAIT = "wait"
    """Look again at a time, or when something changes."""
    RENDER = "render"
    SUPERSEDE = "supersede"
    """Take an incomplete animation away whose frames a newer one contains."""
    CLEAR = "clear"
    REST = "rest"
    """Nothing, until something changes."""


class WriterState(StrEnum):
    """What is known of the process that writes a run."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What to do with a run, and why."""

    do: Do
    phase: Phase
    reason: str
    """One sentence in plain words, without the run's name."""
    at: float | None = None
    """For ``wait``: seconds awake at which to look again even if nothing changes."""
    incomplete: bool = False
    """For ``render``: the animation is to be marked so; for ``wait``: it would be, if nothing changes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Now:
    """What the clocks say."""

    awake: float
    """Seconds on a clock that only runs while the watcher does; for how long something has been quiet."""
    wall: float
    """Seconds since the epoch; for what has to outlive the process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sight:
    """Everything that one look at a run has brought."""

    run: Run
    receipt: Receipt | None = None
    since: float = 0.0
    """Seconds awake at which this very state (`fingerprint`) was first seen."""
    age: float = 0.0
    """Seconds that it had been unchanged by then, on the clock of its file system; 0 when it changed while somebody watched."""
    writer: WriterState = WriterState.UNKNOWN
    succeeded: bool = False
    """The same writer has begun another run after this one."""
    open_files: bool = False
    """Some process has a frame open for writing."""
    outputs_there: bool = True
    """The latest render's files are where they were published, unchanged."""
    clearing_begun: bool = False
    """A clearing of the render that knows these frames was begun and never finished."""
    durable: bool = True
    """What was written and renamed there is known to reach the disk."""
    max_attempts: int = 4
    by_hand: bool = False
    """A person wants an animation of what is there, ready or not."""
    asked: bool = False
    """A person asked for clearing by today's policy, whatever it was when the run was rendered."""
    as_it_is: bool = False
    """A person has called the run finished as it is, so what may still come is not waited for."""


# --- the clock of a run -------------------------------------------------------------------------------------------------------------


def intervals(run: Run) -> list[float]:
    """Seconds between successive frames, by the clock of their file system: the last 32, without the first, which loads the model."""
    times = sorted(frame.mtime_ns for frame in run.frames)
    between = [(later - earlier) / 1e9 for earlier, later in itertools.pairwise(times)]
    return between[1:][-REMEMBERED_INTERVALS:]


def settle_limit(run: Run, policy: Policy) -> float:
    """Seconds without a change after which a frame counts as written."""
    wish = policy.detect.settle
    if wish != "auto":
        return float(wish)
    between = intervals(run)
    return _clamp(2 * statistics.median(between), 1.0, 10.0) if between else 2.0


def quiet_limit(run: Run, policy: Policy) -> float:
    """Seconds without a new frame after which a run without a sidecar is complete: nobody will ever say so."""
    wish = policy.detect.settle
    if wish != "auto":
        return float(wish)
    between = intervals(run)
    if len(between) < FEWEST_INTERVALS:
        return 10.0
    return _clamp(max(3 * statistics.median(between), 2 * max(between)), 2.0, 300.0)


def clearing_limit(run: Run, policy: Policy) -> float:
    """Seconds without a change before frames without a sidecar are cleared: quiet made them complete, and their writer may still be at it."""
    wish = policy.detect.settle
    return 10 * float(wish) if wish != "auto" else max(PATIENT_CLEARING, 10 * quiet_limit(run, policy))


def stall_limit(run: Run, policy: Policy, *, writer: WriterState = WriterState.UNKNOWN, succeeded: bool = False) -> float:
    """Seconds without a new frame after which a run whose sidecar says ``running`` has stalled."""
    settle = settle_limit(run, policy)
    between = intervals(run)
    wish = policy.detect.stall
    if wish != "auto":
        limit = float(wish)
    elif len(between) < FEWEST_INTERVALS:
        limit = max(settle, UNKNOWN_STALL)
    else:
        median = statistics.median(between)
        spread = 1.4826 * statistics.median(abs(value - median) for value in between)
        limit = max(settle, _clamp(max(8 * median, median + 10 * spread, 3 * max(between)), SHORTEST_STALL, LONGEST_STALL))
    if writer is WriterState.DEAD or succeeded:
        return min(limit, settle)
    if between and _promise_kept(run):
        return min(limit, max(settle, 3 * statistics.median(between)))
    return limit * ALIVE_FACTOR if writer is WriterState.ALIVE and wish == "auto" else limit


def _promise_kept(run: Run) -> bool:
    sidecar = run.sidecar
    return sidecar is not None and sidecar.frames_planned is not None and len(run.frames) + len(sidecar.lost) >= sidecar.frames_planned > 0


def _clamp(value: float, least: float, most: float) -> float:
    return max(least, min(most, value))


def backoff(count: int, jitter: float) -> float:
    """Seconds to wait after the *count*-th failure; *jitter* from 0 to 1 spreads them by a quarter to either side."""
    return min(LONGEST_BACKOFF, FIRST_BACKOFF * 4.0 ** min(count - 1, 10)) * (0.75 + jitter / 2)


# --- what the receipt says of the frames that are here --------------------------------------------------------------------------------


def fingerprint(run: Run) -> str:
    """A digest of what a look at a run can see without reading its frames: when it is the same, nothing has happened."""
    total = hashlib.sha256()
    for frame in (*run.frames, *run.duplicates):
        facts = f"{frame.step}\0{frame.name}\0{frame.size}\0{frame.mtime_ns}\0{frame.ctime_ns}\0{frame.inode}\n"
        total.update(facts.encode("utf-8", "surrogateescape"))
    if run.sidecar:
        total.update(f"{run.sidecar.run_id}\0{run.sidecar.state}\0{run.sidecar.frame_count}".encode())
    return total.hexdigest()[:32]


def unchanged(frame: Frame, covered: Covered) -> bool:
    """Whether this is the file that was rendered, as far as its facts tell."""
    known = covered.frame
    return (frame.inode, frame.size, frame.mtime_ns, frame.ctime_ns) == (known.inode, known.size, known.mtime_ns, known.ctime_ns)


def covering(run: Run, receipt: Receipt | None) -> Render | None:
    """The latest render that knows every file of the run that is here; frames that are no longer here do not matter."""
    if receipt is None:
        return None
    for render in reversed(receipt.renders):
        known = {covered.frame.name: covered for covered in render.frames}
        if all(frame.name in known and unchanged(frame, known[frame.name]) for frame in (*run.frames, *run.duplicates)):
            return render
    return None


def outdated(receipt: Receipt, newer: Render) -> tuple[Published, ...]:
    """The incomplete animations, still there, whose frames are all in *newer*."""
    contained = {(covered.frame.name, covered.digest) for covered in newer.frames if covered.role is not Role.DAMAGED}
    # By their order in the receipt: the clock that dated them may have gone back.
    older = itertools.takewhile(lambda render: render != newer, receipt.renders)
    return tuple(
        output
        for render in older
        # Of the same frames, both incomplete, neither is the newer one: somebody wanted them rendered in two ways.
        if render.incomplete and not (newer.incomplete and render.generation == newer.generation)
        if {(covered.frame.name, covered.digest) for covered in render.frames if covered.role is not Role.DAMAGED} <= contained
        for output in render.outputs
        if not output.superseded and output.path not in {one.path for one in newer.outputs}
    )


def stricter_cleanup(one: CleanupPolicy, other: CleanupPolicy) -> CleanupPolicy:
    """What both policies allow: the one at publish time and today's."""
    order = ("keep", "trash", "delete")
    return CleanupPolicy(
        intermediates=min(one.intermediates, other.intermediates, key=order.index),
        skipped="clear" if one.skipped == other.skipped == "clear" else "keep",
        grace=max(one.grace, other.grace),
    )


def clearable(render: Render, cleanup: CleanupPolicy) -> tuple[Covered, ...]:
    """The files that a published render covers and that *cleanup* lets go.

    Of a step that has several files none goes: which of them was the frame is a guess, and only one was rendered.
    """
    roles = {Role.SHOWN, Role.SKIPPED} if cleanup.skipped == "clear" else {Role.SHOWN}
    doubtful = {covered.frame.step for covered in render.frames if covered.role is Role.DUPLICATE}
    return tuple(covered for covered in render.frames if covered.role in roles and covered.digest and covered.frame.step not in doubtful)


# --- the decision ---------------------------------------------------------------------------------------------------------------------


def next_action(sight: Sight, policy: Policy, now: Now) -> Action:
    """Say what to do with a run now."""
    run, receipt = sight.run, sight.receipt
    mark = fingerprint(run)
    word = receipt.word if receipt and receipt.word_for == mark else Word.NONE
    if not run.frames:
        return _without_frames(sight, policy)
    if sight.by_hand:
        known = covering(run, receipt)
        incomplete = known.incomplete if known and run.sidecar is None else not run.complete
        phase = _SAID[run.sidecar.state] if run.sidecar else Phase.STALLED
        return Action(do=Do.RENDER, phase=phase, reason="asked for by hand", incomplete=incomplete)
    render = covering(run, receipt)
    ready = _readiness(sight, policy, now, render)
    # What was rendered as incomplete is rendered once more when it proves complete, and is not at rest while that may still be.
    if render and receipt and (sight.as_it_is or ready.incomplete or not render.incomplete):
        return _after_render(sight, receipt, render, policy, now)
    if word is Word.DISCARD:
        return Action(do=Do.REST, phase=Phase.IGNORED, reason="it was discarded by hand")
    if ready.do is not Do.RENDER:
        return ready
    refused = _unwanted(run, policy, ready, word)
    if refused:
        return refused
    return _tried(receipt, mark, ready, sight.max_attempts, now) or ready


def _without_frames(sight: Sight, policy: Policy) -> Action:
    run, receipt = sight.run, sight.receipt
    latest = receipt.renders[-1] if receipt and receipt.renders else None
    if receipt and latest:
        if sight.clearing_begun:
            return _rest_of_clearing(sight, latest, policy)
        if run.sidecar and run.sidecar.state is Outcome.RUNNING and run.run_id != receipt.run_id:
            return Action(do=Do.REST, phase=Phase.RECORDING, reason="it has no frame yet; its folder held another run before")
        if sight.outputs_there and outdated(receipt, latest):
            return Action(do=Do.SUPERSEDE, phase=Phase.RENDERED, reason="a newer animation contains the frames of an incomplete one")
        if latest.cleared:
            return Action(do=Do.REST, phase=Phase.CLEARED, reason=latest.clear_note or "its frames are cleared")
        return Action(do=Do.REST, phase=Phase.RENDERED, reason="it is rendered, and its frames are no longer here")
    if run.sidecar and run.sidecar.state is not Outcome.RUNNING:
        return Action(do=Do.REST, phase=Phase.IGNORED, reason=f"it has ended ({run.sidecar.state}) without a frame")
    return Action(do=Do.REST, phase=Phase.RECORDING, reason="it has no frame yet")


def _rest_of_clearing(sight: Sight, latest: Render, policy: Policy) -> Action:
    """What to do when all frames have left, but whoever moved them did not come to the end."""
    if not sight.outputs_there:
        reason = "its frames are in the trash and stay there: its animation is no longer where it was published, or has changed"
        return Action(do=Do.REST, phase=Phase.RENDERED, reason=reason)
    if _cleanup(sight, latest, policy).intermediates == "keep":
        return Action(do=Do.REST, phase=Phase.RENDERED, reason="its frames are in the trash and stay there: the policy now says keep")
    return Action(do=Do.CLEAR, phase=Phase.RENDERED, reason="clearing was cut short")


def _cleanup(sight: Sight, render: Render, policy: Policy) -> CleanupPolicy:
    return policy.cleanup if sight.asked else stricter_cleanup(render.cleanup, policy.cleanup)


def _readiness(sight: Sight, policy: Policy, now: Now, render: Render | None) -> Action:
    """Whether the run can be rendered, leaving aside whether it should: ``render``, or ``wait`` until when."""
    run, sidecar = sight.run, sight.run.sidecar
    observed = max(0.0, now.awake - sight.since)
    # Frames from the future must not make it wait until then.
    quiet = observed + max(0.0, sight.age)
    settle = settle_limit(run, policy)

    def judged(limit: float, phase: Phase, reason: str, waiting: str) -> Action:
        # What was quiet before anybody watched is watched for a while all the same: a slow copy keeps the times of its source.
        rest = max(limit - quiet, min(settle, limit) - observed)
        if rest > MOMENT:
            return Action(do=Do.WAIT, phase=Phase.RECORDING, reason=waiting, at=now.awake + rest, incomplete=phase is not Phase.COMPLETE)
        return proven(phase, reason)

    def proven(phase: Phase, reason: str) -> Action:
        incomplete = phase is not Phase.COMPLETE
        if sight.open_files:
            later = now.awake + max(settle, 0.5)
            return Action(do=Do.WAIT, phase=Phase.RECORDING, reason="a frame is still open for writing", at=later, incomplete=incomplete)
        return Action(do=Do.RENDER, phase=phase, reason=reason, incomplete=incomplete)

    if sidecar is None:
        limit = quiet_limit(run, policy)
        return judged(limit, Phase.COMPLETE, f"no new frame for {_seconds(limit)}", f"it is complete when no frame comes for {_seconds(limit)}")
    if sidecar.state is Outcome.RUNNING:
        limit = stall_limit(run, policy, writer=sight.writer, succeeded=sight.succeeded)
        why = _stall_reason(sight, limit)
        return judged(limit, Phase.STALLED, why, f"it counts as stalled when no frame comes for {_seconds(limit)}")
    phase, reason = _SAID[sidecar.state], f"its sidecar says {sidecar.state}"
    before = sight.receipt.renders if sight.receipt else ()
    if render is None and any(one.incomplete is (phase is not Phase.COMPLETE) for one in before):
        # The sidecar knows nothing of what came after it: whoever rewrites one frame may go on to the next.
        reason = f"{reason}, and frames have come or changed since it was rendered"
        return judged(settle, phase, reason, f"{reason}, so it is watched for {_seconds(settle)}")
    if len(run.frames) == sidecar.frame_count:
        return proven(phase, reason)
    # More frames than it says are late ones: others may follow, and they make one animation together.
    counted = "does not say of how many frames" if sidecar.frame_count is None else f"speaks of {plural(sidecar.frame_count, 'frame')}"
    reason = f"{reason} and {counted}; {len(run.frames)} found"
    return judged(settle, phase, reason, f"{reason}, so it is watched for {_seconds(settle)}")


_SAID = {
    Outcome.RUNNING: Phase.STALLED,
    Outcome.COMPLETE: Phase.COMPLETE,
    Outcome.INTERRUPTED: Phase.INTERRUPTED,
    Outcome.FAILED: Phase.FAILED,
}
"""What a run is, by the last word of its sidecar, when no more is to be expected."""


def _stall_reason(sight: Sight, limit: float) -> str:
    if sight.writer is WriterState.DEAD:
        return "its writer is gone and never said complete"
    if sight.succeeded:
        return "its writer has begun another run and never said complete"
    return f"no new frame for {_seconds(limit)}, and nobody said complete"


def _unwanted(run: Run, policy: Policy, ready: Action, word: Word) -> Action | None:
    """Why a run that could be rendered is left alone, if it is."""
    if not policy.create:
        return Action(do=Do.REST, phase=Phase.IGNORED, reason="the policy says create: false, so no animation is made")
    if word is Word.RETRY:
        return None
    if len(run.frames) < policy.detect.min_frames:
        found = plural(len(run.frames), "frame")
        return Action(do=Do.REST, phase=Phase.IGNORED, reason=f"it has {found}, and detect.min_frames is {policy.detect.min_frames}")
    if ready.incomplete and policy.detect.incomplete == "hold":
        return Action(do=Do.REST, phase=Phase.HELD, reason=f"{ready.phase}: {ready.reason}; `stepwatch runs retry` renders it")
    if ready.incomplete and policy.detect.incomplete == "ignore":
        return Action(do=Do.REST, phase=Phase.IGNORED, reason=f"{ready.phase}: {ready.reason}; the policy says detect.incomplete: ignore")
    return None


def _tried(receipt: Receipt | None, mark: str, ready: Action, max_attempts: int, now: Now) -> Action | None:
    """What earlier tries of these very frames mean: wait, or give up."""
    if receipt is None or receipt.attempts.fingerprint != mark:
        return None
    attempts = receipt.attempts
    error = attempts.error or "the last try ended without a word"
    if attempts.count >= max_attempts:
        reason = f"it failed {plural(attempts.count, 'time')}: {error}; `stepwatch runs retry` tries again"
        return Action(do=Do.REST, phase=Phase.QUARANTINED, reason=reason)
    rest = attempts.not_before - now.wall
    # A wait longer than any that is ever set means that the clock went back; it must not postpone the next try for years.
    if MOMENT < rest <= backoff(max(1, attempts.count), 1.0) + MOMENT:
        reason = f"try {attempts.count} of {max_attempts} failed: {error}"
        return Action(do=Do.WAIT, phase=Phase.RENDER_FAILED, reason=reason, at=now.awake + rest, incomplete=ready.incomplete)
    return None


def _after_render(sight: Sight, receipt: Receipt, render: Render, policy: Policy, now: Now) -> Action:
    """What follows once the frames that are here have been rendered."""
    if sight.outputs_there and outdated(receipt, render):
        return Action(do=Do.SUPERSEDE, phase=Phase.RENDERED, reason="a newer animation contains the frames of an incomplete one")
    cleanup = _cleanup(sight, render, policy)
    names = {frame.name for frame in (*sight.run.frames, *sight.run.duplicates)}
    due = [covered for covered in clearable(render, cleanup) if covered.frame.name in names]
    done = f"rendered{' as incomplete' if render.incomplete else ''}"
    rest = Action(do=Do.REST, phase=Phase.RENDERED, reason=done)
    if cleanup.intermediates == "keep" or (render.clear_note and not sight.asked and not sight.clearing_begun):
        return replace(rest, reason=f"{done}; {render.clear_note}") if render.clear_note else rest
    begun = sight.clearing_begun
    kept = _kept(sight, render, policy) or ("" if due or begun else "no frame is left that may be cleared")
    if kept:
        return replace(rest, reason=f"{done}; its frames stay: {kept}")
    rest_of_quiet = clearing_limit(sight.run, policy) - (now.awake - sight.since) - max(sight.age, 0.0)
    if sight.run.sidecar is None and not sight.as_it_is and not begun and rest_of_quiet > 0:
        return replace(rest, do=Do.WAIT, reason=f"{done}; its frames are cleared when it stays quiet", at=now.awake + max(rest_of_quiet, MOMENT))
    reason = "clearing was cut short" if begun else f"the policy says cleanup.intermediates: {cleanup.intermediates}"
    return Action(do=Do.CLEAR, phase=Phase.RENDERED, reason=reason)


def _kept(sight: Sight, render: Render, policy: Policy) -> str:
    """Why the frames of a rendered run stay although the policy would clear them; empty when nothing keeps them."""
    run = sight.run
    reasons: Sequence[tuple[bool, str]] = (
        (policy.frames.append, "runs are appended to one animation here (frames.append)"),
        (run.guessed or render.guessed, "only a guess says that they are frames; set frames.pattern"),
        (run.sidecar is not None and run.sidecar.state is Outcome.RUNNING, "its sidecar still says running"),
        # As it was rendered: a clearing that was cut short has left holes of its own.
        (bool(render.missing), f"steps are missing ({_some(render.missing)})"),
        (any(covered.role is Role.DAMAGED for covered in render.frames), "a frame is damaged"),
        (not sight.outputs_there, "its animation is no longer where it was published, or has changed"),
        (not sight.durable, "this file system does not say when a change is safe on the disk"),
    )
    return next((reason for applies, reason in reasons if applies), "")


def _some(steps: Iterable[int]) -> str:
    shown = list(steps)
    return ", ".join(map(str, shown[:5])) + (" ..." if len(shown) > 5 else "")


def _seconds(value: float) -> str:
    return f"{value:.1f} s" if value < 10 else f"{value:.0f} s"


# --- the picture of it ----------------------------------------------------------------------------------------------------------------

_READY = (Phase.COMPLETE, Phase.STALLED, Phase.INTERRUPTED, Phase.FAILED)
_ALONE = (Phase.HELD, Phase.IGNORED, Phase.RENDER_FAILED, Phase.QUARANTINED)
_DONE = (Phase.RENDERED, Phase.CLEARED)
_BOXES = {"ready to be rendered": _READY, "left alone": _ALONE, "done": _DONE}
_FOUND = (*(phase for phase in _READY if phase is not Phase.STALLED), *_ALONE, *_DONE)
"""What a run that was not known before can be at the first look: only a stall has to be watched for a while."""

_Ends = tuple[Phase, ...] | None
_WAYS: tuple[tuple[_Ends, _Ends, str], ...] = (
    (None, (Phase.RECORDING,), "frames arrive"),
    (None, _FOUND, "found so by a daemon that starts"),
    ((Phase.RECORDING,), _READY, "the sidecar says so, or it is quiet"),
    ((Phase.RECORDING,), _ALONE, "and policy, receipt or a person say so"),
    (_READY, (Phase.RENDERING,), "a worker is free"),
    ((Phase.STALLED,), (Phase.COMPLETE, Phase.INTERRUPTED, Phase.FAILED), "the sidecar says so after all"),
    ((Phase.STALLED, Phase.INTERRUPTED, Phase.FAILED), (Phase.HELD,), "what runs retry was about has changed"),
    (_READY, (Phase.IGNORED,), "runs discard"),
    ((Phase.RENDERING,), (Phase.RENDERED,), "verified and published"),
    ((Phase.RENDERING,), (Phase.RENDER_FAILED,), "the run is at fault"),
    ((Phase.RENDERING,), (Phase.QUARANTINED,), "the last try failed"),
    ((Phase.RENDERING,), _READY, "the machine is at fault"),
    ((Phase.RENDERING,), (Phase.HELD, Phase.IGNORED), "it failed, and its sidecar or a person spoke meanwhile"),
    (_ALONE, _READY, "runs retry, the wait is over, or the sidecar speaks"),
    (_ALONE, (Phase.HELD, Phase.IGNORED), "runs discard, or the sidecar speaks"),
    ((Phase.RENDERED,), (Phase.CLEARED,), "policy clears, and every frame is covered"),
    ((Phase.RENDERED,), (Phase.COMPLETE,), "rendered as incomplete, and the sidecar says complete"),
    ((Phase.RENDERED,), (Phase.IGNORED,), "the same, but it has too few frames"),
    ((*_READY, Phase.RENDERING, *_ALONE, *_DONE), (Phase.RECORDING,), "frames come or change"),
)
"""What leads from one phase to the next, by itself or by the word of a person. An edited policy, a clock that jumps, and receipts, frames or
animations that somebody takes away, lead from any phase to whatever the facts then say."""

EDGES: tuple[tuple[Phase | None, Phase, str], ...] = tuple(
    (start, end, because) for starts, ends, because in _WAYS for start in starts or (None,) for end in ends or () if start is not end
)
"""Every single step; None is a run that was not known before."""


def diagram() -> str:
    """The phases and what leads from one to the next, as a Mermaid flowchart; a box stands for every phase in it."""
    lines = ["flowchart TD", "    found(( ))", *(f"    {_node(phase)}[{phase}]" for phase in (Phase.RECORDING, Phase.RENDERING))]
    for number, (title, phases) in enumerate(_BOXES.items()):
        lines += [f"    subgraph box{number} [{title}]", *(f"        {_node(phase)}[{phase}]" for phase in phases), "    end"]
    for starts, ends, because in _WAYS:
        lines += [f'    {start} -->|"{because}"| {end}' for start in _nodes(starts) for end in _nodes(ends)]
    return "\n".join(lines) + "\n"


def _nodes(phases: _Ends) -> list[str]:
    """As few nodes as stand for all of *phases*: whole boxes where they can."""
    if phases is None:
        return ["found"]
    whole = {f"box{number}": box for number, box in enumerate(_BOXES.values()) if set(box) <= set(phases)}
    return [*whole, *(_node(phase) for phase in phases if not any(phase in box for box in whole.values()))]


def _node(phase: Phase) -> str:
    return phase.value.replace("-", "_")
