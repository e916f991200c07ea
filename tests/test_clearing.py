"""Clearing by hand, from outside: which frames go where, which stay and why, and how they come back."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from stepwatch import cli
from stepwatch.errors import EnvironmentFault
from stepwatch.ledger import Ledger
from tests.conftest import MakeRun, write_frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.out)
        return found

    @property
    def run(self) -> dict[str, Any]:
        (one,) = self.json["runs"]
        assert isinstance(one, dict)
        return one


class Stepwatch(Protocol):
    def __call__(self, *arguments: str | Path) -> Ended: ...


@pytest.fixture
def stepwatch(capsys: pytest.CaptureFixture[str]) -> Stepwatch:
    """Run the whole command line in this process, with receipts of its own."""

    def run(*arguments: str | Path) -> Ended:
        capsys.readouterr()
        code = cli.run([str(argument) for argument in arguments])
        said = capsys.readouterr()
        assert "Traceback" not in said.err, said.err
        return Ended(code=code, out=said.out, err=said.err)

    return run


@pytest.fixture
def watched(tmp_path: Path) -> Path:
    """A watched folder: what its policy says, and that its runs go with their frames, is the folder's own business."""
    folder = tmp_path / "watched"
    folder.mkdir()
    policy(folder)
    return folder


def policy(folder: Path, **more: object) -> None:
    """Write the stepwatch.yaml of *folder*: the quick policy, and *more* sections."""
    quick: dict[str, object] = {
        "timeline": {"duration": "1s", "hold_last": "0s", "fps": 10},
        "outputs": [{"codec": "h264", "quality": "small", "name": "{run}"}],
    }
    (folder / "stepwatch.yaml").write_text(json.dumps(quick | more), encoding="utf-8")


