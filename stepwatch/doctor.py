"""``stepwatch doctor``: what this machine has and lacks, one finding a line."""

from __future__ import annotations

import itertools
import os
import platform
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

from stepwatch import __version__, config, encoder, flow, hook, ledger, status, system
from stepwatch.core.codecs import CODECS
from stepwatch.core.plan import plural
from stepwatch.core.policy import DaemonConfig, ServiceConfig, WatchEntry
from stepwatch.errors import ConfigError, EnvironmentFault, MissingToolError, StepwatchError

MOST_FOLDERS = 200_000
"""Folders that are counted below the watched ones; whoever has more has too many to watch."""
LIMITS = Path("/proc/sys/fs/inotify")

FILTERS = ("format", "fps", "framerate", "minterpolate", "palettegen", "paletteuse", "scale", "setparams", "setpts", "settb", "tpad", "trim")
"""What ``graph`` builds with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at."""

    subject: str
    state: Literal["ok", "warning", "problem"]
    sentence: str
    exit_code: int = 0
    hint: str = ""


def examine(*, config_file: Path | None, unit: Path | None = None) -> list[Finding]:
    """Look at everything that a render and the daemon need.

    *config_file* is the service file of the command line, *unit* the file that would start the daemon at login.
    """
    findings = [
        Finding(subject="stepwatch", state="ok", sentence=f"{__version__} on Python {platform.python_version()} ({sys.executable})"),
        _pillow(),
        _flow(),
    ]
    service = ServiceConfig()
    try:
        service = config.load_service(config_file)
        findings.append(_configuration(config_file))
    except ConfigError as error:
        findings += [_problem("configuration", error, complaint) for complaint in error.complaints]
    findings += _ffmpeg(service.ffmpeg)
    findings.append(_children())
    findings += itertools.chain.from_iterable(_watched(entry, service.daemon) for entry in service.watch)
    findings += _hooks(service)
    findings += _limits([Path(entry.path) for entry in service.watch])
    findings += _state()
    findings += _daemon(service, unit)
    findings.append(_space(Path.cwd(), service.daemon))
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


def _flow() -> Finding:
    try:
        version = flow.version()
    except MissingToolError as error:
        return _problem("mci", error)
    if version is None:
        sentence = "motion is found by ffmpeg's minterpolate; with the extra stepwatch[flow] it is found better, and many times faster"
        return Finding(subject="mci", state="ok", sentence=sentence)
    return Finding(subject="mci", state="ok", sentence=f"motion is found by optical flow (OpenCV {version})")


def _configuration(config_file: Path | None) -> Finding:
    path = config.service_file(config_file)
    sentence = f"{path} is in order" if path is not None else "there is no service file, so all is default; render needs none"
    return Finding(subject="configuration", state="ok", sentence=sentence)


# --- watched folders


def _watched(entry: WatchEntry, daemon: DaemonConfig) -> Iterator[Finding]:
    folder = Path(entry.path)
    if not folder.is_dir():
        hint = "it is watched as soon as it is there; make it, or correct `watch` in the service file"
        yield Finding(subject="watched", state="warning", sentence=f"{folder} is not there", hint=hint)
        return
    if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(subject="watched", state="warning", sentence=f"{folder} cannot be read and written by this user")
        return
    yield _space(folder, daemon, subject="watched")
    yield _file_system(folder, entry)
    try:
        durable = system.fsync_folder(folder)
    except OSError as error:
        yield Finding(subject="durability", state="warning", sentence=f"{folder} cannot be synced: {error.strerror}", hint="its disk may be failing")
        return
    if not durable:
        sentence = f"{folder} does not say when a change is safe on its disk, so frames are rendered there and never cleared"
        yield Finding(subject="durability", state="warning", sentence=sentence)


