"""What makes the pictures between the images, of ``mci`` before they are encoded, of cross-fades afterwards; and what shares out pictures.

Theory of operation. For ``mci`` there is ffmpeg's ``minterpolate`` in several processes, or optical flow. ``minterpolate`` works in one thread, and
nearly all of its time goes into the pictures that it makes, hardly any into the motion that it looks for. So every process gets all images, finds
the same motion in them, and makes every n-th picture only: the rate it is asked for is an n-th of the output's, and shifted. Taken from one process
after the other, the pictures are those that a single process would make, to the bit, and nothing has to be joined. `Flow` makes its pictures in
threads of ours, for OpenCV lets them work side by side, and asks ffmpeg for the planes of the images only. `Apart` shares out in the same way what
can be finished picture by picture: those of a gif, whose time goes into the search for the nearest colours, and of a webp. `Woven` has an ffmpeg
encode the ends of cross-fades, and `core.weaving` write what is between them: what it passes on is encoded already.

All of them take images with ``write``, like the `Encoder` to which they pass on pictures, and a thread of their own does that. No more than a few
images and pictures wait anywhere, however long the run is.
"""

from __future__ import annotations

import os
import struct
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Protocol, Self

from stepwatch import flow, graph
from stepwatch.core.plan import OutputPlan
from stepwatch.core.weaving import Unasked, Weave
from stepwatch.encoder import PATIENCE, Encoder, Filter, wall_limit
from stepwatch.errors import EncodeError, EnvironmentFault, StepwatchError, UnwovenError

BYTES_A_PIXEL = 340
"""What one ``minterpolate`` keeps in memory for each pixel of a picture."""
PALETTE_BYTES = 256 * 4
"""Bytes of a palette."""
RIFF_HEAD = 8
BYTES_APART = 48
"""What one ffmpeg keeps that makes pictures apart, of a palette's colours or as webp."""
MOST_BYTES = 2 << 30
"""What all of them together may keep, if that allows for more than one."""


class Feed(Protocol):
    """Where the images of one output go: an encoder, or what makes pictures for it."""

    def write(self, image: bytes) -> None: ...

    def finish(self) -> None: ...


class Maker:
    """Makes the pictures of one output out of its images, with the help of some ffmpegs. Use as a context manager.

    *encoder* takes *count* pictures when all goes well; *size* are the bytes of each that an ffmpeg gives, None: it gives something else.
    """

    def __init__(
        self,
        plan: OutputPlan,
        encoder: Encoder,
        commands: Sequence[Sequence[str]],
        *,
        count: int,
        size: int | None,
        stop: threading.Event,
        on_line: Callable[[str], None] | None,
    ) -> None:
        self._plan = plan
        self._encoder = encoder
        self._count = count
        self._size = size
        self._passed_on = 0
        self._failed: Filter | None = None
        self._error: StepwatchError | None = None
        self._over = threading.Event()
        self.commands = tuple(map(tuple, commands))
        """The argument lists of the ffmpegs that were started."""
        self._filters: list[Filter] = []
        self._thread = threading.Thread(target=self._work, name="motion", daemon=True)
        try:
            for argv in self.commands:
                self._filters.append(Filter(argv, size=size, on_line=on_line, stop=stop, limit=wall_limit(self._count)))
            self._thread.start()
        except RuntimeError as error:
            self._end()
            raise EnvironmentFault("no more threads can be started", hint="raise the limit on processes") from error
        except BaseException:
            self._end()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def write(self, image: bytes) -> None:
        """Give the next image of the timeline (rgb24); waits while there is enough to do. Raises Interrupted, EncodeError (hung)."""
        for one in self._filters:
            one.write(image)

    @property
    def failed(self) -> bool:
        """Whether an ffmpeg that comes before the encoder has left off too early."""
        return self._failed is not None

    def finish(self) -> None:
        """Wait until every picture is made and encoded; raises whatever went wrong, here or with the encoder."""
        for one in self._filters:
            one.close()
        while self._thread.is_alive():
            self._thread.join(0.2)
            for one in self._filters:
                one.check()
        if self._error is not None:
            raise self._error
        if self._failed is not None:
            self._failed.finish()
        if self._failed is None:
            self._encoder.finish()
        if self._passed_on == self._count:
            # What they still have to say is waited for while the file is being finished.
            for one in self._filters:
                one.finish()
        if self._passed_on < self._count:
            raise EncodeError(f"only {self._passed_on} of {self._count} pictures were made of the images", hint="run again with -v")

    def _pictures(self) -> Iterator[tuple[bytes, int]]:
        """Every picture in its order, one or some at a time, with how many; ends early, with `_failed` set, when an ffmpeg has no more to give.

        Here: one from each after the other.
        """
        for number in range(self._count):
            turn = number % len(self._filters)
            picture = self._next(turn)
            if picture is None:
                self._failed = self._filters[turn]
                return
            yield picture, 1

    def _next(self, turn: int) -> bytes | None:
        """The next picture of one of them; None when it has no more to give."""
        return self._filters[turn].read()

    def _work(self) -> None:
        """Pass the pictures on to the encoder, until all are made or anything fails."""
        try:
            for pictures, count in self._pictures():
                self._encoder.write(pictures, count)
                self._passed_on += count
                if self._over.is_set() or not self._encoder.running:
                    break
        except StepwatchError as error:
            self._error = error
        finally:
            for one in self._filters:
                one.discard()
                if self._passed_on < self._count and one is not self._failed:
                    one.kill()  # So that nobody waits for what is not wanted any more.

    def _end(self) -> None:
        self._over.set()
        for one in self._filters:
            one.kill()
        for one in self._filters:
            one.abort()
        if self._thread.ident is not None:
            self._thread.join(PATIENCE)


