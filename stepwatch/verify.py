"""A finished file against its plan: strict decode, counts, times, and thumbnails of what was decoded.

Theory of operation. ffmpeg exits with 0 for a cut file, a dropped frame, a full disk; so the file is read back twice. First its packets,
without decoding: how many there are, when each shows, how large the picture is. Then every picture is decoded, strictly, and reduced to
32x32 luma values. The timeline says what each should show, as a mix of two source images' thumbnails. Two things are held against that:

* the mean difference, which may be no more than the encoder's loss explains (``Codec.tolerance``);
* the direction of the difference. Project it on the line from one image to the next: 0 is where the picture belongs, 1 is a whole image
  late, -1 one early. Loss is nearly at right angles to that line, so even images that differ by less than the loss are told apart: the
  displacement may be ``DISPLACED`` of the way and ``SLACK`` levels on top. Neighbours closer than that are the same picture to anybody.
  An encoder may well shift the brightness of all of a flat picture alike, though, so the mean is measured by itself, with more patience
  (``BIAS``), and taken out of the line.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import operator
import re
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING

from stepwatch import system
from stepwatch.core.plan import OutputPlan
from stepwatch.core.timeline import Mix
from stepwatch.errors import EnvironmentFault, Interrupted, VerifyError

if TYPE_CHECKING:
    from PIL import Image

SIDE = 32
"""Thumbnails are SIDE x SIDE luma values, limited range, BT.709."""
PIXELS = SIDE * SIDE
DISPLACED = 0.6
"""Share of the way to a neighbouring image beyond which a picture shows the wrong moment."""
SLACK = 0.2
"""Levels of displacement (root mean square) that loss may cause on top; 0.08 is the most that was seen, at the small quality of h265."""
BIAS = 2.0
"""Levels by which loss may shift the mean of a picture towards its neighbour on top; vp9 shifts flat colours by one and a half."""
MOTION = 0.75
"""Motion interpolation goes its own way between two images: this share of their difference is allowed on top."""
AMPLE_SIDE = 256
"""Pixels; the tolerances of the codecs were measured on pictures whose shorter side has at least so many."""
COARSE = 4.0
"""The same for an encode that was asked to be worse than our own qualities: the square root of it for the mean difference."""
LISTING = 600
"""Seconds after which a list of packets that has not come counts as never coming."""
SILENCE = 120.0
"""Seconds without a decoded picture after which the decoder counts as hung."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What the file has proved to be."""

    pictures: int
    duration: Fraction
    """Seconds, as the container counts."""
    worst: float
    """Largest mean difference of a thumbnail, levels of 255."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Packet:
    start: Fraction
    duration: Fraction


def verify(
    path: Path,
    plan: OutputPlan,
    thumbnails: Sequence[bytes],
    *,
    ffmpeg: str,
    thumbnail: Callable[[Image.Image], bytes],
    stop: threading.Event,
) -> Verified:
    """Prove that the file at *path* is the animation of *plan*.

    *thumbnails* has SIDE x SIDE luma bytes for each image of the timeline, in the images' order (an image that is never fed may be empty);
    *thumbnail* reduces a Pillow image to the same. Raises VerifyError, naming what differs, and Interrupted when *stop* is set.
    """
    judge = _Judge(plan, thumbnails)
    if plan.codec.name == "webp":
        end = _check_webp(path, plan, lambda number, image: judge.see(number, thumbnail(image)))
    else:
        end, _ = _check_packets(path, plan, ffmpeg, stop)
        with contextlib.closing(_decoded(path, ffmpeg, stop)) as pictures:
            for number, picture in enumerate(pictures):
                judge.see(number, picture)
    judge.close()
    return Verified(pictures=judge.seen, duration=end, worst=judge.worst)


def whole_file(path: Path, plan: OutputPlan, *, ffmpeg: str, stop: threading.Event) -> OutputPlan:
    """Prove that an earlier output at *path* is still whole: its packets, their times and a strict decode, but no look at the pictures.

    Returns *plan* with the size that the file really has, which ``max_size`` may have lowered. Raises VerifyError.
    """
    if plan.codec.name == "webp":
        sizes: list[tuple[int, int]] = []
        _check_webp(path, plan, lambda _, image: sizes.append(image.size), exact_size=not plan.max_size)
        width, height = sizes[0]
    else:
        _, (width, height) = _check_packets(path, plan, ffmpeg, stop, exact_size=not plan.max_size)
        with contextlib.closing(_decoded(path, ffmpeg, stop)) as pictures:
            # One more than planned is enough to know; who decodes for ever is not waited for.
            count = sum(1 for _ in itertools.islice(pictures, plan.pictures + 1))
        if count != plan.pictures:
            found = f"{count} pictures" if count < plan.pictures else "more pictures"
            raise _refuse(f"it decodes to {found}, {plan.pictures} were planned")
    return replace(plan, width=width, height=height)


def _check_packets(path: Path, plan: OutputPlan, ffmpeg: str, stop: threading.Event, *, exact_size: bool = True) -> tuple[Fraction, tuple[int, int]]:
    """Hold the packets against the plan; return when the last one ends and the size of the pictures."""
    packets, size = _packets(path, plan, ffmpeg, stop)
    if exact_size:
        _check_size(size, plan)
    if plan.codec.name == "apng" and plan.pictures == 1 == len(packets):
        # One picture makes an ordinary PNG, which says nothing of time.
        packets = [_Packet(start=Fraction(0), duration=plan.duration)]
    _check_times(packets, plan)
    end = max(packet.start + packet.duration for packet in packets)
    if plan.codec.muxer == "webm" and end < plan.duration:
        # Older ffmpeg does not store how long the last block lasts; the length in the header, which players go by, is right.
        end = max(end, _header_duration(path, ffmpeg, plan.duration, stop))
    _check_end(end, plan)
    return end, size


def _refuse(what: str) -> VerifyError:
    return VerifyError(f"the rendered file is not what was planned: {what}", hint="nothing was published; the frames are untouched")


def _run(argv: Sequence[str], stop: threading.Event) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg, and end it when *stop* is set or it takes too long."""
    with system.start(argv) as process:
        for _ in range(LISTING):
            try:
                out, said = process.communicate(timeout=1)
                return subprocess.CompletedProcess(argv, process.returncode, out, said)
            except subprocess.TimeoutExpired:
                if stop.is_set():
                    system.end_group(process)
                    raise Interrupted("stopped by the user") from None
        system.end_group(process)
    raise _refuse(f"its packets cannot be listed in {LISTING} s")


