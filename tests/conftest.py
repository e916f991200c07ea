"""Small real runs to test with, and the ffmpegs of this machine."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image, ImageDraw, PngImagePlugin

from stepwatch import status as sockets
from stepwatch.encoder import find_ffmpeg
from stepwatch.errors import StepwatchError
from tests import ready

# An installed program has its bytecode; without it each of the hundreds of processes that are started here would compile the package anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

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


QUICK_POLICY: Mapping[str, object] = {
    "timeline": {"duration": "800ms", "fps": 10, "hold_last": "0s", "interpolation": "none"},
    "outputs": [{"codec": "h264", "name": "{run}", "quality": "small"}],
}
"""An animation that costs next to nothing, under the name of its run."""


HURRY = """
import stepwatch.service, stepwatch.core.lifecycle, stepwatch.watcher
stepwatch.service.FIRST_PAUSE = 0.2
stepwatch.service.LONGEST_HOLD = 1.0
stepwatch.service.LONGEST_PAUSE = 1.0
stepwatch.core.lifecycle.FIRST_BACKOFF = 0.2
stepwatch.watcher.ASLEEP_INTERVAL = 0.3
"""
"""Waits of a few tenths of a second where the real ones are of many: the numbers themselves are tested elsewhere."""


class Daemon:
    """A real ``stepwatch watch`` in a process of its own, with a service file, receipts and a socket of its own."""

    def __init__(self, home: Path, watched: Path) -> None:
        self.home = home
        self.watched = watched
        self.log_file = home / "daemon.log"
        self.service_file = home / "service.yaml"
        self.process: subprocess.Popen[bytes] | ready.Copy | None = None
        self.program: tuple[str, ...] = ("-m", "stepwatch")
        """What Python runs; a test may put a script of its own before the real thing."""
        home.mkdir(parents=True, exist_ok=True)
        watched.mkdir(parents=True, exist_ok=True)
        self.environment = os.environ | {
            "XDG_STATE_HOME": str(home),
            "XDG_RUNTIME_DIR": str(home),
            "PYTHONPATH": str(Path(__file__).parent.parent),
            "PYTHONUNBUFFERED": "1",
        }
        self.configure()

    @property
    def state(self) -> Path:
        return self.home / "stepwatch"

    @property
    def out(self) -> Path:
        """Where the animations go."""
        return self.watched / "animation"

    def configure(self, policy: Mapping[str, object] = {}, *, watch: Iterable[Path] | None = None, **daemon: object) -> None:  # never changed
        """Write the service file: the quick policy with *policy* over it, and *daemon* settings."""
        entries = [{"path": str(path)} for path in watch or (self.watched,)]
        chosen = {"min_free_space": 0, "workers": 1, **daemon}
        content = {"version": 1, "watch": entries, "policy": {**QUICK_POLICY, **policy}, "daemon": chosen}
        self.service_file.write_text(json.dumps(content), encoding="utf-8")
        self.service_file.chmod(0o600)

    def prepare(self, *lines: str) -> None:
        """Have its waits be short, and Python *lines* run in its process before it begins."""
        script = self.home / "launch.py"
        script.write_text("\n".join([HURRY, *lines, "from stepwatch.__main__ import main", "main()"]), encoding="utf-8")
        self.program = (str(script),)

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, *self.program, "-c", str(self.service_file), *arguments]

    def run(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run another stepwatch command with the same receipts and socket."""
        command = self.command(*arguments)
        if ready.can_copy(self.environment):
            code, out, err = ready.run(command[1:], env=self.environment, timeout=timeout)
            return subprocess.CompletedProcess(command, code, out.decode(), err.decode())
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=timeout, check=False)

    def start(self, *arguments: str, prefix: Iterable[str] = (), wait: bool = True) -> Daemon:
        """Start the daemon (``watch`` unless *arguments* say more), behind *prefix* such as strace; waits until it watches."""
        before = self.log_file.stat().st_size if self.log_file.exists() else 0
        self.process = self._begin([*prefix], "watch", *arguments)
        if wait:
            self.wait_until(lambda: "watching " in self.log[before:] or self.process is None or self.process.poll() is not None)
            # Most tests speak of what it does when it has looked for the first time. One that cannot open a socket watches all the same.
            end = time.monotonic() + 5
            while self.process.poll() is None and time.monotonic() < end and not self._has_looked():
                time.sleep(0.02)
        return self

    def _begin(self, prefix: list[str], *arguments: str) -> subprocess.Popen[bytes] | ready.Copy:
        """Start a command that writes into the log; a Python of its own behind a prefix, else a copy of one that is there."""
        command = self.command(*arguments)
        with self.log_file.open("ab") as log, open(os.devnull, "rb") as nothing:
            if not prefix and ready.can_copy(self.environment):
                return ready.start(command[1:], env=self.environment, streams=(nothing.fileno(), log.fileno(), log.fileno()))
            return subprocess.Popen([*prefix, *command], env=self.environment, stdin=nothing, stdout=log, stderr=log)

    def _has_looked(self) -> bool:
        with contextlib.suppress(StepwatchError):
            said = self.status()
            return bool(said) and all(folder["first_look"] is None for folder in said["folders"])
        return False

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8", errors="replace") if self.log_file.exists() else ""

    def wait_until(self, holds: Callable[[], object], *, timeout: float = 30) -> None:
        """Wait until something holds; the daemon's log is in the failure."""
        end = time.monotonic() + timeout
        while not holds():
            if time.monotonic() > end:
                raise AssertionError(f"it did not come true within {timeout} s; the log says:\n{self.log[-6000:]}")
            time.sleep(0.02)

    def status(self) -> dict[str, Any]:
        """What the daemon says of itself, through its socket."""
        answer = sockets.ask(self.state / "status.sock", "status")
        return answer or {}

    def wait_at_rest(self, *, timeout: float = 40) -> None:
        """Wait until nothing is recording, waiting or rendering."""

        def at_rest() -> bool:
            said = self.status()
            busy = {"recording", "complete", "stalled", "interrupted", "failed", "rendering", "render-failed"}
            if any(folder["first_look"] for folder in said.get("folders", ())):
                return False
            return bool(said) and not said["rendering"] and not said["waiting"] and not any(run["phase"] in busy for run in said["runs"])

        self.wait_until(at_rest, timeout=timeout)

    def once(self, *, prefix: Iterable[str] = (), timeout: float = 60) -> int:
        """Run ``watch --once`` to its end, and return its exit code."""
        process = self._begin([*prefix], "watch", "--once")
        try:
            return process.wait(timeout)
        finally:
            process.kill()
            process.wait()

    def end(self, number: int = signal.SIGTERM, *, timeout: float = 20) -> int:
        """Send a signal, and return the exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def animations(self) -> list[str]:
        """Names of what has been published."""
        # Its folder goes when a render that has made it fails.
        with contextlib.suppress(FileNotFoundError):
            return sorted(name for name in os.listdir(self.out) if not name.startswith("."))
        return []

    def leftovers(self) -> list[Path]:
        """Temporary files of ours anywhere below the watched folder."""
        return [path for path in self.watched.rglob(".*") if ".tmp" in path.name]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    """A daemon that is not started yet, for ``tmp_path/watched``; it does not outlive its test."""
    one = Daemon(tmp_path / "daemon", tmp_path / "watched")
    yield one
    if one.process is not None and one.process.poll() is None:
        one.process.kill()
        one.process.wait()


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


@pytest.fixture(scope="session")
def homes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders that nobody has used. That of pytest's own would be looked through for the next free number each time, among thousands."""
    place = tmp_path_factory.mktemp("homes")
    return (place / str(number) for number in itertools.count())


@pytest.fixture(autouse=True)
def nobody_home(homes: Iterator[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """No test reads or writes the settings of the person who runs it, and none inherits how their terminal looks."""
    home = next(homes)
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(home / name.lower()))
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS", "TERM"):
        monkeypatch.delenv(name, raising=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever asks for an ffmpeg is a render test, and whatever asks for a daemon one of the daemon."""
    for item in items:
        names: Iterable[str] = getattr(item, "fixturenames", ())
        if "ffmpeg" in names or "each_ffmpeg" in names:
            item.add_marker("render")
        if "each_ffmpeg" in names:
            item.add_marker("both")
        if "daemon" in names:
            item.add_marker("daemon")
