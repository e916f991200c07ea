"""The writer that all hooks share: what it leaves on the disk by the protocol, and that nothing that goes wrong in it reaches the host."""

from __future__ import annotations

import ast
import builtins
import errno
import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from stepwatch import __version__
from stepwatch.core.model import Outcome
from stepwatch.core.policy import Policy
from stepwatch.core.sidecar import SIZE_LIMIT, parse_sidecar
from stepwatch.hooks import writer
from stepwatch.hooks.writer import Recording, parse_overrides
from tests.hooks import contract

ROOT = Path(__file__).resolve().parents[2]
HOOKS = ROOT / "stepwatch" / "hooks"


def colour(step: int, item: int = 0) -> Image.Image:
    return Image.new("RGB", (16, 12), (step * 20 % 256, item * 60 % 256, 128))


def begin(root: Path, *, batch: int = 1, **settings: Any) -> Recording:
    facts: dict[str, Any] = {"host": {"app": "other", "version": "1.2"}, "hook": "stepwatch-test", "items": [{}] * batch}
    return Recording(root, **facts | settings)


def play(recording: Recording, steps: int, *, batch: int = 1) -> None:
    for step in range(1, steps + 1):
        if recording.step():
            for item in range(batch):
                recording.put(item, colour(step, item))


def until(condition: Callable[[], object]) -> None:
    """Wait for the writer's thread."""
    for _ in range(2000):
        if condition():
            return
        time.sleep(0.005)
    raise AssertionError("it did not happen within 10 s")


