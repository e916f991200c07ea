"""A finished file against its plan: strict decode, counts, times, and what its pictures show.

Theory of operation. ffmpeg exits with 0 for a cut file, a dropped frame, a full disk; so the file is read back. Its packets are listed without
decoding: how many there are, when each shows, how large the picture is. And every picture is decoded, strictly, reduced to 32x32 luma values, and
judged (`judge`). There are two ways to the second:

* `verify` decodes the finished file;
* `prove` is for a file whose packets were decoded and judged while they were made (`witness`): it shows that the file holds those very packets, with
  the same times, and the same words to the decoder. What decoded then decodes now.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import IO, TYPE_CHECKING, NamedTuple

from stepwatch import system
from stepwatch.core.plan import OutputPlan
from stepwatch.errors import EnvironmentFault, Interrupted
from stepwatch.judge import PIXELS, SIDE, Judge
from stepwatch.judge import refuse as _refuse

if TYPE_CHECKING:
    from PIL import Image

LISTING = 600
"""Seconds after which a list of packets that has not come counts as never coming."""
SILENCE = 120.0
"""Seconds without a decoded picture after which the decoder counts as hung."""
HASHES = ("-f", "framehash", "-hash", "murmur3", "-flush_packets", "0")
"""Of each packet a line with a hash of 128 bits: against accidents, and ten times as fast as md5. Many lines come at a time:
nobody waits for a single one."""
_TO_SIDE = f"scale={SIDE}:{SIDE}:flags=area"
_NUMBERED = "settb=1/1000,setpts=N"
"""Times are checked with the packets; numbers instead of them keep uneven ones from colliding in a guessed time base."""
REDUCED_LUMA = f"extractplanes=y,{_TO_SIDE}:in_range=tv:out_range=tv,format=gray,{_NUMBERED}"
"""Filters that make a thumbnail, of PIXELS bytes, of each picture of a video: of its luma, which is there already."""
_REDUCED = f"{_TO_SIDE}:out_color_matrix=bt709:out_range=tv,format=yuv420p,{_NUMBERED}"
"""The same of any picture, with colour behind the luma."""
_REDUCED_BYTES = PIXELS + PIXELS // 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What the file has proved to be."""

    pictures: int
    duration: Fraction
    """Seconds, as the container counts."""
    worst: float
    """Largest mean difference of a thumbnail, levels of 255."""


class _Packet(NamedTuple):
    start: int
    """Ticks."""
    duration: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What a decoder has seen of the packets of an encode, every picture of which was judged."""

    listing: tuple[str, ...]
    """ffmpeg's framehash of the packets: lines about the stream, then one for each packet."""
    pictures: int
    worst: float
    retimed: bool = False
    """The file shows these packets at other times than they were made for."""


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
    judge = Judge(plan, thumbnails)
    if plan.codec.name == "webp":
        end = _check_webp(path, plan, lambda image: judge.see(thumbnail(image)))
    else:
        end, _ = _check_packets(path, plan, ffmpeg, stop)
        with contextlib.closing(_decoded(path, ffmpeg, stop, luma=plan.codec.video)) as pictures:
            for picture in pictures:
                judge.see(picture)
    judge.close()
    return Verified(pictures=judge.seen, duration=end, worst=judge.worst)


def prove(path: Path, plan: OutputPlan, evidence: Evidence, *, ffmpeg: str, stop: threading.Event, lister: Lister | None = None) -> Verified:
    """Prove that the file at *path* is the animation of *plan*, given what was seen of it while it was made. Raises as `verify` does.

    *lister* is one that waits for the file, if there is one.
    """
    listing = (lister.list(path, stop) if lister is not None else None) or _listing(path, ffmpeg, stop)
    if evidence.pictures != plan.pictures:
        raise _refuse(f"{evidence.pictures} of {plan.pictures} pictures were seen while it was made")
    then, now = (_comparable(one, plan, timed=not evidence.retimed) for one in (evidence.listing, listing))
    if then != now:
        wrong = next((number for number, (one, other) in enumerate(zip(then[1], now[1], strict=False)) if one != other), None)
        where = "in what they say of the stream" if then[0] != now[0] else "in number" if wrong is None else f"from packet {wrong} on"
        raise _refuse(f"its packets are not those that were seen while it was made ({where})")
    end, _ = _check_listing(listing, path, plan, ffmpeg, stop)
    return Verified(pictures=evidence.pictures, duration=end, worst=evidence.worst)


