"""Files to settings: one source is read into settings of their fields' types, and everything wrong with it into complaints.

Trust needs facts about a file (owner, mode, links); they are gathered here while the file is open, and judged in ``core.policy``.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import re
import stat
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from stepwatch.config import strict_yaml
from stepwatch.config.strict_yaml import Fault, Node, shown
from stepwatch.config.values import WrongValue, check
from stepwatch.core import policy as model
from stepwatch.core.policy import Layer, Policy, Reset, ServiceConfig, Setting, WatchEntry
from stepwatch.errors import ConfigError

FILE_NAME = "stepwatch.yaml"
SERVICE_NAME = "service.yaml"
MACHINE_FOLDER = Path("/etc/stepwatch")
MOST_COMPLAINTS = 50
MOST_LISTED = 64
MOST_CACHED = 4096

_Section = TypeVar("_Section")


class Reader:
    """Turns the nodes of one source into settings, and collects what is wrong."""

    def __init__(self, source: str, faults: Iterable[Fault] = (), *, lines: bool = True) -> None:
        self.source = source
        self.faults = list(faults)
        self.lines = lines
        self.settings: list[Setting] = []

    def complaints(self) -> tuple[str, ...]:
        """Every fault as ``file:line:column: key: what is wrong (got VALUE); what would be right``, in the order of the file."""
        faults = sorted(self.faults, key=lambda fault: (fault.line, fault.column)) if self.lines else self.faults
        texts = [f"{self.source}:{fault.line}:{fault.column}: {fault}" if self.lines else f"{self.source}: {fault}" for fault in faults]
        more = len(texts) - MOST_COMPLAINTS
        return (*texts[:MOST_COMPLAINTS], *([f"{self.source}: and {more} more"] if more > 0 else []))

    def complain(self, node: Node, key: str, wrong: str, right: str) -> None:
        """Note that a value cannot be what its key needs."""
        self.faults.append(Fault(line=node.line, column=node.column, key=key, wrong=wrong, right=right, got=node.written or None))

    def origin(self, node: Node) -> str:
        """Say where a value stands."""
        return f"{self.source}:{node.line}" if self.lines else self.source

    def policy(self, node: Node, *, prefix: str = "") -> tuple[Setting, ...]:
        """Read a whole policy; ``prefix`` is the key of its mapping, for complaints only."""
        self.settings = []
        if node.value is not None:
            self._section(node, Policy, "", prefix)
        self._check_rivals(node, prefix)
        return tuple(self.settings)

    def assign(self, path: str, node: Node) -> None:
        """Read one ``--set``: a dotted key and its value."""
        parts = path.split(".")
        if parts[0] == "outputs" and len(parts) in {2, 3} and re.fullmatch(r"[0-9]{1,3}", parts[1]):
            inside = Node(value={parts[2]: strict_yaml.Entry(node=node)}, written="a mapping") if len(parts) == 3 else node
            self._output(inside, int(parts[1]), "")
            return
        for part in reversed(parts):
            node = Node(value={part: strict_yaml.Entry(node=node)}, written="a mapping")
        self._section(node, Policy, "", "")

    def members(self, node: Node, known: Iterable[str], key: str) -> Iterable[tuple[str, strict_yaml.Entry]]:
        """Go through the keys of a mapping that are known, complaining about the others."""
        names = list(known)
        if not isinstance(node.value, dict):
            self.complain(node, key.rstrip("."), "this must be a mapping of keys to values", f"the keys are {', '.join(names)}")
            return
        for name, entry in node.value.items():
            if name in names:
                yield name, entry
            else:
                right = _suggest(name, names, key)
                self.faults.append(Fault(line=entry.line, column=entry.column, key=key + shown(name), wrong="there is no such key", right=right))

    def leaf(self, node: Node, hint: object, key: str) -> object:
        """Check one value; a wrong one is noted and comes back as None."""
        try:
            return check(node, hint)
        except WrongValue as wrong:
            self.complain(node, key, str(wrong), wrong.right)
            return None

    def _section(self, node: Node, section: type, key: str, prefix: str) -> None:
        hints = typing.get_type_hints(section, include_extras=True)
        for name, entry in self.members(node, hints, prefix + key):
            inner, many = model.section_of(hints[name])
            here = key + name
            if name == "version" and section is Policy:
                self.check_version(entry.node, prefix + here)
            elif entry.node.value is None:
                self.settings.append(Setting(key=here, value=Reset.DEFAULT, origin=self.origin(entry.node)))
            elif many:
                self._outputs(entry.node, prefix)
            elif inner:
                self._section(entry.node, inner, here + ".", prefix)
            else:
                value = self.leaf(entry.node, hints[name], prefix + here)
                if value is not None:
                    self.settings.append(Setting(key=here, value=value, origin=self.origin(entry.node)))

    def _outputs(self, node: Node, prefix: str) -> None:
        """Read the list of outputs, or one of its short forms."""
        members = node.value if isinstance(node.value, list) else [node]
        if isinstance(node.value, dict):
            right = "write a list: `outputs: [h264, gif]`, or `- codec: gif` below it"
            self.complain(node, f"{prefix}outputs", "this is not a list", right)
            return
        if not members:
            right = "name one at least, or write `create: false` to render nothing"
            self.complain(dataclasses.replace(node, written="[]"), f"{prefix}outputs", "this list names no output", right)
            return
        if len(members) > MOST_LISTED:
            self.complain(node, f"{prefix}outputs", f"these are {len(members)} outputs", f"{MOST_LISTED} at most")
            return
        self.settings.append(Setting(key="outputs", value=len(members), origin=self.origin(node)))
        for index, member in enumerate(members):
            self._output(member, index, prefix)

    def _output(self, node: Node, index: int, prefix: str) -> None:
        if isinstance(node.value, dict):
            self._section(node, model.OutputPolicy, f"outputs.{index}.", prefix)
        elif isinstance(node.value, str):
            hint = typing.get_type_hints(model.OutputPolicy, include_extras=True)["codec"]
            value = self.leaf(node, hint, f"{prefix}outputs.{index}")
            if value is not None:
                self.settings.append(Setting(key=f"outputs.{index}.codec", value=value, origin=self.origin(node)))
        else:
            self.complain(node, f"{prefix}outputs.{index}", "this is neither a codec nor a mapping", "write `gif`, or `codec: gif` and more keys")

    def check_version(self, node: Node, key: str) -> None:
        """Complain about a format that this stepwatch does not know."""
        if node.value is not None and (node.value != 1 or isinstance(node.value, bool | float)):
            self.complain(node, key, "this stepwatch does not know that version of the format", "write `version: 1`, or update stepwatch")

    def _check_rivals(self, node: Node, prefix: str) -> None:
        rivals = {"timeline.duration", "timeline.fps_in"}
        found = [setting for setting in self.settings if setting.key in rivals and setting.value is not Reset.DEFAULT]
        if {setting.key for setting in found} == rivals:
            last = found[-1]
            stands = _find(node, last.key) if self.lines else node
            self.faults.append(
                Fault(
                    line=stands.line,
                    column=stands.column,
                    key=prefix + last.key,
                    wrong="timeline.duration and timeline.fps_in say the same thing in two ways",
                    right="keep one of them",
                )
            )
            self.settings = [setting for setting in self.settings if setting.key not in rivals]

    def check_rivals(self) -> None:
        """Complain when the command line says both ``duration`` and ``fps_in``."""
        self._check_rivals(Node(value=None), "")


def _find(node: Node, key: str) -> Node:
    for part in key.split("."):
        if isinstance(node.value, dict) and part in node.value:
            node = node.value[part].node
    return node


def _suggest(name: str, names: Sequence[str], key: str) -> str:
    near = difflib.get_close_matches(name, names, 1) or difflib.get_close_matches(name.replace("-", "_").lower(), names, 1)
    if near:
        return f"did you mean {key}{near[0]}?"
    # A key at the wrong level is as common as a misspelt one.
    elsewhere = [leaf.key for leaf in model.leaves().values() if leaf.name == name]
    return f"did you mean {elsewhere[0].replace('*', '0')}?" if elsewhere else f"the keys here are {', '.join(names)}"


# --- files ----------------------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class FileText:
    """A file that could be read, or why it could not."""

    content: str
    facts: model.FileFacts
    problem: str = ""


def read_text(path: Path) -> FileText | None:
    """Read a small text file; None when there is none. Never waits for a FIFO, never reads a device."""
    nobody = model.FileFacts(owners=())
    try:
        link = os.lstat(path)
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0))
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            return FileText(content="", facts=nobody, problem="this link leads nowhere; remove it or mend it")
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        return FileText(content="", facts=nobody, problem=f"this cannot be read: {reason}; check its rights, or remove it")
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not an ordinary file"
            return FileText(content="", facts=nobody, problem=f"this is {kind}; a YAML file must stand here, or nothing")
        with open(handle, "rb", closefd=False) as file:
            data = file.read(strict_yaml.MOST_BYTES + 1)
    except OSError as error:
        return FileText(content="", facts=nobody, problem=f"this cannot be read: {error.strerror}; check the disk")
    finally:
        os.close(handle)
    facts = facts_of(handle_status=status, link=link, path=path)
    if len(data) > strict_yaml.MOST_BYTES:
        return FileText(content="", facts=facts, problem="this is larger than 256 KiB; a policy needs a few lines")
    try:
        return FileText(content=data.decode("utf-8-sig"), facts=facts)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        return FileText(content="", facts=facts, problem=f"line {line} is not UTF-8 text (byte 0x{data[error.start]:02x}); save the file as UTF-8")


def facts_of(*, handle_status: os.stat_result, link: os.stat_result, path: Path) -> model.FileFacts:
    """Gather who can have written a file; whoever made a link chose the file, so its owner counts too."""
    if not hasattr(os, "getuid"):  # Windows: a profile is closed to others by other means, and st_uid says nothing
        return model.FileFacts(owners=())
    owners = {status.st_uid: _user_name(status.st_uid) for status in (handle_status, link)}
    group = None
    if handle_status.st_mode & stat.S_IWGRP and not _private_group(handle_status, path):
        group = _group_name(handle_status.st_gid)
    return model.FileFacts(owners=tuple(owners.items()), others_write=bool(handle_status.st_mode & stat.S_IWOTH), group_writes=group)


def _user_name(user: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(user).pw_name
    except KeyError:
        return f"user {user}"


def _group_name(group: int) -> str:
    import grp

    try:
        return grp.getgrgid(group).gr_name
    except KeyError:
        return str(group)


def _private_group(status: os.stat_result, path: Path) -> bool:
    """Whether the group of a file is its owner's own: the primary one, of the same name, without other members, and no ACL lets others in."""
    import grp
    import pwd

    try:
        owner, group = pwd.getpwuid(status.st_uid), grp.getgrgid(status.st_gid)
    except KeyError:
        return False
    if owner.pw_gid != group.gr_gid or owner.pw_name != group.gr_name or set(group.gr_mem) - {owner.pw_name}:
        return False
    try:
        return "system.posix_acl_access" not in os.listxattr(path)
    except (AttributeError, OSError):  # no such attributes on this file system, or none on this platform
        return True


