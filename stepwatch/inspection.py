"""``stepwatch inspect``: a run as stepwatch sees it, and what rendering it would do, without touching anything."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from stepwatch import encoder, frames, visit
from stepwatch.config import Resolved
from stepwatch.config.manual import plain, scalar
from stepwatch.core.model import FrameFacts, Run
from stepwatch.core.policy import Policy, leaf_of
from stepwatch.core.result import RunResult
from stepwatch.errors import StepwatchError
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
    obstacle: str = ""
    warnings: tuple[str, ...] = ()

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


def look(run: Run, resolved: Resolved, *, decode: bool, ffmpeg: str) -> View:
    """Read the headers of a run's frames (with *decode*: all of them), and plan its render; *ffmpeg* is the setting of the service file."""
    facts = frames.survey(run).facts
    if decode:
        facts = tuple(_decoded(run, one) for one in facts)
    plan, obstacle = None, ""
    try:
        binary = encoder.find_ffmpeg(ffmpeg) if resolved.policy.create else ""
        options = visit.Options(keep=True, dry_run=True)
        known = {one.frame.name: one.problem for one in facts if one.problem}
        plan = visit.visit(run, resolved, ffmpeg=binary, options=options, observer=_Silence(), stop=threading.Event(), damaged=known)
    except StepwatchError as error:
        obstacle = error.message
    return View(
        run=run,
        facts=facts,
        decoded=decode,
        choices=tuple(choices(resolved)),
        plan=plan,
        obstacle=obstacle,
        warnings=(*run.notes, *resolved.warnings),
    )


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
    lines = [f"run {run.name}"]
    before = ""
    for label, value in rows:
        lines.append(f"  {label if label != before else '':<10} {value}")
        before = label
    # A line break in a name must not look like another row.
    return "\n".join(line.replace("\n", "\\n") for line in lines)


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
        "notes": list(view.warnings),
    }
