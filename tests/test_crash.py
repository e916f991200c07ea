"""The daemon dies at any instant (rows 48, 49): its calls in order, and what a restart makes of every place where they can be cut short.

Two ways to die at a chosen call. `crashing` counts, within the process, every call that changes something on the disk and every statement that
changes the receipts, and kills itself at one of them; strace kills at the N-th write, sync or rename that the kernel sees, which is the only way
to die in the midst of a commit. What a restart leaves is held against what was there before: one whole animation, and every frame accounted for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from stepwatch import system, tags
from stepwatch.core.manifest import MANIFEST, parse_manifest
from stepwatch.core.metadata import read_identity
from stepwatch.core.model import Frame
from stepwatch.core.plan import generation
from stepwatch.encoder import find_ffmpeg
from stepwatch.ledger import Ledger
from tests.conftest import Daemon, MakeRun, sidecar_for, write_frame

ROOT = Path(__file__).parent.parent
STEPS = 6
"""Frames of the run, and pictures of its animation."""
KILLED = -signal.SIGKILL
OWN = {".stepwatch/id", ".stepwatch/cookie"}
"""What a daemon leaves in a watched folder to know it again."""


# --- a run, and what has become of it -----------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Case:
    """One small run, and a daemon that clears it."""

    daemon: Daemon
    cleanup: str
    digests: dict[str, str]
    """Of its frames, by name."""
    generation: str

    @classmethod
    def make(cls, home: Path, cleanup: str) -> Case:
        # Short: the path of a socket may not be long.
        daemon = Daemon(home / "d", home / "w")
        daemon.configure({"cleanup": {"intermediates": cleanup}})
        folder = daemon.watched / "one"
        for number in range(STEPS):
            write_frame(folder / f"{number:05d}.png", step=number + 1)
        facts = sidecar_for(folder, STEPS, names="{index:05d}.png", state="complete", size=(32, 24))
        (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
        paths = sorted(folder.glob("*.png"))
        digests = {path.name: digest(path) for path in paths}
        frames = [Frame(step=number, name=path.name, size=path.stat().st_size) for number, path in enumerate(paths, start=1)]
        return cls(daemon=daemon, cleanup=cleanup, digests=digests, generation=generation(frames, digests))

    @property
    def folder(self) -> Path:
        return self.daemon.watched / "one"

    def files(self) -> dict[str, Path]:
        """Everything in the watched folder that is no folder, by its path from there."""
        return {str(path.relative_to(self.daemon.watched)): path for path in self.daemon.watched.rglob("*") if not path.is_dir()}

    def trashed(self) -> dict[str, str]:
        """Digests of what the trash holds as its manifests say, by name; fails when it holds anything else."""
        found = {}
        for place in (self.daemon.watched / ".stepwatch" / "trash").glob("*"):
            names = {path.name for path in place.iterdir()} - {MANIFEST, ".manifest.json.tmp"}
            if not (place / MANIFEST).exists():
                assert not names, f"{place.name} has no manifest"
                continue
            manifest = parse_manifest((place / MANIFEST).read_bytes(), place.name)
            told = {file.name: file for file in manifest.files}
            assert names <= set(told)
            for name in names:
                assert digest(place / name) == told[name].digest
                found[name] = told[name].digest
        return found

    def whole(self, path: Path) -> bool:
        """Whether an animation is the one of this run, complete: by all its pictures, and by what it says of itself."""
        said = read_identity(tags.read(path, ffmpeg=find_ffmpeg()))
        return said is not None and said.generation == self.generation and pictures(path.read_bytes()) == STEPS

    def judge_wreck(self) -> None:
        """What must hold at every instant, whatever was going on."""
        published = [self.daemon.out / name for name in self.daemon.animations()]
        assert len(published) <= 1
        assert all(map(self.whole, published))
        here = {path.name: digest(path) for path in self.folder.glob("*.png")} if self.folder.is_dir() else {}
        held = {name: known for name, known in self.trashed().items() if name in self.digests}
        assert not set(here) & set(held)
        assert {**here, **held}.items() <= self.digests.items()
        if held or len(here) < STEPS:
            assert published
        if self.cleanup == "trash" or here:
            assert {**here, **held} == self.digests

    def judge_end(self) -> None:
        """What must hold when a restarted daemon has brought everything to rest."""
        daemon = self.daemon
        assert daemon.animations() == ["one.mp4"]
        assert self.whole(daemon.out / "one.mp4")
        held = self.trashed()
        expected = {"animation/one.mp4"}
        if self.cleanup == "trash":
            assert {name: known for name, known in held.items() if name != "run.json"} == self.digests
            [place] = (daemon.watched / ".stepwatch" / "trash").iterdir()
            assert parse_manifest((place / MANIFEST).read_bytes(), place.name).finished
            expected |= {f".stepwatch/trash/{place.name}/{name}" for name in (*self.digests, "run.json", MANIFEST)}
        # Whatever else there was would be a leftover.
        assert set(self.files()) - OWN == expected
        assert not self.folder.exists()
        with Ledger.open(daemon.state / "receipts.db") as ledger:
            assert not ledger.notes
            [receipt] = ledger.all()
            assert (len(receipt.renders), receipt.renders[0].cleared, receipt.attempts.count) == (1, STEPS, 0)
            assert (receipt.phase, receipt.renders[0].incomplete) == ("cleared", False)

    def bytes(self) -> dict[str, tuple[str, int]]:
        """Everything that the daemon keeps: content and time of each file."""
        kept = {name: path for name, path in self.files().items() if name not in OWN} | {"receipts": self.daemon.state / "receipts.db"}
        return {name: (digest(path), os.stat(path).st_mtime_ns) for name, path in kept.items()}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@cache
def pictures(animation: bytes) -> int:
    """How many pictures ffmpeg decodes without a complaint; equal animations are asked for once."""
    command = [find_ffmpeg(), "-v", "error", "-xerror", "-i", "pipe:0", "-map", "0:v", "-f", "framecrc", "-"]
    done = subprocess.run(command, input=animation, capture_output=True, check=False, timeout=60)
    return -1 if done.returncode or done.stderr else sum(not line.startswith(b"#") for line in done.stdout.splitlines())


# --- a place to die in --------------------------------------------------------------------------------------------------------------------


class Forge:
    """A process that forks daemons: see `crashing`."""

    def __init__(self, home: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "crashing.py")],
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # The first is carried out by that process itself.
        case = Case.make(home / "first", "keep")
        answer = self._ask(case)
        assert (answer["code"], answer["threads"], case.daemon.animations()) == (0, [], ["one.mp4"]), case.daemon.log

    def once(
        self,
        case: Case,
        *,
        kill: int | None = None,
        side: str = "before",
        inline: bool = False,
        strace: Sequence[str] | None = None,
        environment: Mapping[str, str] = {},  # never changed
    ) -> int:
        """``watch --once``, killed where it is told; its exit code."""
        answer = self._ask(case, kill=kill, side=side, inline=inline, strace=strace, environment={**case.daemon.environment, **environment})
        return int(answer["code"])

    def calls(self, case: Case) -> list[str]:
        """The calls of the daemons for this case so far, and forget them."""
        file = case.daemon.home / "calls"
        found = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        file.unlink(missing_ok=True)
        return found

    def _ask(self, case: Case, **given: object) -> dict[str, Any]:
        daemon = case.daemon
        request = {
            "arguments": ["-c", str(daemon.service_file), "watch", "--once"],
            "environment": daemon.environment,
            "log": str(daemon.log_file),
            "calls": str(daemon.home / "calls"),
            **given,
        }
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr
            pytest.fail(f"the forge is broken: {self.process.stderr.read()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait(20)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream
            stream.close()


@pytest.fixture(scope="module")
def forge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    """One for all tests of this file that run in this process."""
    one = Forge(tmp_path_factory.mktemp("forge"))
    yield one
    one.close()


def recover(forge: Forge, case: Case) -> None:
    """Restart after a kill, once to bring everything to rest and once more to do nothing, and judge all three states."""
    case.judge_wreck()
    assert forge.once(case) == 0
    case.judge_end()
    before = case.bytes()
    # Whoever asks for ffmpeg now has something to do.
    assert forge.once(case, environment={"STEPWATCH_FFMPEG": "/nowhere/ffmpeg"}) == 0
    assert case.bytes() == before
    shutil.rmtree(case.daemon.watched.parent)


# --- the calls of an undisturbed run ------------------------------------------------------------------------------------------------------


def changes_nothing(call: str) -> bool:
    """Whether a kill leaves the same behind before and after a call: what is written is there for other processes before it is synced."""
    return call.startswith(("fsync(", "fdatasync(")) or bool(re.match(r"execute\((?!COMMIT|PRAGMA journal_mode)", call))


def points(calls: Sequence[str], first: int = 1) -> list[tuple[int, str]]:
    """Where to kill so that every state of the disk from the call *first* on is met: after each change, and before what is done with a file."""
    found = []
    for number, call in enumerate(calls, start=1):
        if number < first:
            continue
        # What was written into a temporary file is no call that is counted.
        if ".tmp" in call and (changes_nothing(call) or not calls[number - 2].startswith("fsync(")):
            found.append((number, "before"))
        if not changes_nothing(call):
            found.append((number, "after"))
    return found


CHUNKS = 3
"""Tests that share the places to die among them, for as many processors."""


def all_calls(forge: Forge, home: Path, cleanup: str) -> list[str]:
    """What a run does that nobody disturbs."""
    case = Case.make(home, cleanup)
    assert forge.once(case, inline=True) == 0
    case.judge_end()
    return forge.calls(case)


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("cleanup", ["trash", "delete"])
def test_killed_at_any_change_it_loses_and_leaves_nothing(forge: Forge, tmp_path: Path, cleanup: str, chunk: int) -> None:
    """Row 48: at every state that the disk goes through, one animation, every frame accounted for, no leftovers; ``delete`` where it differs."""
    calls = all_calls(forge, tmp_path / "c", cleanup)
    first = next(number for number, call in enumerate(calls, start=1) if "00000.png" in call) if cleanup == "delete" else 1
    chosen = points(calls, first)[chunk::CHUNKS]
    assert chosen
    die_and_recover(forge, tmp_path, cleanup, calls, chosen)


def die_and_recover(forge: Forge, home: Path, cleanup: str, calls: Sequence[str], chosen: Iterable[tuple[int, str]], *, inline: bool = True) -> None:
    """Kill at each of these calls; fails with what was wrong at all of them."""
    wrong = []
    for number, side in chosen:
        case = Case.make(home / f"{number}{side}", cleanup)
        code = forge.once(case, kill=number, side=side, inline=inline)
        made = forge.calls(case)
        if inline:
            # One thread makes its calls in one order; of several, each run has a few more or less.
            assert code == KILLED
            assert made[-1].split("(")[0] == calls[number - 1].split("(")[0]
        try:
            recover(forge, case)
        except AssertionError as error:
            wrong.append(f"killed {side} call {number}, {made[-1]}:\n{error}\n{case.daemon.log[-1000:]}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.slow
@pytest.mark.parametrize("side", ["before", "after"])
@pytest.mark.parametrize("threads", ["inline", "threads"])
@pytest.mark.parametrize("cleanup", ["trash", "delete"])
@pytest.mark.timeout(1200)
def test_killed_at_every_single_call(forge: Forge, tmp_path: Path, cleanup: str, side: str, threads: str) -> None:
    """Row 48 without a choice: each sync, rename, link, unlink, rmdir, mkdir and statement, also where other threads do something meanwhile."""
    calls = all_calls(forge, tmp_path / "c", cleanup)
    die_and_recover(forge, tmp_path, cleanup, calls, [(number, side) for number in range(1, len(calls) + 1)], inline=threads == "inline")


# --- what the kernel sees -----------------------------------------------------------------------------------------------------------------

WRITES = ("pwrite64", "ftruncate", "fdatasync", "fsync")
MOVES = ("rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "rmdir")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One system call of a trace; positions in it tell what had ended when something else began."""

    began: int
    ended: int
    name: str
    text: str
    """Its arguments: descriptors as ``7</path>``, strings in quotes, everything readable but the data of writes."""
    data: bytes = b""

    @property
    def paths(self) -> list[str]:
        """Its file names, relative ones behind the folder that they are relative to."""
        found = []
        for folder, name, plain in re.findall(r'(?:\d+|AT_FDCWD)<([^>]*)>(?:, "([^"]*)")?|"([^"]*)"', self.text):
            found.append(plain or (os.path.join(folder, name) if name else folder))
        return found


