"""Encode a run while it goes on: each frame is decoded, proved and fed as it lands, so that at the last one only the tail is left to do.

Theory of operation. A live encode begins with the promise of a run (`core.live`): how many frames will come, of what size, under which names.
That makes a complete plan, and the plan ffmpegs that wait for images. A thread of its own, of the lowest priority, gives them every frame that
is there without a hole before it. Whatever is not as promised ends it, and nothing is lost but its work: a frame that does not decode, is
rewritten or goes away, a sidecar that promises something else, an ffmpeg that fails. A run that ends early ends it too, unless its pictures can be
given other times (`core.plan.retimed`).

It is never a second path to an animation. When the run has ended it is visited and planned like any other, and only where that plan turns out
to be the very one that was encoded, frame by frame and digest by digest, the visit takes the encoded files over instead of encoding its own.
Verifying, publishing and recording are the same for both.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import shlex
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

from stepwatch import __version__, config, frames, graph, store, system, verify
from stepwatch.core import metadata
from stepwatch.core.live import Promise, arrived, differs, ended_early, outlives
from stepwatch.core.model import Frame, Run, RunKey
from stepwatch.core.naming import output_stem, printable
from stepwatch.core.plan import RenderPlan, plan_digest, plan_render, retimed
from stepwatch.encoder import capabilities
from stepwatch.errors import Interrupted, RunError, StepwatchError
from stepwatch.passes import Draft, Observer, Passes, Workspace

PATIENCE = 0.5
"""Seconds between two looks at whether a live encode that is waited for should be waited for any longer."""

_log = logging.getLogger(__name__)


class Live:
    """One run that is encoded while it goes on.

    `look` tells it how the run stands; `take` hands over what it has made; `close` ends it, whatever it is at. All of them return at once, but
    for `take`, which waits for the tail. What happens, happens in a thread of its own, which also ends every ffmpeg that it has started.
    """

    def __init__(
        self,
        promised: Promise,
        resolved: config.Resolved,
        *,
        ffmpeg: Callable[[], str],
        observer: Observer,
        nice: int,
        begin: Callable[[], None],
        call_off: Callable[[], None],
        news: Callable[[], None],
    ) -> None:
        """*begin* commits the attempt before anything is encoded, *call_off* takes it back, *news* hears when all is encoded or given up.

        Raises RuntimeError when no thread is to be had.
        """
        self._promised = promised
        self._run = promised.run
        """The promised run, with the facts of those frames that were fed."""
        self._resolved = resolved
        self._find_ffmpeg = ffmpeg
        self._ffmpeg = ""
        self._observer = observer
        self._nice = nice
        self._begin = begin
        self._call_off = call_off
        self._news = news
        self._changed = threading.Condition()
        self._latest: tuple[Run, str] | None = None
        """How the run stands, and why no frame will come any more although its sidecar does not say so; None once that was looked at."""
        self._stop = threading.Event()
        self._over = threading.Event()
        self._released = threading.Event()
        self._begun = False
        self._claimed = False
        self._outlives = False
        """Some output is worth something even if the run ends early."""
        self.refused = ""
        """Why it was given up, in plain words; empty as long as it was not."""
        self.fed = 0
        """Frames of the run that were fed, or left out as the policy says, so far."""
        self._digests: dict[Frame, str] = {}
        self.surveyed: dict[Frame, frames.Surveyed] = {}
        """What was read in the headers of the frames that were fed, so that the visit need not."""
        self._plan: RenderPlan | None = None
        self._drafts: list[Draft] = []
        self._thumbnails: Mapping[tuple[int, int], list[bytes]] = {}
        self._generation = uuid.uuid4().hex
        """Stands in the tags for the digest of the run's frames, which is known when the last of them is."""
        self._workspace = Workspace()
        self._thread = threading.Thread(target=self._work, name="live", daemon=True)
        self._thread.start()

    # --- what others say to it ------------------------------------------------------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether everything is encoded, or it was given up."""
        return self._over.is_set()

    @property
    def claimed(self) -> bool:
        """Whether a visit has taken over what it wanted, so that there is nothing left to be done."""
        return self._claimed

    @property
    def promised(self) -> int:
        """Frames that will be fed if all goes well."""
        return len(self._run.frames)

    def look(self, run: Run, *, ended: str = "") -> None:
        """Tell how the run stands now, and with *ended* why no frame will come any more although its sidecar does not say so."""
        with self._changed:
            self._latest = run, ended
            self._changed.notify()

    def claim(self) -> None:
        """Leave the attempt to a visit of the run, which is about to begin one of its own."""
        with self._changed:
            self._claimed = True

    def close(self) -> None:
        """End it, with all that nobody has taken over; its thread sees to that, until it is `gone`."""
        self._stop.set()
        self._released.set()
        with self._changed:
            self._changed.notify()

    @property
    def gone(self) -> bool:
        return not self._thread.is_alive()

    def join(self, limit: float | None = None) -> None:
        """Wait until it is gone, at most *limit* seconds."""
        self._thread.join(limit)

    def digests(self, run: Run) -> dict[str, str]:
        """The contents of those frames of *run* that are the very files that were read here."""
        return {frame.name: self._digests[frame] for frame in run.frames if frame in self._digests}

    def take(
        self, plan: RenderPlan, drafts: Sequence[Draft], digests: Mapping[str, str], *, workspace: Workspace, stop: threading.Event
    ) -> Mapping[tuple[int, int], list[bytes]]:
        """Hand over the files that were encoded of exactly this *plan* and these contents, and return the thumbnails of their images.

        A draft that could be served has its ``temporary`` then; the others are as they were. Raises Interrupted.
        """
        fed = self.fed  # Before the run, which is one ahead of it for a moment.
        reason = differs(self._run, plan.run, fed)
        if not reason:
            count = len(plan.run.frames)
            self.look(plan.run, ended="" if count == self.promised else f"it has {count} of {self.promised} frames")
            # The tail may still be encoded. It ends by itself, or by the encoder's own limits when nothing moves any more.
            while not self._over.wait(PATIENCE):
                if stop.is_set():
                    raise Interrupted("stopped by the user")
            reason = self.refused
        if not reason and any(self._digests.get(frame, "") != digests.get(frame.name) for frame in plan.frames):
            reason = "a frame is not what it was when it was encoded"
        if reason:
            # Its files go before others are made beside them.
            self.close()
            self.join()
        served = [] if reason else [draft for draft in drafts if self._serve(draft, plan, workspace, stop)]
        if len(served) < len(drafts):
            reason = reason or "the policy, or what is known of the run, has changed"
            self._observer.say(self._run.name, f"what was encoded while it went on is thrown away: {reason}", level="debug")
        return {(draft.plan.width, draft.plan.height): self._thumbnails[draft.plan.width, draft.plan.height] for draft in served}

    def _serve(self, draft: Draft, plan: RenderPlan, workspace: Workspace, stop: threading.Event) -> bool:
        asked = (draft.plan, draft.digest, draft.tags)
        for own in self._drafts:
            if own.error is None and own.temporary is not None and own.folder == draft.folder:
                if own.digest == draft.digest and _stamp(own, draft, self._generation):
                    draft.temporary, draft.evidence = own.temporary, own.evidence
                    self._workspace.keep(own.temporary)
                    workspace.adopt(own.temporary)
                elif not self._retime(own, draft, plan, workspace, stop):
                    continue
                if own.lister is not None:
                    self._workspace.leave(own.lister)
                    workspace.own(own.lister)
                draft.place, draft.asked, draft.lister, own.temporary = own.place, asked, own.lister, None
                return True
        return False

    def _retime(self, own: Draft, draft: Draft, plan: RenderPlan, workspace: Workspace, stop: threading.Event) -> bool:
        """Make *draft* of an encode that was to have more images, by giving its pictures other times; False where that cannot be."""
        assert self._plan is not None
        assert own.temporary is not None
        names = [frame.name for frame in plan.frames]
        if names != [frame.name for frame in self._plan.frames[: len(names)]] or not outlives(draft.plan, plan.policy):
            return False
        evidence = own.evidence
        found = retimed(own.plan, draft.plan, made=evidence.pictures, images=len(names)) if evidence else None
        if evidence is None or found is None:
            return False
        now, pace = found
        digest = plan_digest(plan, now)
        said = {key: value.replace(draft.digest, digest) for key, value in draft.tags.items()}
        apple = draft.plan.codec.tags == "mp4" and plan.policy.metadata.mp4 == "apple"
        tagged = workspace.file(draft.folder, ".ffmetadata")
        target = workspace.file(draft.folder, draft.plan.codec.suffix)
        store.write_file(tagged, metadata.ffmetadata(metadata.apple_tags(said) if apple else said).encode("utf-8"))
        argv = graph.retimed_argv(
            now, pace, ffmpeg_path=self._ffmpeg, source=str(own.temporary), destination=str(target), metadata=str(tagged), apple=apple
        )
        self._observer.say(self._run.name, f"{draft.label}: other times: {shlex.join(argv)}", level="debug")
        try:
            ran = verify.run(argv, stop)
        except RunError:
            return False
        if ran.returncode or not target.exists():
            return False
        draft.plan, draft.digest, draft.tags, draft.temporary = now, digest, said, target
        draft.evidence = replace(evidence, retimed=True)
        return True

    # --- what its thread does -------------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        system.background_thread(self._nice)
        try:
            self._encode()
        except Interrupted:
            self.refused = self.refused or "it was called off"
        except StepwatchError as error:
            self.refused = error.message
        except Exception as error:  # noqa: BLE001
            # A mistake of ours costs the run its head start, and nothing else.
            _log.debug("live encode of run %s", self._run.name, exc_info=True)
            self.refused = f"stepwatch made a mistake: {type(error).__name__}: {error}"
        self._over.set()
        self._news()
        if not self.refused:
            self._released.wait()
        # Somebody else may be about to write into an output folder that was made here; empty, it is in nobody's way.
        self._workspace.keep_folders()
        with self._workspace, self._changed:
            if self._begun and not self._claimed:
                self._call_off()

    def _encode(self) -> None:
        with self._changed:
            if not self._claimed:
                self._begin()
                self._begun = True
        ffmpeg = self._ffmpeg = self._find_ffmpeg()
        policy = self._resolved.policy
        run, survey = self._promised.run, self._promised.survey
        plan = plan_render(run, survey, policy, encoders=capabilities(ffmpeg).encoders, longest=self._resolved.longest, incomplete=False)
        self._resolved.require_places()
        self._plan = plan
        self._outlives = any(outlives(output, policy) for output in plan.outputs)
        places = {frame.name: number for number, frame in enumerate(plan.frames)}
        size = (survey.facts[0].width * plan.scale, survey.facts[0].height * plan.scale)
        with contextlib.ExitStack() as stack:
            reader = frames.Reader(run.key.folder)
            passes = Passes(
                plan, reader=reader, ffmpeg=ffmpeg, digests={}, workspace=self._workspace, observer=self._observer, stop=self._stop, live=True
            )
            for frame in self._arriving():
                image = None
                if frame.name in places:
                    decoded = frames.decode(run.key.folder, frame, scale=plan.scale)
                    image, self._digests[frame] = decoded.image, decoded.digest
                    if image.size != size:
                        raise RunError("frame {} is {}x{}, and {}x{} was promised".format(printable(frame.name), *image.size, *size))
                else:
                    self._digests[frame] = frames.digest(run.key.folder, frame)
                self.surveyed[frame] = frames.survey_one(run, frame, number=self.fed)
                # Not before its first frame is proved: no ffmpeg is started for a size that a sidecar has only made up.
                if not self._drafts:
                    # What the visit has to load for a name it need not load when somebody waits for the animation.
                    output_stem("{run}", {"run": run.name}, incomplete=False)
                    self._drafts = self._draft(plan, frame)
                    passes.begin(self._drafts, stack)
                if image is not None:
                    passes.give(places[frame.name], image)
                if all(draft.error is not None for draft in self._drafts):
                    raise next(draft.error for draft in self._drafts if draft.error is not None)
            given = sum(frame.name in places for frame in self._run.frames[: self.fed])
            self._thumbnails = passes.end(images=given if given < len(plan.frames) else None)

    def _arriving(self) -> Iterator[Frame]:
        """The promised frames, in their order, each as soon as it is there; ends with the last, or with the run where that leaves something of worth.

        Raises RunError when the promise is broken.
        """
        while self.fed < len(self._run.frames):
            with self._changed:
                self._changed.wait_for(lambda: self._latest is not None or self._stop.is_set())
                latest, self._latest = self._latest, None
            if self._stop.is_set() or latest is None:
                raise Interrupted("called off")
            run, ended = latest
            early = ended_early(self._run, run) or ended
            coming = arrived(self._run, run, self.fed)
            broken = differs(self._run, run, self.fed)
            # What lies behind a hole would be waited for in vain.
            if early and not (self._outlives and self.fed + len(coming) == len(run.frames)):
                broken = broken or early
            if broken:
                raise RunError(broken)
            for frame in coming:
                yield frame
                known = self._run.frames
                self._run = replace(self._run, frames=(*known[: self.fed], frame, *known[self.fed + 1 :]))
                self.fed += 1
                if self._latest is not None:
                    break
            if early and self.fed == len(run.frames):
                return

    def _draft(self, plan: RenderPlan, first: Frame) -> list[Draft]:
        """What the outputs of *plan* will be, as far as the first frame tells."""
        run = self._promised.run
        texts = frames.survey(replace(run, frames=(first,))).texts
        hints = {"seed": run.seed_hint, "prompt": run.prompt_hint}
        facts = metadata.gather(run.sidecar, {**texts, **store.read_workflow(run)}, hints=hints)
        drafts = []
        for output, folder in zip(plan.outputs, self._resolved.output_dirs, strict=True):
            digest = plan_digest(plan, output)
            identity = metadata.Identity(run=run.run_id, generation=self._generation, plan=digest, version=__version__, frames=len(plan.frames))
            said = metadata.output_tags(facts, include=plan.policy.metadata.include, author=plan.policy.metadata.author, identity=identity)
            drafts.append(Draft(plan=output, folder=folder, stem="", tags=said, digest=digest))
        return drafts


