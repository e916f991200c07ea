"""Bring one run one step forward: read the facts, ask the core, do what it says, and report what came of it.

This is the only path to an animation. The order is what keeps frames and animations safe: render into hidden temporary files beside their
destination, fsync, verify what is really in the file, and only then publish it under a name that nothing else has.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shlex
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Protocol

from PIL import Image

from stepwatch import __version__, config, frames, graph, store, tags
from stepwatch.core import metadata, naming
from stepwatch.core.codecs import CODECS
from stepwatch.core.fitting import Try, next_try
from stepwatch.core.model import Outcome, Run
from stepwatch.core.plan import OutputPlan, RenderPlan, generation, output_size, plan_digest, plan_render, with_option
from stepwatch.core.policy import Policy
from stepwatch.core.result import OutputResult, RunResult
from stepwatch.core.timeline import Mix
from stepwatch.encoder import Encoder, capabilities
from stepwatch.errors import (
    ConfigError,
    EnvironmentFault,
    Interrupted,
    NoFramesError,
    RunError,
    SizeLimitError,
    StepwatchError,
    UsageError,
)
from stepwatch.verify import verify

MOST_COUNTED = 100_000
"""Numbers that a counter in a name goes through before it leaves the rest to ``publish``."""
REPLANS = 1000
"""Damaged frames after which a run is given up; each costs a pass up to where it lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line adds to the policy."""

    keep: bool = False
    force: bool = False
    """Render even when the very same animation is there."""
    dry_run: bool = False
    """Show the plan and ffmpeg's arguments, render nothing."""
    destination: Path | None = None
    """Folder (existing), or file for a single output; None: as the policy says."""
    verbose: bool = False
    """Let ffmpeg talk, and pass on what it says."""


class Observer(Protocol):
    """Who wants to know how a visit goes."""

    def say(self, run_name: str, sentence: str, *, level: str = "info") -> None: ...

    def progress(self, run_name: str, label: str, done: int, total: int, speed: float | None) -> None: ...

    def finished(self, run_name: str) -> None: ...


def runs_below(folder: Path, *, service: config.ServiceConfig, settings: Sequence[str] = ()) -> list[tuple[Run, config.Resolved]]:
    """Every run in *folder* and below, each with its resolved policy; the runs of an ``append`` folder come as one.

    Raises ConfigError with what is wrong in all files there, not only in the first.
    """
    folder = Path(os.path.realpath(folder))
    try:
        return _runs_below(folder, service=service, settings=settings)
    except ConfigError as error:
        complaints = (*error.complaints, *config.complaints_about(folder, service=service))
        raise ConfigError(tuple(dict.fromkeys(complaints)), hint=error.hint) from error


def _runs_below(folder: Path, *, service: config.ServiceConfig, settings: Sequence[str]) -> list[tuple[Run, config.Resolved]]:
    resolved_for: dict[Path, config.Resolved] = {}
    watched = config.resolve_for(folder, service=service, settings=settings).watched

    def resolve(place: Path) -> config.Resolved:
        if place not in resolved_for:
            resolved_for[place] = config.resolve_for(place, service=service, settings=settings, watched=watched)
        return resolved_for[place]

    found = store.find_runs(
        folder,
        pattern_for=lambda place: resolve(place).policy.frames.pattern,
        exclude=lambda place: place in resolve(place.parent).output_dirs,
    )
    runs: list[tuple[Run, config.Resolved]] = []
    appended: dict[Path, list[Run]] = {}
    for run in found:
        place = Path(run.key.folder)
        if run.sidecar and run.sidecar.overrides:
            resolved = config.resolve_for(place, service=service, settings=settings, watched=watched, overrides=run.sidecar.overrides)
        else:
            resolved = resolve(place)
        if resolved.policy.frames.append:
            # Runs that share a folder are joined there; a run that has a folder of its own is joined with its neighbours.
            together = place if run.key.group or place == folder else place.parent
            if together not in appended:
                runs.append((run, resolved))
            appended.setdefault(together, []).append(run)
        else:
            runs.append((run, resolved))
    joined = {id(parts[0]): store.append_runs(together, parts) for together, parts in appended.items()}
    return [(joined.get(id(run), run), resolved) for run, resolved in runs]


