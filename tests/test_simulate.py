"""A simulated hook writes exactly as HOSTS section 6 asks of a real one, whatever the recording looks like."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stepwatch import simulate, store, system
from stepwatch.core.lifecycle import WriterState
from stepwatch.core.model import Outcome, Run, Writer
from stepwatch.core.sidecar import parse_sidecar
from stepwatch.errors import EnvironmentFault, NoFramesError, StepwatchError, UsageError
from tests.conftest import MakeFrame, MakeRun

ROOT = Path(__file__).parent.parent


def at_once(_seconds: float) -> None:
    """Time that does not pass."""


def played(recorded: Path, into: Path, **how: Any) -> Path:
    """Play a run without waiting."""
    given: dict[str, Any] = {"cadence": 0.5, "wait": at_once} | how
    return simulate.play(recorded, into, **given)


def the_run(folder: Path) -> Run:
    """The only run in a folder, as stepwatch reads it."""
    (run,) = store.find_runs(folder, pattern_for=lambda _: None, exclude=lambda _: False)
    return run


def said(folder: Path) -> dict[str, Any]:
    """What run.json says."""
    facts: dict[str, Any] = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    return facts


# --- the protocol


def test_a_whole_run_arrives_with_its_bytes_unchanged(make_run: MakeRun, tmp_path: Path) -> None:
    """Every frame, the generation data and a complete sidecar without a flaw; no temporary file stays."""
    recorded = make_run(steps=6)
    folder = played(recorded, tmp_path / "into")
    names = [f"{index:05d}.png" for index in range(6)]
    assert sorted(os.listdir(folder)) == [*names, "run.json"]
    assert [(folder / name).read_bytes() for name in names] == [(recorded / name).read_bytes() for name in names]
    sidecar, complaints = parse_sidecar((folder / "run.json").read_bytes())
    assert sidecar is not None
    assert complaints == ()
    assert (sidecar.run_id, sidecar.state, sidecar.frame_count, sidecar.frames_planned) == (folder.name, Outcome.COMPLETE, 6, 6)
    assert (sidecar.width, sidecar.height, sidecar.generation["seed"]) == (32, 24, 4242)
    assert the_run(folder).notes == ()


def test_each_run_has_a_name_of_its_own(make_run: MakeRun, tmp_path: Path) -> None:
    """Date, time and six digits, as hooks make them, and never twice the same."""
    recorded = make_run(steps=2)
    folders = [played(recorded, tmp_path / "into") for _ in range(3)]
    assert len(set(folders)) == 3
    for folder in folders:
        assert folder.parent == tmp_path / "into"
        assert re.fullmatch(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}", folder.name)


def test_the_sidecar_with_promise_and_writer_is_there_before_the_first_frame(make_run: MakeRun, tmp_path: Path) -> None:
    """It says running, what is promised, and which process on which boot of which machine writes."""
    seen: list[tuple[list[str], dict[str, Any]]] = []

    def wait(_: float) -> None:
        (folder,) = (tmp_path / "into").iterdir()
        seen.append((sorted(os.listdir(folder)), said(folder)))

    played(make_run(steps=3), tmp_path / "into", wait=wait)
    names, facts = seen[0]
    assert names == ["run.json"]
    assert (facts["state"], facts["ended"], facts["frames"]["planned"], facts["frames"]["count"]) == ("running", None, 3, 0)
    assert (facts["steps"]["planned"], facts["frames"]["width"], facts["frames"]["height"]) == (3, 32, 24)
    writer = facts["writer"]
    assert writer["pid"] == os.getpid()
    if sys.platform.startswith("linux"):
        fields = {key: writer[key] for key in ("host", "boot_id", "pid", "start_time")}
        assert system.writer_state(Writer(**fields)) is WriterState.ALIVE
    assert [names for names, _ in seen] == [[*(f"{index:05d}.png" for index in range(count)), "run.json"] for count in range(3)]
    assert all(facts["state"] == "running" for _, facts in seen)


def test_files_get_their_names_only_when_they_are_whole(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is written under a hidden temporary name in the same folder, and renamed when it is closed; the last one is the final sidecar."""
    moves: list[tuple[str, str, bytes]] = []
    replace = os.replace

    def watched(source: Path, target: Path) -> None:
        assert not os.path.lexists(target) or target.name == "run.json"
        moves.append((source.name, target.name, source.read_bytes()))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    recorded = make_run(steps=3)
    played(recorded, tmp_path / "into")
    assert all(source == f".{target}.{os.getpid()}.tmp" for source, target, _ in moves)
    frames = [(target, data) for _, target, data in moves if target != "run.json"]
    assert frames == [(f"{index:05d}.png", (recorded / f"{index:05d}.png").read_bytes()) for index in range(3)]
    assert (moves[0][1], moves[-1][1]) == ("run.json", "run.json")
    assert json.loads(moves[-1][2])["state"] == "complete"


