"""Every codec with every interpolation: what is in the files, as ffmpeg's own tools and Pillow read them, without asking stepwatch."""

from __future__ import annotations

import functools
import json
import math
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import textwrap
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from importlib.resources import files
from itertools import accumulate
from pathlib import Path

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageSequence, ImageStat

from stepwatch import config, frames, graph, visit
from stepwatch.core.codecs import CODECS, Encoding
from stepwatch.core.model import Frame
from stepwatch.core.plan import OutputPlan
from stepwatch.core.result import RunResult
from stepwatch.core.timeline import make_timeline
from stepwatch.encoder import capabilities

SIZE = (72, 64)
FPS = Fraction(30)
MODES = ("none", "none at a constant rate", "blend", "mci")
STREAM = {
    "h264": ("h264", "yuv420p"),
    "h265": ("hevc", "yuv420p"),
    "av1": ("av1", "yuv420p"),
    "vp9": ("vp9", "yuv420p"),
    "prores": ("prores", "yuv422p10le"),
    "gif": ("gif", "bgra"),
    "apng": ("apng", "rgb24"),
}
"""What `ffmpeg -i` is to call each stream and its pixels; animated WebP is unknown to older ones, and Pillow reads it."""
TICK = {"vp9": Fraction(1, 1000), "gif": Fraction(1, 100), "webp": Fraction(1, 1000)}
"""Seconds: the steps in which a container counts, where they are too coarse for the pictures' times."""
FASTEST = {"gif": 50, "webp": 100}
PILLOW = ("gif", "webp", "apng")
DELAYS = ("gif", "webp")
LOSS = {"h264": 4.0, "h265": 7.0, "av1": 9.0, "vp9": 5.0, "prores": 2.5, "gif": 6.0, "webp": 4.0, "apng": 1.0}
"""Mean difference of luma (levels of 255) that may come from the encoder, for pictures as tiny and as busy as these."""


# -- a run that looks real, and what its animation has to be


@functools.cache
def _finished() -> Image.Image:
    (sample,) = (entry for entry in files("stepwatch").joinpath("data", "sample").iterdir() if entry.is_dir())
    with sample.joinpath("00029.jpg").open("rb") as file, Image.open(file) as image:
        return image.convert("RGB").resize((192, 288), Image.Resampling.LANCZOS)


