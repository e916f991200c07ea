"""The daemon, as those meet it who point it at a folder: a real one in a process of its own, real frames, real animations.

Rows are those of the fault matrix in RELIABILITY.md. How the watcher hears of things is in test_watcher.py, what a kill -9 leaves in test_crash.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from stepwatch import trash, visit
from stepwatch.config import Resolved, load_service
from stepwatch.core import lifecycle
from stepwatch.core.model import Run
from stepwatch.core.policy import ServiceConfig
from stepwatch.service import Service
from tests.conftest import QUICK_POLICY, Daemon, MakeRun, sidecar_for, write_frame

HASTY = {"settle": "100ms", "stall": "400ms"}
"""Limits that a test can wait for."""
NUMBERED = {"frames": {"pattern": "numbered"}, "detect": {"settle": "200ms"}}

GATE = """\
#!/bin/sh
# Encodes wait in front of a gate; what ffmpeg is asked about itself, and what checks a finished file, does not.
case "$*" in *rawvideo*pipe:0*)
    echo "$(date +%s.%N) $$ $(cat /proc/$$/stat | sed 's/.*) //' | cut -d' ' -f17)" >> "{starts}"
    env > "{starts}.env"
    while [ ! -e "{gate}" ]; do sleep 0.02; done;;
esac
exec "{real}" "$@"
"""
POISON = """\
#!/bin/sh
# The pixels of one run are poison to whoever feeds them.
case "$*" in *rawvideo*48x24*pipe:0*) kill -9 $PPID; exit 1;; esac
exec "{real}" "$@"
"""
SICK = """\
#!/bin/sh
# The pixels of one run are too much for this ffmpeg.
case "$*" in *rawvideo*48x24*pipe:0*) echo "[error] no, not these" >&2; exit 3;; esac
exec "{real}" "$@"
"""


class Gate:
    """An ffmpeg that does not begin to encode before it is let."""

    def __init__(self, folder: Path, real: str, script: str = GATE) -> None:
        self.path = folder / "ffmpeg"
        self.starts = folder / "starts"
        self._open = folder / "open"
        folder.mkdir()
        self.path.write_text(script.format(starts=self.starts, gate=self._open, real=real))
        self.path.chmod(0o755)

    @property
    def times(self) -> list[float]:
        """When each encode began."""
        return [float(line.split()[0]) for line in self.lines]

    @property
    def lines(self) -> list[str]:
        return self.starts.read_text().splitlines() if self.starts.exists() else []

    @property
    def processes(self) -> list[int]:
        """Those encodes that are still there."""
        return [int(line.split()[1]) for line in self.lines if alive(int(line.split()[1]))]

    def open(self) -> None:
        self._open.touch()


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def gate(tmp_path: Path, ffmpeg: str) -> Gate:
    """A closed gate in front of ffmpeg."""
    return Gate(tmp_path / "gate", ffmpeg)


def with_ffmpeg(daemon: Daemon, path: Path) -> None:
    """Have a daemon use another ffmpeg."""
    content = json.loads(daemon.service_file.read_text()) | {"ffmpeg": str(path)}
    put(daemon.service_file, json.dumps(content))


def put(path: Path, text: str) -> None:
    """Write a file the way editors do, so that nobody reads half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_text(text, encoding="utf-8")
    beside.chmod(0o600)
    os.replace(beside, path)


def add_frames(folder: Path, steps: Sequence[int]) -> None:
    """Write frames as a hook does."""
    for step in steps:
        write_frame(folder / f".{step}.png", step=step)
        os.replace(folder / f".{step}.png", folder / f"{step - 1:05d}.png")


def say(folder: Path, count: int, state: str) -> None:
    """Write the sidecar of a run with so many frames."""
    facts = sidecar_for(folder, count, names="{index:05d}.png", state=state, size=(32, 24))
    put(folder / "run.json", json.dumps(facts | ({"frames": {**facts["frames"], "planned": 50}} if state == "running" else {})))  # type: ignore[dict-item]


def record(folder: Path, steps: Sequence[int], state: str = "complete") -> Path:
    """Write a run, or go on with one, as a hook does: frames first, the sidecar's word last."""
    folder.mkdir(parents=True, exist_ok=True)
    add_frames(folder, steps)
    say(folder, len(list(folder.glob("[0-9]*.png"))), state)
    return folder


def reconfigure(daemon: Daemon, policy: Mapping[str, object] = {}, *, gate: Gate | None = None, **settings: object) -> None:  # never changed
    """Edit the service file, and have it read at once."""
    assert daemon.process is not None
    daemon.configure(policy, **settings)  # type: ignore[arg-type]
    if gate is not None:
        with_ffmpeg(daemon, gate.path)
    daemon.process.send_signal(signal.SIGHUP)


def published(daemon: Daemon, *names: str) -> None:
    """Wait until exactly these animations are there, and nothing is left to be done."""
    daemon.wait_until(lambda: daemon.animations() == sorted(names))
    daemon.wait_at_rest()
    assert daemon.animations() == sorted(names)
    assert daemon.leftovers() == []


def take_away(watched: Path) -> Path:
    """Rename a watched folder. Nothing tells of that by itself; but whoever goes on writing there is still heard."""
    away = watched.rename(watched.with_name("away"))
    (away / "poke.png").touch()
    return away


def phase_of(daemon: Daemon, name: str) -> str:
    """What the daemon says of a run, empty when it is at rest."""
    return next((str(run["phase"]) for run in daemon.status().get("runs", []) if run["name"] == name), "")


def digests(top: Path) -> dict[str, tuple[str, int]]:
    """Content and time of every file below a folder."""
    return {
        str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(top.rglob("*"))
        if path.is_file() and not path.is_symlink()
    }


# --- what is a run, and when --------------------------------------------------------------------------------------------------------------


def test_what_is_there_and_what_comes_gets_one_animation_each(daemon: Daemon, make_run: MakeRun) -> None:
    """A run from before the daemon's start and one written under its eyes are rendered, each once, and the log has a sentence per change."""
    make_run(daemon.watched / "before")
    daemon.start()
    published(daemon, "before.mp4")
    record(daemon.watched / "deeper" / "after", range(1, 9))
    published(daemon, "after.mp4", "before.mp4")
    assert daemon.end() == 0
    about = [line.split(" ", 1)[1] for line in daemon.log.splitlines() if "run after" in line]
    assert [line for line in about if "published" in line] == [f"run after: h264: published {daemon.out / 'after.mp4'}"]
    assert len(about) <= 3, about


def test_a_complete_run_is_being_rendered_within_a_second(daemon: Daemon, gate: Gate) -> None:
    """From the last word of the sidecar to the first ffmpeg of its render less than a second passes while events are alive."""
    gate.open()
    with_ffmpeg(daemon, gate.path)
    daemon.start()
    waits = []
    for number in range(4):
        record(daemon.watched / f"run-{number}", range(1, 5))
        written = time.time()
        daemon.wait_until(lambda number=number: len(gate.times) > number)  # type: ignore[misc]
        waits.append(gate.times[-1] - written)
        daemon.wait_at_rest()
    # The first one also asks ffmpeg what it can do. On a busy machine one of the others may be late, but not all.
    assert min(waits) < 1.0, waits


def test_a_polled_folder_adds_no_more_than_its_interval(daemon: Daemon, gate: Gate) -> None:
    """With ``poll: 500ms`` a run waits for one interval and no longer."""
    gate.open()
    daemon.configure(watch=[])
    content = json.loads(daemon.service_file.read_text())
    content["watch"] = [{"path": str(daemon.watched), "poll": "500ms"}]
    put(daemon.service_file, json.dumps(content | {"ffmpeg": str(gate.path)}))
    daemon.start()
    assert daemon.status()["folders"][0]["state"] == "polling"
    waits = []
    for number in range(4):
        record(daemon.watched / f"run-{number}", range(1, 5))
        written = time.time()
        daemon.wait_until(lambda number=number: len(gate.times) > number)  # type: ignore[misc]
        waits.append(gate.times[-1] - written)
        daemon.wait_at_rest()
    assert min(waits) < 1.5, waits


