"""One ffmpeg process: find it, feed it, follow it, stop it.

Its exit code, and everything it says of itself, is a reason to fail a render and never a reason to trust one: `verify` looks at the file.
"""

from __future__ import annotations

import contextlib
import functools
import os
import queue
import re
import shutil
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn, Self

from stepwatch import system
from stepwatch.core.naming import printable
from stepwatch.errors import EncodeError, EnvironmentFault, Interrupted, MissingToolError

QUEUED_IMAGES = 2
"""Images waiting for each ffmpeg: enough to keep it busy, few enough to keep memory flat."""
MOST_AT_ONCE = 1 << 18
"""Bytes of a stream that are handed on together."""
KEPT_LINES = 60
"""Complaints on ffmpeg's stderr that are remembered; a flood of them is drained and forgotten."""
LONGEST_LINE = 500
ANSWER = 30.0
"""Seconds that an ffmpeg may take to say what it can do."""
NO_PROGRESS = 120.0
"""Seconds without a byte taken or a picture made after which ffmpeg counts as hung."""
SHORTEST_LIMIT = 600.0
LONGEST_PICTURE = 30.0
"""Seconds; no machine in its right mind needs longer for one picture."""
PATIENCE = 3.0
"""Seconds that the threads around an ended ffmpeg get to notice it."""
LONGEST_LOOK = 0.5
"""Seconds between two looks at ffmpeg; what is longer, this process has slept, was stopped or had other work."""

_LEVEL = re.compile(r"^((?:\[[^\]]* @ 0x[0-9a-f]+\] )*)\[(\w+)\] ")
_COMPLAINTS = frozenset({"panic", "fatal", "error", "warning"})
_CHATTER = frozenset({"verbose", "debug", "trace"})
_READ = re.compile(r"Input stream #0:0 \(video\): (\d+) packets read")

_ENVIRONMENT = {
    "No space left on device": "the disk is full",
    "Disk quota exceeded": "the disk quota is used up",
    "Read-only file system": "the file system is read-only",
    "Input/output error": "the disk reports an error",
}