def digests(folder: Path) -> dict[str, str]:
    """The frames below *folder*, wherever they are, by their names."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.png")}


def frames_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.png"))


def trash(watched: Path) -> list[Path]:
    """The trash folders, oldest first."""
    place = watched / ".stepwatch" / "trash"
    return sorted(place.iterdir(), key=lambda path: path.stat().st_mtime_ns) if place.is_dir() else []


def manifest(place: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = json.loads((place / "manifest.json").read_bytes())
    return found


ALL = [f"{index:05d}.png" for index in range(6)]


# -- trash, delete, keep


def test_trash_moves_the_frames_and_restore_brings_them_back(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """--trash: covered frames, then sidecar and empty folder, go to <watched>/.stepwatch/trash/<generation>; `runs restore` undoes all of it."""
    run = make_run(watched / "r1")
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    done = stepwatch("render", run, "--trash", "--json")
    assert (done.code, done.run["phase"], done.run["cleared"]) == (0, "cleared", 6)
    assert not run.exists()
    (place,) = trash(watched)
    told = manifest(place)
    assert (told["run_id"], told["source"], told["generation"], told["finished"]) == ("r1", str(run), place.name, True)
    assert {path.name: path.read_bytes() for path in place.iterdir() if path.name != "manifest.json"} == before
    (listed,) = stepwatch("runs", "list", "--json").json["runs"]
    assert (listed["name"], listed["phase"], listed["outputs"]) == ("r1", "cleared", [str(watched / "animation" / "r1.mp4")])

    restored = stepwatch("runs", "restore", "r1")
    assert (restored.code, restored.out) == (0, f"{run}\n")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before
    assert trash(watched) == []
    assert stepwatch("runs", "restore", "r1").code == 2
    # They are the frames that the animation contains, so there is nothing to render.
    again = stepwatch("render", run, "--json")
    assert (again.run["outputs"][0]["exists"], again.run["cleared"], frames_in(run)) == (True, 0, ALL)
    (listed,) = stepwatch("runs", "list", "--json").json["runs"]
    assert (listed["phase"], listed["outputs"]) == ("rendered", [str(watched / "animation" / "r1.mp4")])


def test_restore_needs_no_receipts_and_replaces_nothing(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """The trash folder itself can be named, receipts or not; a name that is taken keeps its file, and the frame stays in the trash."""
    run = make_run(watched / "r1")
    assert stepwatch("render", run, "--trash").code == 0
    (place,) = trash(watched)
    for path in Path(os.environ["XDG_STATE_HOME"], "stepwatch").glob("receipts.db*"):
        path.unlink()
    run.mkdir()
    (run / "00002.png").write_text("somebody else's")
    restored = stepwatch("runs", "restore", place, "--json")
    assert restored.code == 1
    assert (restored.json["dir"], restored.json["frames"]) == (str(run), 5)
    assert [kept.partition(":")[0] for kept in restored.json["kept"]] == ["00002.png"]
    assert (run / "00002.png").read_text() == "somebody else's"
    assert frames_in(place) == ["00002.png"]


def test_delete_removes_the_frames_for_good(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """--delete: the frames, the sidecar and the folder are gone, the animation and every other file stay."""
    run, other = make_run(watched / "r1"), make_run(watched / "r2")
    (other / "notes.txt").write_text("mine")
    done = stepwatch("render", watched, "--delete")
    assert done.code == 0
    assert [Path(line).name for line in done.out.splitlines()] == ["r1.mp4", "r2.mp4"]
    assert "6 files cleared" in done.err
    assert (trash(watched), run.exists()) == ([], False)
    assert sorted(path.name for path in other.iterdir()) == ["notes.txt"]


@pytest.mark.parametrize("how", ["the policy", "the preset"])
def test_a_policy_clears_and_keep_does_not(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str, how: str) -> None:
    """A trusted policy, or the preset, clears runs with a sidecar without being asked; --keep on the command line goes above it."""
    run = make_run(watched / "r1", steps=8)
    policy(watched, **({"cleanup": {"intermediates": "delete"}} if how == "the policy" else {"preset": "steps-animation"}))
    before = digests(watched)
    kept = stepwatch("render", run, "--keep", "--json")
    assert (kept.code, kept.run["cleared"]) == (0, 0)
    assert digests(watched) == before
    # What was published under "keep" stays until somebody asks for more: the stricter word counts.
    assert stepwatch("prune", "--finished", run, "--json").json["cleared"][0]["cleared"] == 8
    assert digests(watched) == {}
    again = make_run(watched / "r2", steps=8)
    assert stepwatch("render", again, "--json").run["cleared"] == 8
    assert not again.exists()


# -- frames without a sidecar


def test_guessed_frames_stay_until_a_pattern_says_what_they_are(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """What only a guess takes for frames is never cleared, and that is said; with a trusted frames.pattern the same run is."""
    run = make_run(watched / "r1", sidecar=None)
    guessed = stepwatch("render", run, "--trash")
    assert guessed.code == 0
    assert "its frames stay: only a guess says that they are frames; set frames.pattern" in guessed.err
    assert (frames_in(run), trash(watched)) == (ALL, [])
    policy(watched, frames={"pattern": "numbered"})
    trusted = stepwatch("render", run, "--trash", "--json")
    assert (trusted.code, trusted.run["cleared"]) == (0, 6)
    assert frames_in(trash(watched)[0]) == ALL


def test_a_policy_waits_until_nobody_writes_and_a_person_need_not(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """Without a sidecar more frames may come: a policy clears only what has been quiet for long enough, --trash what is there."""
    run = make_run(watched / "r1", sidecar=None)
    policy(watched, frames={"pattern": "numbered"}, cleanup={"intermediates": "trash"}, detect={"settle": "1h"})
    done = stepwatch("render", run)
    assert done.code == 0
    assert "it is complete when no frame comes for 3600 s" in done.err
    assert frames_in(run) == ALL
    assert stepwatch("render", run, "--trash", "--json").run["cleared"] == 6
    again = make_run(watched / "r2", sidecar=None)
    policy(watched, frames={"pattern": "numbered"}, cleanup={"intermediates": "trash"}, detect={"settle": "1ms"})
    assert stepwatch("render", again, "--json").run["cleared"] == 6


def test_two_runs_of_one_folder_are_cleared_each_for_itself(stepwatch: Stepwatch, watched: Path, ffmpeg: str) -> None:
    """In a flat folder only the files of the run that was rendered go, and the folder stays."""
    flat = watched / "flat"
    names = {group: [f"{group}-{step:03d}.png" for step in range(1, 6)] for group in ("00001", "00002")}
    for group, files in names.items():
        for number, name in enumerate(files, 1):
            write_frame(flat / name, step=number + 10 * int(group))
    policy(watched, frames={"pattern": r"(?P<run>\d{5})-(?P<step>\d{3})\.png"})
    (flat / "00002-002.png").unlink()
    done = stepwatch("render", flat, "--trash")
    assert done.code == 0
    assert "steps are missing (2)" in done.err
    assert frames_in(flat) == [name for name in names["00002"] if name != "00002-002.png"]
    assert frames_in(trash(watched)[0]) == names["00001"]


# -- what keeps frames where they are


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("hole", "steps are missing (3)"),
        ("damaged", "a frame is damaged"),
        ("running", "its sidecar still says running"),
        ("append", "runs are appended to one animation here"),
    ],
)
def test_nothing_of_a_doubtful_run_is_cleared(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str, fault: str, says: str) -> None:
    """A hole, a damaged frame, a writer that may go on, runs that grow together: the animation is made, every frame stays, and why is said."""
    run = make_run(watched / "r1", steps=[1, 2, 4, 5] if fault == "hole" else 5, state="running" if fault == "running" else "complete")
    if fault == "damaged":
        (run / "00002.png").write_bytes((run / "00002.png").read_bytes()[:60])
    if fault == "append":
        policy(watched, frames={"append": True})
    before = digests(watched)
    done = stepwatch("render", watched, "--delete", "--json")
    assert (done.code, done.run["cleared"]) == (0, 0)
    assert done.run["outputs"][0]["path"]
    assert f"its frames stay: {says}" in done.err
    assert (digests(watched), trash(watched)) == (before, [])


@pytest.mark.parametrize("skipped", ["keep", "clear"])
def test_skipped_frames_go_only_if_the_policy_says_so(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str, skipped: str) -> None:
    """cleanup.skipped: frames that the animation leaves out stay, with their sidecar, unless they are to go with the others."""
    run = make_run(watched / "r1")
    policy(watched, frames={"skip_first": 2}, cleanup={"skipped": skipped})
    done = stepwatch("render", run, "--trash", "--json")
    assert done.run["cleared"] == (4 if skipped == "keep" else 6)
    if skipped == "keep":
        assert sorted(path.name for path in run.iterdir()) == ["00000.png", "00001.png", "run.json"]
    else:
        assert not run.exists()


def test_frames_that_no_picture_shows_stay(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """With more images than pictures some are in no animation, and nothing covers them."""
    run = make_run(watched / "r1", steps=20)
    done = stepwatch("render", run, "--trash", "--set", "timeline.duration=500ms", "--json").run
    unshown = done["frames"]["unshown"]
    assert len(unshown) >= 5
    assert done["cleared"] == 20 - len(unshown)
    assert frames_in(run) == sorted(unshown)


def test_links_stay(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """A frame that has a second name elsewhere is somebody's, so it stays when the others go."""
    run = make_run(watched / "r1")
    os.link(run / "00003.png", watched / "kept-elsewhere")
    done = stepwatch("render", run, "--delete")
    assert done.code == 0
    assert "1 file left alone (00003.png: it has a hard link elsewhere)" in done.err
    assert frames_in(run) == ["00003.png"]
    assert (run / "run.json").exists()