def _comparable(listing: Iterable[str], plan: OutputPlan, *, timed: bool) -> tuple[dict[str, str], list[tuple[str, ...]]]:
    """What two listings of the same packets have in common, whatever container they come from: facts about the stream, and the packets.

    Unless *timed*, their times may differ, but not the order in which they show.
    """
    facts, packets = {}, []
    for line in listing:
        if line.startswith("#"):
            name = line[1:].replace(",", ":", 1).partition(":")[0].strip()
            # AV1 repeats the words to its decoder in each key packet, and a muxer that has not seen one yet writes fewer of them.
            known = ("tb", "codec_id", "dimensions") if timed else ("codec_id", "dimensions")
            if name.split(" ")[0] in known or (name == "extradata 0" and plan.codec.stream != "av1"):
                facts[name] = " ".join(line.split())
        else:
            # How long each lasts is held against the plan, and not against the fragments: not every muxer has told those of a longer last one.
            stream, decoded, shown, _, *content = (part.strip() for part in line.split(","))
            packets.append((stream, decoded, shown, *content))
    if not timed:
        order = {shown: str(place) for place, shown in enumerate(sorted((shown for _, _, shown, *_ in packets), key=int))}
        packets = [(stream, order[shown], *content) for stream, _, shown, *content in packets]
    return facts, packets


def whole_file(path: Path, plan: OutputPlan, *, ffmpeg: str, stop: threading.Event) -> OutputPlan:
    """Prove that an earlier output at *path* is still whole: its packets, their times and a strict decode, but no look at the pictures.

    Returns *plan* with the size that the file really has, which ``max_size`` may have lowered. Raises VerifyError.
    """
    if plan.codec.name == "webp":
        sizes: list[tuple[int, int]] = []
        _check_webp(path, plan, lambda image: sizes.append(image.size), exact_size=not plan.max_size)
        width, height = sizes[0]
    else:
        _, (width, height) = _check_packets(path, plan, ffmpeg, stop, exact_size=not plan.max_size)
        with contextlib.closing(_decoded(path, ffmpeg, stop, luma=plan.codec.video)) as pictures:
            # One more than planned is enough to know; who decodes for ever is not waited for.
            count = sum(1 for _ in itertools.islice(pictures, plan.pictures + 1))
        if count != plan.pictures:
            found = f"{count} pictures" if count < plan.pictures else "more pictures"
            raise _refuse(f"it decodes to {found}, {plan.pictures} were planned")
    return replace(plan, width=width, height=height)


def _check_packets(path: Path, plan: OutputPlan, ffmpeg: str, stop: threading.Event, *, exact_size: bool = True) -> tuple[Fraction, tuple[int, int]]:
    """Hold the packets against the plan; return when the last one ends and the size of the pictures."""
    return _check_listing(_listing(path, ffmpeg, stop), path, plan, ffmpeg, stop, exact_size=exact_size)


