"""From facts to a plan: what will be rendered, complete in itself, so that nothing is decided while ffmpeg runs."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from stepwatch.core.codecs import CODECS, Codec, Encoding
from stepwatch.core.fades import Fades, fades_of
from stepwatch.core.model import Frame, FrameFacts, Run, Survey
from stepwatch.core.naming import printable
from stepwatch.core.policy import OutputPolicy, Policy
from stepwatch.core.timeline import Mix, Timeline, make_timeline
from stepwatch.core.tuning import ANCHORS, can_weave, tuned
from stepwatch.errors import ConfigError, DamagedFramesError, MissingToolError, NoFramesError

Motion = Literal["minterpolate", "flow"]
"""The engines of ``mci``: ffmpeg's filter, shared out among several processes; optical flow, where the extra is installed."""

RENDERER = 4
"""Raised whenever the same plan would give another animation, so that old outputs are not taken for the new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """What is different where an encode of more images than came is given other times, instead of being made anew."""

    images: int
    """Images that came; whatever would show a later one shows the last of them."""
    pictures: int
    """Encoded pictures in the file."""
    duration: Fraction
    """Seconds in all: as long as the animation of these images is to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputPlan:
    """One output: everything its ffmpeg needs, and everything that will be checked of the file."""

    codec: Codec
    encoding: Encoding
    quality: str
    """As the policy says it: a word, or ``crf: N``."""
    fps: Fraction
    timeline: Timeline
    """At this output's own rate, which its container may have lowered."""
    width: int
    height: int
    variable: bool
    """One encoded picture for each fed image with its true time, instead of pictures at a constant rate."""
    max_size: int | None
    template: str
    dither: str = ""
    cut: Cut | None = None
    motion: Motion | None = None
    """What makes the pictures between the images before they are encoded; None: nothing does, or the encoder's own filters."""
    fades: Fades | None = None
    """Which pictures are encoded, where the cross-fades between them are written without the encoder; None: all are."""
    plain: Encoding | None = None
    """The encoder call with which it would encode all of them."""

    def unwoven(self) -> OutputPlan:
        """The same animation, of which all pictures are encoded."""
        assert self.plain is not None
        return replace(self, encoding=self.plain, fades=None, plain=None)

    @property
    def ready(self) -> bool:
        """Whether every picture reaches the encoder as it is, and nothing is left to interpolate."""
        return self.variable or self.timeline.dense or self.motion is not None

    @property
    def apart(self) -> bool:
        """Whether a picture can be finished without the others, so that several ffmpegs share them out, and one more puts them together."""
        return self.motion is None and (self.codec.apart or self.dither.startswith("bayer"))

    @property
    def off(self) -> Fraction:
        """Share of the way from one image to the next by which pictures of a cross-fade may be off their places, as they are made."""
        return ANCHORS[self.encoding.encoder].off if self.fades else Fraction(0)

    def feed(self) -> Iterator[Mix]:
        """What is made of the images here, in order: the anchors of cross-fades, or what `Timeline.feed` gives."""
        return map(self.timeline.picture, self.fades.anchors) if self.fades else self.timeline.feed()

    @property
    def coarse(self) -> bool:
        """Whether the encode may be worse than the qualities that stepwatch itself offers."""
        option = self.codec.quality_option
        if option is None:
            return False
        values = [int(dict(one.options)[option]) for one in self.codec.qualities.values() if one.encoder == self.encoding.encoder]
        worst = min(values) if self.codec.coarsest < self.codec.finest else max(values)
        value = int(dict(self.encoding.options)[option])
        return value != worst and (value < worst) == (self.codec.coarsest < self.codec.finest)

    @property
    def pictures(self) -> int:
        """Encoded pictures in the file."""
        if self.cut:
            return self.cut.pictures
        if self.variable:
            return self.timeline.feed_count
        return self.timeline.pictures if self.codec.holds_by_delay else self.timeline.total

    @property
    def duration(self) -> Fraction:
        return self.cut.duration if self.cut else self.timeline.duration

    def starts(self) -> tuple[Fraction, ...]:
        """Seconds at which each encoded picture starts."""
        timeline = self.timeline
        if self.cut:
            pace = self.pace()
            return tuple(at(pace, number / timeline.fps) for number in range(self.cut.pictures))
        if self.variable:
            return tuple(timeline.starts())
        if not self.codec.holds_by_delay:
            return tuple(number / timeline.fps for number in range(timeline.total))
        return (Fraction(0), *((timeline.head + number) / timeline.fps for number in range(1, timeline.pictures)))

    def shown(self) -> Iterator[Mix]:
        """What each encoded picture shows, in order."""
        timeline = self.timeline
        if self.variable:
            yield from timeline.feed()
        elif self.codec.holds_by_delay:
            yield from (timeline.picture(timeline.head + number) for number in range(timeline.pictures))
        else:
            last = self.cut.images - 1 if self.cut else timeline.positions - 1
            for mix in map(timeline.picture, range(self.pictures)):
                yield mix if mix.first < last else Mix(first=last, second=last, weight=Fraction(0))

    def pace(self) -> Pace:
        """How the pictures of a cut encode, made for the times of its promise, are spread over the times that they show at."""
        timeline, cut = self.timeline, self.cut
        assert cut is not None
        begin = timeline.head / timeline.fps
        last = begin + (cut.images - 1) * timeline.span
        slower = Fraction(timeline.positions, cut.images)
        arrives = begin + (last - begin) * slower
        # Whatever the encoder made of the last image, the end of the cross-fades and the hold alike, lasts for as long as that image has to.
        rest = (cut.duration - arrives) / (cut.pictures / timeline.fps - last)
        return ((Fraction(0), Fraction(0), Fraction(1)), (begin, begin, slower), (last, arrives, rest))