@functools.cache
def scene(number: int, count: int, size: tuple[int, int] = SIZE) -> Image.Image:
    """Image *number* of *count*: a window that wanders over a photograph, from a blur to a sharp picture, each well apart from its neighbours."""
    left, top = number * 2 % (192 - size[0]), number * 5 % (288 - size[1])
    window = _finished().crop((left, top, left + size[0], top + size[1]))
    window = window.filter(ImageFilter.GaussianBlur(2.5 * (1 - (number + 1) / count)))
    return window.point(lambda level: level * 3 // 4 + number * 7 % 64)


def write_scenes(folder: Path, count: int, size: tuple[int, int] = SIZE) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        scene(number, count, size).save(folder / f"{number + 1:05d}.png")
    return folder


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What is asked of one render, and from that, by its own arithmetic, what has to come out."""

    mode: str
    count: int = 12
    fps: Fraction = FPS
    duration: Fraction = Fraction(1)
    hold_first: Fraction = Fraction(0)
    hold_last: Fraction = Fraction(0)
    direction: str = "forward"
    skip_first: int = 0
    skip_last: int = 0
    every: int = 1

    @property
    def settings(self) -> tuple[str, ...]:
        return (
            f"timeline.interpolation={self.mode.split()[0]}",
            f"timeline.fps={self.fps}",
            f"timeline.duration={float(self.duration)}s",
            f"timeline.hold_first={float(self.hold_first)}s",
            f"timeline.hold_last={float(self.hold_last)}s",
            f"timeline.direction={self.direction}",
            f"frames.skip_first={self.skip_first}",
            f"frames.skip_last={self.skip_last}",
            f"frames.every={self.every}",
        )

    def outputs(self, *codecs: str) -> str:
        constant = json.dumps("constant" in self.mode)
        return "outputs=[" + ", ".join(f"{{codec: {codec}, name: clip-{codec}, constant_rate: {constant}}}" for codec in codecs) + "]"

    @property
    def order(self) -> list[int]:
        """The image at each place of the timeline."""
        rest = list(range(self.count))[self.skip_first : self.count - self.skip_last]
        chosen = rest[:: self.every]
        if chosen[-1] != rest[-1]:
            chosen.append(rest[-1])
        return {"forward": chosen, "reverse": chosen[::-1], "pingpong": chosen + chosen[-2:0:-1]}[self.direction]

    def rate(self, codec: str) -> Fraction:
        return min(self.fps, Fraction(FASTEST.get(codec, 1000)))

    def parts(self, codec: str) -> tuple[int, int, int]:
        """Pictures before, in and after the moving part, each rounded half up by itself."""
        rate = self.rate(codec)
        head, moving, tail = (math.floor(part * rate + Fraction(1, 2)) for part in (self.hold_first, self.duration, self.hold_last))
        return head, moving, tail

    def starts(self, codec: str) -> list[Fraction]:
        """Seconds at which each picture of the file begins."""
        head, moving, tail = self.parts(codec)
        rate, places = self.rate(codec), len(self.order)
        if self.mode == "none" or (places == 1 and codec in DELAYS):
            count = min(places, moving)
            times = [head / rate + Fraction(number * moving, count) / rate for number in range(count)]
        elif codec in DELAYS:
            times = [(head + number) / rate for number in range(moving)]
        else:
            return [number / rate for number in range(head + moving + tail)]
        return [Fraction(0), *times[1:]]

    def length(self, codec: str) -> Fraction:
        return sum(self.parts(codec)) / self.rate(codec)

    def place(self, codec: str, time: Fraction) -> Fraction:
        """How far the animation has come at *time*, counted in images."""
        head, moving, _ = self.parts(codec)
        places, number = len(self.order), math.floor(time * self.rate(codec)) - head
        if number >= moving - 1:
            return Fraction(places - 1)
        place = min(Fraction(max(number, 0) * places, moving), Fraction(places - 1))
        return Fraction(math.floor(place)) if self.mode.startswith("none") else place

    def image(self, place: Fraction) -> Image.Image:
        """The exact mix of the two images around *place*."""
        place = min(max(place, Fraction(0)), Fraction(len(self.order) - 1))
        first = math.floor(place)
        one = scene(self.order[first], self.count)
        return Image.blend(one, scene(self.order[first + 1], self.count), float(place - first)) if place > first else one


# -- reading the files


@dataclass(slots=True, kw_only=True)
class Film:
    """What is in a file."""

    starts: list[Fraction]
    end: Fraction
    pictures: list[Image.Image]
    stream: str = ""
    pixels: str = ""
    about: str = ""
    """The whole line of `ffmpeg -i`."""
    sizes: set[tuple[int, int]] = field(default_factory=set)
    vague: Fraction = Fraction(0)
    """How far the end may be off, because whoever told it told so many digits only."""

    def at(self, time: Fraction) -> Image.Image:
        return self.pictures[max(number for number, start in enumerate(self.starts) if start <= time)]


def read(path: Path, codec: str, ffmpeg: str) -> Film:
    film = _by_pillow(path) if codec in PILLOW else _by_ffmpeg(path, ffmpeg)
    film.sizes = {picture.size for picture in film.pictures}
    if codec != "webp":
        film.about = film.about or _described(_run([ffmpeg, "-hide_banner", "-i", str(path)], check=False)[1])
        about = film.about.partition(" Video: ")[2]
        film.stream = re.split(r"[ ,]", about, maxsplit=1)[0]
        pixels = re.search(r", ((?:yuv|bgr|rgb|pal|gray)\w*)", about)
        film.pixels = pixels[1] if pixels else ""
    return film


def _run(argv: Sequence[str], *, check: bool = True, data: bytes | None = None) -> tuple[bytes, bytes]:
    done = subprocess.run(argv, input=data, stdin=subprocess.DEVNULL if data is None else None, capture_output=True, check=False)
    assert not check or done.returncode == 0, done.stderr.decode()
    return done.stdout, done.stderr


def _by_pillow(path: Path) -> Film:
    with Image.open(path) as image:
        lasts = []
        pictures = []
        for picture in ImageSequence.Iterator(image):
            pictures.append(picture.convert("RGB"))
            lasts.append(Fraction(picture.info.get("duration", 0)).limit_denominator(100_000) / 1000)
    ends = list(accumulate(lasts))
    return Film(starts=[Fraction(0), *ends[:-1]], end=ends[-1], pictures=pictures)


def _described(said: bytes) -> str:
    """What an ffmpeg says of the one video stream that it opens; what it makes of it stands below that."""
    return next(line for line in said.decode().splitlines() if " Video: " in line)


def _packets(listed: bytes) -> list[tuple[Fraction, Fraction]]:
    """Start and length of every packet, in the order in which they show."""
    lines = listed.decode().splitlines()
    base = Fraction(next(line.split(":")[1].strip() for line in lines if line.startswith("#tb 0")))
    parts = [line.split(",") for line in lines if not line.startswith("#")]
    return sorted((int(part[2]) * base, int(part[3]) * base) for part in parts)


def _pictures(data: bytes) -> list[Image.Image]:
    """The pictures of a chain of PPM files."""
    pictures = []
    while data:
        header = re.match(rb"P6\s(\d+)\s(\d+)\s255\s", data)
        assert header
        width, height = int(header[1]), int(header[2])
        end = header.end() + width * height * 3
        pictures.append(Image.frombytes("RGB", (width, height), data[header.end() : end]))
        data = data[end:]
    return pictures


def stated_length(path: Path, ffmpeg: str) -> Fraction:
    """The length in the header, which is what players show."""
    found = re.search(rb"Duration: (\d+):(\d+):([\d.]+)", _run([ffmpeg, "-i", str(path)], check=False)[1])
    assert found
    return int(found[1]) * 3600 + int(found[2]) * 60 + Fraction(found[3].decode())


def _by_ffmpeg(path: Path, ffmpeg: str) -> Film:
    """From one start of ffmpeg, which takes longer than all the rest: what it says, the packets, and the pictures (BT.709, limited range)."""
    with tempfile.NamedTemporaryFile() as file:
        argv = [ffmpeg, "-hide_banner", "-nostats", "-y", "-i", str(path), "-c", "copy", "-f", "framecrc", "-", "-fps_mode", "passthrough"]
        argv += ["-vf", "scale=in_color_matrix=bt709:in_range=tv,format=rgb24", "-c:v", "ppm", "-f", "image2pipe", f"file:{file.name}"]
        listed, said = _run(argv)
        pictures = _pictures(file.read())
    packets = _packets(listed)
    film = Film(starts=[start for start, _ in packets], end=max(start + lasts for start, lasts in packets), pictures=pictures, about=_described(said))
    if path.suffix == ".webm" and abs(stated_length(path, ffmpeg) - film.end) > Fraction(1, 100):
        # ffmpeg 5.1 stores how long the last block lasts in the header only, and prints that in hundredths.
        film.end, film.vague = stated_length(path, ffmpeg), Fraction(1, 100)
    return film


def boxes(path: Path) -> list[str]:
    """The top-level boxes of an mp4 or mov file, in their order."""
    data = path.read_bytes()
    names = []
    place = 0
    while place < len(data):
        size, name = struct.unpack(">I4s", data[place : place + 8])
        names.append(name.decode("latin-1"))
        place += struct.unpack(">Q", data[place + 8 : place + 16])[0] if size == 1 else size
    return names


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean difference of luma."""
    return ImageStat.Stat(ImageChops.difference(one.convert("L"), other.convert("L"))).mean[0]


# -- rendering


class Silent:
    """An observer that remembers what was said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, run_name: str, sentence: str, *, level: str = "info") -> None:
        self.said.append(sentence)

    def progress(self, run_name: str, label: str, done: int, total: int, speed: float | None) -> None:
        pass

    def finished(self, run_name: str) -> None:
        pass


def render(folder: Path, ffmpeg: str, *settings: str, observer: Silent | None = None) -> RunResult:
    [(run, resolved)] = visit.runs_below(folder, service=config.load_service(None), settings=("timeline.hold_last=0s", *settings))
    return visit.visit(run, resolved, ffmpeg=ffmpeg, options=visit.Options(), observer=observer or Silent(), stop=threading.Event())


def by_codec(result: RunResult) -> Mapping[str, Path]:
    assert result.exit_code == 0, [output.error for output in result.outputs]
    return {output.codec: Path(output.path) for output in result.outputs if output.path}


def require(codec: str, ffmpeg: str) -> None:
    encoder = CODECS[codec].qualities["default"].encoder
    if encoder not in capabilities(ffmpeg).encoders:
        pytest.skip(f"{ffmpeg} has no encoder {encoder}")


def check(path: Path, codec: str, case: Case, ffmpeg: str) -> None:
    """Hold a file against everything that *case* promises."""
    film = read(path, codec, ffmpeg)
    starts, length = case.starts(codec), case.length(codec)
    tick = TICK.get(codec, Fraction(1, 90000))
    if codec == "apng" and case.mode == "none":
        tick = Fraction(1, 1000)
    if codec == "apng" and len(starts) == 1:
        film.end = length  # A single picture is an ordinary PNG, which knows no time.
    assert len(film.pictures) == len(film.starts) == len(starts)
    assert max(abs(is_at - be_at) for is_at, be_at in zip(film.starts, starts, strict=True)) <= tick
    if codec != "webp" or len(starts) > 1:
        assert abs(film.end - length) <= max(tick, film.vague)
    assert film.sizes == {SIZE}
    if codec in STREAM:
        assert (film.stream, film.pixels) == STREAM[codec] or (codec == "apng" and film.stream == "png" and len(starts) == 1)
    if codec not in PILLOW:
        assert f"{film.pixels}(tv, bt709" in film.about
        assert "bt709/" not in film.about
    if path.suffix in (".mp4", ".mov"):
        assert boxes(path).index("moov") < boxes(path).index("mdat")
    if codec == "h265":
        assert "(hvc1 / " in film.about
    look(film, codec, case)


def look(film: Film, codec: str, case: Case) -> None:
    """Find the first, the middle and the last image of the timeline at their times."""
    head, moving, tail = case.parts(codec)
    rate, places = case.rate(codec), len(case.order)
    middle = math.ceil(Fraction(places // 2 * moving, places))
    for number in (0, head, head + middle, head + moving - 1, head + moving + tail - 1):
        # In the middle of the picture's time, where no rounding of its start reaches.
        time = (number + Fraction(1, 2)) / rate
        place = case.place(codec, number / rate)
        picture = film.at(time)
        allowed = LOSS[codec]
        if case.mode == "mci" and place % 1 and places <= moving:
            allowed += 0.75 * difference(case.image(Fraction(math.floor(place))), case.image(Fraction(math.ceil(place))))
        off = difference(picture, case.image(place))
        assert off <= allowed, f"picture {number} is {off:.1f} levels away from place {float(place):.2f}"
        for other in (place - 1, place + 1):
            if 0 <= other <= places - 1:
                there = difference(picture, case.image(other))
                assert off < there, f"picture {number} looks more like place {float(other):.2f} ({there:.1f}) than {float(place):.2f} ({off:.1f})"


# -- the matrix


# An older ffmpeg differs in what its encoders and containers make of times that are even and of others; where pictures come from is all one to them.
BY_OLDER = (
    {("none", codec) for codec in CODECS}
    | {("blend", codec) for codec in CODECS}
    | {(mode, codec) for mode in MODES for codec in ("h264", "vp9", "gif")}
)


@pytest.mark.parametrize(
    ("each_ffmpeg", "mode", "codec"),
    [
        pytest.param(which, mode, codec, marks=[pytest.mark.slow] if which == "system" and (mode, codec) not in BY_OLDER else [])
        for which in ("bundled", "system")
        for mode in MODES
        for codec in CODECS
    ],
    indirect=["each_ffmpeg"],
)
def test_every_codec_with_every_interpolation(tmp_path: Path, each_ffmpeg: str, codec: str, mode: str) -> None:
    """Number, times, length, size, pixels, colour tags and content are those of the timeline, whoever reads the file."""
    require(codec, each_ffmpeg)
    case = Case(mode=mode, hold_last=Fraction(1, 5))
    folder = write_scenes(tmp_path / "run", case.count)
    check(by_codec(render(folder, each_ffmpeg, *case.settings, case.outputs(codec)))[codec], codec, case, each_ffmpeg)


VARIANTS: Mapping[str, Mapping[str, object]] = {
    "plain": {},
    "holds": {"hold_first": Fraction(3, 10), "hold_last": Fraction(7, 10)},
    "reverse": {"direction": "reverse", "hold_last": Fraction(1, 4)},
    "pingpong": {"direction": "pingpong", "hold_first": Fraction(1, 5)},
    "chosen": {"every": 4, "skip_first": 1, "skip_last": 2},
}
NUMBERS = (1, 2, 3, 12, 45)
RATES = (FPS, Fraction(30000, 1001), Fraction(24))


def variant(name: str, mode: str, count: int, fps: Fraction = FPS) -> Case:
    case = Case(mode=mode, count=count, fps=fps)
    return replace(case, **({} if name == "chosen" and count < 12 else VARIANTS[name]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "count"),
    # Three and twelve are like two as far as modes are concerned; all with all is in the whole product.
    [(mode, count) for mode in MODES for count in NUMBERS if count not in (3, 12) or mode == "blend"],
)
def test_one_image_or_more_than_there_are_pictures(tmp_path: Path, ffmpeg: str, mode: str, count: int) -> None:
    """The length does not depend on the number of images, and first and last are there, from one image to more than fit."""
    case = variant("holds", mode, count)
    folder = write_scenes(tmp_path / "run", count)
    for codec, path in by_codec(render(folder, ffmpeg, *case.settings, case.outputs("h264", "gif"))).items():
        check(path, codec, case, ffmpeg)


ORDERS = ("reverse", "pingpong", "chosen")
# Which images come in which order is stepwatch's doing, and an older ffmpeg differs in how it mixes them: each order and each mode once with that.
OLDER = (("none", "chosen"), ("none at a constant rate", "reverse"), ("blend", "pingpong"), ("mci", "chosen"))


@pytest.mark.parametrize(
    ("each_ffmpeg", "mode", "name"),
    [*(("bundled", mode, name) for mode in MODES for name in ORDERS), *(("system", *pair) for pair in OLDER)],
    indirect=["each_ffmpeg"],
)
def test_every_order_and_choice(tmp_path: Path, each_ffmpeg: str, mode: str, name: str) -> None:
    """Backwards, there and back, with frames left out: the count, the length and the images at their times are right."""
    case = variant(name, mode, 12)
    folder = write_scenes(tmp_path / "run", case.count)
    check(by_codec(render(folder, each_ffmpeg, *case.settings, case.outputs("h264")))["h264"], "h264", case, each_ffmpeg)


@pytest.mark.parametrize(
    ("mode", "fps"), [*((mode, RATES[1]) for mode in MODES), ("none at a constant rate", RATES[2]), ("blend", RATES[2])], ids=str
)
def test_every_rate(tmp_path: Path, ffmpeg: str, mode: str, fps: Fraction) -> None:
    """Film and television rates are kept exactly, in containers with fine ticks and with coarse ones."""
    case = variant("holds", mode, 12, fps)
    folder = write_scenes(tmp_path / "run", case.count)
    for codec, path in by_codec(render(folder, ffmpeg, *case.settings, case.outputs("h264", "vp9", "webp", "gif"))).items():
        check(path, codec, case, ffmpeg)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("fps", RATES, ids=str)
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("count", NUMBERS)
@pytest.mark.parametrize("mode", MODES)
def test_the_whole_product(tmp_path: Path, each_ffmpeg: str, mode: str, count: int, name: str, fps: Fraction) -> None:
    """All of the above with all of the others, every codec from one decode."""
    case = variant(name, mode, count, fps)
    folder = write_scenes(tmp_path / "run", count)
    codecs = [codec for codec in CODECS if CODECS[codec].qualities["default"].encoder in capabilities(each_ffmpeg).encoders]
    made = by_codec(render(folder, each_ffmpeg, *case.settings, case.outputs(*codecs)))
    assert sorted(made) == sorted(codecs)
    for codec, path in made.items():
        check(path, codec, case, each_ffmpeg)


@pytest.mark.parametrize("quality", ["default", "small"])
@pytest.mark.parametrize("codec", ["webp", "gif", "av1", "h265"])
def test_an_end_where_little_changes_keeps_its_images(tmp_path: Path, ffmpeg: str, codec: str, quality: str) -> None:
    """The last steps of a real run differ by less than a level; no encoder may take that for nothing and let the pictures lag by whole images."""
    folder = tmp_path / "run"
    folder.mkdir()
    (sample,) = (entry for entry in files("stepwatch").joinpath("data", "sample").iterdir() if entry.is_dir())
    for number in range(18, 30):
        (folder / f"{number}.jpg").write_bytes(sample.joinpath(f"{number:05d}.jpg").read_bytes())
    settings = ("timeline.duration=1200ms", f"outputs=[{{codec: {codec}, quality: {quality}}}]")
    film = read(by_codec(render(folder, ffmpeg, *settings))[codec], codec, ffmpeg)
    assert len(film.starts) == 36


@pytest.mark.parametrize("size", [(5, 9), (33, 47)], ids=lambda size: "x".join(map(str, size)))
def test_tiny_and_odd_pictures_are_rendered_by_every_codec(tmp_path: Path, each_ffmpeg: str, size: tuple[int, int]) -> None:
    """What an encoder cannot take is enlarged by a whole factor or made even; images that need neither stay as they are."""
    folder = tmp_path / "run"
    folder.mkdir()
    for number in range(3):
        Image.new("RGB", size, (60 * number, 90, 120)).save(folder / f"{number}.png")
    codecs = [codec for codec in CODECS if CODECS[codec].qualities["default"].encoder in capabilities(each_ffmpeg).encoders]
    made = by_codec(render(folder, each_ffmpeg, "timeline.duration=200ms", Case(mode="blend").outputs(*codecs)))
    for codec, path in made.items():
        ((width, height),) = read(path, codec, each_ffmpeg).sizes
        if codec in PILLOW:
            assert (width, height) == size
        else:
            least = 64 if codec in ("av1", "h265") else 16
            factor = math.ceil(least / min(size)) if min(size) < least else 1
            assert (width, height) == tuple(side * factor + side * factor % 2 for side in size)


# -- the interpolation itself


RAW = replace(CODECS["h264"], muxer="rawvideo", muxer_options=(), tags="webm")
"""A codec that loses nothing, so that a test sees the planes as the filters leave them."""


def raw_planes(
    images: Sequence[Image.Image], mode: str, ffmpeg: str, *, fps: Fraction, duration: Fraction, tail: Fraction, parts: int = 1
) -> list[Image.Image]:
    """Luma of every picture that the filter graph makes of *images*."""
    timeline = make_timeline(len(images), duration=duration, fps=fps, interpolation=mode, hold_last=tail, hold_first=tail)  # type: ignore[arg-type]
    width, height = images[0].size
    plan = OutputPlan(
        codec=RAW,
        encoding=Encoding(encoder="rawvideo", options=(), pixels="yuv444p"),
        quality="default",
        fps=fps,
        timeline=timeline,
        width=width,
        height=height,
        variable=False,
        max_size=None,
        template="",
        motion="minterpolate" if mode == "mci" else None,
    )
    argv = graph.render_argv(plan, ffmpeg_path=ffmpeg, destination="-")
    argv = [part for part in argv if part != "file:-"]
    argv[argv.index("-progress") : argv.index("-progress") + 2] = []
    data = b"".join(image.tobytes() for image in images)
    if plan.motion:
        data = b"".join(moved(plan, data, ffmpeg, parts=parts))
    data = _run([*argv, "-"], data=data)[0]
    size = width * height
    return [Image.frombytes("L", (width, height), data[start : start + size]) for start in range(0, len(data), 3 * size)]


def moved(plan: OutputPlan, data: bytes, ffmpeg: str, *, parts: int) -> list[bytes]:
    """The planes of every picture between the images, made by so many processes."""
    size = sum(width * height for width, height in graph.plane_sizes(plan))
    made = [_run(graph.motion_argv(plan, ffmpeg_path=ffmpeg, part=part, parts=parts), data=data)[0] for part in range(parts)]
    pictures = [[one[start : start + size] for start in range(0, len(one), size)] for one in made]
    assert [len(one) for one in pictures] == [graph.part_pictures(plan, part, parts) for part in range(parts)]
    return [pictures[number % parts][number // parts] for number in range(plan.timeline.pictures)]


def luma(image: Image.Image) -> list[float]:
    """Limited-range BT.709 luma of an RGB image, not rounded."""
    bands = [band.tobytes() for band in image.split()]
    return [16 + (0.2126 * red + 0.7152 * green + 0.0722 * blue) * 219 / 255 for red, green, blue in zip(*bands, strict=True)]


@pytest.mark.parametrize("count", [2, 7, 10, 30])
@pytest.mark.parametrize("fps", RATES, ids=str)
def test_blend_is_the_exact_mix(each_ffmpeg: str, count: int, fps: Fraction) -> None:
    """Every pixel of every picture is the exact mix of its two images at the picture's own time, but for rounding: one level and a bit."""
    images = [scene(number * 3, 3 * count) for number in range(count)]
    planes = raw_planes(images, "blend", each_ffmpeg, fps=fps, duration=Fraction(3, 2), tail=Fraction(1, 5))
    exact = [luma(image) for image in images]
    head, moving, tail = (math.floor(part * fps + Fraction(1, 2)) for part in (Fraction(1, 5), Fraction(3, 2), Fraction(1, 5)))
    assert len(planes) == head + moving + tail
    for number, plane in enumerate(planes):
        place = min(Fraction(min(max(number - head, 0), moving - 1) * count, moving), Fraction(count - 1))
        if number >= head + moving - 1:
            place = Fraction(count - 1)
        first = math.floor(place)
        share = float(place - first)
        second = exact[min(first + 1, count - 1)]
        mixed = [one + share * (other - one) for one, other in zip(exact[first], second, strict=True)]
        assert max(abs(is_so - be) for is_so, be in zip(plane.tobytes(), mixed, strict=True)) <= 1.6, f"picture {number}"


@pytest.mark.parametrize(("count", "fps"), [(2, Fraction(10)), (7, Fraction(30000, 1001)), (12, Fraction(13))])
def test_processes_that_share_out_mci_make_what_one_makes(each_ffmpeg: str, count: int, fps: Fraction) -> None:
    """Every picture is the same to the bit, however many processes there are, and whether they come out even or not."""
    images = [scene(number * 3, 3 * count) for number in range(count)]
    one, two, five = (raw_planes(images, "mci", each_ffmpeg, fps=fps, duration=Fraction(1), tail=Fraction(1, 5), parts=parts) for parts in (1, 2, 5))
    assert one == two == five


@pytest.mark.parametrize("count", [2, 3, 10])
def test_mci_passes_through_the_source_images(each_ffmpeg: str, count: int) -> None:
    """Where an image's start falls on a picture, that picture is the image itself, to the level; between two images it is neither."""
    images = [scene(number * 3, 3 * count) for number in range(count)]
    planes = raw_planes(images, "mci", each_ffmpeg, fps=FPS, duration=Fraction(1), tail=Fraction(1, 5))
    assert len(planes) == 6 + 30 + 6
    for number, image in enumerate(images):
        plane = planes[6 + number * 30 // count]
        assert max(abs(is_so - be) for is_so, be in zip(plane.tobytes(), luma(image), strict=True)) <= 1.0
    assert {planes[0].tobytes()} == {plane.tobytes() for plane in planes[:6]}
    assert {planes[-1].tobytes()} == {plane.tobytes() for plane in planes[35:]}
    between = planes[6 + 15 // count]
    assert min(difference(between, planes[6]), difference(between, planes[6 + 30 // count])) > 0.5


# -- a size to be met


@pytest.mark.parametrize(("codec", "share"), [("h264", 0.75), ("h264", 0.5), ("webp", 0.7), ("gif", 0.5)])
def test_max_size_is_met_and_used(tmp_path: Path, ffmpeg: str, codec: str, share: float) -> None:
    """The file is not larger than the limit and fills most of it, with every picture of the timeline; a gif gets there by fewer pixels."""
    case = Case(mode="blend", duration=Fraction(3))
    folder = write_scenes(tmp_path / "run", 12, size=(160, 120))
    free = by_codec(render(folder, ffmpeg, *case.settings, f"outputs={codec}"))[codec].stat().st_size
    limit = int(free * share)
    path = by_codec(render(folder, ffmpeg, *case.settings, f"outputs=[{{codec: {codec}, max_size: {limit}, name: fitted}}]"))[codec]
    assert 0.75 * limit <= path.stat().st_size <= limit
    film = read(path, codec, ffmpeg)
    assert abs(film.end - case.length(codec)) <= Fraction(1, 100)
    assert len(film.starts) == 90
    ((width, height),) = film.sizes
    assert abs(width * 3 - height * 4) <= 4
    assert (width < 160) == (codec == "gif")


@pytest.mark.parametrize("codec", ["h264", "webp", "gif"])
def test_a_limit_that_cannot_be_met_is_an_error(tmp_path: Path, ffmpeg: str, codec: str) -> None:
    """It says how small the smallest try was, and publishes nothing."""
    folder = write_scenes(tmp_path / "run", 6)
    result = render(folder, ffmpeg, "timeline.duration=500ms", f"outputs=[{{codec: {codec}, max_size: 400}}]")
    assert (result.phase, result.exit_code) == ("render-failed", 1)
    found = re.search(r"max_size 400 bytes cannot be met: the smallest of (\d+) encodes? has (\d+) bytes", result.reason)
    assert found
    assert int(found[2]) > 400
    assert not (folder / "animation").exists()


@pytest.mark.parametrize("codec", ["h265", "av1"])
def test_a_limit_is_not_met_by_pictures_that_no_encoder_takes(tmp_path: Path, each_ffmpeg: str, codec: str) -> None:
    """A panorama is made smaller only as far as its short side allows; then the limit cannot be met, and that is what the error says."""
    require(codec, each_ffmpeg)
    folder = tmp_path / "run"
    folder.mkdir()
    for number in range(3):
        scene(number, 3, (180, 20)).resize((1152, 128)).save(folder / f"{number}.png")
    result = render(folder, each_ffmpeg, "timeline.duration=200ms", f"outputs=[{{codec: {codec}, max_size: 400}}]")
    assert result.exit_code == 1
    assert "max_size 400 bytes cannot be met: the smallest of" in result.reason


# -- work and memory


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the frames that have been decoded, one entry each time."""
    names: list[str] = []
    decode = frames.Reader.decode

    def counted(reader: frames.Reader, frame: Frame, *, scale: int = 1) -> frames.Decoded:
        names.append(frame.name)
        return decode(reader, frame, scale=scale)

    monkeypatch.setattr(frames.Reader, "decode", counted)
    return names


def test_several_outputs_come_from_one_decode(tmp_path: Path, ffmpeg: str, decodes: list[str]) -> None:
    """Each frame is decoded once for all outputs together; a gif's palette takes one look more."""
    folder = write_scenes(tmp_path / "run", 8)
    by_codec(render(folder, ffmpeg, "timeline.duration=500ms", "outputs=[h264, vp9, webp, apng]"))
    assert len(decodes) == len(set(decodes)) == 8
    decodes.clear()
    by_codec(render(folder, ffmpeg, "timeline.duration=500ms", "outputs=[h265, gif]"))
    assert len(decodes) == 16


@pytest.mark.parametrize("mode", ["none", "blend"])
def test_pingpong_decodes_each_image_at_most_twice(tmp_path: Path, ffmpeg: str, decodes: list[str], mode: str) -> None:
    """There and back is two passes over the images, never a store of them; the turning points are seen once."""
    folder = write_scenes(tmp_path / "run", 8)
    case = Case(mode=mode, count=8, direction="pingpong")
    by_codec(render(folder, ffmpeg, *case.settings))
    assert max(map(decodes.count, decodes)) == 2
    assert len(decodes) == 14


HUNGRY = textwrap.dedent(
    """
    import json, resource, sys
    from stepwatch import cli
    code = cli.run(["render", sys.argv[1], "-q", *sys.argv[2:]])
    peak = lambda who: resource.getrusage(who).ru_maxrss / 1024
    print(json.dumps({"code": code, "stepwatch": peak(resource.RUSAGE_SELF), "ffmpeg": peak(resource.RUSAGE_CHILDREN)}))
    """
)


def peaks(folder: Path, count: int, *settings: str) -> dict[str, float]:
    """Peak resident MB of a process that renders *count* frames of 512x512, and of the largest ffmpeg it started."""
    folder.mkdir()
    for number in range(20):
        image = Image.new("RGB", (512, 512), (number % 200, 80, 200 - number % 200))
        ImageDraw.Draw(image).rectangle((number * 7 % 480, 200, number * 7 % 480 + 30, 320), fill=(250, 240, 20))
        image.save(folder / f"{number:05d}.png", compress_level=1)
    for number in range(20, count):
        shutil.copyfile(folder / f"{number % 20:05d}.png", folder / f"{number:05d}.png")
    arguments = [word for setting in settings for word in ("--set", setting)]
    out = _run([sys.executable, "-c", HUNGRY, str(folder), *arguments])[0].decode().splitlines()
    measured: dict[str, float] = json.loads(out[-1])
    assert measured.pop("code") == 0
    return measured


@pytest.mark.parametrize("many", [700, pytest.param(5000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path, ffmpeg: str, many: int) -> None:
    """Row 58: twenty frames or thousands, neither stepwatch nor ffmpeg takes more than a few tens of MB on top."""
    # 700 that were kept would be 550 MB as they are decoded, and 275 as they are encoded.
    settings = ("timeline.fps_in=60", "timeline.fps=60", "outputs.0.quality=crf: 40")
    few = peaks(tmp_path / "few", 20, *settings)
    lots = peaks(tmp_path / "lots", many, *settings)
    for program, peak in lots.items():
        assert peak < few[program] + 150, (program, few, lots)
        assert peak < 400, (program, few, lots)