def _file_system(folder: Path, entry: WatchEntry) -> Finding:
    kind = system.file_system(folder)
    named = f"{folder} is on {kind or 'a file system without a name'}"
    remote = system.is_remote(kind)
    if entry.poll == "off" and remote:
        hint = "set `poll: auto` for it: changes by other machines are noticed every daemon.rescan only"
        return Finding(subject="file system", state="warning", sentence=f"{named}, which tells of no change, and poll is off", hint=hint)
    if entry.poll == "auto":
        how = "which tells of no change by other machines, so it is polled" if remote else "which tells of changes, so events are used"
    else:
        how = "with events alone" if entry.poll == "off" else f"and is polled every {float(entry.poll):g} s, as the service file says"
    return Finding(subject="file system", state="ok", sentence=f"{named}, {how}")


def _hooks(service: ServiceConfig) -> Iterator[Finding]:
    """The hooks of the hosts to which the watched folders belong."""
    for folder in hook.near(Path(entry.path) for entry in service.watch):
        for one in hook.installed(folder):
            state: Literal["ok", "warning"] = "ok" if one.state in ("current", "absent") else "warning"
            yield Finding(subject="hook", state=state, sentence=hook.sentence(one), hint=hook.remedy(one))


def _limits(watched: Sequence[Path]) -> Iterator[Finding]:
    """The kernel's limits of file watches, held against the folders that want one each."""
    limits = {}
    for name in ("max_user_watches", "max_user_instances"):
        with suppress(OSError, ValueError):
            limits[name] = int((LIMITS / name).read_text(encoding="ascii"))
    if len(limits) < 2:  # Not Linux: other systems watch whole trees at once.
        return
    folders = sum(1 for _ in itertools.islice(_folders_below(watched), MOST_FOLDERS))
    most = limits["max_user_watches"]
    counted = f"{'at least ' if folders >= MOST_FOLDERS else ''}{plural(folders, 'folder')} below the watched ones"
    sentence = f"{most} file watches and {limits['max_user_instances']} watchers for each user; {counted}"
    if folders > most // 2:
        wanted = 1 << (4 * folders).bit_length()
        hint = f"folders without a watch are polled; `sudo sysctl fs.inotify.max_user_watches={wanted}` raises the limit"
        yield Finding(subject="watch limits", state="warning", sentence=sentence, hint=hint)
    elif limits["max_user_instances"] < 2 + len(watched):
        hint = "`sudo sysctl fs.inotify.max_user_instances=1024` raises the limit"
        yield Finding(subject="watch limits", state="warning", sentence=sentence, hint=hint)
    else:
        yield Finding(subject="watch limits", state="ok", sentence=sentence)


def _folders_below(watched: Iterable[Path]) -> Iterator[str]:
    for top in watched:
        for place, _, _ in os.walk(top):
            yield place


# --- the daemon