def test_numbered_images_are_a_run_only_where_a_trusted_policy_says_so(daemon: Daemon, make_run: MakeRun) -> None:
    """Without a sidecar, a folder of images is a run where ``frames.pattern`` is set in a file of ours, and nowhere else."""
    make_run(daemon.watched / "trusted" / "a", sidecar=None)
    make_run(daemon.watched / "silent" / "b", sidecar=None)
    make_run(daemon.watched / "foreign" / "c", sidecar=None)
    put(daemon.watched / "trusted" / "stepwatch.yaml", json.dumps({"version": 1, **NUMBERED}))
    put(daemon.watched / "foreign" / "stepwatch.yaml", json.dumps({"version": 1, **NUMBERED}))
    (daemon.watched / "foreign" / "stepwatch.yaml").chmod(0o666)
    daemon.start()
    published(daemon, "a.mp4")
    make_run(daemon.watched / "trusted" / "late", sidecar=None)
    published(daemon, "a.mp4", "late.mp4")
    assert "anybody may write" in daemon.log
    assert daemon.status()["at_rest"] == 2


def test_the_pictures_of_a_host_are_not_taken_for_frames(daemon: Daemon, make_run: MakeRun) -> None:
    """Finished pictures, as WebUI and ComfyUI number them, stay what they are beside a run that is rendered."""
    for number in range(8):
        write_frame(daemon.watched / "txt2img-images" / "2026-11-22" / f"{number:05d}-{4242 + number}.png", step=number)
        write_frame(daemon.watched / f"ComfyUI_{number:05d}_.png", step=number)
    make_run(daemon.watched / "txt2img-images" / "2026-11-22" / "run-a")
    daemon.start()
    published(daemon, "run-a.mp4")
    assert daemon.status()["runs"] == []
    assert daemon.end() == 0
    assert daemon.once() == 0
    assert daemon.animations() == ["run-a.mp4"]


# --- no feedback: nested folders, outputs, trash --------------------------------------------------------------------------------------------


def test_a_run_belongs_to_the_deepest_watched_folder(daemon: Daemon, make_run: MakeRun) -> None:
    """Row 66: of two watched folders, one in the other, the inner one owns what is in it, whichever is named first; each run is rendered once."""
    inner = daemon.watched / "inner"
    make_run(inner / "a")
    make_run(daemon.watched / "b")
    daemon.configure(watch=[daemon.watched, inner], rescan="1s")
    daemon.start()
    daemon.wait_until((inner / "animation" / "a.mp4").exists)
    published(daemon, "b.mp4")
    make_run(inner / "late")
    daemon.wait_until((inner / "animation" / "late.mp4").exists)
    daemon.wait_at_rest()
    assert daemon.status()["rendered"] == 3
    assert daemon.animations() == ["b.mp4"]


@pytest.mark.parametrize("place", ["pictures/out", "."])
def test_what_comes_out_never_goes_in(daemon: Daemon, make_run: MakeRun, place: str) -> None:
    """Row 66: animations that look like frames, in an output folder inside the watched one or equal to it, are not rendered, nor is the trash."""
    policy = {
        **NUMBERED,
        "outputs": [{"codec": "webp", "name": "00007", "dir": str(daemon.watched / place)}, {"codec": "apng", "name": "00008", "dir": place}],
        "cleanup": {"intermediates": "trash"},
    }
    put(daemon.watched / "stepwatch.yaml", json.dumps({"version": 1, "timeline": QUICK_POLICY["timeline"], **policy}))
    daemon.configure(rescan="1s")
    for name in ("a", "b", "c"):
        make_run(daemon.watched / "runs" / name, sidecar=None)
    daemon.start()
    out = daemon.watched / place
    daemon.wait_until(lambda: len(list(out.glob("00007*.webp"))) == 3 and len(list(out.glob("00008*"))) == 3)
    # Without sidecars it takes some more quiet until the frames go.
    daemon.wait_until(lambda: not list((daemon.watched / "runs").iterdir()))
    daemon.wait_at_rest()
    before = digests(daemon.watched)
    started = time.monotonic()
    daemon.wait_until(lambda: time.monotonic() - started > 2.6)
    after = digests(daemon.watched)
    assert [path for path in after if ".stepwatch/cookie" not in path] == [path for path in before if ".stepwatch/cookie" not in path]
    assert daemon.status()["rendered"] == 3
    assert daemon.end() == 0


def test_animations_may_lie_beside_the_runs(daemon: Daemon, make_run: MakeRun) -> None:
    """Row 66: where a folder of runs is told to keep their animations itself, those that come later are seen as well."""
    runs = daemon.watched / "runs"
    put(runs / "stepwatch.yaml", json.dumps({"version": 1, "outputs": [{"codec": "h264", "name": "{run}", "dir": "."}]}))
    daemon.configure(rescan="1s")
    make_run(runs / "a")
    daemon.start()
    daemon.wait_until((runs / "a.mp4").exists)
    started = time.monotonic()
    daemon.wait_until(lambda: time.monotonic() - started > 2.5)
    make_run(runs / "late")
    daemon.wait_until((runs / "late.mp4").exists)


# --- incomplete runs ----------------------------------------------------------------------------------------------------------------------


def test_a_run_that_goes_on_after_a_stall_gets_a_new_animation(daemon: Daemon) -> None:
    """Row 67: a stalled run is rendered as incomplete; when it goes on it is recording again, and its whole animation takes the place of that."""
    daemon.configure({"detect": HASTY})
    run = record(daemon.watched / "run", range(1, 6), "running")
    daemon.start()
    published(daemon, "run-incomplete.mp4")
    first = (daemon.out / "run-incomplete.mp4").read_bytes()
    reconfigure(daemon, {"detect": {**HASTY, "stall": "60s"}})
    daemon.wait_until(lambda: "read again" in daemon.log)
    record(run, range(6, 9), "running")
    daemon.wait_until(lambda: phase_of(daemon, "run") == "recording")
    record(run, range(9, 11))
    published(daemon, "run.mp4")
    kept = list((daemon.watched / ".stepwatch" / "trash").rglob("*.mp4"))
    assert [path.read_bytes() for path in kept] == [first]
    assert daemon.end() == 0
    assert len(list(run.glob("*.png"))) == 10


def test_twice_incomplete_and_the_newer_one_has_the_plain_name(daemon: Daemon) -> None:
    """Row 67: a run that stalls, goes on and stalls again has one incomplete animation, of all its frames, without a number in its name."""
    daemon.configure({"detect": HASTY})
    run = record(daemon.watched / "run", range(1, 6), "running")
    daemon.start()
    published(daemon, "run-incomplete.mp4")
    first = (daemon.out / "run-incomplete.mp4").read_bytes()
    record(run, range(6, 9), "running")
    daemon.wait_until(lambda: (daemon.out / "run-incomplete.mp4").is_file() and (daemon.out / "run-incomplete.mp4").read_bytes() != first)
    published(daemon, "run-incomplete.mp4")
    shown = json.loads(daemon.run("runs", "show", "run", "--json").stdout)
    assert [render["outputs"][0]["superseded"] for render in shown["renders"]] == [True, False]
    assert [render["frames"]["shown"] for render in shown["renders"]] == [5, 8]
    assert shown["renders"][1]["outputs"][0]["path"] == str(daemon.out / "run-incomplete.mp4")


def test_late_frames_make_another_animation_and_keep_the_first(daemon: Daemon) -> None:
    """Row 29: frames that come after a complete render are a new generation, and the animation of the first one stays."""
    run = record(daemon.watched / "run", range(1, 6))
    daemon.start()
    published(daemon, "run.mp4")
    before = (daemon.out / "run.mp4").read_bytes()
    record(run, range(6, 9))
    published(daemon, "run-1.mp4", "run.mp4")
    assert (daemon.out / "run.mp4").read_bytes() == before


@pytest.mark.parametrize("state", ["interrupted", "failed"])
def test_what_the_host_did_not_finish_is_marked(daemon: Daemon, state: str) -> None:
    """A sidecar that says interrupted or failed makes an animation at once that says incomplete in its name."""
    daemon.start()
    record(daemon.watched / "run", range(1, 6), state)
    published(daemon, "run-incomplete.mp4")
    assert f"run run: {state}: its sidecar says {state}" in daemon.log


def test_a_held_run_waits_for_a_word(daemon: Daemon) -> None:
    """``incomplete: hold`` renders nothing and says so, once, until somebody says ``runs retry``."""
    daemon.configure({"detect": {**HASTY, "incomplete": "hold"}})
    record(daemon.watched / "here", range(1, 6), "interrupted")
    daemon.start()
    record(daemon.watched / "comes", range(1, 6), "running")
    daemon.wait_until(lambda: phase_of(daemon, "here") == phase_of(daemon, "comes") == "held")
    for name in ("here", "comes"):
        daemon.wait_until(lambda name=name: daemon.log.count(f"run {name}: held: ") == 1)  # type: ignore[misc]
    assert daemon.animations() == []
    asked = daemon.run("runs", "retry", "here")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout == "here: it will be rendered\n"
    published(daemon, "here-incomplete.mp4")
    assert phase_of(daemon, "comes") == "held"
    assert daemon.log.count(": held: ") == 2