def readable(text: str) -> str:
    return re.sub(r"\\x([0-9a-f]{2})", lambda found: chr(int(found[1], 16)), text)


def parse_trace(lines: Iterable[str]) -> list[Call]:
    """The calls of a trace that succeeded, by their end; of one that never ends, none."""
    pending: dict[str, tuple[int, str]] = {}
    calls = []
    for number, line in enumerate(lines):
        process, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        began = number
        if rest.endswith("<unfinished ...>"):
            pending[process] = (number, rest.removesuffix("<unfinished ...>").rstrip())
            continue
        resumed = re.match(r"<\.\.\. \w+ resumed>(.*)", rest)
        if resumed:
            began, start = pending.pop(process)
            rest = start + resumed[1]
        found = re.fullmatch(r"(\w+)\((.*)\)\s+= (\d+)", rest)
        if not found:
            continue
        name, text = found[1], found[2]
        data = b""
        if name == "pwrite64":
            written = re.search(r'"([^"]*)"', text)
            assert written
            data = bytes.fromhex(written[1].replace("\\x", ""))
            text = text.replace(written[0], "DATA")
        calls.append(Call(began=began, ended=number, name=name, text=readable(text), data=data))
    return calls


class Disk:
    """The receipts as they would be after the power went at some place of a trace: only what was written and synced by then."""

    def __init__(self, calls: Sequence[Call], database: Path, home: Path) -> None:
        self._calls = calls
        self._database = str(database)
        self._home = home

    def rows(self, before: Call, sql: str) -> list[tuple[Any, ...]]:
        """What is surely in the receipts when a call begins."""
        written: dict[str, bytearray] = {}
        synced: dict[str, bytes] = {}
        for call in self._calls:
            path = call.paths[0] if call.paths else ""
            if call.ended >= before.began or path not in (self._database, f"{self._database}-wal"):
                continue
            content = written.setdefault(path, bytearray())
            numbers = [int(one) for one in re.findall(r", (\d+)", call.text)]
            if call.name == "pwrite64":
                end = numbers[-1] + len(call.data)
                content.extend(bytes(max(0, end - len(content))))
                content[numbers[-1] : end] = call.data
            elif call.name == "ftruncate":
                del content[numbers[-1] :]
            elif call.name in ("fsync", "fdatasync"):
                synced[path] = bytes(content)
        place = self._home / f"{before.began}-{len(sql)}"
        place.mkdir(parents=True)
        for path, kept in synced.items():
            (place / os.path.basename(path)).write_bytes(kept)
        with sqlite3.connect(place / os.path.basename(self._database)) as connection:
            rows = connection.execute(sql).fetchall()
        connection.close()
        return rows


