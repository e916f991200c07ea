"""Runs found on disk, and files published under their names."""

from __future__ import annotations

import errno
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from stepwatch import store
from stepwatch.core.model import Outcome, Run
from stepwatch.core.naming import output_stem
from stepwatch.errors import ConfigError, EnvironmentFault, NoFramesError, PublishError
from stepwatch.tags import embed

REAL_RUNS = Path(__file__).parents[2] / "shared" / "frames"


def write(folder: Path, *names: str, content: bytes = b"x") -> None:
    """Write files; what is in them does not matter to the store."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(content)


def write_sidecar(folder: Path, **changes: Any) -> None:
    """Write a sidecar for frames 00000.png, 00001.png ... unless changes say otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"schema": "stepwatch.run/1", "run_id": folder.name, "state": "complete", "frames": {"name": "{index:05d}.png"}}
    (folder / "run.json").write_text(json.dumps(content | changes), encoding="utf-8")


def find(folder: Path, pattern: str | None = None, exclude: Callable[[Path], bool] = lambda _: False) -> list[Run]:
    """Find runs where every folder has the same pattern."""
    return store.find_runs(folder, pattern_for=lambda _: pattern, exclude=exclude)


def find_one(folder: Path, pattern: str | None = None) -> Run:
    """Find the only run there is."""
    (run,) = find(folder, pattern)
    return run


def names(run: Run) -> list[str]:
    """List the names of a run's frames, in order."""
    return [frame.name for frame in run.frames]


def steps(run: Run) -> list[int]:
    """List the steps of a run's frames, in order."""
    return [frame.step for frame in run.frames]


# ---------------------------------------------------------------- folders without a sidecar


@pytest.mark.skipif(not REAL_RUNS.is_dir(), reason="the recorded runs are not here")
def test_real_runs_are_found() -> None:
    """Every recorded run is a guessed run of its folder, with all of its steps."""
    runs = find(REAL_RUNS)
    assert [run.name for run in runs] == ["A", "A-jpg", "B", "C", "D", "E", "F", "G", "J"]
    for run in runs:
        done = json.loads((REAL_RUNS / run.name / "meta.json").read_text(encoding="utf-8"))["steps_done"]
        assert steps(run) == list(range(1, done + 1))
        assert (run.key.group, run.layout, run.guessed, run.missing, run.duplicates, run.complete) == ("", "numbered", True, (), (), False)


def test_a_frame_carries_the_facts_of_its_file(tmp_path: Path) -> None:
    """Size, times, inode, device and links are those of the file."""
    write(tmp_path, "f1.png", content=b"12345")
    os.link(tmp_path / "f1.png", tmp_path / "elsewhere")
    (frame,) = find_one(tmp_path).frames
    facts = (tmp_path / "f1.png").stat()
    assert (frame.step, frame.name, frame.size, frame.links) == (1, "f1.png", 5, 2)
    assert (frame.mtime_ns, frame.ctime_ns, frame.inode, frame.device) == (facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino, facts.st_dev)


def test_the_folder_itself_those_below_and_flat_folders_are_all_looked_at(tmp_path: Path) -> None:
    """DIR may be one run, hold runs, and hold several in one folder, all at once."""
    write(tmp_path, "f1.png", "f2.png")
    write(tmp_path / "deep" / "er", "f1.png")
    write(tmp_path / "flat", *(f"{run}_{step:05d}_.png" for run in ("cat", "dog") for step in (1, 2)))
    assert [(run.key.folder, run.key.group) for run in find(tmp_path)] == [
        (str(tmp_path), ""),
        (str(tmp_path / "deep" / "er"), ""),
        (str(tmp_path / "flat"), "cat"),
        (str(tmp_path / "flat"), "dog"),
    ]


def test_runs_come_in_natural_order(tmp_path: Path) -> None:
    """Run 9 comes before run 10, and a folder before what is below it."""
    for name in ("run10", "run9", "run9/b", "run100"):
        write(tmp_path / name, "1.png")
    assert [os.path.relpath(run.key.folder, tmp_path) for run in find(tmp_path)] == ["run9", "run9/b", "run10", "run100"]


def test_a_run_is_known_by_its_real_path(tmp_path: Path) -> None:
    """Whoever looks, through whichever link, sees the same run."""
    write(tmp_path / "real", "1.png")
    (tmp_path / "link").symlink_to("real")
    assert find_one(tmp_path / "link") == find_one(tmp_path / "real")
    assert find_one(tmp_path / "link" / ".." / "link").run_id == find_one(tmp_path / "real").run_id


def test_folders_are_never_entered_through_links(tmp_path: Path) -> None:
    """A link to a folder, even to one above, is not followed."""
    write(tmp_path / "outside", "1.png")
    write(tmp_path / "watched" / "run", "1.png")
    (tmp_path / "watched" / "out").symlink_to(tmp_path / "outside")
    (tmp_path / "watched" / "run" / "up").symlink_to("..")
    assert find_one(tmp_path / "watched").key.folder == str(tmp_path / "watched" / "run")


def test_hidden_and_excluded_folders_are_left_out(tmp_path: Path) -> None:
    """Neither the trash nor outputs are taken for runs."""
    for name in (".stepwatch/trash/x", "animation", "run", "run/animation"):
        write(tmp_path / name, "1.png")
    runs = find(tmp_path, exclude=lambda folder: folder.name == "animation")
    assert [run.key.folder for run in runs] == [str(tmp_path / "run")]


def test_a_pattern_decides_which_images_are_frames(tmp_path: Path) -> None:
    """With a pattern nothing is guessed, and images that it does not match are no frames."""
    write(tmp_path, "cat-s1.png", "cat-s2.png", "dog-s1.png", "final.png", "cat-s2.json")
    cat, dog = find(tmp_path, r"(?P<run>[a-z]+)-s(?P<step>[0-9]+)\.png")
    assert (cat.name, names(cat), cat.layout, cat.guessed) == ("cat", ["cat-s1.png", "cat-s2.png"], "pattern", False)
    assert (dog.name, names(dog)) == ("dog", ["dog-s1.png"])


def test_a_pattern_that_matches_nothing_finds_no_run(tmp_path: Path) -> None:
    """Finished pictures of a host are never mistaken for frames."""
    write(tmp_path, "00001-4242.png", "00002-4243.png")
    assert find(tmp_path, "steps-animation") == []