Pace = tuple[tuple[Fraction, Fraction, Fraction], ...]
"""From which time of an encode on, at which time that shows, and how many seconds each second of the encode lasts from there; in order."""


def at(pace: Pace, time: Fraction) -> Fraction:
    """When what was encoded for *time* shows."""
    start, shows, factor = next(step for step in reversed(pace) if step[0] <= time)
    return shows + (time - start) * factor


def retimed(promised: OutputPlan, now: OutputPlan, *, made: int, images: int) -> tuple[OutputPlan, Pace] | None:
    """What an encode of *promised* that ended after *images* images, with *made* pictures, is once it has other times; and those times.

    Where each picture is an image this is *now* to the letter, what would be encoded of these images. Else fewer pictures go through the same
    animation in the same time. None where it can be neither.
    """
    same = (promised.codec, promised.width, promised.height, promised.quality, promised.variable, promised.fps)
    if same != (now.codec, now.width, now.height, now.quality, now.variable, now.fps) or not promised.codec.video or promised.timeline.dense:
        return None
    if now.timeline.order != promised.timeline.order[: len(now.timeline.order)] or now.timeline.positions != images:
        return None
    if now.variable:
        if now.encoding != promised.encoding or made != images or now.timeline.dense:
            return None
        begin = now.timeline.head / now.fps
        return now, ((Fraction(0), Fraction(0), Fraction(1)), (begin, begin, now.timeline.span / promised.timeline.span))
    cut = replace(promised, cut=Cut(images=images, pictures=made, duration=now.duration))
    if made / promised.fps <= cut.pace()[1][0] + (images - 1) * promised.timeline.span or now.timeline.interpolation == "mci":
        return None
    return cut, cut.pace()


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderPlan:
    """What one run becomes."""

    run: Run
    frames: tuple[Frame, ...]
    """Chosen frames, in the run's order; the timeline's images are indices into them."""
    canvas: tuple[int, int]
    """Width and height in pixels that every frame is brought to."""
    fit: str
    scale: int
    """The sidecar's enlargement of its frames."""
    outputs: tuple[OutputPlan, ...]
    damaged: tuple[tuple[Frame, str], ...]
    """Frames that cannot be used, each with why."""
    skipped: tuple[Frame, ...]
    """Frames left out by skip_first, skip_last and every."""
    incomplete: bool
    reason: str
    """One sentence: why it is rendered, and as what."""
    policy: Policy

    @property
    def timeline(self) -> Timeline:
        return self.outputs[0].timeline

    @property
    def unshown(self) -> tuple[Frame, ...]:
        """Chosen frames that at least one output does not show."""
        shown = frozenset.intersection(*(output.timeline.shown() for output in self.outputs))
        return tuple(frame for index, frame in enumerate(self.frames) if index not in shown)


