"""A decoder that sees the packets of an encode while they are made.

The encoder hands each packet to two containers at once (`graph.render_argv`, *fragments*): the file, and fragments of the same kind in a pipe. At the
other end of that pipe a second ffmpeg decodes, strictly, and every picture is judged. When the encode ends, so do, a moment later, the decode and the
judgement; `verify.prove` then has only to show that the finished file holds the packets that were seen. A file in which anything is otherwise, from a
flipped bit to a lost last packet, is refused as it would be by a decode of the file itself.

::

    with Witness(plan, thumbnails, ffmpeg=ffmpeg, stop=stop) as witness:
        argv = graph.render_argv(plan, ..., fragments=witness.descriptor)
        with Encoder(argv, pass_fds=(witness.descriptor,), ...) as encoder:
            witness.release()
            for number, image in enumerate(images):
                thumbnails[number] = frames.thumbnail(image)      # before the image itself, or at any time until `finish`
                encoder.write(image.tobytes())
            encoder.finish()
        evidence = witness.finish()
    prove(path, plan, evidence, ffmpeg=ffmpeg, stop=stop)
"""

from __future__ import annotations

import contextlib
import os
import selectors
import subprocess
import threading
import time
from collections.abc import Sequence
from typing import Self

from stepwatch import system
from stepwatch.core.plan import OutputPlan
from stepwatch.errors import EnvironmentFault, Interrupted, StepwatchError
from stepwatch.judge import PIXELS, Judge, refuse
from stepwatch.verify import HASHES, REDUCED_LUMA, SILENCE, Evidence

LOOK = 0.5
"""Seconds between two looks at whether to go on, while nothing comes."""
MOST_TEXTS = 8 << 10
"""Bytes of metadata that surely fit into ffmpeg's buffer together with the rest of a header, see `_mend`."""
MOST_SAID = 1 << 16
"""Bytes of complaints that are kept."""
LONGEST_LISTING = 200
"""Bytes for one packet's line, and as many lines about the stream, are more than ffmpeg writes."""


def can_witness(plan: OutputPlan) -> bool:
    """Whether packets of *plan* can be seen while they are made: of videos, and not where only some of several tries become a file."""
    return plan.codec.video and plan.max_size is None and system.PASSES_DESCRIPTORS


