"""The fault matrix against a real daemon: writers, disks, mounts, clocks, limits and programs that fail while it watches.

What a fault does to one part is tested beside that part; here the whole daemon runs, in a process of its own, and the fault is real wherever
the kernel lets a test make it: small disks, layers and limits in namespaces, errors injected by strace, signals. What it lets nobody make (a jump
of the clock, a change between two calls) is put into the daemon's process before it starts, by `Daemon.prepare`.

| row | fault | where else, or only there |
|---|---|---|
| 4, 5 | slow writers, writers that rename | here; tests/test_system.py for the lease |
| 17, 18, 23 | twins, two runs in a folder, sidecars that lie | here; tests/core/test_lifecycle.py, tests/test_trash.py |
| 26, 27, 28, 30 | links, pipes, rewrites, second names | here; tests/test_trash.py for each call, tests/test_frames.py |
| 29, 56, 59, 63 to 67, 72 | late frames, poison, signals, two daemons, edits, no systemd | tests/test_service.py; 72 also tests/test_system.py |
| 31 to 37 | events lost, limits, dead threads, bursts, overlays | here; tests/test_watcher.py on a clock of its own |
| 38, 39 | the watched folder replaced, unmounted | here; tests/test_watcher.py, tests/test_system.py |
| 40, 41 | run or output folder gone during a render | here |
| 42, 43, 44 | full disks | here; tests/test_faults.py for `render`, tests/test_ledger.py, tests/test_trash.py |
| 45 | receipts | here; tests/test_ledger.py for each call that fails |
| 46, 47 | disks that fail | here; tests/test_trash.py, tests/test_ledger.py |
| 48, 49 | kill -9 | tests/test_crash.py; 49 here and in tests/test_encoder.py |
| 50 | ffmpeg killed | here; tests/test_encoder.py |
| 57 | many runs at once | here, 5,000 of them with the marker slow |
| 60, 61, 62 | clocks | here, by what the process is told; tests/core/test_lifecycle.py |
| 68 | other users | here; tests/test_trash.py |
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from stepwatch import frames, service, status
from stepwatch.core.model import Receipt, Role, RunKey
from stepwatch.ledger import Ledger
from tests.conftest import Daemon, MakeRun, sidecar_for, write_frame

pytestmark = [
    pytest.mark.skipif(os.name != "posix", reason="signals, namespaces and descriptors of a Unix"),
    pytest.mark.usefixtures("ffmpeg"),
]

NUMBERED = {"frames": {"pattern": "numbered"}}
QUIET = {"detect": {"settle": "400ms", "stall": "600ms"}}
SOON = {"detect": {"settle": "200ms", "stall": "600ms"}}
"""For runs without a sidecar that are to be cleared, which takes ten times as long; they are whole before the daemon starts."""
TRASH = {"cleanup": {"intermediates": "trash"}}


# -- what a test needs of the daemon


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """A place where somebody waits until the test lets them on."""

    home: Path

    @property
    def reached(self) -> bool:
        return (self.home / "reached").exists()

    def open(self) -> None:
        (self.home / "open").touch()

    def close(self) -> None:
        for name in ("open", "reached"):
            (self.home / name).unlink(missing_ok=True)


def held_before(daemon: Daemon, module: str, function: str) -> Gate:
    """Have the daemon wait at a gate before it calls a function of its own."""
    gate = Gate(home=daemon.home / f"gate-{function}")
    gate.home.mkdir()
    daemon.prepare(
        f"import os, time, {module}",
        f"def held(*arguments, original={module}.{function}, **named):",
        f"    open({str(gate.home / 'reached')!r}, 'w').close()",
        f"    while not os.path.exists({str(gate.home / 'open')!r}):",
        "        time.sleep(0.01)",
        "    return original(*arguments, **named)",
        f"{module}.{function} = held",
    )
    return gate


def scripted_ffmpeg(daemon: Daemon, real: str, when: str, *commands: str) -> None:
    """Give the daemon an ffmpeg that runs shell *commands* before the real one, when its arguments look like *when*."""
    program = daemon.home / "ffmpeg"
    script = "\n".join(commands)
    program.write_text(f'#!/bin/sh\ncase "$*" in {when})\n{script}\n;; esac\nexec "{real}" "$@"\n')
    program.chmod(0o755)
    daemon.environment["STEPWATCH_FFMPEG"] = str(program)


ENCODES = "*pipe:0*"
PROVES = "*pipe:0*) ;; *-i\\ pipe:\\ -map\\ 0\\ -c\\ copy*) exit 1 ;; *-i\\ file:*.tmp.*"
"""The proof begins when the encode is over only where no ffmpeg has waited for that; and without one there is a proof all the same."""


def held_ffmpeg(daemon: Daemon, real: str, when: str = ENCODES) -> Gate:
    """Have every ffmpeg of that kind wait at a gate before it begins."""
    gate = Gate(home=daemon.home / "gate-ffmpeg")
    gate.home.mkdir()
    place = gate.home
    scripted_ffmpeg(
        daemon,
        real,
        when,
        f"echo $$ >> '{place}/pids'",
        f": > '{place}/reached'",
        f"while [ ! -e '{place}/open' ]; do sleep 0.02; done",
    )
    return gate


def receipt(daemon: Daemon, folder: Path, group: str = "") -> Receipt | None:
    """What is recorded of a run."""
    ledger = Ledger.open(daemon.state / "receipts.db")
    try:
        return ledger.get(RunKey(folder=str(folder), group=group))
    finally:
        ledger.close()


def shown(daemon: Daemon, folder: Path, group: str = "") -> list[str]:
    """Names of the frames that the latest animation of a run shows."""
    known = receipt(daemon, folder, group)
    assert known is not None
    return [covered.frame.name for covered in known.renders[-1].frames if covered.role is Role.SHOWN]


def attempts(daemon: Daemon, folder: Path) -> int:
    known = receipt(daemon, folder)
    return known.attempts.count if known else 0


def run_said(daemon: Daemon, name: str) -> dict[str, Any]:
    """What the status tells of a run; empty when it is at rest."""
    return next((run for run in daemon.status().get("runs", []) if run["name"] == name), {})


def folder_said(daemon: Daemon) -> dict[str, Any]:
    """What the status tells of the watched folder."""
    said: list[dict[str, Any]] = daemon.status().get("folders", [])
    return said[0] if said else {}


def published(daemon: Daemon, *names: str, timeout: float = 40) -> None:
    """Wait for these animations, and that no other is there."""
    daemon.wait_until(lambda: set(names) <= set(daemon.animations()), timeout=timeout)
    daemon.wait_at_rest(timeout=timeout)
    assert daemon.animations() == sorted(names), daemon.log


def stays_as_it_is(daemon: Daemon, looks: int = 3) -> None:
    """Let the daemon look about a few times more."""
    for _ in range(looks):
        assert status.ask(daemon.state / "status.sock", "retry") == {"ok": True}
        daemon.wait_at_rest()


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def say(folder: Path, count: int, *, state: str, **facts: object) -> None:
    """Write the sidecar, whole at once as a hook does."""
    content = sidecar_for(folder, count, names="{index:05d}.png", state=state, size=(32, 24)) | facts
    (folder / ".run.json.tmp").write_text(json.dumps(content))
    (folder / ".run.json.tmp").rename(folder / "run.json")


def well(daemon: Daemon, watched: Path | None = None) -> None:
    """No mistake of ours, no temporary file (in *watched*, where that is another path out here), and the daemon ends as asked."""
    assert daemon.process is not None
    assert daemon.process.poll() is None, daemon.log
    assert daemon.end() == 0, daemon.log
    assert "Traceback" not in daemon.log
    assert "made a mistake" not in daemon.log
    assert [path for path in (watched or daemon.watched).rglob(".*") if ".tmp" in path.name] == []


# -- namespaces, strace


class Space:
    """Namespaces of our own, in which disks can be mounted; they last until `close`."""

    def __init__(self, unshare: Sequence[str]) -> None:
        self._holder = subprocess.Popen([*unshare, "sh", "-c", "echo ready; read line"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        user = ("-U", "--preserve-credentials") if "U" in unshare[1] else ()
        self.prefix = ("nsenter", "-t", str(self._holder.pid), *user, "-m", "--")
        """Runs a command in there."""

    def at(self, path: Path) -> Path:
        """A path in there, as it is called out here."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def run(self, *command: str | Path) -> None:
        done = subprocess.run([*self.prefix, *map(str, command)], capture_output=True, text=True, check=False)
        if done.returncode != 0 and command[0] == "mount":
            pytest.skip(f"this kernel refuses a mount: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr

    def disk(self, place: Path, options: str) -> Path:
        """Mount a disk of its own, in memory; its path out here."""
        place.mkdir(parents=True, exist_ok=True)
        self.run("mount", "-t", "tmpfs", "-o", options, "none", place)
        return self.at(place)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()
        for pipe in (self._holder.stdin, self._holder.stdout):
            assert pipe is not None
            pipe.close()


@pytest.fixture
def space(daemon: Daemon) -> Iterator[Space]:
    """A place to mount things in; skipped where the kernel gives none."""
    for command in (["unshare", "-Urm"], ["unshare", "-m"]):
        if shutil.which("nsenter") and shutil.which("unshare"):
            check = subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True)
            if check.returncode == 0:
                one = Space(command)
                yield one
                if daemon.process is not None and daemon.process.poll() is None:
                    daemon.process.kill()
                    daemon.process.wait()
                one.close()
                return
    pytest.skip("this kernel lets nobody mount a small disk of their own (unshare -Urm)")