def test_a_pattern_is_asked_for_each_folder(tmp_path: Path) -> None:
    """The policy of the folder counts, not that of the top."""
    write(tmp_path / "a", "a_00001_.png")
    write(tmp_path / "b", "b1.png")
    runs = store.find_runs(tmp_path, pattern_for=lambda folder: "comfyui" if folder.name == "a" else None, exclude=lambda _: False)
    assert [(run.layout, run.guessed) for run in runs] == [("comfyui", False), ("numbered", True)]


def test_a_wrong_pattern_is_a_configuration_error_that_names_the_folder(tmp_path: Path) -> None:
    """The sentence says what would be right."""
    write(tmp_path, "1.png")
    with pytest.raises(ConfigError, match=rf"frames\.pattern for {re.escape(str(tmp_path))}: .* no group named step"):
        find(tmp_path, r"f(\d+)\.png")


def test_folders_without_numbered_images_hold_no_runs(tmp_path: Path) -> None:
    """Neither an empty folder nor one of other files is a run."""
    write(tmp_path, "cat.png", "notes1.txt", "1.json")
    (tmp_path / "empty").mkdir()
    assert find(tmp_path) == []


def test_a_single_numbered_image_beside_a_run_is_left_out_of_a_guess(tmp_path: Path) -> None:
    """cover1.png is no run; the other frames are the folder's, as without it, and a note says so."""
    write(tmp_path, "step_1.png", "step_2.png", "cover1.png")
    run = find_one(tmp_path)
    assert (run.key.group, names(run)) == ("", ["step_1.png", "step_2.png"])
    assert run.notes == ("left out, no part of a run: cover1.png",)
    assert [run.key.group for run in find(tmp_path, "numbered")] == ["cover", "step_"]


def test_runs_of_several_layouts_in_one_folder_are_all_found(tmp_path: Path) -> None:
    """Nothing in a flat folder that several hosts write into is lost: each run has its own layout, and what is no frame is named once."""
    write(tmp_path, *(f"{index:05d}.jpg" for index in range(5)), "final.png", "cover1.png", "notes.txt")
    write(tmp_path, *(f"0000{index:03d}-{seed}-a cat.png" for index in range(3) for seed in (12, 123)))
    write(tmp_path, *(f"0000{number}-{index:03d}-42.png" for index in range(4) for number in (1, 2)))
    write(tmp_path, *(f"{name}_{index:05d}_.png" for index in (1, 2) for name in ("cat", "dog")))
    runs = find(tmp_path)
    assert [(run.layout, run.key.group, len(run.frames), run.guessed) for run in runs] == [
        ("numbered", "", 5, True),
        ("steps-animation", "0000-12-a cat", 3, True),
        ("steps-animation", "0000-123-a cat", 3, True),
        ("save-intermediate", "00001-42", 4, True),
        ("save-intermediate", "00002-42", 4, True),
        ("comfyui", "cat", 2, True),
        ("comfyui", "dog", 2, True),
    ]
    assert [note for run in runs for note in run.notes] == ["left out, no part of a run: cover1.png, final.png"]
    assert len({run.run_id for run in runs}) == 7


def test_images_that_a_pattern_does_not_match_are_counted(tmp_path: Path) -> None:
    """Somebody who set a pattern hears which images it leaves out, and only once."""
    write(tmp_path, *(f"{name}_{index:05d}_.png" for index in (1, 2) for name in ("cat", "dog")), *(f"f{index}.png" for index in range(7)))
    cat, dog = find(tmp_path, "comfyui")
    assert cat.notes == ("left out, 7 images not named as frames.pattern says (comfyui): f0.png, f1.png, f2.png, f3.png, f4.png ...",)
    assert dog.notes == ()
    cat, dog = find(tmp_path, r"(?P<run>cat|dog)_(?P<step>0000\d)_\.png")
    assert cat.notes[0].startswith(r"left out, 7 images not named as frames.pattern says ((?P<run>cat|dog)_(?P<step>0000\d)_\.png): f0.png")
    (tmp_path / "cat_00001_.png").rename(tmp_path / "first.png")
    (run,) = find(tmp_path, r"(cat|f|dog)(_0000)?(?P<step>\d)_?\.png")
    assert run.notes[-1].startswith("left out, 1 image not named as frames.pattern says (")


def test_a_run_of_steps_animation_carries_the_seed_and_prompt_of_its_names(tmp_path: Path) -> None:
    """Where the frames hold no text, their names still tell; an appended run has the first part's."""
    write(tmp_path, "0101000-12-cat.png", "0101001-12-cat.png", "0201000-13-.png")
    for pattern in (None, "steps-animation"):
        runs = find(tmp_path, pattern)
        assert [(run.seed_hint, run.prompt_hint) for run in runs] == [(12, "cat"), (13, None)]
    appended = store.append_runs(tmp_path, runs)
    assert (appended.seed_hint, appended.prompt_hint) == (12, "cat")


def save_webp(path: Path, pictures: int = 1, exif: bytes = b"") -> None:
    """Write a WebP of so many pictures."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *others = (Image.new("RGB", (16, 16), (50 * number, 0, 0)) for number in range(pictures))
    first.save(path, save_all=pictures > 1, append_images=others, exif=exif)


def save_output(path: Path, pictures: int = 1, tags: Mapping[str, str] | None = None) -> None:
    """Write a WebP as stepwatch publishes it."""
    bare = path.with_suffix(".bare")
    path.parent.mkdir(parents=True, exist_ok=True)
    save_webp(path.with_suffix(".bare.webp"), pictures)
    path.with_suffix(".bare.webp").rename(bare)
    embed(bare, "webp", {"stepwatch": '{"run":"r"}'} if tags is None else tags, path)
    bare.unlink()


LONG_TAGS = {
    "stepwatch": '{"run":"r"}',
    "parameters": "a cat " * 9000,
    "prompt": '{"3": "cat"}' * 3000,
    "workflow": "[1]" * 9000,
    "title": "cat",
    "artist": "me",
}


@pytest.mark.parametrize("tags", [None, LONG_TAGS])
@pytest.mark.parametrize("pictures", [1, 3])
@pytest.mark.parametrize("pattern", [None, "numbered"])
def test_our_own_outputs_are_never_frames(tmp_path: Path, pictures: int, pattern: str | None, tags: Mapping[str, str] | None) -> None:
    """An animation left in a folder that is no output folder any more makes no run there and joins none, nor does one of a single picture."""
    save_output(tmp_path / "old" / "2026-1-aaaaa1.webp", pictures, tags)
    save_output(tmp_path / "run" / "7.webp", pictures, tags)
    write(tmp_path / "run", "1.png", "2.png")
    run = find_one(tmp_path, pattern)
    assert names(run) == ["1.png", "2.png"]
    assert run.notes == ("left out, an animation and no frame: 7.webp",)


def test_still_webp_frames_are_frames_whatever_their_exif(tmp_path: Path) -> None:
    """A host's own text in a WebP is no stamp of ours, and neither a cut nor a lying file stops the listing."""
    exif = Image.Exif()
    exif[0x010D], exif[0x010F] = "somebody's document", "workflow:{}"
    save_webp(tmp_path / "1.webp")
    save_webp(tmp_path / "2.webp", exif=exif.tobytes())
    Image.new("RGBA", (16, 16)).save(tmp_path / "3.webp", lossless=True, exif=exif.tobytes())
    whole = (tmp_path / "2.webp").read_bytes()
    (tmp_path / "4.webp").write_bytes(whole[:24])
    (tmp_path / "5.webp").write_bytes(whole[:30] + b"ALPH" + b"\xff" * 4)
    (tmp_path / "6.webp").write_bytes(whole[:30] + b"EXIF\x0c\0\0\0MM\0*\0\0\0\x08\0\1\1\x0d")
    write(tmp_path, "7.webp", content=b"")
    assert steps(find_one(tmp_path)) == [1, 2, 3, 4, 5, 6, 7]


