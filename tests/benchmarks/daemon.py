"""The daemon while little or nothing happens: how soon it knows of a frame, and what a large tree at rest costs.

A real ``stepwatch watch``. How soon it knows is told by its own looks, which are written down with their time; all else is seen from outside.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from PIL import Image

from stepwatch import store, visit
from stepwatch.core.lifecycle import fingerprint
from stepwatch.ledger import Seen
from tests.benchmarks.measuring import resident, tree, used
from tests.benchmarks.program import Program, executable

PATIENCE = 300.0
"""Seconds to wait for what must come."""
RESCAN = 300
"""Seconds between two full scans, unless the service file says otherwise."""
QUICK = {"frames": 5, "burst": 50, "folders": 20, "idle": 1}
FULL = {"frames": 100, "burst": 10_000, "folders": 10_000, "idle": 20}


def run(*, scratch: Path, quick: bool, names: list[str]) -> Iterator[dict[str, Any]]:
    """Measure the parts with these *names*, all when there are none."""
    amounts: Mapping[str, int] = QUICK if quick else FULL
    for name, part in (("known", _known), ("overflow", _overflow), ("idle", _idle)):
        if not names or name in names:
            yield {"case": name, "missing": {}, **part(scratch, amounts)}


class Watching:
    """A daemon in a process of its own, from its start to the end of the ``with``."""

    def __init__(
        self, home: Path, watched: Path, *, observed: bool = True, ffmpeg: str = "auto", policy: Mapping[str, object] = {}, **daemon: object
    ) -> None:
        watched.mkdir(parents=True, exist_ok=True)
        settings = {"min_free_space": 0, "workers": 1, **daemon}
        self.program = Program.at(home, ffmpeg, watch=[{"path": str(watched)}], daemon=settings, policy=policy)
        self.looks = home / "looks"
        self.ready = 0.0
        """Seconds from its start to its word to the service manager."""
        self._command = [executable()]
        if observed:
            self._command = [sys.executable, "-m", "tests.benchmarks.observed", str(self.looks)]
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        place = self.program.home / "notify"
        place.unlink(missing_ok=True)
        log = self.program.home / "log"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, log.open("ab") as said:
            manager.bind(str(place))
            manager.settimeout(PATIENCE)
            environment = {**self.program.environment, "NOTIFY_SOCKET": str(place)}
            began = time.perf_counter()
            command = [*self._command, "watch", "-c", str(self.program.service_file)]
            self.process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=said, stderr=said)
            while b"READY=1" not in manager.recv(4096):
                pass
            self.ready = time.perf_counter() - began
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(60)
        self.process.kill()
        self.process.wait()

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def cpu(self) -> float:
        """Seconds of processor time so far."""
        return sum(map(used, tree(self.pid)))

    def known(self) -> list[tuple[float, int, str]]:
        """Its looks so far: when each ended, how many frames it found, and where."""
        found = []
        for line in self.looks.read_text(encoding="utf-8").splitlines() if self.looks.exists() else ():
            when, count, place = line.split(" ", 2)
            found.append((int(when) / 1e9, int(count), place))
        return found


def write_sidecar(folder: Path, planned: int, state: str) -> None:
    facts = {
        "schema": "stepwatch.run/1",
        "run_id": folder.name,
        "state": state,
        "steps": {"planned": planned, "done": 0, "every": 1, "skip": 0},
        "frames": {"name": "{index:05d}.png", "count": planned if state == "complete" else 0, "planned": planned, "lost": []},
    }
    put(folder / "run.json", json.dumps(facts).encode())


def put(path: Path, data: bytes) -> float:
    """Write a file as a hook does; returns when it was there."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    temporary.rename(path)
    return time.time()


def _picture(scratch: Path) -> bytes:
    path = scratch / "picture.png"
    if not path.exists():
        Image.linear_gradient("L").save(path)
    return path.read_bytes()


def _known(scratch: Path, amounts: Mapping[str, int]) -> dict[str, Any]:
    """A frame every 50 ms: from its rename, or from its close where the writer is careless, to the end of the look that has found it."""
    data = _picture(scratch)
    rows: list[dict[str, Any]] = []
    for way in ("renamed", "closed"):
        folder = scratch / f"known-{way}" / "watched" / "run"
        with Watching(folder.parents[1] / "home", folder.parent) as daemon:
            folder.mkdir()
            write_sidecar(folder, 1000, "running")
            time.sleep(0.3)
            there: list[float] = []
            before = daemon.cpu()
            for index in range(amounts["frames"]):
                path = folder / f"{index:05d}.png"
                if way == "renamed":
                    there.append(put(path, data))
                else:
                    path.write_bytes(data)
                    there.append(time.time())
                time.sleep(0.05)
            spent = daemon.cpu() - before
            looks = daemon.known()
        delays = sorted(next((when for when, count, _ in looks if count > index), PATIENCE) - time_there for index, time_there in enumerate(there))
        rows.append(
            {
                "name": f"a frame {way}, then known",
                "median": statistics.median(delays),
                "late": delays[int(len(delays) * 0.99) - 1],
                "cpu": spent / len(there),
            }
        )
    median = rows[0]["median"] * 1000
    return {
        "what": "file closed -> known to the daemon",
        "rows": rows,
        "goal": [f"median {median:.1f} ms, goal 5 ms: {'met' if median <= 5 else 'missed'}"],
    }


