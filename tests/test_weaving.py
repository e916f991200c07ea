"""Cross-fades that are written without an encoder: what players see of them, and what becomes of everything that can go wrong."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageStat

from stepwatch import config, frames, graph, visit
from stepwatch.core import boxes, fades, tuning
from stepwatch.core.fades import fades_of
from stepwatch.core.plan import OutputPlan, plan_render
from stepwatch.core.result import RunResult
from stepwatch.core.timeline import Timeline, make_timeline
from stepwatch.core.tuning import ANCHORS
from stepwatch.core.weaving import Weave
from stepwatch.encoder import capabilities
from tests.conftest import MakeRun

CODECS = ("h264", "h265", "av1", "vp9")
ENCODERS = {"h264": "libx264", "h265": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9"}
GRAIN = {"av1": 1 / 32, "vp9": 1 / 32}
"""Of a fade, as far as a picture may be from its place where there are halves of halves only; halving rounds up each time."""
SIZE = (96, 64)
LOSS = 2.0
"""Levels of green by which an encode of quality, and half as many pixels of colour as there are, leave an image off."""
ROUNDING = 1.0
"""Levels by which a picture between two may be off their mix: each of its planes is rounded, and back to RGB once more."""


class Ears:
    """Remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, run_name: str, sentence: str, *, level: str = "info") -> None:
        self.said.append(sentence)

    def progress(self, run_name: str, label: str, done: int, total: int, speed: float | None) -> None: ...

    def finished(self, run_name: str) -> None: ...


def render(folder: Path, ffmpeg: str, *settings: str, ears: Ears | None = None) -> RunResult:
    asked = ("timeline.interpolation=blend", *settings)
    [(run, resolved)] = visit.runs_below(folder, service=config.load_service(None), settings=asked)
    options = visit.Options(verbose=True)
    return visit.visit(run, resolved, ffmpeg=ffmpeg, options=options, observer=ears or Ears(), stop=threading.Event())


