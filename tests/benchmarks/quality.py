"""How near a finished animation is to what it should show: luma SSIM of every picture against the exact timeline at that picture's own time.

The exact timeline is made here, from the source images, by nothing but Pillow: image j of n starts at j times its span; the picture at a time
between two of them is their mix in proportion, or, for ``none``, the earlier one. Motion (``mci``) has no exact timeline: there only pictures
that show an image as it is are held against it. The score is that of ffmpeg's ssim filter, which takes both as planes, of ten bits where the file has
ten. Times are those of the file, so an animation that lags, runs ahead or ends early loses by it.
"""

from __future__ import annotations

import contextlib
import os
import re
import statistics
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageMath, ImageSequence

from tests.benchmarks.inputs import Frames

BT709 = (0.2126, 0.7152, 0.0722)
BT601 = (0.299, 0.587, 0.114)
"""What ffmpeg takes untagged planes for."""
HUNDREDTHS = Fraction(1, 50)
"""Seconds by which a number in hundredths may be off another one that says the same."""
SLACK = Fraction(1, 1000)
"""Seconds; what ends within one tick of the coarsest container is exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What is in a finished file."""

    pictures: int
    duration: Fraction
    """Seconds."""
    ssim: float
    """Mean over all pictures."""
    ssim_low: float
    """What all but one in twenty pictures reach."""


