"""What the model says of itself, for people and editors: JSON Schema, option reference, commented samples, and ``config show``.

All of it is made from the dataclasses of ``core.policy``: the docstring under a field is its description everywhere. The files that ship under
``config/`` are written by these functions, and a test holds them to it.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import os
import re
import textwrap
import typing
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from types import NoneType
from typing import Any, Literal

from stepwatch.config import strict_yaml
from stepwatch.config.reading import FILE_NAME, Reader, display, load_service, policy_file, read_text, trusted_users
from stepwatch.config.resolving import Resolved, folders_between, watched_folder
from stepwatch.config.values import adapter, expectation, write_duration
from stepwatch.core import policy as model
from stepwatch.core.policy import Layer, Policy, ServiceConfig
from stepwatch.errors import ConfigError

Kind = Literal["stepwatch", "service"]
MODELS: Mapping[Kind, type] = {"stepwatch": Policy, "service": ServiceConfig}


@functools.cache
def docs(section: type) -> Mapping[str, str]:
    """Return the docstring under each field of a model, as one line of plain text; empty where the source is not at hand."""
    try:
        tree = ast.parse(inspect.getsource(section))
    except (OSError, TypeError):
        return {}
    body = tree.body[0].body if isinstance(tree.body[0], ast.ClassDef) else []
    found: dict[str, str] = {}
    for statement, after in itertools.pairwise(body):
        text = after.value.value if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) else None
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name) and isinstance(text, str):
            found[statement.target.id] = " ".join(text.replace("``", "`").split())
    return found


def _summary(section: type) -> str:
    return " ".join((inspect.getdoc(section) or "").replace("``", "`").split())


# --- schema ---------------------------------------------------------------------------------------------------------------------------------


def schema(kind: Kind = "stepwatch") -> dict[str, Any]:
    """Make the JSON Schema of stepwatch.yaml or of the service file, short forms and descriptions included."""
    title = {"stepwatch": "stepwatch.yaml", "service": "service.yaml of stepwatch"}[kind]
    definitions = {"$defs": {"policy": _object_schema(Policy)}} if kind == "service" else {}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": title} | _object_schema(MODELS[kind]) | definitions


def _object_schema(section: type) -> dict[str, Any]:
    """Describe a mapping with the fields of a model, each of which may also be null."""
    hints = typing.get_type_hints(section, include_extras=True)
    defaults = {member.name: member.default for member in dataclasses.fields(section)}
    properties: dict[str, Any] = {}
    for name, hint in hints.items():
        inner, _ = model.section_of(hint)
        described = _field_schema(section, name, hint)
        if name != "version":
            described = {"anyOf": [*described.get("anyOf", [described]), {"type": "null"}]}
        description = docs(section).get(name) or (_summary(inner) if inner else "")
        default = defaults[name]
        extra: dict[str, Any] = {"description": description} if description else {}
        if inner is None and default is not dataclasses.MISSING and not isinstance(default, Layer | tuple):
            extra["default"] = plain(default, hint)
        properties[name] = extra | described
    required = {"required": ["path"]} if section is model.WatchEntry else {}
    return {"type": "object", "properties": properties, "additionalProperties": False} | required


def _field_schema(section: type, name: str, hint: Any) -> dict[str, Any]:
    inner, many = model.section_of(hint)
    if hint is Layer:
        return {"$ref": "#/$defs/policy"}
    if inner is model.OutputPolicy:
        codec = _field_schema(inner, "codec", typing.get_type_hints(inner, include_extras=True)["codec"])
        items = {"anyOf": [codec, _object_schema(inner)]}
        return {"anyOf": [codec, {"type": "array", "items": items, "minItems": 1, "maxItems": 64}]}
    if inner is model.WatchEntry:
        return {"type": "array", "items": {"anyOf": [{"type": "string", "pattern": r"\S"}, _object_schema(inner)]}}
    if inner and not many:
        return _object_schema(inner)
    if (section, name) == (model.WatchEntry, "trust"):
        return {"anyOf": [{"type": "string", "pattern": r"\S"}, {"type": "array", "items": {"type": "string", "pattern": r"\S"}}]}
    described: dict[str, Any] = adapter(hint).json_schema()
    return described


def plain(value: object, hint: object = None) -> object:
    """Write a value of the model as YAML and JSON have it: durations, rates, sizes and qualities as text that reads back the same."""
    kinds = [type(mark) for mark in model.marks(hint)]
    if isinstance(value, Fraction):
        if model.Seconds in kinds:
            return write_duration(value)
        if value.denominator == 1:
            return int(value)
        return f"{value.numerator}/{value.denominator}"
    if model.Quality in kinds and isinstance(value, int):
        return {"crf": value}
    if model.Bytes in kinds and isinstance(value, int):
        return _size(value)
    if model.Scale in kinds and isinstance(value, str) and value.isdecimal():
        return int(value)
    return value


def _size(count: int) -> str | int:
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if count and count % factor == 0:
            return f"{count // factor}{unit}"
    return count


# --- show -----------------------------------------------------------------------------------------------------------------------------------


def facts(resolved: Resolved) -> dict[str, object]:
    """Return a resolved policy as plain values, with where each came from and where its outputs go: the JSON of ``config show``."""
    return {
        "watched": display(resolved.watched),
        "policy": _plain_section(resolved.policy),
        "origins": dict(resolved.origins),
        "output_dirs": [display(place) for place in resolved.output_dirs],
        "warnings": [*resolved.warnings, *resolved.astray],
    }


def _plain_section(section: Any) -> dict[str, object]:
    hints = typing.get_type_hints(type(section), include_extras=True)
    values: dict[str, object] = {}
    for name, hint in hints.items():
        value = getattr(section, name)
        inner, many = model.section_of(hint)
        if inner is None:
            values[name] = plain(value, hint)
        else:
            values[name] = [_plain_section(member) for member in value] if many else _plain_section(value)
    return values


def show(resolved: Resolved) -> str:
    """Write a resolved policy as a stepwatch.yaml that gives the same policy again, each value with its origin as a comment."""
    lines = [f"# watched folder: {display(resolved.watched)}"]
    lines += [f"# output {index}: {display(place)}" for index, place in enumerate(resolved.output_dirs)]
    lines += [f"# warning: {warning}" for warning in (*resolved.warnings, *resolved.astray)]
    values = _plain_section(resolved.policy)
    # fps_in rules; both in one file would be a complaint. The same for a preset, which has been worked in already.
    silent = {"timeline.duration"} if resolved.policy.timeline.fps_in is not None else {"timeline.fps_in"}
    lines += _shown_section(values, "", "", resolved.origins, silent | {"preset"})
    width = max((len(line) for line, origin in _pairs(lines) if origin and len(line) < 60), default=0)
    return "".join(f"{line.ljust(width)}  # {origin}\n" if origin else f"{line}\n" for line, origin in _pairs(lines))


_MARK = "\0"


def _pairs(lines: Iterable[str]) -> list[tuple[str, str]]:
    return [(line, origin) for line, _, origin in (each.partition(_MARK) for each in lines)]


def _shown_section(values: Mapping[str, object], key: str, indent: str, origins: Mapping[str, str], silent: set[str]) -> list[str]:
    lines: list[str] = []
    for name, value in values.items():
        here = key + name
        origin = origins.get(here)
        if origin is not None:
            comment = "# " if here in silent else ""
            lines.append(f"{indent}{comment}{name}: {scalar(value)}{_MARK}{origin}")
        elif isinstance(value, list):
            lines.append(f"{indent}{name}:")
            for index, member in enumerate(value):
                below = _shown_section(member, f"{here}.{index}.", f"{indent}    ", origins, silent)
                lines += [f"{indent}  - {below[0].lstrip()}", *below[1:]]
        elif isinstance(value, Mapping):
            lines += [f"{indent}{name}:", *_shown_section(value, f"{here}.", f"{indent}  ", origins, silent)]
    return lines


# Other readers of our files (editors, PyYAML) know more numbers, dates and booleans than the strict loader: only what nobody takes for one is bare.
_BARE = re.compile(
    r"[A-Za-z][A-Za-z0-9._/+-]*"  # words
    r"|(/|\.{1,2}/|~/)[A-Za-z0-9._/+-]*"  # paths
    r"|([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h|d|w|KB|MB|GB))+|[0-9]+/[0-9]+|[1-9][0-9]*x[1-9][0-9]*"  # durations, sizes, rates, scales
)
_NOT_BARE = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null"})


def scalar(value: object) -> str:
    """Write one value as YAML that the strict loader, and any other, reads back as the same value."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {scalar(member)}" for key, member in value.items()) + "}"
    if not isinstance(value, str):
        return str(value)
    if _BARE.fullmatch(value) and value.lower() not in _NOT_BARE:
        return value
    escaped = (char if char.isprintable() and char not in '"\\' else _escaped(char) for char in value)
    return '"' + "".join(escaped) + '"'