def test_an_animated_png_is_no_frame_of_a_guess(tmp_path: Path) -> None:
    """An apng under the suffix of stills makes no run; where a policy says that it is a frame, the survey will say what is wrong with it."""
    first, second = Image.new("RGB", (8, 8)), Image.new("RGB", (8, 8), (255, 0, 0))
    first.save(tmp_path / "clip1.png", save_all=True, append_images=[second])
    first.save(tmp_path / "bare.apng", format="PNG", save_all=True, append_images=[second])
    embed(tmp_path / "bare.apng", "apng", LONG_TAGS, tmp_path / "clip2.png")
    assert find(tmp_path) == []
    assert names(find_one(tmp_path, "numbered")) == ["clip1.png", "clip2.png"]
    write(tmp_path, "clip3.png", "clip4.png")
    assert names(find_one(tmp_path)) == ["clip3.png", "clip4.png"]


def test_a_sidecar_without_a_format_takes_no_animation_for_a_frame(tmp_path: Path) -> None:
    """Outputs in the run's own folder stay outputs."""
    write_sidecar(tmp_path, frames={})
    write(tmp_path, "0.webp", "1.png")
    save_output(tmp_path / "2.webp")
    assert names(find_one(tmp_path)) == ["0.webp", "1.png"]


def test_a_folder_named_animation_is_not_guessed_at(tmp_path: Path) -> None:
    """What lies in the default output folder is output, unless somebody says otherwise: DIR itself, a pattern, or a sidecar."""
    write(tmp_path / "animation", "1.png", "2.png")
    write(tmp_path / "animation" / "shot", "1.png", "2.png")
    assert find_one(tmp_path).name == "shot"
    assert [run.name for run in find(tmp_path / "animation")] == ["animation", "shot"]
    assert [run.name for run in find(tmp_path, "numbered")] == ["animation", "shot"]
    write_sidecar(tmp_path / "animation", frames={})
    assert [run.name for run in find(tmp_path)] == ["animation", "shot"]


def test_images_that_make_no_run_are_named(tmp_path: Path) -> None:
    """Where nothing is found, the caller can say which images are there; looking ends at the limit."""
    write(tmp_path, "cat.png", "dog.jpg", "notes.txt", ".hidden.png")
    write(tmp_path / "deep" / "er", "bird.webp")
    write(tmp_path / ".trash", "1.png")
    write(tmp_path / "animation", "fish.png")
    save_output(tmp_path / "out" / "7.webp", 2)
    assert find(tmp_path) == []
    assert store.images_below(tmp_path, 100) == ["bird.webp", "cat.png", "dog.jpg", "fish.png"]
    assert len(store.images_below(tmp_path, 2)) == 2
    assert store.images_below(tmp_path / "nowhere", 100) == []


def test_a_folder_that_is_not_there_is_no_frames(tmp_path: Path) -> None:
    """Exit code 66, with the path."""
    write(tmp_path, "file")
    with pytest.raises(NoFramesError, match="nowhere does not exist"):
        find(tmp_path / "nowhere")
    with pytest.raises(NoFramesError, match="file is not a folder"):
        find(tmp_path / "file")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EIO, errno.ESTALE])
def test_a_folder_that_cannot_be_listed_is_the_machine_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """At the top it is an error; below, the other folders are still seen."""
    write(tmp_path / "closed", "1.png")
    write(tmp_path / "open", "1.png")
    scandir = os.scandir

    def refuse(path: Path) -> Any:
        if path.name == "closed":
            raise OSError(code, os.strerror(code))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_one(tmp_path).key.folder == str(tmp_path / "open")
    with pytest.raises(EnvironmentFault, match=r"cannot list .*closed"):
        find(tmp_path / "closed")


# ---------------------------------------------------------------- frames


def test_a_gap_is_reported_and_cuts_nothing(tmp_path: Path) -> None:
    """Frame 10 of 20 is gone: the 19 others are there, and 10 is missing."""
    write(tmp_path, *(f"step_{step:05d}.png" for step in range(1, 21) if step != 10))
    run = find_one(tmp_path)
    assert (len(run.frames), run.missing) == (19, (10,))


def test_temporary_and_hidden_files_are_never_frames(tmp_path: Path) -> None:
    """A frame being written counts only under its final name."""
    write(tmp_path, "1.png", ".2.png", "2.png.tmp", "2.png.part", ".2.png.4711.tmp", ".stepwatch-1-00000000-00000000.tmp.webp")
    assert names(find_one(tmp_path)) == ["1.png"]
    os.replace(tmp_path / "2.png.tmp", tmp_path / "2.png")
    assert names(find_one(tmp_path)) == ["1.png", "2.png"]


def test_unpadded_numbers_sort_by_value(tmp_path: Path) -> None:
    """f10 comes after f9."""
    write(tmp_path, "f10.png", "f9.png", "f8.png")
    assert names(find_one(tmp_path)) == ["f8.png", "f9.png", "f10.png"]


def test_duplicates_are_reported_by_name(tmp_path: Path) -> None:
    """Two files of step 10: one is the frame, the others are duplicates with their facts, and a note names them."""
    write(tmp_path, "f009.png", "f010.png", "f010.jpg", "f011.png")
    write(tmp_path, "f010-1.png", content=b"copy")
    run = find_one(tmp_path)
    assert names(run) == ["f009.png", "f010.png", "f011.png"]
    assert [(frame.step, frame.name, frame.size) for frame in run.duplicates] == [(10, "f010.jpg", 1), (10, "f010-1.png", 4)]
    assert run.notes == ("further files of a step that has its frame: f010.jpg (step 10 is f010.png), f010-1.png (step 10 is f010.png)",)