def _check_listing(
    listing: Iterable[str], path: Path, plan: OutputPlan, ffmpeg: str, stop: threading.Event, *, exact_size: bool = True
) -> tuple[Fraction, tuple[int, int]]:
    packets, base, size = _packets(listing, plan)
    if exact_size:
        _check_size(size, plan)
    if plan.codec.name == "apng" and plan.pictures == 1 == len(packets):
        # One picture makes an ordinary PNG, which says nothing of time.
        packets, base = [_Packet(start=0, duration=1)], plan.duration
    _check_times(packets, base, plan)
    end = max(packet.start + packet.duration for packet in packets) * base
    if plan.codec.muxer == "webm" and end < plan.duration:
        # Older ffmpeg does not store how long the last block lasts; the length in the header, which players go by, is right.
        end = max(end, _header_duration(path, ffmpeg, plan.duration, stop))
    if plan.cut and end != plan.duration:
        # And where pictures do not all last as long it takes the time to the next decode for that to the next picture, and guesses the last one's.
        end = _header_duration(path, ffmpeg, plan.duration, stop)
    _check_end(end, plan)
    return end, size


def run(argv: Sequence[str], stop: threading.Event) -> subprocess.CompletedProcess[bytes]:
    """Run ffmpeg, and end it when *stop* is set or it takes too long."""
    if stop.is_set():
        raise Interrupted("stopped by the user")
    with system.start(argv) as process:
        return _outcome(process, stop)


def _outcome(process: subprocess.Popen[bytes], stop: threading.Event) -> subprocess.CompletedProcess[bytes]:
    for _ in range(LISTING):
        try:
            out, said = process.communicate(timeout=1)
            return subprocess.CompletedProcess(process.args, process.returncode, out, said)
        except subprocess.TimeoutExpired:
            if stop.is_set():
                system.end_group(process)
                raise Interrupted("stopped by the user") from None
    system.end_group(process)
    raise _refuse(f"its packets cannot be listed in {LISTING} s")


class Lister:
    """An ffmpeg that lists the packets of a file, started while that is still being made: to start takes it longer than to list.

    It waits for the file's bytes in a pipe, so that it has to be one that can be read from its start to its end. Ends with `list` or `abort`, or with
    the thread that made it. Raises like `system.start`.
    """

    def __init__(self, plan: OutputPlan, *, ffmpeg: str) -> None:
        source = ["-protocol_whitelist", "pipe", "-f", "matroska" if plan.codec.muxer == "webm" else "mov", "-i", "pipe:"]
        self._process = system.start(_listing_argv(ffmpeg, source), stdin=subprocess.PIPE)

    def list(self, path: Path, stop: threading.Event) -> Sequence[str] | None:
        """The list; None when it does not come about, so that it has to be made in another way. Raises Interrupted."""
        if stop.is_set():
            raise Interrupted("stopped by the user")
        pipe, self._process.stdin = self._process.stdin, None
        assert pipe is not None
        try:
            threading.Thread(target=_pour, args=(path, pipe), name="ffmpeg-list", daemon=True).start()
        except RuntimeError:  # What Python says when the system has no thread left.
            pipe.close()
            return None
        with self._process as process:
            ran = _outcome(process, stop)
        return None if ran.returncode or ran.stderr else _lines(ran)

    def abort(self) -> None:
        """End it; harmless when it has ended by itself."""
        system.end_group(self._process)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _pour(path: Path, pipe: IO[bytes]) -> None:
    """Write a file into a pipe, for as long as somebody reads there."""
    with contextlib.suppress(OSError), pipe, path.open("rb") as file:
        shutil.copyfileobj(file, pipe, system.WIDE)


def _listing_argv(ffmpeg: str, source: Sequence[str]) -> list[str]:
    argv = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", "-xerror", *source]
    return [*argv, "-map", "0", "-c", "copy", *HASHES, "-"]


def _listing(path: Path, ffmpeg: str, stop: threading.Event) -> Sequence[str]:
    """ffmpeg's list of the packets of a file; VerifyError for one that it complains of."""
    ran = run(_listing_argv(ffmpeg, ["-protocol_whitelist", "file", "-i", f"file:{path}"]), stop)
    said = ran.stderr.decode("utf-8", "replace").strip()
    if ran.returncode or said:
        raise _refuse(f"it cannot be read ({said[:300] or f'status {ran.returncode}'})")
    return _lines(ran)