def judge(path: Path, frames: Frames, *, rate: Fraction, interpolation: str, ffmpeg: str) -> Judged:
    """Decode a finished animation and hold every picture of it against the exact timeline."""
    if path.suffix in (".gif", ".webp", ".apng"):
        times, duration = _animation_times(path)
        matrix, pictures = BT709, _animation_planes(path)
        command, source = [ffmpeg], _raw(frames.size, "pipe:{}")
    else:
        times, duration = _video_times(path, ffmpeg)
        matrix, pictures = _matrix(path, ffmpeg), None
        command, source = [ffmpeg], ["-i", str(path)]
    exact = _Ten if path.suffix == ".mov" else _Eight
    expected = _expected(frames, times, rate=rate, interpolation=interpolation, matrix=matrix, exact=exact)
    scores = _scores(command, source, frames.size, pictures=pictures, expected=expected, pixels=exact.pixels)
    if len(scores) != len(times):
        raise ValueError(f"{path.name}: {len(scores)} pictures were compared, and {len(times)} are in the file")
    low = sorted(scores)[len(scores) // 20]
    return Judged(pictures=len(times), duration=duration, ssim=statistics.fmean(scores), ssim_low=low)


# --- the exact timeline ---------------------------------------------------------------------------------------------------------------------


def _expected(
    frames: Frames,
    times: Sequence[Fraction],
    *,
    rate: Fraction,
    interpolation: str,
    matrix: tuple[float, float, float],
    exact: type[_Eight | _Ten],
) -> Iterator[bytes]:
    paths = frames.paths()
    known: dict[int, Image.Image] = {}

    def image(number: int) -> Image.Image:
        if number not in known:
            # Times only go forwards: two images at once are enough for any run.
            for old in [old for old in known if old < number - 1]:
                del known[old]
            with Image.open(paths[number]) as one:
                known[number] = exact.luma(one, matrix)
        return known[number]

    for time in times:
        # Containers round times down to their ticks; the picture is still that of the next image.
        place = min((time + SLACK / 2) * rate, Fraction(len(paths) - 1))
        number = int(place)
        share = max(Fraction(0), min(time * rate, Fraction(len(paths) - 1)) - number)
        if interpolation == "none" or number == len(paths) - 1 or not share:
            yield exact.planes(image(number))
        else:
            first = image(number)
            yield exact.planes(exact.mix(first, image(number + 1), float(share)))


class _Eight:
    """Luma in eight bits, at the range that videos have, and 4:2:0 planes of it without any colour: no two ffmpegs disagree on those."""

    pixels = "yuv420p"

    @staticmethod
    def luma(image: Image.Image, matrix: tuple[float, float, float]) -> Image.Image:
        red, green, blue = (part * 219 / 255 for part in matrix)
        return image.convert("RGB").convert("L", (red, green, blue, 16.0))

    @staticmethod
    def mix(one: Image.Image, other: Image.Image, share: float) -> Image.Image:
        return Image.blend(one, other, share)

    @staticmethod
    def planes(luma: Image.Image) -> bytes:
        return luma.tobytes() + b"\x80" * (2 * ((luma.width + 1) // 2) * ((luma.height + 1) // 2))


def _computed(formula: Callable[[dict[str, Any]], Any], **images: Image.Image) -> Image.Image:
    made = ImageMath.lambda_eval(formula, **images)
    assert isinstance(made, Image.Image)
    return made


class _Ten:
    """The same in ten bits: floating point until the end, so that a file which uses all of them does not lose by it."""

    pixels = "yuv420p10le"

    @staticmethod
    def luma(image: Image.Image, matrix: tuple[float, float, float]) -> Image.Image:
        red, green, blue = (part.convert("F") for part in image.convert("RGB").split())
        weights = [4 * part * 219 / 255 for part in matrix]
        return _computed(lambda of: of["r"] * weights[0] + of["g"] * weights[1] + of["b"] * weights[2] + 64.0, r=red, g=green, b=blue)

    @staticmethod
    def mix(one: Image.Image, other: Image.Image, share: float) -> Image.Image:
        return _computed(lambda of: of["one"] * (1 - share) + of["other"] * share, one=one, other=other)

    @staticmethod
    def planes(luma: Image.Image) -> bytes:
        whole = _computed(lambda of: of["int"](of["luma"] + 0.5), luma=luma).convert("I;16")
        return bytes(whole.tobytes()) + b"\x00\x02" * (2 * ((luma.width + 1) // 2) * ((luma.height + 1) // 2))


# --- what is in the file --------------------------------------------------------------------------------------------------------------------


def _video_times(path: Path, ffmpeg: str) -> tuple[list[Fraction], Fraction]:
    """When each picture shows, from 0, and how long all of it lasts."""
    said = _said([ffmpeg, "-v", "error", "-i", str(path), "-map", "0:v:0", "-c", "copy", "-f", "framecrc", "-"])
    base = re.search(r"^#tb 0: (\d+)/(\d+)", said, re.MULTILINE)
    if base is None:
        raise ValueError(f"{path.name} has no video")
    tick = Fraction(int(base[1]), int(base[2]))
    packets = sorted((int(fields[2]), int(fields[3])) for line in said.splitlines() if (fields := line.split(",")) and line[:1] == "0")
    start, (last, length) = packets[0][0], packets[-1]
    duration = (last + length - start) * tick
    # Packets of a webm have no length of their own, and older ffmpegs guess that of a last one in MP4: the container tells the whole, in hundredths.
    told = re.search(r"Duration: (\d+):(\d+):(\d+\.\d+)", _said([ffmpeg, "-hide_banner", "-i", str(path)], errors=True))
    if told:
        whole = int(told[1]) * 3600 + int(told[2]) * 60 + Fraction(told[3])
        duration = whole if path.suffix == ".webm" or abs(whole - duration) > HUNDREDTHS else duration
    return [(time - start) * tick for time, _ in packets], duration


def _matrix(path: Path, ffmpeg: str) -> tuple[float, float, float]:
    said = _said([ffmpeg, "-hide_banner", "-i", str(path)], errors=True)
    return BT709 if re.search(r"Video: .*\bbt709\b", said) else BT601


def _said(argv: list[str], *, errors: bool = False) -> str:
    done = subprocess.run(argv, capture_output=True, check=False)
    return (done.stderr if errors else done.stdout).decode(errors="replace")


def _animation_times(path: Path) -> tuple[list[Fraction], Fraction]:
    times, time = [], Fraction(0)
    with Image.open(path) as animation:
        for picture in ImageSequence.Iterator(animation):
            times.append(time)
            picture.load()
            time += Fraction(str(picture.info.get("duration", 0))) / 1000
    return times, time


def _animation_planes(path: Path) -> Iterator[bytes]:
    with Image.open(path) as animation:
        for picture in ImageSequence.Iterator(animation):
            yield _Eight.planes(_Eight.luma(picture, BT709))


# --- the comparison -------------------------------------------------------------------------------------------------------------------------


def _raw(size: tuple[int, int], place: str, pixels: str = _Eight.pixels) -> list[str]:
    return ["-f", "rawvideo", "-pix_fmt", pixels, "-s", f"{size[0]}x{size[1]}", "-framerate", "25", "-i", place]


def _scores(
    command: list[str], source: list[str], size: tuple[int, int], *, pictures: Iterator[bytes] | None, expected: Iterator[bytes], pixels: str
) -> list[float]:
    """SSIM of each pair of pictures, in order; their times play no part any more."""
    with contextlib.ExitStack() as stack:
        pipes: list[int] = []
        writers: list[tuple[BinaryIO, Iterator[bytes]]] = []
        for planes in (pictures, expected):
            if planes is None:
                continue
            read, write = os.pipe()
            pipes.append(read)
            writers.append((stack.enter_context(open(write, "wb")), planes))
        first = [part.format(pipes[0]) for part in source] if pictures is not None else source
        same = "setparams=range=tv,settb=1/25,setpts=N"
        graph = f"[0:v]scale=out_range=tv:flags=accurate_rnd,format={pixels},{same}[a];[1:v]{same}[b];[a][b]ssim=stats_file=-"
        argv = [*command, "-v", "error", "-nostdin", *first, *_raw(size, f"pipe:{pipes[-1]}", pixels), "-lavfi", graph]
        argv += ["-fps_mode", "passthrough", "-f", "null", "-"]
        process = stack.enter_context(subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, pass_fds=pipes))
        for read in pipes:
            os.close(read)
        threads = [threading.Thread(target=_write, args=writer, daemon=True) for writer in writers]
        for thread in threads:
            thread.start()
        said, complaint = process.communicate()
        for thread in threads:
            thread.join()
        if process.returncode:
            raise ValueError(f"ffmpeg could not compare: {complaint.decode(errors='replace')[-300:]}")
    return [float(score) for score in re.findall(rb"\bY:([0-9.]+)", said)]


def _write(file: BinaryIO, planes: Iterator[bytes]) -> None:
    with contextlib.suppress(BrokenPipeError), file:
        file.writelines(planes)