def test_interleaved_runs_whose_names_begin_alike_are_two_runs(tmp_path: Path) -> None:
    """Seeds 12 and 123 in the flat folder of Steps Animation."""
    write(tmp_path, *(f"0000{index:03d}-{seed}-a cat.png" for index in range(3) for seed in (12, 123)))
    short, long = find(tmp_path)
    assert (short.name, long.name) == ("0000-12-a cat", "0000-123-a cat")
    assert steps(short) == steps(long) == [1, 2, 3]
    assert short.run_id != long.run_id
    assert not set(names(short)) & set(names(long))


ODD_NAMES = [
    "line\nbreak 1.png",
    "quote\"'1.png",
    "100%d done 1.png",
    "[x]1.png",
    "-y1.png",
    "http:1.png",
    "concat:a|b1.png",
    "x" * 250 + "1.png",
    "nfc-é-1.png",
    "nfd-e\u0301-1.png",
    "🚀1.png",
    "\x1b[2J1.png",
]


def test_odd_names_are_ordinary_frames(tmp_path: Path) -> None:
    """Whatever a name holds, the frame is found under exactly that name."""
    for number, name in enumerate(ODD_NAMES):
        write(tmp_path / str(number), name)
    assert [names(run) for run in find(tmp_path)] == [[name] for name in ODD_NAMES]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_undecodable_names_go_through_log_json_and_names(tmp_path: Path) -> None:
    """A Latin-1 name is a frame, its run has an id, and what people read of it is plain text."""
    place = os.fsencode(tmp_path) + b"/caf\xe9"
    os.mkdir(place)
    for number in (1, 2):
        with open(place + b"/bad\xff%d.png" % number, "wb"):
            pass
    run = find_one(tmp_path)
    assert names(run) == ["bad\udcff1.png", "bad\udcff2.png"]
    assert run.name == "caf\\xe9"
    json.dumps([run.name, run.run_id, *run.notes], ensure_ascii=False).encode()
    output_stem("{run}", {"run": run.name}, incomplete=False).encode()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_what_is_no_file_in_a_frame_s_place_is_listed_and_not_opened(tmp_path: Path) -> None:
    """A pipe, socket, folder, device or link to nowhere is a frame without bytes, for the survey to report; finding it never waits."""
    write(tmp_path, "f1.png")
    os.mkfifo(tmp_path / "f2.png")
    (tmp_path / "f3.png").mkdir()
    (tmp_path / "f4.png").symlink_to("nowhere")
    (tmp_path / "f5.png").symlink_to("/dev/zero")
    listener = socket.socket(socket.AF_UNIX)
    previous = Path.cwd()
    try:
        os.chdir(tmp_path)  # a socket's path may have 107 bytes only
        listener.bind("f6.png")
        runs = find(tmp_path)
    finally:
        os.chdir(previous)
        listener.close()
    assert [(frame.step, frame.size) for frame in runs[0].frames] == [(1, 1), (2, 0), (3, 0), (4, 0), (5, 0), (6, 0)]


def test_a_link_to_a_file_is_a_frame_with_the_file_s_facts(tmp_path: Path) -> None:
    """Linked frames can be rendered."""
    write(tmp_path / "store", "blob", content=b"1234")
    write(tmp_path / "run")
    (tmp_path / "run" / "f1.png").symlink_to("../store/blob")
    (frame,) = find_one(tmp_path / "run").frames
    assert (frame.size, frame.inode) == (4, (tmp_path / "store" / "blob").stat().st_ino)


def test_a_frame_that_vanishes_while_listing_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between listing and looking a frame may be cleared; a disk fault at the same place is an error."""
    write(tmp_path, "f1.png", "f2.png")
    lstat = os.lstat
    code = errno.ENOENT

    def failing(path: str, **options: Any) -> os.stat_result:
        if str(path).endswith("f1.png"):
            raise OSError(code, os.strerror(code), path)
        return lstat(path, **options)

    monkeypatch.setattr(os, "lstat", failing)
    assert names(find_one(tmp_path)) == ["f2.png"]
    code = errno.EACCES
    assert [frame.size for frame in find_one(tmp_path).frames] == [0, 1]
    code = errno.EIO
    with pytest.raises(EnvironmentFault, match=r"f1\.png: the disk reports an error"):
        find(tmp_path)


# ---------------------------------------------------------------- folders with a sidecar


def test_a_sidecar_s_frames_have_the_steps_it_tells(tmp_path: Path) -> None:
    """A frame's step is 1 + skip + index * every; holes are counted in that stride."""
    write_sidecar(tmp_path / "r-1", steps={"every": 5, "skip": 2}, frames={"name": "{index:05d}.png", "lost": [2]})
    write(tmp_path / "r-1", "00000.png", "00001.png", "00003.png", "extra1.png", "00004.jpg")
    run = find_one(tmp_path)
    assert (run.name, run.run_id, run.layout, run.guessed, run.complete) == ("r-1", "r-1", "sidecar", False, True)
    assert (names(run), steps(run), run.missing) == (["00000.png", "00001.png", "00003.png"], [3, 8, 18], (13,))
    assert run.notes == ("the hook could not write 1 frame: index 2",)


def test_a_sidecar_beats_a_pattern(tmp_path: Path) -> None:
    """Where the hook says what the frames are, nobody else is asked."""
    write_sidecar(tmp_path)
    write(tmp_path, "00000.png", "00001.png")
    run = find_one(tmp_path, "comfyui")
    assert (run.layout, steps(run)) == ("sidecar", [1, 2])


def test_a_sidecar_without_a_format_takes_numbered_images_as_indices(tmp_path: Path) -> None:
    """The number is the index, from 0; of several prefixes the one with most frames is the run."""
    write_sidecar(tmp_path, frames={}, steps={"every": 2})
    write(tmp_path, "x0_0.png", "x0_1.png", "x0_1.jpg", "x0_2.png", "cover1.png")
    run = find_one(tmp_path)
    assert (names(run), steps(run)) == (["x0_0.png", "x0_1.png", "x0_2.png"], [1, 3, 5])
    assert [(frame.step, frame.name) for frame in run.duplicates] == [(3, "x0_1.jpg")]
    assert "left out, no frames of this run: 1 image named cover..." in run.notes