def test_what_policy_or_person_leaves_alone_is_left_alone(daemon: Daemon) -> None:
    """``incomplete: ignore``, ``min_frames`` and ``runs discard`` keep a run from being rendered; a discarded run counts anew with a new frame."""
    daemon.configure({"detect": {**HASTY, "incomplete": "ignore", "min_frames": 3}})
    record(daemon.watched / "short", range(1, 3))
    record(daemon.watched / "cut", range(1, 6), "interrupted")
    daemon.start()
    daemon.wait_until(lambda: phase_of(daemon, "short") == phase_of(daemon, "cut") == "ignored")
    reconfigure(daemon, {"detect": {**HASTY, "incomplete": "hold", "min_frames": 3}})
    daemon.wait_until(lambda: phase_of(daemon, "cut") == "held")
    assert daemon.run("runs", "discard", "cut").returncode == 0
    daemon.wait_until(lambda: phase_of(daemon, "cut") == "ignored")
    before = daemon.log.count("read again")
    reconfigure(daemon, {"detect": {**HASTY, "min_frames": 3}})
    daemon.wait_until(lambda: daemon.log.count("read again") > before)
    daemon.wait_at_rest()
    assert daemon.animations() == []
    record(daemon.watched / "cut", range(6, 8), "interrupted")
    record(daemon.watched / "short", range(3, 5))
    published(daemon, "cut-incomplete.mp4", "short.mp4")


# --- a configuration that changes ---------------------------------------------------------------------------------------------------------


def named(prefix: str) -> str:
    """A stepwatch.yaml that gives animations such a name."""
    return f"version: 1\ntimeline: {{duration: 800ms, fps: 10, hold_last: 0s}}\noutputs:\n  - codec: h264\n    name: '{prefix}-{{run}}'\n"


def test_a_wrong_edit_changes_nothing_and_a_right_one_does_at_once(daemon: Daemon) -> None:
    """Row 64: a damaged stepwatch.yaml is told of once, with file and line, while the last valid one counts; nothing is rendered twice."""
    policy = daemon.watched / "stepwatch.yaml"
    put(policy, named("old"))
    record(daemon.watched / "a", range(1, 5))
    daemon.start()
    published(daemon, "old-a.mp4")
    damages = {
        "fps: 'many'": named("new").replace("fps: 10", "fps: 'many'"),
        "unknown": named("new") + "outpts: gif\n",
        "duplicate": named("new") + "version: 1\n",
        "bomb": "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: [*c,*c,*c,*c,*c,*c,*c,*c]\n",
        "half": named("new")[:-30],
    }
    names = ["old-a.mp4"]
    for number, text in enumerate(damages.values()):
        put(policy, text)
        daemon.wait_until(lambda number=number: daemon.log.count("the last valid policy stays in force") == number + 1)  # type: ignore[misc]
        run = daemon.watched / f"b{number}"
        run.mkdir()
        add_frames(run, range(1, 5))
        wish = {"stepwatch": {"timeline": {"duration": "400ms"}}}
        put(run / "run.json", json.dumps(sidecar_for(run, 4, names="{index:05d}.png", state="complete", size=(32, 24)) | wish))
        names.append(f"old-b{number}.mp4")
        published(daemon, *names)
    assert daemon.log.count("the last valid policy stays in force") == len(damages)
    assert daemon.log.count(f"{policy}:2:") == 2, daemon.log
    put(policy, named("new"))
    record(daemon.watched / "c", range(1, 5))
    published(daemon, "new-c.mp4", *names)
    policy.unlink()
    record(daemon.watched / "d", range(1, 5))
    published(daemon, "d.mp4", "new-c.mp4", *names)
    assert daemon.status()["rendered"] == len(names) + 2


def test_a_daemon_that_starts_under_a_wrong_policy_waits_for_a_right_one(daemon: Daemon) -> None:
    """Row 64: where no valid policy was ever known nothing is rendered, the fault is told once, and mending the file is enough."""
    policy = daemon.watched / "stepwatch.yaml"
    put(policy, "version: 1\noutputs: nonsense\n")
    for name in ("a", "b", "c"):
        record(daemon.watched / name, range(1, 5))
    daemon.start()
    daemon.wait_until(lambda: f"{policy}:2:" in daemon.log)
    put(policy, named("new"))
    published(daemon, "new-a.mp4", "new-b.mp4", "new-c.mp4")
    assert daemon.log.count(f"{policy}:2:") == 1


def test_a_policy_of_clearing_counts_for_what_is_rendered_under_it(daemon: Daemon) -> None:
    """Row 65: when the policy begins to delete, finished runs keep their frames, and the next run does not."""
    record(daemon.watched / "a", range(1, 5))
    daemon.start()
    published(daemon, "a.mp4")
    put(daemon.watched / "stepwatch.yaml", "version: 1\ncleanup: {intermediates: delete}\n")
    record(daemon.watched / "b", range(1, 5))
    daemon.wait_until(lambda: not (daemon.watched / "b").exists())
    published(daemon, "a.mp4", "b.mp4")
    assert len(list((daemon.watched / "a").glob("*.png"))) == 4


def test_the_service_file_is_taken_over_when_it_changes(daemon: Daemon, tmp_path: Path) -> None:
    """Row 64: folders come and go, workers change, a wrong edit is refused with file and line: all without a restart, by edit or SIGHUP."""
    second, third = tmp_path / "second", tmp_path / "third"
    second.mkdir()
    daemon.prepare("stepwatch.service.CONFIG_CHECK = 0.2")
    daemon.start()
    assert daemon.process is not None
    record(second / "b", range(1, 5))
    daemon.configure(watch=[daemon.watched, second, third], workers=2)
    daemon.wait_until((second / "animation" / "b.mp4").exists)
    daemon.wait_at_rest()
    assert daemon.status()["daemon"]["workers"] == 2
    assert daemon.status()["folders"][2]["state"] == "asleep"
    record(third / "c", range(1, 5))
    daemon.wait_until((third / "animation" / "c.mp4").exists)

    before = daemon.service_file.read_text()
    put(daemon.service_file, before.replace('"workers": 2', '"workers": 0'))
    daemon.wait_until(lambda: "the configuration stays as it was" in daemon.log)
    assert f"{daemon.service_file}:1:" in daemon.log
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_until(lambda: daemon.log.count("the configuration stays as it was") == 2)
    daemon.service_file.unlink()
    daemon.wait_until(lambda: daemon.log.count("the configuration stays as it was") == 3)
    assert daemon.status()["daemon"]["workers"] == 2

    daemon.configure(watch=[second, third])
    daemon.process.send_signal(signal.SIGHUP)
    daemon.wait_until(lambda: [folder["path"] for folder in daemon.status()["folders"]] == [str(second), str(third)])
    record(daemon.watched / "nobody", range(1, 5))
    record(second / "somebody", range(1, 5))
    daemon.wait_until((second / "animation" / "somebody.mp4").exists)
    assert daemon.animations() == []
    # What is no longer watched is free for others.
    assert not (daemon.watched / ".stepwatch" / "daemon.json").exists()
    assert daemon.end() == 0