def trusted_users(names: Iterable[str]) -> tuple[frozenset[int], list[str]]:
    """User ids whose files count: our own and those named; second, the names that nobody here has."""
    if not hasattr(os, "getuid"):
        return frozenset(), []
    import pwd

    users, unknown = {os.geteuid()}, []
    for name in names:
        try:
            users.add(pwd.getpwnam(name).pw_uid)
        except KeyError:
            unknown.append(name)
    return frozenset(users), unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyFile:
    """What one stepwatch.yaml says, whoever may have written it."""

    settings: tuple[Setting, ...]
    complaints: tuple[str, ...]
    facts: model.FileFacts


_Stamp = tuple[int, ...]
_cache: dict[str, tuple[_Stamp, PolicyFile]] = {}


def policy_file(path: Path) -> PolicyFile | None:
    """Read one stepwatch.yaml, None when there is none; an unchanged file is read once, however many runs lie below it."""
    try:
        followed, link = path.stat(), path.lstat()
        stamp = tuple(
            number
            for status in (followed, link)
            for number in (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_mode, status.st_uid)
        )
    except (OSError, ValueError):
        if not os.path.lexists(path):
            return None
        stamp = ()
    known = _cache.get(str(path))
    if stamp and known and known[0] == stamp:
        return known[1]
    text = read_text(path)
    if text is None:
        return None
    name = display(path)
    if text.problem:
        file = PolicyFile(settings=(), complaints=(f"{name}: {text.problem}",), facts=text.facts)
    else:
        node, faults = strict_yaml.parse(text.content)
        reader = Reader(name, faults)
        settings = reader.policy(node) if node else ()
        file = PolicyFile(settings=settings, complaints=reader.complaints(), facts=text.facts)
    if len(_cache) >= MOST_CACHED:
        _cache.clear()
    _cache[str(path)] = (stamp, file)
    return file


