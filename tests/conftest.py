"""Small real runs to test with, and the ffmpegs of this machine."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image, ImageDraw, PngImagePlugin

from stepwatch.encoder import find_ffmpeg

# A busy machine, and Hypothesis's own first tables of Unicode in a fresh clone, take seconds that say nothing about the code.
settings.register_profile("stepwatch", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("stepwatch")


class MakeFrame(Protocol):
    """Writes one image; equal arguments write equal bytes."""

    def __call__(
        self, path: Path, *, step: int = 1, size: tuple[int, int] = (32, 24), mode: str = "RGB", texts: Mapping[str, str] | None = None
    ) -> Path: ...


class MakeRun(Protocol):
    """Writes the frames of one run into a folder, with a sidecar unless ``sidecar=None``, and returns the folder."""

    def __call__(
        self,
        folder: Path | None = None,
        *,
        steps: int | Iterable[int] = 6,
        size: tuple[int, int] = (32, 24),
        names: str = "{index:05d}.png",
        sidecar: Mapping[str, object] | None = {},
        state: str = "complete",
        generation: Mapping[str, object] | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> Path: ...


def write_frame(path: Path, *, step: int = 1, size: tuple[int, int] = (32, 24), mode: str = "RGB", texts: Mapping[str, str] | None = None) -> Path:
    """One image that tells its step: the background's brightness rises with it, and a bar moves to the right."""
    width, height = size
    image = Image.new("RGB", size, (40 + 7 * step % 150, 60, 200 - 7 * step % 150))
    draw = ImageDraw.Draw(image)
    left = step * 5 % max(1, width - 4)
    draw.rectangle((left, height // 4, left + 3, height * 3 // 4), fill=(250, 240, 20 * step % 255))
    path.parent.mkdir(parents=True, exist_ok=True)
    if texts and path.suffix == ".png":
        info = PngImagePlugin.PngInfo()
        for key, value in texts.items():
            info.add_itxt(key, value)
        image.convert(mode).save(path, pnginfo=info)
    else:
        image.convert(mode).save(path)
    return path


def sidecar_for(folder: Path, count: int, *, names: str, state: str, size: tuple[int, int]) -> dict[str, object]:
    """What a hook would have written for *count* frames."""
    ended = {"ended": "2026-11-22T16:19:06.000Z"} if state != "running" else {}
    return {
        "schema": "stepwatch.run/1",
        "run_id": re.sub(r"[^A-Za-z0-9._-]", "-", folder.name),
        "state": state,
        "created": "2026-11-22T16:17:28.000Z",
        "updated": "2026-11-22T16:19:06.000Z",
        **ended,
        "steps": {"planned": count, "done": count, "every": 1, "skip": 0},
        "frames": {"name": names, "count": count, "planned": count, "lost": [], "width": size[0], "height": size[1], "scale": 1},
        "generation": {"prompt": "a slender rocket at dusk", "seed": 4242, "sampler": "Heun", "steps": count, "cfg": 2.5, "model": "tiny"},
    }


@pytest.fixture
def make_frame() -> MakeFrame:
    """Write single images."""
    return write_frame


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Write whole runs, by default below tmp_path."""

    def make(
        folder: Path | None = None,
        *,
        steps: int | Iterable[int] = 6,
        size: tuple[int, int] = (32, 24),
        names: str = "{index:05d}.png",
        sidecar: Mapping[str, object] | None = {},  # never changed
        state: str = "complete",
        generation: Mapping[str, object] | None = None,
        texts: Mapping[str, str] | None = None,
    ) -> Path:
        folder = folder or tmp_path / "20261122-161728-c0ffee"
        folder.mkdir(parents=True, exist_ok=True)
        numbers = list(range(1, steps + 1)) if isinstance(steps, int) else list(steps)
        for number in numbers:
            write_frame(folder / names.format(index=number - 1, step=number), step=number, size=size, texts=texts)
        if sidecar is not None:
            facts = sidecar_for(folder, len(numbers), names=names, state=state, size=size)
            if generation is not None:
                facts["generation"] = dict(generation)
            (folder / "run.json").write_text(json.dumps(facts | dict(sidecar)), encoding="utf-8")
        return folder

    return make


@pytest.fixture(scope="session")
def ffmpeg() -> str:
    """The ffmpeg that stepwatch would choose: STEPWATCH_FFMPEG, else the bundled one."""
    return find_ffmpeg()


@pytest.fixture(scope="session", params=["bundled", "system"])
def each_ffmpeg(request: pytest.FixtureRequest) -> str:
    """The bundled ffmpeg, then the system's: they are years apart."""
    if request.param == "system":
        found = shutil.which("ffmpeg")
        if found is None:
            pytest.skip("this machine has no ffmpeg of its own")
        return found
    chosen = os.environ.pop("STEPWATCH_FFMPEG", None)
    try:
        return find_ffmpeg()
    finally:
        if chosen is not None:
            os.environ["STEPWATCH_FFMPEG"] = chosen


@pytest.fixture(autouse=True)
def nobody_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the settings of the person who runs it, and none inherits how their terminal looks."""
    home = tmp_path_factory.mktemp("home")
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home / name.lower()))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"):
        monkeypatch.delenv(name, raising=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for an ffmpeg is a render test."""
    for item in items:
        names: Iterable[str] = getattr(item, "fixturenames", ())
        if "ffmpeg" in names or "each_ffmpeg" in names:
            item.add_marker("render")