def _overflow(scratch: Path, amounts: Mapping[str, int]) -> dict[str, Any]:
    """The daemon stopped while more is written than the kernel keeps events of; then how long until it knows every file."""
    top, each = scratch / "overflow" / "watched", 100
    data, count = _picture(scratch), amounts["burst"]
    with Watching(scratch / "overflow" / "home", top) as daemon:
        os.kill(daemon.pid, signal.SIGSTOP)
        for index in range(count):
            folder = top / f"{index // each:05d}"
            if not index % each:
                folder.mkdir()
                write_sidecar(folder, each, "running")
            put(folder / f"{index % each:05d}.png", data)
        os.kill(daemon.pid, signal.SIGCONT)
        began = time.time()
        taken = PATIENCE
        while time.time() - began < PATIENCE:
            latest = {place: (when, found) for when, found, place in daemon.known()}
            if sum(found for _, found in latest.values()) == count:
                taken = max(when for when, _ in latest.values()) - began
                break
            time.sleep(0.05)
    return {
        "what": f"{count} files written while it could not listen",
        "rows": [{"name": "all known after", "seconds": taken}],
        "goal": [f"{taken:.2f} s, goal 5 s: {'met' if taken <= 5 else 'missed'}"],
    }


def _idle(scratch: Path, amounts: Mapping[str, int]) -> dict[str, Any]:
    """A tree of folders whose runs were rendered long ago: start, memory, and what doing nothing costs."""
    top, home, data = scratch / "idle" / "watched", scratch / "idle" / "home", _picture(scratch)
    for number in range(amounts["folders"]):
        folder = top / f"{number // 100:03d}" / f"{number:05d}"
        folder.mkdir(parents=True)
        for index in range(2):
            (folder / f"{index:05d}.png").write_bytes(data)
        write_sidecar(folder, 2, "complete")
    _at_rest(top, home)
    starts = []
    # The first start may have to find out what a later one remembers.
    for _ in range(2):
        with Watching(home, top, observed=False) as daemon:
            starts.append(daemon.ready)
            _until_quiet(daemon)
    # Full scans in such a hurry that what one of them costs can be told.
    hurry = 5
    with Watching(home, top, observed=False) as daemon:
        _until_quiet(daemon)
        before, began = daemon.cpu(), time.monotonic()
        time.sleep(amounts["idle"])
        still = (daemon.cpu() - before) / (time.monotonic() - began)
        memory = sum(map(resident, tree(daemon.pid)))
    with Watching(home, top, observed=False, rescan=hurry) as daemon:
        _until_quiet(daemon, hurry=True)
        before, began = daemon.cpu(), time.monotonic()
        time.sleep(amounts["idle"])
        scan = max(0.0, (daemon.cpu() - before) / (time.monotonic() - began) - still) * hurry
    share = still + scan / RESCAN
    return {
        "what": f"{amounts['folders']} folders of rendered runs",
        "rows": [
            {"name": "first start", "seconds": starts[0]},
            {"name": "start", "seconds": starts[1]},
            {"name": "memory", "bytes": memory},
            {"name": "processor while nothing is due", "share": still},
            {"name": "one full scan", "seconds": scan},
            {"name": f"processor with a scan every {RESCAN} s", "share": share},
        ],
        "goal": [
            f"ready in {starts[1]:.2f} s, goal 1 s: {'met' if starts[1] <= 1 else 'missed'}",
            f"{memory / 1e6:.0f} MB, goal 60 MB: {'met' if memory <= 60e6 else 'missed'}",
            f"{share:.2%} of a core, goal 0.2 %: {'met' if share <= 0.002 else 'missed'}",
        ],
    }


def _at_rest(top: Path, home: Path) -> None:
    """Have the receipts say that every run there has been rendered: rendering ten thousand takes hours."""
    with visit.open_records(home / "stepwatch").ledger as ledger:
        runs = store.find_runs(top, pattern_for=lambda _: None, exclude=lambda _: False, guess=False)
        facts = (
            Seen(
                key=run.key,
                run_id=run.run_id,
                name=run.name,
                watched=str(top),
                phase="rendered",
                reason="its animation is there",
                fingerprint=fingerprint(run),
                at_rest=True,
            )
            for run in runs
        )
        ledger.see_many(facts, wall=time.time())


def _until_quiet(daemon: Watching, *, hurry: bool = False) -> None:
    """Wait until it has done what a start leads to."""
    end = time.monotonic() + (5 if hurry else PATIENCE)
    quiet, before = 0, daemon.cpu()
    while quiet < 6 and time.monotonic() < end:
        time.sleep(0.5)
        quiet, before = (quiet + 1 if daemon.cpu() - before < 0.02 else 0), daemon.cpu()