def test_a_format_that_no_file_has_is_noted(tmp_path: Path) -> None:
    """The sidecar promises PNG, the frames are JPEG: they are taken, with a note."""
    write_sidecar(tmp_path)
    write(tmp_path, "00000.jpg", "00001.jpg")
    run = find_one(tmp_path)
    assert steps(run) == [1, 2]
    assert run.notes == ("no frame is named as run.json says ({index:05d}.png); numbered images are taken instead",)


def test_a_run_without_frames_yet_is_a_run(tmp_path: Path) -> None:
    """A hook writes its sidecar before the first frame."""
    write_sidecar(tmp_path, state="running")
    run = find_one(tmp_path)
    assert (run.frames, run.sidecar and run.sidecar.state) == ((), Outcome.RUNNING)


@pytest.mark.parametrize(
    ("state", "count", "notes"),
    [
        ("complete", 2, ()),
        ("complete", 50, ("run.json counts 50 frames, 2 are here",)),
        ("complete", 1, ("run.json counts 1 frame, 2 are here",)),
        ("running", 50, ()),
    ],
)
def test_a_sidecar_that_counts_wrongly_is_noted_and_every_frame_taken(tmp_path: Path, state: str, count: int, notes: tuple[str, ...]) -> None:
    """Fewer or more frames than a finished run claims: those that are there are its frames. While it runs, counts are hints."""
    write_sidecar(tmp_path, state=state, frames={"name": "{index:05d}.png", "count": count})
    write(tmp_path, "00000.png", "00001.png")
    run = find_one(tmp_path)
    assert (steps(run), run.notes) == ([1, 2], notes)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "it is empty"),
        (b'{"schema": "stepwatch.ru', "not complete JSON"),
        (b'{"schema": "stepwatch.run/2", "run_id": "r", "state": "complete"}', 'its schema is "stepwatch.run/2"'),
        (b'{"schema": "stepwatch.run/1", "run_id": "../x", "state": "complete"}', 'its run_id is "../x"'),
        (b"[" * 100_000, "nested too deeply"),
        (b" " * 300_000, "larger than 256 KiB"),
    ],
    ids=["empty", "half", "major", "path", "deep", "large"],
)
def test_a_broken_sidecar_is_named_and_the_folder_read_without_it(tmp_path: Path, content: bytes, sentence: str) -> None:
    """The run is there, guessed, incomplete, with the fault in its notes."""
    write(tmp_path, "00000.png", "00001.png")
    write(tmp_path, "run.json", content=content)
    run = find_one(tmp_path)
    assert (steps(run), run.sidecar, run.complete, run.guessed) == ([1, 2], None, False, True)
    assert run.notes[0].startswith("run.json is not used: ")
    assert sentence in run.notes[0]