def test_the_final_state_is_synced_behind_the_last_frame(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever sees the final state sees all frames: that one file is synced before it gets its name, and its folder after that."""
    events: list[str] = []
    fsync, replace, fsync_folder = os.fsync, os.replace, system.fsync_folder

    def synced(descriptor: int) -> None:
        events.append("fsync")
        fsync(descriptor)

    def renamed(source: Path, target: Path) -> None:
        events.append(f"rename {target.name}")
        replace(source, target)

    def folder_synced(folder: Path) -> bool:
        events.append("folder")
        monkeypatch.setattr(os, "fsync", fsync)
        return fsync_folder(folder)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(system, "fsync_folder", folder_synced)
    played(make_run(steps=2), tmp_path / "into")
    assert events == ["rename run.json", "rename 00000.png", "rename 00001.png", "fsync", "rename run.json", "folder"]


@pytest.mark.parametrize(("cadence", "beats"), [(0.25, 3), (1.0, 12), (3.0, 12)])
def test_heartbeats_come_with_frames_and_at_most_once_a_second(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cadence: float, beats: int
) -> None:
    """A fast run rewrites its sidecar once a second, a slow one with each frame."""
    now = 100.0
    counts: list[int] = []

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    def on_frame(_played: int, _total: int) -> None:
        (folder,) = (tmp_path / "into").iterdir()
        counts.append(said(folder)["frames"]["count"])

    monkeypatch.setattr(simulate, "monotonic", lambda: now)
    simulate.play(make_run(steps=12), tmp_path / "into", cadence=cadence, wait=wait, on_frame=on_frame)
    assert len(set(counts) - {0}) == beats
    assert counts == sorted(counts)


def test_the_workflow_travels_and_places_beside_the_recording_do_not(make_run: MakeRun, tmp_path: Path) -> None:
    """workflow.json is copied before the first frame; the finished picture of the recording is not this run's."""
    facts = {"workflow_file": "flow.json", "final": {"path": "../00042.png"}, "group_id": "job", "stepwatch": {"timeline": {"duration": "3s"}}}
    recorded = make_run(steps=2, sidecar=facts)
    (recorded / "flow.json").write_text('{"prompt": {}, "workflow": {}}')
    folder = played(recorded, tmp_path / "into")
    assert (folder / "workflow.json").read_bytes() == (recorded / "flow.json").read_bytes()
    now = said(folder)
    assert (now["workflow_file"], now["final"], now["group_id"]) == ("workflow.json", None, None)
    assert now["stepwatch"] == {"timeline": {"duration": "3s"}}


# --- how it ends


@pytest.mark.parametrize("state", ["complete", "interrupted", "failed"])
def test_the_end_is_what_was_asked_for(make_run: MakeRun, tmp_path: Path, state: Any) -> None:
    """The sidecar says it, when, and for a failure why."""
    facts = said(played(make_run(steps=2), tmp_path / "into", state=state))
    assert facts["state"] == state
    assert datetime.fromisoformat(facts["created"]) <= datetime.fromisoformat(facts["ended"])
    assert (facts["error"] is not None) == (state == "failed")


def test_a_writer_that_dies_leaves_a_sidecar_that_says_running(make_run: MakeRun, tmp_path: Path) -> None:
    """No end, no last word: the frames stand there, and the promise stays open."""
    folder = played(make_run(steps=4), tmp_path / "into", state="running", stop_after=3)
    facts = said(folder)
    assert (facts["state"], facts["ended"], facts["frames"]["planned"]) == ("running", None, 4)
    assert len(the_run(folder).frames) == 3


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells when a process was started")
def test_a_killed_writer_is_known_to_be_dead(make_run: MakeRun, tmp_path: Path) -> None:
    """kill -9 in the middle of a run: running, and a writer that no longer lives."""
    code = (
        "import sys; from pathlib import Path; from stepwatch import simulate\n"
        "simulate.play(Path(sys.argv[1]), Path(sys.argv[2]), cadence=0.01, wait=lambda _: None if not done else sys.stdin.read(), on_frame=tell)\n"
    )
    tell = "done = []\ndef tell(n, total):\n    if n == 3:\n        done.append(n); print('3', flush=True)\n"
    arguments = [sys.executable, "-c", tell + code, str(make_run(steps=6)), str(tmp_path / "into")]
    with subprocess.Popen(arguments, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"3\n"
        (folder,) = (tmp_path / "into").iterdir()
        told = {key: said(folder)["writer"][key] for key in ("host", "boot_id", "pid", "start_time")}
        assert system.writer_state(Writer(**told)) is WriterState.ALIVE
        process.send_signal(signal.SIGKILL)
    assert system.writer_state(Writer(**told)) is WriterState.DEAD
    assert said(folder)["state"] == "running"
    assert len(the_run(folder).frames) == 3


def test_a_run_can_stop_early(make_run: MakeRun, tmp_path: Path) -> None:
    """As many frames as were asked for; the promise is what the recording promised, as a sampler's that needed fewer steps."""
    told: list[tuple[int, int]] = []
    facts = said(played(make_run(steps=6), tmp_path / "into", stop_after=2, on_frame=lambda *frame: told.append(frame)))
    assert (facts["state"], facts["frames"]["count"], facts["frames"]["planned"], facts["steps"]["done"]) == ("complete", 2, 6, 2)
    assert told == [(1, 2), (2, 2)]


@pytest.mark.parametrize("state", ["complete", "running"])
def test_ctrl_c_is_an_interrupted_host(make_run: MakeRun, tmp_path: Path, state: Any) -> None:
    """Once the event is set no frame follows, and the sidecar says interrupted."""
    stop = threading.Event()
    folder = played(make_run(steps=5), tmp_path / "into", stop=stop, state=state, on_frame=lambda count, _: stop.set() if count == 2 else None)
    facts = said(folder)
    assert (facts["state"], facts["frames"]["count"]) == ("interrupted", 2)
    assert facts["ended"]


def test_the_event_ends_a_wait(make_run: MakeRun, tmp_path: Path) -> None:
    """A cadence of an hour does not keep Ctrl-C waiting."""
    stop = threading.Event()
    stop.set()
    folder = simulate.play(make_run(steps=2), tmp_path / "into", cadence=3600, stop=stop)
    assert said(folder)["state"] == "interrupted"


def test_careless_writers_let_frames_grow_under_their_names(make_run: MakeRun, tmp_path: Path) -> None:
    """Whoever looks between two pieces sees a part of the frame; in the end it is whole."""
    recorded = make_run(steps=2)
    whole = (recorded / "00000.png").read_bytes()
    sizes: list[int] = []

    def wait(_: float) -> None:
        (folder,) = (tmp_path / "into").iterdir()
        first = folder / "00000.png"
        sizes.append(first.stat().st_size if first.exists() else -1)

    folder = played(recorded, tmp_path / "into", atomic=False, wait=wait)
    assert sizes[0] == -1
    assert 0 < sizes[1] < sizes[2] < len(whole)
    assert (folder / "00000.png").read_bytes() == whole
    assert said(folder)["state"] == "complete"


# --- recordings of all kinds


def rename_frames(folder: Path, names: list[str]) -> None:
    for old, new in zip(sorted(folder.glob("*.png")), names, strict=True):
        old.rename(folder / new)


@pytest.mark.parametrize(
    ("names", "steps", "told"),
    [
        (["0001.png", "0002.png", "0003.png"], [1, 2, 3], "{index:05d}.png"),
        (["0000.png", "0001.png", "0002.png"], [1, 2, 3], "{index:05d}.png"),
        (["a_5.png", "a_10.png", "a_15.png"], [5, 10, 15], "{index:05d}.png"),
        (["0003.png", "0004.png", "0007.png"], [3, 4, 7], "{index:05d}.png"),
        (["0102000-4242-a cat.png", "0102001-4242-a cat.png", "0102002-4242-a cat.png"], [1, 2, 3], "{index:05d}.png"),
        (["x_20261122.png", "x_20270101.png", "x_20270105.png"], [1, 2, 3], "{index:05d}.png"),
        (["1.png", "2.bmp", "3.png"], [1, 2, 3], None),
    ],
)
def test_runs_without_a_sidecar_keep_their_steps(make_frame: MakeFrame, tmp_path: Path, names: list[str], steps: list[int], told: str | None) -> None:
    """Any layout that is understood by guessing is played with a sidecar that tells the same steps; time stamps are counted instead."""
    recorded = tmp_path / "recorded"
    for number, name in enumerate(names, start=1):
        make_frame(recorded / name, step=number)
    before = the_run(recorded)
    folder = played(recorded, tmp_path / "into")
    after = the_run(folder)
    assert after.sidecar is not None
    assert [frame.step for frame in after.frames] == steps
    assert after.sidecar.frame_name == told
    if "2026" not in names[0]:
        assert after.missing == before.missing
        assert [frame.step for frame in before.frames] == steps
    assert [(folder / frame.name).read_bytes() for frame in after.frames] == [(recorded / frame.name).read_bytes() for frame in before.frames]
    facts = said(folder)
    assert facts["generation"] == ({"seed": 4242, "prompt": "a cat"} if "4242" in names[0] else {})
    assert (facts["frames"]["width"], facts["frames"]["height"]) == (32, 24)


def test_holes_of_the_recording_are_recorded_as_lost(make_run: MakeRun, tmp_path: Path) -> None:
    """A missing frame keeps its index unused, and is named, as by a hook that could not write it."""
    recorded = make_run(steps=6, sidecar={"steps": {"planned": 12, "done": 12, "every": 2, "skip": 1}})
    (recorded / "00002.png").unlink()
    folder = played(recorded, tmp_path / "into")
    assert said(folder)["frames"]["lost"] == [2]
    assert said(folder)["frames"]["count"] == 5
    after = the_run(folder)
    assert [frame.step for frame in after.frames] == [2, 4, 8, 10, 12]
    assert after.missing == (6,)


def test_what_cannot_be_read_is_lost_and_the_run_goes_on(make_run: MakeRun, tmp_path: Path) -> None:
    """A pipe in a frame's place is not waited for; a link to a frame is played as the frame."""
    recorded = make_run(steps=4)
    os.replace(recorded / "00000.png", tmp_path / "elsewhere.png")
    (recorded / "00000.png").symlink_to(tmp_path / "elsewhere.png")
    (recorded / "00002.png").unlink()
    os.mkfifo(recorded / "00002.png")
    folder = played(recorded, tmp_path / "into")
    assert said(folder)["frames"]["lost"] == [2]
    assert (folder / "00000.png").read_bytes() == (tmp_path / "elsewhere.png").read_bytes()
    assert not (folder / "00000.png").is_symlink()
    assert sorted(path.name for path in folder.glob("*.png")) == ["00000.png", "00001.png", "00003.png"]


def test_the_sample_and_a_recording_that_was_cut_short_can_be_played_again(tmp_path: Path) -> None:
    """What was played can be played: the second time is like the first."""
    (sample,) = (path for path in (ROOT / "stepwatch" / "data" / "sample").iterdir() if path.is_dir())
    first = played(sample, tmp_path / "one", stop_after=4, state="running")
    second = played(first, tmp_path / "two")
    facts = said(second)
    assert (facts["state"], facts["frames"]["count"], facts["frames"]["planned"]) == ("complete", 4, 30)
    assert facts["generation"] == said(sample)["generation"]
    assert facts["infotext"] == said(sample)["infotext"]
    assert len(the_run(second).frames) == 4


def test_one_of_several_runs_is_chosen_by_its_name(make_run: MakeRun, make_frame: MakeFrame, tmp_path: Path) -> None:
    """Folders below by their path, runs of a flat folder by their name behind it; else nobody guesses which was meant."""
    flat = tmp_path / "flat"
    for run in "ab":
        for step in (1, 2):
            make_frame(flat / f"shot{run}_{step:04d}.png", step=step + 10 * (run == "b"))
    with pytest.raises(UsageError, match="holds 2 runs") as caught:
        played(flat, tmp_path / "into")
    assert f"{flat}{os.sep}" in caught.value.hint
    chosen = caught.value.hint.rpartition(", ")[2]
    folder = played(Path(chosen), tmp_path / "into")
    assert (folder / "00000.png").read_bytes() == (flat / "shotb_0001.png").read_bytes()
    nested = tmp_path / "nested"
    make_run(nested / "one", steps=2)
    make_run(nested / "two", steps=2)
    with pytest.raises(UsageError, match="holds 2 runs") as caught:
        played(nested, tmp_path / "into")
    assert str(nested / "two") in caught.value.hint


@settings(max_examples=40)
@given(st.sets(st.integers(1, 60), min_size=1, max_size=12), st.booleans())
def test_any_steps_are_played_as_they_are_or_counted(steps: set[int], atomic: bool) -> None:  # noqa: FBT001  # Hypothesis calls by position
    """Whatever the numbers: the same frames in the same order, nothing to complain of, and no step beyond the recording's last."""
    with tempfile.TemporaryDirectory() as place:
        recorded = Path(place, "recorded")
        recorded.mkdir()
        for step in steps:
            (recorded / f"{step}.png").write_bytes(b"frame %d" % step)
        folder = played(recorded, Path(place, "into"), atomic=atomic)
        run = the_run(folder)
        assert [(folder / frame.name).read_bytes() for frame in run.frames] == [b"frame %d" % step for step in sorted(steps)]
        assert run.frames[-1].step <= max(steps)
        assert set(run.missing) >= {run.frames[0].step + index * said(folder)["steps"]["every"] for index in said(folder)["frames"]["lost"]}
        assert parse_sidecar((folder / "run.json").read_bytes())[1] == ()


# --- its pace


def waits(recorded: Path, into: Path, **how: Any) -> list[float]:
    """The seconds between the frames, rounded."""
    slept: list[float] = []
    simulate.play(recorded, into, wait=slept.append, **how)
    return [round(seconds, 3) for seconds in slept]


def set_times(recorded: Path, seconds: list[float]) -> None:
    for path, second in zip(sorted(recorded.glob("*.png")), seconds, strict=True):
        os.utime(path, ns=(10**18, 10**18 + int(second * 10**9)))


def test_frames_come_as_they_were_recorded(make_run: MakeRun, tmp_path: Path) -> None:
    """By their own times where those fit; a pause overnight is cut; the first one after a usual gap."""
    recorded = make_run(steps=5, sidecar=None)
    set_times(recorded, [0, 2, 4, 40_000, 40_002.5])
    assert waits(recorded, tmp_path / "into") == [2.25, 2, 2, 60, 2.5]


@pytest.mark.parametrize("times", [[0, 0, 0, 0], [3, 2, 1, 0], [0, 0.001, 0.002, 0.003], [0, 100, 200, 300]])
def test_a_copy_is_played_at_the_pace_that_its_sidecar_tells(make_run: MakeRun, tmp_path: Path, times: list[float]) -> None:
    """Times that a copy made up say nothing; the sidecar's begin and end do."""
    facts = {"created": "2026-11-22T16:00:00.000Z", "ended": "2026-11-22T16:00:06.000Z"}
    recorded = make_run(steps=4, sidecar=facts)
    set_times(recorded, times)
    assert waits(recorded, tmp_path / "into") == [1.5] * 4


@pytest.mark.parametrize("facts", [None, {"ended": "2026-11-22T16:17:28.000Z"}, {"created": "2026-02-31T00:00:00Z"}, {"created": None}])
def test_where_nothing_tells_the_pace_it_is_a_usual_one(make_run: MakeRun, tmp_path: Path, facts: dict[str, Any] | None) -> None:
    """Five frames a second; and whatever the pace, a speed divides it."""
    recorded = make_run(steps=3, sidecar=facts)
    set_times(recorded, [0, 0, 0])
    assert waits(recorded, tmp_path / "into", speed=2) == [0.1] * 3
    assert waits(recorded, tmp_path / "into", cadence=3, speed=2) == [1.5] * 3
    assert waits(recorded, tmp_path / "into", cadence=0) == [0] * 3


def test_careless_writing_takes_no_longer(make_run: MakeRun, tmp_path: Path) -> None:
    """The pauses between the pieces are part of the cadence."""
    slept = waits(make_run(steps=3), tmp_path / "into", cadence=2, atomic=False)
    assert sum(slept) == pytest.approx(6)


# --- what cannot be


@pytest.mark.parametrize(
    ("arrange", "kind", "words"),
    [
        (lambda place: place / "nothing", NoFramesError, "does not exist"),
        (lambda place: (place / "empty").mkdir() or place / "empty", NoFramesError, "there is no run in"),
        (lambda place: (place / "file").touch() or place / "file", NoFramesError, "is not a folder"),
    ],
)
def test_a_folder_without_a_run_is_said_to_be_one(tmp_path: Path, arrange: Callable[[Path], Path], kind: type[StepwatchError], words: str) -> None:
    """One sentence, the exit code of missing frames, and nothing is written."""
    with pytest.raises(kind, match=words):
        played(arrange(tmp_path), tmp_path / "into")
    assert not (tmp_path / "into").exists()


@pytest.mark.parametrize(
    "how",
    [{"stop_after": 0}, {"cadence": -1.0}, {"cadence": float("nan")}, {"speed": 0.0}, {"speed": float("inf")}, {"run_id": "../x"}, {"run_id": ".x"}],
)
def test_impossible_wishes_are_refused_before_anything_is_written(make_run: MakeRun, tmp_path: Path, how: dict[str, Any]) -> None:
    """As mistakes of the command line."""
    with pytest.raises(UsageError):
        played(make_run(steps=2), tmp_path / "into", **how)
    assert not (tmp_path / "into").exists()


def test_a_given_name_is_used_once(make_run: MakeRun, tmp_path: Path) -> None:
    """A folder that is there already is nobody's to write into."""
    recorded = make_run(steps=2)
    assert played(recorded, tmp_path / "into", run_id="mine").name == "mine"
    with pytest.raises(UsageError, match="is there already"):
        played(recorded, tmp_path / "into", run_id="mine")


def test_a_place_that_cannot_be_written_is_the_machines_fault(make_run: MakeRun, tmp_path: Path) -> None:
    """A file in the folder's place: one sentence that names it."""
    (tmp_path / "into").touch()
    for into in (tmp_path / "into", tmp_path / "into" / "below"):
        with pytest.raises(EnvironmentFault, match="cannot play a run into"):
            played(make_run(steps=2), into)


def test_a_target_that_goes_away_meanwhile_is_the_machines_fault(make_run: MakeRun, tmp_path: Path) -> None:
    """Nothing but a sentence, also when the last word cannot be written either."""
    with pytest.raises(EnvironmentFault, match="cannot play a run into"):
        played(make_run(steps=3), tmp_path / "into", on_frame=lambda *_: shutil.rmtree(tmp_path / "into"))


def test_a_disk_that_fills_up_ends_the_recording_as_failed(make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a hook does: the sidecar says why, if that much can still be written; what was written stays, no temporary does."""
    replace = os.replace

    def full(source: Path, target: Path) -> None:
        if target.name == "00002.png":
            raise OSError(28, os.strerror(28), str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(EnvironmentFault, match="no space left"):
        played(make_run(steps=4), tmp_path / "into")
    (folder,) = (tmp_path / "into").iterdir()
    assert sorted(os.listdir(folder)) == ["00000.png", "00001.png", "run.json"]
    facts = said(folder)
    assert (facts["state"], facts["error"]["type"], facts["frames"]["count"]) == ("failed", "OSError", 2)


@pytest.mark.parametrize(("error", "state"), [(KeyboardInterrupt, "interrupted"), (ValueError, "failed")])
def test_what_breaks_the_player_is_in_the_sidecar_too(make_run: MakeRun, tmp_path: Path, error: type[BaseException], state: str) -> None:
    """An exception unwinds as through a host: the sidecar tells of it, and it goes on."""

    def on_frame(_played: int, _total: int) -> None:
        raise error

    with pytest.raises(error):
        played(make_run(steps=3), tmp_path / "into", on_frame=on_frame)
    (folder,) = (tmp_path / "into").iterdir()
    assert said(folder)["state"] == state