@pytest.fixture
def disk_fault(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes writing of files fail from the Nth file on, for some files."""

    def break_disk(number: int, *, after: int = 0, times: int = 10**9, only: str = "") -> None:
        seen = iter(range(10**9))

        def opened(path: Any, mode: str = "r", **options: Any) -> Any:
            if "w" in mode and only in str(path) and after <= next(seen) < after + times:
                raise OSError(number, os.strerror(number), str(path))
            return builtins.open(path, mode, **options)

        monkeypatch.setattr(writer, "open", opened, raising=False)

    return break_disk


def test_a_complete_pass_leaves_each_frame_and_says_so(tmp_path: Path) -> None:
    """Frames count from 0, the sidecar is final, and all facts come back as they went in, a seed of 64 bits too."""
    item = {
        "generation": {"seed": 2**64 - 1, "prompt": "a cat 🐈", "cfg": 7.5, "vae": None},
        "infotext": "a cat\nSteps: 4",
        "batch": {"index": 0, "size": 1},
    }
    recording = begin(tmp_path, items=[item], planned=4, group_id="job-1", overrides={"timeline": {"duration": "6s"}}, scale=8)
    play(recording, 4)
    recording.end()
    (run,) = contract.runs(tmp_path)
    assert run.sidecar.state is Outcome.COMPLETE
    assert sorted(run.frames) == [0, 1, 2, 3]
    assert [run.frames[index].getpixel((0, 0)) for index in range(4)] == [(20 * step, 0, 128) for step in (1, 2, 3, 4)]
    assert run.sidecar.generation == {"seed": 2**64 - 1, "prompt": "a cat 🐈", "cfg": 7.5}
    assert (run.sidecar.infotext, run.sidecar.group_id) == ("a cat\nSteps: 4", "job-1")
    assert (run.sidecar.steps_planned, run.sidecar.frames_planned, run.sidecar.steps_done) == (4, 4, 4)
    assert (run.sidecar.width, run.sidecar.height, run.sidecar.scale) == (16, 12, 8)
    assert run.sidecar.overrides == {"timeline": {"duration": "6s"}}
    assert [str(run.folder)] == recording.folders


def test_the_sidecar_is_there_before_the_first_frame(tmp_path: Path) -> None:
    """A folder with a frame has had its sidecar and its workflow all the time."""
    recording = begin(tmp_path, workflow={"prompt": {"1": {"class_type": "KSampler"}}, "workflow": {"nodes": []}})
    until(lambda: recording.folders and (Path(recording.folders[0]) / "run.json").exists())
    run = contract.check(Path(recording.folders[0]))
    assert run.sidecar.state is Outcome.RUNNING
    assert run.frames == {}
    assert json.loads((run.folder / "workflow.json").read_bytes())["prompt"]["1"] == {"class_type": "KSampler"}
    recording.end("interrupted")


def test_every_item_of_a_batch_is_a_run_of_its_own(tmp_path: Path) -> None:
    """Items share the id up to their number, and a group."""
    recording = begin(tmp_path, items=[{"generation": {"seed": seed}} for seed in (5, 6, 7)])
    play(recording, 2, batch=3)
    recording.end()
    found = contract.runs(tmp_path)
    assert [run.sidecar.generation["seed"] for run in found] == [5, 6, 7]
    assert [run.folder.name.partition("-b")[2] for run in found] == ["0", "1", "2"]
    assert len({run.folder.name.partition("-b")[0] for run in found} | {run.sidecar.group_id for run in found}) == 1
    assert [run.frames[1].getpixel((0, 0)) for run in found] == [(40, 0, 128), (40, 60, 128), (40, 120, 128)]


@given(planned=st.integers(1, 40), every=st.integers(1, 45))
def test_every_nth_step_ends_with_the_last_one(planned: int, every: int) -> None:
    """The last planned step is always recorded, the promise is exact, and a frame's step follows from its index."""
    skip = writer._default_skip(planned, every)
    wanted = [step for step in range(1, planned + 1) if step > skip and not (step - 1 - skip) % every]
    assert wanted[-1] == planned
    assert len(wanted) == max(0, -(-(planned - skip) // every))
    assert wanted == [1 + skip + index * every for index in range(len(wanted))]
    assert skip < every


def test_only_wanted_steps_are_recorded(tmp_path: Path) -> None:
    """Every third of eight steps is 2, 5 and 8, as promised before the first one."""
    recording = begin(tmp_path, planned=8, every=3)
    play(recording, 8)
    recording.end()
    (run,) = contract.runs(tmp_path)
    assert run.steps == [2, 5, 8]
    assert run.sidecar.frames_planned == 3


@pytest.mark.parametrize(
    ("image_format", "suffix", "kind"), [("png", ".png", "PNG"), ("jpeg", ".jpg", "JPEG"), ("jpg", ".jpg", "JPEG"), ("webp", ".webp", "WEBP")]
)
def test_formats(tmp_path: Path, image_format: str, suffix: str, kind: str) -> None:
    """PNG and WebP keep every pixel; JPEG keeps the colour of each."""
    picture = Image.effect_noise((32, 24), 60).convert("RGB")
    recording = begin(tmp_path, image_format=image_format)
    recording.step()
    recording.put(0, picture.tobytes(), (32, 24))
    recording.end()
    (run,) = contract.runs(tmp_path)
    with Image.open(run.folder / f"00000{suffix}") as image:
        assert image.format == kind
        if kind == "JPEG":
            assert image.layer[0][1:3] == (1, 1)  # type: ignore[attr-defined]
    assert (run.frames[0].tobytes() == picture.tobytes()) == (kind != "JPEG")


def test_an_unknown_format_is_png(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What the hook's user cannot have is said, and the frames are there."""
    recording = begin(tmp_path, image_format="tiff")
    play(recording, 1)
    recording.end()
    assert contract.runs(tmp_path)[0].sidecar.frame_name == "{index:05d}.png"
    assert "cannot be saved as tiff" in caplog.text


def test_a_picture_that_the_host_changes_later_is_recorded_as_it_was(tmp_path: Path) -> None:
    """What is put is copied, for the host goes on with it."""
    recording = begin(tmp_path, batch=2)
    recording.step()
    image, data = colour(1), bytearray(colour(2).tobytes())
    recording.put(0, image)
    recording.put(1, data, (16, 12))
    image.paste((0, 0, 0), (0, 0, 16, 12))
    data[:] = bytes(len(data))
    recording.end()
    first, second = contract.runs(tmp_path)
    assert first.frames[0].tobytes() == colour(1).tobytes()
    assert second.frames[0].tobytes() == colour(2).tobytes()


def test_a_pass_without_frames_leaves_nothing(tmp_path: Path) -> None:
    """A complete pass without a callback has nothing to show; an interrupted one says that it was there."""
    begin(tmp_path, workflow={"prompt": {}}).end("complete")
    assert contract.runs(tmp_path) == []
    begin(tmp_path).end("interrupted")
    assert [run.sidecar.state for run in contract.runs(tmp_path)] == [Outcome.INTERRUPTED]


@pytest.mark.parametrize(
    ("state", "error", "said"),
    [
        ("interrupted", None, None),
        ("failed", RuntimeError("CUDA out of memory " * 100), "RuntimeError: " + ("CUDA out of memory " * 100)[:500]),
        ("failed", None, None),
    ],
)
def test_ends(tmp_path: Path, state: str, error: Exception | None, said: str | None) -> None:
    """Frames stay whatever the end, and only the first end counts."""
    recording = begin(tmp_path)
    play(recording, 2)
    recording.end(state, error)
    recording.end("complete")
    recording.step()
    recording.put(0, colour(3))
    folder = Path(recording.folders[0])
    sidecar, _ = parse_sidecar((folder / "run.json").read_bytes())
    assert sidecar is not None
    assert (sidecar.state, sidecar.error) == (Outcome(state), said and said[:500])
    assert sidecar.frame_count == 2


def test_what_was_not_put_is_lost(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A frame that could not be made, or that nobody put, is on record, and its index stays unused."""
    recording = begin(tmp_path, batch=2)
    for step in range(4):
        recording.step()
        recording.put(0, None if step == 1 else colour(step))
        if step != 2:
            recording.put(1, b"too short" if step == 3 else colour(step), (16, 12) if step == 3 else None)
    recording.end()
    first, second = contract.runs(tmp_path)
    assert (first.sidecar.lost, sorted(first.frames)) == ((1,), [0, 2, 3])
    assert (second.sidecar.lost, sorted(second.frames)) == ((2, 3), [0, 1])
    assert caplog.text.count("a frame is lost") == 1


def test_a_lost_frame_is_said_and_makes_no_heartbeat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The log names the step; the sidecar is not written anew for a frame that is not there."""
    encoded, written = writer._encoded, writer._replace
    beats: list[str] = []

    def breaking(image: Any, image_format: str) -> bytes:
        if image.getpixel((0, 0))[0] >= 60:
            raise ValueError("this one cannot be encoded")
        return encoded(image, image_format)

    def noted(path: str, data: bytes, **options: Any) -> None:
        beats.append(os.path.basename(path))
        written(path, data, **options)

    monkeypatch.setattr(writer, "_encoded", breaking)
    monkeypatch.setattr(writer, "_replace", noted)
    monkeypatch.setattr(writer, "HEARTBEAT", 0.0)
    recording = begin(tmp_path, size=(16, 12))
    play(recording, 5)
    recording.end()
    assert beats == ["run.json", "00000.png", "run.json", "00001.png", "run.json", "run.json"]
    assert caplog.text.count("this one cannot be encoded") == 1
    caplog.clear()
    recording = begin(tmp_path)
    recording.step()
    recording.end()
    assert "that of step 1" in caplog.text


def test_a_frame_that_cannot_be_written_is_tried_again_and_then_lost(tmp_path: Path, disk_fault: Callable[..., None]) -> None:
    """One fault of the disk costs nothing, a second one of the same frame that frame."""
    disk_fault(errno.EIO, after=1, times=3, only=".png")
    recording = begin(tmp_path)
    play(recording, 4)
    recording.end()
    (run,) = contract.runs(tmp_path)
    assert (sorted(run.frames), run.sidecar.lost, run.sidecar.state) == ([0, 2, 3], (1,), Outcome.COMPLETE)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_disk_ends_the_recording_and_not_the_generation(
    tmp_path: Path, disk_fault: Callable[..., None], caplog: pytest.LogCaptureFixture, number: int
) -> None:
    """It is said once; the sidecar says that this run failed, if the disk takes that."""
    disk_fault(number, after=2, only=".png")
    recording = begin(tmp_path)
    play(recording, 3)
    until(lambda: not recording.active)
    play(recording, 5)
    recording.end("complete")
    (run,) = contract.runs(tmp_path)
    assert (run.sidecar.state, sorted(run.frames)) == (Outcome.FAILED, [0, 1])
    assert os.strerror(number) in (run.sidecar.error or "")
    assert len(caplog.records) == 1


def test_a_disk_that_takes_nothing_at_all_leaves_whole_files(tmp_path: Path, disk_fault: Callable[..., None]) -> None:
    """When not even the final state can be written, it is tried again at the end, and says what went wrong first."""
    disk_fault(errno.ENOSPC, after=3, times=2)
    recording = begin(tmp_path)
    play(recording, 6)
    recording.end("complete")
    (run,) = contract.runs(tmp_path)
    assert (run.sidecar.state, len(run.frames)) == (Outcome.FAILED, run.sidecar.frame_count)


def test_a_root_that_cannot_be_made_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file in the place of a folder costs this recording, and the host hears nothing but the log."""
    (tmp_path / "root").write_text("", encoding="ascii")
    recording = begin(tmp_path / "root")
    play(recording, 3)
    recording.end()
    assert recording.folders == []
    assert [record.levelno for record in caplog.records] == [logging.WARNING]


def test_a_folder_that_is_taken_away_ends_the_recording(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is made anew where somebody has cleared up."""
    recording = begin(tmp_path)
    until(lambda: recording.folders and (Path(recording.folders[0]) / "run.json").exists())
    (Path(recording.folders[0]) / "run.json").unlink()
    Path(recording.folders[0]).rmdir()
    play(recording, 3)
    recording.end()
    assert contract.runs(tmp_path) == []
    assert caplog.text.count("not recorded any further") == 1


@pytest.mark.parametrize("broken", ["items", "host", "root", "size", "every"])
def test_a_recording_that_cannot_begin_does_nothing(tmp_path: Path, broken: str) -> None:
    """Whatever an adapter hands over, the host's step is not disturbed."""
    wrong: dict[str, Any] = {"items": 7, "host": None, "root": object(), "size": 3, "every": "often"}
    settings: dict[str, Any] = {"host": {"app": "other"}, "hook": "x", "items": [{}], "root": tmp_path, broken: wrong[broken]}
    recording = Recording(**settings)
    play(recording, 2)
    recording.end("failed", object())
    assert not recording.active
    assert contract.runs(tmp_path) == []


def test_an_id_that_is_taken_is_drawn_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hosts that write to one place never share a folder."""
    ids = iter(["20260101-120000-aaaaaa", "20260101-120000-aaaaaa", "20260101-120000-bbbbbb"])
    monkeypatch.setattr(writer, "new_id", lambda: next(ids))
    for batch in (1, 2):
        # The second one collides with its second item only when that is there: make it so.
        if batch == 2:
            (tmp_path / "2026-01-01" / "20260101-120000-aaaaaa-b1").mkdir()
        recording = begin(tmp_path, batch=batch)
        play(recording, 1, batch=batch)
        recording.end()
    (tmp_path / "2026-01-01" / "20260101-120000-aaaaaa-b1").rmdir()
    assert [run.folder.name[9:] for run in contract.runs(tmp_path)] == ["120000-aaaaaa", "120000-bbbbbb-b0", "120000-bbbbbb-b1"]


class Slow:
    """Holds the writer's thread in the middle of a frame."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.free = threading.Event()
        self.reached = threading.Event()
        encoded = writer._encoded

        def waiting(*arguments: Any) -> bytes:
            self.reached.set()
            self.free.wait(30)
            return encoded(*arguments)

        monkeypatch.setattr(writer, "_encoded", waiting)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[Slow]:
    held = Slow(monkeypatch)
    yield held
    held.free.set()


def test_a_full_queue_brakes_the_sampler_but_not_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Slow) -> None:
    """With 16 frames not yet written, the next one waits once for room; what finds none is lost, and nothing after it waits again until there is."""
    monkeypatch.setattr(writer, "PATIENCE", 0.2)
    recording = begin(tmp_path)
    recording.step()
    recording.put(0, colour(0))
    slow.reached.wait(10)
    began = time.monotonic()
    play(recording, writer.QUEUE_LIMIT + 30)
    assert time.monotonic() - began >= 0.2
    assert recording._patient is False
    slow.free.set()
    until(lambda: recording._room._value == writer.QUEUE_LIMIT)
    play(recording, 2)
    recording.end()
    (run,) = contract.runs(tmp_path)
    assert run.sidecar.lost == tuple(range(writer.QUEUE_LIMIT, 1 + writer.QUEUE_LIMIT + 30))
    assert len(run.frames) == writer.QUEUE_LIMIT + 2


def test_a_disk_that_hangs_does_not_hold_the_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slow: Slow, caplog: pytest.LogCaptureFixture
) -> None:
    """The end is waited for only so long; while nothing moves there, no further run is begun; and what was put is still written when it does."""
    monkeypatch.setattr(writer, "END_PATIENCE", 0.1)
    recording = begin(tmp_path)
    play(recording, 3)
    recording.end()
    assert "still being written" in caplog.text
    until(lambda: recording.hangs)
    second = begin(tmp_path)
    assert not second.active
    slow.free.set()
    until(recording._finished.is_set)
    (run,) = contract.runs(tmp_path)
    assert (run.sidecar.state, len(run.frames)) == (Outcome.COMPLETE, 3)
    third = begin(tmp_path)
    assert third.active
    third.end()


def test_the_sidecar_beats_once_a_second_at_most_and_only_with_a_new_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten quick frames cost one heartbeat, the one that tells their size; without that, and within a second, there is none."""
    written: list[str] = []
    replace = os.replace

    def noted(old: str, new: str) -> None:
        written.append(os.path.basename(new))
        replace(old, new)

    monkeypatch.setattr(os, "replace", noted)
    monkeypatch.setattr(writer, "HEARTBEAT", 3600.0)
    for size, beats in ((None, 3), ((16, 12), 2)):
        written.clear()
        recording = begin(tmp_path, size=size)
        play(recording, 10)
        recording.end()
        assert written.count("run.json") == beats
    monkeypatch.setattr(writer, "HEARTBEAT", 0.0)
    written.clear()
    recording = begin(tmp_path, size=(16, 12), planned=10, every=5)
    play(recording, 10)
    recording.end()
    assert written == ["run.json", "00000.png", "run.json", "00001.png", "run.json", "run.json"]


def test_the_last_word_is_synced_behind_the_last_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the final state is synced, with its folder, after every frame has its name."""
    calls: list[str] = []
    replace, fsync = os.replace, os.fsync

    def renamed(old: str, new: str) -> None:
        calls.append(os.path.basename(new))
        replace(old, new)

    def synced(descriptor: int) -> None:
        calls.append("fsync")
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    recording = begin(tmp_path, size=(16, 12))
    play(recording, 2)
    recording.end()
    assert calls == ["run.json", "00000.png", "00001.png", "fsync", "run.json", "fsync"]


def test_a_file_that_a_viewer_holds_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows a rename fails while somebody has the file open: five more tries, 50 ms apart."""
    real, refused = os.replace, [3]

    def replace(old: str, new: str) -> None:
        if new.endswith(".png") and refused[0]:
            refused[0] -= 1
            raise PermissionError(errno.EACCES, "in use", new)
        real(old, new)

    monkeypatch.setattr(os, "replace", replace)
    recording = begin(tmp_path)
    play(recording, 2)
    recording.end()
    (run,) = contract.runs(tmp_path)
    assert (sorted(run.frames), run.sidecar.lost) == ([0, 1], ())


@pytest.mark.parametrize("size", [10_000, 300_000, 1_000_000])
def test_a_huge_prompt_makes_no_broken_sidecar(tmp_path: Path, size: int) -> None:
    """What is too long for readers is cut, the seed and the state never."""
    prompt = 'ä\\"' * (size // 3)
    item = {"generation": {"prompt": prompt, "negative": prompt, "seed": 7, "loras": ["x" * 50] * (size // 100)}, "infotext": prompt + "🐈"}
    recording = begin(tmp_path, items=[item], overrides={"outputs": "gif"})
    play(recording, 1)
    recording.end()
    (run,) = contract.runs(tmp_path)
    told = str(run.sidecar.generation["prompt"])
    assert told == prompt or (told.endswith("...") and prompt.startswith(told[:-3]))
    assert (told == prompt) == (size == 10_000)
    assert run.sidecar.generation["seed"] == 7
    assert run.sidecar.overrides == {"outputs": "gif"}


def test_overrides_that_are_too_large_are_left_out_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Half of a policy would be another policy."""
    recording = begin(tmp_path, overrides={"metadata": {"author": "x" * 20_000}, "outputs": "gif"})
    play(recording, 1)
    recording.end()
    assert contract.runs(tmp_path)[0].sidecar.overrides == {}
    assert "larger than 16 KiB" in caplog.text


class Scalar:
    """A number of numpy or torch, as far as the writer may use it."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def item(self) -> Any:
        if self.value is None:
            raise ValueError("more than one element")
        return self.value


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters())
    | st.binary(max_size=4)
    | st.builds(Scalar, st.none() | st.floats() | st.integers()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(), max_size=8) | st.integers(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=40)
@given(facts=st.dictionaries(st.text(max_size=8), anything, max_size=6), text=st.none() | st.text(st.characters()))
def test_whatever_a_host_says_the_sidecar_can_be_read(facts: dict[str, Any], text: str | None) -> None:
    """Any value of any host, half surrogates, NaN and endless numbers too, makes a sidecar that readers take."""
    common = dict.fromkeys(("writer", "hook", "host", "steps", "frames", "pass", "stepwatch"), facts) | {"group_id": text}
    made = writer._first_facts(common, {"generation": facts, "infotext": text, "batch": facts})
    data = writer._json_bytes({**made, "run_id": "20260101-120000-aaaaaa"})
    sidecar, _ = parse_sidecar(data)
    assert len(data) <= SIZE_LIMIT
    assert sidecar is not None
    assert json.loads(writer._workflow_text(facts)) is not None


def test_nested_endlessly_is_cut_off(tmp_path: Path) -> None:
    """A value that holds itself, or is nested beyond every reader, does not end the recording."""
    loop: dict[str, Any] = {}
    loop["again"] = loop
    recording = begin(tmp_path, items=[{"generation": {"loras": [loop]}}], overrides=loop, workflow={"prompt": loop})
    play(recording, 1)
    recording.end()
    assert len(contract.runs(tmp_path)) == 1


def test_only_what_the_user_asks_for_passes_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while the queue is full is not swallowed, and that frame is lost."""
    recording = begin(tmp_path)
    recording.step()

    def interrupted(*_: object, **__: object) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr(recording._room, "acquire", interrupted)
    with pytest.raises(KeyboardInterrupt):
        recording.put(0, colour(1))
    recording.end("interrupted")
    (run,) = contract.runs(tmp_path)
    assert (run.sidecar.lost, run.sidecar.state) == ((0,), Outcome.INTERRUPTED)


@pytest.mark.parametrize(("seed", "count"), [(1, 24), pytest.param(2, 600, marks=pytest.mark.slow)])
def test_killed_at_any_byte_no_frame_is_ever_partial(tmp_path: Path, seed: int, count: int) -> None:
    """Whenever the host is killed, what counts as a frame is whole, its sidecar was there before it, and a final state has all frames behind it."""
    said = subprocess.run(
        [sys.executable, str(ROOT / "tests" / "hooks" / "killing.py"), str(tmp_path), str(seed), str(count)],
        capture_output=True, text=True, check=True, timeout=600,
    )  # fmt: skip
    assert int(said.stdout) >= count * 0.7
    found = [folder for folder in tmp_path.glob("*/*/*") if folder.is_dir()]
    states = {Outcome.RUNNING: 0, Outcome.COMPLETE: 0}
    for folder in found:
        if not (folder / "run.json").exists():
            assert [name for name in os.listdir(folder) if not name.startswith(".")] in ([], ["workflow.json"])
            continue
        run = contract.check(folder, killed=True)
        assert sorted(run.frames) == list(range(len(run.frames)))
        assert run.sidecar.state is Outcome.RUNNING or len(run.frames) == 5
        states[run.sidecar.state] += 1
    assert min(states.values()) >= 2


# --- the free text of a hook


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", {}),
        ("timeline.duration: 6s", {"timeline": {"duration": "6s"}}),
        ("duration: 6s\ncodec: gif", {"timeline": {"duration": "6s"}, "outputs": "gif"}),
        (
            "timeline:\n  duration: 6s  # short\n  hold_last: 0s\nframes:\n  every: 2",
            {"timeline": {"duration": "6s", "hold_last": "0s"}, "frames": {"every": 2}},
        ),
        ("outputs: [h264, gif]", {"outputs": ["h264", "gif"]}),
        ('outputs: [{"codec": "gif", "max_size": "10MB"}]', {"outputs": [{"codec": "gif", "max_size": "10MB"}]}),
        ('{"timeline": {"duration": "6s"}, "codec": "gif"}', {"timeline": {"duration": "6s"}, "outputs": "gif"}),
        ("metadata.author: 'O''Hara # 1'\ncreate: false", {"metadata": {"author": "O'Hara # 1"}, "create": False}),
        ("duration = 6s\nfps=25", {"timeline": {"duration": "6s", "fps": 25}}),
    ],
)
def test_overrides(text: str, meant: dict[str, Any]) -> None:
    """JSON, or lines as in stepwatch.yaml, with the short names that people will type."""
    assert parse_overrides(text) == (meant, [])


@pytest.mark.parametrize("text", ["slow please", "  duration: 6s", "duration: 6s\ntimeline.duration.x: 1", "- gif", "timeline:\n\tfps: 1"])
def test_overrides_that_cannot_be_read_are_named(text: str) -> None:
    """What is left out is said, with its line; the other lines count."""
    meant, complaints = parse_overrides(text + "\ncreate: true")
    assert meant["create"] is True
    assert [f"line {len(text.splitlines())} is left out" in complaint for complaint in complaints] == [True]


@given(st.text() | st.text("{}[]:,. \"'#=\nab1-"))
def test_any_text_is_read_without_an_error(text: str) -> None:
    """No text that anybody types raises."""
    meant, complaints = parse_overrides(text)
    assert isinstance(meant, dict)
    assert all(complaint.strip() for complaint in complaints)


def test_short_names_are_keys_of_the_policy() -> None:
    """What may be written short is there in stepwatch.yaml."""
    for full in writer.SHORT_KEYS.values():
        section, _, key = full.partition(".")
        assert not key or hasattr(getattr(Policy(), section), key)
        assert hasattr(Policy(), section)


# --- what is installed


def adapters() -> list[Path]:
    return [path for path in HOOKS.rglob("*.py") if path.name not in ("writer.py", "__init__.py")]


@pytest.mark.parametrize("path", [HOOKS / "writer.py", *adapters()], ids=lambda path: path.name)
def test_hooks_are_python_3_8(path: Path) -> None:
    """Hosts bring their own Python, and some are old."""
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_the_writer_needs_nothing_but_python_and_pillow() -> None:
    """Whatever else a host has, the writer does not ask for it, and Pillow only when there is a picture."""
    tree = ast.parse((HOOKS / "writer.py").read_text(encoding="utf-8"))
    at_once = {name for node in tree.body for name in imported(node)}
    all_of_it = {name for node in ast.walk(tree) for name in imported(node)}
    assert at_once <= sys.stdlib_module_names
    assert all_of_it - sys.stdlib_module_names == {"PIL"}


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [(node.module or "").partition(".")[0]] if isinstance(node, ast.ImportFrom) else []


@pytest.mark.parametrize("path", adapters(), ids=lambda path: path.name)
def test_no_hook_has_a_name_of_the_writer_for_something_else(path: Path) -> None:
    """The writer's text becomes part of the installed hook, so a name that is there twice would be another thing."""
    assert not names_of(path) & names_of(HOOKS / "writer.py")


def names_of(path: Path) -> set[str]:
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found - {"__all__"}


def test_hooks_have_the_version_of_stepwatch() -> None:
    """Whoever reads a run knows which hook wrote it."""
    assert f"{writer.VERSION}" == __version__