def _escaped(char: str) -> str:
    return f"\\{char}" if char in '"\\' else f"\\U{ord(char):08x}"


# --- samples and reference ------------------------------------------------------------------------------------------------------------------


def init_text(kind: Kind = "stepwatch") -> str:
    """Write a file with every key, commented out at its default, each with its meaning: what ``config init`` leaves."""
    what = {
        "stepwatch": "Policy of stepwatch for this folder and all below it. `stepwatch config show` prints what counts here, and why.",
        "service": "The service file of stepwatch: what is watched, the policy below all others, and how the daemon works.",
    }[kind]
    how = "Every key stands here with its default. Take the # away from those that you change, and from the line of their section."
    return "\n".join([f"# {what}", f"# {how}", "version: 1", *_sample_section(MODELS[kind], "")]) + "\n"


def _sample_section(section: type, indent: str) -> list[str]:
    lines: list[str] = []
    hints = typing.get_type_hints(section, include_extras=True)
    for name, hint in hints.items():
        inner, many = model.section_of(hint)
        if name == "version":
            continue
        text = docs(section).get(name) or (_summary(inner) if inner else "")
        lines += [*([] if indent else [""]), *_comment(text, indent)]
        if inner is None:
            lines.append(f"#{indent}{name}: {_sample_value(section, name, hint)}")
        elif many:
            below = _sample_section(inner, indent + "    ")
            first = next(index for index, line in enumerate(below) if not line.startswith(f"#{indent}    # "))
            below[first] = f"#{indent}  - {below[first].removeprefix('#').lstrip()}"
            lines += [f"#{indent}{name}:", *below]
        else:
            lines += [f"#{indent}{name}:", *_sample_section(inner, indent + "  ")]
    return lines