@pytest.fixture(scope="session")
def strace() -> str:
    """A strace that may look at other processes."""
    found = shutil.which("strace")
    if found is None or subprocess.run([found, "-qq", "-o", os.devnull, "true"], check=False, capture_output=True).returncode:
        pytest.skip("no strace that may look at processes on this machine")
    return found


@pytest.mark.parametrize("cleanup", ["trash", "delete"])
def test_each_step_is_on_the_disk_before_the_next_begins(strace: str, tmp_path: Path, cleanup: str) -> None:
    """DESIGN 4.4: attempt, render, sync, publish, sync, receipt, clear; what the receipts hold is read from what the kernel was given to sync."""
    case = Case.make(tmp_path, cleanup)
    daemon, watched, out = case.daemon, str(case.daemon.watched), str(case.daemon.out)
    trace = tmp_path / "trace"
    wanted = ",".join((*WRITES, *MOVES, "execve"))
    prefix = [strace, "-f", "-y", "-qq", "-xx", "-s", "1000000", "-o", str(trace), "-e", "signal=none", "-e", f"trace={wanted}"]
    assert daemon.once(prefix=prefix) == 0, daemon.log
    case.judge_end()
    calls = parse_trace(trace.read_text(encoding="ascii").splitlines())
    disk = Disk(calls, daemon.state / "receipts.db", tmp_path / "disk")

    def all_of(names: Sequence[str], *paths: str) -> list[Call]:
        return [call for call in calls if call.name in names and all(any(path in one for one in call.paths) for path in paths)]

    def synced(path: str, since: Call, until: Call) -> bool:
        return any(since.ended < call.began and call.ended < until.began for call in all_of(("fsync", "fdatasync"), path) if call.paths == [path])

    # What was tried is recorded before anything is rendered.
    encode = all_of(("execve",), f"{out}/.stepwatch-", "pipe:")[0]
    assert disk.rows(encode, "SELECT count, trying FROM runs") == [(1, 1)]
    # A file is on the disk before it has its name, its name before the receipts know of it, and the receipt before any frame leaves.
    [publish] = all_of(("link", "linkat"), f"{out}/one.mp4")
    temporary = publish.paths[0]
    assert temporary.startswith(f"{out}/.stepwatch-")
    assert synced(temporary, encode, publish)
    moves = [call for call in all_of(("renameat2",), f"{watched}/one/") if call.paths[1].startswith(f"{watched}/.stepwatch/trash/")]
    frames, [sidecar] = moves[:-1], moves[-1:]
    assert [os.path.basename(call.paths[0]) for call in frames] == sorted(case.digests)
    assert os.path.basename(sidecar.paths[0]) == "run.json"
    assert synced(out, publish, frames[0])
    assert synced(watched, publish, frames[0])
    sync = next(call for call in all_of(("fsync",), out) if call.paths == [out] and call.began > publish.ended)
    assert disk.rows(sync, "SELECT count(*) FROM renders") == [(0,)]
    [(outputs, cleared)] = disk.rows(frames[0], "SELECT outputs, cleared FROM renders")
    assert [one["path"] for one in json.loads(outputs)] == [f"{out}/one.mp4"]
    assert cleared == 0
    # The manifest is whole before anything moves; what has moved is on the disk before the receipts say so, and they do before the sidecar goes.
    place = os.path.dirname(frames[0].paths[1])
    first_manifest = all_of(("rename", "renameat"), f"{place}/{MANIFEST}")[0]
    assert synced(f"{place}/.manifest.json.tmp", publish, first_manifest)
    assert synced(place, first_manifest, frames[0])
    for folder in (place, f"{watched}/one"):
        assert synced(folder, frames[-1], sidecar)
        done = next(call for call in all_of(("fsync",), folder) if call.paths == [folder] and call.began > frames[-1].ended)
        assert disk.rows(done, "SELECT cleared FROM renders") == [(0,)]
    assert disk.rows(sidecar, "SELECT cleared FROM renders") == [(STEPS,)]
    [removed] = [call for call in all_of(("rmdir", "unlinkat"), f"{watched}/one") if call.paths == [f"{watched}/one"]]
    assert synced(place, sidecar, removed)
    assert synced(f"{watched}/one", sidecar, removed)
    # Nothing of the user's is ever unlinked but from the trash, and only by `delete`, once everything else is done.
    names = {*case.digests, "run.json"}
    unlinked = [call for call in all_of(("unlink", "unlinkat"), "") if os.path.basename(call.paths[0]) in names]
    assert {call.paths[0] for call in unlinked} == ({f"{place}/{name}" for name in names} if cleanup == "delete" else set())
    assert all(removed.ended < call.began for call in unlinked)
    assert not unlinked or synced(watched, removed, unlinked[0])
    last = [call for call in calls if call.name in MOVES and "receipts" not in call.text][-1]
    assert disk.rows(last, "SELECT clear_note != '' FROM renders") == [(1,)]