def test_a_huge_sidecar_is_not_read_whole(tmp_path: Path) -> None:
    """A gigabyte under the name run.json costs a quarter of a megabyte."""
    write(tmp_path, "1.png")
    with (tmp_path / "run.json").open("wb") as file:
        file.truncate(1 << 30)
    assert "larger than 256 KiB" in find_one(tmp_path).notes[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_sidecar_that_is_no_file_is_never_waited_for(tmp_path: Path) -> None:
    """A pipe, a folder and a link in its place are named."""
    for name in ("pipe", "folder", "link"):
        write(tmp_path / name, "1.png")
    os.mkfifo(tmp_path / "pipe" / "run.json")
    (tmp_path / "folder" / "run.json").mkdir()
    (tmp_path / "link" / "run.json").symlink_to("/dev/zero")
    notes = {run.name: run.notes[0] for run in find(tmp_path)}
    assert "not a regular file" in notes["pipe"]
    assert "not a regular file" in notes["folder"] or "directory" in notes["folder"]
    assert "links are not followed" in notes["link"]


def test_two_folders_with_one_run_id_are_noted(tmp_path: Path) -> None:
    """A copied run cannot be told from its original by its id."""
    for name in ("one", "two", "three"):
        write_sidecar(tmp_path / name, run_id="three" if name == "three" else "same")
    assert [(run.name, run.notes) for run in find(tmp_path)] == [
        ("same", ("another folder has the run_id same too",)),
        ("three", ()),
        ("same", ("another folder has the run_id same too",)),
    ]


def test_a_workflow_beside_the_sidecar_is_read(tmp_path: Path) -> None:
    """Prompt and workflow come back as JSON texts; all else, and anything broken, is left out."""
    write_sidecar(tmp_path, workflow_file="workflow.json")
    write(tmp_path, "workflow.json", content='{"prompt": {"3": {"text": "é"}}, "workflow": [1], "other": {}}'.encode())
    assert store.read_workflow(find_one(tmp_path)) == {"prompt": '{"3": {"text": "é"}}'}
    for broken in (b"{", b"[" * 100_000, b"\xff", b'{"prompt": {"a": "\\ud800"}}', b'"x"'):
        write(tmp_path, "workflow.json", content=broken)
        assert store.read_workflow(find_one(tmp_path)) == {}
    (tmp_path / "workflow.json").unlink()
    (tmp_path / "workflow.json").symlink_to("/etc/passwd")
    assert store.read_workflow(find_one(tmp_path)) == {}
    write_sidecar(tmp_path)
    assert store.read_workflow(find_one(tmp_path)) == {}


# ---------------------------------------------------------------- one animation of several runs


def test_appended_runs_are_one_run_of_the_folder(tmp_path: Path) -> None:
    """Frames follow in the order of the runs under names that lead there, steps count on, holes move along."""
    write(tmp_path / "b9", "1.png", "2.png", "4.png")
    write(tmp_path / "b10", "f2.png", "f3.png", "f3.jpg")
    run = store.append_runs(tmp_path, find(tmp_path))
    assert (run.key.folder, run.key.group, run.name, run.guessed, run.layout) == (str(tmp_path), "", tmp_path.name, True, "numbered")
    assert names(run) == [
        os.path.join("b9", "1.png"),
        os.path.join("b9", "2.png"),
        os.path.join("b9", "4.png"),
        os.path.join("b10", "f2.png"),
        os.path.join("b10", "f3.png"),
    ]
    assert (steps(run), run.missing) == ([1, 2, 4, 6, 7], (3,))
    assert [(frame.step, frame.name) for frame in run.duplicates] == [(7, os.path.join("b10", "f3.jpg"))]
    assert all((tmp_path / name).is_file() for name in names(run))
    assert run.notes[0].startswith("b10: further files")


def test_an_appended_run_stays_the_same_run_while_it_grows(tmp_path: Path) -> None:
    """It is known by its folder; its parts keep their own ids."""
    write_sidecar(tmp_path / "r1")
    write(tmp_path / "r1", "00000.png")
    alone = store.append_runs(tmp_path, find(tmp_path))
    write_sidecar(tmp_path / "r2")
    write(tmp_path / "r2", "00000.png")
    both = store.append_runs(tmp_path, find(tmp_path))
    assert both.run_id == alone.run_id
    assert both.run_id not in ("r1", "r2")
    assert (steps(alone), steps(both)) == ([1], [1, 2])


@pytest.mark.parametrize(
    ("states", "expected"),
    [
        (["complete", "complete"], Outcome.COMPLETE),
        (["complete", "running"], Outcome.RUNNING),
        (["failed", "complete"], Outcome.FAILED),
        (["interrupted", "running"], Outcome.RUNNING),
        (["complete", None], Outcome.INTERRUPTED),
        ([None, "running"], Outcome.RUNNING),
        ([None, None], None),
    ],
)
def test_an_appended_run_is_complete_only_if_every_part_says_so(tmp_path: Path, states: list[str | None], expected: Outcome | None) -> None:
    """The least finished part speaks for all; the texts are those of the first part that has any."""
    for number, state in enumerate(states):
        write(tmp_path / f"r{number}", "00000.png")
        if state:
            write_sidecar(tmp_path / f"r{number}", state=state, generation={"seed": number})
    run = store.append_runs(tmp_path, find(tmp_path))
    assert (run.sidecar.state if run.sidecar else None) == expected
    assert run.complete is (expected is Outcome.COMPLETE)
    if run.sidecar:
        assert run.sidecar.generation == {"seed": next(number for number, state in enumerate(states) if state)}


def test_parts_of_different_scale_are_noted(tmp_path: Path) -> None:
    """One factor for all is kept, different ones are not applied."""
    for number, scale in enumerate((8, 8, 4)):
        write_sidecar(tmp_path / f"r{number}", frames={"name": "{index:05d}.png", "scale": scale})
        write(tmp_path / f"r{number}", "00000.png")
    first, second, third = find(tmp_path)
    alike, mixed = store.append_runs(tmp_path, [first, second]), store.append_runs(tmp_path, [first, third])
    assert (alike.sidecar and alike.sidecar.scale, alike.notes) == (8, ())
    assert mixed.sidecar
    assert mixed.sidecar.scale == 1
    assert "enlarged by different factors" in mixed.notes[0]


def test_runs_of_a_flat_folder_can_be_appended(tmp_path: Path) -> None:
    """The groups of one folder become one run of it."""
    write(tmp_path, *(f"{run}_{step:05d}_.png" for run in ("cat", "dog") for step in (1, 2)))
    run = store.append_runs(tmp_path, find(tmp_path))
    assert (names(run), steps(run)) == (["cat_00001_.png", "cat_00002_.png", "dog_00001_.png", "dog_00002_.png"], [1, 2, 3, 4])


def test_only_runs_below_the_folder_can_be_appended(tmp_path: Path) -> None:
    """Nothing, and runs from elsewhere, make no run."""
    write(tmp_path / "a", "1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(NoFramesError):
        store.append_runs(tmp_path, [])
    with pytest.raises(ValueError, match="does not lie below"):
        store.append_runs(tmp_path / "b", find(tmp_path / "a"))


# ---------------------------------------------------------------- temporary files


def test_a_temporary_name_is_hidden_new_and_ours(tmp_path: Path) -> None:
    """It lies beside its destination, keeps the suffix ffmpeg needs, and tells who writes it."""
    first, second = store.temporary_path(tmp_path, ".mp4"), store.temporary_path(tmp_path, ".mp4")
    assert first != second
    assert first.parent == tmp_path
    assert re.fullmatch(rf"\.stepwatch-{os.getpid()}-[0-9a-f]{{8}}-[0-9a-f]{{8}}\.tmp\.mp4", first.name)
    with pytest.raises(ValueError, match="suffix"):
        store.temporary_path(tmp_path, "/../x")


@pytest.fixture
def dead_process() -> int:
    """Return the id of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def leave(folder: Path, process: int, boot: str, age: float, name: str = "") -> Path:
    """Leave a temporary file as a crash does."""
    path = folder / (name or f".stepwatch-{process}-{boot}-0123abcd.tmp.mp4")
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_what_a_crash_left_behind_is_swept(tmp_path: Path, dead_process: int) -> None:
    """Files of a process that is gone go at once, those of another boot after an hour."""
    boot = store._boot()
    gone = leave(tmp_path, dead_process, boot, 0)
    other = leave(tmp_path, os.getpid(), "00000000", 3601)
    assert sorted(store.sweep_temporaries(tmp_path, time.time())) == sorted([gone, other])
    assert list(tmp_path.iterdir()) == []


def test_what_may_be_in_use_is_not_swept(tmp_path: Path, dead_process: int) -> None:
    """Files of living processes, other machines' recent ones, other names, folders and links stay."""
    boot = store._boot()
    stay = {
        leave(tmp_path, os.getpid(), boot, 1e6),
        leave(tmp_path, dead_process, "ffffffff", 600),
        *(
            leave(tmp_path, 0, "", 1e6, name)
            for name in (
                f".stepwatch-{dead_process}-{boot}-0123abcd.mp4",
                f"stepwatch-{dead_process}-{boot}-0123abcd.tmp.mp4",
                f".stepwatch-{dead_process}-{boot}-0123abcd.tmp.mp4.bak~",
                f".stepwatch-{dead_process}-{boot}-XYZ.tmp.mp4",
                ".stepwatch.tmp",
                "42.mp4",
            )
        ),
    }
    folder = tmp_path / f".stepwatch-{dead_process}-{boot}-00000001.tmp"
    folder.mkdir()
    os.utime(folder, (0, 0))
    link = tmp_path / f".stepwatch-{dead_process}-{boot}-00000002.tmp"
    link.symlink_to("42.mp4")
    os.utime(link, (0, 0), follow_symlinks=False)
    assert store.sweep_temporaries(tmp_path, time.time()) == []
    assert set(tmp_path.iterdir()) == {*stay, folder, link}
    assert store.sweep_temporaries(tmp_path / "nowhere", time.time()) == []


def test_a_leftover_that_cannot_be_removed_stops_nothing(tmp_path: Path, dead_process: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else's file in a shared folder stays, gone ones are no news; a folder that cannot be listed is an error."""
    first = leave(tmp_path, dead_process, store._boot(), 61)
    second = leave(tmp_path, dead_process, "00000000", 3601)
    unlink = os.unlink

    def refuse(path: str) -> None:
        if path == str(first):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        unlink(path)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(os, "unlink", refuse)
    assert store.sweep_temporaries(tmp_path, time.time()) == []
    assert (first.exists(), second.exists()) == (True, False)
    with pytest.raises(EnvironmentFault, match="cannot list"):
        store.sweep_temporaries(first, time.time())


def test_processes_of_others_count_as_alive() -> None:
    """Process 1 belongs to root and runs; ids that cannot be are not alive."""
    assert store._alive(1)
    assert store._alive(os.getpid())
    assert store._alive(10**30), "an id that no call takes says nothing"


# ---------------------------------------------------------------- publishing


def finished(folder: Path, content: bytes = b"animation") -> Path:
    """Make a finished temporary file, as ffmpeg leaves it."""
    path = store.temporary_path(folder, ".mp4")
    path.write_bytes(content)
    return path


def test_a_published_file_has_its_name_and_nothing_else_is_left(tmp_path: Path) -> None:
    """The temporary name is gone, the content is under the final one, once."""
    assert store.publish(finished(tmp_path), tmp_path, "42-cat", ".mp4") == tmp_path / "42-cat.mp4"
    assert [path.name for path in tmp_path.iterdir()] == ["42-cat.mp4"]
    assert (tmp_path / "42-cat.mp4").read_bytes() == b"animation"
    assert (tmp_path / "42-cat.mp4").stat().st_nlink == 1


@pytest.mark.parametrize("taken", ["file", "folder", "link to nowhere"])
def test_a_taken_name_is_never_overwritten(tmp_path: Path, taken: str) -> None:
    """Whatever has the name keeps it; ours becomes -1, and the next one -2."""
    place = tmp_path / "cat.mp4"
    if taken == "file":
        place.write_bytes(b"theirs")
    elif taken == "folder":
        place.mkdir()
    else:
        place.symlink_to("nowhere")
    before = place.lstat()
    assert store.publish(finished(tmp_path, b"one"), tmp_path, "cat", ".mp4").name == "cat-1.mp4"
    assert store.publish(finished(tmp_path, b"two"), tmp_path, "cat", ".mp4").name == "cat-2.mp4"
    assert (tmp_path / "cat-1.mp4").read_bytes() == b"one"
    assert place.lstat() == before
    assert not (tmp_path / "nowhere").exists()


@pytest.fixture(params=["link", "renameat2"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Publish by link, or, where the file system has none, by renaming without replacing."""
    if request.param == "renameat2":
        if not sys.platform.startswith("linux"):
            pytest.skip("needs renameat2")

        def no_links(*_: object, **__: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "link", no_links)
    return str(request.param)


def test_many_publishers_of_one_name_lose_nothing(tmp_path: Path, way: str) -> None:
    """Sixteen at once get sixteen names, each with its own content."""
    start = threading.Barrier(8)

    def one(number: int) -> Path:
        temporary = finished(tmp_path, b"%d" % number)
        start.wait(10)
        return store.publish(temporary, tmp_path, "cat", ".mp4")

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(one, range(16)))
    assert [path.read_bytes() for path in results] == [b"%d" % number for number in range(16)]
    assert {path.name for path in tmp_path.iterdir()} == {"cat.mp4", *(f"cat-{number}.mp4" for number in range(1, 16))}, way


def test_without_links_and_renames_it_is_refused_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The finished file stays where it is, and nothing is overwritten to get there."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(os, "link", refuse)
    monkeypatch.setattr(store, "_renameat2", lambda: None)
    temporary = finished(tmp_path)
    with pytest.raises(PublishError, match=r"cannot publish .*cat\.mp4: this file system can neither link nor rename without overwriting"):
        store.publish(temporary, tmp_path, "cat", ".mp4")
    assert list(tmp_path.iterdir()) == [temporary]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.EACCES])
def test_the_machine_s_faults_are_told_from_the_run_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A full, read-only or lost disk is an EnvironmentFault: trying later may help."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    temporary = finished(tmp_path)
    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(EnvironmentFault, match="cannot publish"):
        store.publish(temporary, tmp_path, "cat", ".mp4")
    assert list(tmp_path.iterdir()) == [temporary]


def test_a_crash_between_name_and_clean_up_leaves_the_output_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The temporary name that stays is only a second name; sweeping it later takes nothing from the output."""
    temporary = finished(tmp_path)
    with monkeypatch.context() as patch:

        def refuse(*_: object, **__: object) -> None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

        patch.setattr(os, "unlink", refuse)
        published = store.publish(temporary, tmp_path, "cat", ".mp4")
    assert temporary.samefile(published)
    monkeypatch.setattr(store, "_alive", lambda _: False)
    assert store.sweep_temporaries(tmp_path, time.time() + 61) == [temporary]
    assert published.read_bytes() == b"animation"


def test_a_lost_answer_of_a_share_does_not_publish_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFS may link and then say that the name is taken, by the very same file."""
    link = os.link

    def repeated(source: Path, target: Path) -> None:
        link(source, target)
        link(source, target)

    monkeypatch.setattr(os, "link", repeated)
    assert store.publish(finished(tmp_path), tmp_path, "cat", ".mp4").name == "cat.mp4"
    assert [path.name for path in tmp_path.iterdir()] == ["cat.mp4"]


def test_a_lost_folder_or_file_is_named(tmp_path: Path) -> None:
    """The output folder vanished, or the temporary file did."""
    with pytest.raises(PublishError, match="is gone"):
        store.publish(tmp_path / "nothing", tmp_path, "cat", ".mp4")
    with pytest.raises(EnvironmentFault, match="its folder is gone"):
        store.publish(finished(tmp_path), tmp_path / "away", "cat", ".mp4")


@pytest.mark.parametrize("stem", ["", ".cat", "../cat", "a/b", "a\\b", "a\0b"])
def test_only_plain_names_are_published(tmp_path: Path, stem: str) -> None:
    """A name that leads elsewhere or hides is a programming mistake, caught before anything happens."""
    temporary = finished(tmp_path)
    with pytest.raises(ValueError, match="not a file's name"):
        store.publish(temporary, tmp_path, stem, ".mp4")
    assert list(tmp_path.iterdir()) == [temporary]


def test_long_names_are_shortened_but_stay_marked(tmp_path: Path) -> None:
    """The file system's limit holds with number and suffix; -incomplete survives, characters stay whole."""
    stem = "汉" * 90 + "-incomplete"
    first, second = (store.publish(finished(tmp_path), tmp_path, stem, ".mp4") for _ in range(2))
    assert re.fullmatch("汉+-incomplete", first.stem)
    assert re.fullmatch("汉+-incomplete-1", second.stem)
    assert max(len(os.fsencode(path.name)) for path in (first, second)) <= 255


def test_a_file_system_that_takes_less_than_it_says_gets_shorter_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Encrypted folders take 143 bytes; when even short names are too long, the path is."""
    link, limit = os.link, 143

    def strict(source: Path, target: Path) -> None:
        if len(os.fsencode(target.name)) > limit:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        link(source, target)

    monkeypatch.setattr(os, "link", strict)
    assert len(store.publish(finished(tmp_path), tmp_path, "x" * 200, ".mp4").name) <= limit
    limit = 5
    with pytest.raises(PublishError, match="path is too long"):
        store.publish(finished(tmp_path), tmp_path, "x" * 200, ".mp4")


@pytest.mark.skipif(os.name == "nt", reason="needs Unix modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_an_output_s_mode_follows_the_umask(tmp_path: Path, mask: int, mode: int) -> None:
    """Not the 0600 of a secret temporary file."""
    previous = os.umask(mask)
    try:
        path = store.publish(finished(tmp_path), tmp_path, "cat", ".mp4")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == mode


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can give a folder away")
def test_an_output_s_group_follows_the_folder(tmp_path: Path) -> None:
    """In a folder with the setgid bit, outputs belong to the folder's group."""
    folder = tmp_path / "shared"
    folder.mkdir()
    os.chown(folder, -1, 12345)
    folder.chmod(0o2775)
    assert store.publish(finished(folder), folder, "cat", ".mp4").stat().st_gid == 12345


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record which paths are synced."""
    paths: list[str] = []
    opened: dict[int, str] = {}
    real_open = os.open

    def record_open(path: Any, *arguments: Any, **options: Any) -> int:
        descriptor = real_open(path, *arguments, **options)
        opened[descriptor] = os.fspath(path)
        return descriptor

    monkeypatch.setattr(os, "open", record_open)
    monkeypatch.setattr(os, "fsync", lambda descriptor: paths.append(opened[descriptor]))
    return paths


def test_the_folder_is_synced_after_the_name_is_there(tmp_path: Path, synced: list[str]) -> None:
    """A published name survives a power cut."""
    store.publish(finished(tmp_path), tmp_path, "cat", ".mp4")
    assert synced == [str(tmp_path)]
    store.fsync_file(tmp_path / "cat.mp4")
    assert synced == [str(tmp_path), str(tmp_path / "cat.mp4")]


@pytest.mark.parametrize(("code", "folder_fails"), [(errno.EINVAL, False), (errno.EIO, True), (errno.ENOSPC, True)])
def test_a_sync_that_fails_is_no_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, *, folder_fails: bool) -> None:
    """A disk fault is an error; only a folder whose file system cannot sync folders is let pass."""

    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    temporary = finished(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(EnvironmentFault, match=r"cannot bring .* to the disk"):
        store.fsync_file(temporary)
    if folder_fails:
        with pytest.raises(EnvironmentFault, match=r"cannot bring .* to the disk"):
            store.publish(temporary, tmp_path, "cat", ".mp4")
    else:
        store.publish(temporary, tmp_path, "cat", ".mp4")


def test_output_folders_are_made_or_the_reason_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parents included; a file in the way and a system's refusal become sentences."""
    store.ensure_folder(tmp_path / "a" / "b")
    store.ensure_folder(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    write(tmp_path, "file")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(EnvironmentFault, match=r"cannot make the folder .*file.*: there is a file of that name"):
            store.ensure_folder(path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "mkdir", refuse)
    with pytest.raises(EnvironmentFault, match="the file system is read-only"):
        store.ensure_folder(tmp_path / "c")


def test_without_the_parts_that_only_linux_has_it_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No boot id, no renameat2, no O_NOFOLLOW, no pathconf: runs are found, outputs published, leftovers swept."""

    def absent(*_: object, **__: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(Path, "read_text", absent)
    monkeypatch.setattr(store, "_renameat2", lambda: None)
    monkeypatch.delattr(os, "O_NOFOLLOW")
    monkeypatch.delattr(os, "O_NONBLOCK")
    monkeypatch.delattr(os, "pathconf")
    write_sidecar(tmp_path / "r")
    write(tmp_path / "r", "00000.png")
    assert find_one(tmp_path).name == "r"
    assert re.fullmatch("[0-9a-f]{8}", store._boot())
    assert store.publish(finished(tmp_path), tmp_path, "cat", ".mp4").name == "cat.mp4"
    assert store.sweep_temporaries(tmp_path, time.time() + 1e6) == []


def test_files_that_publishing_may_have_named_are_found_again(tmp_path: Path) -> None:
    """The plain name and its numbers, in their order; other names, folders and links are not ours."""
    write(tmp_path, "cat-10.mp4", "cat-2.mp4", "cat.mp4", "cat-x.mp4", "cat.webm", "cats.mp4", "a cat.mp4", "cat-1.mp4.bak")
    (tmp_path / "cat-3.mp4").mkdir()
    (tmp_path / "cat-4.mp4").symlink_to("cat.mp4")
    assert [path.name for path in store.files_named_like(tmp_path, "cat", ".mp4")] == ["cat.mp4", "cat-2.mp4", "cat-10.mp4"]
    assert store.files_named_like(tmp_path / "nowhere", "cat", ".mp4") == []


def test_an_endless_row_of_taken_names_ends_in_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When every number is taken, something is wrong with the folder."""
    monkeypatch.setattr(store, "_NUMBERS", 3)
    write(tmp_path, "cat.mp4", "cat-1.mp4", "cat-2.mp4")
    with pytest.raises(PublishError, match="has 3 files named cat"):
        store.publish(finished(tmp_path), tmp_path, "cat", ".mp4")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(prompt=st.text(max_size=60), seed=st.none() | st.integers(0, 2**64 - 1), incomplete=st.booleans())
def test_any_prompt_becomes_a_file_in_its_folder(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, seed: int | None, *, incomplete: bool
) -> None:
    """What the name's template makes of any prompt can be published, twice, and lies in the folder."""
    folder = tmp_path_factory.mktemp("out")
    stem = output_stem("{seed}-{prompt:.80}", {"seed": seed, "prompt": prompt, "run": "r"}, incomplete=incomplete)
    first, second = (store.publish(finished(folder), folder, stem, ".mp4") for _ in range(2))
    assert {path.name for path in folder.iterdir()} == {first.name, second.name}
    assert (first.name, second.name) == (f"{stem}.mp4", f"{stem}-1.mp4")
