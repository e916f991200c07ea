"""``stepwatch inspect``: a run as stepwatch sees it, what rendering it would do, and what the daemon would do next, without touching anything."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from stepwatch import encoder, frames, system, visit
from stepwatch.config import Resolved
from stepwatch.config.manual import plain, scalar
from stepwatch.core.lifecycle import Action, Do, Now, Phase, Sight, covering, fingerprint, next_action
from stepwatch.core.live import promise
from stepwatch.core.model import Covered, FrameFacts, Outcome, Receipt, Render, Role, Run
from stepwatch.core.policy import Policy, leaf_of
from stepwatch.core.result import RunResult
from stepwatch.errors import EnvironmentFault, StepwatchError
from stepwatch.ledger import Ledger
from stepwatch.report import planned_facts, planned_line


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One value of the policy that is not the default."""

    key: str
    value: str
    origin: str
    """The file and line, or the option, that set it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """All there is to see of one run."""

    run: Run
    facts: tuple[FrameFacts, ...]
    decoded: bool
    """Every frame was decoded, not only its header read."""
    choices: tuple[Choice, ...]
    plan: RunResult | None
    """What rendering would do; None when that cannot be said, because of *obstacle*."""
    obstacle: str
    warnings: tuple[str, ...]
    next: Action
    """What the daemon would do now, had it watched the run all along."""
    clearing: str
    """What the policy says of its frames once they are rendered: keep, trash or delete."""
    kept: str
    """Why they would stay all the same, as the run is now; empty when they would not."""
    waits: str
    """Why a run that goes on is not encoded while it does; empty where a daemon does that, or the run has ended."""

    @property
    def problems(self) -> dict[str, str]:
        """Why frames cannot be used, by their names."""
        return {facts.frame.name: facts.problem for facts in self.facts if facts.problem}

    @property
    def sizes(self) -> dict[str, int]:
        """How many good frames there are of each size and kind, the most frequent first."""
        kinds = Counter(f"{facts.width}x{facts.height} {facts.format} {facts.mode}".strip() for facts in self.facts if not facts.problem)
        return dict(kinds.most_common())


class _Silence:
    """An observer for a plan that is only looked at."""

    def say(self, run_name: str, sentence: str, *, level: str = "info") -> None: ...

    def progress(self, run_name: str, label: str, done: int, total: int, speed: float | None) -> None: ...

    def finished(self, run_name: str) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipts:
    """What is recorded of the runs, to be read only."""

    ledger: Ledger | None
    notes: tuple[str, ...] = ()
    """What is wrong with them."""

    def of(self, run: Run) -> Receipt | None:
        """What is recorded of a run, or of the folder that it has moved from."""
        if self.ledger is None:
            return None
        receipt = self.ledger.get(run.key)
        if receipt is None and run.sidecar and run.key.group == "":
            return next((other for other in self.ledger.by_run_id(run.run_id) if not os.path.isdir(other.key.folder)), None)
        return receipt


@contextmanager
def receipts() -> Iterator[Receipts]:
    """Open this user's receipts where there are some; none are begun, for nobody asked for a render."""
    path = system.state_dir() / "receipts.db"
    if not path.exists():
        yield Receipts(ledger=None)
        return
    try:
        ledger = Ledger.open(path)
    except EnvironmentFault as error:
        yield Receipts(ledger=None, notes=(error.message,))
        return
    with ledger:
        yield Receipts(ledger=ledger, notes=ledger.notes)


def look(run: Run, resolved: Resolved, *, decode: bool, ffmpeg: str, known: Receipts, max_attempts: int) -> View:
    """Read the headers of a run's frames (with *decode*: all of them), plan its render, and ask what the daemon would do.

    *ffmpeg* and *max_attempts* are settings of the service file.
    """
    facts = frames.survey(run).facts
    if decode:
        facts = tuple(_decoded(run, one) for one in facts)
    plan, obstacle = None, ""
    try:
        binary = encoder.find_ffmpeg(ffmpeg) if resolved.policy.create else ""
        options = visit.Options(dry_run=True)
        damaged = {one.frame.name: one.problem for one in facts if one.problem}
        plan = visit.visit(run, resolved, ffmpeg=binary, options=options, observer=_Silence(), stop=threading.Event(), damaged=damaged)
    except StepwatchError as error:
        obstacle = error.message
    receipt = known.of(run)
    following = _next(run, resolved, receipt, max_attempts=max_attempts)
    return View(
        run=run,
        facts=facts,
        decoded=decode,
        choices=tuple(choices(resolved)),
        plan=plan,
        obstacle=obstacle,
        warnings=(*run.notes, *resolved.warnings, *known.notes),
        next=following,
        waits=_waits(run, resolved.policy),
        clearing=resolved.policy.cleanup.intermediates,
        kept=_kept_now(following) if covering(run, receipt) else _kept(run, resolved, facts),
    )