def test_an_edit_of_the_service_file_is_noticed_when_it_is_looked_at(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also while nothing else happens: the look at the file is what the loop wakes for."""
    monkeypatch.setattr("stepwatch.service.CONFIG_CHECK", 0.05)
    # Nothing of the watch is due for the next seconds.
    monkeypatch.setattr("stepwatch.watcher.SETTLING", 100.0)
    with serving(daemon) as (_, listener):
        time.sleep(0.5)
        daemon.configure({}, rescan="1h")
        daemon.wait_until(lambda: "the configuration is read again" in listener.said, timeout=2.5)


def test_a_folder_that_is_taken_away_and_given_back_while_a_run_is_rendered(daemon: Daemon, gate: Gate, tmp_path: Path) -> None:
    """Row 64: the render that is under way is finished and forgotten; given back, the folder's runs are looked after as before."""
    other = tmp_path / "other"
    other.mkdir()
    with_ffmpeg(daemon, gate.path)
    run = record(daemon.watched / "run", range(1, 4))
    daemon.start()
    daemon.wait_until(lambda: gate.processes)
    reconfigure(daemon, gate=gate, watch=[other])
    daemon.wait_until(lambda: [folder["path"] for folder in daemon.status()["folders"]] == [str(other)])
    gate.open()
    daemon.wait_until(lambda: daemon.animations() == ["run.mp4"] and daemon.status()["active"] == 0)
    reconfigure(daemon)
    daemon.wait_until(lambda: [folder["path"] for folder in daemon.status()["folders"]] == [str(daemon.watched)])
    record(run, range(4, 6))
    published(daemon, "run-1.mp4", "run.mp4")


def test_a_folder_that_is_watched_otherwise_while_a_run_is_rendered(daemon: Daemon, gate: Gate) -> None:
    """Row 64: when the way of watching changes in the middle of a render, late frames of that run are rendered too."""
    with_ffmpeg(daemon, gate.path)
    run = record(daemon.watched / "run", range(1, 4))
    daemon.start()
    daemon.wait_until(lambda: gate.processes)
    reconfigure(daemon, gate=gate, rescan="1s")
    daemon.wait_until(lambda: "read again" in daemon.log)
    gate.open()
    daemon.wait_until(lambda: daemon.animations() == ["run.mp4"])
    record(run, range(4, 6))
    published(daemon, "run-1.mp4", "run.mp4")
    assert daemon.status()["active"] == 0


def test_a_missing_ffmpeg_pauses_and_a_right_path_goes_on(daemon: Daemon) -> None:
    """Without an ffmpeg nothing is tried over and over, no attempt is used up, and the corrected service file is enough."""
    with_ffmpeg(daemon, Path("/nowhere/ffmpeg"))
    for name in ("a", "b", "c"):
        record(daemon.watched / name, range(1, 4))
    daemon.start()
    daemon.wait_until(lambda: daemon.status()["folders"][0]["state"] == "paused")
    assert "names the ffmpeg /nowhere/ffmpeg" in daemon.status()["folders"][0]["reason"]
    started = time.monotonic()
    reconfigure(daemon)
    published(daemon, "a.mp4", "b.mp4", "c.mp4")
    # Sooner than the pause would have been over by itself.
    assert time.monotonic() - started < 10
    assert daemon.log.count("pauses: ") == 1
    shown = json.loads(daemon.run("runs", "list", "--json").stdout)["runs"]
    assert [run["attempts"] for run in shown] == [0, 0, 0]


# --- the end ------------------------------------------------------------------------------------------------------------------------------


def rendering(daemon: Daemon, gate: Gate, **settings: object) -> int:
    """Start a daemon that is in the middle of a render; returns the ffmpeg's process."""
    daemon.configure({}, **settings)  # type: ignore[arg-type]
    with_ffmpeg(daemon, gate.path)
    record(daemon.watched / "run", range(1, 5))
    daemon.start()
    daemon.wait_until(lambda: phase_of(daemon, "run") == "rendering" and gate.processes)
    return gate.processes[0]


def attempts(daemon: Daemon) -> int:
    return int(json.loads(daemon.run("runs", "show", "run", "--json").stdout)["attempts"]["count"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_an_idle_daemon_ends_at_once(daemon: Daemon, number: int, code: int) -> None:
    """Row 59: SIGTERM ends with 0 and Ctrl-C with 130; nothing is left of the daemon but its receipts."""
    daemon.start()
    started = time.monotonic()
    assert daemon.end(number) == code
    assert time.monotonic() - started < 5
    assert not (daemon.state / "status.sock").exists()
    assert not (daemon.watched / ".stepwatch" / "daemon.json").exists()


def test_a_render_may_finish_when_the_daemon_is_told_to_end(daemon: Daemon, gate: Gate) -> None:
    """Row 59: SIGTERM starts nothing new, lets the render finish within ``drain``, and ends with 0."""
    rendering(daemon, gate)
    record(daemon.watched / "next", range(1, 5))
    daemon.wait_until(lambda: phase_of(daemon, "next"))
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    daemon.wait_until(lambda: "1 render may finish" in daemon.log)
    assert daemon.status()["daemon"]["ending"] is True
    gate.open()
    assert daemon.process.wait(20) == 0
    assert daemon.animations() == ["run.mp4"]
    assert daemon.leftovers() == []
    assert len(gate.lines) == 1


@pytest.mark.parametrize("impatient", [False, True], ids=["drain", "twice"])
def test_a_render_that_is_not_waited_for_costs_no_attempt(daemon: Daemon, gate: Gate, impatient: bool) -> None:  # noqa: FBT001
    """Row 59: after ``drain``, or the second SIGTERM, ffmpeg is ended, its file is gone, the attempt is refunded, and the next start renders."""
    process = rendering(daemon, gate, drain="60s" if impatient else "300ms")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGTERM)
    if impatient:
        daemon.wait_until(lambda: "may finish" in daemon.log)
        daemon.process.send_signal(signal.SIGTERM)
    started = time.monotonic()
    assert daemon.process.wait(20) == 0
    assert time.monotonic() - started < 10
    assert not alive(process)
    assert daemon.animations() == []
    assert daemon.leftovers() == []
    assert attempts(daemon) == 0
    gate.open()
    assert daemon.once() == 0
    assert daemon.animations() == ["run.mp4"]


def test_a_storm_of_hangups_disturbs_nothing(daemon: Daemon, gate: Gate) -> None:
    """Row 59: any number of SIGHUPs read the configuration again and no more; a render goes on meanwhile."""
    rendering(daemon, gate)
    assert daemon.process is not None
    for _ in range(300):
        daemon.process.send_signal(signal.SIGHUP)
        time.sleep(0.001)
    gate.open()
    published(daemon, "run.mp4")
    assert daemon.end() == 0
    assert len(gate.lines) == 1


# --- systemd ------------------------------------------------------------------------------------------------------------------------------


class Manager:
    """The other end of NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.said: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        with contextlib.suppress(OSError):
            while text := self._socket.recv(4096).decode():
                self.said.append(text)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._socket.getsockname())
        self._thread.join()
        self._socket.close()


@contextlib.contextmanager
def managed(address: str) -> Iterator[Manager]:
    manager = Manager(address)
    try:
        yield manager
    finally:
        manager.close()


@pytest.mark.parametrize("abstract", [False, True], ids=["file", "abstract"])
def test_the_service_manager_is_told(daemon: Daemon, gate: Gate, tmp_path: Path, abstract: bool) -> None:  # noqa: FBT001
    """Row 72: READY comes when folders are watched, then signs of life with a status; RELOADING and READY around a reload; STOPPING at the end."""
    address = f"@stepwatch-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with_ffmpeg(daemon, gate.path)
    record(daemon.watched / "run", range(1, 5))
    with managed(address) as manager:
        daemon.environment = daemon.environment | {"NOTIFY_SOCKET": address}
        daemon.start()
        daemon.wait_until(lambda: "WATCHDOG=1\nSTATUS=1 rendering, 0 waiting, 0 rendered" in manager.said)
        assert manager.said[0] == "READY=1"
        # On a machine that is busy it may be told that the first look is not over yet.
        assert all(text.startswith("WATCHDOG=1\nSTATUS=first look: ") for text in manager.said[1:-1])
        assert daemon.process is not None
        daemon.process.send_signal(signal.SIGHUP)
        daemon.wait_until(lambda: "RELOADING=1" in manager.said and manager.said[-1] == "READY=1")
        daemon.process.send_signal(signal.SIGTERM)
        daemon.wait_until(lambda: "STOPPING=1\nSTATUS=finishing 1 render" in manager.said)
        gate.open()
        assert daemon.process.wait(20) == 0
        assert manager.said[-1] == "STOPPING=1"


@pytest.mark.parametrize("address", ["/nowhere/at/all", "@nobody-listens", "relative", "/dev/null", ""])
def test_a_service_manager_that_does_not_listen_is_no_trouble(daemon: Daemon, make_run: MakeRun, address: str) -> None:
    """Row 72: a notify socket that is absent, abstract without a listener, or not a socket changes nothing."""
    daemon.environment = daemon.environment | {"NOTIFY_SOCKET": address}
    make_run(daemon.watched / "run")
    assert daemon.once() == 0
    assert daemon.animations() == ["run.mp4"]
    assert "NOTIFY" not in daemon.log


# --- the daemon in this process: what needs other constants ---------------------------------------------------------------------------------


class Listener:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, run_name: str, sentence: str, *, level: str = "info") -> None:
        self.said.append(f"run {run_name}: {sentence}")

    def note(self, sentence: str, *, level: str = "info") -> None:
        self.said.append(sentence)

    def progress(self, run_name: str, label: str, done: int, total: int, speed: float | None) -> None:
        pass

    def finished(self, run_name: str) -> None:
        pass


@contextlib.contextmanager
def serving(daemon: Daemon) -> Iterator[tuple[Service, Listener]]:
    """The daemon in a thread of this process, with the service file and the receipts of *daemon*."""
    listener, ready = Listener(), threading.Event()

    def load() -> ServiceConfig:
        return load_service(daemon.service_file)

    service = Service(load=load, observer=listener, config_file=lambda: daemon.service_file, state=daemon.state, private=True, ready=ready.set)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(service.run()))
    thread.start()
    try:
        assert ready.wait(20)
        yield service, listener
    finally:
        service.end("test")
        thread.join(30)
    assert codes == [0]


def facts_of(service: Service, name: str) -> Mapping[str, object]:
    runs = service.snapshot()["runs"]
    assert isinstance(runs, list)
    return next((run for run in runs if run["name"] == name), {})


def test_signs_of_life_come_idle_and_rendering_and_not_from_a_dead_visit(
    daemon: Daemon, gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 72: WATCHDOG comes while the daemon is idle and while it renders; not when a visit has not moved for too long."""
    monkeypatch.setattr("stepwatch.service.PING", 0.05)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with_ffmpeg(daemon, gate.path)
    with managed(str(tmp_path / "notify")) as manager, serving(daemon) as (service, _):
        idle, busy = "WATCHDOG=1\nSTATUS=0 rendering, 0 waiting, 0 rendered", "WATCHDOG=1\nSTATUS=1 rendering, 0 waiting, 0 rendered"
        daemon.wait_until(lambda: manager.said.count(idle) > 2)
        record(daemon.watched / "run", range(1, 5))
        daemon.wait_until(lambda: manager.said.count(busy) > 2)
        monkeypatch.setattr("stepwatch.service.SIGN_OF_LIFE", -1.0)
        service.wake()
        time.sleep(0.3)
        count = len(manager.said)
        time.sleep(0.5)
        assert len(manager.said) == count
        gate.open()
        daemon.wait_until(lambda: "WATCHDOG=1\nSTATUS=0 rendering, 0 waiting, 1 rendered" in manager.said)


def many(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """So many finished runs, each of which takes its time to be looked at."""
    for number in range(count):
        record(daemon.watched / "old" / f"{number:03d}", range(1, 2))
    daemon.configure({"detect": {**HASTY, "min_frames": 2}})
    real = visit.runs_at

    def slowly(place: Path, resolve: visit.Resolve) -> list[tuple[Run, Resolved]]:
        time.sleep(0.05 if place.parent.name == "old" else 0.0)
        return real(place, resolve)

    monkeypatch.setattr(visit, "runs_at", slowly)


def looked(service: Service) -> dict[str, int] | None:
    """How far the first look has come."""
    folders = service.snapshot()["folders"]
    assert isinstance(folders, list)
    found: dict[str, int] | None = folders[0]["first_look"]
    return found


def test_ready_does_not_wait_for_the_first_look_and_nor_do_runs(daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many old runs to look at, a daemon is ready at once, tells how far it is, and renders a run that begins meanwhile before all of them."""
    many(daemon, monkeypatch, 50)
    monkeypatch.setattr("stepwatch.service.PING", 0.05)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
    with managed(str(tmp_path / "notify")) as manager, serving(daemon) as (service, _):
        daemon.wait_until(lambda: (looked(service) or {}).get("found") == 52)
        record(daemon.watched / "old" / "new", range(1, 5))
        daemon.wait_until(lambda: daemon.animations() == ["new.mp4"])
        first = looked(service)
        assert first is not None
        assert first["done"] < first["found"] == 53
        assert manager.said[0] == "READY=1"
        daemon.wait_until(lambda: looked(service) is None)
        assert service.snapshot()["active"] == 50
        daemon.wait_until(lambda: manager.said[-1] == "WATCHDOG=1\nSTATUS=0 rendering, 0 waiting, 1 rendered")
        said = [re.search(r"STATUS=first look: (\d+) of 5[23] folders; 0 rendering, 0 waiting, \d rendered", text) for text in manager.said]
        done = [int(found[1]) for found in said if found]
        assert len(done) > 3
        assert done == sorted(done)


def test_the_first_look_comes_to_its_end_however_much_happens_meanwhile(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on, and is looked at for each of its frames, comes first and leaves time for the others."""
    many(daemon, monkeypatch, 15)
    live, over = daemon.watched / "old" / "live", threading.Event()
    record(live, range(1, 2), state="running")

    def go_on() -> None:
        while not over.wait(0.005):
            write_frame(live / "00001.png", step=2)

    writer = threading.Thread(target=go_on)
    with serving(daemon) as (service, _):
        writer.start()
        try:
            daemon.wait_until(lambda: looked(service) is None)
            assert service.snapshot()["active"] == 16
        finally:
            over.set()
            writer.join()


@pytest.mark.parametrize("what", ["new", "edited", "removed"])
def test_a_policy_that_changes_during_the_first_look_counts_for_all(daemon: Daemon, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Also for the folders that were looked at by the policy of before."""
    policy = daemon.watched / "old" / "stepwatch.yaml"
    many(daemon, monkeypatch, 30)
    if what != "new":
        policy.write_text("version: 1\ndetect: {min_frames: 3}\n")
    with serving(daemon) as (service, _):
        daemon.wait_until(lambda: 5 < (looked(service) or {}).get("done", 0) < 20)
        if what == "removed":
            policy.unlink()
        else:
            put(policy, "version: 1\ndetect: {min_frames: 4}\n")
        reason = f"it has 1 frame, and detect.min_frames is {2 if what == 'removed' else 4}"
        daemon.wait_until(lambda: [run["reason"] for run in service.snapshot()["runs"]] == [reason] * 30)  # type: ignore[attr-defined]


def test_one_pass_over_many_folders_leaves_none_out(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--once`` ends when the last of them has been looked at, however many turns that takes."""
    many(daemon, monkeypatch, 30)
    monkeypatch.setattr("stepwatch.service.SCANNING", 0.0)
    service = Service(load=lambda: load_service(daemon.service_file), observer=Listener(), once=True, state=daemon.state, private=True)
    assert service.run() == 0
    with visit.open_records(daemon.state).ledger as ledger:
        assert [summary.phase for summary in ledger.summaries()] == ["ignored"] * 30


def test_a_run_that_always_fails_waits_longer_and_longer_and_is_given_up(
    daemon: Daemon, ffmpeg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails is tried again after a wait that its status shows, quarantined after the last try, and tried anew by ``runs retry``."""
    monkeypatch.setattr(lifecycle, "FIRST_BACKOFF", 0.6)
    monkeypatch.setenv("XDG_STATE_HOME", str(daemon.home))
    sick = Gate(tmp_path / "sick", ffmpeg, SICK)
    daemon.configure({}, max_attempts=3)
    with_ffmpeg(daemon, sick.path)
    sickly(daemon.watched / "run")
    record(daemon.watched / "well", range(1, 5))
    with serving(daemon) as (service, listener):
        daemon.wait_until(lambda: facts_of(service, "run").get("phase") == "render-failed")
        facts = facts_of(service, "run")
        assert str(facts["reason"]).startswith("try 1 of 3 failed: ffmpeg stopped with status 3")
        assert 0 < float(str(facts["next_look"])) < 1
        daemon.wait_until(lambda: str(facts_of(service, "run").get("reason")).startswith("try 2 of 3 failed"))
        assert 1 < float(str(facts_of(service, "run")["next_look"])) <= 3
        daemon.wait_until(lambda: facts_of(service, "run").get("phase") == "quarantined")
        daemon.wait_until(lambda: daemon.animations() == ["well.mp4"])
        assert [line for line in listener.said if "quarantined" in line] == [f"run run: quarantined: {facts_of(service, 'run')['reason']}"]
        listed = json.loads(daemon.run("runs", "list", "--phase", "quarantined", "--json").stdout)["runs"]
        assert [(one["name"], one["attempts"]) for one in listed] == [("run", 3)]
        sick.path.write_text(f'#!/bin/sh\nexec "{ffmpeg}" "$@"\n')
        assert daemon.run("runs", "retry", "run").returncode == 0
        service.wake()
        for folder in service._folders:
            assert folder.watcher
            folder.watcher.look_again(None)
        daemon.wait_until(lambda: daemon.animations() == ["run.mp4", "well.mp4"])


def sickly(folder: Path) -> Path:
    """A run of pictures of another size."""
    for step in range(1, 5):
        write_frame(folder / f"{step - 1:05d}.png", step=step, size=(48, 24))
    put(folder / "run.json", json.dumps(sidecar_for(folder, 4, names="{index:05d}.png", state="complete", size=(48, 24))))
    return folder


def test_the_loop_remembers_no_more_than_there_are_runs(daemon: Daemon) -> None:
    """However many frames a run has had, and however often it was looked at, one timer waits for it."""
    daemon.configure({"detect": {"settle": "100ms", "stall": "300ms"}}, min_free_space=0)
    run = daemon.watched / "run"
    with serving(daemon) as (service, _):
        for step in range(1, 41):
            record(run, [step], "running")
            time.sleep(0.03)
        assert len(service._timers) <= 2
        daemon.wait_until(lambda: daemon.animations() == ["run-incomplete.mp4"])
        daemon.wait_until(lambda: not service._timers and not service._runs)


def begin(folder: Path, process: int, created: float, *, group: str | None = None, steps: Sequence[int] = range(1, 5), behind: float = 0) -> None:
    """Write what a host far away has written so far: its sidecar has its clock, its frames that of a server which may be *behind*."""
    folder.mkdir(parents=True, exist_ok=True)
    add_frames(folder, steps)
    for frame in folder.glob("*.png"):
        os.utime(frame, (created - behind, created - behind))
    facts = sidecar_for(folder, 50, names="{index:05d}.png", state="running", size=(32, 24))
    moment = datetime.fromtimestamp(created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    writer = {"host": "far-away", "boot_id": "b", "pid": process}
    put(folder / "run.json", json.dumps(facts | {"created": moment, "writer": writer, **({"group_id": group} if group else {})}))


def test_a_run_is_over_when_its_writer_begins_the_next_one_and_not_by_itself(daemon: Daemon) -> None:
    """Row 62: by the writer's clock alone, so a server that is behind makes no run succeed itself; what one job writes side by side goes on."""
    daemon.configure({"detect": {"settle": "300ms", "stall": "60s"}})
    now = time.time()
    waiting = ("alone", "batch-1", "batch-2")

    def goes_on(steps: Sequence[int]) -> None:
        begin(daemon.watched / "alone", 11, now, steps=steps, behind=600)
        begin(daemon.watched / "batch-1", 12, now, group="job", steps=steps, behind=600)
        begin(daemon.watched / "batch-2", 12, now + 1, group="job", steps=steps, behind=600)

    goes_on(range(1, 5))
    with serving(daemon) as (service, _):
        daemon.wait_until(lambda: all(phase_of(daemon, name) == "recording" for name in waiting))
        seen = {known.name: known.sighting.fingerprint for known in service._runs.values()}
        goes_on(range(5, 7))
        daemon.wait_until(lambda: all(seen[known.name] != known.sighting.fingerprint for known in list(service._runs.values())))
        begin(daemon.watched / "first", 13, now, group="one job")
        begin(daemon.watched / "next", 13, now + 1, group="another")
        begin(daemon.watched / "early", 14, now)
        begin(daemon.watched / "late", 14, now + 1)
        daemon.wait_until(lambda: daemon.animations() == ["early-incomplete.mp4", "first-incomplete.mp4"])
        for name in (*waiting, "next", "late"):
            assert facts_of(service, name)["reason"] == "it counts as stalled when no frame comes for 60 s"


def test_a_second_file_of_a_step_that_is_touched_after_the_render_is_looked_at_once(daemon: Daemon, make_run: MakeRun) -> None:
    """Of a duplicate nobody has a digest; its new time is learned all the same, and one pass comes to an end with the animation that there is."""
    daemon.configure(NUMBERED)
    run = make_run(daemon.watched / "run", sidecar=None)
    write_frame(run / "00003.jpg", step=9)
    assert daemon.once() == 0
    os.utime(run / "00003.jpg", (1, 1))
    assert daemon.once(timeout=30) == 0
    assert daemon.animations() == ["run.mp4"]
    assert daemon.log.count("run run: complete: ") == 2
    before = digests(daemon.state)
    assert daemon.once() == 0
    assert digests(daemon.state) == before


def test_frames_that_stay_against_the_policy_are_told_of(daemon: Daemon, make_run: MakeRun) -> None:
    """A policy that deletes and a run with a hole in it: the log says why its frames stay, once."""
    daemon.configure({"cleanup": {"intermediates": "delete"}, "detect": HASTY})
    run = make_run(daemon.watched / "run", steps=[1, 2, 4, 5])
    daemon.start()
    published(daemon, "run.mp4")
    (run / "notes.txt").touch()
    daemon.wait_until(lambda: "its frames stay" in daemon.log)
    assert daemon.end() == 0
    assert daemon.log.count("run run: rendered; its frames stay: steps are missing (3)") == 1
    assert len(list(run.glob("*.png"))) == 4


def test_a_damaged_manifest_is_told_of_once(daemon: Daemon) -> None:
    """However many runs have the trash looked at, and through whichever channel a module speaks, people read it one time."""
    daemon.configure({"cleanup": {"intermediates": "trash", "grace": "1h"}})
    place = daemon.watched / ".stepwatch" / "trash" / "odd"
    place.mkdir(parents=True)
    (place / "manifest.json").write_text("{")
    for number in range(3):
        record(daemon.watched / f"run-{number}", range(1, 4))
    daemon.start()
    published(daemon, *(f"run-{number}.mp4" for number in range(3)))
    assert daemon.run("prune", "--dry-run").returncode == 0
    assert daemon.end() == 0
    assert len([line for line in daemon.log.splitlines() if "is left alone" in line]) == 1, daemon.log
    assert (place / "manifest.json").read_text() == "{"


def test_a_daemon_that_is_told_to_end_does_not_empty_the_trash_first(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 72: between two files it hears of it, and the rest goes the next time; nothing is cut short that way."""
    timeline = {"duration": "800ms", "fps": 50, "hold_last": "0s", "interpolation": "none"}
    daemon.configure({"cleanup": {"intermediates": "trash", "grace": "1ms"}, "timeline": timeline})
    record(daemon.watched / "run", range(1, 31))
    with serving(daemon):
        daemon.wait_until(lambda: not (daemon.watched / "run").exists())
        daemon.wait_at_rest()
    (manifest,) = trash.listing(daemon.watched)
    begun = threading.Event()
    check = trash._wrong

    def slowly(*arguments: Any) -> str:
        begun.set()
        time.sleep(0.2)
        return check(*arguments)

    monkeypatch.setattr(trash, "_wrong", slowly)
    with serving(daemon) as (service, _):
        assert begun.wait(20)
        told = time.monotonic()
        service.end("test")
    assert time.monotonic() - told < 3
    left = list((daemon.watched / ".stepwatch" / "trash" / manifest.place).glob("*.png"))
    assert 20 < len(left) < 30
    monkeypatch.setattr(trash, "_wrong", check)
    with serving(daemon):
        daemon.wait_until(lambda: trash.listing(daemon.watched) == ())
    assert daemon.animations() == ["run.mp4"]


# --- two that want the same -----------------------------------------------------------------------------------------------------------------


def test_a_second_daemon_on_a_folder_is_told_who_has_it(daemon: Daemon) -> None:
    """Row 63: one daemon a folder; the second one ends with 75, names the first, and takes nothing from it."""
    daemon.start()
    assert daemon.process is not None
    second = daemon.run("watch", str(daemon.watched))
    assert second.returncode == 75
    assert f"is watched by another stepwatch: process {daemon.process.pid} on {socket.gethostname()}" in second.stderr
    assert daemon.run("watch", "--once").returncode == 75
    record(daemon.watched / "run", range(1, 5))
    published(daemon, "run.mp4")


def test_a_folder_inside_a_watched_one_is_not_for_another_daemon(daemon: Daemon) -> None:
    """Rows 63, 66: what lies in the tree of one daemon ends a second one with 75, which names the first; what lies beside it does not."""
    inner = daemon.watched / "deep" / "inner"
    inner.mkdir(parents=True)
    daemon.start()
    assert daemon.process is not None
    second = daemon.run("watch", str(inner))
    assert second.returncode == 75
    assert f"lies in {daemon.watched}, which is watched by another stepwatch: process {daemon.process.pid} on" in second.stderr
    assert not (inner / ".stepwatch").exists()
    beside = daemon.watched.with_name("watched-2")
    beside.mkdir()
    assert daemon.run("watch", str(beside), "--once").returncode == 0
    assert daemon.end() == 0
    assert daemon.run("watch", str(inner), "--once").returncode == 0


def test_a_daemon_leaves_the_folder_that_another_one_watches_to_it(daemon: Daemon, tmp_path: Path) -> None:
    """Rows 63, 66: each run is rendered once, by the policy of the inner one; when that one has ended, the outer one has all of its tree."""
    inner = daemon.watched / "inner"
    other = Daemon(tmp_path / "other", inner)
    record(inner / "a", range(1, 5))
    record(daemon.watched / "b", range(1, 5))
    other.configure({"outputs": [{"codec": "h264", "name": "inner-{run}", "quality": "small"}]})
    other.start()
    try:
        published(other, "inner-a.mp4")
        daemon.configure({"cleanup": {"intermediates": "delete"}}, rescan="1s")
        daemon.start()
        published(daemon, "b.mp4")
        record(inner / "late", range(1, 5))
        published(other, "inner-a.mp4", "inner-late.mp4")
        daemon.wait_until(lambda: "is left to another stepwatch" in daemon.log)
        assert other.process is not None
        assert daemon.log.count(f"{inner} is left to another stepwatch: process {other.process.pid}") == 1
        assert len(list((inner / "a").glob("*.png"))) == 4
        assert other.end() == 0
    finally:
        if other.process is not None and other.process.poll() is None:
            other.process.kill()
            other.process.wait()
    record(inner / "later", range(1, 5))
    daemon.wait_until(lambda: not (inner / "later").exists())
    assert daemon.end() == 0


def test_a_render_by_hand_waits_for_the_run_that_is_being_visited(daemon: Daemon, gate: Gate) -> None:
    """Row 63: ``render`` beside the daemon waits for the run that is rendered, ``--no-wait`` ends with 75, and there is one animation."""
    rendering(daemon, gate)
    impatient = daemon.run("render", str(daemon.watched / "run"), "--no-wait")
    assert impatient.returncode == 75, impatient.stderr
    with subprocess.Popen(
        daemon.command("render", str(daemon.watched / "run")), env=daemon.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as patient:
        assert patient.stderr
        assert patient.stdout
        said = patient.stderr.readline()
        assert "waiting" in said, said
        gate.open()
        assert patient.stdout.read() == f"{daemon.out / 'run.mp4'}\n"
    assert patient.returncode == 0
    published(daemon, "run.mp4")
    assert daemon.status()["rendered"] == 1


def test_a_render_by_hand_is_known_to_the_daemon(daemon: Daemon, gate: Gate) -> None:
    """Row 63: what a person has rendered while the daemon was not there, or busy with another run, it does not render again."""
    gate.open()
    with_ffmpeg(daemon, gate.path)
    record(daemon.watched / "run", range(1, 5))
    assert daemon.run("render", str(daemon.watched / "run")).returncode == 0
    assert daemon.once() == 0
    daemon.start()
    daemon.wait_at_rest()
    assert len(gate.lines) == 1
    assert daemon.animations() == ["run.mp4"]


# --- the log ------------------------------------------------------------------------------------------------------------------------------


def test_log_lines_for_the_journal_have_priorities(daemon: Daemon) -> None:
    """Where stderr is the journal, each line begins with its priority and has no time of its own."""
    record(daemon.watched / "run", range(1, 5))
    put(daemon.watched / "stepwatch.yaml", "version: 1\nlive: auto\n")
    (daemon.watched / "stepwatch.yaml").chmod(0o666)
    daemon.log_file.touch()
    facts = daemon.log_file.stat()
    daemon.environment = daemon.environment | {"JOURNAL_STREAM": f"{facts.st_dev}:{facts.st_ino}"}
    daemon.prepare("stepwatch.service.CONFIG_CHECK = 0.2")
    daemon.start()
    published(daemon, "run.mp4")
    put(daemon.service_file, "nonsense")
    daemon.wait_until(lambda: "stays as it was" in daemon.log)
    lines = daemon.log.splitlines()
    assert all(line.startswith(("<6>", "<4>", "<3>")) for line in lines), daemon.log
    assert lines[0] == f"<6>watching {daemon.watched}"
    assert f"<6>run run: h264: published {daemon.out / 'run.mp4'}" in lines
    assert "<3>the configuration stays as it was" in lines


def test_log_lines_for_programs_are_json(daemon: Daemon) -> None:
    """``daemon: {log: json}`` makes every line on stderr an object; what the watcher has to say is one too."""
    daemon.configure({}, log="json")
    record(daemon.watched / "run", range(1, 5))
    daemon.start()
    published(daemon, "run.mp4")
    take_away(daemon.watched)
    daemon.wait_until(lambda: "asleep" in daemon.log)
    assert daemon.end() == 0
    lines = [json.loads(line) for line in daemon.log.splitlines()]
    assert {key for line in lines for key in line} == {"time", "level", "message", "run"}
    assert [line["message"] for line in lines if line.get("run") == "run"][-1] == f"h264: published {daemon.out / 'run.mp4'}"
    assert [line["level"] for line in lines if "asleep" in line["message"]] == ["warning"]


def test_a_log_that_nobody_reads_stops_nothing(daemon: Daemon) -> None:
    """Row 69: with stderr closed from the start, or by its reader later, runs are rendered all the same."""
    record(daemon.watched / "a", range(1, 5))
    daemon.start(prefix=["sh", "-c", 'exec "$@" 2>&-', "sh"], wait=False)
    daemon.wait_until(lambda: daemon.animations() == ["a.mp4"])
    assert daemon.end() == 0
    assert daemon.log == ""
    reader, writer = os.pipe()
    process = subprocess.Popen(daemon.command("watch"), env=daemon.environment, stdin=subprocess.DEVNULL, stderr=writer)
    daemon.process = process
    os.close(writer)
    os.read(reader, 10)
    os.close(reader)
    record(daemon.watched / "b", range(1, 5))
    published(daemon, "a.mp4", "b.mp4")
    assert daemon.end() == 0


def test_a_locale_without_unicode_stops_nothing(daemon: Daemon) -> None:
    """Row 69: names from all over the world, and some that are no text at all, under LC_ALL=C."""
    daemon.environment = daemon.environment | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "NO_COLOR": "1"}
    folder = os.fsdecode(os.fsencode(daemon.watched) + b"/ra\xcc\x88t\xe9\n\xe7\x8c\xab")
    record(Path(folder), range(1, 5))
    daemon.start()
    daemon.wait_until(lambda: len(daemon.animations()) == 1)
    daemon.wait_at_rest()
    assert daemon.run("status").returncode == 0
    assert daemon.end() == 0
    assert "published" in daemon.log
    assert "Traceback" not in daemon.log


def test_the_log_speaks_of_changes_and_not_of_events(daemon: Daemon) -> None:
    """A run of many frames, each with its word in the sidecar, has no more lines than it had states."""
    daemon.configure({"detect": {"stall": "60s"}})
    daemon.start()
    run = daemon.watched / "run"
    for step in range(1, 31):
        record(run, [step], "running")
        time.sleep(0.02)
    record(run, [31])
    published(daemon, "run.mp4")
    assert len([line for line in daemon.log.splitlines() if "run run" in line]) <= 3, daemon.log


# --- what it costs, and whose turn it is ----------------------------------------------------------------------------------------------------


def test_renders_step_back_and_are_as_many_as_workers(daemon: Daemon, gate: Gate) -> None:
    """ffmpeg runs at nice 19 and with idle I/O, out of the terminal's reach, with next to no environment; never more of them than workers."""
    daemon.environment = daemon.environment | {"SECRET": "hunter2"}
    daemon.configure({}, workers=2)
    with_ffmpeg(daemon, gate.path)
    for number in range(5):
        record(daemon.watched / f"run-{number}", range(1, 4))
    daemon.start()
    daemon.wait_until(lambda: len(gate.processes) == 2)
    assert daemon.process is not None
    assert [line.split()[2] for line in gate.lines] == ["19", "19"]
    for process in gate.processes:
        asked = subprocess.run(["ionice", "-p", str(process)], capture_output=True, text=True, check=False)
        assert asked.stdout.strip() == "idle"
        assert os.getsid(process) != os.getsid(daemon.process.pid)
    names = {line.partition("=")[0] for line in Path(f"{gate.starts}.env").read_text().splitlines()}
    assert names <= {"PATH", "HOME", "LD_LIBRARY_PATH", "TMPDIR", "SVT_LOG", "LC_ALL", "PWD", "OLDPWD", "SHLVL", "_"}
    # The daemon itself is as nimble as ever.
    assert os.getpriority(os.PRIO_PROCESS, daemon.process.pid) == os.getpriority(os.PRIO_PROCESS, 0)
    most = 2
    gate.open()
    while len(gate.lines) < 5:
        most = max(most, len(gate.processes))
        time.sleep(0.01)
    published(daemon, *(f"run-{number}.mp4" for number in range(5)))
    assert most == 2


def test_a_folder_with_one_run_does_not_wait_for_one_with_many(daemon: Daemon, tmp_path: Path, gate: Gate) -> None:
    """The folders take turns: the backlog of one does not delay the other."""
    second = tmp_path / "second"
    second.mkdir()
    daemon.configure(watch=[daemon.watched, second])
    with_ffmpeg(daemon, gate.path)
    for number in range(30):
        record(daemon.watched / f"run-{number:02d}", range(1, 3))
    daemon.start()
    daemon.wait_until(lambda: gate.processes)
    record(second / "single", range(1, 3))
    daemon.wait_until(lambda: phase_of(daemon, "single") == "complete")
    gate.open()
    daemon.wait_until(lambda: "run single: h264: published" in daemon.log)
    order = [line.split("run ")[1].split(":")[0] for line in daemon.log.splitlines() if "published" in line]
    assert order.index("single") <= 2
    assert daemon.end() == 0


def test_a_run_that_kills_the_daemon_is_given_up_and_the_others_are_done(daemon: Daemon, ffmpeg: str, tmp_path: Path) -> None:
    """Row 56: after ``max_attempts`` deaths of the daemon its murderer is quarantined; nothing else has to suffer for it."""
    poison = Gate(tmp_path / "poison", ffmpeg, POISON)
    daemon.configure({}, max_attempts=2)
    with_ffmpeg(daemon, poison.path)
    sickly(daemon.watched / "run")
    record(daemon.watched / "well", range(1, 5))
    codes = [daemon.once() for _ in range(3)]
    assert codes[:2] == [-signal.SIGKILL, -signal.SIGKILL]
    assert codes[2] == 1
    assert daemon.animations() == ["well.mp4"]
    assert daemon.leftovers() == []
    listed = json.loads(daemon.run("runs", "list", "--json").stdout)["runs"]
    assert {(one["name"], one["phase"]) for one in listed} == {("run", "quarantined"), ("well", "rendered")}


@pytest.mark.parametrize("forgetful", [False, True], ids=["receipts", "none"])
def test_a_second_pass_changes_nothing(daemon: Daemon, gate: Gate, forgetful: bool) -> None:  # noqa: FBT001
    """O4: a finished tree is not touched by another pass: no byte, no time, no ffmpeg; without receipts it is looked at, and rendered no more."""
    gate.open()
    daemon.configure({"detect": {**HASTY, "min_frames": 3}})
    with_ffmpeg(daemon, gate.path)
    record(daemon.watched / "a", range(1, 7))
    record(daemon.watched / "deep" / "er" / "b", range(1, 5), "interrupted")
    record(daemon.watched / "few", range(1, 3))
    assert daemon.once() == 0
    assert daemon.animations() == ["a.mp4", "b-incomplete.mp4"]
    before, receipts, encodes = digests(daemon.watched), digests(daemon.state), len(gate.lines)
    # Not even to ask what it can do, where there are receipts.
    gate.path.write_text(gate.path.read_text().replace("case", f'echo "$(date +%s.%N) $$ $*" >> "{gate.starts}.all"\ncase', 1))
    if forgetful:
        for path in daemon.state.glob("receipts.db*"):
            path.unlink()
    assert daemon.once() == 0
    assert len(gate.lines) == encodes
    after = digests(daemon.watched)
    for told in (before, after):
        told.pop(str(daemon.watched / ".stepwatch" / "cookie"), None)
    assert after == before
    if not forgetful:
        assert digests(daemon.state) == receipts
        assert not Path(f"{gate.starts}.all").exists()


def test_one_pass_tells_by_its_code_that_something_failed(daemon: Daemon, ffmpeg: str, tmp_path: Path) -> None:
    """``--once`` ends when everything is at rest, with 1 when a render failed, and again with 1 while that run is given up."""
    sick = Gate(tmp_path / "sick", ffmpeg, SICK)
    daemon.configure({}, max_attempts=1)
    with_ffmpeg(daemon, sick.path)
    sickly(daemon.watched / "run")
    record(daemon.watched / "well", range(1, 5))
    assert daemon.once() == 1
    assert daemon.animations() == ["well.mp4"]
    assert daemon.once() == 1
    assert daemon.run("watch", str(tmp_path / "nowhere"), "--once").returncode == 66


def ticks(process: int) -> int:
    """Time on the processor, in hundredths of a second."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def test_a_daemon_with_nothing_to_do_does_next_to_nothing(daemon: Daemon) -> None:
    """With 300 finished runs it takes less than a hundredth of one processor, and writes nothing but its cookie."""
    content = json.loads(daemon.service_file.read_text())
    for number in range(300):
        folder = daemon.watched / f"{number % 7}" / f"run-{number}"
        folder.mkdir(parents=True)
        for step in range(2):
            (folder / f"{step:05d}.png").write_bytes(b"\x89PNG")
        facts = sidecar_for(folder, 2, names="{index:05d}.png", state="complete", size=(32, 24))
        (folder / "run.json").write_text(json.dumps(facts))
    put(daemon.service_file, json.dumps(content | {"policy": {"create": False}}))
    daemon.prepare("stepwatch.watcher.SETTLING = 0.3")
    daemon.start()
    daemon.wait_until(lambda: daemon.status().get("active") == 300)
    assert daemon.process is not None
    time.sleep(0.8)  # Watches are counted once after a scan.
    before, spent = digests(daemon.watched) | digests(daemon.state), ticks(daemon.process.pid)
    time.sleep(5)
    after, spent = digests(daemon.watched) | digests(daemon.state), ticks(daemon.process.pid) - spent
    cookie = str(daemon.watched / ".stepwatch" / "cookie")
    assert {path: facts for path, facts in after.items() if path != cookie} == {path: facts for path, facts in before.items() if path != cookie}
    assert spent <= 5 * os.sysconf("SC_CLK_TCK") / 100


def test_a_writer_that_dies_while_it_is_watched_is_noticed(daemon: Daemon, make_run: MakeRun) -> None:
    """Its death makes no event: who waits for a living writer asks after it now and then, and does not sit out the longer limit."""
    writer = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        facts = {"host": socket.gethostname(), "boot_id": boot, "pid": writer.pid, "start_time": None}
        make_run(daemon.watched / "one", state="running", sidecar={"writer": facts})
        daemon.start()
        daemon.wait_until(lambda: [run["phase"] for run in daemon.status().get("runs", [])] == ["recording"])
    finally:
        writer.kill()
        writer.communicate()
    daemon.wait_until(lambda: daemon.animations() == ["one-incomplete.mp4"])


def test_a_restart_does_not_read_again_what_rests_and_has_not_changed(daemon: Daemon, make_run: MakeRun, tmp_path: Path) -> None:
    """A folder is known again by the facts of its files; whatever differs, or was asked for meanwhile, is looked at as ever."""
    daemon.configure({"detect": HASTY}, rescan="1h")
    for name in ("still", "rewritten", "asked", "policied"):
        make_run(daemon.watched / name, steps=2)
    assert daemon.once() == 0
    looks = tmp_path / "looks"
    daemon.program = ("-m", "tests.benchmarks.observed", str(looks))

    def looked_at() -> set[str]:
        looks.write_text("")
        daemon.start()
        daemon.wait_at_rest()
        daemon.end()
        return {line.rpartition("/")[2] for line in looks.read_text().splitlines()} - {"watched"}

    assert looked_at() == set()
    write_frame(daemon.watched / "rewritten" / "00001.png", step=9)
    (daemon.watched / "policied" / "stepwatch.yaml").write_text("version: 1\ntimeline: {fps: 12}\n")
    with contextlib.closing(sqlite3.connect(daemon.state / "receipts.db")) as receipts, receipts:
        receipts.execute("UPDATE runs SET at_rest = 0 WHERE name = 'asked'")
    assert looked_at() == {"rewritten", "asked", "policied"}
    assert daemon.animations().count("rewritten-1.mp4") == 1
    daemon.configure({"detect": HASTY, "frames": {"pattern": "numbered"}}, rescan="1h")
    assert looked_at() == {"still", "rewritten", "asked", "policied"}
