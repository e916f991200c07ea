"""What a trash folder says of itself: ``manifest.json`` <-> Manifest. Enough to bring every file back without a database."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, TypeVar

from stepwatch.core.model import Published
from stepwatch.core.naming import printable

MANIFEST = "manifest.json"
UNFINISHED_MANIFEST = ".manifest.json.tmp"
"""Its name while it is written."""
SCHEMA = "stepwatch.trash/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Trashed:
    """One file of a manifest, as it was before it was moved."""

    name: str
    """Relative to the folder it came from, and to the trash folder."""
    step: int
    """0 for what is no frame: the sidecar, its workflow, an animation."""
    size: int
    mtime_ns: int
    ctime_ns: int
    """-1: not recorded."""
    inode: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a trash folder holds, and where it came from."""

    place: str
    """Name of the trash folder: the generation, or with a number behind it. Not written."""
    kind: str
    """``frames`` or ``output``."""
    run_id: str
    name: str
    watched: str
    """The watched folder, as it was called then."""
    source: str
    """Absolute path of the folder that the files came from."""
    group: str
    generation: str
    intermediates: str
    """``trash``, or ``delete`` for what goes as soon as the receipts know."""
    grace: float
    """Seconds."""
    trashed_at: float
    """Seconds since the epoch, by the clock of the file system."""
    reason: str
    finished: bool
    """The receipts know, and everything is in its place; before that nothing in it is ever removed."""
    outputs: tuple[Published, ...]
    """The animations that contain the frames."""
    files: tuple[Trashed, ...]


class DamagedManifestError(ValueError):
    """A manifest that is not what `manifest_text` writes; the sentence says why."""


def manifest_text(manifest: Manifest) -> bytes:
    """Write a manifest as JSON, in ASCII: names may hold undecodable bytes, which no encoding takes."""
    values = {"schema": SCHEMA, **asdict(manifest)}
    del values["place"]
    return json.dumps(values, indent=1, allow_nan=False).encode("ascii")


def parse_manifest(data: bytes, place: str) -> Manifest:
    """Read a manifest; DamagedManifestError for anything but a whole one with sane names."""
    try:
        values = json.loads(data)
        if not isinstance(values, dict) or values.get("schema") != SCHEMA:
            raise ValueError(f"its schema is not {SCHEMA}")
        values["outputs"] = tuple(_built(Published, one) for one in values["outputs"])
        values["files"] = tuple(_built(Trashed, one) for one in values["files"])
        manifest = _built(Manifest, values | {"place": place})
        names = [file.name for file in manifest.files]
        if len(set(names)) < len(names) or not all(map(is_plain, names)) or manifest.kind not in ("frames", "output"):
            raise ValueError("it names what cannot be in it")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedManifestError(f"its manifest is damaged: {printable(str(error))[:100]}") from error
    return manifest


def is_plain(name: str) -> bool:
    """Whether it names a file of a folder, and none that the trash needs for itself."""
    return name not in ("", ".", "..") and not {"/", "\0"} & set(name) and name.casefold() not in (MANIFEST, UNFINISHED_MANIFEST)


_Value = TypeVar("_Value")
_TYPES: Mapping[str, type | tuple[type, ...]] = {"str": str, "int": int, "bool": bool, "float": (int, float)}


def _built(kind: type[_Value], values: Mapping[str, Any]) -> _Value:
    """Build a dataclass from JSON, each field of its type."""
    found = {}
    for field in fields(kind):  # type: ignore[arg-type]
        if field.name not in values and field.default is not MISSING:
            # Written before there was such a field.
            continue
        value = found[field.name] = values[field.name]
        # What is no plain type has been built before.
        right = isinstance(value, _TYPES.get(str(field.type), tuple)) and (field.type == "bool") == isinstance(value, bool)
        if not right or (isinstance(value, float) and not math.isfinite(value)):
            raise ValueError(f"{field.name} is {value!r}")
    return kind(**found)
