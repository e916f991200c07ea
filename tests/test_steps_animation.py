"""Coming from the WebUI extension Steps Animation: each of its options works here under its own key, and its animations look the same.

The extension's ffmpeg line is built here from the parameters that it publishes, to be run beside ours on the same images. It has three faults that
the comparison allows for, and that ours must not have: it interpolates at 60 pictures a second and drops every other one, which puts its pictures
a little behind their time; `minterpolate` swallows the end, so that the animation is short by up to two images and never shows the finished
picture; and its colours are BT.601 without saying so.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import pytest
from PIL import Image, ImageChops, ImageStat, PngImagePlugin

from stepwatch.encoder import capabilities
from tests import ready

ROOT = Path(__file__).resolve().parent.parent
REAL = ROOT.parent / "shared" / "frames"
PROMPT = "portrait of a smiling astronaut, (studio light:1.2)"
INFOTEXT = (
    f"{PROMPT}\nNegative prompt: blurry, watermark\n"
    "Steps: 12, Sampler: Euler a, CFG scale: 2.5, Seed: 1712, Size: 64x48, Model: tiny, Version: v1.9.0, intermediate: 012"
)


# -- the extension


@dataclass(frozen=True, slots=True, kw_only=True)
class Seed:
    """The extension's choices for one codec, as it publishes them."""

    codec: str
    suffix: str
    words: str
    lines: Mapping[str, str]
    """What `--dry-run` has to show of them, option by option."""


def published(codec: str, suffix: str, words: str) -> Seed:
    parts = words.split()
    return Seed(codec=codec, suffix=suffix, words=words, lines=dict(zip(parts[::2], parts[1::2], strict=True)))


CODECS = [
    published("h264", ".mp4", "-c:v libx264 -preset medium -crf 23"),
    published("h265", ".mp4", "-c:v libx265 -preset faster -crf 28"),
    published("vp9", ".webm", "-c:v libvpx-vp9 -crf 34 -b:v 0 -deadline realtime -cpu-used 4"),
    published("av1", ".mp4", "-c:v libaom-av1 -crf 28 -b:v 0 -usage realtime -cpu-used 8"),
    published("prores", ".mov", "-c:v prores_ks -profile:v 3 -vendor apl0 -bits_per_mb 8000"),
]