def _packets(path: Path, plan: OutputPlan, ffmpeg: str, stop: threading.Event) -> tuple[list[_Packet], tuple[int, int]]:
    """The packets of the file in the order of their times, and its size; VerifyError for another codec or an unreadable file."""
    argv = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", "-xerror", "-protocol_whitelist", "file", "-i", f"file:{path}"]
    argv += ["-map", "0", "-c", "copy", "-f", "framecrc", "-"]
    ran = _run(argv, stop)
    said = ran.stderr.decode("utf-8", "replace").strip()
    if ran.returncode or said:
        raise _refuse(f"it cannot be read ({said[:300] or f'status {ran.returncode}'})")
    base, size = Fraction(0), (0, 0)
    packets: list[_Packet] = []
    for line in ran.stdout.decode("ascii", "replace").splitlines():
        if line.startswith("#"):
            key, _, value = line[1:].partition(":")
            name, _, stream = key.partition(" ")
            value = value.strip()
            if stream not in ("", "0"):
                raise _refuse("it has more than one stream")
            if name == "tb":
                base = Fraction(value)
            elif name == "codec_id" and value != plan.codec.stream and (value, plan.pictures) != ("png", 1):
                raise _refuse(f"it holds {value}, not {plan.codec.stream}")
            elif name == "dimensions":
                width, _, height = value.partition("x")
                size = int(width), int(height)
            continue
        parts = [part.strip() for part in line.split(",")]
        if len(parts) >= 5:
            packets.append(_Packet(start=int(parts[2]) * base, duration=int(parts[3]) * base))
    packets.sort(key=operator.attrgetter("start"))
    return packets, size


