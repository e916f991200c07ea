"""The one path to an animation, from a folder of frames to a published file."""

from __future__ import annotations

import hashlib
import shutil
import threading
from fractions import Fraction
from pathlib import Path

import pytest
from PIL import Image

from stepwatch import config, frames, store, tags, visit
from stepwatch.core.metadata import read_identity
from stepwatch.core.result import RunResult
from stepwatch.errors import Interrupted

SHORT = ("timeline.duration=1s", "timeline.hold_last=0s")

REAL = Path(__file__).parents[2] / "shared" / "frames"
"""Recorded runs, where they are."""


class Listener:
    """An observer that remembers."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.shown: list[tuple[str, int, int]] = []

    def say(self, run_name: str, sentence: str, *, level: str = "info") -> None:
        self.said.append(sentence)

    def progress(self, run_name: str, label: str, done: int, total: int, speed: float | None) -> None:
        self.shown.append((label, done, total))

    def finished(self, run_name: str) -> None:
        pass


def render(
    folder: Path,
    ffmpeg: str,
    *settings: str,
    options: visit.Options | None = None,
    observer: Listener | None = None,
    stop: threading.Event | None = None,
) -> list[RunResult]:
    runs = visit.runs_below(folder, service=config.load_service(None), settings=(*SHORT, *settings))
    return [
        visit.visit(run, resolved, ffmpeg=ffmpeg, options=options or visit.Options(), observer=observer or Listener(), stop=stop or threading.Event())
        for run, resolved in runs
    ]


def published(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "animation").iterdir())


def test_a_run_becomes_one_animation_beside_its_frames(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """Without any configuration the animation lands in DIR/animation, named by seed and prompt; the frames are as they were."""
    folder = make_run(steps=6)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    observer = Listener()
    [result] = render(folder, ffmpeg, observer=observer)
    [output] = result.outputs
    assert published(folder) == ["4242-a slender rocket at dusk.mp4"]
    assert output.path == str(folder / "animation" / "4242-a slender rocket at dusk.mp4")
    assert (result.phase, result.found, result.shown, result.exit_code) == ("rendered", 6, 6, 0)
    assert (output.frames, output.duration, output.width, output.height) == (30, Fraction(1), 32, 24)
    content = Path(output.path).read_bytes()
    assert (output.bytes, output.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert {path: path.read_bytes() for path in before} == before
    assert observer.shown[-1][1:] == (30, 30)


def test_the_same_generation_and_plan_is_not_rendered_again(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """The second time the existing path comes back; --force renders beside it; another plan or another frame is another animation."""
    folder = make_run(steps=6)
    [first] = render(folder, ffmpeg)
    [second] = render(folder, ffmpeg)
    assert second.outputs[0].path == first.outputs[0].path
    assert second.outputs[0].exists
    assert len(published(folder)) == 1
    [forced] = render(folder, ffmpeg, options=visit.Options(force=True))
    assert str(forced.outputs[0].path).endswith("-1.mp4")
    [other] = render(folder, ffmpeg, "timeline.fps=24")
    assert str(other.outputs[0].path).endswith("-2.mp4")
    assert not other.outputs[0].exists
    (folder / "00005.png").unlink()
    assert not render(folder, ffmpeg)[0].outputs[0].exists


@pytest.mark.parametrize("codec", ["h264", "vp9", "prores", "gif", "webp", "apng"])
@pytest.mark.parametrize("setting", ["metadata.include=none", "metadata.mp4=apple"])
def test_every_container_says_which_run_it_shows(make_run, ffmpeg: str, codec: str, setting: str) -> None:  # type: ignore[no-untyped-def]
    """Run id, generation and plan are in the file whatever metadata the policy wants, so a lost receipt costs a look and no render."""
    folder = make_run(steps=3)
    [result] = render(folder, ffmpeg, f"outputs={codec}", setting)
    said = read_identity(tags.read(Path(str(result.outputs[0].path)), ffmpeg=ffmpeg))
    assert said is not None
    assert said.run == folder.name
    assert render(folder, ffmpeg, f"outputs={codec}", setting)[0].outputs[0].exists


def test_a_folder_of_runs_becomes_one_animation_each(make_run, tmp_path: Path, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """They share the output folder, and equal names are counted."""
    for name in ("20261122-161728-000001", "20261122-161728-000002"):
        make_run(tmp_path / "runs" / name, steps=3)
    results = render(tmp_path / "runs", ffmpeg)
    assert [result.exit_code for result in results] == [0, 0]
    assert published(tmp_path / "runs") == ["4242-a slender rocket at dusk-1.mp4", "4242-a slender rocket at dusk.mp4"]
    assert len(render(tmp_path / "runs", ffmpeg)) == 2, "outputs are never taken for runs"


def test_appended_runs_become_one_animation_in_their_order(make_run, tmp_path: Path, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """append: true joins the runs of a folder, whether each has a folder of its own or all lie in one."""
    for name in ("20261122-161728-000001", "20261122-161728-000002"):
        make_run(tmp_path / "runs" / name, steps=4)
    [result] = render(tmp_path / "runs", ffmpeg, "frames.append=true")
    assert (result.found, result.shown, len(result.outputs)) == (8, 8, 1)
    flat = make_run(tmp_path / "flat", steps=3, names="00001-{step:03d}-a.png", sidecar=None)
    make_run(flat, steps=2, names="00002-{step:03d}-b.png", sidecar=None)
    [result] = render(flat, ffmpeg, "frames.append=true", "frames.pattern=save-intermediate")
    assert (result.found, len(result.outputs)) == (5, 1)


def test_several_outputs_come_from_one_decode(make_run, ffmpeg: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Every frame is decoded once for three outputs; equal names get the codec."""
    folder = make_run(steps=5)
    decoded: list[str] = []
    original = frames.Reader.decode

    def counting(reader, frame, *, scale=1):  # type: ignore[no-untyped-def]
        decoded.append(frame.name)
        return original(reader, frame, scale=scale)

    monkeypatch.setattr(frames.Reader, "decode", counting)
    [result] = render(folder, ffmpeg, "outputs=[h264, h265, webp]")
    assert result.exit_code == 0
    assert sorted(decoded) == [f"{number:05d}.png" for number in range(5)]
    assert published(folder) == [f"4242-a slender rocket at dusk{end}" for end in ("-h265.mp4", ".mp4", ".webp")]