def traced(forge: Forge, home: Path, cleanup: str) -> list[tuple[str, int]]:
    """What the kernel sees of an undisturbed run: each call that changes or syncs something, with how many of its kind it makes so far."""
    case = Case.make(home, cleanup)
    trace = home / "trace"
    assert forge.once(case, inline=True, strace=["-qq", "-e", "signal=none", "-e", f"trace={','.join((*WRITES, *MOVES))}", "-o", str(trace)]) == 0
    case.judge_end()
    names = [line.partition("(")[0] for line in trace.read_text(encoding="utf-8").splitlines()]
    return [(name, names[: number + 1].count(name)) for number, name in enumerate(names)]


def die_at_system_calls(forge: Forge, home: Path, cleanup: str, chosen: Iterable[tuple[str, int]]) -> None:
    wrong = []
    for name, number in chosen:
        case = Case.make(home / f"{name}{number}", cleanup)
        # Its only thread is traced, so that strace, which counts for each thread, counts them all.
        inject = f"inject={name}:signal=SIGKILL:when={number}"
        assert forge.once(case, inline=True, strace=["-qq", "-o", os.devnull, "-e", f"trace={name}", "-e", inject]) == KILLED
        try:
            recover(forge, case)
        except AssertionError as error:
            wrong.append(f"killed at {name} number {number}:\n{error}\n{case.daemon.log[-1000:]}")
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("half", [0, 1])
def test_killed_within_a_commit_it_loses_and_leaves_nothing(forge: Forge, strace: str, tmp_path: Path, half: int) -> None:
    """Row 48: between the writes and syncs of which SQLite makes one commit; a few, and all of them where time does not matter."""
    calls = [one for one in traced(forge, tmp_path / "c", "trash") if one[0] in ("pwrite64", "fdatasync", "ftruncate")]
    assert len(calls) > 40
    die_at_system_calls(forge, tmp_path, "trash", calls[half * 7 :: 14])