def _sample_value(section: type, name: str, hint: object) -> str:
    if section is model.WatchEntry and name == "path":
        return "~/outputs/stepwatch"
    default = next(member.default for member in dataclasses.fields(section) if member.name == name)
    if isinstance(default, Layer | tuple):
        return "{}" if isinstance(default, Layer) else "[]"
    return scalar(plain(default, hint))


def _comment(text: str, indent: str) -> list[str]:
    # Below the top level a comment is a comment in what is commented out: taking a whole section's # away leaves valid YAML.
    return [f"#{indent}# {line}" if indent else f"# {line}" for line in textwrap.wrap(text, 116 - len(indent))]


def init_file(folder: Path) -> Path:
    """Write a commented stepwatch.yaml into a folder; ConfigError when there is one already, or when it cannot be written."""
    path = folder / FILE_NAME
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o644)
    except FileExistsError:
        raise ConfigError((f"{display(path)}: this file is there already, and stays as it is",), hint="edit it, or move it away first") from None
    except OSError as error:
        raise ConfigError((f"{display(path)}: this cannot be written: {error.strerror}",), hint="name an existing folder of yours") from None
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(init_text())
    return path


def reference() -> str:
    """Write the tables of all keys, in Markdown."""
    parts = ["### stepwatch.yaml", "", _table(Policy), "", "### service.yaml", "", _table(ServiceConfig)]
    return "\n".join(parts) + "\n"