class Capabilities:
    """What one ffmpeg binary can do. It is asked one question at a time, for each costs a start of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.encoders = frozenset(line.split()[1] for line in _ask(path, "-encoders").splitlines() if re.match(r"\s*[VAS][.FSXBD]{5} \S", line)) - {
            "="
        }

    @functools.cached_property
    def filters(self) -> frozenset[str]:
        return frozenset(line.split()[1] for line in _ask(self.path, "-filters").splitlines() if "->" in line and len(line.split()) > 2) - {"="}

    @functools.cached_property
    def version(self) -> str:
        said = _ask(self.path, "-version").split("\n", 1)[0]
        matched = re.search(r"version (\S+)", said)
        return matched.group(1) if matched else said[:60]


def find_ffmpeg(setting: str = "auto") -> str:
    """The ffmpeg to use: *setting* when it is a path or a name, else STEPWATCH_FFMPEG, the bundled one, the one on PATH.

    Raises MissingToolError when the one that was asked for, or every one of them, is missing.
    """
    wanted, asker = (setting, "the configuration") if setting != "auto" else (os.environ.get("STEPWATCH_FFMPEG", ""), "STEPWATCH_FFMPEG")
    if wanted:
        found = shutil.which(os.path.expanduser(wanted))
        if found is None:
            raise MissingToolError(
                f"{asker} names the ffmpeg {wanted}, and there is no such program",
                hint="correct the path, or remove the setting to use the bundled ffmpeg",
            )
        return found
    try:
        import imageio_ffmpeg

        # Asking the package would also look at PATH and conda; only the binary that it ships is meant here.
        folder = os.path.join(os.path.dirname(imageio_ffmpeg.__file__), "binaries")
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if name.startswith("ffmpeg") and os.access(path, os.X_OK):
                return path
    except (ImportError, OSError):
        pass
    found = shutil.which("ffmpeg")
    if found is None:
        raise MissingToolError(
            "no ffmpeg: STEPWATCH_FFMPEG is not set, the package imageio-ffmpeg has none for this platform, and PATH has none",
            hint="install ffmpeg with your system's package manager, or set STEPWATCH_FFMPEG",
        )
    return found


@functools.lru_cache(maxsize=8)
def capabilities(ffmpeg: str) -> Capabilities:
    """Ask the binary what it can do; MissingToolError when it does not run."""
    return Capabilities(ffmpeg)


def _ask(ffmpeg: str, question: str) -> str:
    hint = "`stepwatch doctor` shows which ffmpeg is used and why"
    try:
        process = system.start([ffmpeg, "-hide_banner", question])
    except MissingToolError as error:
        reason = error.message.rpartition(": ")[2]
        raise MissingToolError(f"{ffmpeg} cannot be run as ffmpeg: {reason}", hint=hint) from error
    with process:
        try:
            answer, complaint = process.communicate(timeout=ANSWER)
        except subprocess.TimeoutExpired:
            system.end_group(process)
            raise MissingToolError(f"{ffmpeg} cannot be run as ffmpeg: does not answer", hint=hint) from None
    if process.returncode:
        said = complaint.decode("utf-8", "replace").strip()
        said = said.rpartition(": " if said.startswith(system.STARTER) else "\n")[2]
        reason = printable(said[:200]) or f"it stops with status {process.returncode}"
        raise MissingToolError(f"{ffmpeg} cannot be run as ffmpeg: {reason}", hint=hint)
    return answer.decode("utf-8", "replace")


def wall_limit(pictures: int) -> float:
    """Seconds that an ffmpeg may keep us waiting for an encode of so many pictures, whatever progress it reports."""
    return max(SHORTEST_LIMIT, LONGEST_PICTURE * pictures)


class Encoder:
    """A running ffmpeg that takes images on stdin.

    ``write`` hands over one image and returns at once unless the queue is full. After the process has gone, ``write`` does nothing:
    ``finish`` tells what happened. Use as a context manager; leaving it ends the process whatever state it is in. The process also ends
    with the thread that made this object.

    *limit* is how many seconds it may keep us waiting in all, see `wall_limit`; *pass_fds* are descriptors that *argv* writes to.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        on_progress: Callable[[int, float | None], None] | None = None,
        on_line: Callable[[str], None] | None = None,
        stop: threading.Event | None = None,
        limit: float = SHORTEST_LIMIT,
        pass_fds: Collection[int] = (),
    ) -> None:
        self.argv = tuple(argv)
        self._on_progress = on_progress
        self._on_line = on_line
        self._stop = stop or threading.Event()
        self._no_progress = NO_PROGRESS
        self._lines: deque[str] = deque(maxlen=KEPT_LINES)
        self._images: queue.Queue[bytes | None] = queue.Queue(QUEUED_IMAGES)
        self._limit = limit
        self._waited = 0.0
        self._looked = time.monotonic()
        self._moved = 0.0
        self._first = ""
        self._given = 0
        self._read: int | None = None
        self._process = system.start(self.argv, stdin=subprocess.PIPE, env=_environment(), pass_fds=pass_fds)
        self._threads = [
            threading.Thread(target=work, name=f"ffmpeg-{work.__name__.strip('_')}", daemon=True)
            for work in (self._write_images, self._read_output, self._read_lines)
        ]
        self._progress = self._threads[1]
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as error:
            self._threads = [thread for thread in self._threads if thread.ident is not None]
            self.abort()
            raise EnvironmentFault("ffmpeg cannot be fed: no more threads can be started", hint="raise the limit on processes") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def stderr(self) -> str:
        """The end of what ffmpeg complained of."""
        return "\n".join(self._lines)

    def write(self, image: bytes, count: int = 1) -> None:
        """Queue the pixels of one image (rgb24, rows from the top); waits while ffmpeg is busy. Raises Interrupted, EncodeError (hung).

        What is encoded already may be several pictures at once, *count* of them.
        """
        while self.running:
            try:
                self._images.put(image, timeout=0.2)
                self._given += count
                self._moved = self._waited  # It had nothing to do while the image was made.
                return
            except queue.Full:
                self._check()

    def finish(self) -> None:
        """Close stdin and wait for the end; raises EncodeError or EnvironmentFault unless ffmpeg says that all went well.

        MissingToolError, when it went away before it could begin.
        """
        closed = False
        while self.running:
            if not closed:
                with contextlib.suppress(queue.Full):
                    self._images.put(None, timeout=0.2)
                    closed = True
            else:
                # Its stdout ends when it does; Python's own wait for a process looks every so often only.
                self._progress.join(0.2)
                if not self._progress.is_alive():
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        self._process.wait(0.2)
            self._check()
        self._join()
        code = self._process.returncode
        if not code and self._read is not None and self._read != self._given:
            # The last images of a run may hardly differ; that one of them is missing would not always be seen in the file.
            raise EncodeError(
                f"ffmpeg read {self._read} of the {self._given} images that it was given",
                hint="run again with -v to see all it says",
                stderr=self.stderr,
            )
        if not code and any(words in self.stderr for words in _ENVIRONMENT):
            # With two containers to write to, older ffmpeg goes on with the one that is left.
            self._fail("ffmpeg said that all went well")
        if code:
            self._fail(f"ffmpeg stopped with status {code}" if code > 0 else f"ffmpeg was killed by signal {-code}")

    def abort(self) -> None:
        """End the process, its whole group, and wait for its threads; harmless when it has ended by itself."""
        self.kill()
        self._process.wait()
        self._join()

    def kill(self) -> None:
        """End the whole process group at once, without a chance to say good-bye: what it has written is thrown away anyway."""
        system.end_group(self._process)

    def _check(self) -> None:
        if self._stop.is_set():
            self.abort()
            raise Interrupted("stopped by the user")
        now = time.monotonic()
        # Only time in which we wait for ffmpeg, and are awake, is held against it.
        self._waited += min(now - self._looked, LONGEST_LOOK)
        self._looked = now
        if self._waited - self._moved > self._no_progress:
            self._give_up(f"ffmpeg made no progress for {self._no_progress:.0f} s and was ended")
        if self._waited > self._limit:
            self._give_up(f"ffmpeg had not finished after {self._limit:.0f} s and was ended")

    def _give_up(self, what: str) -> NoReturn:
        self.abort()
        raise EncodeError(what, hint="run again with -v to see what it says", stderr=self.stderr)

    def _fail(self, what: str) -> None:
        said = self.stderr
        if self._first.startswith(system.STARTER):
            raise MissingToolError(f"{self.argv[0]} cannot be started: {self._first.rpartition(': ')[2]}", hint="run `stepwatch doctor`")
        for words, meaning in _ENVIRONMENT.items():
            if words in said:
                raise EnvironmentFault(f"{meaning}: {what}", hint="make room or repair it, then render again: the frames are untouched")
        # The first complaint names the cause; those behind it are about its consequences.
        raise EncodeError(f"{what}: {self._first or 'it said nothing'}", hint="run again with -v to see its command and all it says", stderr=said)

    def _join(self) -> None:
        # The writer may wait for an image that never comes.
        with contextlib.suppress(queue.Full):
            self._images.put_nowait(None)
        for thread in self._threads:
            thread.join(PATIENCE)
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError, ValueError):
                    pipe.close()

    def _write_images(self) -> None:
        pipe = self._process.stdin
        assert pipe is not None
        descriptor = pipe.fileno()
        system.widen(descriptor)
        try:
            while (image := self._images.get()) is not None:
                rest = memoryview(image)
                while rest:
                    rest = rest[os.write(descriptor, rest[: 1 << 20]) :]
                    self._moved = self._waited
        except OSError:
            pass  # ffmpeg has all it wants, or is gone: `finish` tells which, and the file is judged by itself.
        finally:
            with contextlib.suppress(OSError):
                pipe.close()
            while self.running:  # Let nobody wait for a queue that is no longer read.
                with contextlib.suppress(queue.Empty):
                    self._images.get(timeout=0.1)

    def _read_output(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        made, seen, speed = 0, -1, None
        for raw in pipe:
            key, _, value = raw.decode("ascii", "replace").strip().partition("=")
            if key == "frame" and value.isdigit():
                made = int(value)
            elif key == "speed":
                with contextlib.suppress(ValueError):
                    speed = float(value.rstrip("x"))
            elif key == "progress":
                if made != seen:
                    seen, self._moved = made, self._waited
                if self._on_progress:
                    self._on_progress(made, speed)

    def _read_lines(self) -> None:
        pipe = self._process.stderr
        assert pipe is not None
        level = "info"
        while raw := pipe.readline(1 << 16):
            line = raw.decode("utf-8", "replace").rstrip()[:LONGEST_LINE]
            found = _LEVEL.match(line)
            if found:
                level = found[2]
            elif not line.startswith("  "):  # Else it goes on with what it said before, in a text of several lines.
                level = "error"  # Libraries that talk past ffmpeg do so when something is wrong.
            if found:
                line = found[1] + line[found.end() :]
            if counted := _READ.search(line):
                self._read = int(counted[1])
            if level in _COMPLAINTS:
                self._lines.append(line)
                if level != "warning":
                    self._first = self._first or line.strip()
            if self._on_line and level not in _CHATTER:
                self._on_line(line)


class Filter(Encoder):
    """A running ffmpeg that takes images on stdin and gives back pictures, of *size* bytes each, on stdout; None: whatever there is.

    It waits while nobody reads the pictures; from another thread, ``read`` takes them. Whoever has enough of them says so with ``discard``,
    without which ``finish`` may wait for ever.
    """

    def __init__(self, argv: Sequence[str], *, size: int | None, **how: Any) -> None:
        self._size = size
        self._pictures: queue.Queue[bytes | None] = queue.Queue(QUEUED_IMAGES)
        self._discarding = threading.Event()
        super().__init__(argv, **how)

    def read(self) -> bytes | None:
        """The next picture; None when there is none any more, for whatever reason."""
        return self._pictures.get()

    def close(self) -> None:
        """Tell ffmpeg that there are no more images. Raises like ``write``."""
        while self.running:
            try:
                self._images.put(None, timeout=0.2)
                return
            except queue.Full:
                self._check()

    def check(self) -> None:
        """Raise Interrupted when all is to stop, EncodeError when ffmpeg has made nothing for too long while it was waited for."""
        self._check()

    def discard(self) -> None:
        """From now on nobody reads: what ffmpeg still makes is thrown away."""
        self._discarding.set()

    def _join(self) -> None:
        self.discard()
        super()._join()

    def _read_output(self) -> None:
        pipe = self._process.stdout
        assert pipe is not None
        while picture := pipe.read1(MOST_AT_ONCE) if self._size is None else pipe.read(self._size):  # type: ignore[attr-defined]
            if self._size in (None, len(picture)):
                self._hand_over(picture)
            self._moved = self._waited
        self._hand_over(None)

    def _hand_over(self, picture: bytes | None) -> None:
        while not self._discarding.is_set():
            with contextlib.suppress(queue.Full):
                self._pictures.put(picture, timeout=0.1)
                return
        if picture is None:  # Its reader may be waiting still.
            with contextlib.suppress(queue.Empty):
                while True:
                    self._pictures.get_nowait()
            self._pictures.put(None)


def _environment() -> dict[str, str]:
    """What ffmpeg gets to see: no more than a program needs to start. SVT-AV1 talks by a variable of its own."""
    kept = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "TMPDIR", "TEMP", "TMP", "HOME")
    return {name: os.environ[name] for name in kept if name in os.environ} | {"SVT_LOG": "1", "LC_ALL": "C"}