def plan_render(
    run: Run,
    survey: Survey,
    policy: Policy,
    *,
    encoders: frozenset[str],
    damaged: Mapping[str, str] | None = None,
    longest: Fraction | None = None,
    incomplete: bool | None = None,
    flow: bool = False,
) -> RenderPlan:
    """Decide what *run* becomes.

    *encoders* is what this ffmpeg has, *flow* whether there is optical flow; *damaged* maps names of frames that an earlier pass could not decode
    to the reason; *longest*, seconds, bounds what an untrusted ``fps_in`` may ask for; *incomplete* marks the animation so or not, None: unless
    the sidecar says complete.
    Raises NoFramesError, DamagedFramesError (policy ``damaged: fail``), MissingToolError, ConfigError.
    """
    known_bad = damaged or {}
    found = [replace(facts, problem=known_bad.get(facts.frame.name) or facts.problem) for facts in survey.facts]
    bad = [(facts.frame, facts.problem) for facts in found if facts.problem]
    if len(bad) == len(found):
        why = f": {printable(bad[0][0].name)}: {bad[0][1]}" if bad else ""
        raise NoFramesError(f"run {run.name} has no frame that can be read{why}")
    wanted, skipped = choose(found, skip_first=policy.frames.skip_first, skip_last=policy.frames.skip_last, every=policy.frames.every)
    chosen = [facts for facts in wanted if not facts.problem]
    if len(chosen) < len(wanted) and policy.frames.damaged == "fail":
        named = "; ".join(f"{printable(facts.frame.name)}: {facts.problem}" for facts in wanted if facts.problem)
        raise DamagedFramesError(
            f"{len(wanted) - len(chosen)} of {len(wanted)} frames cannot be decoded ({named[:500]})",
            hint="the policy says `frames.damaged: fail`; with `skip` the others are rendered",
        )
    if not chosen:
        raise NoFramesError(
            f"run {run.name} has {len(found)} frames and the policy leaves out all that can be read",
            hint="lower frames.skip_first or frames.skip_last",
        )
    scale = run.sidecar.scale if run.sidecar else 1
    canvas = canvas_for(chosen, policy, scale=scale)
    outputs = tuple(plan_output(output, policy, len(chosen), canvas, encoders, longest=longest, flow=flow) for output in policy.outputs)
    return RenderPlan(
        run=run,
        frames=tuple(facts.frame for facts in chosen),
        canvas=canvas,
        fit=policy.size.fit,
        scale=scale,
        outputs=outputs,
        damaged=tuple(bad),
        skipped=tuple(facts.frame for facts in skipped),
        incomplete=not run.complete if incomplete is None else incomplete,
        reason=_reason(run, outputs, len(chosen)),
        policy=policy,
    )


def _reason(run: Run, outputs: Sequence[OutputPlan], count: int) -> str:
    said = f"its sidecar says {run.sidecar.state.value}" if run.sidecar else "no sidecar says whether it is complete"
    shown = min(len(output.timeline.shown()) for output in outputs)
    return f"{plural(shown, 'frame')} of {count} shown; {said}" if shown < count else f"{plural(count, 'frame')} shown; {said}"