def _check_times(packets: Sequence[_Packet], plan: OutputPlan) -> None:
    if len(packets) != plan.pictures:
        raise _refuse(f"it has {len(packets)} pictures, {plan.pictures} were planned")
    slack = _slack(plan)
    for number, (packet, start) in enumerate(zip(packets, plan.starts(), strict=True)):
        if abs(packet.start - start) > slack:
            raise _refuse(f"picture {number} shows at {float(packet.start):.4f} s instead of {float(start):.4f} s")


def _header_duration(path: Path, ffmpeg: str, planned: Fraction, stop: threading.Event) -> Fraction:
    """The length that the container's header states: *planned* when it agrees with that to the hundredth of a second that ffmpeg prints."""
    argv = [ffmpeg, "-hide_banner", "-nostdin", "-protocol_whitelist", "file", "-i", f"file:{path}"]
    said = _run(argv, stop).stderr.decode("utf-8", "replace")
    found = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", said)
    if not found:
        return Fraction(0)
    stated = int(found[1]) * 3600 + int(found[2]) * 60 + Fraction(found[3])
    return planned if abs(stated - planned) <= Fraction(1, 50) else stated


def _check_end(end: Fraction, plan: OutputPlan) -> None:
    if abs(end - plan.duration) > max(_slack(plan), Fraction(1, 500)):
        raise _refuse(f"it lasts {float(end):.4f} s instead of {float(plan.duration):.4f} s")


def _slack(plan: OutputPlan) -> Fraction:
    """How far a time may be off: the container's own tick, and a little for the clocks in between."""
    return Fraction(1, plan.codec.timescale or 1000) + Fraction(1, 10000)


def _decoded(path: Path, ffmpeg: str, stop: threading.Event) -> Generator[bytes]:
    """Thumbnails of every picture of the file, strictly decoded, in order; VerifyError at the first fault."""
    argv = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", "-xerror", "-err_detect", "explode", "-protocol_whitelist", "file"]
    # Times were checked with the packets; numbers instead of them keep uneven ones from colliding in a guessed time base.
    reduced = f"scale={SIDE}:{SIDE}:flags=area:out_color_matrix=bt709:out_range=tv,format=yuv420p,settb=1/1000,setpts=N"
    argv += ["-i", f"file:{path}", "-map", "0:v", "-fps_mode", "passthrough", "-vf", reduced, "-enc_time_base", "1/1000"]
    argv += ["-f", "rawvideo", "-"]
    process = system.start(argv)
    assert process.stdout is not None
    assert process.stderr is not None
    said: list[bytes] = []
    decoded, ended = [0], threading.Event()
    threads = [
        threading.Thread(target=_listen, args=(process.stderr, said), daemon=True),
        threading.Thread(target=_guard, args=(process, decoded, ended, stop), daemon=True),
    ]
    size = PIXELS + PIXELS // 2
    try:
        for thread in threads:
            thread.start()
        while len(picture := process.stdout.read(size)) == size and not stop.is_set():
            decoded[0] += 1
            yield picture[:PIXELS]
        if stop.is_set():
            raise Interrupted("stopped by the user")
        if picture:
            raise _refuse("its last picture is cut short")
        code = process.wait()
        threads[0].join()
        words = b"".join(said).decode("utf-8", "replace").strip()
        if code or words:
            raise _refuse(f"it does not decode without an error ({words[:300] or f'status {code}'})")
    except RuntimeError as error:  # What Python says when the system has no thread left.
        raise EnvironmentFault("the file cannot be read back: no more threads can be started", hint="raise the limit on processes") from error
    finally:
        ended.set()
        system.end_group(process)
        process.wait()
        process.stdout.close()
        for thread in threads:
            if thread.ident is not None:
                thread.join()
        process.stderr.close()


