"""What every run of every hook must look like on the disk, read as stepwatch reads it."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
from PIL import Image

from stepwatch import hook, system
from stepwatch.core.lifecycle import WriterState
from stepwatch.core.model import Outcome, Sidecar
from stepwatch.core.sidecar import SIZE_LIMIT, frame_index, parse_sidecar

SCHEMA = jsonschema.Draft202012Validator(hook.sidecar_schema())
RUN_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}(-b[0-9]+)?")
KEYS = frozenset(
    {"schema", "run_id", "group_id", "state", "error", "created", "updated", "ended", "writer", "hook", "host", "steps", "frames", "pass", "batch"}
    | {"generation", "infotext", "workflow_file", "final", "stepwatch"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """One run that a hook has left."""

    folder: Path
    sidecar: Sidecar
    raw: dict[str, Any]
    frames: dict[int, Image.Image]
    """By index, each decoded to its last pixel."""

    @property
    def steps(self) -> list[int]:
        return [1 + self.sidecar.skip + index * self.sidecar.every for index in sorted(self.frames)]


def runs(root: Path, *, ended: bool = False) -> list[Recorded]:
    """Every run below *root*, checked, in the order in which they began; *ended*: the process that wrote them is gone."""
    folders = sorted({Path(place) for place, _, names in os.walk(root) if any(not name.startswith(".") for name in names)})
    return sorted((check(folder, ended=ended) for folder in folders), key=lambda run: (run.sidecar.created or "", run.sidecar.run_id))


def check(folder: Path, *, killed: bool = False, ended: bool = False) -> Recorded:
    """Hold one run folder against the protocol; one whose writer was *killed* may have a temporary file, which nobody takes for a frame."""
    data = (folder / "run.json").read_bytes()
    assert len(data) <= SIZE_LIMIT
    sidecar, complaints = parse_sidecar(data)
    assert sidecar is not None, complaints
    assert complaints == ()
    raw = json.loads(data)
    SCHEMA.validate(raw)
    assert raw.keys() == KEYS
    assert sidecar.run_id == folder.name
    assert RUN_ID.fullmatch(folder.name)
    assert folder.parent.name == "-".join((folder.name[:4], folder.name[4:6], folder.name[6:8]))
    hidden = [name for name in os.listdir(folder) if name.startswith(".")]
    assert all(re.fullmatch(r"\..+\.[0-9]+\.tmp", name) for name in hidden)
    assert killed or not hidden
    visible = set(os.listdir(folder)) - set(hidden) - {"run.json"}
    if sidecar.workflow_file:
        assert set(json.loads((folder / sidecar.workflow_file).read_bytes())) <= {"prompt", "workflow"}
        visible.remove(sidecar.workflow_file)
    frames = {}
    for name in visible:
        index = frame_index(sidecar, name)
        assert index is not None, f"{name} is neither a frame nor what belongs beside it"
        with Image.open(folder / name) as image:
            image.load()
            frames[index] = image.convert("RGB")
    run = Recorded(folder=folder, sidecar=sidecar, raw=raw, frames=frames)
    _check_facts(run, killed=killed, ended=ended)
    return run


def _check_facts(run: Recorded, *, killed: bool, ended: bool) -> None:
    sidecar = run.sidecar
    sizes = {image.size for image in run.frames.values()}
    assert len(sizes) <= 1
    if sizes and (sidecar.width, sidecar.height) != (None, None):
        assert sizes == {(sidecar.width, sidecar.height)}
    assert not set(sidecar.lost) & run.frames.keys()
    assert (sidecar.frame_count or 0) <= len(run.frames)
    assert run.raw["host"]["app"] in ("comfyui", "a1111", "forge", "reforge", "sdnext", "diffusers", "other")
    assert run.raw["pass"]["name"] in ("base", "hires", "refiner", "img2img", "inpaint", "detail", "unknown")
    if not killed and system.LINUX:
        assert system.writer_state(sidecar.writer) is (WriterState.DEAD if ended else WriterState.ALIVE)
    if sidecar.state is Outcome.RUNNING:
        assert sidecar.ended is None
        return
    assert sidecar.ended is not None
    assert sidecar.created is not None
    assert sidecar.created <= sidecar.ended
    assert sidecar.frame_count == len(run.frames)
    assert (sidecar.error is not None) == (sidecar.state is Outcome.FAILED)
    assert run.frames or sidecar.lost or sidecar.state is not Outcome.COMPLETE
    if sidecar.state is not Outcome.FAILED:
        # Each step that was due has its frame, or its loss is on record.
        done = sidecar.steps_done or 0
        due = max(0, -(-(done - sidecar.skip) // sidecar.every))
        assert run.frames.keys() | set(sidecar.lost) == set(range(due))