@pytest.fixture
def limited() -> Callable[[str, int], list[str]]:
    """The command behind which a limit of the kernel for its users is lower; skipped where the kernel has none."""

    def prefix(name: str, value: int) -> list[str]:
        command = ["unshare", "-Ur", "sh", "-c", f'echo {value} > /proc/sys/user/{name} && exec "$@"', "sh"]
        if not shutil.which("unshare") or subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip(f"this kernel lets nobody have a lower {name} of their own (unshare -Ur)")
        return command

    return prefix


@pytest.fixture
def injecting(tmp_path: Path) -> Callable[..., list[str]]:
    """The command behind which system calls fail; skipped where tracing is not allowed."""

    def prefix(*options: str) -> list[str]:
        command = ["strace", "-D", "-f", "-qq", "-o", str(tmp_path / "trace")]
        if not shutil.which("strace") or subprocess.run([*command, "true"], capture_output=True, check=False).returncode != 0:
            pytest.skip("strace is not there, or may trace nobody here")
        return [*command, *options]

    return prefix


# -- 4, 5, 17, 18, 23: writers


@pytest.mark.parametrize("sidecar", ["complete", None])
def test_a_frame_that_is_being_written_is_waited_for(daemon: Daemon, make_run: MakeRun, ffmpeg: str, tmp_path: Path, sidecar: str | None) -> None:
    """Row 4: half a frame, its writer silent for many times the settle time: nothing is rendered; then the whole frame is in the animation."""
    daemon.configure({**NUMBERED, "detect": {"settle": "200ms"}})
    folder = daemon.watched / "slow"
    whole = write_frame(tmp_path / "whole.png", step=6).read_bytes()
    make_run(folder, steps=5, sidecar=None)
    with (folder / "00005.png").open("wb", buffering=0) as file:
        file.write(whole[: len(whole) // 2])
        if sidecar:
            say(folder, 6, state=sidecar)
        daemon.start()
        daemon.wait_until(lambda: run_said(daemon, "slow").get("reason") == "a frame is still open for writing")
        first = time.monotonic()
        daemon.wait_until(lambda: time.monotonic() - first > 1.2)
        assert run_said(daemon, "slow")["phase"] == "recording"
        file.write(whole[len(whole) // 2 :])
        assert daemon.animations() == []
    published(daemon, "slow.mp4")
    known = receipt(daemon, folder)
    assert known is not None
    assert len(known.renders) == 1
    last = known.renders[0].frames[-1]
    assert (last.frame.name, last.role) == ("00005.png", Role.SHOWN)
    assert last.digest == frames.digest(str(folder), last.frame)
    assert len(shown(daemon, folder)) == 6
    well(daemon)


def test_a_writer_who_renames_shows_each_frame_once(daemon: Daemon, tmp_path: Path) -> None:
    """Row 5: temporary names, hidden or not, are no frames, and are not touched; what they are renamed to is one."""
    daemon.configure({**NUMBERED, "detect": {"settle": "300ms"}, **TRASH})
    daemon.start()
    folder = daemon.watched / "renamed"
    folder.mkdir()
    for number in range(6):
        name = f"{number:05d}.png"
        temporary = folder / (f".{name}.tmp", f"{name}.part")[number % 2]
        temporary.write_bytes(write_frame(tmp_path / "frame.png", step=number + 1).read_bytes())
        temporary.rename(folder / name)
    left = [folder / ".00006.png", folder / "00006.png.part", folder / "tmp12ab.png~"]
    for path in left:
        path.write_bytes(b"half a frame")
    published(daemon, "renamed.mp4")
    assert shown(daemon, folder) == [f"{number:05d}.png" for number in range(6)]
    daemon.wait_until(lambda: names_in(folder) == {path.name for path in left})
    well(daemon)


def test_of_a_step_with_two_files_neither_is_cleared(daemon: Daemon, make_run: MakeRun) -> None:
    """Row 17: one of them is shown, always the same one, and told; both stay, the other frames go."""
    daemon.configure({**NUMBERED, **SOON, **TRASH})
    folder = make_run(daemon.watched / "twins", sidecar=None)
    write_frame(folder / "00003.jpg", step=4)
    daemon.start()
    published(daemon, "twins.mp4")
    daemon.wait_until(lambda: not (folder / "00000.png").exists())
    daemon.wait_at_rest()
    assert names_in(folder) == {"00003.png", "00003.jpg"}
    known = receipt(daemon, folder)
    assert known is not None
    assert len(known.renders) == 1
    roles = {covered.frame.name: covered.role for covered in known.renders[0].frames}
    assert sorted((roles["00003.png"], roles["00003.jpg"])) == [Role.DUPLICATE, Role.SHOWN]
    assert daemon.log.count("00003.jpg") == 1, daemon.log
    well(daemon)


def test_two_runs_in_one_folder_do_not_touch_one_another(daemon: Daemon) -> None:
    """Row 18: seeds 12 and 123 by turns in one folder; 12 is rendered and cleared while 123 is being written; then 123 is."""
    daemon.configure({"frames": {"pattern": "(?P<step>[0-9]+)-(?P<run>[0-9]+)\\.png"}, **SOON, **TRASH})
    place = daemon.watched / "flat"
    for number in range(5):
        write_frame(place / f"{number:05d}-12.png", step=number)
        write_frame(place / f"{number:05d}-123.png", step=number + 9)
    with (place / "00004-123.png").open("ab"):
        daemon.start()
        daemon.wait_until(lambda: not list(place.glob("*-12.png")))
        assert len(list(place.glob("*-123.png"))) == 5
        assert daemon.animations() == ["12.mp4"]
    daemon.wait_until(lambda: not place.exists() or not list(place.iterdir()))
    published(daemon, "12.mp4", "123.mp4")
    in_trash = sorted(path.name for path in (daemon.watched / ".stepwatch" / "trash").rglob("*.png"))
    assert in_trash == sorted(f"{number:05d}-{seed}.png" for number in range(5) for seed in (12, 123))
    well(daemon)


@pytest.mark.parametrize(
    ("told", "planned", "there", "state", "name"),
    [("50 of which 20 arrive", 50, 20, "running", "lying-incomplete.mp4"), ("20, and 50 arrive", 20, 50, "complete", "lying.mp4")],
)
def test_a_sidecar_that_counts_wrongly(daemon: Daemon, make_run: MakeRun, told: str, planned: int, there: int, state: str, name: str) -> None:
    """Row 23: frames that were promised are missed until the stall limit; frames too many are frames."""
    daemon.configure(QUIET)
    folder = make_run(daemon.watched / "lying", steps=there, sidecar=None)
    say(folder, planned, state=state)
    daemon.start()
    published(daemon, name)
    known = receipt(daemon, folder)
    assert known is not None
    assert [len(render.frames) for render in known.renders] == [there], told
    well(daemon)


def test_complete_before_the_last_frame_is_waited_out(daemon: Daemon, make_run: MakeRun) -> None:
    """Row 23: the sidecar says complete, of six, with four there; the others come slowly: one animation, of all six."""
    daemon.configure({"detect": {"settle": "900ms"}})
    folder = make_run(daemon.watched / "early", steps=4, sidecar=None)
    say(folder, 6, state="complete")
    daemon.start()
    for number in (4, 5):
        daemon.wait_until(lambda: "so it is watched for" in run_said(daemon, "early").get("reason", ""))
        assert daemon.animations() == []
        write_frame(folder / f"{number:05d}.png", step=number + 1)
    published(daemon, "early.mp4")
    assert len(shown(daemon, folder)) == 6
    known = receipt(daemon, folder)
    assert known is not None
    assert len(known.renders) == 1
    well(daemon)


# -- 26, 27, 28, 30: what is no longer, or never was, the frame that was rendered


def test_a_run_that_becomes_a_link_before_it_is_cleared_keeps_its_frames(daemon: Daemon, make_run: MakeRun, tmp_path: Path) -> None:
    """Row 26: the folder itself, and what the link leads to, have lost nothing."""
    gate = held_before(daemon, "stepwatch.trash", "clear")
    daemon.configure(TRASH)
    folder = make_run(daemon.watched / "one")
    daemon.start()
    daemon.wait_until(lambda: gate.reached)
    away = tmp_path / "victim"
    folder.rename(away)
    folder.symlink_to(away)
    before = names_in(away)
    gate.open()
    daemon.wait_at_rest()
    assert names_in(away) == before
    assert folder.is_symlink()
    assert daemon.animations() == ["one.mp4"]
    assert not list((daemon.watched / ".stepwatch").rglob("*.png"))
    well(daemon)


def test_what_stands_in_a_frames_place_holds_nobody_up(daemon: Daemon, make_run: MakeRun, tmp_path: Path) -> None:
    """Row 27: a pipe, a folder, a socket, a link to nowhere among the frames: the rest is shown, all is told, and nothing is cleared."""
    daemon.configure({**QUIET, **TRASH})
    folder = make_run(daemon.watched / "odd", steps=8)
    for number in (1, 2, 3, 4):
        (folder / f"{number:05d}.png").unlink()
    os.mkfifo(folder / "00001.png")
    (folder / "00002.png").mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        (tmp_path / "s").symlink_to(folder)
        at = os.getcwd()
        os.chdir(folder)  # a socket's path may have no more than about a hundred letters
        try:
            bound.bind("00003.png")
        finally:
            os.chdir(at)
    (folder / "00004.png").symlink_to("nowhere.png")
    before = names_in(folder)
    other = make_run(daemon.watched / "other")
    daemon.start()
    published(daemon, "odd.mp4", "other.mp4")
    daemon.wait_until(lambda: not other.exists())
    assert shown(daemon, folder) == ["00000.png", "00005.png", "00006.png", "00007.png"]
    assert names_in(folder) == before
    assert "is a named pipe" in daemon.log
    well(daemon)


@pytest.mark.parametrize("how", ["rewritten", "replaced by a link", "linked elsewhere"])
def test_a_frame_that_changes_before_it_is_cleared_stays(daemon: Daemon, make_run: MakeRun, tmp_path: Path, how: str) -> None:
    """Rows 28, 30: another content with the old size and time, a link in its place, a second name elsewhere: it stays where it is, the others go."""
    gate = held_before(daemon, "stepwatch.trash", "clear")
    daemon.configure({**TRASH, "detect": {"settle": "300ms"}})
    folder = make_run(daemon.watched / "one")
    frame = folder / "00002.png"
    daemon.start()
    daemon.wait_until(lambda: gate.reached)
    content, facts = frame.read_bytes(), frame.stat()
    if how == "rewritten":
        content = content[:-20] + bytes(20)
        frame.write_bytes(content)
        os.utime(frame, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    elif how == "replaced by a link":
        frame.rename(tmp_path / "mine.png")
        frame.symlink_to(tmp_path / "mine.png")
    else:
        os.link(frame, tmp_path / "mine.png")
    gate.open()
    daemon.wait_until(lambda: not (folder / "00000.png").exists())
    assert frame.read_bytes() == content
    assert frame.is_symlink() == (how == "replaced by a link")
    daemon.wait_at_rest()
    assert frame.read_bytes() == content
    assert not list((daemon.watched / ".stepwatch").rglob("00002.png"))
    well(daemon)


def test_a_frame_with_a_second_name_is_rendered_and_stays(daemon: Daemon, make_run: MakeRun, tmp_path: Path) -> None:
    """Row 30: somebody keeps a hard link to a frame; it is shown, not cleared, and that is told once."""
    daemon.configure(TRASH)
    folder = make_run(daemon.watched / "one")
    os.link(folder / "00002.png", tmp_path / "mine.png")
    daemon.start()
    daemon.wait_until(lambda: not (folder / "00000.png").exists())
    published(daemon, "one.mp4")
    assert names_in(folder) >= {"00002.png"}
    assert not (folder / "00003.png").exists()
    assert daemon.log.count("00002.png") == 1, daemon.log
    well(daemon)


# -- 31 to 37: events that are lost, or cannot be had


def test_events_lost_while_the_daemon_was_stopped(daemon: Daemon, make_run: MakeRun) -> None:
    """Row 31: more happens than the kernel keeps for a stopped daemon; then all is scanned once, and every run is rendered."""
    make_run(daemon.watched / "before", steps=2, state="running", sidecar={})
    daemon.start()
    daemon.wait_until(lambda: daemon.status().get("active") == 1)
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    try:
        noise = daemon.watched / "before"
        limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
        for number in range(limit * 6 // 10):
            os.close(os.open(noise / f"{number}.txt", os.O_CREAT | os.O_WRONLY))
        say(daemon.watched / "before", 2, state="complete")
        for number in range(3):
            make_run(daemon.watched / "during" / f"during{number}", steps=2)
    finally:
        daemon.process.send_signal(signal.SIGCONT)
    published(daemon, "before.mp4", "during0.mp4", "during1.mp4", "during2.mp4")
    assert folder_said(daemon)["recrawls"] >= 1
    make_run(daemon.watched / "during" / "after", steps=2)
    daemon.wait_until(lambda: "after.mp4" in daemon.animations())
    well(daemon)


@pytest.mark.parametrize("before", [8, 1])
def test_too_few_watches(daemon: Daemon, make_run: MakeRun, limited: Callable[[str, int], list[str]], before: int) -> None:
    """Row 32: ten folders and four watches, from the start or from later on: said once, with the remedy; every run is rendered all the same."""
    for number in range(before):
        make_run(daemon.watched / f"run{number}", steps=2)
    daemon.prepare("stepwatch.watcher.SETTLING = 0.7")
    daemon.start(prefix=limited("max_inotify_watches", 4))
    names = [f"run{number}.mp4" for number in range(9)]
    daemon.wait_until(lambda: set(daemon.animations()) == set(names[:before]))
    for number in range(before, 9):
        make_run(daemon.watched / f"run{number}", steps=2)
    daemon.wait_until(lambda: folder_said(daemon).get("state") == "polling")
    published(daemon, *names)
    make_run(daemon.watched / "deeper" / "still" / "last", steps=2)
    published(daemon, *names, "last.mp4")
    assert "sudo sysctl fs.inotify.max_user_watches=" in folder_said(daemon)["reason"]
    said = [line for line in daemon.log.splitlines() if "sysctl" in line]
    assert len(said) == 1, daemon.log
    well(daemon)


def test_no_inotify_to_be_had(daemon: Daemon, make_run: MakeRun, limited: Callable[[str, int], list[str]]) -> None:
    """Row 33: other programs have taken every instance: it polls, and says what to do."""
    daemon.prepare("stepwatch.watcher.SHORTEST_POLL = 0.5")
    daemon.start(prefix=limited("max_inotify_instances", 0))
    daemon.wait_until(lambda: folder_said(daemon).get("state") == "polling")
    make_run(daemon.watched / "one")
    published(daemon, "one.mp4")
    assert daemon.log.count("max_user_instances") == 1, daemon.log
    well(daemon)


@pytest.mark.parametrize("limit", [14, 18, 22, 26, 40])
def test_too_few_descriptors(daemon: Daemon, make_run: MakeRun, limit: int) -> None:
    """Row 33: with hardly a descriptor it ends with a sentence, pauses or polls; no attempt is used up, and with more it is as ever."""
    daemon.prepare()
    folder = make_run(daemon.watched / "one")
    daemon.start(prefix=["prlimit", f"--nofile={limit}:4096", "--"])
    assert daemon.process is not None
    if daemon.process.poll() is not None:
        assert daemon.process.returncode == 1, daemon.log
    else:
        daemon.wait_until(lambda: "one.mp4" in daemon.animations() or "pauses:" in daemon.log)
        subprocess.run(["prlimit", f"--pid={daemon.process.pid}", "--nofile=1024:4096"], check=True)
        published(daemon, "one.mp4")
        assert attempts(daemon, folder) == 0
        assert len(daemon.log.splitlines()) < 30
        well(daemon)
    assert "Traceback" not in daemon.log, daemon.log


def test_a_thread_that_hears_events_dies(daemon: Daemon, make_run: MakeRun) -> None:
    """Row 34: it is noticed and told, and what happens from then on is seen."""
    mark = daemon.home / "kill"
    daemon.prepare(
        "import ctypes, os, threading, time",
        "def kill():",
        f"    while not os.path.exists({str(mark)!r}):",
        "        time.sleep(0.02)",
        "    for thread in threading.enumerate():",
        "        if 'notify' in type(thread).__name__.lower():",
        "            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))",
        f"    os.unlink({str(mark)!r})",
        "threading.Thread(target=kill, daemon=True).start()",
        "stepwatch.watcher.FIRST_REVIVAL = 1.5",
    )
    make_run(daemon.watched / "one")
    daemon.start()
    published(daemon, "one.mp4")
    mark.touch()
    daemon.wait_until(lambda: not mark.exists())
    make_run(daemon.watched / "two")
    make_run(daemon.watched / "deep" / "three")
    published(daemon, "one.mp4", "two.mp4", "three.mp4")
    daemon.wait_until(lambda: "the threads that hear file events have died" in daemon.log)
    daemon.wait_until(lambda: folder_said(daemon).get("state") == "watching")
    make_run(daemon.watched / "deep" / "four")
    daemon.wait_until(lambda: "four.mp4" in daemon.animations())
    well(daemon)


def test_nested_folders_made_at_once(daemon: Daemon) -> None:
    """Row 35: 400 folders, three deep, faster than anybody can watch them, a run at the end of every tenth: all are rendered."""
    daemon.configure({**NUMBERED, "detect": {"settle": "1s"}}, workers=2)
    daemon.start()
    frame = [write_frame(daemon.home / f"{number}.png", step=number).read_bytes() for number in range(2)]
    wanted = []
    for number in range(400):
        place = daemon.watched / f"a{number % 7}" / f"b{number % 20}" / f"c{number}"
        place.mkdir(parents=True)
        if number % 20 == 0:
            for step in range(2):
                (place / f"{step}.png").write_bytes(frame[step])
            wanted.append(f"c{number}.mp4")
    published(daemon, *wanted)
    well(daemon)


def test_a_tree_moved_in_and_then_written_into(daemon: Daemon, make_run: MakeRun, tmp_path: Path) -> None:
    """Row 36: what is written into it after the move is part of the run."""
    daemon.start()
    outside = make_run(tmp_path / "outside" / "deep" / "moved", steps=3, state="running")
    (tmp_path / "outside").rename(daemon.watched / "inside")
    folder = daemon.watched / "inside" / "deep" / outside.name
    daemon.wait_until(lambda: run_said(daemon, "moved").get("phase") == "recording")
    for number in range(3, 6):
        write_frame(folder / f"{number:05d}.png", step=number + 1)
    say(folder, 6, state="complete")
    published(daemon, "moved.mp4")
    assert len(shown(daemon, folder)) == 6
    well(daemon)


def test_a_file_system_that_tells_nothing(daemon: Daemon, make_run: MakeRun, space: Space) -> None:
    """Row 37: written into the layer below an overlay, as another machine writes to a share: polled, said why, rendered within a poll."""
    layers = space.disk(daemon.home / "layers", "size=16m")
    for name in ("lower", "upper", "work"):
        (layers / name).mkdir()
    base = daemon.home / "layers"
    options = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    space.run("mount", "-t", "overlay", "overlay", "-o", options, daemon.watched)
    daemon.prepare("stepwatch.watcher.SHORTEST_POLL = 0.5")
    daemon.start(prefix=space.prefix)
    daemon.wait_until(lambda: folder_said(daemon).get("state") == "polling")
    assert folder_said(daemon)["file_system"] == "overlay"
    assert "does not tell what other machines write" in folder_said(daemon)["reason"]
    make_run(layers / "upper" / "far")
    daemon.wait_until((space.at(daemon.out) / "far.mp4").exists)
    daemon.wait_at_rest()
    well(daemon)


# -- 38, 39: the watched folder itself


@pytest.mark.parametrize("how", ["deleted", "renamed"])
def test_the_watched_folder_is_made_anew(daemon: Daemon, make_run: MakeRun, tmp_path: Path, how: str) -> None:
    """Row 38: the new folder is watched and locked; what happens in the old one is nobody's business; receipts stay."""
    daemon.prepare()
    make_run(daemon.watched / "one")
    daemon.start()
    published(daemon, "one.mp4")
    aside = tmp_path / "aside"
    if how == "deleted":
        shutil.rmtree(daemon.watched)
    else:
        daemon.watched.rename(aside)
    daemon.wait_until(lambda: folder_said(daemon).get("state") == "asleep")
    assert not daemon.watched.exists()
    daemon.watched.mkdir()
    make_run(daemon.watched / "two")
    published(daemon, "two.mp4")
    if how == "renamed":
        make_run(aside / "three")
        make_run(daemon.watched / "four")
        published(daemon, "four.mp4", "two.mp4")
        assert not (aside / "animation" / "three.mp4").exists()
    assert receipt(daemon, daemon.watched / "one") is not None
    busy = daemon.run("watch", "--once", timeout=30)
    assert busy.returncode == 75, busy.stderr
    well(daemon)


def test_the_watched_folder_is_unmounted(daemon: Daemon, make_run: MakeRun, space: Space) -> None:
    """Row 39: an empty mount point is left: asleep, nothing is written there and nothing concluded; mounted again, it goes on where it was.

    It goes in the worst of moments: after a look, and before what the look has found is acted upon.
    """
    gate = Gate(home=daemon.home / "gate")
    gate.home.mkdir()
    gate.open()
    daemon.prepare(
        "import os, time",
        "def told(self, folder, original=stepwatch.service.Service._tell_health):",
        f"    while not os.path.exists({str(gate.home / 'open')!r}):",
        f"        open({str(gate.home / 'reached')!r}, 'w').close()",
        "        time.sleep(0.01)",
        "    original(self, folder)",
        "stepwatch.service.Service._tell_health = told",
    )
    daemon.configure({**TRASH, "detect": {"stall": "1s", "settle": "300ms"}})
    share = daemon.home / "share"
    outside = space.disk(share, "size=16m")
    space.run("mount", "--bind", share, daemon.watched)
    make_run(outside / "one")
    make_run(outside / "two", steps=3, state="running")
    (outside / "two" / "run.json").rename(outside / "two.json")
    daemon.start(prefix=space.prefix)
    daemon.wait_until(lambda: (outside / "animation" / "one.mp4").exists() and not (outside / "one").exists())
    daemon.wait_at_rest()
    gate.close()
    write_frame(outside / "two" / "00002.png", step=3)
    daemon.wait_until(lambda: gate.reached)
    space.run("umount", "-l", daemon.watched)
    gate.open()
    below = space.at(daemon.watched)
    daemon.wait_until(lambda: folder_said(daemon).get("state") == "asleep")
    assert "not the same file system" in folder_said(daemon)["reason"]
    for number in range(3, 6):
        write_frame(outside / "two" / f"{number:05d}.png", step=number + 1)
    say(outside / "two", 6, state="complete")
    assert status.ask(daemon.state / "status.sock", "retry") == {"ok": True}
    assert folder_said(daemon)["state"] == "asleep"
    assert list(below.rglob("*")) == []
    space.run("mount", "--bind", share, daemon.watched)
    daemon.wait_until(lambda: (outside / "animation" / "two.mp4").exists() and not (outside / "two").exists())
    daemon.wait_at_rest()
    space.run("umount", "-l", daemon.watched)
    assert list(below.iterdir()) == []
    known = receipt(daemon, daemon.watched / "two")
    assert known is not None
    assert [len(render.frames) for render in known.renders] == [6]
    assert names_in(outside / "animation") == {"one.mp4", "two.mp4"}
    well(daemon)


# -- 40, 41: what goes away while it is being rendered


@pytest.mark.parametrize("when", [ENCODES, PROVES], ids=["encoding", "proving"])
def test_a_run_that_is_deleted_while_it_is_rendered(daemon: Daemon, make_run: MakeRun, ffmpeg: str, when: str) -> None:
    """Row 40: no animation of what is no longer there, and nothing of ours is left."""
    gate = held_ffmpeg(daemon, ffmpeg, when)
    folder = make_run(daemon.watched / "gone")
    daemon.start()
    daemon.wait_until(lambda: gate.reached)
    shutil.rmtree(folder)
    gate.open()
    daemon.wait_at_rest()
    assert daemon.animations() == []
    assert daemon.status()["runs"] == []
    make_run(daemon.watched / "next")
    published(daemon, "next.mp4")
    assert attempts(daemon, folder) == 0
    well(daemon)


@pytest.mark.parametrize("when", [ENCODES, PROVES], ids=["encoding", "proving"])
def test_a_run_that_is_renamed_while_it_is_rendered(daemon: Daemon, make_run: MakeRun, ffmpeg: str, when: str) -> None:
    """Row 40: it is rendered from its new place, exactly once, and cleared there."""
    daemon.configure({**TRASH, "outputs": [{"codec": "h264", "name": "{seed}", "quality": "small"}]})
    gate = held_ffmpeg(daemon, ffmpeg, when)
    folder = make_run(daemon.watched / "old")
    daemon.start()
    daemon.wait_until(lambda: gate.reached)
    new = daemon.watched / "deeper" / "new"
    new.parent.mkdir()
    folder.rename(new)
    gate.open()
    daemon.wait_until(lambda: not new.exists())
    published(daemon, "4242.mp4")
    known = receipt(daemon, new)
    assert known is not None
    assert len(known.renders) == 1
    assert not folder.exists()
    assert "pauses" not in daemon.log
    well(daemon)


@pytest.mark.parametrize("when", [ENCODES, PROVES], ids=["encoding", "proving"])
@pytest.mark.parametrize("how", ["deleted", "read-only", "another disk"])
def test_the_output_folder_goes_away_while_a_run_is_rendered(
    daemon: Daemon, make_run: MakeRun, ffmpeg: str, space: Space, how: str, when: str
) -> None:
    """Row 41: the machine's fault: no attempt is used up, the folder pauses and says why, and goes on by itself; then there is one animation."""
    daemon.prepare()
    gate = held_ffmpeg(daemon, ffmpeg, when)
    folder = make_run(daemon.watched / "one")
    place = space.at(daemon.out)
    if how == "read-only":
        space.disk(daemon.out, "size=4m")
    daemon.start(prefix=space.prefix)
    daemon.wait_until(lambda: gate.reached)
    if how == "deleted":
        shutil.rmtree(daemon.out)
    elif how == "read-only":
        space.run("mount", "-o", "remount,ro", daemon.out)
    else:
        space.disk(daemon.out, "size=4m")
    gate.open()
    daemon.wait_until(lambda: "pauses:" in daemon.log)
    if how == "read-only":
        daemon.wait_until(lambda: folder_said(daemon)["state"] == "paused")
        assert attempts(daemon, folder) == 0
        space.run("mount", "-o", "remount,rw", daemon.out)
    daemon.wait_until((place / "one.mp4").exists)
    daemon.wait_at_rest()
    assert [path.name for path in place.iterdir() if not path.name.startswith(".")] == ["one.mp4"]
    known = receipt(daemon, folder)
    assert known is not None
    assert (len(known.renders), known.attempts.count) == (1, 0)
    assert len([line for line in daemon.log.splitlines() if "pauses:" in line]) == 1, daemon.log
    well(daemon, space.at(daemon.watched))


# -- 42, 43, 44: disks that are full


def noisy_run(folder: Path) -> Path:
    """A run that no encoder makes small, always the same."""
    noise = random.Random(43)
    folder.mkdir(parents=True)
    for number in range(6):
        Image.frombytes("RGB", (64, 48), noise.randbytes(64 * 48 * 3)).save(folder / f"{number:05d}.png")
    say(folder, 6, state="complete")
    return folder


def whole_size(daemon: Daemon) -> int:
    """Bytes of the animation of that run."""
    noisy_run(daemon.watched / "two")
    assert daemon.once() == 0, daemon.log
    size = (daemon.out / "two.mp4").stat().st_size
    shutil.rmtree(daemon.out)
    daemon.log_file.unlink()
    return size


@pytest.mark.parametrize("row", ["42, while it is encoded", "43, at the very end", "44, no name left"])
def test_a_full_disk_pauses_the_folder_until_there_is_room(daemon: Daemon, space: Space, row: str) -> None:
    """Rows 42, 43, 44: paused, told once, no attempt used up, nothing left or cleared; with room again it goes on by itself."""
    daemon.prepare()
    daemon.configure(TRASH)
    room = 4096
    if row.startswith("43"):
        room = (whole_size(daemon) - 1) // 4096 * 4096
    out = space.disk(daemon.out, "nr_inodes=2,size=8m" if row.startswith("44") else f"size={room}")
    if row.startswith("44"):
        (out / "filler").touch()
    folder = noisy_run(daemon.watched / "one")
    before = names_in(folder)
    daemon.start(prefix=space.prefix)
    daemon.wait_until(lambda: daemon.log.count("No space left") + daemon.log.count("no space is left") + daemon.log.count("disk is full") >= 3)
    daemon.wait_until(lambda: folder_said(daemon)["state"] == "paused")
    assert re.search("[Nn]o space (is )?left|disk is full", folder_said(daemon)["reason"])
    assert attempts(daemon, folder) == 0
    assert names_in(folder) == before
    daemon.wait_until(lambda: not daemon.status()["rendering"])
    assert [path.name for path in out.iterdir() if path.name != "filler" and not path.name.startswith(".stepwatch-")] == []
    assert len([line for line in daemon.log.splitlines() if "pauses:" in line]) <= 2, daemon.log
    space.run("mount", "-o", "remount,size=16m,nr_inodes=100", daemon.out)
    daemon.wait_until(lambda: (out / "one.mp4").exists() and not folder.exists())
    daemon.wait_at_rest()
    assert {path.name for path in out.iterdir()} - {"filler"} == {"one.mp4"}
    assert folder_said(daemon)["state"] == "watching"
    well(daemon)


# -- 45: the receipts

BUSY = "import stepwatch.ledger\nstepwatch.ledger.Ledger.open.__func__.__kwdefaults__['busy'] = 0.3"
"""Gives up on a held database sooner."""


def test_receipts_that_cannot_be_written(daemon: Daemon, make_run: MakeRun, space: Space) -> None:
    """Row 45: the state's disk is full while it watches: nothing is rendered or cleared; with room it goes on by itself."""
    daemon.prepare()
    daemon.configure(TRASH)
    daemon.environment["XDG_STATE_HOME"] = str(daemon.home / "disk")
    disk = space.disk(daemon.home / "disk", "size=2m,mode=700") / "stepwatch"
    make_run(daemon.watched / "one")
    daemon.start(prefix=space.prefix)
    daemon.wait_until(lambda: not (daemon.watched / "one").exists())
    daemon.wait_at_rest()
    with (disk / "filler").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    folder = refused_run(daemon, make_run, "full")
    (disk / "filler").unlink()
    daemon.wait_until(lambda: not folder.exists())
    daemon.wait_at_rest()
    assert daemon.animations() == ["full.mp4", "one.mp4"]
    well(daemon)


def test_receipts_that_somebody_holds(daemon: Daemon, make_run: MakeRun) -> None:
    """Row 45: another program has the database for itself: nothing is rendered meanwhile, and it goes on by itself."""
    daemon.prepare(BUSY)
    daemon.configure(TRASH)
    daemon.start()
    with contextlib.closing(sqlite3.connect(daemon.state / "receipts.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        folder = refused_run(daemon, make_run, "locked")
        other.execute("ROLLBACK")
    daemon.wait_until(lambda: not folder.exists())
    published(daemon, "locked.mp4")
    well(daemon)


def refused_run(daemon: Daemon, make_run: MakeRun, name: str) -> Path:
    """Give the daemon a run while it cannot write receipts, and see that it leaves it alone."""
    said = len(daemon.log)
    folder = make_run(daemon.watched / name)
    before = names_in(folder)
    daemon.wait_until(lambda: "receipts cannot be written" in daemon.log[said:])
    assert names_in(folder) == before
    assert f"{name}.mp4" not in daemon.animations()
    return folder


@pytest.mark.parametrize("how", ["garbage", "newer"])
def test_receipts_that_are_spoilt_while_it_watches(daemon: Daemon, make_run: MakeRun, how: str) -> None:
    """Row 45: set aside under a name that says why, told; what was rendered is not rendered again, and the next run is."""
    daemon.prepare()
    make_run(daemon.watched / "one")
    daemon.start()
    published(daemon, "one.mp4")
    digest = (daemon.out / "one.mp4").read_bytes()
    database = daemon.state / "receipts.db"
    if how == "garbage":
        for path in daemon.state.glob("receipts.db*"):
            path.write_bytes(os.urandom(8192))
    else:
        with contextlib.closing(sqlite3.connect(database)) as other:
            other.execute("PRAGMA user_version = 9999")
    make_run(daemon.watched / "two")
    daemon.wait_until(lambda: "two.mp4" in daemon.animations())
    published(daemon, "one.mp4", "two.mp4")
    assert (daemon.out / "one.mp4").read_bytes() == digest
    if how == "garbage":
        assert list(daemon.state.glob("receipts.db.corrupt-*"))
        assert "corrupt" in daemon.log or "damaged" in daemon.log
    well(daemon)


@pytest.mark.parametrize("how", ["garbage", "newer", "no file"])
def test_receipts_that_are_spoilt_at_the_start(daemon: Daemon, make_run: MakeRun, how: str) -> None:
    """Row 45: set aside and told; what the outputs say of themselves keeps everything from being rendered again."""
    make_run(daemon.watched / "one")
    assert daemon.once() == 0
    digest = (daemon.out / "one.mp4").read_bytes()
    for path in daemon.state.glob("receipts.db-*"):
        path.unlink()
    database = daemon.state / "receipts.db"
    if how == "garbage":
        database.write_bytes(os.urandom(8192))
    elif how == "newer":
        with contextlib.closing(sqlite3.connect(database)) as other:
            other.execute("PRAGMA user_version = 9999")
    else:
        database.unlink()
    make_run(daemon.watched / "two")
    assert daemon.once() == 0
    assert daemon.animations() == ["one.mp4", "two.mp4"]
    assert (daemon.out / "one.mp4").read_bytes() == digest
    if how != "no file":
        assert [path.name.split("-")[0] for path in daemon.state.glob("receipts.db.*-*")] == [f"receipts.db.{'corrupt' if how == 'garbage' else how}"]
        assert "set aside" in daemon.log or "receipts.db." in daemon.log


@pytest.mark.parametrize("how", ["full", "read-only"])
def test_no_receipts_no_start(daemon: Daemon, make_run: MakeRun, space: Space, how: str) -> None:
    """Row 45: where no receipt can be kept the daemon does not begin, and says so in a sentence."""
    make_run(daemon.watched / "one")
    space.disk(daemon.state, "size=4k,mode=700")
    if how == "read-only":
        space.run("mount", "-o", "remount,ro", daemon.state)
    else:
        (space.at(daemon.state) / "filler").write_bytes(bytes(4096))
    assert daemon.once(prefix=space.prefix) == 1
    assert "receipts cannot be" in daemon.log
    assert "Traceback" not in daemon.log
    assert daemon.animations() == []


# -- 46, 47: disks that fail


def test_an_output_that_cannot_be_synced_is_not_published(daemon: Daemon, make_run: MakeRun, injecting: Callable[..., list[str]]) -> None:
    """Row 46: EIO from the fsync of the finished file: it is thrown away, no attempt used up; the next try makes another, and no frame is cleared.

    strace counts the calls of each thread, so the first look whether the folders can be synced fails too: then nothing is cleared there.
    """
    daemon.prepare()
    daemon.configure(TRASH)
    Ledger.open(daemon.state / "receipts.db").close()  # Making it would be the first to sync.
    folder = make_run(daemon.watched / "one")
    before = names_in(folder)
    daemon.start(prefix=injecting("-e", "trace=fsync", "-e", "inject=fsync:error=EIO:when=1"))
    daemon.wait_until(lambda: "pauses:" in daemon.log)
    assert re.search("cannot bring .* to the disk: the disk reports an error", daemon.log)
    published(daemon, "one.mp4")
    assert names_in(folder) == before
    assert attempts(daemon, folder) == 0
    assert daemon.log.count("published") == 1
    well(daemon)


def test_a_frame_that_the_disk_does_not_give(daemon: Daemon, make_run: MakeRun, injecting: Callable[..., list[str]]) -> None:
    """Row 47: EIO at each read of a frame: the machine's fault at first, the run's after a few times; others go on; then it is quarantined."""
    daemon.prepare()
    daemon.configure(TRASH, max_attempts=2)
    folder = make_run(daemon.watched / "bad")
    before = names_in(folder)
    frame = folder / "00003.png"
    daemon.start(prefix=injecting("-P", str(frame), "-e", "trace=read,pread64,readv", "-e", "inject=read,pread64,readv:error=EIO"))
    daemon.wait_until(lambda: "pauses:" in daemon.log)
    make_run(daemon.watched / "good")
    daemon.wait_until(lambda: "good.mp4" in daemon.animations())
    daemon.wait_until(lambda: run_said(daemon, "bad").get("phase") == "quarantined", timeout=60)
    assert "00003.png cannot be read: Input/output error" in run_said(daemon, "bad")["reason"]
    assert names_in(folder) == before
    assert daemon.animations() == ["good.mp4"]
    well(daemon)


# -- 49, 50: ffmpeg and its parent


def test_killed_while_feeding(daemon: Daemon, make_run: MakeRun, ffmpeg: str) -> None:
    """Row 49: kill -9 while ffmpeg is being fed: it is gone within a second, what it leaves is never published, and the next daemon starts anew."""
    gate = held_ffmpeg(daemon, ffmpeg)
    daemon.configure({"timeline": {"duration": "20s", "fps": 30, "interpolation": "none"}})
    folder = make_run(daemon.watched / "one", size=(640, 480))
    daemon.start()
    daemon.wait_until(lambda: gate.reached)
    gate.open()
    daemon.wait_until(lambda: list(daemon.out.glob(".stepwatch-*.tmp.mp4")))
    process = int((gate.home / "pids").read_text().split()[0])
    assert daemon.end(signal.SIGKILL) == -signal.SIGKILL
    end = time.monotonic() + 1.0
    while Path(f"/proc/{process}/exe").exists():
        assert time.monotonic() < end, "ffmpeg outlives its parent"
        time.sleep(0.01)
    assert daemon.animations() == []
    for path in daemon.leftovers():
        os.utime(path, (time.time() - 3600, time.time() - 3600))  # What is younger may be somebody's.
    daemon.start()
    published(daemon, "one.mp4")
    daemon.wait_until(lambda: daemon.leftovers() == [])
    assert len(shown(daemon, folder)) == 6
    well(daemon)


def test_ffmpeg_killed_is_the_runs_fault(daemon: Daemon, make_run: MakeRun, ffmpeg: str) -> None:
    """Row 50: as when memory is short: tried again after a while, given up in the end, the others are rendered; `runs retry` begins anew."""
    daemon.prepare()
    daemon.configure(TRASH, max_attempts=3)
    scripted_ffmpeg(daemon, ffmpeg, ENCODES, f"if [ -e '{daemon.home}/kill' ]; then echo >> '{daemon.home}/kills'; kill -9 $$; fi")
    (daemon.home / "kill").touch()
    folder = make_run(daemon.watched / "poor")
    before = names_in(folder)
    daemon.start()
    daemon.wait_until(lambda: run_said(daemon, "poor").get("phase") == "render-failed")
    assert re.match("try [12] of 3 failed: .*(SIGKILL|killed)", run_said(daemon, "poor")["reason"]), run_said(daemon, "poor")
    daemon.wait_until(lambda: run_said(daemon, "poor").get("phase") == "quarantined")
    assert (daemon.home / "kills").read_text().count("\n") == 3
    assert names_in(folder) == before
    assert daemon.leftovers() == []
    (daemon.home / "kill").unlink()
    make_run(daemon.watched / "rich")
    daemon.wait_until(lambda: daemon.animations() == ["rich.mp4"])
    assert daemon.run("runs", "retry", "poor").returncode == 0
    published(daemon, "poor.mp4", "rich.mp4")
    assert "pauses:" not in daemon.log
    well(daemon)


# -- 57: many at once


def usage(daemon: Daemon) -> tuple[int, int, int]:
    """MB of memory, descriptors and threads of the daemon, without those of its children."""
    assert daemon.process is not None
    facts = Path(f"/proc/{daemon.process.pid}/status").read_text()
    resident, threads = (int(re.search(rf"^{name}:\s+(\d+)", facts, re.MULTILINE)[1]) for name in ("VmRSS", "Threads"))  # type: ignore[index]
    return resident // 1000, len(os.listdir(f"/proc/{daemon.process.pid}/fd")), threads


@pytest.mark.parametrize("count", [30, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(5400)])])
def test_many_runs_at_once(daemon: Daemon, count: int) -> None:
    """Row 57: all are rendered, in their order; memory, descriptors and threads do not grow with their number; the status answers meanwhile."""
    daemon.configure(workers=2)
    pictures = [write_frame(daemon.home / f"{step}.png", step=step).read_bytes() for step in (1, 2)]
    for number in range(count):
        folder = daemon.watched / f"group{number % 5}" / f"run{number:04d}"
        folder.mkdir(parents=True)
        for step, picture in enumerate(pictures):
            (folder / f"{step:05d}.png").write_bytes(picture)
        say(folder, 2, state="complete")
    daemon.start()
    most = (0, 0, 0)
    slowest = 0.0
    end = time.monotonic() + 5000
    while len(daemon.animations()) < count and time.monotonic() < end:
        asked = time.monotonic()
        said = daemon.status()
        slowest = max(slowest, time.monotonic() - asked)
        assert said["rendering"] <= 2
        assert len(said["runs"]) <= 200
        now = usage(daemon)
        most = (max(most[0], now[0]), max(most[1], now[1]), max(most[2], now[2]))
        time.sleep(0.1)
    published(daemon, *(f"run{number:04d}.mp4" for number in range(count)))
    assert daemon.status()["at_rest"] == count
    assert most[0] < 150, "MB of memory"
    assert most[1] < 60, "descriptors"
    assert most[2] < 30, "threads"
    assert slowest < 5.0
    # Within a group the runs were found in the order of their names; a turn of the workers may change neighbours.
    order = re.findall(r"run (run\d+): h264: published", daemon.log)
    for group in range(5):
        mine = [name for name in order if int(name[3:]) % 5 == group]
        assert all(abs(mine.index(name) - place) <= 2 for place, name in enumerate(sorted(mine)))
    well(daemon)


# -- 60, 61, 62: clocks


@pytest.mark.parametrize(("years", "sidecar"), [(-56, None), (-56, "running"), (12, None), (12, "running"), (1, "complete")])
def test_times_of_frames_that_are_far_off(daemon: Daemon, make_run: MakeRun, years: int, sidecar: str | None) -> None:
    """Rows 60, 62: frames of 1970 or of the future: neither judged before a settle time has been watched, nor waited for without end."""
    daemon.configure({**NUMBERED, **QUIET})
    folder = make_run(daemon.watched / "odd", sidecar=None)
    first = max(10**9, int((time.time() + years * 31_557_600) * 1e9))
    for number in range(6):
        os.utime(folder / f"{number:05d}.png", ns=(first, first + number * 10**8))
    if sidecar:
        say(folder, 6, state=sidecar)
    daemon.start()
    published(daemon, "odd-incomplete.mp4" if sidecar == "running" else "odd.mp4")
    assert len(shown(daemon, folder)) == 6
    well(daemon)


@pytest.mark.parametrize("jump", [-366 * 86400.0, 366 * 86400.0, 3600.0])
def test_the_wall_clock_jumps(daemon: Daemon, make_run: MakeRun, ffmpeg: str, jump: float) -> None:
    """Row 60: a year back or forward, or a summer's hour, between a failed try and the next, while another run is recorded: both are rendered."""
    offset = daemon.home / "offset"
    daemon.prepare(
        "import os, time",
        "def shifted(real=time.time):",
        f"    return real() + ({jump} if os.path.exists({str(offset)!r}) else 0.0)",
        "time.time = shifted",
        "stepwatch.core.lifecycle.FIRST_BACKOFF = 1.0",
    )
    daemon.configure({"detect": {"stall": "30s", "settle": "300ms"}})
    scripted_ffmpeg(daemon, ffmpeg, ENCODES, f"if [ ! -e '{offset}' ]; then kill -9 $$; fi")
    make_run(daemon.watched / "tried")
    writing = make_run(daemon.watched / "writing", steps=4, sidecar=None)
    say(writing, 6, state="running")
    daemon.start()
    daemon.wait_until(lambda: run_said(daemon, "tried").get("phase") == "render-failed")
    offset.touch()
    daemon.wait_until(lambda: "tried.mp4" in daemon.animations())
    assert run_said(daemon, "writing")["phase"] == "recording"
    for number in (4, 5):
        write_frame(writing / f"{number:05d}.png", step=number + 1)
    say(writing, 6, state="complete")
    published(daemon, "tried.mp4", "writing.mp4")
    assert len(shown(daemon, writing)) == 6
    well(daemon)


def test_a_suspend_makes_no_run_look_stalled(daemon: Daemon, make_run: MakeRun) -> None:
    """Row 61: daemon and writer stopped for longer than the stall limit: afterwards the run has as much time as if nothing had been."""
    daemon.prepare("stepwatch.service.LONGEST_TURN = 1.5", "stepwatch.service.MOMENT = 0.1")
    daemon.configure({"detect": {"stall": "2500ms", "settle": "300ms"}})
    folder = make_run(daemon.watched / "paused", steps=4, sidecar=None)
    say(folder, 6, state="running")
    daemon.start()
    daemon.wait_until(lambda: run_said(daemon, "paused").get("phase") == "recording")
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGSTOP)
    time.sleep(3.5)
    daemon.process.send_signal(signal.SIGCONT)
    assert run_said(daemon, "paused")["next_look"] > 0
    assert run_said(daemon, "paused")["phase"] == "recording"
    for number in (4, 5):
        write_frame(folder / f"{number:05d}.png", step=number + 1)
    say(folder, 6, state="complete")
    published(daemon, "paused.mp4")
    assert len(shown(daemon, folder)) == 6
    assert "stalled" not in daemon.log
    well(daemon)


def test_a_long_gap_counts_for_a_moment() -> None:
    """Row 61: eight hours of suspend are a second; what a busy turn of the loop takes counts whole, and no clock that goes back counts."""
    seconds = 0.0
    clock = service.AwakeClock(lambda: seconds)
    for later, awake in ((5.0, 5.0), (15.0, 15.0), (8 * 3600.0, 16.0), (8 * 3600.0 + 1, 17.0), (3600.0, 17.0), (3601.0, 18.0)):
        seconds = later
        assert clock.now().awake == awake


@pytest.mark.parametrize("offset", [-600.0, 600.0])
def test_a_server_whose_clock_is_wrong(daemon: Daemon, make_run: MakeRun, offset: float) -> None:
    """Row 62: ten minutes before us or behind us, cookies and frames alike: a fresh run is not stalled, an old one is not fresh."""
    daemon.prepare(
        "import os",
        "import stepwatch.watcher as watcher",
        f"watcher.Watcher.clock = lambda self, real=watcher.Watcher.clock: (found := real(self)) and found + {offset}",
        "import stepwatch.store as store, dataclasses",
        "def frame(entry, real=store._frame):",
        "    found = real(entry)",
        f"    moved = {{name: getattr(found, name) + {int(offset)} * 10**9 for name in ('mtime_ns', 'ctime_ns')}} if found else {{}}",
        "    return found and dataclasses.replace(found, **moved)",
        "store._frame = frame",
        "def unchanged(folder, frame, real=store.is_unchanged):",
        f"    moved = {{name: getattr(frame, name) - {int(offset)} * 10**9 for name in ('mtime_ns', 'ctime_ns')}}",
        "    return real(folder, dataclasses.replace(frame, **moved))",
        "store.is_unchanged = unchanged",
    )
    daemon.configure({"detect": {"stall": "2s", "settle": "300ms"}})
    say(make_run(daemon.watched / "fresh", steps=4, sidecar=None), 6, state="running")
    daemon.start()
    daemon.wait_until(lambda: run_said(daemon, "fresh").get("phase"))
    assert run_said(daemon, "fresh")["phase"] == "recording"
    assert 0 < run_said(daemon, "fresh")["next_look"] <= 2.0
    published(daemon, "fresh-incomplete.mp4")
    assert "no new frame for 2.0 s" in daemon.log
    well(daemon)


def test_frames_that_never_look_the_same_twice(daemon: Daemon, make_run: MakeRun) -> None:
    """A file system that gives a file other numbers with each look: tried again and again, but ever more seldom."""
    daemon.prepare(
        "import stepwatch.store as store",
        "store.is_unchanged = lambda folder, frame: False",
        "stepwatch.service.FIRST_PAUSE = 60.0",
        "stepwatch.service.LONGEST_HOLD = 60.0",
    )
    make_run(daemon.watched / "fleeting")
    daemon.start()
    daemon.wait_until(lambda: daemon.log.count("changed or went away") == 2)
    daemon.wait_until(lambda: not daemon.status()["rendering"])
    assert daemon.status()["waiting"] == 1
    make_run(daemon.watched / "other")
    daemon.wait_until(lambda: daemon.log.count("changed or went away") == 4)
    assert daemon.animations() == []
    well(daemon)


# -- 68: users


@pytest.fixture
def somebody(ffmpeg: str) -> Iterator[tuple[Daemon, tuple[str, ...]]]:
    """A daemon that does not own what it watches, and the command behind which it is another user."""
    base = Path(tempfile.mkdtemp(prefix="stepwatch-"))
    one = Daemon(base / "daemon", base / "watched")
    prefix: tuple[str, ...] = ()
    if os.geteuid() == 0:
        base.chmod(0o755)
        for path in (one.home, one.service_file):
            os.chown(path, 65534, 65534)
        one.environment["HOME"] = str(one.home)
        prefix = ("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--")
    one.prepare()
    try:
        if prefix and subprocess.run([*prefix, *one.command("--version")], env=one.environment, capture_output=True, check=False).returncode != 0:
            pytest.skip("another user may not run this Python")
        yield one, prefix
    finally:
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        for path in base.rglob("*"):
            if path.is_dir():
                path.chmod(0o755)
        shutil.rmtree(base)


def test_frames_that_may_not_be_read(somebody: tuple[Daemon, tuple[str, ...]], make_run: MakeRun) -> None:
    """Row 68: one of them: left out, told, nothing cleared; all of them: no attempt after attempt without end, and when they may be, rendered."""
    daemon, prefix = somebody
    daemon.watched.chmod(0o777)
    daemon.configure(TRASH)
    os.chown(daemon.service_file, *([65534, 65534] if prefix else [-1, -1]))
    one = make_run(daemon.watched / "one")
    (one / "00002.png").chmod(0)
    all_of_them = make_run(daemon.watched / "all")
    for path in all_of_them.glob("*.png"):
        path.chmod(0)
    before = names_in(one)
    daemon.start(prefix=prefix)
    daemon.wait_until(lambda: "one.mp4" in daemon.animations())
    daemon.wait_until(lambda: not daemon.status()["rendering"])
    assert "00002.png: may not be read by this user" in daemon.log
    assert names_in(one) == before
    daemon.wait_until(lambda: run_said(daemon, "all").get("phase") in ("quarantined", "render-failed", "ignored"))
    for path in all_of_them.glob("*.png"):
        path.chmod(0o644)
    daemon.wait_until(lambda: daemon.animations() == ["all.mp4", "one.mp4"])
    assert "Traceback" not in daemon.log


def test_frames_that_may_not_be_deleted(somebody: tuple[Daemon, tuple[str, ...]], make_run: MakeRun) -> None:
    """Row 68: a sticky folder of somebody else: the animation is kept, the frames stay, and that is said once."""
    daemon, prefix = somebody
    daemon.watched.chmod(0o777)
    daemon.configure(TRASH)
    os.chown(daemon.service_file, *([65534, 65534] if prefix else [-1, -1]))
    folder = make_run(daemon.watched / "sticky")
    before = names_in(folder)
    folder.chmod(0o1777 if prefix else 0o555)
    daemon.start(prefix=prefix)
    published(daemon, "sticky.mp4")
    stays_as_it_is(daemon)
    assert names_in(folder) == before
    assert len([line for line in daemon.log.splitlines() if "permission" in line]) == 1, daemon.log
    assert daemon.animations() == ["sticky.mp4"]
    assert daemon.end() == 0
    assert "Traceback" not in daemon.log