def _guard(process: subprocess.Popen[bytes], decoded: list[int], ended: threading.Event, stop: threading.Event) -> None:
    """End a decoder that has made no picture for SILENCE seconds, and any when *stop* is set; its reader then sees the end of the stream."""
    seen, silent, looked = -1, 0.0, time.monotonic()
    while not ended.wait(0.5):
        now = time.monotonic()
        # What is longer than a look takes, this process was stopped, and could not have seen a picture.
        silent += min(now - looked, 1.0)
        looked = now
        if decoded[0] != seen:
            seen, silent = decoded[0], 0.0
        if stop.is_set() or silent > SILENCE:
            system.end_group(process)
            return


def _listen(pipe: IO[bytes], said: list[bytes]) -> None:
    kept = 0
    while part := pipe.read1(1 << 16):  # type: ignore[attr-defined]
        if kept < 1 << 16:
            said.append(part)
            kept += len(part)
    pipe.close()


class _Line:
    """The way from one image's thumbnail to another's, as a direction without its mean, and the mean."""

    def __init__(self, differences: Sequence[int]) -> None:
        self.distance = sum(map(abs, differences)) / PIXELS
        self._mean = sum(differences) / PIXELS
        self._shape = [difference - self._mean for difference in differences]
        self._square = sum(map(operator.mul, self._shape, self._shape))

    def project(self, error: Sequence[float], slack: float, bias: float) -> tuple[float, float]:
        """How much of the way *error* goes (1.0: all of it), and how much of that is to be forgiven.

        *slack* and *bias* are levels of the shape and of the mean; whichever of the two leaves less to forgive is the better witness.
        """
        witnesses = []
        if self._square:
            length = math.sqrt(self._square / PIXELS)
            witnesses.append((slack / length, sum(map(operator.mul, error, self._shape)) / self._square))
        if self._mean:
            witnesses.append((bias / abs(self._mean), sum(error) / PIXELS / self._mean))
        if not witnesses:
            return 0.0, 0.0
        forgiven, moved = min(witnesses)
        return moved, forgiven