def visit(
    run: Run,
    resolved: config.Resolved,
    *,
    ffmpeg: str,
    options: Options,
    observer: Observer,
    stop: threading.Event,
    damaged: Mapping[str, str] | None = None,
) -> RunResult:
    """Render what is there of *run*, by its policy, and tell what came of it.

    *damaged* maps names of frames that are already known not to decode to the reason. A fault of the run, or of this machine, comes back in
    the result; only Interrupted (when *stop* is set) is raised.
    """
    started = time.monotonic()
    for note in (*run.notes, *resolved.warnings):
        observer.say(run.name, note, level="warning")
    visiting = _Visit(run=run, resolved=resolved, ffmpeg=ffmpeg, options=options, observer=observer, stop=stop)
    visiting.damaged.update(damaged or {})
    try:
        result = visiting.go()
    except Interrupted:
        raise
    except StepwatchError as error:
        result = visiting.failed(error)
    finally:
        observer.finished(run.name)
    return replace(result, seconds=round(time.monotonic() - started, 3))


@dataclass(slots=True, kw_only=True)
class _Job:
    """One output on its way: where it goes, how it is encoded now, and the file that it has become so far."""

    plan: OutputPlan
    folder: Path
    stem: str
    tags: Mapping[str, str]
    metadata: Path | None = None
    palette: Path | None = None
    temporary: Path | None = None
    error: StepwatchError | None = None
    tries: list[Try] = field(default_factory=list)
    scale: Fraction = Fraction(1)
    """Of the picture's sides, lowered only to meet ``max_size``."""
    best: tuple[Path, OutputPlan] | None = None
    """The largest file that fits so far."""
    earlier: tuple[str, ...] = ()
    """Names that a counter in the template has passed because they are taken."""
    published: Path | None = None
    again: bool = False
    """``published`` was there before this visit."""
    digest: str = ""

    @property
    def label(self) -> str:
        return self.plan.codec.name


class _Feed:
    """Hands the images that one encoder wants to it, as they are decoded."""

    def __init__(self, job: _Job, encoder: Encoder) -> None:
        self.job = job
        self.encoder = encoder
        self._mixes = job.plan.timeline.feed()
        self._next: Mix | None = next(self._mixes, None)

    def advance(self, position: int, images: _Images) -> None:
        """*position* has been decoded: send every picture that was waiting for it."""
        while self._next is not None and self._last(self._next) <= position:
            self.encoder.write(images.pixels(self._next, self.job.plan))
            self._next = next(self._mixes, None)

    @staticmethod
    def _last(mix: Mix) -> int:
        return mix.first if mix.pure else mix.second


class _Images:
    """The two images decoded last, on the canvas, and their pixels at each size that some output wants."""

    def __init__(self, plan: RenderPlan) -> None:
        self._plan = plan
        self._canvas: dict[int, Image.Image] = {}
        self._sized: dict[tuple[int, int, int], Image.Image] = {}
        self.thumbnails: dict[tuple[int, int], list[bytes]] = {}
        """For each size of output: thumbnails by image, empty where an image has not been decoded."""

    def add(self, position: int, image: Image.Image) -> None:
        self._canvas = {place: old for place, old in self._canvas.items() if place == position - 1}
        self._sized = {key: old for key, old in self._sized.items() if key[0] == position - 1}
        self._canvas[position] = frames.fit(image, self._plan.canvas, self._plan.fit)

    def sized(self, position: int, output: OutputPlan) -> Image.Image:
        key = (position, output.width, output.height)
        if key not in self._sized:
            size = (output.width, output.height)
            image = self._canvas[position]
            if size == output_size(self._plan.canvas, output.codec) and abs(size[0] - image.width) <= 1 and abs(size[1] - image.height) <= 1:
                sized = frames.fit(image, image.size, "stretch", even=output.codec.even)
            else:
                sized = frames.fit(image, size, "stretch")
            self._sized[key] = sized
            thumbnails = self.thumbnails.setdefault(size, [b""] * len(self._plan.frames))
            shown = output.timeline.order[position]
            if not thumbnails[shown]:
                thumbnails[shown] = frames.thumbnail(sized)
        return self._sized[key]

    def pixels(self, mix: Mix, output: OutputPlan) -> bytes:
        first = self.sized(mix.first, output)
        if mix.pure:
            return first.tobytes()
        return Image.blend(first, self.sized(mix.second, output), float(mix.weight)).tobytes()