def _table(section: type) -> str:
    rows = ["| key | values | default | untrusted | meaning |", "| --- | --- | --- | --- | --- |"]
    untrusted = section is Policy
    if not untrusted:
        rows = ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
    for leaf in model.leaves(section).values():
        values, default = _values(leaf), "" if leaf.default is dataclasses.MISSING else f"`{scalar(plain(leaf.default, leaf.hint))}`"
        if isinstance(leaf.default, Layer | tuple):
            default = "`{}`" if isinstance(leaf.default, Layer) else "`[]`"
        cells = [f"`{leaf.key.replace('.*', '[]')}`", values, default, *([_may(leaf)] if untrusted else []), docs(leaf.owner).get(leaf.name, "")]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(rows)


def _values(leaf: model.Leaf) -> str:
    if leaf.hint is Layer:
        return "keys of stepwatch.yaml"
    if leaf.name == "trust":
        return "a list of user names"
    null = NoneType in typing.get_args(leaf.hint)
    return expectation(leaf.hint) + (", or null" if null else "")


def _may(leaf: model.Leaf) -> str:
    """Say what a file that is not trusted, or a sidecar, may do with a key."""
    looks = leaf.mark(model.Looks)
    if looks:
        return "yes" if looks.at_most is None else f"up to {scalar(plain(looks.at_most, leaf.hint))}"
    return "stricter only" if leaf.mark(model.Stricter) else "no"


# --- validate -------------------------------------------------------------------------------------------------------------------------------


def validate(paths: Sequence[Path] = (), service: Path | None = None) -> list[str]:
    """Check the service file, and the files and folders given; returns every complaint, nothing when all is well.

    Of a folder, each stepwatch.yaml counts that ``render`` would meet: from its watched folder down to it, and everywhere below.
    """
    complaints: list[str] = []
    config = ServiceConfig()
    try:
        config = load_service(service)
    except ConfigError as error:
        complaints += error.complaints
    for entry in config.watch:
        _, unknown = trusted_users(entry.trust)
        complaints += [f"watch {display(entry.path)}: trust: there is no user {strict_yaml.shown(name)} on this machine" for name in unknown]
    for path in paths:
        if path.is_dir():
            complaints += complaints_about(path, service=config)
        else:
            complaints += _validate_file(path)
    return list(dict.fromkeys(complaints))


def complaints_about(folder: Path, *, service: ServiceConfig) -> list[str]:
    """Check every stepwatch.yaml that counts in a folder, and every one below it."""
    folder = Path(os.path.realpath(folder))
    root, _, _ = watched_folder(folder, service=service)
    below = (Path(place) for place, _, names in os.walk(folder) if FILE_NAME in names)
    complaints: list[str] = []
    for place in dict.fromkeys([*folders_between(root, folder), *below]):
        file = policy_file(place / FILE_NAME)
        complaints += file.complaints if file else ()
    return complaints


def _validate_file(path: Path) -> Sequence[str]:
    """Check one file, whichever of the two kinds it is."""
    text = read_text(path)
    if text is None:
        return [f"{display(path)}: there is no such file"]
    if text.problem:
        return [f"{display(path)}: {text.problem}"]
    node, faults = strict_yaml.parse(text.content)
    keys = set(node.value) if node and isinstance(node.value, dict) else set()
    if keys & {"watch", "policy", "daemon", "ffmpeg"}:
        try:
            load_service(path)
        except ConfigError as error:
            return error.complaints
        return []
    reader = Reader(display(path), faults)
    if node:
        reader.policy(node)
    return reader.complaints()