class _Judge:
    """Holds each decoded picture against what the timeline expects at its time."""

    def __init__(self, plan: OutputPlan, thumbnails: Sequence[bytes]) -> None:
        self._plan = plan
        self._thumbnails = thumbnails
        self._mixes = _expected(plan)
        # A thumbnail's value is the mean of many pixels, which hides the loss in each; of a tiny picture it is the mean of few.
        few = max(1.0, AMPLE_SIDE / min(plan.width, plan.height)) * (COARSE if plan.coarse else 1.0)
        self._tolerance = plan.codec.tolerance * few**0.75
        self._displaced = min(DISPLACED + 0.05 * (few - 1), 0.8)
        self._slack = SLACK * few
        self._bias = BIAS * math.sqrt(few)
        self._lines: dict[tuple[int, int], _Line] = {}
        self.seen = 0
        self.worst = 0.0

    def see(self, number: int, picture: bytes) -> None:
        mix = next(self._mixes, None)
        if mix is None:
            raise _refuse(f"it decodes to more than the {self._plan.pictures} pictures that were planned")
        self.compare(number, mix, picture)
        self.seen += 1

    def close(self) -> None:
        if self.seen != self._plan.pictures:
            raise _refuse(f"it decodes to {self.seen} pictures, {self._plan.pictures} were planned")

    def compare(self, number: int, mix: Mix, picture: bytes) -> None:
        order = self._plan.timeline.order
        first, second = order[mix.first], order[mix.second]
        expected = self._mixed(first, second, mix.weight)
        error = list(map(operator.sub, picture, expected))
        difference = sum(map(abs, error)) / PIXELS
        self.worst = max(self.worst, difference)
        allowed = self._tolerance
        if self._plan.timeline.interpolation == "mci" and not mix.pure:
            allowed += MOTION * self._distance(first, second)
        if difference > allowed:
            raise _refuse(
                f"picture {number} is not image {first + 1}"
                + ("" if mix.pure else f" on its way to {second + 1}")
                + f" (its thumbnail differs by {difference:.1f} levels, {allowed:.1f} are allowed)"
            )
        for place, other in self._neighbours(mix):
            line = self._line(order[place], order[other])
            moved, slack = line.project(error, self._slack, self._bias)
            limit = self._displaced if self._plan.timeline.interpolation != "mci" or mix.pure else 1.0
            if abs(moved) > limit + slack:
                raise _refuse(
                    f"picture {number} shows another moment: {abs(moved):.0%} of the way from image {order[place] + 1} to {order[other] + 1}"
                )

    def _neighbours(self, mix: Mix) -> Iterator[tuple[int, int]]:
        """The lines between images on which this picture's place is measured."""
        if not mix.pure:
            yield mix.first, mix.second
            return
        if mix.first > 0:
            yield mix.first, mix.first - 1
        if mix.first + 1 < self._plan.timeline.positions:
            yield mix.first, mix.first + 1

    def _mixed(self, first: int, second: int, weight: Fraction) -> bytes | list[float]:
        one = self._thumbnails[first]
        if not weight or first == second:
            return one
        share = float(weight)
        return [a + share * (b - a) for a, b in zip(one, self._thumbnails[second], strict=True)]

    def _line(self, first: int, second: int) -> _Line:
        """The way from one image to another; of no length where one of them is never fed."""
        if (first, second) not in self._lines:
            if len(self._lines) > 8:
                self._lines.clear()
            one, other = self._thumbnails[first], self._thumbnails[second]
            self._lines[first, second] = _Line(list(map(operator.sub, other, one)) if one and other else [0] * PIXELS)
        return self._lines[first, second]

    def _distance(self, first: int, second: int) -> float:
        return self._line(first, second).distance


def _expected(plan: OutputPlan) -> Iterator[Mix]:
    """What each encoded picture shows, in order."""
    timeline = plan.timeline
    if plan.variable:
        yield from timeline.feed()
    elif not plan.codec.holds_by_delay:
        yield from (timeline.picture(number) for number in range(timeline.total))
    else:
        yield from (timeline.picture(timeline.head + number) for number in range(timeline.pictures))


def _check_webp(path: Path, plan: OutputPlan, see: Callable[[int, Image.Image], None], *, exact_size: bool = True) -> Fraction:
    """The same for animated WebP, which not every ffmpeg decodes: Pillow reads it. *see* gets every picture; returns when the last one ends."""
    from PIL import Image

    starts = plan.starts()
    clock = Fraction(0)
    try:
        with Image.open(path, formats=("WEBP",)) as image:
            if exact_size:
                _check_size(image.size, plan)
            count = int(getattr(image, "n_frames", 1))
            if count != len(starts):
                raise _refuse(f"it has {count} pictures, {len(starts)} were planned")
            for number, start in enumerate(starts):
                image.seek(number)
                image.load()
                if abs(start - clock) > _slack(plan):
                    raise _refuse(f"picture {number} shows at {float(clock):.3f} s instead of {float(start):.3f} s")
                see(number, image.convert("RGB"))
                clock += Fraction(round(image.info.get("duration", 0)), 1000) if count > 1 else plan.duration
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise _refuse(f"it does not decode without an error ({error})") from error
    _check_end(clock, plan)
    return clock


def _check_size(size: tuple[int, int], plan: OutputPlan) -> None:
    if size != (plan.width, plan.height):
        raise _refuse(f"its pictures are {size[0]}x{size[1]}, not {plan.width}x{plan.height}")
