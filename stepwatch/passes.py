"""Passes over the frames of one run: each image decoded once, and fed to the ffmpegs of each output.

There is a pass for the palettes of gifs, one for all outputs, and more only for outputs that have to fit into ``max_size``. What comes out are
temporary files that nobody has verified yet; `rendering` does that, and publishes them.
"""

from __future__ import annotations

import contextlib
import functools
import shlex
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, Self

from PIL import Image

from stepwatch import frames, graph, motion, store, tags
from stepwatch.core import metadata
from stepwatch.core.fitting import Try, next_try
from stepwatch.core.naming import printable
from stepwatch.core.plan import OutputPlan, RenderPlan, output_size, plural, with_option
from stepwatch.core.timeline import Mix
from stepwatch.encoder import Encoder, wall_limit
from stepwatch.errors import (
    EncodeError,
    EnvironmentFault,
    FramesChangedError,
    Interrupted,
    RunError,
    SizeLimitError,
    StepwatchError,
    UnwovenError,
    VerifyError,
)
from stepwatch.verify import Evidence, Lister
from stepwatch.witness import Witness, can_witness

AHEAD = 2
"""Images that are decoded at once. That takes most of a render's time in this process; but each is large, and ffmpeg has work to do too."""
LARGE = 1 << 24
"""Pixels of an image beyond which there is no second one in memory for the sake of speed."""


class Observer(Protocol):
    """Who wants to know how a visit goes."""

    def say(self, run_name: str, sentence: str, *, level: str = "info") -> None: ...

    def progress(self, run_name: str, label: str, done: int, total: int, speed: float | None) -> None: ...

    def finished(self, run_name: str) -> None: ...


@dataclass(slots=True, kw_only=True)
class Draft:
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
    evidence: Evidence | None = None
    """What was seen of the file while it was made; None where nobody looked, so that all of it must still be verified."""
    lister: Lister | None = None
    """Waits for the file, if it is seen while it is made, to prove that it is that one."""
    best: tuple[Path, OutputPlan] | None = None
    """The largest file that fits so far."""
    earlier: tuple[str, ...] = ()
    """Names that a counter in the template has passed because they are taken."""
    published: Path | None = None
    again: bool = False
    """``published`` was there before this visit."""
    digest: str = ""
    asked: tuple[OutputPlan, str, Mapping[str, str]] | None = None
    """Plan, digest and tags before a live encode served it; None when none did."""
    place: tuple[int, int] | None = None
    """Device and inode of ``folder`` while it was written into."""

    @property
    def label(self) -> str:
        return self.plan.codec.name

    def begin_anew(self) -> None:
        """Forget what a live encode has served."""
        assert self.asked is not None
        self.plan, self.digest, self.tags = self.asked
        self.asked = self.temporary = self.evidence = self.lister = self.best = self.error = None


class Workspace:
    """The temporary files and folders that a visit makes; leaving it removes those that nobody has kept."""

    def __init__(self) -> None:
        self._files: set[Path] = set()
        self._folders: list[Path] = []
        self._listers: list[Lister] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for lister in self._listers:
            lister.abort()
        for path in list(self._files):
            self.remove(path)
        for folder in reversed(self._folders):
            with contextlib.suppress(OSError):  # Only while nothing is in it.
                folder.rmdir()

    def ensure(self, folder: Path) -> None:
        """Make *folder* and whatever is missing above it; EnvironmentFault when that cannot be."""
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        store.ensure_folder(folder)
        self._folders += reversed(missing)

    def file(self, folder: Path, suffix: str) -> Path:
        """A new hidden name in *folder*."""
        path = store.temporary_path(folder, suffix)
        self._files.add(path)
        return path

    def keep(self, path: Path) -> None:
        self._files.discard(path)

    def keep_folders(self) -> None:
        self._folders.clear()

    def adopt(self, path: Path) -> None:
        """Take over a temporary file that another workspace has kept."""
        self._files.add(path)

    def own(self, lister: Lister) -> None:
        """End it when all else is left behind, whatever it is at by then."""
        self._listers.append(lister)

    def leave(self, lister: Lister | None) -> None:
        """Another workspace owns it from now on."""
        self._listers = [one for one in self._listers if one is not lister]

    def remove(self, path: Path) -> None:
        store.remove_temporary(path)
        self._files.discard(path)


