"""From a run and its policy to published animations: plan, encode, verify, publish.

The order is what keeps frames and animations safe: render into hidden temporary files beside their destination, fsync, verify what is really in
the file, and only then publish it under a name that nothing else has. What is worth remembering of it is returned; `visit` records it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Protocol

from stepwatch import __version__, config, flow, frames, graph, store, tags
from stepwatch.core import metadata, naming
from stepwatch.core.codecs import CODECS
from stepwatch.core.model import Covered, Frame, Outcome, Published, Render, Role, Run
from stepwatch.core.naming import printable
from stepwatch.core.plan import OutputPlan, RenderPlan, generation, plan_digest, plan_render, plural
from stepwatch.core.policy import CleanupPolicy, Policy
from stepwatch.core.result import OutputResult, RunResult
from stepwatch.encoder import capabilities
from stepwatch.errors import (
    EnvironmentFault,
    FramesChangedError,
    Interrupted,
    NoFramesError,
    RunError,
    StepwatchError,
    UsageError,
    VerifyError,
)
from stepwatch.passes import Draft, Observer, Passes, Workspace, render_argv
from stepwatch.verify import prove, verify, whole_file

MOST_COUNTED = 100_000
"""Numbers that a counter in a name goes through before it leaves the rest to ``publish``."""
REPLANS = 1000
"""Damaged frames after which a run is given up; each costs a pass up to where it lies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line, or the daemon, adds to the policy."""

    force: bool = False
    """Render even when the very same animation is there."""
    dry_run: bool = False
    """Show the plan and ffmpeg's arguments, render nothing."""
    destination: Path | None = None
    """Folder (existing), or file for a single output; None: as the policy says."""
    elsewhere: bool = False
    """The outputs go where a person says, and not where the daemon would look for them."""
    verbose: bool = False
    """Let ffmpeg talk, and pass on what it says."""
    wait: bool = True
    """Wait while somebody else visits the run; False: BusyError."""
    asked: bool = False
    """A person asks for clearing, by the policy as it is now."""
    min_free_space: int = 0
    """Bytes; with less on the disk of an output, nothing is rendered."""


def require_space(resolved: config.Resolved, least: int) -> None:
    """Raise EnvironmentFault where the disk of an output has less than *least* bytes free, which the service file may ask for."""
    for folder in set(resolved.output_dirs) if least else ():
        place = next(one for one in (folder, *folder.parents) if one.exists())
        free = shutil.disk_usage(place).free
        if free < least:
            raise EnvironmentFault(
                f"only {free / 1e6:.0f} MB are free for {printable(str(folder))}, and daemon.min_free_space is {least / 1e6:.0f} MB",
                hint="make room: it goes on by itself",
            )


class Accelerator(Protocol):
    """What may have encoded some outputs already."""

    @property
    def surveyed(self) -> Mapping[Frame, frames.Surveyed]:
        """What it has read in the headers of frames."""
        ...

    def take(
        self, plan: RenderPlan, drafts: Sequence[Draft], digests: Mapping[str, str], *, workspace: Workspace, stop: threading.Event
    ) -> Mapping[tuple[int, int], list[bytes]]:
        """Give those of *drafts* their ``temporary`` files that were encoded of exactly this plan and these contents; returns thumbnails."""
        ...