def display(path: Path | str) -> str:
    """Write a path so that no terminal, log or encoding stumbles over it."""
    text = os.fspath(path)
    return "".join(char if char.isprintable() else char.encode("unicode_escape", "backslashreplace").decode("ascii") for char in text)


# --- the service file -----------------------------------------------------------------------------------------------------------------------


def service_file(path: Path | None = None) -> Path | None:
    """Say which service file counts: the one given, else the user's, else the machine's; None when there is none of the two."""
    if path is not None:
        return path
    import platformdirs

    places = (Path(platformdirs.user_config_path("stepwatch", appauthor=False)), MACHINE_FOLDER)
    return next((place / SERVICE_NAME for place in places if os.path.lexists(place / SERVICE_NAME)), None)


def load_service(path: Path | None = None) -> ServiceConfig:
    """Read the service file; without one, all is default. Raises ConfigError with everything that is wrong in it."""
    file = service_file(path)
    if file is None:
        return ServiceConfig()
    file = Path(os.path.abspath(file))
    text = read_text(file)
    if text is None:
        raise ConfigError((f"{display(file)}: there is no such file",), hint="leave --config out, or name a file that is there")
    problem = text.problem
    if not problem and path is None:
        # It names programs and what may be deleted. A file given with --config has been vouched for by naming it.
        reason = model.distrust(text.facts, trusted=trusted_users(())[0])
        problem = f"{reason}, so it is not trusted; change that, or name the file with --config" if reason else ""
    if problem:
        raise ConfigError((f"{display(file)}: {problem}",))
    node, faults = strict_yaml.parse(text.content)
    reader = Reader(display(file), faults)
    config = _service(reader, node, file.parent) if node else ServiceConfig()
    if reader.faults:
        raise ConfigError(reader.complaints(), hint="`stepwatch config schema` describes every key to an editor")
    return config