@pytest.mark.slow
@pytest.mark.parametrize("cleanup", ["trash", "delete"])
@pytest.mark.timeout(1200)
def test_killed_at_every_single_system_call(forge: Forge, strace: str, tmp_path: Path, cleanup: str) -> None:
    """Row 48 as the kernel sees it."""
    die_at_system_calls(forge, tmp_path, cleanup, traced(forge, tmp_path / "c", cleanup))


# --- ffmpeg, when nobody feeds it any more ------------------------------------------------------------------------------------------------


def processes_with(text: str) -> list[int]:
    """Processes that have a text in their arguments."""
    found = []
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and text.encode() in Path("/proc", name, "cmdline").read_bytes():
                found.append(int(name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="needs /proc")
@pytest.mark.parametrize("ffmpeg_that", ["dies with the daemon", "sees its input end"])
def test_killed_while_it_feeds_ffmpeg_nothing_short_is_published(daemon: Daemon, make_run: MakeRun, tmp_path: Path, ffmpeg_that: str) -> None:
    """Row 49: ffmpeg is gone within a second, also where it ends its file as if that were all; then there is one animation, and it is whole."""
    if ffmpeg_that == "dies with the daemon" and not system.child_prefix():
        pytest.skip("no setpriv with --pdeathsig on this machine")
    if ffmpeg_that == "sees its input end":
        daemon.environment["PATH"] = str(tmp_path / "nothing")
    # Large frames take long to decode, and their small pictures no time to encode.
    frames = 40
    first = make_run(
        daemon.watched / "one",
        steps=1,
        size=(1200, 1200),
        sidecar=sidecar_for(daemon.watched / "one", frames, names="{index:05d}.png", state="complete", size=(1200, 1200)),
    )
    for number in range(1, frames):
        shutil.copyfile(first / "00000.png", first / f"{number:05d}.png")
    daemon.configure({"size": {"scale": 32}, "timeline": {"duration": "2s", "fps": 30, "hold_last": "0s", "interpolation": "none"}})
    daemon.start()

    def feeding() -> bool:
        progress = [one for run in daemon.status().get("runs", ()) for one in run["progress"]]
        return any(0 < one["done"] < one["total"] * 2 // 3 for one in progress)

    daemon.wait_until(feeding)
    assert processes_with(f"{daemon.out}/.stepwatch-")
    assert daemon.end(signal.SIGKILL) == KILLED
    killed = time.monotonic()
    daemon.wait_until(lambda: not processes_with(f"{daemon.out}/.stepwatch-"))
    assert time.monotonic() - killed < 1
    assert daemon.animations() == []
    assert daemon.once() == 0
    assert daemon.animations() == ["one.mp4"]
    assert pictures((daemon.out / "one.mp4").read_bytes()) == frames
    assert daemon.leftovers() == []
