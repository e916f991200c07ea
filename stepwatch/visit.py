"""Bring one run one step forward: read the facts, ask the core, do what it says, and record what came of it.

This is the only path to an animation, for the daemon (`advance`) and for people (`visit`), and the only path by which frames are cleared. Each
visit locks its run, so that the daemon and a `stepwatch render` beside it wait for one another. The attempt is committed to the receipts
before anything is rendered, and the render after it is published; only a committed render is ever followed by clearing.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from stepwatch import config, frames, store, system, tags, trash
from stepwatch.core import live as promises
from stepwatch.core import metadata
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
    next_action,
    outdated,
    quiet_limit,
    stricter_cleanup,
)
from stepwatch.core.manifest import Manifest
from stepwatch.core.model import Outcome, Receipt, Render, Role, Run, RunKey, Word
from stepwatch.core.naming import printable
from stepwatch.core.policy import CleanupPolicy
from stepwatch.core.result import RunResult
from stepwatch.errors import (
    ConfigError,
    EnvironmentFault,
    FramesChangedError,
    Interrupted,
    MissingToolError,
    RunError,
    StepwatchError,
)
from stepwatch.ledger import Ledger, open_receipts
from stepwatch.live import Live
from stepwatch.passes import Observer
from stepwatch.rendering import Options, Rendering, require_space

__all__ = [
    "Means",
    "Options",
    "Records",
    "Sighting",
    "Step",
    "advance",
    "empty_trash",
    "go_live",
    "open_records",
    "prune",
    "resolver",
    "runs_at",
    "runs_below",
    "see",
    "visit",
]

NEWEST = 3
"""Frames, from the newest, that are looked at for somebody who still writes them."""
COVERED = "covered by an animation"
BY_HAND = "cleared by hand"
"""Why something is in the trash, where its owner's word, and no policy, has put it there."""
FREE_ERRORS = (EnvironmentFault, MissingToolError, ConfigError, FramesChangedError)
"""What no run is to blame for: it costs none of its attempts."""


Resolve = Callable[[Path, Mapping[str, object] | None], config.Resolved]
"""Gives a folder its policy, for a run whose sidecar may have wishes of its own. Raises ConfigError."""


# --- where runs and records are found ----------------------------------------------------------------------------------------------------


@dataclass(slots=True, kw_only=True)
class Records:
    """Receipts, and what goes with them: where runs are locked, and what earlier outputs say of themselves."""

    ledger: Ledger
    state: Path
    """Folder of the locks."""
    said: dict[tuple[str, int, int], metadata.Identity | None] = field(default_factory=dict)
    """What files said of themselves, by path, size and mtime_ns: asking costs a process each."""


def open_records(state: Path | None = None) -> Records:
    """Open this user's receipts; EnvironmentFault when they cannot be."""
    place = state or system.state_dir()
    return Records(ledger=open_receipts(place), state=place)


def runs_below(folder: Path, *, service: config.ServiceConfig, settings: Sequence[str] = ()) -> list[tuple[Run, config.Resolved]]:
    """Every run in *folder* and below, each with its resolved policy; the runs of an ``append`` folder come as one.

    Raises ConfigError with what is wrong in all files there, not only in the first.
    """
    folder = Path(os.path.realpath(folder))
    try:
        watched = config.resolve_for(folder, service=service, settings=settings).watched
        return _runs_below(folder, resolver(service=service, watched=watched, settings=settings))
    except ConfigError as error:
        complaints = (*error.complaints, *config.complaints_about(folder, service=service))
        raise ConfigError(tuple(dict.fromkeys(complaints)), hint=error.hint) from error


def resolver(*, service: config.ServiceConfig, watched: Path, settings: Sequence[str] = ()) -> Resolve:
    """How the runs of a watched folder get their policies."""

    def resolve(place: Path, overrides: Mapping[str, object] | None = None) -> config.Resolved:
        return config.resolve_for(place, service=service, settings=settings, watched=watched, overrides=overrides)

    return resolve


