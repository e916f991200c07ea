"""What a run that still goes on will be if it keeps its promise, so that it can be encoded while it does.

A live encode is an accelerator and nothing else. It starts from a promise, the frames that the sidecar says will come, and is worth something
only when the run turns out to be exactly that; `differs` tells as soon as it does not. Whatever became of it, the run is then planned and
rendered like any other, and takes over what was encoded where the plan is the same.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from stepwatch.core.model import Frame, FrameFacts, Outcome, Run, Survey
from stepwatch.core.plan import OutputPlan
from stepwatch.core.policy import OutputPolicy, Policy
from stepwatch.core.sidecar import MOST_PROMISED, frame_name, step_of_index


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """A run as it will be: every frame that was promised, those that are not there yet without a size."""

    run: Run
    survey: Survey
    """What the promised frames' headers will say."""


def promise(run: Run, policy: Policy) -> Promise | str:
    """The promise of a run that can be encoded while it goes on, or the reason in plain words why this one cannot."""
    refused = _unpromising(run) or _inexact(policy)
    if refused:
        return refused
    sidecar = run.sidecar
    assert sidecar is not None
    assert sidecar.frames_planned is not None
    names = [frame_name(sidecar, index) for index in range(sidecar.frames_planned)]
    here = {frame.name: frame for frame in run.frames}
    if len(names) < policy.detect.min_frames:
        return f"{len(names)} frames are promised, and detect.min_frames is {policy.detect.min_frames}"
    if not here.keys() <= set(names):
        return "it has more frames than it promised"
    frames = tuple(here.get(name) or Frame(step=step_of_index(sidecar, index), name=name, size=0) for index, name in enumerate(names))
    width, height = sidecar.width, sidecar.height
    assert width is not None
    assert height is not None
    facts = tuple(FrameFacts(frame=frame, width=width, height=height) for frame in frames)
    return Promise(run=replace(run, frames=frames, missing=()), survey=Survey(facts=facts))


def _unpromising(run: Run) -> str:
    """Why it cannot be known now what this run will be; empty when it can."""
    sidecar = run.sidecar
    if sidecar is None:
        return "no sidecar promises anything"
    if sidecar.state is not Outcome.RUNNING:
        return "it has ended"
    if not sidecar.frames_planned or sidecar.frames_planned > MOST_PROMISED or not sidecar.frame_name:
        return "its sidecar does not promise how many frames will come, and under which names"
    if not (sidecar.width and sidecar.height):
        return "its sidecar does not promise how large its frames will be"
    if sidecar.lost or run.missing or run.duplicates:
        return "a step is lost, missing, or there twice"
    return ""


def _inexact(policy: Policy) -> str:
    """Why this policy needs the whole run before the first picture can be encoded; empty when it does not."""
    reasons = (
        (policy.live == "off", "the policy says live: off"),
        (not policy.create, "the policy says create: false"),
        (policy.frames.append, "its frames go into an animation of several runs"),
        (policy.frames.skip_last > 0, "which frames come last, and are left out, shows at the end"),
        (policy.timeline.direction != "forward", f"{policy.timeline.direction} begins with what comes last"),
        (policy.timeline.interpolation == "mci", "motion interpolation takes more of the processor than a host can spare"),
    )
    return next((reason for applies, reason in reasons if applies), "") or next(filter(None, map(_inexact_output, policy.outputs)), "")


def _inexact_output(output: OutputPolicy) -> str:
    if output.max_size is not None:
        return "how well it has to be compressed for its max_size shows at the end"
    return "the colours of a gif are chosen from the whole run" if output.codec == "gif" else ""


def differs(promised: Run, run: Run, fed: int) -> str:
    """Why *run*, as it is now, is not what was *promised* and encoded up to its frame number *fed*; empty while it is.

    A frame that was fed must be the very file that it was: *promised* holds its facts. Those behind it need no more than their place.
    """
    sidecar, before = run.sidecar, promised.sidecar
    assert before is not None
    if sidecar is None or sidecar.run_id != before.run_id:
        return "it is another run now"
    told = (sidecar.frames_planned, sidecar.frame_name, sidecar.width, sidecar.height, sidecar.scale, sidecar.every, sidecar.skip)
    if told != (before.frames_planned, before.frame_name, before.width, before.height, before.scale, before.every, before.skip):
        return "its sidecar promises something else now"
    if sidecar.lost or run.duplicates:
        return "a step is lost, or there twice"
    here = {frame.name: frame for frame in run.frames}
    for frame in promised.frames[:fed]:
        if here.get(frame.name) != frame:
            return f"the frame of step {frame.step} was rewritten or went away"
    if len(here) > len(promised.frames) or not here.keys() <= {frame.name for frame in promised.frames}:
        return "it has more frames than it promised"
    return ""


def ended_early(promised: Run, run: Run) -> str:
    """How *run* has ended with fewer frames than were *promised*; empty when it has not."""
    sidecar = run.sidecar
    if sidecar is None or sidecar.state is Outcome.RUNNING or len(run.frames) >= len(promised.frames):
        return ""
    if len(run.frames) < (sidecar.frame_count or 0):
        return ""  # The folder is listed before its sidecar is read: both may have got their last words in between.
    return f"it ended ({sidecar.state}) after {len(run.frames)} of {len(promised.frames)} frames"


def outlives(plan: OutputPlan, policy: Policy) -> bool:
    """Whether an encode of *plan* is worth something when its run ends early: it can be given other times, and may."""
    return plan.codec.video and not plan.timeline.dense and (plan.variable or policy.timeline.early_end == "retime")


def arrived(promised: Run, run: Run, fed: int) -> tuple[Frame, ...]:
    """The frames behind number *fed* that are there now without a hole before them, in their order."""
    here = {frame.name: frame for frame in run.frames}
    found: list[Frame] = []
    for frame in promised.frames[fed:]:
        if frame.name not in here:
            break
        found.append(here[frame.name])
    return tuple(found)