class _Feed:
    """Hands the images that one output wants to its encoder, or to what makes pictures of them for it, as they are decoded."""

    def __init__(self, work: _Work, images: _Images, sink: motion.Feed, witness: Witness | None) -> None:
        self.draft = work.draft
        self._images = images
        self.sink = sink
        self.witness = witness
        self._mixes = work.mixes()
        self._next: Mix | None = next(self._mixes, None)

    def advance(self, position: int) -> None:
        """*position* has been decoded: send every picture that was waiting for it."""
        while self._next is not None and self._last(self._next) <= position:
            self.sink.write(self._images.pixels(self._next, self.draft.plan))
            self._next = next(self._mixes, None)

    def finish(self, *, images: int | None = None) -> None:
        """Wait for the end of the encode, and of whoever watches it; raises what went wrong first. *images*: no more will come."""
        if images is not None and isinstance(self.sink, motion.Woven):
            # It was to be seen on its way to the next one; now it is what stays.
            self.sink.end_with(self._images.pixels(Mix(first=images - 1, second=images - 1, weight=Fraction(0)), self.draft.plan))
        try:
            self.sink.finish()
        except EncodeError as error:
            before_it = isinstance(self.sink, motion.Maker) and self.sink.failed
            if self.witness is not None and not before_it and "Broken pipe" in error.stderr:
                self.witness.finish()  # It had nobody left to write to, and this says why.
            raise
        if self.witness is not None:
            self.draft.evidence = self.witness.finish(images=images)

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
            thumbnails = self.thumbnails_of(output)
            shown = output.timeline.order[position]
            if not thumbnails[shown]:
                thumbnails[shown] = frames.thumbnail(sized)
        return self._sized[key]

    def thumbnails_of(self, output: OutputPlan) -> list[bytes]:
        """The thumbnails at an output's size, to be filled in as images are decoded."""
        return self.thumbnails.setdefault((output.width, output.height), [b""] * len(self._plan.frames))

    def pixels(self, mix: Mix, output: OutputPlan) -> bytes:
        first = self.sized(mix.first, output)
        if mix.pure:
            return first.tobytes()
        return Image.blend(first, self.sized(mix.second, output), float(mix.weight)).tobytes()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What one ffmpeg of a pass is to do."""

    draft: Draft
    argv: Callable[[int | None], list[str]]
    """Its arguments, given the descriptor that fragments go to."""
    label: str
    witnessed: bool = False
    sampled: bool = False
    """A few images say enough: it looks for colours."""

    def mixes(self) -> Iterator[Mix]:
        """What it wants to see, in order."""
        plan = self.draft.plan
        return plan.timeline.sample(graph.PALETTE_IMAGES) if self.sampled else plan.feed()


def _as_it_is(argv: list[str], _fragments: int | None) -> list[str]:
    return argv


class Passes:
    """Carries out one plan."""

    def __init__(
        self,
        plan: RenderPlan,
        *,
        ffmpeg: str,
        digests: Mapping[str, str],
        reader: frames.Reader,
        workspace: Workspace,
        observer: Observer,
        stop: threading.Event,
        verbose: bool = False,
        live: bool = False,
    ) -> None:
        """*live*: the run goes on, so that each ffmpeg gets one thread of the processor that it needs, and nothing waits for more of it to come."""
        self._live = live
        self._threads = 1 if live else None
        self._plan = plan
        self._ffmpeg = ffmpeg
        self._digests = digests
        self._reader = reader
        self._workspace = workspace
        self._observer = observer
        self._stop = stop
        self._verbose = verbose
        self._images = _Images(plan)
        self._feeds: list[_Feed] = []
        self._proved = False
        """Every chosen frame has been decoded once."""
        self.commands: list[tuple[str, ...]] = []
        """The argument lists of all ffmpegs that were started."""

    def render(self, drafts: Sequence[Draft]) -> Mapping[tuple[int, int], list[bytes]]:
        """Encode every draft into a temporary file that fits its limit; a draft that fails keeps its error. Returns the images' thumbnails.

        A draft that has its file already, from a live encode, only gets its tags. Raises FrameError for a frame that turns out damaged, RunError
        for one that changes meanwhile, Interrupted.
        """
        encoded = [draft for draft in drafts if draft.temporary is not None]
        rest = [draft for draft in drafts if draft.temporary is None]
        for draft in encoded:
            self._again(draft)
        for draft in rest:
            try:
                self._prepare(draft)
            except RunError as error:
                draft.error = error
        pending = [draft for draft in rest if draft.error is None]
        while pending:
            self._find_palettes([draft for draft in pending if draft.plan.codec.palette])
            ready = [draft for draft in pending if draft.error is None]
            self._encode(ready)
            pending = [draft for draft in ready if self._unwoven(draft) or (draft.error is None and self._again(draft))]
        return self._images.thumbnails

    # A run that goes on is encoded by these three, with the frames as they come.

    def begin(self, drafts: Sequence[Draft], stack: contextlib.ExitStack) -> None:
        """Start the ffmpegs of *drafts*, none of which needs a palette or a second try; they end with *stack*. A fault is the draft's error."""
        for draft in drafts:
            try:
                self._prepare(draft)
            except RunError as error:
                draft.error = error
        self._feeds = self._open(self._encodes([draft for draft in drafts if draft.error is None]), stack)

    def give(self, position: int, image: Image.Image) -> None:
        """Feed the image at a position of the timeline; they come in order."""
        self._give(position, image, self._feeds)

    def end(self, *, images: int | None = None) -> Mapping[tuple[int, int], list[bytes]]:
        """Wait until everything is encoded; returns the images' thumbnails. A fault is the draft's error.

        *images* is how many were given, where the plan is of more.
        """
        self._finish(self._feeds, images=images)
        return self._images.thumbnails

    def _prepare(self, draft: Draft) -> None:
        """Make the folder and write down the metadata for ffmpeg to read."""
        self._workspace.ensure(draft.folder)
        draft.place = store.identity_of(draft.folder)
        store.sweep_temporaries(draft.folder, time.time())
        if draft.plan.codec.tags != "embedded":
            draft.metadata = self._workspace.file(draft.folder, ".ffmetadata")
            apple = draft.plan.codec.tags == "mp4" and self._plan.policy.metadata.mp4 == "apple"
            said = metadata.apple_tags(draft.tags) if apple else draft.tags
            store.write_file(draft.metadata, metadata.ffmetadata(said).encode("utf-8"))

    def _find_palettes(self, drafts: Sequence[Draft]) -> None:
        if not drafts:
            return
        work = []
        for draft in drafts:
            draft.palette = self._workspace.file(draft.folder, ".png")
            argv = graph.palette_argv(draft.plan, ffmpeg_path=self._ffmpeg, destination=str(draft.palette))
            work.append(_Work(draft=draft, argv=functools.partial(_as_it_is, argv), label=f"{draft.label} palette", sampled=True))
        self._pass(work)

    def _encode(self, drafts: Sequence[Draft]) -> None:
        self._pass(self._encodes(drafts))

    def _encodes(self, drafts: Sequence[Draft]) -> list[_Work]:
        work = []
        for draft in drafts:
            draft.temporary = self._workspace.file(draft.folder, draft.plan.codec.suffix)
            argv = functools.partial(
                render_argv,
                self._plan,
                draft,
                draft.temporary,
                ffmpeg=self._ffmpeg,
                metadata_path=draft.metadata,
                palette=draft.palette,
                threads=self._threads,
                joined=self._apart(draft.plan),
            )
            label = draft.label if not draft.tries else f"{draft.label}, try {len(draft.tries) + 1}"
            work.append(_Work(draft=draft, argv=argv, label=label, witnessed=can_witness(draft.plan)))
        return work

    def _pass(self, work: Sequence[_Work]) -> None:
        """Decode each wanted image once, in the timeline's order, and feed it to one ffmpeg for each piece of *work*.

        One that fails closes its own pipe and keeps its error; the others go on. A damaged frame ends the pass (FrameError).
        """
        with contextlib.ExitStack() as stack:
            feeds = self._open(work, stack)
            order = self._plan.timeline.order
            wanted = _positions(work)
            # The first encode decodes every chosen frame, shown or not: none is called good that has not been proved whole.
            whole = not self._proved and not all(piece.sampled for piece in work)
            passing = wanted.union(range(len(self._plan.frames))) if whole else wanted
            with contextlib.closing(self._decoded((position, order[position]) for position in sorted(passing))) as decoded:
                for position, image in decoded:
                    if position in wanted:
                        self._give(position, image, feeds)
                    if not any(feed.draft.error is None for feed in feeds):
                        break
                else:
                    self._proved = self._proved or whole
            self._finish(feeds)

    def _decoded(self, places: Iterator[tuple[int, int]]) -> Generator[tuple[int, Image.Image]]:
        """Each position with its image decoded, in order; as many are decoded at once as there are processors for it, and no more wait."""
        width, height = self._plan.canvas
        ahead = min(AHEAD, motion.processors()) if width * height <= LARGE else 1
        with ThreadPoolExecutor(ahead, thread_name_prefix="decode") as pool:
            coming: deque[tuple[int, Future[Image.Image]]] = deque()
            try:
                while True:
                    for position, number in islice(places, ahead - len(coming)):
                        try:
                            coming.append((position, pool.submit(self._decode, number)))
                        except RuntimeError as error:  # What Python says when the system has no thread left.
                            raise EnvironmentFault(
                                "images cannot be decoded: no more threads can be started", hint="raise the limit on processes"
                            ) from error
                    if not coming:
                        return
                    if self._stop.is_set():
                        raise Interrupted("stopped by the user")
                    position, future = coming.popleft()
                    image = future.result()
                    del future  # It keeps the image for as long as it is kept itself.
                    yield position, image
                    del image
            finally:
                for _, future in coming:
                    future.cancel()

    def _open(self, work: Sequence[_Work], stack: contextlib.ExitStack) -> list[_Feed]:
        """Start what each piece of *work* needs, all of which ends with *stack* at the latest; what does not start is its draft's error."""
        feeds: list[_Feed] = []
        for piece in work:
            try:
                feeds.append(self._start(piece, stack))
            except StepwatchError as error:
                piece.draft.error = error
        return feeds

    def _give(self, position: int, image: Image.Image, feeds: Sequence[_Feed]) -> None:
        """Hand the image of one position to every ffmpeg that is still well."""
        self._images.add(position, image)
        for feed in feeds:
            if feed.draft.error is None:
                try:
                    feed.advance(position)
                except RunError as error:
                    feed.draft.error = error

    def _finish(self, feeds: Sequence[_Feed], *, images: int | None = None) -> None:
        for feed in feeds:
            if feed.draft.error is None and feed.witness is not None:
                # It starts while the encoder comes to its end; without it there is another way.
                with contextlib.suppress(StepwatchError):
                    feed.draft.lister = Lister(feed.draft.plan, ffmpeg=self._ffmpeg)
                    self._workspace.own(feed.draft.lister)
        for feed in feeds:
            if feed.draft.error is None:
                try:
                    feed.finish(images=images)
                except RunError as error:
                    feed.draft.error = error

    def _maker(self, draft: Draft, encoder: Encoder, label: str) -> motion.Maker | None:
        """What makes the pictures of this output, or some of them; None where its encoder does."""
        plan = draft.plan
        how: dict[str, Any] = {"ffmpeg": self._ffmpeg, "stop": self._stop, "on_line": self._line(label)}
        maker: motion.Maker | None = None
        if plan.fades:
            maker = motion.Woven(plan, encoder, threads=self._threads, **how)
        elif self._apart(plan):
            maker = motion.Apart(plan, encoder, palette=str(draft.palette) if plan.codec.palette else None, **how)
        elif plan.motion:
            maker = (motion.Flow if plan.motion == "flow" else motion.Parts)(plan, encoder, **how)
        for argv in maker.commands if maker else ():
            self.commands.append(argv)
            self._say(f"{label}: {shlex.join(argv)}", level="debug")
        return maker

    def _apart(self, plan: OutputPlan) -> bool:
        """Whether several ffmpegs make the pictures of this output; not while a run goes on, for the processors are the host's."""
        return plan.apart and not self._live

    def _start(self, work: _Work, stack: contextlib.ExitStack) -> _Feed:
        plan = work.draft.plan
        witness = None
        if work.witnessed:
            thumbnails = self._images.thumbnails_of(plan)
            texts = work.draft.metadata.stat().st_size if work.draft.metadata else 0
            how: dict[str, Any] = {"ffmpeg": self._ffmpeg, "stop": self._stop, "texts": texts, "at_once": self._live}
            witness = stack.enter_context(Witness(plan, thumbnails, **how))
        descriptor = witness.descriptor if witness is not None else None
        argv = work.argv(descriptor)
        self.commands.append(tuple(argv))
        self._say(f"{work.label}: {shlex.join(argv)}", level="debug")
        encoder = Encoder(
            argv,
            on_progress=self._progress(work.label, plan.pictures),
            on_line=self._line(work.label),
            stop=self._stop,
            limit=wall_limit(max(plan.pictures, len(self._plan.frames))),
            pass_fds=() if descriptor is None else (descriptor,),
        )
        stack.enter_context(encoder)
        if witness is not None:
            witness.release()
        maker = None if work.sampled else self._maker(work.draft, encoder, work.label)
        return _Feed(work, self._images, encoder if maker is None else stack.enter_context(maker), witness)

    def _decode(self, image: int) -> Image.Image:
        frame = self._plan.frames[image]
        decoded = self._reader.decode(frame, scale=self._plan.scale)
        if decoded.digest != self._digests.get(frame.name, decoded.digest):
            raise FramesChangedError(
                f"frame {printable(frame.name)} changed while it was being rendered", hint="render again when nothing writes into the folder"
            )
        return decoded.image

    def _unwoven(self, draft: Draft) -> bool:
        """Whether cross-fades have failed for what their encoder writes, which another version may do: then it gets another pass, and all pictures.

        An encoder may also let stand what changes by little from one anchor to the next, such as the end of a fade to black.
        """
        if not (draft.plan.fades and isinstance(draft.error, (UnwovenError, VerifyError))):
            return False
        self._say(f"{draft.label}: {draft.error.message}; all pictures are encoded instead", level="warning")
        if draft.temporary is not None:
            self._workspace.remove(draft.temporary)
        if draft.best is not None:
            self._workspace.remove(draft.best[0])
        draft.tries.clear()
        draft.plan, draft.error, draft.temporary, draft.best = draft.plan.unwoven(), None, None, None
        return True

    def _again(self, draft: Draft) -> bool:
        """Add the tags that ffmpeg cannot write, and decide whether the file must be made smaller: True asks for another pass."""
        assert draft.temporary is not None
        try:
            if draft.plan.codec.tags == "embedded":
                embedded = self._workspace.file(draft.folder, draft.plan.codec.suffix)
                tags.embed(draft.temporary, draft.plan.codec.name, draft.tags, embedded, duration=draft.plan.duration)
                self._workspace.remove(draft.temporary)
                draft.temporary = embedded
            size = draft.temporary.stat().st_size
        except RunError as error:
            draft.error = error
            return False
        except OSError as error:
            draft.error = EnvironmentFault(f"the rendered file cannot be read back: {error.strerror}")
            return False
        limit = draft.plan.max_size
        if limit is None:
            draft.best = (draft.temporary, draft.plan)
            return False
        return self._fit(draft, size, limit)

    def _fit(self, draft: Draft, size: int, limit: int) -> bool:
        assert draft.temporary is not None
        codec = draft.plan.codec
        option = codec.quality_option
        value = int(dict(draft.plan.encoding.options)[option]) if option else None
        full = output_size(self._plan.canvas, codec)
        draft.tries.append(Try(value=value, scale=draft.scale, size=size))
        if size <= limit and (draft.best is None or size > draft.best[0].stat().st_size):
            if draft.best is not None:
                self._workspace.remove(draft.best[0])
            draft.best = (draft.temporary, draft.plan)
        else:
            self._workspace.remove(draft.temporary)
        start = draft.tries[0].value
        following = None
        if size > limit or len(draft.tries) > 1:
            least = Fraction(codec.smallest, min(full))
            following = next_try(draft.tries, limit, start=start, coarsest=codec.coarsest, long_side=max(full), smallest_scale=least)
        if following is None:
            if draft.best is None:
                smallest = min(one.size for one in draft.tries)
                draft.error = SizeLimitError(
                    f"max_size {limit} bytes cannot be met: the smallest of {plural(len(draft.tries), 'encode')} has {smallest} bytes",
                    hint="raise max_size, or lower timeline.duration, timeline.fps or size.scale",
                )
            elif len(draft.tries) > 1:
                self._say(f"{codec.name}: {draft.best[0].stat().st_size} bytes fit into {limit} after {len(draft.tries)} encodes")
            return False
        new_value, new_scale = following
        encoding = with_option(draft.plan.encoding, option, new_value) if option and new_value is not None else draft.plan.encoding
        width, height = (max(2, round(side * new_scale)) for side in full)
        if codec.even:
            width, height = width + width % 2, height + height % 2
        if new_scale == 1:
            width, height = full
        draft.scale = new_scale
        draft.plan = replace(draft.plan, encoding=encoding, width=width, height=height)
        return True

    def _say(self, sentence: str, *, level: str = "info") -> None:
        self._observer.say(self._plan.run.name, sentence, level=level)

    def _progress(self, label: str, total: int) -> Callable[[int, float | None], None]:
        return lambda done, speed: self._observer.progress(self._plan.run.name, label, done, total, speed)

    def _line(self, label: str) -> Callable[[str], None] | None:
        if not self._verbose:
            return None
        return lambda line: self._say(f"ffmpeg ({label}): {line}", level="debug")


def render_argv(
    plan: RenderPlan,
    draft: Draft,
    destination: Path,
    fragments: int | None = None,
    *,
    ffmpeg: str,
    metadata_path: Path | str | None,
    palette: Path | str | None,
    threads: int | None = None,
    joined: bool = False,
) -> list[str]:
    """The arguments of the ffmpeg that makes the file of one output as it is planned now."""
    target: dict[str, Any] = {
        "ffmpeg_path": ffmpeg,
        "destination": str(destination),
        "metadata": str(metadata_path) if metadata_path and draft.plan.codec.tags != "embedded" else None,
        "apple": plan.policy.metadata.mp4 == "apple",
        "fragments": fragments,
    }
    if draft.plan.fades:
        return graph.woven_argv(draft.plan, **target)
    target["palette"] = str(palette) if palette and draft.plan.codec.palette else None
    return graph.render_argv(draft.plan, **target, threads=threads, joined=joined)


def _positions(work: Sequence[_Work]) -> set[int]:
    """Positions of the timeline that some of it wants to see."""
    mixes = chain.from_iterable(piece.mixes() for piece in work)
    return {position for mix in mixes for position in ((mix.first,) if mix.pure else (mix.first, mix.second))}
