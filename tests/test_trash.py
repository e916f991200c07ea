"""The trash: what leaves a folder, when, and that all of it can come back."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stepwatch import trash
from stepwatch.core.manifest import DamagedManifestError, Manifest, Trashed, manifest_text, parse_manifest
from stepwatch.core.model import Covered, Frame, Published, Receipt, Render, Role, RunKey
from stepwatch.core.policy import CleanupPolicy
from stepwatch.errors import EnvironmentFault, RunError

NOW = 1_000_000.0
DAY = 86_400.0
Intermediates = Literal["keep", "trash", "delete"]


def digest(path: Path) -> str:
    """Content of a file, in short."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def frame_of(path: Path, step: int) -> Frame:
    """Facts of a frame as a scan records them."""
    facts = path.lstat()
    return Frame(
        step=step,
        name=path.name,
        size=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
        ctime_ns=facts.st_ctime_ns,
        inode=facts.st_ino,
        device=facts.st_dev,
        links=facts.st_nlink,
    )


def published(path: Path) -> Published:
    """Facts of an output as a publication records them."""
    facts = path.lstat()
    return Published(
        path=str(path),
        codec="h264",
        size=facts.st_size,
        mtime_ns=facts.st_mtime_ns,
        inode=facts.st_ino,
        device=facts.st_dev,
        sha256=digest(path),
        plan="p",
        pictures=9,
        duration="10",
    )


@dataclass
class Case:
    """A run that was rendered and published, in a watched folder of its own."""

    watched: Path
    folder: Path
    render: Render
    receipt: Receipt
    output: Path
    digests: dict[str, str] = field(default_factory=dict)

    def clear(
        self, intermediates: Intermediates = "trash", *, stop: threading.Event | None = None, now: float = NOW, **cleanup: Any
    ) -> trash.Cleared:
        """Clear the run by a policy."""
        policy = CleanupPolicy(intermediates=intermediates, **cleanup)
        return trash.clear(self.render, self.receipt, self.folder, self.watched, cleanup=policy, now=now, stop=stop or threading.Event())

    @property
    def trash(self) -> Path:
        """The trash of the watched folder."""
        return self.watched.joinpath(*trash.TRASH)

    @property
    def place(self) -> Path:
        """The trash folder of this run."""
        return self.trash / self.render.generation

    def here(self) -> list[str]:
        """What is left in the run's folder."""
        return sorted(os.listdir(self.folder)) if self.folder.is_dir() else []

    def there(self, place: Path | None = None) -> list[str]:
        """What the trash folder holds beside its manifest."""
        return sorted(set(os.listdir(place or self.place)) - {"manifest.json"})

    def edit(self, **changes: Any) -> None:
        """Change what the receipt says of the render."""
        self.render = replace(self.render, **changes)


def make_case(
    base: Path,
    names: tuple[str, ...] = ("00000.png", "00001.png", "00002.png"),
    *,
    run: str = "run",
    sidecar: bool = True,
    group: str = "",
    roles: dict[str, Role] | None = None,
) -> Case:
    """A run with these frames, rendered; without a sidecar when it is one of several in its folder."""
    watched = Path(os.path.realpath(base)) / "watched"
    folder = watched / run if run else watched
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_bytes(f"pixels of {run} {group} {number}".encode())
    if sidecar:
        (folder / "workflow.json").write_text('{"prompt": {}}')
        content = {
            "schema": "stepwatch.run/1",
            "run_id": "r1",
            "state": "complete",
            "workflow_file": "workflow.json",
            "frames": {"name": "{index:05d}.png"},
        }
        (folder / "run.json").write_text(json.dumps(content))
    output = watched / "animation" / f"{run}{group}.mp4"
    output.parent.mkdir(exist_ok=True)
    output.write_bytes(f"an animation of {run} {group}".encode())
    frames = tuple(
        Covered(frame=frame_of(folder / name, number), digest=digest(folder / name), role=(roles or {}).get(name, Role.SHOWN))
        for number, name in enumerate(names, start=1)
    )
    render = Render(
        generation=hashlib.sha256(f"{run}{group}".encode()).hexdigest(),
        frames=frames,
        outputs=(published(output),),
        incomplete=False,
        at=NOW,
        cleanup=CleanupPolicy(intermediates="trash"),
    )
    run_id = "r1" if sidecar else f"path-{group}"
    receipt = Receipt(key=RunKey(folder=str(folder), group=group), run_id=run_id, name=run or group, watched=str(watched))
    return Case(watched=watched, folder=folder, render=render, receipt=receipt, output=output, digests={c.frame.name: c.digest for c in frames})


@pytest.fixture
def case(tmp_path: Path) -> Case:
    """A run of three frames with its sidecar."""
    return make_case(tmp_path)


def record_again(case: Case) -> None:
    """Render the frames as they are now."""
    case.edit(frames=tuple(replace(one, frame=frame_of(case.folder / one.frame.name, one.frame.step)) for one in case.render.frames))


def finish(case: Case) -> trash.Finished:
    """Finish the clearing of a run after the receipts know of it."""
    return trash.finish(case.watched, case.render.generation)


def purge(case: Case, *, now: float = NOW, grace: float | None = 0.0, dry_run: bool = False) -> tuple[trash.Purged, ...]:
    """Empty the trash with one grace for all."""
    return trash.purge(case.watched, now=now, grace_for=lambda _: grace, dry_run=dry_run)


# ---------------------------------------------------------------- the way there


def test_covered_frames_go_to_the_trash_then_sidecar_and_folder(case: Case) -> None:
    """Frames first; only after the receipt the sidecar and the empty folder; the manifest tells everything."""
    cleared = case.clear()
    assert (cleared.moved, cleared.changed, cleared.finished, cleared.place) == (3, (), True, case.render.generation)
    assert cleared.note == "3 files moved to the trash"
    assert case.here() == ["run.json", "workflow.json"]
    assert {name: digest(case.place / name) for name in case.digests} == case.digests
    assert finish(case) == trash.Finished(folder_removed=True)
    assert not case.folder.exists()
    assert case.there() == [*sorted(case.digests), "run.json", "workflow.json"]
    (manifest,) = trash.listing(case.watched)
    assert (manifest.kind, manifest.run_id, manifest.source, manifest.trashed_at, manifest.finished) == ("frames", "r1", str(case.folder), NOW, True)
    assert [(file.name, file.digest) for file in manifest.files[:3]] == list(case.digests.items())
    assert [file.name for file in manifest.files[3:]] == ["workflow.json", "run.json"]
    assert case.output.exists()
    assert case.place.stat().st_mode & 0o777 == 0o700