class Witness:
    """One decoder, and one thread that reads and judges. Use as a context manager: leaving it ends the decoder whatever state it is in.

    *thumbnails* fills up while it runs, see `Judge`; *threads* is how many the decoder may use, None: as it likes; *texts* are the bytes of metadata
    that the encoder writes. Without *at_once* pictures are judged some at a time, which takes less of the processor.
    """

    def __init__(
        self,
        plan: OutputPlan,
        thumbnails: Sequence[bytes],
        *,
        ffmpeg: str,
        stop: threading.Event,
        threads: int | None = 1,
        texts: int = 0,
        at_once: bool = True,
    ) -> None:
        self._judge = Judge(plan, thumbnails)
        self._stop = stop
        self._most = LONGEST_LISTING * (plan.pictures + LONGEST_LISTING)
        self._listing = bytearray()
        self._said = bytearray()
        self._rest = bytearray()
        self._error: BaseException | None = None
        self._given_up = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="ffmpeg-witness", daemon=True)
        incoming, self.descriptor = _pipe()
        """The encoder's end of the pipe."""
        self._open = True
        try:
            self._lines, lines = _pipe()
        except EnvironmentFault:
            os.close(incoming)
            self.release()
            raise
        if texts > MOST_TEXTS and plan.codec.muxer != "webm":
            try:
                incoming = _mended(incoming)
            except EnvironmentFault:
                self.release()
                os.close(self._lines)
                os.close(lines)
                raise
        try:
            self._process = system.start(
                _argv(plan, ffmpeg, lines, threads, at_once=at_once),
                stdin=incoming,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(lines,),
            )
        except StepwatchError:
            self.release()
            os.close(self._lines)
            raise
        finally:
            os.close(incoming)
            os.close(lines)
        try:
            self._thread.start()
        except RuntimeError as error:  # What Python says when the system has no thread left.
            self.abort()
            raise EnvironmentFault("the encode cannot be watched: no more threads can be started", hint="raise the limit on processes") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()

    @property
    def seen(self) -> int:
        """Pictures that have been decoded so far."""
        return self._judge.seen

    def release(self) -> None:
        """The encoder has been started: give up our copy of its end of the pipe, so that the decoder sees when it closes."""
        if self._open:
            self._open = False
            os.close(self.descriptor)

    def finish(self, *, images: int | None = None) -> Evidence:
        """Wait until everything has been decoded and judged. Call when the encoder has ended; with *images* where it was given no more than these.

        Raises VerifyError, naming what is not as planned, and Interrupted.
        """
        self.release()
        self._ending.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        code = self._process.wait()
        words = self._said.decode("utf-8", "replace").strip()
        if code or words:
            raise refuse(f"it does not decode without an error ({words[:300] or f'status {code}'})")
        if self._rest:
            raise refuse("its last picture is cut short")
        if images is not None:
            self._judge.cut(images)
        self._judge.close()
        listing = tuple(self._listing.decode("ascii", "replace").splitlines())
        return Evidence(listing=listing, pictures=self._judge.seen, worst=self._judge.worst)

    def abort(self) -> None:
        """End the decoder and the thread; harmless when they have ended by themselves."""
        self._given_up = True
        self.release()
        system.end_group(self._process)
        self._process.wait()
        if self._thread.ident is not None:
            self._thread.join()
        if self._lines >= 0:
            os.close(self._lines)
            self._lines = -1
        for pipe in (self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def _watch(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - whatever it is, `finish` raises it where somebody listens.
            self._error = error
            # The encoder must not wait for a reader that is gone.
            system.end_group(self._process)

    def _read(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        with selectors.DefaultSelector() as selector:
            for pipe, take in (
                (self._process.stdout, self._take_pictures),
                (self._process.stderr, self._take_words),
                (self._lines, self._take_lines),
            ):
                selector.register(pipe, selectors.EVENT_READ, take)
            moved = time.monotonic()
            while selector.get_map():
                ready = selector.select(LOOK)
                for key, _ in ready:
                    if data := os.read(key.fd, 1 << 16):
                        key.data(data)
                    else:
                        selector.unregister(key.fileobj)
                now = time.monotonic()
                if ready or not self._ending.is_set():
                    moved = now
                if self._given_up:
                    return
                if self._stop.is_set():
                    raise Interrupted("stopped by the user")
                if now - moved > SILENCE:
                    raise refuse(f"it does not decode: no picture for {SILENCE:.0f} s")

    def _take_pictures(self, data: bytes) -> None:
        self._rest += data
        while len(self._rest) >= PIXELS:
            picture = bytes(self._rest[:PIXELS])
            del self._rest[:PIXELS]
            self._judge.see(picture)

    def _take_words(self, data: bytes) -> None:
        if len(self._said) < MOST_SAID:
            self._said += data

    def _take_lines(self, data: bytes) -> None:
        self._listing += data
        if len(self._listing) > self._most:
            raise refuse("it holds more packets than were planned")


def _pipe() -> tuple[int, int]:
    try:
        return os.pipe()
    except OSError as error:
        raise EnvironmentFault(f"the encode cannot be watched: {error.strerror}", hint="raise the limit on open files") from error


def _mended(incoming: int) -> int:
    """Have the header of the fragments that come from a pipe mended on its way; returns the pipe that they come out of, the other one is closed."""
    try:
        outgoing, target = _pipe()
    except EnvironmentFault:
        os.close(incoming)
        raise
    thread = threading.Thread(target=_mend, args=(incoming, target), name="ffmpeg-header", daemon=True)
    try:
        thread.start()
    except RuntimeError as error:
        for descriptor in (incoming, outgoing, target):
            os.close(descriptor)
        raise EnvironmentFault("the encode cannot be watched: no more threads can be started", hint="raise the limit on processes") from error
    return outgoing


def _mend(incoming: int, target: int) -> None:
    """Copy fragments; their header loses its texts, and gets the length that ffmpeg could not write.

    ffmpeg goes back to write the length of the box ``moov`` when that is complete. Beyond its buffer of 32 KiB a pipe does not let it, and the
    length stands behind the box instead, where it is part of nothing. The boxes in it (ISO/IEC 14496-12, section 4.2) do have theirs.
    """
    with open(incoming, "rb") as source, open(target, "wb") as sink, contextlib.suppress(BrokenPipeError):
        while len(head := source.read(8)) == 8 and head[4:] != b"moov":
            sink.write(head + source.read(max(0, int.from_bytes(head[:4], "big") - 8)))
        kept, length = [], 8
        if any(head[:4]):
            sink.write(head)
        else:
            while (size := int.from_bytes(told := source.read(4), "big")) != length and size >= 8:
                body = source.read(size - 4)
                kept += [] if body.startswith(b"udta") else [told + body]
                length += size
            header = b"".join(kept)
            sink.write((len(header) + 8).to_bytes(4, "big") + b"moov" + header)
        sink.flush()
        while part := source.read1(1 << 16):
            sink.write(part)
            sink.flush()


def _argv(plan: OutputPlan, ffmpeg: str, lines: int, threads: int | None, *, at_once: bool) -> list[str]:
    """The decoder's arguments: fragments on stdin, thumbnails on stdout, a line for each packet to the descriptor *lines*."""
    argv = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", "-xerror", "-err_detect", "explode", "-protocol_whitelist", "pipe"]
    if threads is not None:
        argv += ["-threads", str(threads)]
    # Else it would wait for twenty packets, to guess a rate that nobody asks for.
    argv += ["-fpsprobesize", "0", "-f", "matroska" if plan.codec.muxer == "webm" else "mov", "-i", "pipe:"]
    argv += [
        "-map",
        "0:v",
        "-fps_mode",
        "passthrough",
        "-vf",
        REDUCED_LUMA,
        "-enc_time_base",
        "1/1000",
        "-f",
        "rawvideo",
        "-flush_packets",
        str(int(at_once)),
        "pipe:1",
    ]
    return [*argv, "-map", "0", "-c", "copy", *HASHES, f"pipe:{lines}"]