def _picture_size(plan: OutputPlan) -> int:
    return sum(width * height for width, height in graph.plane_sizes(plan))


class Parts(Maker):
    """``minterpolate`` in several processes, which share out the pictures among themselves."""

    def __init__(
        self,
        plan: OutputPlan,
        encoder: Encoder,
        *,
        ffmpeg: str,
        stop: threading.Event,
        on_line: Callable[[str], None] | None = None,
        parts: int | None = None,
    ) -> None:
        parts = parts or parts_for(plan, processors(), BYTES_A_PIXEL)
        commands = [graph.motion_argv(plan, ffmpeg_path=ffmpeg, part=part, parts=parts) for part in range(parts)]
        super().__init__(plan, encoder, commands, count=plan.timeline.pictures, size=_picture_size(plan), stop=stop, on_line=on_line)


class Apart(Maker):
    """Pictures that can be finished each by itself, by several processes that share them out; *encoder* puts them together."""

    def __init__(
        self,
        plan: OutputPlan,
        encoder: Encoder,
        *,
        ffmpeg: str,
        stop: threading.Event,
        palette: str | None,
        on_line: Callable[[str], None] | None = None,
    ) -> None:
        parts = parts_for(plan, processors(), BYTES_APART)
        commands = [graph.apart_argv(plan, ffmpeg_path=ffmpeg, palette=palette, part=part, parts=parts) for part in range(parts)]
        size = None if palette is None else plan.width * plan.height + PALETTE_BYTES
        self._rest = [bytearray() for _ in commands]
        """What has come of each one's next picture."""
        super().__init__(plan, encoder, commands, count=plan.pictures, size=size, stop=stop, on_line=on_line)

    def _next(self, turn: int) -> bytes | None:
        if self._size is not None:
            return super()._next(turn)
        rest = self._rest[turn]
        # A RIFF file says how long it is behind the eight bytes of its beginning.
        while len(rest) < RIFF_HEAD or len(rest) < RIFF_HEAD + int.from_bytes(rest[4:RIFF_HEAD], "little"):
            data = self._filters[turn].read()
            if data is None:
                return None
            rest += data
        end = RIFF_HEAD + int.from_bytes(rest[4:RIFF_HEAD], "little")
        picture = bytes(rest[:end])
        del rest[:end]
        return picture