def _service(reader: Reader, node: Node, folder: Path) -> ServiceConfig:
    hints = typing.get_type_hints(ServiceConfig, include_extras=True)
    values: dict[str, Any] = {}
    for name, entry in reader.members(node, hints, "") if node.value is not None else ():
        inner = entry.node
        if name == "version":
            reader.check_version(inner, name)
        elif inner.value is None:
            continue
        elif name == "watch":
            values[name] = _watch_entries(reader, inner, folder)
        elif name == "policy":
            values[name] = Layer(name=reader.source, settings=reader.policy(inner, prefix="policy."))
        elif name == "daemon":
            values[name] = _plain_section(reader, inner, model.DaemonConfig, "daemon.")
        else:
            values[name] = reader.leaf(inner, hints[name], name)
    if isinstance(values.get("ffmpeg"), str):
        path = os.path.expanduser(values["ffmpeg"])
        # A bare name is looked for on PATH; a path counts from this file, as those under `watch` do.
        values["ffmpeg"] = os.path.join(folder, path) if os.path.dirname(path) else path
    return ServiceConfig(**values)


def _plain_section(reader: Reader, node: Node, section: type[_Section], key: str) -> _Section:
    hints = typing.get_type_hints(section, include_extras=True)
    return section(
        **{name: reader.leaf(entry.node, hints[name], key + name) for name, entry in reader.members(node, hints, key) if entry.node.value is not None}
    )


def _watch_entries(reader: Reader, node: Node, folder: Path) -> tuple[WatchEntry, ...]:
    if not isinstance(node.value, list):
        reader.complain(node, "watch", "this is not a list", "write `- path: ~/outputs` below it, once for each folder")
        return ()
    hints = typing.get_type_hints(WatchEntry, include_extras=True)
    entries: list[WatchEntry] = []
    for index, member in enumerate(node.value):
        key = f"watch.{index}."
        if isinstance(member.value, str):
            member = Node(value={"path": strict_yaml.Entry(node=member)}, line=member.line, column=member.column)  # noqa: PLW2901  -- its short form
        values: dict[str, Any] = {}
        for name, entry in reader.members(member, hints, key):
            if entry.node.value is None:
                continue
            if name == "policy":
                values[name] = Layer(name=reader.source, settings=reader.policy(entry.node, prefix=f"{key}policy."))
            elif name == "trust":
                values[name] = _names(reader, entry.node, f"{key}trust")
            else:
                values[name] = reader.leaf(entry.node, hints[name], key + name)
        path = values.get("path")
        if path is None:
            if isinstance(member.value, dict) and "path" not in member.value:
                reader.complain(member, f"{key}path", "a watched folder needs its path", "write `path: ~/outputs`")
            continue
        values["path"] = os.path.normpath(folder / path)
        twin = next((number for number, entry in enumerate(entries) if entry.path == values["path"]), None)
        if twin is not None:
            reader.complain(member, f"{key}path", f"this folder is watched by watch.{twin} already", "keep one of them")
        if "policy" in values:
            values["policy"] = dataclasses.replace(values["policy"], folder=values["path"])
        entries.append(WatchEntry(**values))
    return tuple(entries)


def _names(reader: Reader, node: Node, key: str) -> tuple[str, ...]:
    members = node.value if isinstance(node.value, list) else [node]
    names = []
    for member in members:
        if isinstance(member.value, str) and member.value.strip():
            names.append(member.value)
        else:
            reader.complain(member, key, "this is not the name of a user", "write a list of user names: `[anna, ben]`")
    return tuple(names)