def test_create_false_makes_nothing_and_says_so(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """The policy may want no animation at all."""
    folder = make_run(steps=3)
    [result] = render(folder, ffmpeg, "create=false")
    assert (result.phase, result.outputs, result.exit_code) == ("ignored", (), 0)
    assert "create: false" in result.reason
    assert not (folder / "animation").exists()


def test_a_dry_run_shows_plan_and_arguments_and_writes_nothing(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """--dry-run has the path, the counts and ffmpeg's argument list."""
    folder = make_run(steps=3)
    [result] = render(folder, ffmpeg, options=visit.Options(dry_run=True))
    assert result.phase == "complete"
    assert result.outputs[0].frames == 30
    assert any("libx264" in command for command in result.commands)
    assert not (folder / "animation").exists()


@pytest.mark.parametrize(
    ("state", "name"), [("complete", "4242-a slender rocket at dusk.mp4"), ("interrupted", "4242-a slender rocket at dusk-incomplete.mp4")]
)
def test_an_incomplete_run_says_so_in_its_name(make_run, ffmpeg: str, state: str, name: str) -> None:  # type: ignore[no-untyped-def]
    """Complete is what the sidecar calls complete."""
    folder = make_run(steps=3, state=state)
    render(folder, ffmpeg)
    assert published(folder) == [name]


def test_a_destination_may_be_a_folder_or_a_file(make_run, ffmpeg: str, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """-o FOLDER keeps the policy's name; -o FILE gives it, and its suffix gives the codec."""
    folder = make_run(steps=3)
    (tmp_path / "clips").mkdir()
    [result] = render(folder, ffmpeg, options=visit.Options(destination=tmp_path / "clips"))
    assert result.outputs[0].path == str(tmp_path / "clips" / "4242-a slender rocket at dusk.mp4")
    [result] = render(folder, ffmpeg, options=visit.Options(destination=tmp_path / "mine.gif"))
    assert (result.outputs[0].path, result.outputs[0].codec) == (str(tmp_path / "mine.gif"), "gif")
    [result] = render(folder, ffmpeg, options=visit.Options(destination=tmp_path / "mine.txt"))
    assert result.exit_code == 2
    assert "suffix" in result.reason


def test_more_images_than_pictures_are_named_as_unshown(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """40 images in a second of 10 pictures: the last one is shown, those that are not are listed."""
    folder = make_run(steps=40)
    for interpolation in ("none", "blend"):
        [result] = render(folder, ffmpeg, "timeline.fps=10", f"timeline.interpolation={interpolation}")
        assert result.exit_code == 0, result.reason
        assert result.outputs[0].frames == 10
        assert result.shown + len(result.unshown) == 40
        assert result.shown >= 10
        assert "00039.png" not in result.unshown


def test_frames_of_different_sizes_are_brought_to_one(make_run, make_frame, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """Rows 11 and 12: the largest gives the size, odd sides become even, whatever `fit` says."""
    folder = make_run(steps=4, size=(31, 23))
    make_frame(folder / "00003.png", step=4, size=(65, 63))
    for fit in ("pad", "crop", "stretch"):
        [result] = render(folder, ffmpeg, f"size.fit={fit}", "outputs=[h264, gif]")
        assert result.exit_code == 0, result.reason
        assert [(output.width, output.height) for output in result.outputs] == [(66, 64), (65, 63)]


def test_a_frame_that_turns_out_damaged_is_left_out_by_a_new_plan(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """Rows 2 and 3: the header was fine, the pixels are not; the length stays exact and the frame is named."""
    folder = make_run(steps=6)
    whole = (folder / "00003.png").read_bytes()
    (folder / "00003.png").write_bytes(whole[: len(whole) * 2 // 3])
    [result] = render(folder, ffmpeg)
    assert (result.found, result.shown, result.damaged) == (6, 5, ("00003.png",))
    assert result.problems["00003.png"]
    assert result.outputs[0].frames == 30
    [failed] = render(folder, ffmpeg, "frames.damaged=fail")
    assert failed.exit_code == 1
    assert "00003.png" in failed.reason


@pytest.mark.parametrize("kept", [0, frames.KEPT])
def test_a_frame_that_changes_while_it_is_rendered_fails_the_render(  # type: ignore[no-untyped-def]
    make_run, make_frame, ffmpeg: str, monkeypatch: pytest.MonkeyPatch, kept: int
) -> None:
    """Whether it is read once or twice, what is published is exactly the generation that was named; a writer that is still at work is noticed."""
    folder = make_run(steps=4)
    original = frames.Reader.digest

    def digest(reader, frame, *, keep):  # type: ignore[no-untyped-def]
        found = original(reader, frame, keep=keep)
        if frame.name == "00003.png":
            make_frame(folder / "00002.png", step=77)
        return found

    monkeypatch.setattr(frames.Reader, "digest", digest)
    monkeypatch.setattr(frames, "KEPT", kept)
    [result] = render(folder, ffmpeg)
    assert result.exit_code == 1
    assert "00002.png changed" in result.reason
    assert not (folder / "animation").exists()


def test_an_interrupt_leaves_nothing_behind(make_run, ffmpeg: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Ctrl-C in the middle: no temporary file, no process, no animation."""
    folder = make_run(steps=8)
    stop = threading.Event()
    original = frames.Reader.decode

    def decode(reader, frame, *, scale=1):  # type: ignore[no-untyped-def]
        if frame.name == "00004.png":
            stop.set()
        return original(reader, frame, scale=scale)

    monkeypatch.setattr(frames.Reader, "decode", decode)
    with pytest.raises(Interrupted):
        render(folder, ffmpeg, "outputs=[h264, gif]", stop=stop)
    assert not (folder / "animation").exists()


def test_a_name_that_is_taken_meanwhile_is_not_overwritten(make_run, ffmpeg: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Row 71: somebody takes the name between verify and publish; both files live."""
    folder = make_run(steps=3)
    original = store.publish

    def publish(temporary: Path, place: Path, stem: str, suffix: str) -> Path:
        (place / f"{stem}{suffix}").write_text("mine")
        return original(temporary, place, stem, suffix)

    monkeypatch.setattr(store, "publish", publish)
    [result] = render(folder, ffmpeg)
    assert str(result.outputs[0].path).endswith("-1.mp4")
    assert (folder / "animation" / "4242-a slender rocket at dusk.mp4").read_text() == "mine"


def test_a_counter_in_the_name_counts(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """{n:03d} is the first number that is free."""
    folder = make_run(steps=3)
    for fps in (24, 25):
        render(folder, ffmpeg, "outputs=[{codec: h264, name: 'clip-{n:03d}'}]", f"timeline.fps={fps}")
    assert published(folder) == ["clip-001.mp4", "clip-002.mp4"]


def test_a_latent_sized_frame_is_enlarged_by_the_sidecars_scale(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """frames.scale 8 makes 64x64 of 8x8."""
    folder = make_run(steps=3, size=(8, 8), sidecar={"frames": {"name": "{index:05d}.png", "scale": 8, "width": 8, "height": 8}})
    [result] = render(folder, ffmpeg)
    assert (result.outputs[0].width, result.outputs[0].height) == (64, 64)


def test_a_gif_loops_and_lasts_exactly_as_long_as_planned(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """Delays in hundredths add up to duration and holds."""
    folder = make_run(steps=7)
    [result] = render(folder, ffmpeg, "outputs=gif", "timeline.hold_first=500ms", "timeline.hold_last=2s", "timeline.interpolation=none")
    with Image.open(str(result.outputs[0].path)) as image:
        total = 0
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            total += image.info["duration"]
        assert image.info["loop"] == 0
    assert total == 3500


@pytest.mark.parametrize("codec", ["h264", "vp9", "gif", "webp"])
def test_an_animation_that_was_cut_since_does_not_count_as_there(make_run, ffmpeg: str, codec: str) -> None:  # type: ignore[no-untyped-def]
    """What a file says of itself stands at its start; the rest of it is looked at too before nothing is rendered."""
    folder = make_run(steps=6)
    [first] = render(folder, ffmpeg, f"outputs={codec}")
    path = Path(str(first.outputs[0].path))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    observer = Listener()
    [second] = render(folder, ffmpeg, f"outputs={codec}", observer=observer)
    assert not second.outputs[0].exists
    assert second.outputs[0].path != str(path)
    assert path.read_bytes() == content[: len(content) * 2 // 3], "a file that is not ours any more is left alone"


def test_an_animation_that_had_to_fit_is_found_again(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """With max_size the file may be smaller than planned in every respect; it is the same animation all the same."""
    folder = make_run(steps=6, size=(160, 120))
    [free] = render(folder, ffmpeg, "outputs=[{codec: gif, name: free}]")
    limit = f"outputs=[{{codec: gif, max_size: {free.outputs[0].bytes * 7 // 10}}}]"
    [first] = render(folder, ffmpeg, limit)
    [second] = render(folder, ffmpeg, limit)
    assert first.exit_code == 0, first.reason
    assert second.outputs[0].exists
    assert second.outputs[0].width == first.outputs[0].width < 160


def test_frames_that_are_not_shown_are_proved_all_the_same(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """40 images in 10 pictures: a damaged one among those that no picture shows is named, and fails the render where the policy says so."""
    folder = make_run(steps=40)
    whole = (folder / "00002.png").read_bytes()
    (folder / "00002.png").write_bytes(whole[: len(whole) * 2 // 3])
    [result] = render(folder, ffmpeg, "timeline.fps=10", "timeline.interpolation=none")
    assert result.damaged == ("00002.png",)
    [result] = render(folder, ffmpeg, "timeline.fps=10", "timeline.interpolation=none", "frames.damaged=fail")
    assert (result.exit_code, result.damaged, result.shown) == (1, ("00002.png",), 0)


def test_a_failed_render_leaves_no_folder_and_shows_nothing(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """What was made for an animation that did not come goes again; the result names what was damaged."""
    folder = make_run(steps=3)
    (folder / "00001.png").write_bytes(b"")
    [result] = render(folder, ffmpeg, "frames.damaged=fail", "outputs=[{codec: h264, dir: a/b/c}]")
    assert (result.exit_code, result.shown, result.damaged) == (1, 0, ("00001.png",))
    [result] = render(folder, ffmpeg, "outputs=[{codec: gif, max_size: 10}]")
    assert "the smallest of" in result.reason
    assert not (folder / "animation").exists()


def test_holds_are_pictures_in_an_apng_and_delays_in_a_gif(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """gif and webp count in ticks of their own; every other container has fps pictures in each second, holds included."""
    folder = make_run(steps=6)
    [result] = render(folder, ffmpeg, "outputs=[h264, apng, gif, webp]", "timeline.hold_last=1s")
    assert [output.frames for output in result.outputs] == [60, 60, 30, 30]
    for output in result.outputs[1:]:
        with Image.open(str(output.path)) as image:
            assert getattr(image, "n_frames", 1) == output.frames


def test_an_interrupt_during_verification_is_an_interrupt(make_run, ffmpeg: str, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Not a render that failed."""
    folder = make_run(steps=6)
    stop = threading.Event()
    original = store.fsync_file

    def fsync(path: Path) -> None:
        original(path)
        stop.set()

    monkeypatch.setattr(store, "fsync_file", fsync)
    with pytest.raises(Interrupted):
        render(folder, ffmpeg, stop=stop)
    assert not (folder / "animation").exists()


def test_seed_and_prompt_in_the_names_name_the_animation(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """Frames of Steps Animation without a text in them: SEED-PROMPT stands in their names."""
    folder = make_run(steps=3, sidecar=None, names="0101{index:03d}-12-a grey cat.png")
    [result] = render(folder, ffmpeg)
    assert published(folder) == ["12-a grey cat-incomplete.mp4"]
    assert result.found == 3


@pytest.mark.parametrize("codec", ["webp", "apng"])
def test_a_single_frame_makes_an_animation_that_lasts(make_run, ffmpeg: str, codec: str) -> None:  # type: ignore[no-untyped-def]
    """A still image would know no time: the picture is written twice, and lasts as long as planned."""
    folder = make_run(steps=1)
    for interpolation in ("none", "blend"):
        [result] = render(folder, ffmpeg, f"outputs={codec}", f"timeline.interpolation={interpolation}", "timeline.hold_last=2500ms")
        with Image.open(str(result.outputs[0].path)) as image:
            assert getattr(image, "n_frames", 1) == result.outputs[0].frames >= 2
            lasts = 0.0
            for number in range(getattr(image, "n_frames", 1)):
                image.seek(number)
                image.load()
                lasts += image.info["duration"]
        assert abs(lasts - 3500) < 2 * result.outputs[0].frames


def test_a_gif_knows_the_colours_between_its_images(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """Pure red to pure green goes through colours that neither has; the palette is made from the cross-fade."""
    folder = make_run(steps=2, size=(64, 64))
    for number, colour in enumerate([(255, 0, 0), (0, 255, 0)]):
        Image.new("RGB", (64, 64), colour).save(folder / f"{number:05d}.png")
    [result] = render(folder, ffmpeg, "outputs=gif")
    assert result.exit_code == 0, result.reason
    with Image.open(str(result.outputs[0].path)) as image:
        image.seek(7)
        red, green, _ = image.convert("RGB").resize((1, 1), Image.Resampling.BOX).getpixel((0, 0))  # type: ignore[misc]
    assert 60 < red < 200
    assert 60 < green < 200


@pytest.mark.parametrize("codec", ["h264", "h265", "av1", "vp9", "prores", "gif", "webp", "apng"])
def test_flat_colours_are_no_reason_to_refuse(make_run, ffmpeg: str, codec: str) -> None:  # type: ignore[no-untyped-def]
    """An encoder may shift all of a flat picture by a level or two; that is not another moment."""
    folder = make_run(steps=24, size=(64, 64))
    for number in range(24):
        Image.new("RGB", (64, 64), (90 + number, 80 + 2 * number, 170 - 3 * number)).save(folder / f"{number:05d}.png")
    [result] = render(folder, ffmpeg, f"outputs={codec}")
    assert result.exit_code == 0, result.reason


def test_what_the_sidecar_counts_and_is_not_there_is_missing(make_run, ffmpeg: str) -> None:  # type: ignore[no-untyped-def]
    """Holes at both ends are holes: the hook's lost frames, and what a final count promises."""
    folder = make_run(steps=6, sidecar={"frames": {"name": "{index:05d}.png", "count": 6, "lost": [6], "scale": 1}})
    (folder / "00000.png").unlink()
    [result] = render(folder, ffmpeg)
    assert result.missing == (1, 7)


@pytest.mark.skipif(not REAL.is_dir(), reason="the recorded runs are not here")
@pytest.mark.parametrize("codec", ["av1", "vp9", "h265"])
def test_what_hardly_changes_at_the_end_of_a_run_changes_nevertheless(tmp_path: Path, ffmpeg: str, codec: str) -> None:
    """Late steps differ by less than an encoder in a hurry thinks worth a bit; each must be seen all the same."""
    folder = tmp_path / "run"
    folder.mkdir()
    for path in sorted((REAL / "A").glob("*.png"))[39:70]:
        shutil.copy(path, folder)
    [result] = render(folder, ffmpeg, f"outputs=[{codec}]", "timeline.duration=2067ms", "timeline.hold_last=0s")
    assert result.exit_code == 0, result.reason