def _runs_below(folder: Path, resolve_for: Resolve, *, guess: bool = True) -> list[tuple[Run, config.Resolved]]:
    resolved_for: dict[Path, config.Resolved] = {}

    def resolve(place: Path) -> config.Resolved:
        if place not in resolved_for:
            resolved_for[place] = resolve_for(place, None)
        return resolved_for[place]

    found = store.find_runs(
        folder,
        pattern_for=lambda place: resolve(place).policy.frames.pattern,
        exclude=lambda place: place in resolve(place.parent).output_dirs,
        guess=guess,
    )
    runs: list[tuple[Run, config.Resolved]] = []
    appended: dict[Path, list[Run]] = {}
    in_folder = Counter(run.key.folder for run in found)
    for run in found:
        place = Path(run.key.folder)
        resolved = _own(run, resolve(place), resolve_for)
        if resolved.policy.frames.append:
            # Runs that share a folder are joined there; a run that has a folder of its own is joined with its neighbours.
            together = place if run.key.group or in_folder[run.key.folder] > 1 or place == folder else place.parent
            if together not in appended:
                runs.append((run, resolved))
            appended.setdefault(together, []).append(run)
        else:
            runs.append((run, resolved))
    joined = {id(parts[0]): store.append_runs(together, parts) for together, parts in appended.items()}
    return [(joined.get(id(run), run), resolved) for run, resolved in runs]


def runs_at(folder: Path, resolve: Resolve) -> list[tuple[Run, config.Resolved]]:
    """The runs that a change in *folder* concerns, each with its policy: those right in it, or the one that they are appended to.

    Nothing is guessed: a run has a sidecar, or a trusted policy names its pattern. Raises ConfigError, EnvironmentFault.
    """
    resolved = resolve(folder, None)
    found = store.runs_in(folder, pattern=resolved.policy.frames.pattern)
    runs = []
    for run in found:
        own = _own(run, resolved, resolve)
        if own.policy.frames.append:
            together = folder if run.key.group or len(found) > 1 or folder == resolved.watched else folder.parent
            below = _runs_below(together, resolve, guess=False)
            return [(joined, policy) for joined, policy in below if joined.key == RunKey(folder=str(together))]
        runs.append((run, own))
    return runs


def _own(run: Run, resolved: config.Resolved, resolve: Resolve) -> config.Resolved:
    """The policy of a run, which its sidecar may have wishes about."""
    return resolve(Path(run.key.folder), run.sidecar.overrides) if run.sidecar and run.sidecar.overrides else resolved


# --- seeing a run ------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """Since when a run has been seen as it is."""

    fingerprint: str
    since: float
    """Seconds awake."""
    age: float = 0.0
    """Seconds that it had been so already, by the clock of its file system."""


def receipt_of(run: Run, records: Records | None) -> Receipt | None:
    """What is recorded of a run; one that has moved with its folder takes its receipt along."""
    if records is None:
        return None
    receipt = records.ledger.get(run.key)
    if receipt is None and run.frames:
        # By its id where a sidecar gives one; else by its very files, which are the same ones when only their folder has another name.
        known = (one.key for one in records.ledger.by_run_id(run.run_id)) if run.sidecar else records.ledger.by_fingerprint(fingerprint(run))
        for other in known:
            if other.group == run.key.group and not os.path.isdir(other.folder) and _has_moved(records.ledger.get(other), run):
                records.ledger.rekey(other, run.key)
                return records.ledger.get(run.key)
    return receipt


def _has_moved(receipt: Receipt | None, run: Run) -> bool:
    """Whether one of the files that a receipt covers is here now: that its folder is gone says nothing, for the disk may be away."""
    covered = {(one.frame.inode, one.frame.size, one.frame.mtime_ns) for render in (receipt.renders if receipt else ()) for one in render.frames}
    return any((frame.inode, frame.size, frame.mtime_ns) in covered for frame in run.frames)


