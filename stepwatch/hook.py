"""``stepwatch hook install | uninstall | list``: the hooks, each a file or two in the folder of the program that makes the pictures.

A host is recognised by what lies in its folder, and a hook goes only where the host really looks for it. In the package the hooks share one piece
of source, the writer; an installed hook has that source in itself, so it needs nothing of stepwatch, and may be copied to where stepwatch is not.

Every file that we install says so in its first line, with a digest of the rest: where that no longer fits, somebody has edited it, and where there is
none it is somebody else's. What is edited is kept beside the new file, what is foreign is refused, and `uninstall` leaves both alone.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import json
import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, TypeVar

from stepwatch import __version__, store
from stepwatch.core.naming import printable
from stepwatch.errors import EnvironmentFault, UsageError

BEGIN = "# --- stepwatch writer: an installed hook has its source here ---\n"
END = "# --- end of the stepwatch writer ---\n"
"""Between these two lines a hook of the package imports the writer, and an installed one has it."""

NEAR = 3
"""Levels above a folder in which its host is looked for: ``ComfyUI/output/stepwatch`` belongs to ``ComfyUI``."""
READ_LIMIT = 4 * 1024 * 1024
"""Bytes of a host's or a hook's file; none comes near it."""

_MARK = re.compile(r"# stepwatch-hook (?P<host>[a-z0-9]+) (?P<version>\S+) (?P<digest>[0-9a-f]{16}): .*\n")

Changed = TypeVar("Changed")
State = Literal["current", "outdated", "edited", "foreign", "absent"]
"""What is in a hook's place: ours as we would install it, ours of another version, ours and changed by somebody, somebody else's, nothing."""


# ---------------------------------------------------------------- the hosts


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One kind of program that a hook can be installed into."""

    name: str
    title: str
    place: str
    """The hook's own folder below the host's; empty where the hook is one file among others."""
    files: Mapping[str, str]
    """What lies in that folder, and from which file of ``stepwatch/hooks`` it is made; what makes the host load the hook comes last."""
    frames: str
    """Where frames appear unless the user says otherwise, below the host's folder; empty where only the user can know."""
    steps: Sequence[str]
    """What is left to be done by hand, a sentence each."""


_WEBUI = {"metadata.ini": "webui/metadata.ini", "scripts/stepwatch.py": "webui/stepwatch_webui.py"}
_WEBUI_STEPS = (
    'restart the WebUI; then open "stepwatch: record the steps" below the settings of txt2img or img2img and tick "Record every pass"',
    'through the API: "alwayson_scripts": {"stepwatch": {"args": [true]}}',
)