def _next(run: Run, resolved: Resolved, receipt: Receipt | None, *, max_attempts: int) -> Action:
    if run.guessed:
        return Action(do=Do.REST, phase=Phase.IGNORED, reason="the daemon does not guess: it takes them for frames once frames.pattern is set")
    newest = max((max(frame.ctime_ns, frame.mtime_ns) for frame in run.frames), default=0) / 1e9
    wall = time.time()
    # As a daemon would that has watched since the last frame came.
    now = Now(awake=max(0.0, wall - newest), wall=wall)
    sighting = visit.Sighting(fingerprint=fingerprint(run), since=0.0)
    return next_action(visit.see(run, resolved, receipt, sighting, max_attempts=max_attempts), resolved.policy, now)


def _kept_now(following: Action) -> str:
    """Why frames that are rendered stay, by what the daemon would do with them."""
    if following.do in (Do.CLEAR, Do.SUPERSEDE):
        return ""
    said = following.reason.partition("; ")[2].removeprefix("its frames stay: ")
    return said or "they were rendered under a policy that keeps them; `stepwatch prune --finished` goes by today's"


def _kept(run: Run, resolved: Resolved, facts: Sequence[FrameFacts]) -> str:
    """Ask the core what it would say of the frames' clearing, were all that can be decoded in an animation now."""
    cleanup = resolved.policy.cleanup
    if cleanup.intermediates == "keep" or not run.frames:
        return "the policy says keep" if run.frames else "there are none"
    frames = [Covered(frame=one.frame, digest="known", role=Role.DAMAGED if one.problem else Role.SHOWN) for one in facts]
    frames += [Covered(frame=frame, digest="", role=Role.DUPLICATE) for frame in run.duplicates]
    render = Render(
        generation="", frames=tuple(frames), outputs=(), incomplete=False, at=0.0, cleanup=cleanup, missing=run.missing, guessed=run.guessed
    )
    receipt = Receipt(key=run.key, run_id=run.run_id, name=run.name, watched=str(resolved.watched), renders=(render,))
    sight = Sight(run=run, receipt=receipt, durable=_is_durable(resolved.watched), as_it_is=True)
    action = next_action(sight, resolved.policy, Now(awake=0.0, wall=0.0))
    return "" if action.do is Do.CLEAR else action.reason.rpartition("stay: ")[2]


def _is_durable(folder: Path) -> bool:
    try:
        return system.fsync_folder(folder)
    except OSError:
        return False


def choices(resolved: Resolved) -> Iterator[Choice]:
    """Every value that somebody chose, in the order of the policy's fields."""
    for key, origin in resolved.origins.items():
        if origin != "default":
            yield Choice(key=key, value=_value(resolved.policy, key), origin=origin)


def _value(policy: Policy, key: str) -> str:
    """The value at *key* (``outputs.0.codec``), as YAML would write it."""
    value: object = policy
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, tuple) else getattr(value, part)
    return scalar(plain(value, leaf_of(key).hint))


def _decoded(run: Run, facts: FrameFacts) -> FrameFacts:
    if facts.problem:
        return facts
    try:
        frames.decode(run.key.folder, facts.frame)
    except frames.FrameError as error:
        return replace(facts, problem=error.reason)
    return facts


# -- for people