class _Visit:
    """The state of one visit, and nothing that outlives it."""

    def __init__(self, *, run: Run, resolved: config.Resolved, ffmpeg: str, options: Options, observer: Observer, stop: threading.Event) -> None:
        self.run = run
        self.resolved = resolved
        self.policy: Policy = resolved.policy
        self.ffmpeg = ffmpeg
        self.options = options
        self.observer = observer
        self.stop = stop
        self.plan: RenderPlan | None = None
        self.damaged: dict[str, str] = {}
        self.digests: dict[str, str] = {}
        self.commands: list[tuple[str, ...]] = []
        self.temporaries: set[Path] = set()

    def go(self) -> RunResult:
        if not self.policy.create:
            sentence = "the policy says create: false, so no animation is made"
            self.observer.say(self.run.name, sentence)
            return RunResult(run=self.run.run_id, name=self.run.name, phase="ignored", reason=sentence, found=len(self.run.frames))
        survey = frames.survey(self.run)
        policy = self._with_codec_of_destination(self.policy)
        encoders = capabilities(self.ffmpeg).encoders
        for _ in range(REPLANS):
            self.plan = plan_render(self.run, survey, policy, encoders=encoders, damaged=self.damaged, longest=self.resolved.longest)
            try:
                return self._carry_out(self.plan, survey.texts)
            except frames.FrameError as error:
                # The survey was too hopeful: the decode is the proof. A new plan is made without this frame.
                self.observer.say(self.run.name, f"{error.message}; planning again without it", level="warning")
                self.damaged[error.name] = error.reason
            finally:
                self._sweep()
        raise RunError(f"more than {REPLANS} frames of run {self.run.name} cannot be decoded")

    def failed(self, error: StepwatchError) -> RunResult:
        self.observer.say(self.run.name, error.message + (f" ({error.hint})" if error.hint else ""), level="error")
        phase = "ignored" if isinstance(error, NoFramesError) else "render-failed"
        return self._result(phase, error.message, (), exit_code=error.exit_code)

    def _result(self, phase: str, reason: str, outputs: tuple[OutputResult, ...], *, exit_code: int = 0) -> RunResult:
        plan = self.plan
        damaged = dict(self.damaged)
        if plan:
            damaged |= {frame.name: problem for frame, problem in plan.damaged}
        return RunResult(
            run=self.run.run_id,
            name=self.run.name,
            phase=phase,
            reason=reason,
            found=len(self.run.frames),
            shown=len(plan.frames) - len(plan.unshown) if plan else 0,
            damaged=tuple(damaged),
            problems=damaged,
            missing=self.run.missing,
            unshown=tuple(frame.name for frame in plan.unshown) if plan else (),
            outputs=outputs,
            notes=self.run.notes,
            commands=tuple(self.commands) if self.options.verbose or self.options.dry_run else (),
            exit_code=exit_code,
        )

    def _with_codec_of_destination(self, policy: Policy) -> Policy:
        """`-o clip.gif` asks for a gif, whatever the policy's codec is."""
        target = self.options.destination
        if target is None or target.is_dir() or len(policy.outputs) != 1:
            return policy
        wanted = CODECS[policy.outputs[0].codec]
        suffix = target.suffix.lower()
        if suffix == wanted.suffix:
            return policy
        fitting = [codec.name for codec in CODECS.values() if codec.suffix == suffix]
        if not fitting:
            known = ", ".join(sorted({codec.suffix for codec in CODECS.values()}))
            raise UsageError(f"{target.name}: {suffix or 'no suffix'} is not the suffix of an animation", hint=f"use one of {known}")
        self.observer.say(self.run.name, f"the name {target.name} asks for {fitting[0]} instead of {wanted.name}")
        quality = policy.outputs[0].quality
        output = replace(policy.outputs[0], codec=fitting[0], quality="default" if isinstance(quality, int) else quality)  # type: ignore[arg-type]
        return replace(policy, outputs=(output,))

    # --- from plan to result ---

    def _carry_out(self, plan: RenderPlan, texts: Mapping[str, str]) -> RunResult:
        self._tell(plan)
        facts = metadata.gather(self.run.sidecar, {**texts, **store.read_workflow(self.run)})
        if self.options.dry_run:
            return self._dry_run(plan, facts)
        self._take_digests(plan)
        jobs = self._jobs(plan, facts)
        waiting = [job for job in jobs if job.published is None]
        if waiting:
            thumbnails = self._render(plan, waiting)
            for job in waiting:
                self._conclude(job, thumbnails)
        outputs = tuple(self._output_result(job) for job in jobs)
        errors = [job.error for job in jobs if job.error is not None]
        if errors:
            return self._result("render-failed", errors[0].message, outputs, exit_code=max(error.exit_code for error in errors))
        if not waiting:
            return self._result("rendered", "the same animation is already there", outputs)
        return self._result("rendered", plan.reason, outputs)

    def _tell(self, plan: RenderPlan) -> None:
        say = self.observer.say
        name = self.run.name
        if plan.damaged:
            shown = "; ".join(f"{frames.printable(frame.name)}: {problem}" for frame, problem in plan.damaged[:10])
            more = f" and {len(plan.damaged) - 10} more" if len(plan.damaged) > 10 else ""
            say(name, f"{len(plan.damaged)} damaged frames are left out ({shown}{more})", level="warning")
        if self.run.missing:
            steps = ", ".join(map(str, self.run.missing[:20])) + (" ..." if len(self.run.missing) > 20 else "")
            say(name, f"no frame for step {steps}; the animation goes on without", level="warning")
        for output in plan.outputs:
            if max(abs(output.width - plan.canvas[0]), abs(output.height - plan.canvas[1])) > 1:
                limits = f"from {output.codec.smallest} to {output.codec.largest} pixels a side"
                say(name, f"{output.codec.name} is rendered at {output.width}x{output.height}, for it takes {limits}", level="warning")
        if plan.unshown:
            say(name, f"{len(plan.unshown)} of {len(plan.frames)} images are too many for the output pictures and not shown", level="warning")

    def _dry_run(self, plan: RenderPlan, facts: metadata.Facts) -> RunResult:
        outputs = []
        for job in self._named(plan, facts):
            argv = self._argv(job, job.folder / f"{job.stem}{job.plan.codec.suffix}", metadata_path="METADATA", palette="PALETTE")
            self.commands.append(tuple(argv))
            outputs.append(self._planned(job, path=str(job.folder / f"{job.stem}{job.plan.codec.suffix}")))
        phases = {Outcome.COMPLETE: "complete", Outcome.INTERRUPTED: "interrupted", Outcome.FAILED: "failed", Outcome.RUNNING: "recording"}
        phase = phases[self.run.sidecar.state] if self.run.sidecar else "stalled"
        return self._result(phase, f"planned only: {plan.reason}", tuple(outputs))

    def _take_digests(self, plan: RenderPlan) -> None:
        """Digest every frame of the run, shown or not: together they are the run's generation."""
        for frame in self.run.frames:
            if self.stop.is_set():
                raise Interrupted("stopped by the user")
            if frame.name not in self.digests:
                try:
                    self.digests[frame.name] = frames.digest(self.run.key.folder, frame)
                except frames.FrameError as error:
                    self.digests[frame.name] = ""
                    if frame in plan.frames:
                        raise error from None

    def _named(self, plan: RenderPlan, facts: metadata.Facts) -> Iterator[_Job]:
        """The outputs with the folder and name of each; equal names get the codec."""
        taken: set[tuple[Path, str, str]] = set()
        for number, output in enumerate(plan.outputs):
            folder, stem, earlier = self._destination(number, output, plan, facts)
            if (folder, stem.casefold(), output.codec.suffix) in taken:
                stem = f"{stem}-{output.codec.name}"
            base, repeat = stem, 1
            while (folder, stem.casefold(), output.codec.suffix) in taken:
                repeat += 1
                stem = f"{base}-{repeat}"
            taken.add((folder, stem.casefold(), output.codec.suffix))
            yield _Job(plan=output, folder=folder, stem=stem, tags={}, earlier=earlier)

    def _destination(self, number: int, output: OutputPlan, plan: RenderPlan, facts: metadata.Facts) -> tuple[Path, str, tuple[str, ...]]:
        target = self.options.destination
        if target is not None and not target.is_dir():
            return Path(os.path.abspath(target.parent)), target.name[: len(target.name) - len(target.suffix)], ()
        folder = Path(os.path.abspath(target)) if target is not None else self.resolved.output_dirs[number]
        fields: dict[str, object] = {
            "seed": facts.seed,
            "prompt": facts.prompt,
            "date": self._date(),
            "sampler": facts.sampler,
            "model": facts.model,
            "steps": facts.steps,
            "run": self.run.name,
            "n": 1,
            "status": "incomplete" if plan.incomplete else "complete",
            "codec": output.codec.name,
        }

        def stem_of(n: int) -> str:
            # On disk a name is UTF-8; where the locale says otherwise, Python writes another text for the same bytes.
            return os.fsdecode(naming.output_stem(output.template, fields | {"n": n}, incomplete=plan.incomplete).encode("utf-8"))

        stem = stem_of(1)
        earlier: list[str] = []
        if naming.uses_field(output.template, "n"):
            while len(earlier) < MOST_COUNTED and stem not in earlier and (folder / f"{stem}{output.codec.suffix}").exists():
                earlier.append(stem)
                stem = stem_of(len(earlier) + 1)
        return folder, stem, tuple(earlier)

    def _date(self) -> datetime:
        """When the run began: as the sidecar says, else when its first frame was written."""
        created = self.run.sidecar.created if self.run.sidecar else None
        if created:
            with contextlib.suppress(ValueError):
                return datetime.fromisoformat(created).astimezone()
        return datetime.fromtimestamp(self.run.frames[0].mtime_ns / 1e9, tz=UTC).astimezone()

    def _jobs(self, plan: RenderPlan, facts: metadata.Facts) -> list[_Job]:
        whole = generation(self.run.frames, self.digests)
        jobs = []
        for job in self._named(plan, facts):
            job.digest = plan_digest(plan, job.plan)
            job.tags = metadata.output_tags(
                facts,
                include=self.policy.metadata.include,
                author=self.policy.metadata.author,
                identity=metadata.Identity(run=self.run.run_id, generation=whole, plan=job.digest, version=__version__, frames=len(plan.frames)),
            )
            if not self.options.force:
                job.published = self._existing(job, whole)
            if job.published:
                job.again = True
                self.observer.say(self.run.name, f"the same animation is already there: {frames.printable(str(job.published))}")
            jobs.append(job)
        return jobs

    def _existing(self, job: _Job, whole: str) -> Path | None:
        """An earlier output of the same generation by the same plan, found by what the file says of itself."""
        named = (store.files_named_like(job.folder, stem, job.plan.codec.suffix) for stem in (job.stem, *job.earlier))
        for path in chain.from_iterable(named):
            said = metadata.read_identity(tags.read(path, ffmpeg=self.ffmpeg))
            if said is not None and (said.run, said.generation, said.plan) == (self.run.run_id, whole, job.digest):
                return path
        return None

    # --- rendering ---

    def _render(self, plan: RenderPlan, jobs: Sequence[_Job]) -> Mapping[tuple[int, int], list[bytes]]:
        """Encode every job into a temporary file that fits its limit; a job that fails keeps its error. Returns the source's thumbnails."""
        images = _Images(plan)
        for job in jobs:
            try:
                self._prepare(job)
            except RunError as error:
                job.error = error
        pending = [job for job in jobs if job.error is None]
        while pending:
            self._find_palettes(plan, images, [job for job in pending if job.plan.codec.palette])
            ready = [job for job in pending if job.error is None]
            self._encode(plan, images, ready)
            pending = [job for job in ready if job.error is None and self._again(job, plan)]
        return images.thumbnails

    def _prepare(self, job: _Job) -> None:
        """Make the folder and write down the metadata for ffmpeg to read."""
        store.ensure_folder(job.folder)
        store.sweep_temporaries(job.folder, time.time())
        if job.plan.codec.tags != "embedded":
            job.metadata = self._temporary(job.folder, ".ffmetadata")
            apple = job.plan.codec.tags == "mp4" and self.policy.metadata.mp4 == "apple"
            said = metadata.apple_tags(job.tags) if apple else job.tags
            store.write_file(job.metadata, metadata.ffmetadata(said).encode("utf-8"))

    def _find_palettes(self, plan: RenderPlan, images: _Images, jobs: Sequence[_Job]) -> None:
        if not jobs:
            return
        work = []
        for job in jobs:
            job.palette = self._temporary(job.folder, ".png")
            argv = graph.palette_argv(job.plan, ffmpeg_path=self.ffmpeg, destination=str(job.palette))
            work.append((job, argv, f"{job.label} palette"))
        self._pass(plan, images, work)

    def _encode(self, plan: RenderPlan, images: _Images, jobs: Sequence[_Job]) -> None:
        work = []
        for job in jobs:
            job.temporary = self._temporary(job.folder, job.plan.codec.suffix)
            argv = self._argv(job, job.temporary, metadata_path=job.metadata, palette=job.palette)
            work.append((job, argv, job.label if not job.tries else f"{job.label}, try {len(job.tries) + 1}"))
        self._pass(plan, images, work)

    def _argv(self, job: _Job, destination: Path, *, metadata_path: Path | str | None, palette: Path | str | None) -> list[str]:
        return graph.render_argv(
            job.plan,
            ffmpeg_path=self.ffmpeg,
            destination=str(destination),
            metadata=str(metadata_path) if metadata_path and job.plan.codec.tags != "embedded" else None,
            palette=str(palette) if palette and job.plan.codec.palette else None,
            apple=self.policy.metadata.mp4 == "apple",
        )

    def _pass(self, plan: RenderPlan, images: _Images, work: Sequence[tuple[_Job, list[str], str]]) -> None:
        """Decode each wanted image once, in the timeline's order, and feed it to one ffmpeg for each piece of *work*.

        One that fails closes its own pipe and keeps its error; the others go on. A damaged frame ends the pass (FrameError).
        """
        with contextlib.ExitStack() as stack:
            feeds: list[_Feed] = []
            for job, argv, label in work:
                self.commands.append(tuple(argv))
                self.observer.say(self.run.name, f"{label}: {shlex.join(argv)}", level="debug")
                try:
                    encoder = Encoder(argv, on_progress=self._progress(label, job.plan.pictures), on_line=self._line(label), stop=self.stop)
                except StepwatchError as error:
                    job.error = error
                    continue
                feeds.append(_Feed(job, stack.enter_context(encoder)))
            order = plan.timeline.order
            wanted = _positions(feed.job.plan for feed in feeds)
            for position in wanted:
                alive = [feed for feed in feeds if feed.job.error is None]
                if not alive:
                    break
                if self.stop.is_set():
                    raise Interrupted("stopped by the user")
                images.add(position, self._decode(plan, order[position]))
                for feed in alive:
                    try:
                        feed.advance(position, images)
                    except RunError as error:
                        feed.job.error = error
            for feed in feeds:
                if feed.job.error is None:
                    try:
                        feed.encoder.finish()
                    except RunError as error:
                        feed.job.error = error

    def _decode(self, plan: RenderPlan, image: int) -> Image.Image:
        frame = plan.frames[image]
        decoded = frames.decode(self.run.key.folder, frame, scale=plan.scale)
        if decoded.digest != self.digests.get(frame.name, decoded.digest):
            raise RunError(
                f"frame {frames.printable(frame.name)} changed while it was being rendered", hint="render again when nothing writes into the folder"
            )
        return decoded.image

    def _again(self, job: _Job, plan: RenderPlan) -> bool:
        """Add the tags that ffmpeg cannot write, and decide whether the file must be made smaller: True asks for another pass."""
        assert job.temporary is not None
        try:
            if job.plan.codec.tags == "embedded":
                embedded = self._temporary(job.folder, job.plan.codec.suffix)
                tags.embed(job.temporary, job.plan.codec.name, job.tags, embedded, duration=job.plan.duration)
                self._remove(job.temporary)
                job.temporary = embedded
            size = job.temporary.stat().st_size
        except RunError as error:
            job.error = error
            return False
        except OSError as error:
            job.error = EnvironmentFault(f"the rendered file cannot be read back: {error.strerror}")
            return False
        limit = job.plan.max_size
        if limit is None:
            job.best = (job.temporary, job.plan)
            return False
        return self._fit(job, plan, size, limit)

    def _fit(self, job: _Job, plan: RenderPlan, size: int, limit: int) -> bool:
        assert job.temporary is not None
        codec = job.plan.codec
        option = codec.quality_option
        value = int(dict(job.plan.encoding.options)[option]) if option else None
        full = output_size(plan.canvas, codec)
        job.tries.append(Try(value=value, scale=job.scale, size=size))
        if size <= limit and (job.best is None or size > job.best[0].stat().st_size):
            job.best = (job.temporary, job.plan)
        start = job.tries[0].value
        following = None
        if size > limit or len(job.tries) > 1:
            least = Fraction(codec.smallest, min(full))
            following = next_try(job.tries, limit, start=start, coarsest=codec.coarsest, long_side=max(full), smallest_scale=least)
        if following is None:
            if job.best is None:
                smallest = min(one.size for one in job.tries)
                job.error = SizeLimitError(
                    f"max_size {limit} bytes cannot be met: the smallest of {len(job.tries)} encodes has {smallest} bytes",
                    hint="raise max_size, or lower timeline.duration, timeline.fps or size.scale",
                )
            elif len(job.tries) > 1:
                self.observer.say(self.run.name, f"{codec.name}: {job.best[0].stat().st_size} bytes fit into {limit} after {len(job.tries)} encodes")
            return False
        new_value, new_scale = following
        encoding = with_option(job.plan.encoding, option, new_value) if option and new_value is not None else job.plan.encoding
        width, height = (max(2, round(side * new_scale)) for side in full)
        if codec.even:
            width, height = width + width % 2, height + height % 2
        if new_scale == 1:
            width, height = full
        job.scale = new_scale
        job.plan = replace(job.plan, encoding=encoding, width=width, height=height)
        return True

    # --- from temporary file to published animation ---

    def _conclude(self, job: _Job, thumbnails: Mapping[tuple[int, int], list[bytes]]) -> None:
        """Sync, verify and publish a job's file; a fault becomes the job's error, and nothing is published."""
        if job.error is not None:
            self._say_error(job, job.error)
            return
        assert job.best is not None
        path, plan = job.best
        try:
            store.fsync_file(path)
            verified = verify(
                path,
                plan,
                thumbnails[plan.width, plan.height],
                ffmpeg=self.ffmpeg,
                thumbnail=frames.thumbnail,  # type: ignore[arg-type]
                stop=self.stop,
            )
            self.observer.say(
                self.run.name,
                f"{plan.codec.name}: verified {verified.pictures} pictures, {float(verified.duration):.3f} s, worst thumbnail {verified.worst:.2f}",
                level="debug",
            )
            published = store.publish(path, job.folder, job.stem, plan.codec.suffix)
        except RunError as error:
            job.error = error
            self._say_error(job, error)
            return
        self.temporaries.discard(path)
        job.plan = plan
        job.published = published
        self.observer.say(self.run.name, f"{plan.codec.name}: published {frames.printable(str(published))}")

    def _say_error(self, job: _Job, error: StepwatchError) -> None:
        self.observer.say(self.run.name, f"{job.label}: {error.message}" + (f" ({error.hint})" if error.hint else ""), level="error")

    def _planned(self, job: _Job, *, path: str | None) -> OutputResult:
        plan = job.plan
        return OutputResult(path=path, codec=plan.codec.name, width=plan.width, height=plan.height, frames=plan.pictures, duration=plan.duration)

    def _output_result(self, job: _Job) -> OutputResult:
        if job.error is not None or job.published is None:
            return replace(self._planned(job, path=None), error=job.error.message if job.error else "not rendered")
        path = job.published
        with path.open("rb") as file:
            total = hashlib.file_digest(file, "sha256")
        return replace(
            self._planned(job, path=str(path)),
            bytes=path.stat().st_size,
            sha256=total.hexdigest(),
            exists=job.again,
        )

    # --- small things ---

    def _temporary(self, folder: Path, suffix: str) -> Path:
        path = store.temporary_path(folder, suffix)
        self.temporaries.add(path)
        return path

    def _remove(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.unlink()
        self.temporaries.discard(path)

    def _sweep(self) -> None:
        for path in list(self.temporaries):
            self._remove(path)

    def _progress(self, label: str, total: int) -> Callable[[int, float | None], None]:
        return lambda done, speed: self.observer.progress(self.run.name, label, done, total, speed)

    def _line(self, label: str) -> Callable[[str], None] | None:
        if not self.options.verbose:
            return None
        return lambda line: self.observer.say(self.run.name, f"ffmpeg ({label}): {line}", level="debug")


def _positions(plans: Iterator[OutputPlan]) -> list[int]:
    """Positions of the timeline that some output wants to see, in order."""
    wanted: set[int] = set()
    for plan in plans:
        for mix in plan.timeline.feed():
            wanted.add(mix.first)
            if not mix.pure:
                wanted.add(mix.second)
    return sorted(wanted)