def see(
    run: Run,
    resolved: config.Resolved,
    receipt: Receipt | None,
    sighting: Sighting,
    *,
    succeeded: bool = False,
    max_attempts: int = 4,
    by_hand: bool = False,
    asked: bool = False,
    as_it_is: bool = False,
) -> Sight:
    """Gather what the core needs to decide; what costs a look at the disk only where it matters."""
    running = run.sidecar is not None and run.sidecar.state is Outcome.RUNNING
    known = covering(run, receipt)
    render = known or (receipt.renders[-1] if receipt and receipt.renders and not run.frames else None)
    wanted = resolved.policy.cleanup if asked or render is None else stricter_cleanup(render.cleanup, resolved.policy.cleanup)
    begun = render is not None and bool(render.cleared or not run.frames or wanted.intermediates != "keep") and _is_cut_short(run, resolved, render)
    clearing = render is not None and (begun or (wanted.intermediates != "keep" and (asked or not render.clear_note)))
    superseding = bool(receipt and render and outdated(receipt, render))
    there = render is None or not (clearing or superseding) or trash.outputs_there(render)
    return Sight(
        run=run,
        receipt=receipt,
        since=sighting.since,
        age=sighting.age,
        writer=system.writer_state(run.sidecar.writer) if running and run.sidecar else WriterState.UNKNOWN,
        succeeded=succeeded,
        open_files=known is None and _being_written(run),
        outputs_there=there,
        clearing_begun=begun,
        durable=not clearing or _is_durable(resolved),
        max_attempts=max_attempts,
        by_hand=by_hand,
        asked=asked,
        as_it_is=as_it_is,
    )


def _is_cut_short(run: Run, resolved: config.Resolved, render: Render) -> bool:
    """Whether a clearing of this render was begun and never finished."""
    facts = (run.key.folder, run.key.group, render.generation)
    return any((one.source, one.group, one.generation) == facts for one in trash.unfinished(resolved.watched, render.generation))


def _being_written(run: Run) -> bool:
    newest = sorted(run.frames, key=lambda frame: frame.mtime_ns)[-NEWEST:]
    return any(system.open_for_writing(Path(run.key.folder, frame.name)) for frame in newest)


def _is_durable(resolved: config.Resolved) -> bool:
    try:
        return all(system.fsync_folder(place) for place in {resolved.watched, *resolved.output_dirs} if place.is_dir())
    except OSError:
        return False


# --- visits ------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one visit by the daemon has done."""

    action: Action
    result: RunResult | None = None
    error: StepwatchError | None = None
    """Why it could not be done."""