# -- the stricter of two policies, and prune


def test_the_stricter_of_two_policies_counts_until_prune_says_otherwise(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """A run rendered under `keep` is not cleared because the policy changes; `prune --finished` applies today's, and --dry-run only tells."""
    run, unfinished = make_run(watched / "r1"), make_run(watched / "r2")
    assert stepwatch("render", run).code == 0
    policy(watched, cleanup={"intermediates": "trash", "grace": "1h"})
    pruned = stepwatch("prune")
    assert (pruned.code, pruned.out, frames_in(run)) == (0, "", ALL)
    assert "nothing is due" in pruned.err
    told = stepwatch("prune", "--finished", watched, "--dry-run")
    assert told.out == "run r1: 6 files would be cleared\n"
    assert frames_in(run) == ALL
    assert stepwatch("prune", "--finished", watched).out == "run r1: 6 files cleared\n"
    assert (run.exists(), frames_in(unfinished)) == (False, ALL)
    assert [frames_in(place) for place in trash(watched)] == [ALL]


def test_prune_empties_the_trash_when_the_grace_is_over(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """The grace of the policy keeps the trash; after it prune removes it for good, but only what is as it was rendered."""
    policy(watched, cleanup={"intermediates": "trash", "grace": "300ms"})
    assert stepwatch("render", make_run(watched / "r1")).code == 0
    (place,) = trash(watched)
    (place / "stranger.txt").write_text("not in the manifest")
    over = manifest(place)["trashed_at"] + 0.35
    time.sleep(max(0.0, over - time.time()))
    told = stepwatch("prune", "--dry-run")
    assert "would be removed" in told.out
    assert frames_in(place) == ALL
    assert stepwatch("prune", "--json").json["purged"][0]["kept"] == ["stranger.txt: it is not in the manifest"]
    assert [path.name for path in place.iterdir() if path.name != "manifest.json"] == ["stranger.txt"]
    (place / "stranger.txt").unlink()
    assert stepwatch("prune").code == 0
    assert trash(watched) == []
    assert (watched / "animation" / "r1.mp4").exists()


def test_an_animation_that_is_gone_holds_the_trash(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """Frames are not cleared for an animation that is no longer there: asked again, prune leaves them and says why."""
    run = make_run(watched / "r1")
    assert stepwatch("render", run).code == 0
    (watched / "animation" / "r1.mp4").unlink()
    policy(watched, cleanup={"intermediates": "delete"})
    done = stepwatch("prune", "--finished", watched)
    assert "its animation is no longer where it was published" in done.out
    assert frames_in(run) == ALL


def test_nothing_is_cleared_without_receipts(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """Where receipts cannot be kept, --trash is refused before anything is rendered; a policy's clearing waits, and says so."""
    run = make_run(watched / "r1")
    state = Path(os.environ["XDG_STATE_HOME"])
    state.parent.mkdir(parents=True, exist_ok=True)
    state.write_text("no folder")
    refused = stepwatch("render", run, "--trash")
    assert (refused.code, refused.out, frames_in(run)) == (1, "", ALL)
    assert not (watched / "animation").exists()
    policy(watched, cleanup={"intermediates": "delete"})
    done = stepwatch("render", run)
    assert done.code == 0
    assert "nothing is cleared" in done.err
    assert frames_in(run) == ALL


# -- incomplete animations


def test_an_incomplete_animation_gives_way_to_one_with_more_frames(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """By hand too: the older one goes to the trash, the newer one takes its name and is told by it, and a complete one ends both."""
    run = make_run(watched / "r1", steps=4, state="interrupted")
    plain = watched / "animation" / "r1-incomplete.mp4"
    assert stepwatch("render", run).out == f"{plain}\n"
    older = plain.read_bytes()
    make_run(watched / "r1", steps=5, state="interrupted")
    assert stepwatch("render", run).out == f"{plain}\n"
    assert plain.read_bytes() != older
    assert [path.read_bytes() for path in (watched / ".stepwatch").rglob("*.mp4")] == [older]
    make_run(watched / "r1", steps=6)
    assert stepwatch("render", run).out == f"{watched / 'animation' / 'r1.mp4'}\n"
    assert [path.name for path in (watched / "animation").iterdir()] == ["r1.mp4"]
    assert len(list((watched / ".stepwatch").rglob("*.mp4"))) == 2


def test_the_same_frames_rendered_in_two_ways_are_two_animations(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """Who compares settings keeps both, incomplete or not: neither contains frames that the other lacks."""
    run = make_run(watched / "r1", sidecar=None)
    first = stepwatch("render", run, "--json").run["outputs"][0]["path"]
    second = stepwatch("render", run, "--set", "timeline.interpolation=none", "--json").run["outputs"][0]["path"]
    assert sorted(path.name for path in (watched / "animation").iterdir()) == ["r1-incomplete-1.mp4", "r1-incomplete.mp4"]
    assert {first, second} == {str(path) for path in (watched / "animation").iterdir()}


# -- what the daemon clears, and what it has no right to


DELETE = {"cleanup": {"intermediates": "delete"}}


def once(stepwatch: Stepwatch, *folders: Path) -> str:
    """One pass of the daemon; what it told."""
    done = stepwatch("watch", *folders, "--once")
    assert done.code == 0, done.err
    return done.err


def receipts() -> list[Path]:
    return sorted(Path(os.environ["XDG_STATE_HOME"], "stepwatch").glob("receipts.db*"))


@pytest.mark.parametrize("how", ["removed", "damaged"])
def test_lost_receipts_and_a_policy_that_was_edited_since_clear_nothing(
    stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str, how: str
) -> None:
    """Rows 45, 65: what was published under `keep` is known again by its animation, but not under which policy, so its frames stay for good."""
    run, other = make_run(watched / "r1"), make_run(watched / "r2", sidecar={"generation": {"seed": 7}})
    once(stepwatch, watched)
    for path in receipts():
        if how == "removed":
            path.unlink()
        else:
            path.write_bytes(b"nothing that could be read")
    policy(watched, **DELETE)
    new = make_run(watched / "r3", sidecar={"generation": {"seed": 8}})
    for _ in range(2):
        once(stepwatch, watched)
        assert (frames_in(run), frames_in(other), new.exists(), trash(watched)) == (ALL, ALL, False, [])
    assert sorted(path.name for path in (watched / "animation").iterdir()) == ["r1.mp4", "r2.mp4", "r3.mp4"]
    assert stepwatch("prune", "--finished", run, "--json").json["cleared"][0]["cleared"] == 6


def test_what_was_published_and_not_recorded_is_cleared_all_the_same(
    stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first session ever, too: who fails between publishing and the receipt has not lost the policy that it was published under."""
    run = make_run(watched / "r1")
    policy(watched, **DELETE)
    record = Ledger.record_render
    failures = ["no space left for the receipts"]

    def recorded(ledger: Ledger, *arguments: Any, **named: Any) -> None:
        if failures:
            raise EnvironmentFault(failures.pop())
        record(ledger, *arguments, **named)

    monkeypatch.setattr(Ledger, "record_render", recorded)
    monkeypatch.setattr("stepwatch.service.FIRST_PAUSE", 0.2)
    told = once(stepwatch, watched)
    assert "no space left for the receipts" in told
    assert (failures, run.exists()) == ([], False)
    assert [path.name for path in (watched / "animation").iterdir()] == ["r1.mp4"]


def test_what_was_rendered_where_runs_are_appended_is_never_cleared(stepwatch: Stepwatch, watched: Path, ffmpeg: str) -> None:
    """`append: true` keeps frames; that it is taken back later clears no part for the animation of the whole."""
    flat = watched / "flat"
    parts = {name: [f"{name}_{step:05d}.png" for step in range(steps)] for name, steps in (("a", 4), ("b", 8))}
    for number, name in enumerate(parts["a"] + parts["b"]):
        write_frame(flat / name, step=number)
    quick: dict[str, object] = {"detect": {"settle": "100ms"}, **DELETE}
    policy(watched, frames={"pattern": "numbered", "append": True}, **quick)
    once(stepwatch, watched)
    assert frames_in(flat) == parts["a"] + parts["b"]
    policy(watched, frames={"pattern": "numbered"}, **quick)
    # The other part is now alone in its folder, and has the name that the whole had.
    for name in parts["a"]:
        (flat / name).unlink()
    once(stepwatch, watched)
    assert frames_in(flat) == parts["b"]
    assert [path.name for path in (watched / "animation").iterdir()] == ["flat.mp4"]


@pytest.mark.parametrize("command", ["prune", "watch"])
def test_the_trash_stays_where_the_policy_of_its_place_says_keep(
    stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str, command: str
) -> None:
    """Row 65: the run's folder is gone with its frames, so the nearest folder above that is still there says what counts, not the watched one."""
    brief = {"cleanup": {"intermediates": "trash", "grace": "1ms"}}
    policy(watched, **brief)
    private = make_run(watched / "private" / "album" / "r1").parent
    public = make_run(watched / "public" / "r2", sidecar={"generation": {"seed": 7}})
    assert stepwatch("render", private).code == stepwatch("render", public).code == 0
    assert (private.exists(), public.exists()) == (True, False)
    (watched / "private" / "stepwatch.yaml").write_text(json.dumps({"cleanup": {"intermediates": "keep"}}))
    before = {place for place in trash(watched) if manifest(place)["name"] == "r1"}
    if command == "prune":
        assert stepwatch("prune").code == 0
    else:
        once(stepwatch, watched)
    assert set(trash(watched)) == before
    (watched / "private" / "stepwatch.yaml").unlink()
    assert stepwatch("prune").code == 0
    assert trash(watched) == []


# -- runs that move


@pytest.mark.parametrize("what", ["run", "folder above", "watched folder"])
def test_a_run_without_a_sidecar_is_known_by_its_files_when_its_folder_is_renamed(
    stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str, what: str
) -> None:
    """Row 36: nothing but a name is new, so there is nothing to render, whichever folder on the way has another one."""
    policy(watched, frames={"pattern": "numbered"}, detect={"settle": "200ms"}, outputs=[{"codec": "h264", "quality": "small", "name": "clip"}])
    run = make_run(watched / "deep" / "r1", sidecar=None)
    once(stepwatch, watched)
    source = {"run": run, "folder above": run.parent, "watched folder": watched}[what]
    moved = source.rename(source.with_name("renamed"))
    here = moved if what == "watched folder" else watched
    once(stepwatch, here)
    assert [path.name for path in (here / "animation").iterdir()] == ["clip.mp4"]
    (listed,) = stepwatch("runs", "list", "--json").json["runs"]
    assert listed["phase"] == "rendered"
    assert Path(listed["dir"]).is_dir()


def test_a_copy_does_not_take_the_receipt_of_a_run_whose_disk_is_away(stepwatch: Stepwatch, make_run: MakeRun, watched: Path, ffmpeg: str) -> None:
    """Row 32: that a folder is not there says nothing; the copy is a run of its own, and the first one is known when its disk is back."""
    policy(watched)
    disk = watched / "disk"
    run = make_run(disk / "r1")
    once(stepwatch, watched)
    away = disk.rename(watched.with_name("away"))
    copy = watched / "copy"
    shutil.copytree(away / "r1", copy)
    once(stepwatch, watched)
    both = [(str(copy), "rendered"), (str(run), "rendered")]
    assert sorted((one["dir"], one["phase"]) for one in stepwatch("runs", "list", "--json").json["runs"]) == both
    away.rename(disk)
    assert "published" not in once(stepwatch, watched)
    assert sorted((one["dir"], one["phase"]) for one in stepwatch("runs", "list", "--json").json["runs"]) == both