class Lives:
    """The runs of a daemon that are encoded while they go on. For one thread."""

    def __init__(self) -> None:
        self._lives: dict[RunKey, Live] = {}
        self._leaving: list[Live] = []

    def __len__(self) -> int:
        return len(self._lives)

    def get(self, key: RunKey) -> Live | None:
        return self._lives.get(key)

    def add(self, key: RunKey, live: Live) -> None:
        self._lives[key] = live

    def end(self, key: RunKey) -> bool:
        """Let go what was encoded of a run, if anything was; what is worth something has been taken over by then."""
        live = self._lives.pop(key, None)
        if live is None:
            return False
        live.close()
        # As a rule it has nothing left to do but to remove its files, and whoever sees the run at rest expects them to be gone.
        live.join(PATIENCE)
        self._leaving = [one for one in self._leaving if not one.gone] + [live]
        return True

    def end_all(self) -> None:
        """End them all, and wait until nothing is left of them."""
        for key in list(self._lives):
            self.end(key)
        for live in self._leaving:
            live.join()

    def refused(self) -> list[tuple[RunKey, str]]:
        """Those that were given up, each with why."""
        return [(key, live.refused) for key, live in self._lives.items() if live.refused]


def _stamp(own: Draft, draft: Draft, generation: str) -> bool:
    """Make a file say what *draft* has to say, which is what it says already but for its run's generation; False when that is not so."""
    assert own.temporary is not None
    if draft.plan.codec.tags == "embedded":
        return True  # It says nothing yet.
    said = metadata.read_identity(draft.tags)
    if said is None or {key: value.replace(generation, said.generation) for key, value in own.tags.items()} != dict(draft.tags):
        return False
    # As many bytes as before, so that nothing in the file moves.
    wrong, right = generation.encode(), said.generation.encode()
    try:
        with own.temporary.open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
            at = content.find(wrong)
            found = at >= 0
            while at >= 0:
                content[at : at + len(wrong)] = right
                at = content.find(wrong, at + len(wrong))
            return found and len(wrong) == len(right)
    except (OSError, ValueError):
        return False