def plural(count: int, noun: str) -> str:
    """A number with its noun, for sentences."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def choose(frames: Sequence[FrameFacts], *, skip_first: int, skip_last: int, every: int) -> tuple[list[FrameFacts], list[FrameFacts]]:
    """Split *frames* into those wanted and those left out, by their places in the run, whether they can be read or not.

    With *every* the last readable one that remains always stays, for it is the picture.
    """
    end = max(len(frames) - skip_last, 0)
    wanted = set(range(skip_first, end, every))
    readable = [index for index in range(skip_first, end) if not frames[index].problem]
    wanted.update(readable[-1:])
    chosen = [facts for index, facts in enumerate(frames) if index in wanted]
    return chosen, [facts for index, facts in enumerate(frames) if index not in wanted]


def canvas_for(frames: Sequence[FrameFacts], policy: Policy, *, scale: int = 1) -> tuple[int, int]:
    """The size in pixels that all *frames* are brought to."""
    if policy.size.match == "last":
        reference = frames[-1]
    elif policy.size.match == "first":
        reference = frames[0]
    else:
        reference = max(frames, key=lambda facts: (facts.width * facts.height, facts.frame.step))
    width, height = reference.width * scale, reference.height * scale
    wish = policy.size.scale
    if wish:
        if "x" in str(wish):
            across, _, down = str(wish).partition("x")
            return int(across), int(down)
        factor = Fraction(int(wish), max(width, height))
        width, height = max(1, round(width * factor)), max(1, round(height * factor))
    return width, height


def plan_output(
    output: OutputPolicy,
    policy: Policy,
    count: int,
    canvas: tuple[int, int],
    encoders: frozenset[str],
    *,
    longest: Fraction | None = None,
    flow: bool = False,
) -> OutputPlan:
    """Decide one output for *count* images."""
    codec = CODECS[output.codec]
    encoding, quality = encoding_for(codec, output.quality)
    if encoding.encoder not in encoders:
        there = sorted(name for name, other in CODECS.items() if any(choice.encoder in encoders for choice in other.qualities.values()))
        raise MissingToolError(
            f"this ffmpeg has no encoder {encoding.encoder}, which codec {codec.name} needs; it can make {', '.join(there) or 'none of ours'}",
            hint="choose one of those codecs, or another ffmpeg (`stepwatch doctor` shows what each can do)",
        )
    fps = policy.timeline.fps
    if codec.fastest is not None:
        fps = min(fps, Fraction(codec.fastest))
    timeline = make_timeline(
        count,
        duration=policy.timeline.duration,
        fps=fps,
        fps_in=policy.timeline.fps_in,
        interpolation=policy.timeline.interpolation,
        hold_first=policy.timeline.hold_first,
        hold_last=policy.timeline.hold_last,
        direction=policy.timeline.direction,
    )
    if longest is not None and timeline.duration > longest:
        timeline = replace(timeline, pictures=max(1, timeline.pictures - math.ceil((timeline.duration - longest) * fps)))
    still = timeline.positions == 1 and codec.holds_by_delay
    variable = still or (timeline.interpolation == "none" and not output.constant_rate)
    if codec.moving and variable and timeline.positions == 1:
        fps = 2 / timeline.duration
        timeline, variable = Timeline(order=(0,), fps=fps, interpolation="none", pictures=2, head=0, tail=0), False
    moves = timeline.interpolation == "mci" and not variable and not timeline.dense and timeline.positions > 1
    engine: Motion = "flow" if flow else "minterpolate"
    width, height = output_size(canvas, codec)
    fades = None
    if can_weave(encoding, width, height) and not variable:
        anchors = ANCHORS[encoding.encoder]
        fades = fades_of(timeline, anchors.longest, regular=anchors.regular)
    return OutputPlan(
        codec=codec,
        encoding=tuned(encoding, timeline, variable=variable, fades=fades),
        quality=quality,
        fps=fps,
        timeline=timeline,
        width=width,
        height=height,
        variable=variable,
        max_size=output.max_size,
        template=output.name,
        dither=codec.extra.get(quality, ""),
        motion=engine if moves else None,
        fades=fades,
        plain=tuned(encoding, timeline, variable=variable) if fades else None,
    )


def output_size(canvas: tuple[int, int], codec: Codec) -> tuple[int, int]:
    """The size of one output: the canvas, shrunk to what the codec can hold and rounded up to even sides where its planes need that."""
    width, height = canvas
    longest = max(width, height)
    if longest > codec.largest:
        width, height = max(1, width * codec.largest // longest), max(1, height * codec.largest // longest)
    shortest = min(width, height)
    if shortest < codec.smallest:
        factor = -(-codec.smallest // shortest)
        width, height = width * factor, height * factor
    if codec.even:
        width, height = width + width % 2, height + height % 2
    return width, height


def encoding_for(codec: Codec, quality: str | int) -> tuple[Encoding, str]:
    """The encoder call for a policy's ``quality``, and its name for people; ConfigError where the codec has no such knob."""
    if not isinstance(quality, int):
        return codec.qualities[quality], quality
    if codec.quality_option != "crf":
        raise ConfigError(
            (f"outputs.quality: {codec.name} has no crf (got crf: {quality}); default, classic, high or small would be right",),
        )
    low, high = sorted((codec.finest, codec.coarsest))
    highest = 63 if codec.name in ("av1", "vp9") else 51
    if not 0 <= quality <= highest:
        raise ConfigError((f"outputs.quality: crf of {codec.name} goes from 0 to {highest} (got {quality}); {low} to {high} is useful",))
    return with_option(codec.qualities["default"], "crf", quality), f"crf: {quality}"