class Rendering:
    """The state of one render, and nothing that outlives it."""

    def __init__(
        self,
        *,
        run: Run,
        resolved: config.Resolved,
        ffmpeg: str,
        options: Options,
        observer: Observer,
        stop: threading.Event,
        incomplete: bool | None = None,
        digests: Mapping[str, str] | None = None,
        earlier: Callable[[str], Mapping[Path, metadata.Identity]] | None = None,
    ) -> None:
        self.run = run
        self.incomplete = not run.complete if incomplete is None else incomplete
        self.earlier = earlier
        self.accelerator: Accelerator | None = None
        self.resolved = resolved
        self.policy: Policy = resolved.policy
        self.ffmpeg = ffmpeg
        self.options = options
        self.observer = observer
        self.stop = stop
        self.plan: RenderPlan | None = None
        self.damaged: dict[str, str] = {}
        self.digests: dict[str, str] = dict(digests or {})
        self._reader = frames.Reader(run.key.folder)
        self.render: Render | None = None
        """What there is to be recorded, once every output is published."""
        self.error: StepwatchError | None = None
        """Why the run, or one of its outputs, could not be rendered."""
        self.commands: list[tuple[str, ...]] = []

    def go(self) -> RunResult:
        if not self.policy.create:
            sentence = "the policy says create: false, so no animation is made"
            self.observer.say(self.run.name, sentence)
            return self._result("ignored", sentence, ())
        survey = frames.survey(self.run, self.accelerator.surveyed if self.accelerator is not None else None)
        for facts in survey.facts:
            if facts.problem:
                self.damaged.setdefault(facts.frame.name, facts.problem)
        policy = self._with_codec_of_destination(self.policy)
        encoders = capabilities(self.ffmpeg).encoders
        for _ in range(REPLANS):
            self.plan = plan_render(
                self.run,
                survey,
                policy,
                encoders=encoders,
                damaged=self.damaged,
                longest=self.resolved.longest,
                incomplete=self.incomplete,
                flow=flow.available(),
            )
            try:
                with Workspace() as workspace:
                    return self._carry_out(self.plan, survey.texts, workspace)
            except frames.FrameError as error:
                self._require_unchanged(error.name)
                # The survey was too hopeful: the decode is the proof. A new plan is made without this frame.
                self.observer.say(self.run.name, f"{error.message}; planning again without it", level="warning")
                self.damaged[error.name] = error.reason
                self.plan = None
        raise RunError(f"more than {REPLANS} frames of run {self.run.name} cannot be decoded")

    def _require_unchanged(self, name: str | None = None) -> None:
        """Raise FramesChangedError when the frame of this name, or any, is not what it was when the run was read."""
        for frame in self.run.frames:
            if name in (None, frame.name) and not store.is_unchanged(self.run.key.folder, frame):
                raise FramesChangedError(
                    f"frame {printable(frame.name)} changed or went away while the run was being rendered",
                    hint="render again when nothing writes into the folder",
                )

    def failed(self, error: StepwatchError) -> RunResult:
        self.error = error
        self._say_error(error)
        phase = "ignored" if isinstance(error, NoFramesError) else "render-failed"
        return self._result(phase, error.message, (), exit_code=error.exit_code)

    def _result(self, phase: str, reason: str, outputs: tuple[OutputResult, ...], *, exit_code: int = 0) -> RunResult:
        plan = self.plan
        damaged = {frame.name: self.damaged[frame.name] for frame in self.run.frames if frame.name in self.damaged}
        rendered = any(output.error is None for output in outputs)
        return RunResult(
            run=self.run.run_id,
            name=self.run.name,
            folder=self.run.key.folder,
            phase=phase,
            reason=reason,
            found=len(self.run.frames),
            shown=len(plan.frames) - len(plan.unshown) if plan and rendered else 0,
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

    # --- what is remembered ---

    def _recordable(self, plan: RenderPlan, drafts: Sequence[Draft], outputs: Sequence[OutputResult], whole: str) -> Render:
        published = [_as_published(output, plan=draft.digest) for draft, output in zip(drafts, outputs, strict=True)]
        render = self._render_of(plan, published, whole, incomplete=plan.incomplete, shown=Role.SHOWN)
        # What was published before the receipts were lost was published under a policy that nobody knows any more.
        return replace(render, cleanup=CleanupPolicy()) if self.earlier is not None and all(draft.again for draft in drafts) else render

    def _render_of(self, plan: RenderPlan, published: Sequence[Published], whole: str, *, incomplete: bool, shown: Role) -> Render:
        roles = {frame.name: Role.SKIPPED for frame in plan.skipped}
        roles |= {frame.name: shown for frame in plan.frames}
        roles |= {frame.name: Role.UNSHOWN for frame in plan.unshown}
        roles |= {frame.name: Role.DAMAGED for frame, _ in plan.damaged}
        covered = [Covered(frame=frame, digest=self.digests.get(frame.name, ""), role=roles[frame.name]) for frame in self.run.frames]
        covered += [Covered(frame=frame, digest="", role=Role.DUPLICATE) for frame in self.run.duplicates]
        return Render(
            generation=whole,
            frames=tuple(covered),
            outputs=tuple(published),
            incomplete=incomplete,
            at=time.time(),
            # Runs that are appended to are never cleared, whatever becomes of that wish.
            cleanup=CleanupPolicy() if self.policy.frames.append else self.policy.cleanup,
            missing=self.run.missing,
            guessed=self.run.guessed,
        )

    def _adopted(self, plan: RenderPlan, whole: str) -> RunResult | None:
        """Where the receipts were lost: animations of this very generation that an earlier daemon made, by whatever policy it had then.

        They count as this run's, and spare a second one; but what was rendered by another plan covers nothing, so no frame is cleared for it.
        """
        found = self.earlier(whole) if self.earlier and not self.options.force else {}
        planned = {plan_digest(plan, output) for output in plan.outputs}
        if not found or planned <= {identity.plan for identity in found.values()}:
            return None
        marked = [bool(re.search(r"-incomplete(-\d+)?$", path.stem)) for path in found]
        if all(marked) and not self.incomplete:
            return None
        published = [_published_at(path, codec="", plan=identity.plan, pictures=0, duration="0", sha256="") for path, identity in found.items()]
        render = self._render_of(plan, published, whole, incomplete=all(marked), shown=Role.UNSHOWN)
        self.render = replace(render, cleanup=CleanupPolicy())
        names = ", ".join(printable(path.name) for path in found)
        self.observer.say(self.run.name, f"was rendered before, by another policy: {names}")
        return self._result("rendered", f"it was rendered before, by another policy: {names}", ())

    # --- from plan to result ---

    def _carry_out(self, plan: RenderPlan, texts: Mapping[str, str], workspace: Workspace) -> RunResult:
        self._tell(plan)
        hints = {"seed": self.run.seed_hint, "prompt": self.run.prompt_hint}
        facts = metadata.gather(self.run.sidecar, {**texts, **store.read_workflow(self.run)}, hints=hints)
        if self.options.dry_run:
            return self._dry_run(plan, facts)
        if self.options.destination is None:
            require_space(self.resolved, self.options.min_free_space)
        self._take_digests(plan)
        whole = generation(self.run.frames, self.digests)
        adopted = self._adopted(plan, whole)
        if adopted:
            return adopted
        drafts = self._drafts(plan, facts, whole)
        waiting = [draft for draft in drafts if draft.published is None]
        if waiting:
            self._make(plan, waiting, workspace)
        outputs = tuple(self._output_result(draft) for draft in drafts)
        errors = [draft.error for draft in drafts if draft.error is not None]
        if errors:
            # A machine's fault is told first: it is the one that ends by itself.
            self.error = next((error for error in errors if isinstance(error, EnvironmentFault)), errors[0])
            return self._result("render-failed", errors[0].message, outputs, exit_code=max(error.exit_code for error in errors))
        self.render = self._recordable(plan, drafts, outputs, whole)
        if not waiting:
            return self._result("rendered", "the same animation is already there", outputs)
        return self._result("rendered", plan.reason, outputs)

    def _tell(self, plan: RenderPlan) -> None:
        say = self.observer.say
        name = self.run.name
        if plan.damaged:
            shown = "; ".join(f"{printable(frame.name)}: {problem}" for frame, problem in plan.damaged[:10])
            more = f" and {len(plan.damaged) - 10} more" if len(plan.damaged) > 10 else ""
            say(name, f"{plural(len(plan.damaged), 'damaged frame')} left out ({shown}{more})", level="warning")
        if self.run.missing:
            steps = ", ".join(map(str, self.run.missing[:20])) + (" ..." if len(self.run.missing) > 20 else "")
            say(name, f"no frame for step {steps}; the animation goes on without", level="warning")
        longest = self.resolved.longest
        if longest is not None and any(output.duration >= longest for output in plan.outputs):
            say(name, f"a file that is not trusted asks for too few frames a second: it gets {float(longest):.0f} s", level="warning")
        for output in plan.outputs:
            if max(abs(output.width - plan.canvas[0]), abs(output.height - plan.canvas[1])) > 1:
                limits = f"from {output.codec.smallest} to {output.codec.largest} pixels a side"
                say(name, f"{output.codec.name} is rendered at {output.width}x{output.height}, for it takes {limits}", level="warning")
        if plan.unshown:
            say(name, f"{len(plan.unshown)} of {len(plan.frames)} images are too many for the output pictures and not shown", level="warning")

    def _dry_run(self, plan: RenderPlan, facts: metadata.Facts) -> RunResult:
        outputs = []
        for draft in self._named(plan, facts):
            path = draft.folder / f"{draft.stem}{draft.plan.codec.suffix}"
            joined = draft.plan.apart
            argv = render_argv(plan, draft, path, ffmpeg=self.ffmpeg, metadata_path="METADATA", palette="PALETTE", joined=joined)
            if draft.plan.fades:
                self.commands.append(tuple(graph.anchors_argv(draft.plan, ffmpeg_path=self.ffmpeg)))
            elif joined:
                colours = "PALETTE" if draft.plan.codec.palette else None
                self.commands.append(tuple(graph.apart_argv(draft.plan, ffmpeg_path=self.ffmpeg, palette=colours, part=0, parts=1)))
            self.commands.append(tuple(argv))
            outputs.append(self._planned(draft, path=str(path)))
        phases = {Outcome.COMPLETE: "complete", Outcome.INTERRUPTED: "interrupted", Outcome.FAILED: "failed", Outcome.RUNNING: "recording"}
        phase = phases[self.run.sidecar.state] if self.run.sidecar else "stalled"
        return self._result(phase, f"planned only: {plan.reason}", tuple(outputs))

    def _take_digests(self, plan: RenderPlan) -> None:
        """Digest every frame of the run, shown or not: together they are the run's generation."""
        chosen = {frame.name for frame in plan.frames}
        for frame in self.run.frames:
            if self.stop.is_set():
                raise Interrupted("stopped by the user")
            if frame.name not in self.digests:
                try:
                    self.digests[frame.name] = self._reader.digest(frame, keep=frame.name in chosen)
                except frames.FrameError as error:
                    self.digests[frame.name] = ""
                    if frame.name in chosen:
                        raise error from None

    def _named(self, plan: RenderPlan, facts: metadata.Facts) -> Iterator[Draft]:
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
            yield Draft(plan=output, folder=folder, stem=stem, tags={}, earlier=earlier)

    def _destination(self, number: int, output: OutputPlan, plan: RenderPlan, facts: metadata.Facts) -> tuple[Path, str, tuple[str, ...]]:
        target = self.options.destination
        if target is not None and not target.is_dir():
            return Path(os.path.abspath(target.parent)), target.name[: len(target.name) - len(target.suffix)], ()
        if target is None:
            self.resolved.require_places()
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

    def _drafts(self, plan: RenderPlan, facts: metadata.Facts, whole: str) -> list[Draft]:
        drafts = []
        for draft in self._named(plan, facts):
            draft.digest = plan_digest(plan, draft.plan)
            draft.tags = metadata.output_tags(
                facts,
                include=self.policy.metadata.include,
                author=self.policy.metadata.author,
                identity=metadata.Identity(run=self.run.run_id, generation=whole, plan=draft.digest, version=__version__, frames=len(plan.frames)),
            )
            if not self.options.force:
                draft.published = self._existing(draft, whole)
            if draft.published:
                draft.again = True
                self.observer.say(self.run.name, f"the same animation is already there: {printable(str(draft.published))}")
            drafts.append(draft)
        return drafts

    def _existing(self, draft: Draft, whole: str) -> Path | None:
        """An earlier output of the same generation by the same plan, found by what the file says of itself."""
        named = (store.files_named_like(draft.folder, stem, draft.plan.codec.suffix) for stem in (draft.stem, *draft.earlier))
        for path in chain.from_iterable(named):
            said = metadata.read_identity(tags.read(path, ffmpeg=self.ffmpeg))
            if said is None or (said.run, said.generation, said.plan) != (self.run.run_id, whole, draft.digest):
                continue
            try:
                # What a file says of itself is at its start; that the rest is there too shows in the decode.
                draft.plan = whole_file(path, draft.plan, ffmpeg=self.ffmpeg, stop=self.stop)
            except VerifyError as error:
                self.observer.say(self.run.name, f"{printable(str(path))} is damaged and does not count: {error.message}", level="warning")
            else:
                return path
        return None

    def _make(self, plan: RenderPlan, drafts: Sequence[Draft], workspace: Workspace) -> None:
        """Encode, verify and publish *drafts*; what a live encode has left and does not hold is encoded anew."""
        thumbnails = self._render(plan, drafts, workspace)
        for draft in drafts:
            self._conclude(draft, thumbnails, workspace)
        spoiled = [draft for draft in drafts if draft.asked and draft.error and not isinstance(draft.error, EnvironmentFault | FramesChangedError)]
        if spoiled:
            self.observer.say(self.run.name, "what was encoded while it went on does not hold, and is encoded anew", level="warning")
            self.accelerator = None
            for draft in spoiled:
                draft.begin_anew()
            self._make(plan, spoiled, workspace)

    def _render(self, plan: RenderPlan, drafts: Sequence[Draft], workspace: Workspace) -> Mapping[tuple[int, int], list[bytes]]:
        taken: Mapping[tuple[int, int], list[bytes]] = {}
        if self.accelerator is not None:
            taken = self.accelerator.take(plan, drafts, self.digests, workspace=workspace, stop=self.stop)
        passes = Passes(
            plan,
            ffmpeg=self.ffmpeg,
            digests=self.digests,
            reader=self._reader,
            workspace=workspace,
            observer=self.observer,
            stop=self.stop,
            verbose=self.options.verbose,
        )
        try:
            return {**passes.render(drafts), **taken}
        finally:
            self.commands += passes.commands

    # --- from temporary file to published animation ---

    def _conclude(self, draft: Draft, thumbnails: Mapping[tuple[int, int], list[bytes]], workspace: Workspace) -> None:
        """Sync, verify and publish a draft's file; a fault becomes the draft's error, and nothing is published."""
        if draft.error is not None:
            draft.error = self._to_blame(draft, draft.error)
            self._say_error(draft.error, draft.label)
            return
        assert draft.best is not None
        path, plan = draft.best
        try:
            store.fsync_file(path)
            if draft.evidence is not None:
                verified = prove(path, plan, draft.evidence, ffmpeg=self.ffmpeg, stop=self.stop, lister=draft.lister)
            else:
                known = thumbnails[plan.width, plan.height]
                verified = verify(path, plan, known, ffmpeg=self.ffmpeg, thumbnail=frames.thumbnail, stop=self.stop)
            self.observer.say(
                self.run.name,
                f"{plan.codec.name}: verified {verified.pictures} pictures, {float(verified.duration):.3f} s, worst thumbnail {verified.worst:.2f}",
                level="debug",
            )
            # A run that was deleted, or goes on, while it was encoded gets no animation of what it was.
            self._require_unchanged()
            published = store.publish(path, draft.folder, draft.stem, plan.codec.suffix)
        except RunError as error:
            draft.error = self._to_blame(draft, error)
            self._say_error(draft.error, draft.label)
            return
        workspace.keep(path)
        draft.plan = plan
        draft.published = published
        self.observer.say(self.run.name, f"{plan.codec.name}: published {printable(str(published))}")

    @staticmethod
    def _to_blame(draft: Draft, error: StepwatchError) -> StepwatchError:
        """The error, unless the folder was taken away while it was written into: then that is why."""
        if isinstance(error, EnvironmentFault) or draft.place in (None, store.identity_of(draft.folder)):
            return error
        return EnvironmentFault(f"the folder {printable(str(draft.folder))} was taken away while an animation was written into it")

    def _say_error(self, error: StepwatchError, label: str = "") -> None:
        sentence = f"{label}: {error.message}" if label else error.message
        self.observer.say(self.run.name, f"{sentence} ({error.hint})" if error.hint else sentence, level="error")

    def _planned(self, draft: Draft, *, path: str | None) -> OutputResult:
        plan = draft.plan
        return OutputResult(
            path=path,
            codec=plan.codec.name,
            width=plan.width,
            height=plan.height,
            frames=plan.pictures,
            duration=plan.duration,
            motion=plan.motion,
        )

    def _output_result(self, draft: Draft) -> OutputResult:
        if draft.error is not None or draft.published is None:
            return replace(self._planned(draft, path=None), error=draft.error.message if draft.error else "not rendered")
        path = draft.published
        try:
            with path.open("rb") as file:
                total = hashlib.file_digest(file, "sha256")
            size = path.stat().st_size
        except OSError as error:
            raise EnvironmentFault(f"{printable(str(path))} was published and cannot be read back: {error.strerror}") from error
        return replace(self._planned(draft, path=str(path)), bytes=size, sha256=total.hexdigest(), exists=draft.again)


def _as_published(output: OutputResult, *, plan: str) -> Published:
    assert output.path is not None
    return _published_at(
        Path(output.path), codec=output.codec, plan=plan, pictures=output.frames, duration=str(output.duration), sha256=output.sha256 or ""
    )


def _published_at(path: Path, *, codec: str, plan: str, pictures: int, duration: str, sha256: str) -> Published:
    try:
        facts = path.stat()
    except OSError as error:
        raise EnvironmentFault(f"{printable(str(path))} was published and is no longer there: {error.strerror}") from error
    return Published(
        path=str(path),
        codec=codec,
        size=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
        inode=facts.st_ino,
        device=facts.st_dev,
        sha256=sha256,
        plan=plan,
        pictures=pictures,
        duration=duration,
    )