def test_the_manifest_is_on_the_disk_before_the_first_frame_moves(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a crash leaves behind can always be told (D1's order): manifest synced, its folders synced, then moves, then both folders synced."""
    calls: list[str] = []

    def where(descriptor: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{descriptor}")).name[:8]

    def noted(call: Callable[..., None], name: str) -> Callable[..., None]:
        def noting(*arguments: Any, **named: Any) -> None:
            calls.append(f"fsync {where(arguments[0])}" if name == "fsync" else name)
            call(*arguments, **named)

        return noting

    monkeypatch.setattr(os, "fsync", noted(os.fsync, "fsync"))
    monkeypatch.setattr(os, "rename", noted(os.rename, "manifest"))
    monkeypatch.setattr(trash, "_rename_without_replacing", noted(trash._rename_without_replacing, "move"))
    case.clear()
    generation = case.render.generation[:8]
    assert calls[-7:] == ["manifest", f"fsync {generation}", "move", "move", "move", f"fsync {generation}", "fsync run"]
    assert calls[:4] == ["fsync watched", "fsync .stepwat", "fsync trash", "fsync .manifes"]


def test_clearing_again_changes_nothing_and_counts_the_same(case: Case) -> None:
    """Whoever was killed before the receipt knew does it once more."""
    first = case.clear()
    assert case.clear(now=NOW + 5) == first
    assert trash.begun(case.watched, case.render.generation, case.folder) == case.render.generation
    assert [one.place for one in trash.unfinished(case.watched)] == [case.render.generation]
    finish(case)
    assert trash.unfinished(case.watched) == ()
    assert case.clear().moved == 3


def test_nothing_is_cleared_without_its_animation(case: Case) -> None:
    """D1: gone, changed, replaced, or a link: the frames stay, and nothing is made."""
    assert trash.outputs_there(case.render)
    content = case.output.read_bytes()
    for change in ("gone", "changed", "replaced", "link"):
        case.output.unlink(missing_ok=True)
        if change == "changed":
            case.output.write_bytes(content + b"!")
        elif change == "replaced":
            case.output.write_bytes(content)
            os.utime(case.output, ns=(0, case.render.outputs[0].mtime_ns + 1))
        elif change == "link":
            (case.watched / "elsewhere").write_bytes(content)
            case.output.symlink_to(case.watched / "elsewhere")
        assert not trash.outputs_there(case.render)
        cleared = case.clear()
        assert cleared.moved == 0
        assert "no longer where it was published" in cleared.note
    assert not case.trash.exists()
    assert not trash.outputs_there(replace(case.render, outputs=()))


def test_an_animation_that_goes_before_the_receipt_holds_the_trash(case: Case) -> None:
    """A clearing whose animation vanished is never finished, so its frames are never removed."""
    case.clear("delete")
    case.output.unlink()
    assert "no longer where it was published" in finish(case).note
    assert purge(case, now=NOW + 1000 * DAY) == ()
    assert trash.restore(case.watched, case.render.generation).frames
    assert {name: digest(case.folder / name) for name in case.digests} == case.digests


@pytest.mark.parametrize("changes", [{"missing": (2,)}, {"guessed": True}], ids=str)
def test_holes_and_guesses_keep_everything(case: Case, changes: dict[str, Any]) -> None:
    """D4, asked once more where it counts."""
    case.edit(**changes)
    assert case.clear().moved == 0
    assert len(case.here()) == 5


def test_a_damaged_frame_keeps_everything(tmp_path: Path) -> None:
    """D4: one frame that could not be decoded, and nothing of the run goes."""
    case = make_case(tmp_path, roles={"00001.png": Role.DAMAGED})
    assert case.clear().moved == 0
    assert len(case.here()) == 5


def test_uncovered_frames_stay(tmp_path: Path) -> None:
    """D3: late, skipped, duplicate and unshown files stay, and with them sidecar and folder."""
    case = make_case(tmp_path, ("0.png", "1.png", "2.png", "3.png"), roles={"1.png": Role.SKIPPED, "2.png": Role.DUPLICATE, "3.png": Role.UNSHOWN})
    (case.folder / "late.png").write_bytes(b"late")
    assert case.clear().moved == 1
    assert not finish(case).folder_removed
    assert case.here() == ["1.png", "2.png", "3.png", "late.png", "run.json", "workflow.json"]


def test_skipped_frames_follow_when_the_policy_says_so_later(tmp_path: Path) -> None:
    """`prune --finished` after the first clearing puts them into the same trash folder, and all can come back."""
    case = make_case(tmp_path, roles={"00001.png": Role.SKIPPED})
    assert case.clear().moved == 2
    finish(case)
    assert case.clear(skipped="clear").moved == 3
    assert len(trash.unfinished(case.watched)) == 1
    assert finish(case).folder_removed
    assert len(trash.restore(case.watched, case.render.generation).frames) == 3


def test_unknown_files_stay_and_keep_the_folder(case: Case) -> None:
    """D6: folders go by rmdir, so whatever else is in them keeps them."""
    (case.folder / "notes.txt").write_text("mine")
    case.clear()
    assert not finish(case).folder_removed
    assert case.here() == ["notes.txt"]


def test_the_watched_folder_never_goes(tmp_path: Path) -> None:
    """D6: a run right in the watched folder leaves it behind, empty or not."""
    case = make_case(tmp_path, run="", sidecar=False)
    shutil.move(case.output.parent, tmp_path / "animation")
    moved = tmp_path / "animation" / case.output.name
    case.edit(outputs=(published(moved),))
    assert case.clear().moved == 3
    assert not finish(case).folder_removed
    assert os.listdir(case.watched) == [".stepwatch"]


def test_two_runs_in_one_folder_do_not_touch_each_other(tmp_path: Path) -> None:
    """Row 18: one run's name begins with the other's; each clears its own, and the folder of both stays."""
    names = {seed: tuple(f"0000{step:03d}-{seed}-x.png" for step in range(3)) for seed in ("12", "123")}
    first = make_case(tmp_path, names["12"], sidecar=False, group="12", run="flat")
    second = make_case(tmp_path, names["123"], sidecar=False, group="123", run="flat")
    assert first.clear().moved == 3
    assert first.here() == sorted(names["123"])
    finish(first)
    assert second.clear().moved == 3
    assert not finish(second).folder_removed
    assert first.folder.is_dir()
    trash.restore(first.watched, first.render.generation)
    assert first.here() == sorted(names["12"])


def test_a_sidecar_of_another_run_or_a_running_one_stays(case: Case) -> None:
    """Only the sidecar of the run that was cleared follows its frames."""
    case.clear()
    text = (case.folder / "run.json").read_text()
    for other in (text.replace('"r1"', '"r2"'), text.replace("complete", "running"), "nonsense"):
        (case.folder / "run.json").write_text(other)
        assert not finish(case).folder_removed
        assert case.here() == ["run.json", "workflow.json"]


def test_a_workflow_that_names_itself_manifest_does_not_take_its_place(case: Case) -> None:
    """No name of a user's file collides with the trash's own."""
    (case.folder / "MANIFEST.json").write_text("{}")
    (case.folder / "run.json").write_text((case.folder / "run.json").read_text().replace("workflow.json", "MANIFEST.json"))
    case.clear()
    finish(case)
    assert case.here() == ["MANIFEST.json", "workflow.json"]
    assert "run.json" in case.there()


# ---------------------------------------------------------------- what is never touched


def mutate(case: Case, how: str) -> None:
    """Change the middle frame after the render."""
    frame = case.folder / "00001.png"
    facts = frame.stat()
    content = frame.read_bytes()
    if how == "hard link":
        os.link(frame, case.watched / "mine.png")
    elif how == "rewritten":
        frame.write_bytes(b"X" * len(content))
        os.utime(frame, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    elif how == "touched":
        os.utime(frame)
    else:
        frame.unlink()
    if how == "copied":
        frame.write_bytes(content)
        os.utime(frame, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    elif how == "symlink":
        victim = case.watched / "victim.png"
        victim.write_bytes(content)
        frame.symlink_to(victim)
    elif how == "pipe":
        os.mkfifo(frame)
    elif how == "folder":
        frame.mkdir()


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("hard link", "it has a hard link elsewhere"),
        ("rewritten", "it has changed since it was rendered"),
        ("touched", "it has changed since it was rendered"),
        ("copied", "it has changed since it was rendered"),
        ("symlink", "it is not a regular file"),
        ("pipe", "it is not a regular file"),
        ("folder", "it is not a regular file"),
    ],
)
def test_what_is_not_the_rendered_file_stays(case: Case, how: str, reason: str) -> None:
    """D2, D7, rows 27, 28, 30: rewritten with size and time restored, linked, replaced: it stays and is named; the others go."""
    mutate(case, how)
    before = (case.folder / "00001.png").lstat()
    cleared = case.clear()
    assert (cleared.moved, cleared.changed) == (2, (f"00001.png: {reason}",))
    assert "1 file left alone" in cleared.note
    assert not finish(case).folder_removed
    after = (case.folder / "00001.png").lstat()
    assert (before.st_ino, before.st_nlink, before.st_ctime_ns) == (after.st_ino, after.st_nlink, after.st_ctime_ns)
    assert how != "symlink" or (case.watched / "victim.png").is_file()
    assert case.clear().moved == 2


def test_a_frame_that_changes_on_its_way_goes_back(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """D2: the check after the move is the one that counts; a mismatch goes back and ends the clearing of this run."""
    real = trash._rename_without_replacing

    def writer_wins(source: int, target: int, name: str) -> None:
        if name == "00001.png" and not (case.place / name).exists():
            path = case.folder / name
            facts = path.stat()
            path.write_bytes(b"Y" * facts.st_size)
            os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
        real(source, target, name)

    monkeypatch.setattr(trash, "_rename_without_replacing", writer_wins)
    cleared = case.clear()
    assert (cleared.moved, cleared.finished) == (1, True)
    assert "00001.png went back: its content is not what was rendered" in cleared.note
    assert case.here() == ["00001.png", "00002.png", "run.json", "workflow.json"]
    assert (case.folder / "00001.png").read_bytes().startswith(b"YY")


def test_a_mismatch_whose_name_is_taken_stays_in_the_trash_for_ever(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of two files of one name is lost, whatever the policy says."""
    real = trash._rename_without_replacing

    def replaced_meanwhile(source: int, target: int, name: str) -> None:
        path = case.folder / name
        first = not (case.place / name).exists()
        if first:
            path.chmod(0o600)
            with path.open("r+b") as file:
                file.write(b"Z")
        real(source, target, name)
        if first:
            path.write_bytes(b"a new one")

    monkeypatch.setattr(trash, "_rename_without_replacing", replaced_meanwhile)
    assert "stays in the trash, as its name is taken" in case.clear("delete").note
    finish(case)
    (purged,) = purge(case, now=NOW + DAY) or (None,)
    assert purged is None or purged.removed == 0
    assert (case.place / "00000.png").read_bytes().startswith(b"Z")
    assert (case.folder / "00000.png").read_bytes() == b"a new one"


def test_a_name_taken_in_the_trash_is_not_overwritten(case: Case) -> None:
    """D5: somebody's file in the trash stays, and so does the frame; a folder that is nobody's is not taken for ours."""
    case.clear(stop=AfterMoves(1))
    (case.place / "00001.png").write_bytes(b"somebody's")
    cleared = case.clear()
    assert (cleared.moved, cleared.changed) == (2, ("00001.png: the trash has another file of that name",))
    assert (case.place / "00001.png").read_bytes() == b"somebody's"

    other = make_case(case.watched.parent / "other")
    other.place.mkdir(parents=True)
    (other.place / "00001.png").write_bytes(b"somebody's")
    assert other.clear().place == f"{other.render.generation}-2"
    assert os.listdir(other.place) == ["00001.png"]


class AfterMoves(threading.Event):
    """Says stop once it has been asked so many times."""

    def __init__(self, moves: int) -> None:
        super().__init__()
        self.left = moves

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_stop_ends_between_two_files_and_is_no_end(case: Case) -> None:
    """Told to stop, it says that it is not finished, and going on completes it."""
    cleared = case.clear(stop=AfterMoves(2))
    assert (cleared.moved, cleared.finished) == (2, False)
    assert case.clear().moved == 3


def test_equal_copies_of_a_cleared_run_get_a_trash_folder_of_their_own(case: Case) -> None:
    """The same names and contents again, in the same folder or another: a generation's number two, and nothing mixed up."""
    content = {name: (case.folder / name).read_bytes() for name in case.digests}
    case.clear()
    finish(case)
    case.folder.mkdir()
    for name, data in content.items():
        (case.folder / name).write_bytes(data)
    record_again(case)
    cleared = case.clear()
    assert (cleared.moved, cleared.place) == (3, f"{case.render.generation}-2")
    assert case.clear() == cleared
    assert trash.begun(case.watched, case.render.generation, case.folder) == cleared.place
    assert trash.begun(case.watched, case.render.generation, case.watched) is None


@pytest.mark.parametrize("name", ["sub/00000.png", "../00000.png", "..", "", "manifest.json"])
def test_names_that_are_no_plain_names_are_refused(case: Case, name: str) -> None:
    """Nothing in a receipt leads out of the run's folder."""
    first = case.render.frames[0]
    case.edit(frames=(replace(first, frame=replace(first.frame, name=name)), *case.render.frames[1:]))
    assert case.clear().moved == 0
    assert len(case.here()) == 5


# ---------------------------------------------------------------- folders that are not what they seem


def test_a_run_folder_replaced_by_a_link_is_not_followed(case: Case) -> None:
    """Row 26: between render and clearing the run's folder becomes a link to one that looks the same; also one above it."""
    victim = case.watched.parent / "victim"
    case.folder.rename(victim)
    case.folder.symlink_to(victim)
    cleared = case.clear()
    assert cleared.moved == 0
    assert "run is a link, or no folder" in cleared.note
    case.folder.unlink()
    case.folder.symlink_to(victim.parent)
    case.folder = case.folder / "victim"
    assert "run is a link, or no folder" in case.clear().note
    assert len(os.listdir(victim)) == 5


@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_trash_that_is_a_link_is_refused(case: Case, which: int) -> None:
    """Frames never leave the watched folder through a planted link."""
    elsewhere = case.watched.parent / "elsewhere"
    elsewhere.mkdir()
    planted = case.watched.joinpath(*(*trash.TRASH, case.render.generation)[: which + 1])
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to(elsewhere)
    assert case.clear().moved == 0
    assert os.listdir(elsewhere) == []
    assert len(case.here()) == 5


def test_a_run_outside_the_watched_folder_is_refused(case: Case) -> None:
    """Not above it, not beside it, not in the trash itself, whatever a receipt says."""
    other = case.watched.parent / "other"
    for place in (case.watched.parent, other, case.watched / "run" / ".." / ".." / "other", case.trash / "run"):
        place.mkdir(parents=True, exist_ok=True)
        case.folder = place
        cleared = case.clear()
        assert (cleared.moved, cleared.place) == (0, None)
        assert "its frames stay" in cleared.note


def test_an_output_folder_outside_does_not_matter(case: Case) -> None:
    """Row 25: animations may lie anywhere, behind a link too; only runs and trash may not."""
    outside = case.watched.parent / "outside"
    case.output.parent.rename(outside)
    case.output.parent.symlink_to(outside)
    assert case.clear().moved == 3


def test_a_run_folder_that_is_gone_is_no_fault(case: Case) -> None:
    """Frames that somebody took away are nobody's business; those in the trash still count."""
    case.clear(stop=AfterMoves(2))
    shutil.rmtree(case.folder)
    assert case.clear().moved == 2
    assert not finish(case).folder_removed


def test_a_lost_folder_is_a_fault_and_nothing_is_written(case: Case) -> None:
    """A share that went away looks like this; nothing is concluded from it."""
    shutil.rmtree(case.folder)
    with pytest.raises(EnvironmentFault, match="its folder is gone"):
        case.clear()
    assert not case.trash.exists()


def test_what_was_removed_for_good_still_counts(case: Case) -> None:
    """Killed after `delete` had deleted and before the receipt had its note: the count stays; frames that others took away are no one's."""
    case.edit(cleared=case.clear("delete").moved)
    assert finish(case).purged
    cleared = case.clear("delete")
    assert (cleared.moved, cleared.place, cleared.note) == (3, None, "3 files cleared before")
    assert os.listdir(case.trash) == []
    other = make_case(case.watched.parent / "other")
    for name in other.digests:
        (other.folder / name).unlink()
    assert other.clear() == trash.Cleared(note="its frames are gone")
    assert other.here() == ["run.json", "workflow.json"]


def in_a_namespace(script: str, folder: Path) -> None:
    """Run a script where it may mount, or skip."""
    program = f"import sys; sys.path[:0] = {sys.path!r}; tests = {str(Path(__file__).parent)!r}; sys.path.append(tests)\n{script}"
    arguments = ["unshare", "-Urm", sys.executable, "-c", program, str(folder)]
    try:
        allowed = subprocess.run(["unshare", "-Urm", "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        allowed = False
    if not allowed:
        pytest.skip("this kernel allows no user and mount namespaces")
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(("mount", "reason"), [("-t tmpfs none", "another device"), ("--bind {spare}", "another mount")], ids=["tmpfs", "bind"])
def test_another_device_below_the_watched_folder_is_left_alone(tmp_path: Path, mount: str, reason: str) -> None:
    """D7: a file system mounted over the run's folder, or the same one mounted there, is never cleared."""
    in_a_namespace(
        f"""
import os, subprocess
from pathlib import Path
from test_trash import make_case, purge
base = Path(sys.argv[1])
(base / "spare").mkdir()
(base / "watched" / "run").mkdir(parents=True)
subprocess.run(["mount", *{mount!r}.format(spare=base / "spare").split(), str(base / "watched" / "run")], check=True)
case = make_case(base)
cleared = case.clear()
assert cleared.moved == 0, cleared
assert {reason!r} in cleared.note, cleared
assert len(case.here()) == 5, case.here()
purge(case)
""",
        tmp_path,
    )


def test_a_full_disk_is_the_machine_s_fault_and_loses_nothing(tmp_path: Path) -> None:
    """Row 42 for the trash: no room for the manifest, and every frame stays where it is."""
    in_a_namespace(
        """
import os, subprocess
from pathlib import Path
from test_trash import make_case
from stepwatch.errors import EnvironmentFault
base = Path(sys.argv[1])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(base)], check=True)
os.chdir(base)
case = make_case(base)
with open("filler", "wb", buffering=0) as file:
    try:
        while True:
            file.write(bytes(512))
    except OSError:
        pass
try:
    case.clear()
except EnvironmentFault as fault:
    assert "no space" in str(fault), fault
else:
    raise AssertionError("no fault")
assert len(case.here()) == 5
os.unlink("filler")
assert case.clear().moved == 3
""",
        tmp_path,
    )


@contextmanager
def as_nobody() -> Iterator[None]:
    """Act as a user who may not write everywhere; root may."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(65534)
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.fixture
def open_case() -> Iterator[Case]:
    """A run in a place that every user can reach."""
    base = Path(tempfile.mkdtemp())
    base.chmod(0o755)
    yield make_case(base)
    shutil.rmtree(base)


def test_frames_that_may_not_be_moved_stay_and_that_is_no_fault(open_case: Case) -> None:
    """Row 68: an unwritable or sticky folder of somebody else: told once in the note, nothing half done."""
    case = open_case
    with as_nobody():
        refused = case.clear()
    assert (refused.moved, refused.finished, refused.place) == (0, True, None)
    assert "permission" in refused.note
    case.watched.chmod(0o777)
    case.folder.chmod(0o1777 if os.geteuid() == 0 else 0o555)
    with as_nobody():
        refused = case.clear()
    assert (refused.moved, refused.finished, refused.place) == (0, True, None)
    assert "permission to move 00000.png is denied" in refused.note
    assert len(case.here()) == 5
    assert os.listdir(case.trash) == []
    case.folder.chmod(0o755)


def test_frames_that_cannot_be_read_any_more_go_back(open_case: Case) -> None:
    """What cannot be checked in the trash does not stay there."""
    case = open_case
    if os.geteuid() != 0:
        pytest.skip("needs two users")
    for path in (case.watched, case.folder):
        path.chmod(0o777)
    for name in case.digests:
        (case.folder / name).chmod(0o600)
    record_again(case)
    with as_nobody():
        cleared = case.clear()
    assert cleared.moved == 0
    assert "00000.png went back: permission to read it is denied" in cleared.note
    assert len(case.here()) == 5


def test_folders_that_cannot_be_synced_are_not_cleared(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Durability unknown is a fault here, before anything has moved."""

    def unsupported(_: int) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", unsupported)
    with pytest.raises(EnvironmentFault, match="cannot clear"):
        case.clear()
    assert len(case.here()) == 5


# ---------------------------------------------------------------- the end of the grace


def test_the_grace_is_the_longer_one_and_by_the_clock_given(case: Case) -> None:
    """Neither the manifest's nor today's grace is cut short; None keeps; a clock that went back waits."""
    case.clear(grace=Fraction(100))
    assert purge(case, now=NOW + DAY) == ()
    finish(case)
    for now, grace in [(NOW + 99, 0.0), (NOW + 150, 200.0), (NOW - DAY, 0.0), (NOW + 1000 * DAY, None)]:
        assert purge(case, now=now, grace=grace) == ()
    (dry,) = purge(case, now=NOW + 100, dry_run=True)
    assert (dry.removed, dry.kept, len(case.there())) == (5, (), 5)
    (purged,) = purge(case, now=NOW + 100)
    assert (purged.removed, purged.size) == (5, dry.size)
    assert os.listdir(case.trash) == []


def test_delete_deletes_when_the_receipt_knows(case: Case) -> None:
    """`delete` goes through the same trash and the same checks, with no grace."""
    cleared = case.clear("delete")
    assert cleared.note == "3 files cleared"
    assert len(case.there()) == 3
    done = finish(case)
    assert done.folder_removed
    assert done.purged is not None
    assert done.purged.removed == 5
    assert os.listdir(case.trash) == []
    assert not case.folder.exists()
    assert finish(case) == trash.Finished()


def test_purge_checks_once_more_and_keeps_strangers(case: Case) -> None:
    """What changed in the trash, was linked there or is not in the manifest stays, named, with its manifest."""
    case.clear()
    finish(case)
    (case.place / "00000.png").write_bytes(b"edited")
    os.link(case.place / "00001.png", case.watched / "kept.png")
    (case.place / "extra.png").write_bytes(b"extra")
    (purged,) = purge(case, now=NOW + 2 * DAY)
    assert purged.removed == 3
    assert purged.kept == (
        "00000.png: it has changed since it was rendered",
        "00001.png: it has a hard link elsewhere",
        "extra.png: it is not in the manifest",
    )
    assert case.there() == ["00000.png", "00001.png", "extra.png"]
    restored = trash.restore(case.watched, case.render.generation)
    assert restored.kept == ("extra.png: it is not in the manifest",)
    assert case.here() == ["00000.png", "00001.png"]


def test_a_trash_that_was_never_there_is_empty(tmp_path: Path) -> None:
    """Nothing is made by looking."""
    assert trash.listing(tmp_path) == trash.unfinished(tmp_path) == ()
    assert trash.purge(tmp_path, now=NOW, grace_for=lambda _: 0.0) == ()
    assert trash.begun(tmp_path, "abc", tmp_path) is None
    assert trash.finish(tmp_path, "abc") == trash.Finished()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RunError, match="is not there"):
        trash.restore(tmp_path, "abc")


def test_a_trash_with_thousands_of_folders_is_read_with_few_descriptors(case: Case) -> None:
    """Descriptors are given back folder by folder."""
    case.clear()
    text = (case.place / "manifest.json").read_bytes()
    for number in range(1500):
        place = case.trash / f"g{number}"
        place.mkdir()
        (place / "manifest.json").write_bytes(text)
    assert len(trash.listing(case.watched)) == 1501
    assert purge(case, now=NOW + DAY) == ()


# ---------------------------------------------------------------- the way back


def test_restore_brings_everything_back_without_the_database(case: Case) -> None:
    """From nothing but the manifest, folder and sidecar included, and says what the frames are now."""
    case.clear()
    finish(case)
    restored = trash.restore(case.watched, trash.listing(case.watched)[0])
    assert (restored.source, restored.others, restored.kept) == (case.folder, ("workflow.json", "run.json"), ())
    assert restored.frames == tuple(frame_of(case.folder / name, step) for step, name in enumerate(case.digests, start=1))
    assert {name: digest(case.folder / name) for name in case.digests} == case.digests
    assert os.listdir(case.trash) == []
    record_again(case)
    assert case.clear().moved == 3


def test_restore_works_after_the_watched_folder_has_moved(case: Case) -> None:
    """Places are counted from the watched folder."""
    case.clear()
    finish(case)
    moved = case.watched.parent / "moved"
    case.watched.rename(moved)
    assert trash.restore(moved, case.render.generation).source == moved / "run"
    assert sorted(os.listdir(moved / "run")) == [*sorted(case.digests), "run.json", "workflow.json"]


def test_restore_overwrites_nothing(case: Case) -> None:
    """D5: a name that is taken stays in the trash, with its manifest, until there is room."""
    case.clear()
    finish(case)
    case.folder.mkdir()
    (case.folder / "00001.png").write_bytes(b"new")
    restored = trash.restore(case.watched, case.render.generation)
    assert restored.kept == ("00001.png: its name is taken by another file",)
    assert (case.folder / "00001.png").read_bytes() == b"new"
    assert case.there() == ["00001.png"]
    (case.folder / "00001.png").unlink()
    assert [frame.name for frame in trash.restore(case.watched, case.render.generation).frames] == ["00001.png"]
    assert os.listdir(case.trash) == []


@pytest.mark.parametrize("damage", ["cut", "empty", "link", "folder", "names", "gone", "elsewhere"])
def test_a_damaged_manifest_says_so_and_loses_nothing(case: Case, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    """No manifest is trusted further than it can be read; its files stay, and a new clearing goes elsewhere."""
    case.clear()
    finish(case)
    manifest = case.place / "manifest.json"
    text = manifest.read_text()
    manifest.unlink()
    if damage in ("cut", "empty", "names", "elsewhere"):
        changed = {"cut": text[:-40], "empty": "", "names": text.replace("00001.png", "../00001.png")}
        manifest.write_text(changed.get(damage, text.replace(str(case.folder), "/etc")))
    elif damage == "link":
        manifest.symlink_to(case.watched / "nowhere")
    elif damage == "folder":
        manifest.mkdir()
    with pytest.raises(RunError) as raised:
        trash.restore(case.watched, case.render.generation)
    assert "by hand" in raised.value.hint
    purge(case, now=NOW + 1000 * DAY, grace=None)
    assert case.there() == [*sorted(case.digests), "run.json", "workflow.json"]
    if damage not in ("gone", "elsewhere"):
        assert trash.listing(case.watched) == ()
        assert "is left alone: its manifest is damaged" in caplog.text


characters = st.one_of(
    st.characters(blacklist_characters="/\0", blacklist_categories=["Cs"]), st.characters(min_codepoint=0xDC80, max_codepoint=0xDCFF)
)
names_of_frames = st.text(characters, min_size=1, max_size=40).map(lambda text: f"{text}.png")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(names_of_frames.filter(lambda name: len(os.fsencode(name)) < 250), min_size=1, max_size=4, unique=True))
def test_any_name_goes_there_and_back(names: list[str]) -> None:
    """Rows 19, 20: undecodable bytes, line breaks, whatever a file system takes."""
    with tempfile.TemporaryDirectory() as base:
        case = make_case(Path(base), tuple(names), sidecar=False)
        assert case.clear().moved == len(names)
        assert finish(case).folder_removed
        restored = trash.restore(case.watched, case.render.generation)
        assert {frame.name for frame in restored.frames} == set(names)
        assert {name: digest(case.folder / name) for name in names} == case.digests


trashed = st.builds(Trashed, name=names_of_frames, step=st.integers(0), size=st.integers(0), ctime_ns=st.integers(-1), inode=st.integers(0))
manifests = st.builds(
    Manifest,
    kind=st.sampled_from(["frames", "output"]),
    grace=st.floats(0, 1e12),
    trashed_at=st.floats(0, 1e12),
    outputs=st.lists(st.builds(Published), max_size=2).map(tuple),
    files=st.lists(trashed, max_size=3, unique_by=lambda one: one.name).map(tuple),
)


@given(manifests)
def test_a_manifest_reads_as_it_was_written(manifest: Manifest) -> None:
    """Text and manifest are one, in plain ASCII."""
    assert parse_manifest(manifest_text(manifest), manifest.place) == manifest
    assert manifest_text(manifest).isascii()


@given(manifests, st.data())
def test_a_manifest_that_was_changed_is_whole_or_refused(manifest: Manifest, data: st.DataObject) -> None:
    """Whatever became of it, reading ends in a manifest with sane names or in one kind of error."""
    text = bytearray(manifest_text(manifest))
    where = data.draw(st.integers(0, len(text) - 1))
    text[where : where + data.draw(st.integers(0, 30))] = data.draw(st.sampled_from([b"", b"null", b"1e999", b"[" * 9, b'"../x"', b"\xff"]))
    try:
        read = parse_manifest(bytes(text), "place")
    except DamagedManifestError:
        return
    assert all("/" not in file.name for file in read.files)


# ---------------------------------------------------------------- animations


def test_an_incomplete_animation_is_retired_and_comes_back(case: Case) -> None:
    """Into the trash with a manifest of its own; again says the same; restore and purge work as for frames."""
    output = published(case.output)
    place = trash.retire(output, case.watched, reason="a newer one contains it", grace=DAY, now=NOW)
    assert place is not None
    assert not case.output.exists()
    assert trash.retire(output, case.watched, reason="a newer one contains it", grace=DAY, now=NOW) == place
    (manifest,) = trash.listing(case.watched)
    assert (manifest.kind, manifest.finished, manifest.reason) == ("output", True, "a newer one contains it")
    assert trash.restore(case.watched, place).others == (case.output.name,)
    assert digest(case.output) == output.sha256
    assert trash.retire(output, case.watched, reason="again", grace=DAY, now=NOW) == place
    assert purge(case, now=NOW + DAY)[0].removed == 1
    assert os.listdir(case.trash) == []


@pytest.mark.parametrize("how", ["gone", "no folder", "changed", "same size and time", "link", "other device"])
def test_what_is_not_our_animation_is_not_retired(case: Case, how: str) -> None:
    """Gone, changed, foreign, on another device: None, and nothing is left in the trash."""
    output = published(case.output)
    facts = case.output.stat()
    if how == "gone":
        case.output.unlink()
    elif how == "no folder":
        shutil.rmtree(case.output.parent)
    elif how == "changed":
        case.output.write_bytes(b"other")
    elif how == "same size and time":
        case.output.write_bytes(b"#" * facts.st_size)
        os.utime(case.output, ns=(0, facts.st_mtime_ns))
    elif how == "link":
        case.output.rename(case.watched / "real.mp4")
        case.output.symlink_to(case.watched / "real.mp4")
    else:
        shared = Path("/dev/shm")
        if not shared.is_dir() or shared.stat().st_dev == case.watched.stat().st_dev:
            pytest.skip("no second file system here")
        elsewhere = Path(tempfile.mkdtemp(dir=shared))
        output = published(Path(shutil.copy2(case.output, elsewhere)))
    assert trash.retire(output, case.watched, reason="", grace=DAY, now=NOW) is None
    assert case.output.exists() == (how not in ("gone", "no folder"))
    assert os.listdir(case.trash) == []
    if how == "other device":
        assert Path(output.path).exists()
        shutil.rmtree(elsewhere)


def test_an_animation_from_outside_is_not_put_back_by_a_manifest(case: Case) -> None:
    """A manifest that somebody planted cannot make `restore` write outside of the watched folder; the message says where the file is."""
    outside = case.watched.parent / "outside.mp4"
    outside.write_bytes(b"ours")
    place = trash.retire(published(outside), case.watched, reason="", grace=DAY, now=NOW)
    assert place is not None
    with pytest.raises(RunError, match="not inside the watched folder"):
        trash.restore(case.watched, place)
    assert (case.trash / place / "outside.mp4").read_bytes() == b"ours"


# ---------------------------------------------------------------- faults at every call


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A place in memory where there is one: the loops sync thousands of times."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    base = Path(tempfile.mkdtemp(dir=memory))
    yield base
    shutil.rmtree(base)


class Killed(BaseException):
    """The process ended here."""


class Faulty:
    """Stands for the module ``os`` and fails at the n-th call that touches a file system."""

    CALLS = ("open", "stat", "mkdir", "rename", "link", "unlink", "rmdir", "fsync", "listdir")

    def __init__(self, at: int, how: str) -> None:
        self.at = at
        self.how = how
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        return self.wrapped(getattr(os, name)) if name in self.CALLS else getattr(os, name)

    def wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.count += 1
            if self.count != self.at:
                return real(*arguments, **named)
            if self.how == "killed":
                raise Killed
            if self.how == "exit":
                os._exit(9)
            if self.how == "lost" and real is not os.open:
                # It was done, but the answer never came.
                with suppress(OSError):
                    real(*arguments, **named)
            raise OSError(errno.EIO, "Input/output error")

        return call


def visit_it(case: Case, receipts: Path, intermediates: Intermediates) -> None:
    """What the daemon does with a run whose clearing is due, from wherever it was cut short."""
    if not receipts.exists():
        cleared = case.clear(intermediates)
        assert cleared.finished
        receipts.write_text(str(cleared.moved))
    for manifest in trash.unfinished(case.watched):
        trash.finish(case.watched, manifest.place)
    trash.purge(case.watched, now=NOW, grace_for=lambda _: None if intermediates == "trash" else 0.0)


def copies(case: Case) -> Counter[str]:
    """How often each frame's content is anywhere below the watched folder; two names of one file count once."""
    files = {path.stat().st_ino: path for path in case.watched.rglob("*.png")}
    return Counter(digest(path) for path in files.values())


def no_renameat2(*_: object) -> None:
    raise OSError(errno.ENOSYS, "Function not implemented")


FAULTS = ("error", "lost", "killed", "exit")
# Each fault with each way to move and each way to clear, and all of them where most calls are made: `delete` clears as `trash` does, and goes on.
TELLING = {("delete", "renameat2", how) for how in FAULTS} | {
    ("trash", "renameat2", "error"),
    ("trash", "renameat2", "killed"),
    ("delete", "link", "error"),
    ("delete", "link", "killed"),
    ("trash", "link", "lost"),
    ("trash", "link", "exit"),
}


@pytest.mark.parametrize(
    ("intermediates", "move", "how"),
    [
        pytest.param(*case, marks=[] if case in TELLING else [pytest.mark.slow])
        for case in itertools.product(("trash", "delete"), ("renameat2", "link"), FAULTS)
    ],
)
def test_a_fault_at_any_call_loses_nothing(
    quick_path: Path, monkeypatch: pytest.MonkeyPatch, intermediates: Intermediates, move: str, how: str
) -> None:
    """Row 48: fail or end at the first call, then at the second ..., then do it again undisturbed: each frame is accounted for, at each instant."""
    real_rename = trash._rename_without_replacing
    for at in range(1, 1000):
        case = make_case(quick_path / str(at))
        receipts = quick_path / str(at) / "receipts"
        faulty = Faulty(at, how)
        rename = faulty.wrapped(no_renameat2 if move == "link" else real_rename)
        with monkeypatch.context() as patch:
            patch.setattr(trash, "os", faulty)
            patch.setattr(trash, "_rename_without_replacing", rename)
            disturbed = attempt(case, receipts, intermediates, faulty)
        everything = Counter(case.digests.values())
        if not receipts.exists() or intermediates == "trash":
            assert copies(case) == everything, at
        assert max(copies(case).values(), default=1) == 1
        with monkeypatch.context() as patch:
            patch.setattr(trash, "_rename_without_replacing", no_renameat2 if move == "link" else real_rename)
            visit_it(case, receipts, intermediates)
        assert receipts.read_text() == "3", at
        assert trash.unfinished(case.watched) == ()
        assert not case.folder.exists()
        assert case.output.exists()
        if intermediates == "delete":
            assert os.listdir(case.trash) == []
        else:
            assert os.listdir(case.trash) == [case.render.generation]
            assert case.there() == [*sorted(case.digests), "run.json", "workflow.json"]
        if not disturbed:
            assert at > 60
            return
    raise AssertionError("it never came to an end")


def attempt(case: Case, receipts: Path, intermediates: Intermediates, faulty: Faulty) -> bool:
    """Run with a fault; whether it came to that."""
    if faulty.how == "exit":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            try:
                visit_it(case, receipts, intermediates)
            finally:
                os._exit(0 if faulty.count < faulty.at else 8)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, 9)
        return code == 9
    try:
        visit_it(case, receipts, intermediates)
    except (EnvironmentFault, Killed):
        assert faulty.count >= faulty.at
        return True
    assert faulty.count < faulty.at, "a fault was swallowed"
    return False


@pytest.mark.parametrize("how", ["error", "lost", "killed"])
@pytest.mark.parametrize("move", ["renameat2", "link"])
def test_a_fault_at_any_call_of_restore_loses_nothing(quick_path: Path, monkeypatch: pytest.MonkeyPatch, move: str, how: str) -> None:
    """The way back can be cut short anywhere as well; again, and everything is where it was."""
    real_rename = trash._rename_without_replacing
    for at in range(1, 500):
        case = make_case(quick_path / str(at))
        visit_it(case, quick_path / str(at) / "receipts", "trash")
        faulty = Faulty(at, how)
        disturbed = False
        with monkeypatch.context() as patch:
            patch.setattr(trash, "os", faulty)
            patch.setattr(trash, "_rename_without_replacing", faulty.wrapped(no_renameat2 if move == "link" else real_rename))
            try:
                trash.restore(case.watched, case.render.generation)
            except (EnvironmentFault, Killed):
                disturbed = True
        assert copies(case) == Counter(case.digests.values())
        if trash.listing(case.watched):
            assert trash.restore(case.watched, case.render.generation).kept == ()
        trash.purge(case.watched, now=NOW, grace_for=lambda _: None)
        assert case.here() == [*sorted(case.digests), "run.json", "workflow.json"]
        assert os.listdir(case.trash) == []
        if not disturbed:
            assert at > 30
            return
    raise AssertionError("it never came to an end")


def test_a_stranger_in_a_clearing_of_which_nothing_is_left_ends_it(case: Case) -> None:
    """A crash, its files moved out by hand, and something of a desktop's in its place: there is nothing to go on with, and the stranger stays."""
    case.clear()
    assert len(trash.unfinished(case.watched)) == 1
    for name in case.digests:
        (case.place / name).rename(case.folder / name)
    (case.place / ".DS_Store").write_bytes(b"mine")
    assert finish(case) == trash.Finished()
    assert trash.unfinished(case.watched) == ()
    assert case.there() == [".DS_Store"]
    (case.place / ".DS_Store").unlink()
    purge(case, now=NOW + 2 * DAY)
    assert trash.listing(case.watched) == ()


def test_one_generation_is_asked_for_without_reading_all_manifests(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at a rendered run asks whether its clearing was cut short: thousands of other ones in the trash make that no slower."""
    case.clear()
    for number in range(20):
        other = case.trash / f"{number:064d}"
        other.mkdir()
        shutil.copy(case.place / "manifest.json", other)
    read: list[str] = []

    def counted(content: bytes, place: str) -> Manifest:
        read.append(place)
        return parse_manifest(content, place)

    monkeypatch.setattr(trash, "parse_manifest", counted)
    (manifest,) = trash.unfinished(case.watched, case.render.generation)
    assert (manifest.generation, read) == (case.render.generation, [case.render.generation])
    assert len(trash.unfinished(case.watched)) == 21


def test_whoever_empties_the_trash_hears_of_the_end_between_two_files(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not removed by then stays as it is, with its manifest, and goes the next time."""
    case.clear()
    finish(case)
    stop = threading.Event()
    check = trash._wrong

    def checked(folder: int, file: Trashed) -> str:
        stop.set()
        return check(folder, file)

    monkeypatch.setattr(trash, "_wrong", checked)
    over = NOW + 2 * DAY
    (purged,) = trash.purge(case.watched, now=over, grace_for=lambda _: 0.0, stop=stop)
    assert (purged.removed, purged.kept, len(case.there())) == (1, (), 4)
    assert trash.purge(case.watched, now=over, grace_for=lambda _: 0.0, stop=stop) == ()
    (rest,) = purge(case, now=over)
    assert (rest.removed, case.place.exists()) == (4, False)


def test_a_complaint_about_a_place_is_logged_once(case: Case, caplog: pytest.LogCaptureFixture) -> None:
    """The trash is listed by every look at a run whose policy clears."""
    case.clear()
    (case.place / "manifest.json").write_text("{")
    for _ in range(3):
        assert trash.listing(case.watched) == ()
    assert len([line for line in caplog.messages if "is left alone" in line]) == 1


def test_two_clearings_at_once_share_the_work(quick_path: Path) -> None:
    """Threads and processes take turns in one trash: each frame is moved once, and both count all of them."""
    case = make_case(quick_path, tuple(f"{number:05d}.png" for number in range(60)))
    results: list[trash.Cleared] = []
    threads = [threading.Thread(target=lambda: results.append(case.clear())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {(one.moved, one.changed) for one in results} == {(60, ())}
    assert copies(case) == Counter(case.digests.values())


def test_one_worker_at_a_time(case: Case) -> None:
    """Whoever works in the trash holds its folder; another one waits, and moves nothing meanwhile."""
    case.trash.mkdir(parents=True)
    holder = os.open(case.trash, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    worker = threading.Thread(target=case.clear)
    worker.start()
    worker.join(0.3)
    assert worker.is_alive()
    assert len(case.here()) == 5
    os.close(holder)
    worker.join()
    assert len(case.there()) == 3