def _state() -> Iterator[Finding]:
    folder = system.state_dir()
    there = next(place for place in (folder, *folder.parents) if place.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        hint = "without receipts the daemon renders nothing, and nothing is ever cleared; set XDG_STATE_HOME to a folder of yours"
        yield Finding(
            subject="state", state="problem", sentence=f"receipts cannot be kept in {folder}: {there} cannot be written", exit_code=1, hint=hint
        )
        return
    path = folder / "receipts.db"
    if not path.exists():
        yield Finding(subject="state", state="ok", sentence=f"no receipts yet; they will be in {folder}")
        return
    yield _receipts(path)
    aside = [one.name for kind in ("corrupt", "newer", "older") for one in sorted(folder.glob(f"{path.name}.{kind}-*Z"))]
    if aside:
        hint = "they are kept for you to look at; nothing needs them"
        yield Finding(subject="state", state="warning", sentence=f"set aside in {folder}: {', '.join(aside[:3])}", hint=hint)


def _receipts(path: Path) -> Finding:
    """Look into the receipts without opening them for good, which would set a damaged file aside."""
    try:
        with closing(sqlite3.connect(f"file:{quote(os.fsencode(path))}?mode=ro", uri=True, timeout=2)) as connection:
            ((said,),) = connection.execute("PRAGMA quick_check(1)").fetchall()
            ((schema,),) = connection.execute("PRAGMA user_version").fetchall()
            ((count,),) = connection.execute("SELECT count(*) FROM runs").fetchall() if schema == ledger.SCHEMA else ((0,),)
    except sqlite3.Error as error:
        said, schema, count = str(error), ledger.SCHEMA, 0
    hint = "the daemon sets them aside and begins new ones, which it fills from what the animations say of themselves"
    if said != "ok":
        return Finding(subject="receipts", state="warning", sentence=f"{path} is damaged: {said}", hint=hint)
    if schema != ledger.SCHEMA:
        older = "an older" if schema < ledger.SCHEMA else "a newer"
        return Finding(subject="receipts", state="warning", sentence=f"{path} is of {older} stepwatch", hint=hint)
    return Finding(subject="receipts", state="ok", sentence=f"{plural(count, 'run')} in {path}, which is in order")


def _daemon(service: ServiceConfig, unit: Path | None) -> Iterator[Finding]:
    """Whether one runs, and whether one would start at login."""
    running = 0
    for place in status.sockets_in(system.runtime_dir()):
        try:
            answer = status.ask(place, "status")
        except EnvironmentFault as error:
            yield Finding(subject="daemon", state="warning", sentence=f"{error.message} ({place})", hint=error.hint)
            continue
        if answer is not None:
            running += 1
            yield _running(answer)
    installed = unit is not None and unit.is_file()
    if not running:
        hint = "" if installed or not service.watch else "`stepwatch service install` has it started at every login"
        yield Finding(subject="daemon", state="ok", sentence="none is running; `stepwatch watch` starts one", hint=hint)
    if unit is not None:
        sentence = f"{unit} starts the daemon" if installed else f"not installed (there is no {unit})"
        yield Finding(subject="service", state="ok", sentence=sentence)


def _running(answer: Mapping[str, Any]) -> Finding:
    daemon, folders = answer["daemon"], answer["folders"]
    since = time.strftime("%Y-%m-%d %H:%M", time.localtime(daemon["started"]))
    sentence = f"process {daemon['pid']} runs since {since}, version {daemon['version']}, and watches {plural(len(folders), 'folder')}"
    troubled = [f"{folder['path']} is {folder['state']}: {folder['reason']}" for folder in folders if folder["state"] in ("paused", "asleep")]
    if daemon["version"] != __version__:
        hint = f"this is {__version__}: start it anew"
        return Finding(subject="daemon", state="warning", sentence=sentence, hint=hint)
    if troubled:
        return Finding(subject="daemon", state="warning", sentence=f"{sentence}; {'; '.join(troubled)}")
    return Finding(subject="daemon", state="ok", sentence=sentence)


# --- programs


def _children() -> Finding:
    """Whether ffmpeg can be made to die with stepwatch, however stepwatch dies."""
    if system.child_prefix():
        return Finding(subject="setpriv", state="ok", sentence="ffmpeg ends with stepwatch, even when that is killed")
    if not sys.platform.startswith("linux"):
        return Finding(subject="setpriv", state="ok", sentence="not on this system: after a kill -9 ffmpeg ends when it notices that nobody feeds it")
    sentence = "there is no setpriv of util-linux, so after a kill -9 ffmpeg ends only when it notices that nobody feeds it"
    return Finding(subject="setpriv", state="warning", sentence=sentence, hint="install util-linux")


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


def _space(folder: Path, daemon: DaemonConfig, *, subject: str = "disk") -> Finding:
    free = shutil.disk_usage(folder).free
    sentence = f"{free / 1e9:.1f} GB free in {folder}"
    if free < daemon.min_free_space:
        hint = f"make room: with less than daemon.min_free_space ({daemon.min_free_space / 1e9:g} GB) the daemon starts no render"
        return Finding(subject=subject, state="warning", sentence=sentence, hint=hint)
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
