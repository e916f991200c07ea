"""What people use instead, as command lines over the same numbered images.

*Steps Animation*'s is built from its published parameters, which stepwatch has as the quality ``classic``. Whatever is not on the machine says so.
"""

from __future__ import annotations

import functools
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from stepwatch.core.codecs import CODECS
from tests.benchmarks.inputs import Frames

FPS = 30
"""Pictures a second of every video here, as in *Steps Animation*."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The same work for everybody."""

    frames: Frames
    rate: Fraction
    """Images a second."""
    codec: str
    interpolation: str
    ffmpeg: str
    out: Path

    @property
    def rate_text(self) -> str:
        return f"{self.rate.numerator}/{self.rate.denominator}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Somebody else's way."""

    name: str
    command: Callable[[Job], list[str]]
    missing: Callable[[Job], str] = lambda _: ""
    """Why it cannot be measured here; empty when it can."""


@functools.cache
def _filters(ffmpeg: str) -> frozenset[str]:
    said = subprocess.run([ffmpeg, "-hide_banner", "-filters"], capture_output=True, text=True, check=False).stdout
    return frozenset(parts[1] for line in said.splitlines() if len(parts := line.split()) > 2)


@functools.cache
def _encoders(ffmpeg: str) -> frozenset[str]:
    said = subprocess.run([ffmpeg, "-hide_banner", "-encoders"], capture_output=True, text=True, check=False).stdout
    return frozenset(parts[1] for line in said.splitlines() if len(parts := line.split()) > 2)


def _encoder_missing(name: str) -> Callable[[Job], str]:
    return lambda job: "" if name in _encoders(job.ffmpeg) else f"this ffmpeg has no {name}"


def _classic(job: Job) -> list[str]:
    encoding = CODECS[job.codec].qualities["classic"]
    options = [part for option, value in encoding.options for part in (f"-{option}", value)]
    return ["-vcodec", encoding.encoder, *options, "-pix_fmt", encoding.pixels]


def _input(job: Job) -> list[str]:
    return ["-hide_banner", "-loglevel", "error", "-y", "-framerate", job.rate_text, "-i", job.frames.pattern]


def _steps_animation(job: Job) -> list[str]:
    # ffmpeg 7 has lost `fifo`, which did nothing here but cost a thread.
    fifo = ",fifo" if "fifo" in _filters(job.ffmpeg) else ""
    between = [] if job.interpolation == "none" else ["-vf", f"minterpolate=mi_mode={job.interpolation}{fifo}"]
    faststart = ["-movflags", "+faststart"] if CODECS[job.codec].suffix in (".mp4", ".mov") else []
    return [job.ffmpeg, "-hwaccel", "auto", *_input(job), "-r", str(FPS), *_classic(job), *between, *faststart, str(job.out)]


def _filtered(job: Job, filters: str) -> list[str]:
    return [job.ffmpeg, *_input(job), "-vf", f"{filters},format=yuv420p", *_classic(job), "-movflags", "+faststart", str(job.out)]


def _framerate(job: Job) -> list[str]:
    return _filtered(job, f"framerate=fps={FPS}:interp_start=0:interp_end=255:scene=100")


def _tmix(job: Job) -> list[str]:
    return _filtered(job, f"fps={FPS},tmix=frames={round(FPS / job.rate)}")


def _video_combine(job: Job) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.others", "video-combine", str(job.frames.folder), str(job.out), job.rate_text, job.ffmpeg]


def _pillow(job: Job) -> list[str]:
    return [sys.executable, "-m", "tests.benchmarks.others", "pillow", str(job.frames.folder), str(job.out), job.rate_text]


def _palettegen(dither: str) -> Callable[[Job], list[str]]:
    graph = f"split[a][b];[a]palettegen=stats_mode=full[p];[b][p]paletteuse=dither={dither}"
    return lambda job: [job.ffmpeg, *_input(job), "-filter_complex", graph, str(job.out)]


def _libwebp_anim(job: Job) -> list[str]:
    return [job.ffmpeg, *_input(job), "-c:v", "libwebp_anim", "-loop", "0", str(job.out)]


def _img2webp(job: Job) -> list[str]:
    shown = ["-d", str(round(1000 / job.rate)), *map(str, job.frames.paths())]
    return ["img2webp", "-loop", "0", "-lossy", "-q", "70", "-m", "2", *shown, "-o", str(job.out)]


def _apng(job: Job) -> list[str]:
    return [job.ffmpeg, *_input(job), "-plays", "0", "-f", "apng", str(job.out)]


SEED = Peer(
    name="Steps Animation",
    command=_steps_animation,
    missing=lambda job: _encoder_missing(CODECS[job.codec].qualities["classic"].encoder)(job),
)
FRAMERATE = Peer(name="ffmpeg framerate", command=_framerate)
TMIX = Peer(name="ffmpeg tmix", command=_tmix)
VIDEO_COMBINE = Peer(name="Video Combine's way", command=_video_combine)
PALETTE = Peer(name="ffmpeg palettegen", command=_palettegen("sierra2_4a"))
PALETTE_BAYER = Peer(name="ffmpeg palettegen, bayer", command=_palettegen("bayer:bayer_scale=4"))
PILLOW = Peer(name="Pillow", command=_pillow)
LIBWEBP_ANIM = Peer(name="ffmpeg libwebp_anim", command=_libwebp_anim, missing=_encoder_missing("libwebp_anim"))
IMG2WEBP = Peer(name="img2webp", command=_img2webp, missing=lambda _: "" if shutil.which("img2webp") else "img2webp is not installed")
APNG = Peer(name="ffmpeg apng", command=_apng)