def seed_line(ffmpeg: str, folder: Path, count: int, *, duration: Fraction, mode: str, target: Path, last: int = 0) -> Path:
    """Run the extension's ffmpeg line for h264 over the images ``00001.png ..`` of *folder*."""
    chain = []
    if mode != "none":
        fifo = ",fifo" if "fifo" in capabilities(ffmpeg).filters else ""  # Gone from newer ffmpeg, and without effect where it is not.
        chain.append(f"minterpolate=mi_mode={mode}{fifo}")
    if last:
        chain.append(f"tpad=stop_mode=clone:stop_duration={last}")
    argv = [ffmpeg, "-hide_banner", "-loglevel", "error", "-hwaccel", "auto", "-y", "-framerate", str(float(count / duration)), "-start_number", "1"]
    argv += ["-i", f"{folder}/%05d.png", "-r", "30", *CODECS[0].words.split(), *(("-vf", ",".join(chain)) if chain else ())]
    subprocess.run([*argv, "-movflags", "+faststart", str(target)], check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return target


# -- frames, and the program


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    code: int
    out: str
    err: str

    @property
    def path(self) -> Path:
        """The one path that is the whole result."""
        assert self.code == 0, self.err
        (line,) = self.out.splitlines()
        return Path(line)


class Stepwatch(Protocol):
    def __call__(self, *arguments: str | Path) -> Ended: ...


@pytest.fixture
def render(tmp_path: Path) -> Stepwatch:
    """Call `stepwatch render` as a user does."""

    def run(*arguments: str | Path) -> Ended:
        done = ready.stepwatch("render", *map(str, arguments), cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
        return Ended(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())

    return run


def real_images(count: int, size: tuple[int, int]) -> list[Image.Image]:
    """Frames of a real run: run F where the data set is there, else the packaged sample, whose end hardly changes any more."""
    if (REAL / "F").is_dir():
        paths = sorted((REAL / "F").glob("*.png"))
        opened = [Image.open(path) for path in paths[len(paths) - count :]]
    else:
        (sample,) = (entry for entry in files("stepwatch").joinpath("data", "sample").iterdir() if entry.is_dir())
        opened = [Image.open(str(sample.joinpath(f"{round(18 * number / (count - 1)):05d}.jpg"))) for number in range(count)]
    images = [image.convert("RGB").resize(size, Image.Resampling.LANCZOS) for image in opened]
    for image in opened:
        image.close()
    return images


@pytest.fixture
def intermediate(tmp_path: Path) -> Callable[..., Path]:
    """Write frames as the extension does, `BBIISSS-SEED-PROMPT.png` with the WebUI's text, into the folder that it calls `intermediate`."""

    def write(steps: int = 6, *, seed: int = 1712, picture: int = 0, size: tuple[int, int] = (64, 48), folder: str = "intermediate") -> Path:
        place = tmp_path / "txt2img-images" / folder
        place.mkdir(parents=True, exist_ok=True)
        plain = re.sub(r"[^\w ]", "", PROMPT)[:96]
        for number, image in enumerate(real_images(steps, size)):
            info = PngImagePlugin.PngInfo()
            info.add_text("parameters", INFOTEXT.replace("Seed: 1712", f"Seed: {seed}"))
            image.save(place / f"00{picture:02d}{number:03d}-{seed}-{plain}.png", pnginfo=info)
        return place

    return write


def sets(*settings: str) -> list[str]:
    return [word for setting in settings for word in ("--set", setting)]


QUICK = sets("timeline.duration=1s", "timeline.hold_last=0s", "timeline.fps=10")


def packets(path: Path, ffmpeg: str) -> tuple[int, Fraction]:
    """Number of packets in a file, and the seconds at which the last one ends."""
    listed = subprocess.run([ffmpeg, "-v", "error", "-i", str(path), "-c", "copy", "-f", "framecrc", "-"], check=True, capture_output=True)
    lines = listed.stdout.decode().splitlines()
    base = Fraction(next(line.partition(":")[2].strip() for line in lines if line.startswith("#tb 0")))
    parts = [line.split(",") for line in lines if not line.startswith("#")]
    return len(parts), max(int(part[2]) + int(part[3]) for part in parts) * base


def pictures(path: Path, ffmpeg: str, *, matrix: str, size: tuple[int, int]) -> list[Image.Image]:
    """Every picture of a file, decoded with *matrix* whatever the file says or keeps quiet about, as grey."""
    chain = f"scale=in_color_matrix={matrix}:in_range=tv,format=rgb24"
    argv = [ffmpeg, "-v", "error", "-i", str(path), "-fps_mode", "passthrough", "-vf", chain, "-f", "rawvideo", "-"]
    data = subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL).stdout
    length = size[0] * size[1] * 3
    return [Image.frombytes("RGB", size, data[start : start + length]).convert("L") for start in range(0, len(data), length)]


def said(path: Path, ffmpeg: str) -> dict[str, str]:
    """The tags of a file, one line each, as ffmpeg lists them."""
    listed = subprocess.run([ffmpeg, "-v", "error", "-i", str(path), "-f", "ffmetadata", "-"], check=True, capture_output=True)
    lines = re.sub(r"\\\n", "\n ", listed.stdout.decode()).splitlines()
    return dict(re.sub(r"\\([=;#\\])", r"\1", line).split("=", 1) for line in lines if re.match(r"[\w-]+=", line))


def difference(one: Image.Image, other: Image.Image) -> float:
    return ImageStat.Stat(ImageChops.difference(one.convert("L"), other.convert("L"))).mean[0]


def preset(folder: Path, *lines: str) -> Path:
    """Write the one-word policy, and further lines, beside the frames."""
    (folder / "stepwatch.yaml").write_text("\n".join(("preset: steps-animation", *lines)) + "\n", encoding="utf-8")
    return folder


# -- every option under its key


@pytest.mark.parametrize(("duration", "fps", "count"), [("0.5s", 30, 15), ("2.7s", 30, 81), ("120s", 5, 600)])
def test_duration(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str, duration: str, fps: int, count: int) -> None:
    """`timeline.duration`: the slider's whole range, and the length is not "approximate" but exact to the picture."""
    done = render(intermediate(size=(32, 24)), *sets(f"timeline.duration={duration}", f"timeline.fps={fps}", "timeline.hold_last=0s"))
    assert packets(done.path, ffmpeg) == (count, Fraction(count, fps))


@pytest.mark.parametrize("seed", CODECS, ids=lambda seed: seed.codec)
def test_media_codec(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str, seed: Seed) -> None:
    """`outputs.codec` with `quality: classic`: each codec's published parameters reach ffmpeg to the letter, and the file plays as that codec."""
    if seed.lines["-c:v"] not in capabilities(ffmpeg).encoders:
        pytest.skip(f"{ffmpeg} has no encoder {seed.lines['-c:v']}")
    folder = intermediate(size=(64, 64))
    settings = sets(f"outputs=[{{codec: {seed.codec}, quality: classic}}]")
    planned = json.loads(render(folder, *QUICK, *settings, "--dry-run", "--json").out)
    command = planned["runs"][0]["commands"][0]
    assert {option: command[command.index(option) + 1] for option in seed.lines} == dict(seed.lines)
    path = render(folder, *QUICK, *settings).path
    assert path.suffix == seed.suffix
    about = subprocess.run([ffmpeg, "-i", str(path)], check=False, capture_output=True).stderr.decode()
    pixels = {"av1": "yuv444p", "prores": "yuv422p10le"}.get(seed.codec, "yuv420p")
    assert re.search(rf"Video: {seed.codec.replace('h265', 'hevc')}\b.* {pixels}\(", about)


def test_interpolation(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str) -> None:
    """`timeline.interpolation`: none shows images only, blend and mci make pictures between them, each its own way."""
    folder = intermediate(4)
    shown = {}
    shared = sets("outputs=[{codec: prores, constant_rate: true}]", "timeline.duration=1200ms", "timeline.fps=10", "timeline.hold_last=0s")
    for mode in ("none", "blend", "mci"):
        path = render(folder, *shared, *sets(f"timeline.interpolation={mode}")).path
        shown[mode] = pictures(path, ffmpeg, matrix="bt709", size=(64, 48))
        assert len(shown[mode]) == 12
    images = real_images(4, (64, 48))
    for number in range(4):  # Every third picture is an image, in all of them.
        for mode in shown:
            assert difference(shown[mode][3 * number], images[number]) < 2.5
    assert difference(shown["none"][4], images[1]) < 2.5
    assert difference(shown["blend"][4], Image.blend(images[1], images[2], 1 / 3)) < 2.5
    assert difference(shown["mci"][4], shown["none"][4]) > 1
    assert difference(shown["mci"][4], shown["blend"][4]) > 0.1


def test_skip_initial_steps(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str) -> None:
    """`frames.skip_first`: the animation begins with the first image behind the skipped ones, and is as long as before."""
    path = render(intermediate(9), *QUICK, *sets("frames.skip_first=4", "outputs=prores")).path
    assert packets(path, ffmpeg) == (10, Fraction(1))
    first = pictures(path, ffmpeg, matrix="bt709", size=(64, 48))[0]
    off = [difference(first, image) for image in real_images(9, (64, 48))]
    assert off.index(min(off)) == 4


def test_print_debug_info(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str) -> None:
    """`-v`: ffmpeg's command and what it says on the console; without it neither."""
    folder = intermediate()
    loud = render(folder, *QUICK, "-v")
    assert "-c:v libx264 " in loud.err
    assert re.search(r"Stream #0:0.*-> #0:0|Input #0, rawvideo", loud.err)
    assert "libx264" not in render(folder, *QUICK, "--force").err


@pytest.mark.parametrize("state", ["interrupted", "failed", "complete"])
def test_run_on_incomplete_data(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str, state: str) -> None:
    """`detect.incomplete: render` is the default, here and in the preset: what an interrupted run left behind becomes an animation that says so."""
    folder = intermediate(5)
    for number, path in enumerate(sorted(folder.glob("*.png"))):
        path.rename(folder / f"{number:05d}.png")
    facts = {
        "schema": "stepwatch.run/1",
        "run_id": "r1",
        "state": state,
        "created": "2026-11-22T16:17:28.000Z",
        "updated": "2026-11-22T16:19:06.000Z",
        "ended": "2026-11-22T16:19:06.000Z",
        "steps": {"planned": 5 if state == "complete" else 100, "done": 5, "every": 1, "skip": 0},
        "frames": {"name": "{index:05d}.png", "count": 5, "planned": 100, "lost": [], "width": 64, "height": 48, "scale": 1},
        "generation": {"seed": 1712},
    }
    (folder / "run.json").write_text(json.dumps(facts), encoding="utf-8")
    path = render(preset(folder, "frames: {skip_first: 0}", "timeline: {interpolation: blend}"), "--keep").path
    assert path.name == "1712-" + re.sub(r"[:]", " ", PROMPT) + ("" if state == "complete" else "-incomplete") + ".mp4"
    assert packets(path, ffmpeg) == (300, Fraction(10))


@pytest.mark.parametrize("asked", ["policy", "preset", "--trash", "--delete"])
def test_delete_intermediate_files(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str, asked: str) -> None:
    """`cleanup.intermediates`: once the animation is proved, the frames that it contains go; `cleanup.skipped: clear` takes the skipped ones along.

    Only where `frames.pattern` says that they are frames: what is merely guessed stays, and the reason is told.
    """
    folder = intermediate(8, size=(32, 24))
    frames = sorted(path.name for path in folder.iterdir())
    (folder / "finished.png").write_bytes((folder / frames[-1]).read_bytes())
    words = (asked,) if asked.startswith("--") else ()
    policy: dict[str, object] = {"timeline": {"interpolation": "none"}, "frames": {"skip_first": 5}, "detect": {"settle": "1ms"}}
    if asked == "policy":
        policy["cleanup"] = {"intermediates": "delete"}
    if asked == "preset":
        policy["preset"] = "steps-animation"
    (folder / "stepwatch.yaml").write_text(json.dumps(policy), encoding="utf-8")
    guessed = render(folder, *words)
    assert "its frames stay: only a guess says that they are frames" in guessed.err
    assert {*frames, "finished.png"} <= {path.name for path in folder.iterdir()}
    policy["frames"] = {"skip_first": 5, "pattern": "steps-animation"}
    (folder / "stepwatch.yaml").write_text(json.dumps(policy), encoding="utf-8")
    path = render(folder, *words).path
    skipped = [] if asked == "preset" else frames[:5]
    assert sorted(path.name for path in folder.glob("*.png")) == sorted([*skipped, "finished.png"])
    trashed = sorted(path.name for path in folder.glob(".stepwatch/trash/*/*.png"))
    assert trashed == (frames[5:] if asked == "--trash" else [])
    assert path.exists()


def test_keep_renders_what_would_be_cleared(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str) -> None:
    """`--keep` on the command line goes above a clearing policy: the animation is made, every frame stays."""
    folder = preset(intermediate(8, size=(32, 24)))
    before = {path: path.read_bytes() for path in folder.iterdir()}
    assert render(folder, "--keep").path.exists()
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_not_deleting_appends_runs(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str) -> None:
    """`frames.append`: the pictures of a batch become a single animation, which the extension did by leaving files in its folder."""
    intermediate(3, picture=0)
    folder = intermediate(3, picture=1, seed=1713)
    done = json.loads(render(folder, *QUICK, *sets("frames.append=true"), "--json").out)
    (run,) = done["runs"]
    assert run["frames"]["shown"] == 6
    assert len(run["outputs"]) == 1
    assert len(json.loads(render(folder, *QUICK, "--json").out)["runs"]) == 2


def test_create_output_animation_file(render: Stepwatch, intermediate: Callable[..., Path]) -> None:
    """`create: false`: the frames are for other uses; nothing is made, and a sentence says so."""
    folder = intermediate()
    done = render(folder, *sets("create=false"))
    assert (done.code, done.out) == (0, "")
    assert "create: false" in done.err
    assert not (folder / "animation").exists()


def test_intermediates_path(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str) -> None:
    """`render DIR`: any folder, by any name, holds the frames; both pictures of a batch in it are found."""
    intermediate(3, folder="somewhere else/steps")
    folder = intermediate(3, picture=1, seed=1713, folder="somewhere else/steps")
    done = render(folder.parent, *QUICK, "--json")
    runs = json.loads(done.out)["runs"]
    assert [run["dir"] for run in runs] == [str(folder), str(folder)]
    assert [run["frames"]["shown"] for run in runs] == [3, 3]
    assert {Path(run["outputs"][0]["path"]).name.split("-")[0] for run in runs} == {"1712", "1713"}


@pytest.mark.parametrize("how", ["dir", "-o"])
def test_output_path(render: Stepwatch, intermediate: Callable[..., Path], tmp_path: Path, ffmpeg: str, how: str) -> None:
    """`outputs.dir`, relative to the folder of the file that sets it, or `-o`: the animation lies there, the folder is made."""
    folder = intermediate()
    if how == "dir":
        (folder / "stepwatch.yaml").write_text('outputs: [{dir: "../clips/new"}]\n', encoding="utf-8")
        path = render(folder, *QUICK).path
    else:
        path = render(folder, *QUICK, "-o", f"{folder.parent}/clips/new/").path
    assert path.parent == tmp_path / "txt2img-images" / "clips" / "new"


def test_additional_duration_of_the_last_frame(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str) -> None:
    """`timeline.hold_last`: so many seconds on top of the duration, all of them the finished picture."""
    settings = sets("timeline.duration=1s", "timeline.fps=10", "timeline.hold_last=3s", "outputs=prores")
    path = render(intermediate(), *settings).path
    assert packets(path, ffmpeg) == (40, Fraction(4))
    last = real_images(6, (64, 48))[-1]
    assert max(difference(picture, last) for picture in pictures(path, ffmpeg, matrix="bt709", size=(64, 48))[9:]) < 2.5


@pytest.mark.parametrize("codec", ["h264", "vp9", "prores"])
def test_metadata(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str, codec: str) -> None:
    """Title, description, artist and album artist as the extension wrote them, from the text in the frames; `metadata.author` is the artist."""
    folder = intermediate()
    tags = {key.lower(): value for key, value in said(render(folder, *QUICK, *sets(f"outputs={codec}")).path, ffmpeg).items()}
    assert tags["title"].startswith(f"{PROMPT} | negative blurry, watermark | seed 1712 | sampler Euler a | cfgscale 2.5 | steps 12 | model tiny")
    assert tags["description"].startswith(PROMPT)
    assert (tags["artist"], tags["album_artist"]) == ("stable-diffusion", "stepwatch")
    signed = said(render(folder, *QUICK, *sets(f"outputs={codec}", "metadata.author=Ada")).path, ffmpeg)
    assert {key.lower(): value for key, value in signed.items()}["artist"] == "Ada"


def test_the_preset_is_the_extension_in_one_word(render: Stepwatch, intermediate: Callable[..., Path], ffmpeg: str) -> None:
    """One line of YAML: 10 s at 30, mci, five steps skipped, h264 as published, `../animation`, SEED-PROMPT; other keys of the file go above it."""
    folder = preset(intermediate(12, size=(32, 24)))
    done = json.loads(render(folder, "--keep", "--json", "-v").out)
    (run,) = done["runs"]
    (output,) = run["outputs"]
    command = run["commands"][0]
    assert (run["frames"]["found"], run["frames"]["shown"]) == (12, 7)
    assert (output["codec"], output["frames"], output["duration"]) == ("h264", 300, 10.0)
    assert Path(output["path"]).parent == folder.parent / "animation"
    assert Path(output["path"]).name.startswith("1712-portrait of a smiling astronaut")
    assert {option: command[command.index(option) + 1] for option in CODECS[0].lines} == dict(CODECS[0].lines)
    # Its pictures are made by processes of their own, unless the extra `flow` is installed.
    assert output["motion"] == "flow" or any("minterpolate" in part for one in run["commands"] for part in one)
    preset(folder, "timeline: {duration: 2s, interpolation: none}", "frames: {skip_first: 0}")
    (changed,) = json.loads(render(folder, "--keep", "--json").out)["runs"]
    assert (changed["frames"]["shown"], changed["outputs"][0]["frames"], changed["outputs"][0]["duration"]) == (12, 12, 2.0)


# -- the same look


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """How our pictures compare with the extension's, which has fewer."""

    ours: Sequence[Image.Image]
    theirs: Sequence[Image.Image]
    images: Sequence[Image.Image]

    def mean(self, lag: int) -> float:
        """Mean difference when their picture k is held against our picture k - lag."""
        pairs = [(self.ours[number - lag], picture) for number, picture in enumerate(self.theirs) if 0 <= number - lag < len(self.ours)]
        return sum(difference(one, other) for one, other in pairs) / len(pairs)

    def worst(self, lags: Sequence[int]) -> float:
        """The largest difference of one of their pictures to the nearest of ours within *lags*."""
        last = len(self.ours) - 1
        return max(min(difference(self.ours[min(max(number - lag, 0), last)], theirs) for lag in lags) for number, theirs in enumerate(self.theirs))


def compare(tmp_path: Path, render: Stepwatch, ffmpeg: str, images: Sequence[Image.Image], *, duration: int, mode: str) -> Look:
    folder = tmp_path / "frames"
    folder.mkdir()
    for number, image in enumerate(images, 1):
        image.save(folder / f"{number:05d}.png")
    theirs = seed_line(ffmpeg, folder, len(images), duration=Fraction(duration), mode=mode, target=tmp_path / "theirs.mp4")
    preset(folder, f"timeline: {{duration: {duration}s, interpolation: {mode}}}", "frames: {skip_first: 0}")
    ours = render(folder, "--keep", *sets("outputs.0.constant_rate=true")).path
    size = images[0].size
    assert packets(ours, ffmpeg) == (30 * duration, Fraction(duration))
    return Look(
        ours=pictures(ours, ffmpeg, matrix="bt709", size=size),
        theirs=pictures(theirs, ffmpeg, matrix="bt601", size=size),
        images=images,
    )


def check(look: Look, *, mode: str, loss: float) -> None:
    """Same pictures at the same times but for a lag of at most 100 ms, and the whole length where theirs is cut off.

    Two encodes of the same planes differ by the sum of their losses, which *loss* bounds (crf 23 on pictures this small: up to 2.9 levels each, but
    mostly the same ones); pictures one image earlier or later differ by far more.
    """
    span = len(look.ours) / len(look.images)
    lags = {lag: look.mean(lag) for lag in range(-6, 7)}
    best = min(lags, key=lambda lag: lags[lag])
    # Without interpolation the extension rounds an image's start to the nearest picture, which may be the one before ours.
    allowed = (-1, 0) if mode == "none" else (0, 1, 2, 3)
    assert best in allowed
    assert lags[best] <= loss
    assert look.worst(allowed) <= 1.5 * loss
    assert min(look.mean(round(span)), look.mean(-round(span))) > 1.5 * lags[best]
    if mode == "none":
        assert len(look.theirs) == len(look.ours)
        return
    lost = len(look.ours) - len(look.theirs)
    assert 1.0 * span <= lost <= 2.5 * span
    # Ours ends with the finished picture for its whole span; theirs never gets there.
    off = [difference(look.ours[-1], image) for image in look.images]
    assert off.index(min(off)) == len(look.images) - 1
    off = [difference(look.theirs[-1], image) for image in look.images]
    assert off.index(min(off)) < len(look.images) - 1
    held = look.ours[math.ceil((len(look.images) - 1) * span) :]
    assert max(difference(picture, look.images[-1]) for picture in held) <= loss


@pytest.mark.parametrize("mode", ["none", "blend", "mci"])
def test_the_preset_looks_like_the_extension(tmp_path: Path, render: Stepwatch, each_ffmpeg: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same images through the extension's own ffmpeg line and through ours: the same look at the same times, and ours has its whole length."""
    monkeypatch.setenv("STEPWATCH_FFMPEG", each_ffmpeg)
    check(compare(tmp_path, render, each_ffmpeg, real_images(7, (128, 128)), duration=4, mode=mode), mode=mode, loss=3.0)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("run", ["F", "B"])
@pytest.mark.parametrize("mode", ["blend", "mci"])
def test_whole_real_runs_look_like_the_extension(tmp_path: Path, render: Stepwatch, ffmpeg: str, mode: str, run: str) -> None:
    """The same at full size with the preset's own ten seconds."""
    if not (REAL / run).is_dir():
        pytest.skip("the real runs are not here")
    images = [Image.open(path).convert("RGB") for path in sorted((REAL / run).glob("*.png"))]
    check(compare(tmp_path, render, ffmpeg, images[5:], duration=10, mode=mode), mode=mode, loss=3.0)