def write_images(folder: Path, count: int, size: tuple[int, int] = SIZE) -> list[Image.Image]:
    """A run of smooth colours that turn, so that loss stays small and every image is another."""
    folder.mkdir()
    images = []
    for number in range(count):
        planes = [Image.linear_gradient("L").rotate(90 * (number + plane)).resize(size) for plane in range(3)]
        images.append(Image.merge("RGB", [plane.point([(value + 37 * number) // 2 % 256 for value in range(256)]) for plane in planes]))
        images[-1].save(folder / f"{number:05d}.png")
    (folder / "run.json").write_text(json.dumps({"schema": 1, "state": "complete", "frames": {"count": count}}))
    return images


def seen(path: Path, ffmpeg: str, size: tuple[int, int] = SIZE) -> list[Image.Image]:
    """Every picture of a file, strictly decoded."""
    argv = [ffmpeg, "-v", "error", "-xerror", "-err_detect", "explode", "-i", str(path), "-fps_mode", "passthrough"]
    ran = subprocess.run(
        [*argv, "-vf", "scale=in_color_matrix=bt709:in_range=tv", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"], check=True, capture_output=True
    )
    assert not ran.stderr, ran.stderr
    step = 3 * size[0] * size[1]
    assert not len(ran.stdout) % step
    return [Image.frombytes("RGB", size, ran.stdout[at : at + step]) for at in range(0, len(ran.stdout), step)]


def shown_times(path: Path, ffmpeg: str) -> list[tuple[Fraction, Fraction, bool]]:
    """When each packet shows and is decoded, and whether one may begin there; in the order of decoding."""
    argv = [ffmpeg, "-v", "error", "-i", str(path), "-map", "0", "-c", "copy", "-f", "framecrc", "-"]
    lines = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.splitlines()
    base = next(Fraction(line.split(":")[1].strip()) for line in lines if line.startswith("#tb"))
    found = []
    for line in lines:
        if not line.startswith("#"):
            _, decoded, shown, *rest = (part.strip() for part in line.split(","))
            found.append((int(shown) * base, int(decoded) * base, not any(part.startswith("F=0x0") for part in rest)))
    return found


def off(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of green, which is nearly luma, in levels."""
    return ImageStat.Stat(ImageChops.difference(one, other)).mean[1]


def mixed(images: list[Image.Image], timeline: Timeline, number: int) -> Image.Image:
    mix = timeline.picture(number)
    order = timeline.order
    return Image.blend(images[order[mix.first]], images[order[mix.second]], float(mix.weight))


TIMELINES = {
    "each image on a picture": ("timeline.duration=2s", "timeline.hold_last=0s"),
    "between pictures": ("timeline.duration=1700ms", "timeline.hold_last=0s"),
    "held at both ends": ("timeline.duration=1900ms", "timeline.hold_first=700ms", "timeline.hold_last=2600ms"),
    "film": ("timeline.duration=2s", "timeline.fps=24000/1001", "timeline.hold_last=500ms"),
    "long fades and key frames": ("timeline.duration=20s", "timeline.hold_last=0s"),
    "there and back": ("timeline.duration=3s", "timeline.direction=pingpong", "timeline.hold_last=0s"),
}


@pytest.mark.render
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("settings", TIMELINES.values(), ids=TIMELINES)
def test_every_picture_is_the_exact_mix_at_its_time(tmp_path: Path, ffmpeg: str, settings: tuple[str, ...], codec: str) -> None:
    """Wherever the images fall, each picture shows what the timeline says, to the level that rounding and the encoder's loss leave."""
    images = write_images(tmp_path / "run", 5)
    ears = Ears()
    result = render(tmp_path / "run", ffmpeg, *settings, f"outputs=[{{codec: {codec}, quality: {{crf: 8}}}}]", ears=ears)
    assert result.exit_code == 0, ears.said
    assert any("force_key_frames" in sentence for sentence in ears.said), "it was not woven"
    (output,) = result.outputs
    assert output.path is not None
    path = Path(output.path)
    [(_, resolved)] = visit.runs_below(tmp_path / "run", service=config.load_service(None), settings=("timeline.interpolation=blend", *settings))
    policy = resolved.policy.timeline
    timeline = make_timeline(
        5,
        duration=policy.duration,
        fps=policy.fps,
        interpolation="blend",
        hold_first=policy.hold_first,
        hold_last=policy.hold_last,
        direction=policy.direction,
    )
    pictures = seen(path, ffmpeg)
    assert len(pictures) == timeline.total == output.frames
    anchors = ANCHORS[ENCODERS[codec]]
    fades = fades_of(timeline, anchors.longest, regular=anchors.regular)
    assert fades is not None
    for number in fades.anchors:
        assert off(pictures[number], mixed(images, timeline, number)) < LOSS, number
    for before, after in pairwise(fades.anchors):
        for number in range(before + 1, after):
            way = Image.blend(pictures[before], pictures[after], (number - before) / (after - before))
            assert off(pictures[number], way) < ROUNDING + GRAIN.get(codec, 0) * (1 + off(pictures[before], pictures[after])), number
    times = shown_times(path, ffmpeg)
    assert [round(float(shown * timeline.fps), 1) for shown, _, _ in sorted(times)] == list(range(timeline.total))
    assert all(shown >= decoded for shown, decoded, _ in times)


@pytest.mark.render
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("size", [(518, 390), (17, 16), (34, 1000)], ids=str)
def test_sizes_that_no_block_divides_are_woven_too(tmp_path: Path, ffmpeg: str, size: tuple[int, int], codec: str) -> None:
    """Blocks at the edge reach beyond the picture, and are cut."""
    write_images(tmp_path / "run", 3, size)
    ears = Ears()
    result = render(tmp_path / "run", ffmpeg, "timeline.duration=1s", f"outputs=[{{codec: {codec}}}]", ears=ears)
    assert result.exit_code == 0, ears.said
    assert any("force_key_frames" in sentence for sentence in ears.said)


@pytest.mark.render
@pytest.mark.parametrize("quality", ["high", "small", "{crf: 30}"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_quality_of_ours_is_woven(tmp_path: Path, ffmpeg: str, quality: str, codec: str) -> None:
    """Whatever effort an encoder makes, what it writes is understood."""
    write_images(tmp_path / "run", 4)
    ears = Ears()
    result = render(tmp_path / "run", ffmpeg, "timeline.duration=2s", f"outputs=[{{codec: {codec}, quality: {quality}}}]", ears=ears)
    assert result.exit_code == 0, ears.said
    assert any("force_key_frames" in sentence for sentence in ears.said)


def scripted(ffmpeg: str, place: Path, script: str) -> str:
    """An ffmpeg that does something else where anchors are to be encoded."""
    program = place / "ffmpeg"
    program.write_text(f'#!/bin/sh\ncase "$*" in *force_key_frames*) {script};; esac\nexec "{ffmpeg}" "$@"\n')
    program.chmod(0o755)
    return str(program)


FAULTS = {
    "it dies at once": ("exit 3", "status 3"),
    "it says nothing": ("cat >/dev/null; exit 0", "of 60 pictures were made"),
    "it is cut short": ('"{ffmpeg}" "$@" | head -c 2000; exit 0', "of 60 pictures were made"),
    "it writes something else": ("cat >/dev/null; echo nonsense, and enough of it; exit 0", "of 60 pictures were made"),
}


@pytest.mark.render
@pytest.mark.parametrize(("script", "why"), FAULTS.values(), ids=FAULTS)
def test_an_encoder_that_fails_publishes_nothing_and_says_why(make_run: MakeRun, ffmpeg: str, tmp_path: Path, script: str, why: str) -> None:
    """Whatever goes wrong where the anchors are made: one clear error, no file, and no process that waits."""
    folder = make_run(steps=5, size=SIZE)
    other = scripted(ffmpeg, tmp_path, script.replace("{ffmpeg}", ffmpeg))
    result = render(folder, other, "timeline.duration=2s", "timeline.hold_last=0s")
    assert result.exit_code != 0
    (output,) = result.outputs
    assert output.path is None
    assert output.error is not None
    assert why in output.error, output.error
    assert not list((folder.parent / "animation").glob("*"))


@pytest.mark.render
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("pictures", [15, 16, 22])
def test_fades_between_black_and_white_hold(tmp_path: Path, ffmpeg: str, codec: str, pictures: int) -> None:
    """A thirty-second of the greatest difference that there is: how finely a stream can fade is no fault of its file."""
    (tmp_path / "run").mkdir()
    for number in range(3):
        Image.new("RGB", (256, 256), "white" if number % 2 else "black").save(tmp_path / "run" / f"{number}.png")
    ears = Ears()
    duration = f"timeline.duration={3 * pictures * 1000 // 30}ms"
    result = render(tmp_path / "run", ffmpeg, duration, f"outputs=[{{codec: {codec}}}]", ears=ears)
    assert result.exit_code == 0, ears.said
    assert any("force_key_frames" in sentence for sentence in ears.said), "it was not woven"


OTHERWISE = {
    "h264": ("keyint=infinite", "keyint=infinite:cabac=0"),
    "h265": ("bframes=0", "bframes=2"),
    "av1": ("pred-struct=1", "pred-struct=2"),
    "vp9": ("-error-resilient", "-frame-parallel"),
}


@pytest.mark.render
@pytest.mark.parametrize("codec", CODECS)
def test_what_cannot_be_woven_is_encoded_in_full(tmp_path: Path, ffmpeg: str, codec: str) -> None:
    """Another version of an encoder may write what is not understood here: the animation is there all the same, once."""
    write_images(tmp_path / "run", 4)
    old, new = OTHERWISE[codec]
    program = tmp_path / "ffmpeg"
    changed = f'for one in "$@"; do set -- "$@" "$(printf %s "$one" | sed "s/{old}/{new}/")"; shift; done'
    program.write_text(f'#!/bin/sh\ncase "$*" in *force_key_frames*) {changed};; esac\nexec "{ffmpeg}" "$@"\n')
    program.chmod(0o755)
    settings = ("timeline.duration=2s", "timeline.hold_last=0s", f"outputs=[{{codec: {codec}}}]")
    ears = Ears()
    first = render(tmp_path / "run", str(program), *settings, ears=ears)
    assert first.exit_code == 0, ears.said
    assert any("all pictures are encoded instead" in sentence for sentence in ears.said), ears.said
    (output,) = first.outputs
    assert output.path is not None
    assert len(seen(Path(output.path), ffmpeg)) == output.frames == 60
    again = render(tmp_path / "run", str(program), *settings)
    assert [output.exists for output in again.outputs] == [True]


LIAR = """\
#!/bin/sh
'''exec' '{python}' "$0" "$@" # the path of a Python may hold a space, which no shebang takes
' '''
import os, re, subprocess, sys
REAL, LIE = {real!r}, {lie!r}
args = sys.argv[1:]
encodes, files = "-force_key_frames" in args, "copy" in args and "pipe:0" in args
if not encodes and not files:
    os.execv(REAL, [REAL, *args])
data = sys.stdin.buffer.read()
if encodes:
    size = {width} * {height} * 3
    images = [data[at : at + size] for at in range(0, len(data), size)]
    if LIE == "swaps two":
        images[1], images[2] = images[2], images[1]
    if LIE == "leaves out one":
        del images[2]
    if LIE == "leaves out the last":
        del images[-1]
    if LIE == "shows one twice":
        images[2] = images[1]
    if LIE == "adds one":
        images.append(images[-1])
    data = b"".join(images)
if files and LIE == "files the first half":
    data = data[: len(data) // 2]
code = subprocess.run([REAL, *args], input=data, close_fds=False).returncode
if files and LIE in ("cuts the file", "changes the file"):
    target = re.search(r"file:([^|]*)", args[-1])[1]
    with open(target, "r+b") as file:
        if LIE == "cuts the file":
            file.truncate(os.path.getsize(target) * 2 // 3)
        else:
            file.seek(os.path.getsize(target) - 40)
            file.write(b"nonsense")
sys.exit(0 if files else code)
"""
LIES = (
    "swaps two",
    "leaves out one",
    "leaves out the last",
    "shows one twice",
    "adds one",
    "files the first half",
    "cuts the file",
    "changes the file",
)


@pytest.mark.render
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("lie", LIES)
def test_a_lie_of_either_ffmpeg_is_found_out(tmp_path: Path, ffmpeg: str, lie: str, codec: str) -> None:
    """Whoever encodes the anchors, or puts the pictures into the file, does something else and says that all is well.

    Nothing is published; or, where the pictures show that they are not the planned ones, all are encoded, and those are what they should be.
    """
    images = write_images(tmp_path / "run", 5)
    program = tmp_path / "ffmpeg"
    program.write_text(LIAR.format(python=sys.executable, real=ffmpeg, lie=lie, width=SIZE[0], height=SIZE[1]))
    program.chmod(0o755)
    ears = Ears()
    result = render(tmp_path / "run", str(program), "timeline.duration=2s", "timeline.hold_last=0s", f"outputs=[{{codec: {codec}}}]", ears=ears)
    (output,) = result.outputs
    healed = any("all pictures are encoded instead" in sentence for sentence in ears.said)
    assert healed or lie not in ("swaps two", "shows one twice")
    if healed:
        assert output.path is not None
        timeline = make_timeline(5, duration=Fraction(2), fps=Fraction(30), interpolation="blend")
        for number, picture in enumerate(seen(Path(output.path), ffmpeg)):
            assert off(picture, mixed(images, timeline, number)) < 2 * LOSS, number
    else:
        assert (result.phase, output.path) == ("render-failed", None)
        assert not list((tmp_path / "animation").glob("*"))


def anchors_of(plan: OutputPlan, images: list[Image.Image], ffmpeg: str) -> bytes:
    given = b"".join(mixed_rgb(images, plan.timeline, number) for number in plan.fades.anchors) if plan.fades else b""
    return subprocess.run(graph.anchors_argv(plan, ffmpeg_path=ffmpeg), check=True, capture_output=True, input=given).stdout


def mixed_rgb(images: list[Image.Image], timeline: Timeline, number: int) -> bytes:
    mix = timeline.picture(number)
    return Image.blend(images[mix.first], images[mix.second], float(mix.weight)).tobytes()


@pytest.fixture
def stream(tmp_path: Path, ffmpeg: str) -> tuple[OutputPlan, bytes]:
    """A plan with cross-fades, and what the encoder makes of its anchors."""
    images = write_images(tmp_path / "run", 3)
    [(run, resolved)] = visit.runs_below(tmp_path / "run", service=config.load_service(None), settings=("timeline.duration=1s",))
    plan = plan_render(run, frames.survey(run), resolved.policy, encoders=capabilities(ffmpeg).encoders).outputs[0]
    return plan, anchors_of(plan, images, ffmpeg)


@pytest.mark.render
def test_pieces_of_any_size_are_woven_alike(stream: tuple[OutputPlan, bytes]) -> None:
    """A pipe gives what it has: one byte at a time, or all at once, it becomes the same file."""
    plan, data = stream
    assert plan.fades is not None
    whole = b"".join(Weave(plan.fades, plan.fps, "h264").take(data))
    weave = Weave(plan.fades, plan.fps, "h264")
    assert b"".join(picture for byte in data for picture in weave.take(bytes([byte]))) == whole
    assert weave.made == plan.pictures


@pytest.mark.render
def test_each_picture_comes_as_soon_as_its_anchor_is_there(stream: tuple[OutputPlan, bytes]) -> None:
    """Nobody waits for what follows: with an anchor come all the pictures that lead to it."""
    plan, data = stream
    assert plan.fades is not None
    weave, made, given = Weave(plan.fades, plan.fps, "h264"), [], 0
    for kind, contents in boxes.boxes(data):
        list(weave.take(boxes.box(kind, contents)))
        if kind == b"mdat":
            made.append(weave.made)
            given += 1
    assert made == [anchor + 1 for anchor in plan.fades.anchors]


@pytest.mark.render
@pytest.mark.parametrize("other", ["more", "no key frame"])
def test_a_stream_that_was_not_asked_for_is_refused(stream: tuple[OutputPlan, bytes], other: str) -> None:
    """One anchor too many, or a key frame where none was asked for: what is between them would be wrong."""
    plan, data = stream
    fades = plan.fades
    assert fades is not None
    if other == "more":
        cut = fades_of(make_timeline(2, duration=Fraction(1, 3), fps=Fraction(30), interpolation="blend"), ANCHORS["libx264"].longest)
        assert cut is not None
        with pytest.raises(ValueError, match="nobody asked for"):
            list(Weave(cut, plan.fps, "h264").take(data))
    else:
        keyed = type(fades)(anchors=fades.anchors, keys=(0, 1))
        with pytest.raises(ValueError, match="not where it was asked for"):
            list(Weave(keyed, plan.fps, "h264").take(data))


@pytest.mark.render
def test_an_encoder_that_dies_in_the_middle_of_a_picture_is_named(make_run: MakeRun, ffmpeg: str, tmp_path: Path) -> None:
    """What is missing because of that is not the cause; who reads that it was killed looks whether memory ran out."""
    folder = make_run(steps=5, size=SIZE)
    dying = f'"{ffmpeg}" "$@" | head -c 1500; kill -9 $$'
    result = render(folder, scripted(ffmpeg, tmp_path, dying), "timeline.duration=2s", "timeline.hold_last=0s")
    (output,) = result.outputs
    assert output.error is not None
    assert "signal 9" in output.error


@pytest.mark.render
@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize(("every", "minutes"), [(60, 5), pytest.param(fades.KEYFRAME_EVERY, 15, marks=pytest.mark.slow)])
def test_hundreds_of_key_frames_are_woven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ffmpeg: str, codec: str, every: int, minutes: int) -> None:
    """A quarter of an hour has more of them than ffmpeg takes operators in a row; and five minutes have, where they are closer."""
    for module in (fades, tuning):
        monkeypatch.setattr(module, "KEYFRAME_EVERY", every)
    write_images(tmp_path / "run", 2, (64, 64))
    settings = (f"timeline.duration={minutes}m", "timeline.hold_last=0s", "timeline.fps=30", f"outputs=[{{codec: {codec}}}]")
    result = render(tmp_path / "run", ffmpeg, *settings)
    assert result.exit_code == 0, result.reason
    assert result.outputs[0].frames == minutes * 60 * 30