def text(view: View) -> str:
    """Several lines about one run."""
    run = view.run
    rows: list[tuple[str, str]] = [("folder", run.key.folder), ("layout", _layout(run)), ("frames", _frames(view))]
    rows += [("missing", f"step {_numbers(run.missing)}")] if run.missing else []
    rows += [("duplicate", frame.name) for frame in run.duplicates]
    rows += [("damaged", f"{name}: {problem}") for name, problem in view.problems.items()]
    rows += [("size", f"{kind} ({count} frames)") for kind, count in view.sizes.items()]
    rows += [("note", warning) for warning in view.warnings]
    rows += [("policy", f"{choice.key}: {choice.value}   ({choice.origin})") for choice in view.choices] or [("policy", "the defaults")]
    if view.plan is None:
        rows.append(("render", f"nothing can be said: {view.obstacle}"))
    else:
        rows += [("render", planned_line(output)) for output in view.plan.outputs]
        if view.plan.unshown:
            rows.append(("not shown", f"{len(view.plan.unshown)} frames: there are more of them than pictures"))
        rows.append(("why", view.plan.reason))
    if _goes_on(view.run):
        rows.append(("live", f"rendered when it has ended: {view.waits}" if view.waits else "a daemon encodes it while it goes on"))
    rows += [("next", _next_line(view.next)), ("clearing", _clearing_line(view))]
    lines = [f"run {run.name}"]
    before = ""
    for label, value in rows:
        lines.append(f"  {label if label != before else '':<10} {value}")
        before = label
    # A line break in a name must not look like another row.
    return "\n".join(line.replace("\n", "\\n") for line in lines)


def _next_line(action: Action) -> str:
    """What the daemon would do, by the phase of the run."""
    doing = {Do.WAIT: "the daemon waits", Do.REST: "nothing", Do.RENDER: "the daemon renders it", Do.CLEAR: "the daemon clears its frames"}
    does = doing.get(action.do, "the daemon retires the incomplete animation")
    return f"{does} ({action.phase}): {action.reason}"


def _goes_on(run: Run) -> bool:
    return run.sidecar is not None and run.sidecar.state is Outcome.RUNNING


def _waits(run: Run, policy: Policy) -> str:
    found = promise(run, policy) if _goes_on(run) else ""
    return found if isinstance(found, str) else ""


def _clearing_line(view: View) -> str:
    if view.clearing == "keep":
        return "keep: its frames stay"
    if view.kept:
        return f"{view.clearing}, but what is here stays: {view.kept}"
    return f"{view.clearing}, once an animation is proved to contain its frames"


def _layout(run: Run) -> str:
    if run.sidecar is not None:
        return f"run.json, which says {run.sidecar.state.value}"
    group = f", group {run.key.group}" if run.key.group else ""
    return f"{run.layout}{group}" + (" (guessed: such frames are never cleared)" if run.guessed else "")


def _frames(view: View) -> str:
    run = view.run
    if not run.frames:
        return "none"
    steps = f"steps {run.frames[0].step} to {run.frames[-1].step}" if len(run.frames) > 1 else f"step {run.frames[0].step}"
    return f"{len(run.frames)}, {steps}" + (", all decoded" if view.decoded and not view.problems else "")


def _numbers(numbers: Sequence[int]) -> str:
    """1-3, 7."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ", ".join(f"{first}-{last}" if first != last else str(first) for first, last in ranges)


# -- for programs


def facts(view: View) -> dict[str, object]:
    """The same as an object for JSON."""
    run, plan = view.run, view.plan
    return {
        "run": run.run_id,
        "name": run.name,
        "dir": run.key.folder,
        "group": run.key.group or None,
        "layout": run.layout,
        "guessed": run.guessed,
        "state": run.sidecar.state.value if run.sidecar else None,
        "frames": {
            "found": len(run.frames),
            "first": run.frames[0].step if run.frames else None,
            "last": run.frames[-1].step if run.frames else None,
            "missing": list(run.missing),
            "duplicates": [frame.name for frame in run.duplicates],
            "damaged": list(view.problems),
            "problems": dict(view.problems),
            "decoded": view.decoded,
            "sizes": view.sizes,
        },
        "policy": {choice.key: {"value": choice.value, "origin": choice.origin} for choice in view.choices},
        "phase": plan.phase if plan else None,
        "reason": plan.reason if plan else view.obstacle,
        "outputs": [planned_facts(output) for output in (plan.outputs if plan else ())],
        "unshown": list(plan.unshown) if plan else [],
        "next": {"action": str(view.next.do), "phase": str(view.next.phase), "reason": view.next.reason},
        "live": {"possible": not view.waits, "reason": view.waits or None} if _goes_on(view.run) else None,
        "clearing": {"intermediates": view.clearing, "allowed": not view.kept, "reason": view.kept or None},
        "notes": list(view.warnings),
    }