HOSTS: Mapping[str, Host] = {
    host.name: host
    for host in (
        Host(name="a1111", title="AUTOMATIC1111 WebUI", place="extensions/stepwatch", files=_WEBUI, frames="outputs/stepwatch", steps=_WEBUI_STEPS),
        Host(name="forge", title="Forge", place="extensions/stepwatch", files=_WEBUI, frames="outputs/stepwatch", steps=_WEBUI_STEPS),
        Host(name="reforge", title="reForge", place="extensions/stepwatch", files=_WEBUI, frames="outputs/stepwatch", steps=_WEBUI_STEPS),
        Host(
            name="sdnext",
            title="SD.Next",
            place="extensions/stepwatch",
            files={"metadata.ini": "webui/metadata.ini", "scripts/stepwatch.py": "sdnext/stepwatch_sdnext.py"},
            frames="outputs/stepwatch",
            steps=(
                'restart SD.Next; then tick "Record every pass" in Settings > stepwatch, for all tabs',
                'or for one picture in "stepwatch: record the steps" below Extensions, in the text and image tabs',
            ),
        ),
        Host(
            name="comfyui",
            title="ComfyUI",
            place="custom_nodes/stepwatch",
            files={"pyproject.toml": "comfyui/pyproject.toml", "__init__.py": "comfyui/__init__.py"},
            frames="output/stepwatch",
            steps=(
                'restart ComfyUI; then put the node "Record steps (stepwatch)" between the model loader and the sampler',
                "or start ComfyUI with STEPWATCH_ALL=1 in its environment: then every sampler pass is recorded, without a node",
            ),
        ),
        Host(
            name="diffusers",
            title="diffusers",
            place="",
            files={"stepwatch_diffusers.py": "diffusers.py"},
            frames="",
            steps=(
                "in your program: from stepwatch_diffusers import record",
                'with record(pipe, "steps", prompt=prompt, seed=seed) as rec: image = pipe(prompt, generator=generator, **rec.kwargs).images[0]',
            ),
        ),
    )
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Recognised:
    """What a folder turned out to be."""

    host: Host | None
    version: str = ""
    too_old: str = ""
    """Why a hook would not work in this host, though it is one."""


def recognise(folder: Path) -> Recognised:
    """Say which host lies in *folder*, by the files that only this one has; a folder that cannot be read is no host."""
    if _has(folder, "comfy/samplers.py", "execution.py", "folder_paths.py", "nodes.py"):
        version = _found(folder / "comfyui_version.py", r"""__version__ = ["']([^"']+)""")
        lacking = "" if "OUTER_SAMPLE" in _text(folder / "comfy/patcher_extension.py") else "it has no wrapper OUTER_SAMPLE yet, which came in 2024"
        return Recognised(host=HOSTS["comfyui"], version=version, too_old=lacking)
    if all((folder / name).is_dir() for name in ("custom_nodes", "models", "output", "user")) and not _has(folder, "main.py"):
        # What ComfyUI Desktop, and --base-directory, keep apart from the program.
        return Recognised(host=HOSTS["comfyui"])
    if _has(folder, "installer.py", "modules/sd_samplers_diffusers.py"):
        version = _found(folder / "CHANGELOG.md", r"## Update for ([0-9-]+)")
        lacking = "" if _has(folder, "modules/processing_callbacks.py") else "it has no modules/processing_callbacks.py yet, which came in 2024"
        return Recognised(host=HOSTS["sdnext"], version=version, too_old=lacking)
    if not _has(folder, "webui.py", "modules/processing.py", "modules/scripts.py", "modules/sd_samplers_kdiffusion.py"):
        return Recognised(host=None)
    point = "process_before_every_sampling"
    lacking = "" if point in _text(folder / "modules/scripts.py") else f"its scripts have no {point} yet: A1111 has it since 1.10"
    if not (folder / "modules_forge").is_dir():
        return Recognised(host=HOSTS["a1111"], version=_found(folder / "CHANGELOG.md", r"## ([0-9][0-9a-z.-]*)"), too_old=lacking)
    version = _found(folder / "modules_forge/forge_version.py", r"""version = ["']([^"']+)""")
    # reForge grew from an early Forge and has no file for its name; what it added to the built-in extensions bears it.
    name = "reforge" if any("reforge" in name.lower() for name in _names(folder / "extensions-builtin")) else "forge"
    return Recognised(host=HOSTS[name], version=version, too_old=lacking)


def _has(folder: Path, *names: str) -> bool:
    return all((folder / name).is_file() for name in names)


def _names(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _text(path: Path) -> str:
    """Read a file of somebody else's for a word in it; what cannot be read has none."""
    try:
        return store.read_capped(Path(os.path.realpath(path)), READ_LIMIT).decode("utf-8", "replace")
    except OSError:
        return ""


def _found(path: Path, pattern: str) -> str:
    found = re.search(rf"^{pattern}", _text(path), re.MULTILINE)
    return printable(found[1])[:40] if found else ""


def near(places: Iterable[Path]) -> list[Path]:
    """Find the hosts to which folders of frames belong, each once."""
    found: dict[Path, None] = {}
    for place in places:
        for folder in (place, *place.parents[:NEAR]):
            if recognise(folder).host is not None:
                found[folder] = None
                break
    return list(found)


# ---------------------------------------------------------------- the files of a hook


def sidecar_schema() -> dict[str, Any]:
    """Return the JSON Schema of ``run.json``."""
    schema: dict[str, Any] = json.loads(_source("run.schema.json"))
    return schema


@cache
def contents(name: str) -> Mapping[str, str]:
    """Make the files of the hook for the host *name*, as they are installed."""
    host = HOSTS[name]
    made = {}
    for target, source in host.files.items():
        content = _source(source)
        if target.endswith(".py"):
            content = _self_contained(content, source)
        made[target] = f"# stepwatch-hook {name} {__version__} {_digest(content)}: installed by `stepwatch hook install {name}`\n{content}"
    return made


def _source(name: str) -> str:
    return files("stepwatch").joinpath("hooks", *name.split("/")).read_text(encoding="utf-8")


def _self_contained(content: str, source: str) -> str:
    """Put the writer's own source where the hook imports it."""
    before, begin, rest = content.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert begin, f"{source} has a place for the writer"
    assert end, f"{source} has an end of that place"
    writer = re.sub(r"^from __future__ import .*\n", "", _source("writer.py"), flags=re.MULTILINE)
    whole = f"{before}{BEGIN}{writer.strip()}\n{END}{after}"
    ast.parse(whole)
    return whole


def _digest(content: str) -> str:
    return hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One file in a hook's place."""

    state: State
    host: str = ""
    version: str = ""


def _examined(path: Path, wanted: str) -> Found:
    if path.is_symlink():
        return Found(state="foreign")
    try:
        content = store.read_capped(path, READ_LIMIT).decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    except FileNotFoundError:
        return Found(state="absent")
    except OSError:
        return Found(state="foreign")
    mark = _MARK.match(content)
    if mark is None:
        return Found(state="foreign")
    ours = _digest(content[mark.end() :]) == mark["digest"]
    state: State = "edited" if not ours else "current" if content == wanted else "outdated"
    return Found(state=state, host=mark["host"], version=mark["version"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Hook:
    """A host's folder, and the hook in it."""

    host: Host
    folder: Path
    host_version: str
    files: Mapping[Path, Found]
    too_old: str = ""

    @property
    def place(self) -> Path:
        return self.folder / self.host.place

    @property
    def state(self) -> State:
        """The state of the whole: of its files, the one that a person has to know of first."""
        states = {found.state for found in self.files.values()}
        if states == {"absent", "current"}:
            return "outdated"
        return next(state for state in ("foreign", "edited", "outdated", "current", "absent") if state in states)

    @property
    def version(self) -> str:
        return next((found.version for found in reversed(list(self.files.values())) if found.version), "")

    @property
    def frames(self) -> Path | None:
        return self.folder / self.host.frames if self.host.frames else None


def look(host: Host, folder: Path) -> Hook:
    """Examine the hook for *host* in *folder*, whether or not the host itself is there."""
    folder = Path(os.path.abspath(folder))
    found = recognise(folder)
    known = found.host is host
    examined = {folder / host.place / name: _examined(folder / host.place / name, content) for name, content in contents(host.name).items()}
    return Hook(host=host, folder=folder, host_version=found.version if known else "", files=examined, too_old=found.too_old if known else "")


def installed(folder: Path) -> list[Hook]:
    """The hook of the host in *folder*, there or not; and one that is a file for itself. Raises UsageError for a folder that is neither."""
    found = recognise(folder)
    hooks = [look(found.host, folder)] if found.host else []
    alone = look(HOSTS["diffusers"], folder)
    if alone.state != "absent":
        hooks.append(alone)
    if not hooks:
        raise UsageError(f"{printable(str(folder))} is no host that stepwatch knows", hint=_hint(folder))
    return hooks


# ---------------------------------------------------------------- install


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a command did, or would do."""

    hook: Hook
    sentences: list[str] = field(default_factory=list)
    written: list[Path] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    kept: list[Path] = field(default_factory=list)
    policy: str = ""
    """A ``stepwatch.yaml`` for the frames."""
    watch: str = ""
    """The command that has the daemon watch them."""


def install(name: str, folder: Path, *, dry: bool = False) -> Outcome:
    """Put the hook for the host *name* into *folder*, or bring the one that is there up to date; with *dry* only say what would be done.

    Raises UsageError for what is not that host or has no room for a hook of ours, and EnvironmentFault where it cannot be written.
    """
    host = HOSTS[name]
    hook = look(host, folder)
    _require_host(host, hook.folder)
    _require_room(hook)
    outcome = Outcome(hook=hook)
    say = outcome.sentences.append
    if hook.state == "current":
        say(f"the hook for {host.title} {hook.version} in {_shown(hook.place)} is up to date")
    else:
        for path, content in zip(hook.files, contents(name).values(), strict=True):
            if hook.files[path].state == "current":
                continue
            if hook.files[path].state == "edited":
                outcome.kept.append(path if dry else _change(store.set_aside, path))
                say(f"{_shown(path)} has been edited: it {'would be kept beside the new one' if dry else f'is now {_shown(outcome.kept[-1])}'}")
            if not dry:
                _change(_write, path, content)
            outcome.written.append(path)
            say(f"{'would write' if dry else 'wrote'} {_shown(path)}")
    if not dry:
        outcome.hook = look(host, folder)
        if hook.frames and not hook.frames.exists():
            # The host would make it with the first run; but `stepwatch watch` and a stepwatch.yaml want it before that.
            with contextlib.suppress(OSError):
                hook.frames.mkdir(parents=True)
    outcome.sentences += _left_to_do(hook, outcome)
    return outcome


def _require_host(host: Host, folder: Path) -> None:
    shown = _shown(folder)
    if not folder.is_dir():
        raise UsageError(f"{shown} is not a folder", hint=f"name the folder of {host.title}")
    found = recognise(folder)
    if found.host is None and host.place:
        raise UsageError(f"{shown} is not the folder of {host.title}", hint=_hint(folder, host))
    if found.host is not None and found.host is not host:
        raise UsageError(f"{shown} is {found.host.title}, not {host.title}", hint=f"`stepwatch hook install {found.host.name} {shown}`")
    if found.too_old:
        version = f" {found.version}" if found.version else ""
        raise UsageError(f"this {host.title}{version} is too old: {found.too_old}", hint="update it, then install the hook")


def _hint(folder: Path, wanted: Host | None = None) -> str:
    """Where the host may be that somebody means."""
    below = [folder / name for name in sorted(_names(folder))[:200] if not name.startswith(".")]
    around = [(place, found) for place in (*folder.parents[:NEAR], *below) if (found := recognise(place).host) is not None]
    around.sort(key=lambda one: one[1] is not wanted)
    if around:
        place, found = around[0]
        return f"{_shown(place)} is {found.title}: name that folder"
    return "name the folder that the host itself lies in, with its webui.py, or main.py and custom_nodes; `diffusers` takes any folder"


def _require_room(hook: Hook) -> None:
    """Refuse what we would have to write over, or into somebody else's folder."""
    steps = [hook.place.parent, hook.place, *(path.parent for path in hook.files)] if hook.host.place else [hook.place]
    for place in dict.fromkeys(steps):
        if place.is_symlink() and place not in (hook.place.parent, hook.folder):
            raise UsageError(
                f"{_shown(place)} is a link to {_shown(os.path.realpath(place))}, so its files are not ours to change",
                hint="remove the link, and install again",
            )
        if os.path.lexists(place) and not place.is_dir():
            raise UsageError(f"{_shown(place)} is not a folder", hint="move it away, and install again")
    foreign = [path for path, found in hook.files.items() if found.state == "foreign"]
    if not foreign and hook.host.place and hook.state == "absent":
        foreign = [hook.place / name for name in sorted(_names(hook.place))][:1]
    if foreign:
        raise UsageError(
            f"{_shown(foreign[0])} is there already, and `stepwatch hook install` did not write it", hint="move it away, and install again"
        )
    there = next(place for place in (hook.place, *hook.place.parents) if place.is_dir())
    if not os.access(there, os.W_OK | os.X_OK):
        raise EnvironmentFault(f"{_shown(there)} may not be written by this user", hint="install as the user who runs the host")


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = store.temporary_path(path.parent, "")
    try:
        temporary.write_text(content, encoding="utf-8", newline="\n")
        store.fsync_file(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _change(change: Callable[..., Changed], path: Path, *more: object) -> Changed:
    try:
        return change(path, *more)
    except OSError as error:
        raise EnvironmentFault(f"cannot change {_shown(path)}: {printable(str(error.strerror or error)).lower()}") from error


def _left_to_do(hook: Hook, outcome: Outcome) -> Iterator[str]:
    """What the user does now, where frames will appear, and how the daemon hears of them."""
    yield from hook.host.steps
    folder = hook.frames
    place = _quoted(str(folder)) if folder else "DIR"
    yield f"frames will appear in {_shown(folder)}, a folder for each run" if folder else "frames will appear in the folder that you give to record()"
    outcome.watch = f"stepwatch watch {place}"
    outcome.policy = "version: 1\ntimeline: {duration: 8s, interpolation: blend, hold_last: 1s}\noutputs: [h264]\ncleanup: {intermediates: keep}\n"
    yield f"have them watched: {outcome.watch}"
    yield "what animations look like stands in a stepwatch.yaml in that folder:"
    yield from (f"  {line}" for line in outcome.policy.splitlines())


def _quoted(path: str) -> str:
    return shlex.quote(printable(path))


def _shown(path: object) -> str:
    return printable(str(path))


# ---------------------------------------------------------------- uninstall


def uninstall(name: str, folder: Path, *, dry: bool = False) -> Outcome:
    """Remove the files of the hook that are as we installed them, and the folders that this leaves empty; say what stays."""
    host = HOSTS[name]
    hook = look(host, folder)
    if not hook.folder.is_dir():
        raise UsageError(f"{_shown(hook.folder)} is not a folder", hint=f"name the folder of {host.title}")
    other = next((found.host for found in hook.files.values() if found.host not in ("", name)), None)
    if other is not None:
        raise UsageError(f"the hook in {_shown(hook.place)} is that for {other}", hint=f"`stepwatch hook uninstall {other} {_shown(hook.folder)}`")
    outcome = Outcome(hook=hook)
    say = outcome.sentences.append
    if hook.place.is_symlink() and host.place:
        say(f"{_shown(hook.place)} is a link, so it stays as it is")
        return outcome
    # The file that the host loads goes first: half a hook must not be loaded.
    for path, found in reversed(list(hook.files.items())):
        if found.state in ("current", "outdated"):
            outcome.removed += [path, *_compiled(path)]
            say(f"{'would remove' if dry else 'removed'} {_shown(path)}")
        elif found.state != "absent":
            outcome.kept.append(path)
            say(f"{_shown(path)} {'has been edited' if found.state == 'edited' else 'is not ours'}, so it stays")
    if not outcome.removed:
        if not outcome.kept:
            say(f"there is no hook for {host.title} in {_shown(hook.folder)}")
        return outcome
    for path in outcome.removed if not dry else ():
        _change(os.unlink, path)
    if host.place:
        gone = {*outcome.removed, *outcome.kept}
        others = [path for path in sorted(hook.place.rglob("*")) if not path.is_dir() and path not in gone]
        outcome.kept += others
        outcome.sentences += [f"{_shown(path)} is not ours, so it stays" for path in others]
    if not dry:
        if host.place:
            _remove_empty(hook.place)
        outcome.hook = look(host, folder)
    return outcome


def _compiled(path: Path) -> list[Path]:
    """What Python made of a file of ours when the host loaded it."""
    return sorted((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))


def _remove_empty(folder: Path) -> None:
    for place, _, _ in os.walk(folder, topdown=False):
        if not os.listdir(place):
            _change(os.rmdir, Path(place))


# ---------------------------------------------------------------- what is shown


def sentence(hook: Hook) -> str:
    """One line about a hook, for ``hook list`` and ``doctor``."""
    host = f"{hook.host.title}{f' {hook.host_version}' if hook.host_version else ''}"
    said = {
        "current": f"hook {hook.version}, up to date",
        "outdated": f"hook {hook.version}, not the one of this stepwatch ({__version__})",
        "edited": f"hook {hook.version}, edited since it was installed",
        "foreign": f"{_shown(hook.place)} is not a hook that stepwatch installed",
        "absent": "no hook",
    }[hook.state]
    return f"{host} in {_shown(hook.folder)}: {said}"


def remedy(hook: Hook) -> str:
    """What would bring a hook up to date; empty where nothing has to be done."""
    if hook.state in ("outdated", "absent"):
        return f"`stepwatch hook install {hook.host.name} {_quoted(str(hook.folder))}`"
    return ""


def facts(hook: Hook) -> dict[str, object]:
    """The same as an object for JSON."""
    return {
        "host": hook.host.name,
        "host_version": hook.host_version or None,
        "path": str(hook.folder),
        "place": str(hook.place),
        "state": hook.state,
        "version": hook.version or None,
        "frames": str(hook.frames) if hook.frames else None,
    }


def outcome_facts(outcome: Outcome) -> dict[str, object]:
    """What a command did, as an object for JSON."""
    return {
        **facts(outcome.hook),
        "written": [str(path) for path in outcome.written],
        "removed": [str(path) for path in outcome.removed],
        "kept": [str(path) for path in outcome.kept],
        "watch": outcome.watch or None,
        "policy": outcome.policy or None,
        "done": outcome.sentences,
    }