class Flow(Maker):
    """Optical flow between each two images, by threads that share out the pictures among themselves."""

    def __init__(
        self, plan: OutputPlan, encoder: Encoder, *, ffmpeg: str, stop: threading.Event, on_line: Callable[[str], None] | None = None
    ) -> None:
        commands = [graph.planes_argv(plan, ffmpeg_path=ffmpeg)]
        super().__init__(plan, encoder, commands, count=plan.timeline.pictures, size=_picture_size(plan), stop=stop, on_line=on_line)

    def _images(self) -> Iterator[flow.Planes]:
        sizes = graph.plane_sizes(self._plan)
        for _ in range(self._plan.timeline.positions):
            data = self._filters[0].read()
            if data is None:
                self._failed = self._filters[0]
                return
            yield flow.Planes(data, sizes)

    def _pictures(self) -> Iterator[tuple[bytes, int]]:
        threads = processors()
        timeline = self._plan.timeline
        mixes = deque(timeline.picture(timeline.head + number) for number in range(timeline.pictures))
        with ThreadPoolExecutor(threads, thread_name_prefix="flow") as pool:
            making: deque[Future[bytes]] = deque()
            try:
                for position, (first, second) in enumerate(pairwise(self._images())):
                    pair = flow.Pair(first, second)
                    last = position + 2 == timeline.positions
                    while mixes and (mixes[0].first == position or last):
                        mix = mixes.popleft()
                        # Of the last image there are pictures too, which move no more.
                        weight = float(mix.weight) if mix.first == position else 1.0
                        making.append(pool.submit(pair.picture, weight))
                        while len(making) > 2 * threads:
                            yield making.popleft().result(), 1
                while making:
                    yield making.popleft().result(), 1
            finally:
                for one in making:
                    one.cancel()


class Woven(Maker):
    """Cross-fades that no encoder has to make: *encoder*, which is given what is encoded already, only puts it into a file."""

    def __init__(
        self,
        plan: OutputPlan,
        encoder: Encoder,
        *,
        ffmpeg: str,
        stop: threading.Event,
        on_line: Callable[[str], None] | None = None,
        threads: int | None = None,
    ) -> None:
        assert plan.fades is not None
        self._weave = Weave(plan.fades, plan.fps, plan.codec.stream)
        self._given = 0
        commands = [graph.anchors_argv(plan, ffmpeg_path=ffmpeg, threads=threads)]
        super().__init__(plan, encoder, commands, count=plan.pictures, size=None, stop=stop, on_line=on_line)

    def write(self, image: bytes) -> None:
        super().write(image)
        self._given += 1

    def end_with(self, image: bytes) -> None:
        """The run has ended early: *image*, the last that came, is one more picture, and the last."""
        assert self._plan.fades is not None
        if self._given < len(self._plan.fades.anchors):
            self._weave.end_with(self._given)
            self._count = self._plan.fades.anchors[self._given - 1] + 2
            self.write(image)

    def _pictures(self) -> Iterator[tuple[bytes, int]]:
        anchors = self._filters[0]
        while self._weave.made < self._count:
            data = anchors.read()
            if data is None:
                # Whether it has left off or died, and why, is for itself to say.
                self._failed = anchors
                return
            try:
                made = list(self._weave.take(data))
            except Unasked as error:
                raise EncodeError(f"what the encoder has made are not the anchors of cross-fades: {error}", hint="run again with -v") from error
            except (ValueError, LookupError, struct.error) as error:
                raise UnwovenError(f"what the encoder has made cannot be woven into cross-fades: {error}", hint="run again with -v") from error
            if made:
                yield b"".join(made), len(made)


def parts_for(plan: OutputPlan, processors: int, bytes_a_pixel: int) -> int:
    """Among how many processes the work is shared out: one for each processor, as far as memory and pictures go round."""
    fitting = MOST_BYTES // (bytes_a_pixel * plan.width * plan.height)
    return max(1, min(processors, fitting, plan.pictures))


def processors() -> int:
    """How many processors this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # Not on this system.
        return os.cpu_count() or 1
