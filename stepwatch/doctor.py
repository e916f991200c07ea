"""``stepwatch doctor``: what this machine has and lacks, one finding a line."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from stepwatch import __version__, config, encoder
from stepwatch.core.codecs import CODECS
from stepwatch.errors import ConfigError, MissingToolError, StepwatchError

LITTLE_SPACE = 1_000_000_000
"""Bytes; the daemon's own limit is ``daemon.min_free_space``, and an animation is seldom larger than a tenth of it."""


FILTERS = ("format", "fps", "framerate", "minterpolate", "palettegen", "paletteuse", "scale", "setparams", "setpts", "settb", "tpad")
"""What ``graph`` builds with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    state: Literal["ok", "warning", "problem"]
    sentence: str
    exit_code: int = 0
    hint: str = ""


def examine(*, config_file: Path | None) -> list[Finding]:
    """Look at everything that a render needs; *config_file* is the service file of the command line."""
    findings = [
        Finding(subject="stepwatch", state="ok", sentence=f"{__version__} on Python {platform.python_version()} ({sys.executable})"),
        _pillow(),
    ]
    setting = "auto"
    try:
        service = config.load_service(config_file)
        setting = service.ffmpeg
        findings.append(_configuration(config_file))
        findings += [_watched(Path(entry.path)) for entry in service.watch]
    except ConfigError as error:
        findings += [_problem("configuration", error, complaint) for complaint in error.complaints]
    findings += _ffmpeg(setting)
    findings.append(_space(Path.cwd()))
    return findings


def _problem(subject: str, error: StepwatchError, sentence: str = "") -> Finding:
    return Finding(subject=subject, state="problem", sentence=sentence or error.message, exit_code=error.exit_code, hint=error.hint)


def _pillow() -> Finding:
    import PIL
    from PIL import features

    lacking = [name for name, feature in (("JPEG", "jpg"), ("PNG", "zlib"), ("WebP", "webp")) if not features.check(feature)]
    if lacking:
        sentence = f"Pillow {PIL.__version__} was built without {', '.join(lacking)}: such frames cannot be read"
        return Finding(
            subject="images", state="warning", sentence=sentence, hint="install Pillow's own wheel: `pip install --force-reinstall pillow`"
        )
    return Finding(subject="images", state="ok", sentence=f"Pillow {PIL.__version__} reads PNG, JPEG, WebP, BMP and PPM")


def _configuration(config_file: Path | None) -> Finding:
    path = config.service_file(config_file)
    sentence = f"{path} is in order" if path is not None else "there is no service file, so all is default; render needs none"
    return Finding(subject="configuration", state="ok", sentence=sentence)


def _watched(folder: Path) -> Finding:
    if not folder.is_dir():
        return Finding(subject="watched", state="warning", sentence=f"{folder} is not there", hint="make it, or correct `watch` in the service file")
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        return Finding(subject="watched", state="warning", sentence=f"{folder} cannot be read and written by this user")
    return _space(folder, subject="watched")


def _ffmpeg(setting: str) -> Iterator[Finding]:
    try:
        path = encoder.find_ffmpeg(setting)
        able = encoder.capabilities(path)
    except MissingToolError as error:
        yield _problem("ffmpeg", error)
        return
    yield Finding(subject="ffmpeg", state="ok", sentence=f"{able.version}, {_chosen_by(path, setting)}: {path}")
    missing = [name for name in FILTERS if name not in able.filters]
    if missing:
        sentence = f"this ffmpeg has no filter {', '.join(missing)}: interpolation and gif need them"
        yield Finding(subject="filters", state="warning", sentence=sentence, hint="use another ffmpeg")
    for name, codec in CODECS.items():
        encoders = {encoding.encoder: None for encoding in codec.qualities.values()}
        lacking = [one for one in encoders if one not in able.encoders]
        default = codec.qualities["default"].encoder
        if default in lacking:
            sentence = f"this ffmpeg has no {default}, so {name} cannot be rendered"
            yield Finding(subject=f"codec {name}", state="warning", sentence=sentence, hint="use another codec, or another ffmpeg")
        elif lacking:
            qualities = ", ".join(quality for quality, encoding in codec.qualities.items() if encoding.encoder in lacking)
            sentence = f"with {default}, but quality {qualities} needs {', '.join(lacking)}, which this ffmpeg has not"
            yield Finding(subject=f"codec {name}", state="warning", sentence=sentence)
        else:
            yield Finding(subject=f"codec {name}", state="ok", sentence=f"with {', '.join(encoders)}")


def _chosen_by(path: str, setting: str) -> str:
    if setting != "auto":
        return "chosen by the service file"
    if os.environ.get("STEPWATCH_FFMPEG"):
        return "chosen by STEPWATCH_FFMPEG"
    return "the system's" if path == shutil.which("ffmpeg") else "the bundled one"


def _space(folder: Path, *, subject: str = "disk") -> Finding:
    free = shutil.disk_usage(folder).free
    sentence = f"{free / 1e9:.1f} GB free in {folder}"
    if free < LITTLE_SPACE:
        return Finding(subject=subject, state="warning", sentence=sentence, hint="make room before rendering long runs")
    return Finding(subject=subject, state="ok", sentence=sentence)


def text(findings: Sequence[Finding]) -> str:
    """One line for each finding, with its hint below it."""
    lines = []
    for finding in findings:
        lines.append(f"{finding.state:<8} {finding.subject:<14} {finding.sentence}")
        if finding.hint:
            lines.append(f"{'':<23} hint: {finding.hint}")
    return "\n".join(lines)


def facts(finding: Finding) -> dict[str, object]:
    """The same as an object for JSON."""
    return {"subject": finding.subject, "state": finding.state, "sentence": finding.sentence, "hint": finding.hint or None}