def with_option(encoding: Encoding, name: str, value: int) -> Encoding:
    """The same encoder call with one option set to another value."""
    return replace(encoding, options=tuple((key, str(value) if key == name else old) for key, old in encoding.options))


def plan_digest(plan: RenderPlan, output: OutputPlan) -> str:
    """A digest of everything that decides what *output* looks like and says; names and folders are not part of it."""
    facts = {
        "renderer": RENDERER,
        "frames": [[frame.step, frame.name.encode("utf-8", "surrogateescape").hex()] for frame in plan.frames],
        "canvas": plan.canvas,
        "fit": plan.fit,
        "scale": plan.scale,
        "codec": output.codec.name,
        "encoding": [output.encoding.encoder, output.encoding.pixels, output.encoding.options],
        "dither": output.dither,
        "size": [output.width, output.height],
        "order": output.timeline.order if output.timeline.order != tuple(range(len(plan.frames))) else "forward",
        "timing": [str(output.fps), output.timeline.interpolation, output.timeline.head, output.timeline.pictures, output.timeline.tail],
        "variable": output.variable,
        **({"cut": [output.cut.images, output.cut.pictures, str(output.cut.duration)]} if output.cut else {}),
        "max_size": output.max_size,
        "metadata": [plan.policy.metadata.include, plan.policy.metadata.mp4, plan.policy.metadata.author],
        "incomplete": plan.incomplete,
    }
    if output.motion:
        facts["motion"] = output.motion
    text = json.dumps(facts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def generation(frames: Sequence[Frame], digests: Mapping[str, str]) -> str:
    """The digest of an ordered list of frames: names, sizes, contents (sha256, hexadecimal, by name)."""
    total = hashlib.sha256()
    for frame in frames:
        line = f"{frame.step}\0{frame.name}\0{frame.size}\0{digests.get(frame.name, '')}\n"
        total.update(line.encode("utf-8", "surrogateescape"))
    return total.hexdigest()[:32]