def _lines(ran: subprocess.CompletedProcess[bytes]) -> Sequence[str]:
    return ran.stdout.decode("ascii", "replace").splitlines()


def _packets(listing: Iterable[str], plan: OutputPlan) -> tuple[list[_Packet], Fraction, tuple[int, int]]:
    """The packets of a listing in the order of their times, the seconds of a tick, and the size of the pictures.

    VerifyError for another codec or a second stream.
    """
    base, size = Fraction(0), (0, 0)
    packets: list[_Packet] = []
    for line in listing:
        if line.startswith("#"):
            key, _, value = line[1:].partition(":")
            name, _, stream = key.partition(" ")
            value = value.strip()
            if name == "tb":
                if stream != "0":
                    raise _refuse("it has more than one stream")
                base = Fraction(value)
            elif name == "codec_id" and value != plan.codec.stream and (value, plan.pictures) != ("png", 1):
                raise _refuse(f"it holds {value}, not {plan.codec.stream}")
            elif name == "dimensions":
                width, _, height = value.partition("x")
                size = int(width), int(height)
            continue
        parts = [part.strip() for part in line.split(",")]
        if len(parts) >= 5:
            packets.append(_Packet(start=int(parts[2]), duration=int(parts[3])))
    packets.sort()
    return packets, base, size


def _check_times(packets: Sequence[_Packet], base: Fraction, plan: OutputPlan) -> None:
    if len(packets) != plan.pictures:
        raise _refuse(f"it has {len(packets)} pictures, {plan.pictures} were planned")
    # What may be off is a million times what a float leaves out, and fractions would take ten times as long.
    slack, tick = float(_slack(plan)), float(base)
    for number, (packet, start) in enumerate(zip(packets, map(float, plan.starts()), strict=True)):
        if abs(packet.start * tick - start) > slack:
            raise _refuse(f"picture {number} shows at {packet.start * tick:.4f} s instead of {start:.4f} s")


def _header_duration(path: Path, ffmpeg: str, planned: Fraction, stop: threading.Event) -> Fraction:
    """The length that the container's header states: *planned* when it agrees with that to the hundredth of a second that ffmpeg prints."""
    argv = [ffmpeg, "-hide_banner", "-nostdin", "-protocol_whitelist", "file", "-i", f"file:{path}"]
    said = run(argv, stop).stderr.decode("utf-8", "replace")
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


def _decoded(path: Path, ffmpeg: str, stop: threading.Event, *, luma: bool) -> Generator[bytes]:
    """Thumbnails of every picture of the file, a video's by *luma* alone, strictly decoded, in order; VerifyError at the first fault."""
    argv = [ffmpeg, "-hide_banner", "-nostdin", "-v", "error", "-xerror", "-err_detect", "explode", "-protocol_whitelist", "file"]
    argv += ["-i", f"file:{path}", "-map", "0:v", "-fps_mode", "passthrough", "-vf", REDUCED_LUMA if luma else _REDUCED, "-enc_time_base", "1/1000"]
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
    size = PIXELS if luma else _REDUCED_BYTES
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


def _check_webp(path: Path, plan: OutputPlan, see: Callable[[Image.Image], None], *, exact_size: bool = True) -> Fraction:
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
                see(image.convert("RGB"))
                clock += Fraction(round(image.info.get("duration", 0)), 1000) if count > 1 else plan.duration
    except (OSError, ValueError, EOFError, SyntaxError) as error:
        raise _refuse(f"it does not decode without an error ({error})") from error
    _check_end(clock, plan)
    return clock


def _check_size(size: tuple[int, int], plan: OutputPlan) -> None:
    if size != (plan.width, plan.height):
        raise _refuse(f"its pictures are {size[0]}x{size[1]}, not {plan.width}x{plan.height}")