def visit(
    run: Run,
    resolved: config.Resolved,
    *,
    ffmpeg: str,
    options: Options,
    observer: Observer,
    stop: threading.Event,
    damaged: Mapping[str, str] | None = None,
    records: Records | None = None,
) -> RunResult:
    """Render what is there of *run* by hand, ready or not, and tell what came of it; then clear, where policy or *options* say so.

    *damaged* maps names of frames that are already known not to decode to the reason. A fault of the run, or of this machine, comes back in
    the result; only Interrupted (when *stop* is set) and BusyError are raised. Without *records* nothing is recorded, so nothing is cleared.
    """
    started = time.monotonic()
    for note in (*run.notes, *resolved.warnings):
        observer.say(run.name, note, level="warning")
    if options.dry_run:
        records = None
    visiting = _Visit(run=run, resolved=resolved, ffmpeg=ffmpeg, options=options, observer=observer, stop=stop, records=records)
    try:
        with visiting.locked():
            result = visiting.by_hand(damaged or {})
            visiting.note_down(result)
    finally:
        observer.finished(run.name)
    return replace(result, seconds=round(time.monotonic() - started, 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Means:
    """What the daemon's visits work with."""

    records: Records
    ffmpeg: Callable[[], str]
    """Finds the binary when it is needed; MissingToolError."""
    options: Options
    observer: Observer
    stop: threading.Event
    now: Callable[[], Now]
    max_attempts: int


def advance(
    key: RunKey,
    *,
    find: Callable[[RunKey], tuple[Run, config.Resolved] | None],
    sighting: Sighting,
    succeeded: bool,
    means: Means,
    patient: bool = True,
    live: Live | None = None,
) -> Step | None:
    """Do the one thing that is due for a run, as the daemon; None when the run is gone.

    *live* is what has been encoded of it while it went on.

    *find* reads the run anew, for much may have happened while it waited for its turn; *sighting* and *succeeded* are what its watcher knows.
    A frame that the disk does not give costs the run an attempt only when nobody is *patient* with it any longer. Raises Interrupted, and
    EnvironmentFault when the attempt cannot be recorded; every other fault is in the step.
    """
    with system.run_lock(means.records.state, key, wait=True, stop=means.stop, on_wait=lambda: None):
        found = find(key)
        if found is None:
            return None
        run, resolved = found
        visiting = _Visit(
            run=run, resolved=resolved, ffmpeg="", options=means.options, observer=means.observer, stop=means.stop, records=means.records
        )
        visiting.patient, visiting.live = patient, live
        if fingerprint(run) != sighting.fingerprint:
            sighting = Sighting(fingerprint=fingerprint(run), since=means.now().awake)
        sight = see(run, resolved, visiting.receipt, sighting, succeeded=succeeded, max_attempts=means.max_attempts)
        action = next_action(sight, resolved.policy, means.now())
        try:
            if action.do is Do.RENDER:
                visiting.ffmpeg = means.ffmpeg()
                result = visiting.render(action)
                return Step(action=action, result=result, error=visiting.error)
            if action.do is Do.SUPERSEDE:
                visiting.supersede()
            elif action.do is Do.CLEAR:
                return Step(action=action, result=visiting.clear(asked=False))
        except Interrupted:
            raise
        except StepwatchError as error:
            return Step(action=action, error=error)
        finally:
            means.observer.finished(run.name)
        return Step(action=action)


def go_live(run: Run, resolved: config.Resolved, *, means: Means, nice: int, news: Callable[[], None]) -> Live | None:
    """Begin to encode a run while it goes on, where that can be exact; None where it cannot, or where an earlier try did not end well.

    *news* hears when all is encoded, or it was given up. Raises EnvironmentFault when there is no room for a thread.
    """
    promised = promises.promise(run, resolved.policy)
    if isinstance(promised, str):
        return None
    ledger = means.records.ledger
    receipt = receipt_of(run, means.records)
    # An attempt that stands was not taken back by anybody: whatever it was at has killed its daemon, and is not done twice.
    if receipt and (receipt.attempts.count or receipt.word is Word.DISCARD):
        return None

    def begin() -> None:
        require_space(resolved, means.options.min_free_space)
        # Not at these frames, but at what they may become: no visit of them is to count it among its own.
        what = f"live {fingerprint(run)}"
        ledger.begin_attempt(run.key, run.run_id, run.name, str(resolved.watched), what, time.time(), _jitter())

    def call_off() -> None:
        with contextlib.suppress(EnvironmentFault):
            ledger.refund_attempt(run.key)

    try:
        live = Live(promised, resolved, ffmpeg=means.ffmpeg, observer=means.observer, nice=nice, begin=begin, call_off=call_off, news=news)
    except RuntimeError as error:
        raise EnvironmentFault("no run can be encoded while it goes on: no more threads can be started") from error
    live.look(run)
    return live


def prune(run: Run, resolved: config.Resolved, *, observer: Observer, stop: threading.Event, records: Records, dry_run: bool) -> RunResult | None:
    """Clear a run that is finished, by today's policy alone; None for one that is not finished. *dry_run* only counts what would go."""
    visiting = _Visit(run=run, resolved=resolved, ffmpeg="", options=Options(), observer=observer, stop=stop, records=records)
    with visiting.locked():
        receipt = visiting.receipt
        render = covering(run, receipt)
        if render is None or not run.frames:
            return None
        sight = see(run, resolved, receipt, Sighting(fingerprint=fingerprint(run), since=0.0), asked=True, as_it_is=True)
        action = next_action(sight, resolved.policy, _instant())
        if action.do is not Do.CLEAR:
            return RunResult(run=run.run_id, name=run.name, folder=run.key.folder, phase=action.phase, reason=action.reason)
        if dry_run:
            names = {frame.name for frame in run.frames}
            count = sum(covered.frame.name in names for covered in clearable(render, resolved.policy.cleanup))
            return RunResult(run=run.run_id, name=run.name, folder=run.key.folder, phase=action.phase, reason=action.reason, cleared=count)
        return visiting.clear(asked=True)


def empty_trash(
    watched: Path, resolve: Resolve, *, now: float, dry_run: bool = False, stop: threading.Event | None = None
) -> tuple[trash.Purged, ...]:
    """Let go what has been in the trash of a watched folder for longer than the policy of its place says, then and now."""

    def grace_for(manifest: Manifest) -> float | None:
        if manifest.reason == BY_HAND:
            return manifest.grace
        source = Path(manifest.source)
        # Its folder is gone, as a rule; the policy of the nearest one above that is still there says what counts in this place.
        place = next((one for one in (source, *source.parents) if one.is_dir() and one.is_relative_to(watched)), watched)
        try:
            cleanup = resolve(place, None).policy.cleanup
        except ConfigError:
            return None
        if manifest.kind == "frames" and cleanup.intermediates == "keep":
            return None
        return 0.0 if cleanup.intermediates == "delete" else float(cleanup.grace)

    return trash.purge(watched, now=now, grace_for=grace_for, dry_run=dry_run, stop=stop)


class _Visit:
    """One run while it is being visited."""

    def __init__(
        self,
        *,
        run: Run,
        resolved: config.Resolved,
        ffmpeg: str,
        options: Options,
        observer: Observer,
        stop: threading.Event,
        records: Records | None,
    ) -> None:
        self.run = run
        self.resolved = resolved
        self.ffmpeg = ffmpeg
        self.options = options
        self.observer = observer
        self.stop = stop
        self.records = records
        self.patient = True
        self.live: Live | None = None
        self.error: StepwatchError | None = None
        self._digests: dict[str, str] = {}

    @property
    def receipt(self) -> Receipt | None:
        return receipt_of(self.run, self.records)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        if self.records is None:
            yield
            return

        def on_wait() -> None:
            self.observer.say(self.run.name, "somebody else is visiting it; waiting")

        with system.run_lock(self.records.state, self.run.key, wait=self.options.wait, stop=self.stop, on_wait=on_wait):
            yield

    def by_hand(self, damaged: Mapping[str, str]) -> RunResult:
        """Render, then do what follows from that."""
        sighting = Sighting(fingerprint=fingerprint(self.run), since=0.0)
        sight = see(self.run, self.resolved, self.receipt, sighting, by_hand=True)
        # A run without frames is refused by the plan, in its own words.
        action = next_action(sight, self.resolved.policy, _instant()) if self.run.frames else _bare(self.run)
        result = self.render(action, damaged=damaged, by_hand=True)
        if self.error is not None or self.records is None or self.options.dry_run:
            return result
        asked = self.options.asked
        while True:
            # Of a run without a sidecar nobody knows whether it goes on: a policy's clearing waits for it to be quiet, a person's word does not.
            sight = see(self.run, self.resolved, self.receipt, sighting, asked=asked, as_it_is=asked or self.run.guessed or self._is_quiet())
            action = next_action(sight, self.resolved.policy, _instant())
            if action.do is Do.SUPERSEDE:
                named = self.supersede()
                outputs = tuple(replace(output, path=named.get(output.path or "", output.path)) for output in result.outputs)
                result = replace(result, outputs=outputs)
            elif action.do is Do.CLEAR:
                return self._cleared(result, asked=asked)
            else:
                if self.resolved.policy.cleanup.intermediates != "keep":
                    self.observer.say(self.run.name, action.reason, level="warning" if "stay" in action.reason else "info")
                return result

    def _is_quiet(self) -> bool:
        newest = max((max(frame.mtime_ns, frame.ctime_ns) for frame in self.run.frames), default=0) / 1e9
        return time.time() - newest >= quiet_limit(self.run, self.resolved.policy)

    def note_down(self, result: RunResult) -> None:
        """Have the receipt say how the run stands, for people who ask while no daemon runs; to the daemon it is still news."""
        if self.records is None or (self.options.elsewhere and not self.options.asked):
            return
        run = self.run
        with contextlib.suppress(EnvironmentFault):
            self.records.ledger.see(
                run.key,
                run.run_id,
                run.name,
                str(self.resolved.watched),
                result.phase,
                result.reason,
                fingerprint(run),
                at_rest=False,
                wall=time.time(),
            )

    def _cleared(self, result: RunResult, *, asked: bool) -> RunResult:
        try:
            cleared = self.clear(asked=asked)
        except RunError as error:
            self.observer.say(self.run.name, f"its frames stay: {error.message}", level="error")
            return replace(result, exit_code=error.exit_code, reason=f"{result.reason}; its frames stay: {error.message}")
        return replace(result, cleared=cleared.cleared, phase=cleared.phase)

    # --- render ---

    def render(self, action: Action, *, damaged: Mapping[str, str] | None = None, by_hand: bool = False) -> RunResult:
        """Carry out a render that the core has asked for, from the committed attempt to the committed receipt."""
        back = self._bring_back()
        if back is not None:
            return back
        before = self.receipt
        # Frames that were tried before belong to these receipts: what is found of them was left by a crash, or by a fault of the disk.
        lost = bool(self.records) and not by_hand and (before is None or before.attempts.fingerprint != fingerprint(self.run))
        if self.live is not None:
            self.live.claim()
            self._digests.update(self.live.digests(self.run))
        attempt = self._begin(by_hand=by_hand)
        if not by_hand:
            known = self._known_contents(action)
            if known is not None:
                return known
        rendering = Rendering(
            run=self.run,
            resolved=self.resolved,
            ffmpeg=self.ffmpeg,
            options=self.options,
            observer=self.observer,
            stop=self.stop,
            incomplete=action.incomplete,
            digests=self._digests,
            earlier=self._earlier if lost and self.records and self.records.ledger.rebuilt else None,
        )
        rendering.accelerator = self.live
        rendering.damaged.update(damaged or {})
        try:
            result = rendering.go()
        except Interrupted:
            self._refund()
            raise
        except StepwatchError as error:
            result = rendering.failed(error)
        except Exception as error:  # noqa: BLE001  # a mistake of ours costs this run its attempts, and the others nothing
            self.observer.say(self.run.name, traceback.format_exc(), level="debug")
            result = rendering.failed(RunError(f"stepwatch made a mistake: {type(error).__name__}: {error}", hint="-v shows where; please report it"))
        self._conclude(rendering, attempt)
        return result

    def _bring_back(self) -> RunResult | None:
        """Undo a clearing that was cut short and overtaken by new frames: what is left here would make a stump of an animation."""
        receipt, watched = self.receipt, self.resolved.watched
        for render in receipt.renders if receipt else ():
            if _is_cut_short(self.run, self.resolved, render):
                place = trash.begun(watched, render.generation, Path(self.run.key.folder))
                restored = trash.restore(watched, place) if place is not None else None
                if restored and restored.frames:
                    count = len(restored.frames)
                    sentence = f"{count} frames are back from a clearing that was cut short, for new ones have come"
                    self.observer.say(self.run.name, sentence, level="warning")
                    return self._result(Phase.RECORDING, sentence)
        return None

    def _begin(self, *, by_hand: bool) -> int:
        if self.records is None:
            return 1
        run = self.run
        try:
            return self.records.ledger.begin_attempt(
                run.key, run.run_id, run.name, str(self.resolved.watched), fingerprint(run), time.time(), _jitter()
            )
        except EnvironmentFault as error:
            if not by_hand:
                raise
            self.observer.say(run.name, f"{error.message}; it is rendered all the same, and nothing is cleared", level="warning")
            self.records = None
            return 1

    def _refund(self) -> None:
        if self.records is not None:
            with contextlib.suppress(EnvironmentFault):
                self.records.ledger.refund_attempt(self.run.key)

    def _conclude(self, rendering: Rendering, attempt: int) -> None:
        """Commit what came of it."""
        self.error = rendering.error
        if self.records is None:
            return
        ledger, key = self.records.ledger, self.run.key
        if self.error is None and rendering.render is not None and (self.options.asked or not self.options.elsewhere):
            run = self.run
            if self._is_recorded(rendering.render):
                # The very same animation again: what has become of that render since still counts.
                ledger.remember_facts(key, rendering.render.generation, rendering.render.frames)
                self._refund()
                return
            ledger.record_render(key, rendering.render, run_id=run.run_id, name=run.name, watched=str(self.resolved.watched))
        elif self.error is None or (isinstance(self.error, FREE_ERRORS) and not self._impatient(self.error)):
            self._refund()
        else:
            ledger.fail_attempt(key, self.error.message, time.time() + backoff(attempt, _jitter()))

    def _is_recorded(self, render: Render) -> bool:
        receipt = self.receipt
        paths = {output.path for output in render.outputs}
        latest = receipt.renders[-1] if receipt and receipt.renders else None
        if latest is None or paths != {output.path for output in latest.outputs}:
            return False
        return (latest.generation, latest.guessed, latest.incomplete) == (render.generation, render.guessed, render.incomplete)

    def _impatient(self, error: StepwatchError) -> bool:
        """Whether it costs an attempt what would else be the disk's fault alone."""
        return not self.patient and isinstance(error, frames.UnreadableFrameError)

    def _known_contents(self, action: Action) -> RunResult | None:
        """Recognise frames that were rendered already and only have other facts: restored, copied, or touched."""
        receipt = self.receipt
        for render in reversed(receipt.renders if receipt else ()):
            known = {covered.frame.name: covered for covered in render.frames}
            if render.incomplete and not action.incomplete:
                continue
            if not all(frame.name in known and frame.size == known[frame.name].frame.size for frame in (*self.run.frames, *self.run.duplicates)):
                continue
            if all(self._digest(frame.name) == known[frame.name].digest for frame in self.run.frames):
                assert self.records is not None
                here = {frame.name: frame for frame in (*self.run.frames, *self.run.duplicates)}
                moved = tuple(replace(covered, frame=here.get(name, covered.frame)) for name, covered in known.items())
                self.records.ledger.remember_facts(self.run.key, render.generation, moved)
                if covering(self.run, self.receipt) is None:
                    # Something else about them keeps them from being known again, and would do so for ever.
                    return None
                self._refund()
                return self._result(Phase.RENDERED, "these very frames have been rendered")
        return None

    def _digest(self, name: str) -> str:
        if name not in self._digests:
            frame = next(frame for frame in self.run.frames if frame.name == name)
            try:
                self._digests[name] = frames.digest(self.run.key.folder, frame)
            except frames.FrameError:
                return ""
        return self._digests[name]

    def _earlier(self, whole: str) -> Mapping[Path, metadata.Identity]:
        """Animations of this generation in the output folders, by what they say of themselves: for a daemon that has lost its receipts."""
        found = {}
        for folder in dict.fromkeys(self.resolved.output_dirs):
            for path, mark in store.files_with_marks(folder):
                said = self._said(path, mark)
                if said is not None and (said.run, said.generation) == (self.run.run_id, whole):
                    found[path] = said
        return found

    def _said(self, path: Path, mark: tuple[int, int]) -> metadata.Identity | None:
        assert self.records is not None
        key = (str(path), *mark)
        if key not in self.records.said:
            self.records.said[key] = metadata.read_identity(tags.read(path, ffmpeg=self.ffmpeg))
        return self.records.said[key]

    # --- what follows a render ---

    def _current(self) -> tuple[Receipt, Render]:
        receipt = self.receipt
        assert receipt is not None
        return receipt, covering(self.run, receipt) or receipt.renders[-1]

    def supersede(self) -> Mapping[str, str]:
        """Take incomplete animations to the trash whose frames the newer one contains, and give it their plain name.

        Returns the paths of the newer one's files, by those that they had.
        """
        assert self.records is not None
        receipt, newer = self._current()
        published = newer.outputs
        ledger, key = self.records.ledger, self.run.key
        for old in outdated(receipt, newer):
            grace = float(self.resolved.policy.cleanup.grace)
            retired = trash.retire(old, self.resolved.watched, reason="a newer animation contains its frames", grace=grace, now=time.time())
            outputs = tuple(replace(output, path=store.take_plain_name(output.path, old.path)) for output in newer.outputs)
            if outputs != newer.outputs:
                ledger.update_render(key, newer.generation, at=newer.at, outputs=outputs)
                newer = replace(newer, outputs=outputs)
            for render in receipt.renders:
                if old in render.outputs:
                    marked = tuple(replace(output, superseded=True) if output == old else output for output in render.outputs)
                    ledger.update_render(key, render.generation, at=render.at, outputs=marked)
            what = "went to the trash" if retired else "stays, for it is no longer what stepwatch made"
            self.observer.say(self.run.name, f"the incomplete {printable(Path(old.path).name)} {what}")
            receipt, _ = self._current()
        return {before.path: now.path for before, now in zip(published, newer.outputs, strict=True)}

    def clear(self, *, asked: bool) -> RunResult:
        """Move what the latest render covers to the trash, by policy; then the sidecar and the empty folder."""
        assert self.records is not None
        receipt, render = self._current()
        ledger, key = self.records.ledger, self.run.key
        cleanup = self.resolved.policy.cleanup if asked else stricter_cleanup(render.cleanup, self.resolved.policy.cleanup)
        folder, watched = Path(key.folder), self.resolved.watched
        try:
            self._prove_skipped(render, cleanup)
        except frames.FrameError as error:
            why = f"its frames stay: {error.message}"
            ledger.update_render(key, render.generation, at=render.at, clear_note=why, phase=Phase.RENDERED)
            self.observer.say(self.run.name, why, level="warning")
            return self._result(Phase.RENDERED, why)
        reason = BY_HAND if asked else COVERED
        cleared = trash.clear(render, receipt, folder, watched, cleanup=cleanup, now=time.time(), stop=self.stop, reason=reason)
        # What `delete` has removed already, before somebody was killed over it, counts as well.
        count = max(render.cleared, cleared.moved)
        note = cleared.note if cleared.finished else None
        phase = Phase.CLEARED if count else Phase.RENDERED
        ledger.update_render(key, render.generation, at=render.at, cleared=count, clear_note=note, phase=phase if cleared.finished else None)
        if not cleared.finished:
            raise Interrupted("stopped by the user")
        place = cleared.place or trash.begun(watched, render.generation, folder)
        finished = trash.finish(watched, place) if place is not None else None
        if finished and finished.note:
            self.observer.say(self.run.name, finished.note, level="warning")
        self.observer.say(self.run.name, cleared.note, level="info" if cleared.moved else "warning")
        return self._result(phase, cleared.note, cleared=count)

    def _prove_skipped(self, render: Render, cleanup: CleanupPolicy) -> None:
        """Decode what was left out of the animation before it goes: a damaged frame is never cleared, and nobody has looked into these yet."""
        here = {frame.name: frame for frame in self.run.frames}
        for covered in clearable(render, cleanup):
            frame = here.get(covered.frame.name)
            if covered.role is Role.SKIPPED and frame is not None:
                frames.decode(self.run.key.folder, frame)

    def _result(self, phase: Phase, reason: str, *, cleared: int = 0) -> RunResult:
        run = self.run
        return RunResult(run=run.run_id, name=run.name, folder=run.key.folder, phase=phase, reason=reason, found=len(run.frames), cleared=cleared)


def _jitter() -> float:
    return random.random()  # noqa: S311  # spreads retries, hides nothing


def _instant() -> Now:
    return Now(awake=0.0, wall=time.time())


def _bare(run: Run) -> Action:
    return Action(do=Do.RENDER, phase=Phase.RECORDING, reason="asked for by hand", incomplete=not run.complete)
