"""Torture: hosts write runs of all kinds while the daemon is killed again and again, and every frame is accounted for in the end.

    ./dev python tests/torture.py --seed 7 --kills 100

A process of its own plays the hosts: complete, interrupted, failed and abandoned runs, runs that stall and resume, late frames, careless writers,
damaged frames, holes, and numbered images without a sidecar, into watched folders of which one keeps frames, two have them moved to the trash,
for a day or for seconds, and one has them deleted. It keeps a private ledger of the digest of every frame that it writes. The daemon dies by
kill -9 at random instants, its start-up included. Then it may bring everything to rest, and what is on the disk is held against that ledger,
without a look at the receipts.

The seed decides what is written and when the daemon dies; when exactly that meets what, no seed can decide.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import heapq
import io
import json
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT)]

from stepwatch import tags  # noqa: E402
from stepwatch.core.manifest import MANIFEST, Manifest, parse_manifest  # noqa: E402
from stepwatch.core.metadata import Identity, read_identity  # noqa: E402
from stepwatch.core.model import Frame  # noqa: E402
from stepwatch.core.plan import generation  # noqa: E402
from stepwatch.encoder import find_ffmpeg  # noqa: E402
from tests.conftest import Daemon, sidecar_for, write_frame  # noqa: E402

GRACE = 3
"""Seconds that the shortest trash keeps what it holds."""
PLACES = {
    "keep": {"intermediates": "keep"},
    "trash": {"intermediates": "trash"},
    "brief": {"intermediates": "trash", "grace": f"{GRACE}s"},
    "delete": {"intermediates": "delete"},
}
"""The watched folders, and what becomes of the frames in each."""
FORGETFUL = ("brief", "delete")
"""Those where frames may be gone for good, if an animation shows them."""
SETTLE, STALL = 0.8, 1.5
"""Seconds; so that judging a run does not take longer than writing it."""
KINDS = ("complete", "interrupted", "failed", "abandoned", "resumed", "late", "late-said", "careless", "damaged", "holes", "numbered")
WHOLE = ("complete", "resumed", "careless", "damaged", "holes")
"""Kinds that end in one animation of all frames."""
INCOMPLETE = ("interrupted", "failed", "abandoned")
"""Kinds that end in one that is marked as incomplete."""
CLEARED = ("complete", "resumed", "careless", "interrupted", "failed")
"""Kinds of which no frame stays where it was, where the policy clears."""
PATTERN = r"(?P<run>.+?)_(?P<step>[0-9]+)\.png"


# --- the hosts ----------------------------------------------------------------------------------------------------------------------------


class Host:
    """Writes one run, and what it writes into the private ledger."""

    def __init__(self, kind: str, name: str, watched: Path, ledger: io.TextIOBase, chance: random.Random) -> None:
        self.kind = kind
        self.name = name
        self.watched = watched
        self.folder = watched / "numbered" if kind == "numbered" else watched / name
        self.chance = chance
        self._ledger = ledger
        self._count = 0
        self._last = 0.0
        self.longest_gap = 0.0

    def story(self) -> Iterator[float]:
        """Write the run step by step; yields the seconds until the next step."""
        number = self.chance.randint(4, 9)
        self.say("running")
        for index in range(number):
            if self.kind == "resumed" and index == number // 2:
                yield self.chance.uniform(1.5, 3) * STALL
            if self.kind == "holes" and index in (1, number - 2):
                self._count += 1
                continue
            yield from self.frame(damaged=self.kind == "damaged" and index == number // 2)
            # Numbered images say that they are complete by coming no more.
            yield self.chance.uniform(0.01, 0.1 if self.kind == "numbered" else 0.3)
        if self.kind != "abandoned":
            self.say(self.kind if self.kind in ("interrupted", "failed") else "complete")
        if self.kind.startswith("late"):
            yield self.chance.uniform(0.2, 4)
            for _ in range(self.chance.randint(2, 3)):
                yield from self.frame()
                yield self.chance.uniform(0.01, 0.2)
            if self.kind == "late-said":
                self.say("complete")
        self.note({"ended": True, "gap": self.longest_gap})

    def frame(self, *, damaged: bool = False) -> Iterator[float]:
        index, self._count = self._count, self._count + 1
        name = f"{self.name}_{index + 1:04d}.png" if self.kind == "numbered" else f"{index:05d}.png"
        with tempfile.TemporaryDirectory() as place:
            # No two frames of the world are equal.
            data = write_frame(Path(place, "frame.png"), step=index + 1, texts={"Comment": f"{self.name} {index}"}).read_bytes()
        if damaged:
            data = data[: len(data) // 2]
        # Before it is there for anybody: nothing may be lost that the ledger does not know of.
        self.note({"frame": name, "step": index + 1, "size": len(data), "digest": hashlib.sha256(data).hexdigest(), "damaged": damaged})
        now = time.monotonic()
        self.longest_gap = max(self.longest_gap, now - self._last if self._last else 0.0)
        self._last = now
        if self.kind == "careless":
            self.folder.mkdir(parents=True, exist_ok=True)
            with (self.folder / name).open("wb", buffering=0) as file:
                for start in range(0, len(data), len(data) // 3 + 1):
                    file.write(data[start : start + len(data) // 3 + 1])
                    yield self.chance.uniform(0.0, 0.15)
        else:
            self.put(name, data)

    def say(self, state: str) -> None:
        """Write the sidecar, where there is one."""
        if self.kind != "numbered":
            self.folder.mkdir(parents=True, exist_ok=True)
            facts = sidecar_for(self.folder, self._count, names="{index:05d}.png", state=state, size=(32, 24))
            if self.kind == "holes" and state != "running":
                facts["frames"] = {**facts["frames"], "count": self._count - 2}  # type: ignore[dict-item]
            self.put("run.json", json.dumps(facts).encode())

    def put(self, name: str, data: bytes) -> None:
        """Write a file under another name first; the folder may have gone to the trash meanwhile."""
        while True:
            self.folder.mkdir(parents=True, exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                temporary = self.folder / f".{name}.part"
                temporary.write_bytes(data)
                temporary.rename(self.folder / name)
                return

    def note(self, facts: dict[str, object]) -> None:
        line = {"run": self.name, "kind": self.kind, "place": self.watched.name, "folder": str(self.folder), **facts}
        self._ledger.write(json.dumps(line) + "\n")
        self._ledger.flush()


def write_runs(home: Path, ledger: Path, seed: int, runs: int) -> None:
    """Play all hosts at once, in a process of its own."""
    chance = random.Random(seed)
    kinds = [KINDS[number % len(KINDS)] for number in range(runs)]
    chance.shuffle(kinds)
    with ledger.open("w", encoding="utf-8") as file:
        begin = time.monotonic()
        waiting: list[tuple[float, int, Iterator[float]]] = []
        start = 0.0
        for number, kind in enumerate(kinds):
            place = chance.choice([*PLACES][1 if kind in CLEARED else 0 :])
            host = Host(kind, f"r{number:03d}-{kind}", home / place, file, random.Random(chance.random()))
            heapq.heappush(waiting, (start, number, host.story()))
            start += chance.uniform(0.3, 1.8)
        while waiting:
            due, number, story = heapq.heappop(waiting)
            time.sleep(max(0.0, begin + due - time.monotonic()))
            with contextlib.suppress(StopIteration):
                pause = next(story)
                heapq.heappush(waiting, (time.monotonic() - begin + pause, number, story))


# --- the private ledger -------------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Known:
    """What the ledger knows of one run."""

    name: str
    kind: str
    place: str
    folder: Path
    frames: list[Frame] = field(default_factory=list)
    digests: dict[str, str] = field(default_factory=dict)
    damaged: set[str] = field(default_factory=set)
    gap: float = 0.0

    def generations(self) -> dict[str, list[Frame]]:
        """Every stretch of its frames that can have been there at one time, by its generation."""
        found = {}
        for first in range(len(self.frames)):
            for last in range(first, len(self.frames)):
                stretch = self.frames[first : last + 1]
                found[generation(stretch, self.digests)] = stretch
        return found

    @property
    def everything(self) -> str:
        return generation(self.frames, self.digests)


def read_ledger(path: Path) -> list[Known]:
    known: dict[str, Known] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        facts = json.loads(line)
        run = known.setdefault(facts["run"], Known(name=facts["run"], kind=facts["kind"], place=facts["place"], folder=Path(facts["folder"])))
        if "frame" in facts:
            run.frames.append(Frame(step=facts["step"], name=facts["frame"], size=facts["size"]))
            run.digests[facts["frame"]] = facts["digest"]
            run.damaged |= {facts["frame"]} if facts["damaged"] else set()
        run.gap = facts.get("gap", run.gap)
    return list(known.values())


# --- what is on the disk ------------------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Animation:
    path: Path
    said: Identity | None
    pictures: int
    """-1: ffmpeg does not decode it without a complaint."""


def look_at(path: Path, ffmpeg: str) -> Animation:
    content = digest(path)
    if content not in _SEEN:
        command = [ffmpeg, "-v", "error", "-xerror", "-i", str(path), "-map", "0:v", "-f", "framecrc", "-"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        pictures = -1 if done.returncode or done.stderr else sum(not line.startswith(b"#") for line in done.stdout.splitlines())
        _SEEN[content] = (read_identity(tags.read(path, ffmpeg=ffmpeg)), pictures)
    said, pictures = _SEEN[content]
    return Animation(path=path, said=said, pictures=pictures)


_SEEN: dict[str, tuple[Identity | None, int]] = {}
"""By the digest of the file: equal animations are decoded once."""


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Verdict:
    """Holds the disk against the ledger; `wrong` is what does not fit, in sentences."""

    def __init__(self, home: Path, runs: list[Known], ffmpeg: str) -> None:
        self.wrong: list[str] = []
        self.home = home
        self._animations: dict[str, list[Animation]] = {}
        self._trash: dict[str, list[tuple[Manifest, set[str]]]] = {place: list(self._manifests(home / place)) for place in PLACES}
        names = {run.name: run for run in runs}
        for place in PLACES:
            out = home / place / "animation"
            for path in sorted(out.iterdir()) if out.is_dir() else ():
                stem = re.sub(r"(-incomplete)?(-\d+)?$", "", path.stem)
                if path.name.startswith("."):
                    self.wrong.append(f"{place}: {path.name} was left over")
                elif stem not in names:
                    self.wrong.append(f"{place}: {path.name} is the animation of no run")
                else:
                    self._animations.setdefault(stem, []).append(look_at(path, ffmpeg))
        for run in runs:
            self._judge(run)
        self._leftovers()

    def _manifests(self, watched: Path) -> Iterator[tuple[Manifest, set[str]]]:
        for place in (watched / ".stepwatch" / "trash").glob("*"):
            names = {path.name for path in place.iterdir()} - {MANIFEST}
            if not (place / MANIFEST).exists():
                self.wrong.append(f"{watched.name}: trash folder {place.name} has no manifest, and holds {sorted(names)}")
                continue
            manifest = parse_manifest((place / MANIFEST).read_bytes(), place.name)
            told = {file.name: file for file in manifest.files}
            if not manifest.finished:
                self.wrong.append(f"{watched.name}: the clearing of {manifest.name} is not finished")
            for name in names:
                if name not in told or digest(place / name) != told[name].digest:
                    self.wrong.append(f"{watched.name}: {name} in the trash of {manifest.name} is not what its manifest says")
            yield manifest, names

    def _judge(self, run: Known) -> None:
        animations = self._animations.get(run.name, [])
        generations = run.generations()
        covered: set[str] = set()
        for one in animations:
            frames = generations.get(one.said.generation) if one.said else None
            if frames is None:
                self._complain(run, f"{one.path.name} is of no generation that it ever had")
            elif one.pictures != len([frame for frame in frames if frame.name not in run.damaged]):
                self._complain(run, f"{one.path.name} has {one.pictures} pictures of {len(frames)} frames")
            else:
                covered |= {frame.name for frame in frames}
        twice = [mark for mark, count in Counter(one.said.generation for one in animations if one.said).items() if count > 1]
        if twice:
            self._complain(run, f"it has two animations of the same frames: {[one.path.name for one in animations]}")
        self._judge_animations(run, animations)
        self._judge_frames(run, covered)

    def _judge_animations(self, run: Known, animations: list[Animation]) -> None:
        names = [one.path.name for one in animations]
        marks = {one.said.generation for one in animations if one.said}
        strict = run.kind in (*WHOLE, *INCOMPLETE) or (run.kind == "numbered" and run.gap < SETTLE / 2)
        if strict and (names != [f"{run.name}-incomplete.mp4" if run.kind in INCOMPLETE else f"{run.name}.mp4"] or marks != {run.everything}):
            self._complain(run, f"it should have one animation of all its frames, and has {names or 'none'}")
        elif not names:
            self._complain(run, "it has no animation")

    def _judge_frames(self, run: Known, covered: set[str]) -> None:
        held = Counter(
            file.name
            for manifest, names in self._trash[run.place]
            if manifest.kind == "frames" and manifest.source == str(run.folder)
            for file in manifest.files
            if file.name in names and run.digests.get(file.name) == file.digest
        )
        for name, known in run.digests.items():
            path = run.folder / name
            here = path.exists()
            if here and digest(path) != known:
                self._complain(run, f"{name} has changed")
            if here + held[name] > 1:
                self._complain(run, f"{name} is there {here + held[name]} times")
            if not here and not held[name] and not (run.place in FORGETFUL and name in covered):
                self._complain(run, f"{name} is LOST")
            if not here and (run.place == "keep" or run.kind in ("damaged", "holes", "abandoned")):
                self._complain(run, f"{name} has been cleared, which nothing allows")
            if here and run.place != "keep" and run.kind in CLEARED:
                self._complain(run, f"{name} has not been cleared")

    def _leftovers(self) -> None:
        held = sorted(manifest.name for manifest, _ in self._trash["brief"])
        if held:
            self.wrong.append(f"brief: the trash still holds {', '.join(held)}")
        for path in sorted(self.home.rglob("*")):
            if ".tmp" in path.name or path.name.endswith(".part"):
                self.wrong.append(f"{path.relative_to(self.home)} was left over")

    def _complain(self, run: Known, sentence: str) -> None:
        self.wrong.append(f"{run.place}: {run.name}: {sentence}")


# --- the torture --------------------------------------------------------------------------------------------------------------------------


def configure(daemon: Daemon, home: Path) -> None:
    policy = {
        "detect": {"settle": f"{SETTLE * 1000:.0f}ms", "stall": f"{STALL * 1000:.0f}ms"},
        "timeline": {"duration": "1s", "fps": 30, "hold_last": "0s", "interpolation": "none"},
        "outputs": [{"codec": "h264", "name": "{run}", "quality": "small"}],
    }
    entries = [{"path": str(home / place), "policy": {"cleanup": cleanup}} for place, cleanup in PLACES.items()]
    for place in PLACES:
        (home / place / "numbered").mkdir(parents=True)
        (home / place / "numbered" / "stepwatch.yaml").write_text(f"version: 1\nframes:\n  pattern: '{PATTERN}'\n", encoding="utf-8")
    # Every kill costs some run an attempt that is none of its fault.
    settings = {"min_free_space": 0, "workers": 2, "max_attempts": 1000}
    daemon.service_file.write_text(json.dumps({"version": 1, "watch": entries, "policy": policy, "daemon": settings}), encoding="utf-8")
    daemon.service_file.chmod(0o600)


def kill_again_and_again(daemon: Daemon, kills: int, chance: random.Random, say: Callable[[str], None]) -> None:
    for number in range(1, kills + 1):
        daemon.start(wait=False)
        assert daemon.process is not None
        # Half a second is what a start takes; most of the work is seen by those that live for some.
        pause = chance.uniform(0.0, 0.8) if chance.random() < 0.3 else chance.uniform(0.5, 3.0)
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = daemon.process.wait(pause)
            raise AssertionError(f"the daemon has ended by itself, with code {code}:\n{daemon.log[-3000:]}")
        daemon.end(signal.SIGKILL)
        if number % 10 == 0:
            say(f"killed {number} times")


def bring_to_rest(daemon: Daemon, say: Callable[[str], None]) -> list[str]:
    """Let the daemon finish; what it says that it could not do. Who waits for a next try after many kills is told to go on."""
    for run in json.loads(daemon.run("runs", "list", "--json").stdout)["runs"]:
        if run["attempts"] > 1:
            say(f"{run['name']}: {run['attempts']} attempts have been killed, the next is asked for")
            daemon.run("runs", "retry", run["dir"] if not run["group"] else run["name"])
    code = daemon.once(timeout=900)
    return [f"watch --once ends with {code}"] if code else []


def what_it_says(daemon: Daemon) -> list[str]:
    """What the daemon says of its runs that it should not."""
    runs: list[dict[str, Any]] = json.loads(daemon.run("runs", "list", "--json").stdout)["runs"]
    wrong = [f"{run['name']} is {run['phase']}: {run['reason']}" for run in runs if run["phase"] not in ("rendered", "cleared")]
    wrong += [f"{run['name']} is at its attempt {run['attempts']}" for run in runs if run["attempts"]]
    with contextlib.closing(sqlite3.connect(daemon.state / "receipts.db")) as receipts:
        checked = receipts.execute("PRAGMA integrity_check").fetchone()[0]
    return wrong if checked == "ok" else [*wrong, f"the receipts are damaged: {checked}"]


def everything(home: Path) -> dict[str, tuple[str, int]]:
    kept = [path for path in home.rglob("*") if path.is_file() and path.name not in ("cookie", "id")]
    return {str(path): (digest(path), path.stat().st_mtime_ns) for path in kept}


def torture(seed: int, kills: int, runs: int, home: Path, say: Callable[[str], None]) -> list[str]:
    """Do it all; what was wrong, in sentences."""
    daemon = Daemon(home / "daemon", home / "watched")
    watched = home / "watched"
    configure(daemon, watched)
    ledger = home / "ledger.jsonl"
    command = [sys.executable, __file__, "--seed", str(seed), "--runs", str(runs), "--home", str(home), "--write"]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as hosts:
        try:
            kill_again_and_again(daemon, kills, random.Random(seed + 1), say)
            say("the last runs are written")
            hosts.wait(600)
        finally:
            hosts.kill()
    if hosts.returncode:
        return [f"the hosts end with {hosts.returncode}"]
    say("the daemon brings everything to rest")
    wrong = bring_to_rest(daemon, say)
    # The last that were cleared are still to leave the trash that keeps them for seconds; a daemon looks there when it starts.
    time.sleep(GRACE)
    daemon.once()
    wrong += what_it_says(daemon)
    known = read_ledger(ledger)
    say(f"{len(known)} runs and {sum(len(run.frames) for run in known)} frames are accounted for")
    wrong += Verdict(watched, known, find_ffmpeg()).wrong
    before = everything(watched)
    daemon.environment["STEPWATCH_FFMPEG"] = "/nowhere/ffmpeg"
    if daemon.once() or everything(watched) != before:
        wrong.append("a second pass over what was finished has changed something, or wanted to")
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description="Kill the daemon again and again while hosts write runs, and account for every frame.")
    parser.add_argument("--seed", type=int, default=None, help="of what is written and of the instants of the kills (default: another each time)")
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--runs", type=int, default=None, help="default: as many as there is time for")
    parser.add_argument("--home", type=Path, default=None, help="an empty folder to work in, which stays (default: a temporary one)")
    parser.add_argument("--write", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    seed = given.seed if given.seed is not None else random.SystemRandom().randrange(10**6)
    runs = given.runs or max(len(KINDS), given.kills)
    if given.write:
        write_runs(given.home / "watched", given.home / "ledger.jsonl", seed, runs)
        return 0
    home = given.home or Path(tempfile.mkdtemp(prefix="torture-"))
    began = time.monotonic()

    def say(sentence: str) -> None:
        print(f"{time.monotonic() - began:6.1f} s  {sentence}", flush=True)  # noqa: T201  # a command of its own

    say(f"seed {seed}, {given.kills} kills, {runs} runs, in {home}")
    wrong = torture(seed, given.kills, runs, home, say)
    for sentence in wrong:
        say(f"WRONG: {sentence}")
    say(f"seed {seed}: {len(wrong)} things are wrong" if wrong else f"seed {seed}: nothing is wrong")
    if not wrong and given.home is None:
        shutil.rmtree(home)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
