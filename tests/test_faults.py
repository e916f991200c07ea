"""The fault matrix: what is wrong with frames, names, sidecars, disks and settings, from the command line to what is left on the disk.

Every render here goes through `stepwatch render --json`, and every one is followed by the same look at the disk: each file that was there is
there still, byte for byte and with its times, what is new lies in the output folder, no temporary file is left, and stderr holds sentences
without a traceback and without a control character.

| row | fault | where else, or only there |
|---|---|---|
| 1, 16 | holes, unpadded numbers | here; tests/test_store.py for every layout |
| 2, 3, 6, 8 | empty, cut, foreign content | here; tests/test_frames.py cuts every format at every place |
| 7 | playlists and scripts | here |
| 9, 10, 58 | bombs, endless texts, huge frames, long runs | here; tests/test_frames.py for the decoder alone |
| 11, 12, 13 | sizes and modes that change | here; tests/test_frames.py for each mode |
| 14, 15 | one, two, three frames; the last image | here; tests/core/test_timeline.py for any number |
| 19, 20 | names | here; tests/test_cli.py for what reaches a terminal |
| 21 | prompts | here; tests/test_tags.py for any text in any container |
| 22, 23, 24 | sidecars broken, lying, hostile | here; tests/core/test_sidecar.py, tests/test_config.py for each key |
| 25, 27 | links, pipes, sockets, devices | here |
| 42, 43 | a full disk | here on a real one; tests/test_liars.py for what ffmpeg says of it |
| 51, 53, 54, 55 | ffmpeg hangs, lies, flips bits, floods | tests/test_liars.py |
| 52 | no ffmpeg, no encoder | here; tests/test_liars.py and tests/test_cli.py for a missing or broken program |
| 64 | settings | here; tests/test_config.py for each mistake |
| 69 | streams and locales | here; tests/test_cli.py for closed streams, broken pipes, terminals and NO_COLOR |
| 70 | umask, setgid | here |
| 71 | a name taken at the last moment | here; tests/test_store.py for many publishers at once |
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shlex
import shutil
import socket
import stat
import struct
import subprocess
import sys
import threading
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pytest
from PIL import Image, ImageChops, ImageDraw, ImageOps, ImageStat

from stepwatch import cli, frames, rendering, tags
from stepwatch.core.metadata import MAX_VALUE, clean
from stepwatch.core.model import Frame
from tests.conftest import MakeRun, write_frame

ROOT = Path(__file__).parent.parent
ONE_EACH = ("timeline.duration=1s", "timeline.hold_last=0s", "timeline.fps=24", "timeline.interpolation=none")
"""A policy that makes one picture of each frame, in no time."""
NO_UNICODE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
"""A locale of ASCII only, which Python would otherwise take for UTF-8."""


# -- the look at the disk


def contents(top: Path) -> dict[str, tuple[object, ...]]:
    """Everything below *top* by its path: kind, inode, time and digest of a file; the target of a link; the kind of anything else."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(top):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            facts = os.lstat(path)
            kind = stat.S_IFMT(facts.st_mode)
            if stat.S_ISREG(kind) and facts.st_blocks * 512 < facts.st_size // 2:
                # Mostly a hole, and too large to read again and again: its facts will do.
                found[path] = (kind, facts.st_mode, facts.st_ino, facts.st_mtime_ns, facts.st_size, facts.st_blocks)
            elif stat.S_ISREG(kind):
                with open(path, "rb") as file:
                    found[path] = (kind, facts.st_mode, facts.st_ino, facts.st_mtime_ns, hashlib.file_digest(file, "sha256").hexdigest())
            elif stat.S_ISLNK(kind):
                found[path] = (kind, os.readlink(path))
            else:
                found[path] = (kind,)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a command ended, and the files that are new since it began."""

    code: int
    out: str
    err: str
    new: list[Path] = field(default_factory=list)
    peak: int = 0
    """Bytes of memory that the program, or one of its children, had at most; 0 when nobody measured."""

    @property
    def runs(self) -> list[dict[str, Any]]:
        facts: dict[str, list[dict[str, Any]]] = json.loads(self.out)
        return facts["runs"]

    @property
    def run(self) -> dict[str, Any]:
        (one,) = self.runs
        return one

    @property
    def output(self) -> dict[str, Any]:
        one: dict[str, Any]
        (one,) = self.run["outputs"]
        return one

    @property
    def path(self) -> Path:
        return told_path(self.output["path"])


def told_path(path: str) -> Path:
    """The path that a process meant, which may have known another locale."""
    return Path(os.fsdecode(os.fsencode(path)))


def judge(
    ended: Ended,
    before: Mapping[str, tuple[object, ...]],
    top: Path,
    into: Iterable[Path],
    *,
    meanwhile: Iterable[Path] = (),
    disk: Path | None = None,
) -> Ended:
    """Fail unless nothing but finished files in the output folders has come, and stderr is fit for people.

    *meanwhile* are files that others have changed, *disk* is a folder that looks empty from here.
    """
    others = set(map(str, meanwhile))
    before = {path: facts for path, facts in before.items() if path not in others}
    after = {path: facts for path, facts in contents(top).items() if path not in others}
    assert {path: facts for path, facts in after.items() if path in before} == before
    new = [Path(path) for path in after if path not in before]
    places = [Path(os.path.realpath(place)) for place in into]
    for path in new:
        real = Path(os.path.realpath(path))
        assert any(real == place or place in real.parents or (path.is_dir() and real in place.parents) for place in places), (
            f"written outside: {path}"
        )
        assert not path.name.startswith("."), f"left behind: {path}"
    assert "Traceback" not in ended.err
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f]", ended.err)
    files = sorted(path for path in new if path.is_file())
    if ended.out.startswith("{"):
        json.loads(ended.out.encode("ascii"))
        told = [told_path(output["path"]) for run in ended.runs for output in run["outputs"] if output["error"] is None]
        published = {os.path.realpath(path) for path in told if path.parent != disk and str(path) not in before}
        assert {os.path.realpath(path) for path in files} == published
    return Ended(code=ended.code, out=ended.out, err=ended.err, new=files, peak=ended.peak)


class Render(Protocol):
    """Run ``stepwatch render --json`` in this process and look at the disk.

    *into* are the folders that may get files, *meanwhile* the files that the test itself changes while the program runs.
    """

    def __call__(
        self, *arguments: str | Path, into: Iterable[Path] | None = None, settings: Sequence[str] = (), meanwhile: Iterable[Path] = ()
    ) -> Ended: ...


@pytest.fixture
def render(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Render:
    def run(*arguments: str | Path, into: Iterable[Path] | None = None, settings: Sequence[str] = (), meanwhile: Iterable[Path] = ()) -> Ended:
        chosen = [word for setting in (*ONE_EACH, *settings) for word in ("--set", setting)]
        before = contents(tmp_path)
        capsys.readouterr()
        code = cli.run(["render", "--json", *chosen, "--", *map(str, arguments)])
        said = capsys.readouterr()
        places = [Path(argument) / "animation" for argument in arguments] if into is None else into
        return judge(Ended(code=code, out=said.out, err=said.err), before, tmp_path, places, meanwhile=meanwhile)

    return run


class Spawn(Protocol):
    """The same in a process of its own, behind *prefix*, with its memory measured; *disk* is a folder that looks empty from here."""

    def __call__(
        self,
        *arguments: str | Path,
        into: Iterable[Path] = (),
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        disk: Path | None = None,
    ) -> Ended: ...


MEASURE = """\
import os, resource, subprocess, sys
code = subprocess.run(sys.argv[2:], check=False).returncode
with open(sys.argv[1], "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024))
sys.exit(code)
"""
"""A process that starts as large as its parent was counts as that large for ever: this parent is small."""


@pytest.fixture
def spawn(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Spawn:
    def run(
        *arguments: str | Path,
        into: Iterable[Path] = (),
        prefix: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        disk: Path | None = None,
    ) -> Ended:
        measured = tmp_path_factory.mktemp("measured") / "peak"
        before = contents(tmp_path)
        command = [sys.executable, "-I", "-S", "-c", MEASURE, str(measured), *prefix, *stepwatch(), *map(str, arguments)]
        done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}, capture_output=True, check=False, timeout=100)
        ended = Ended(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode(), peak=int(measured.read_text()))
        return judge(ended, before, tmp_path, into, disk=disk)

    return run


def stepwatch() -> list[str]:
    return [sys.executable, "-m", "stepwatch", "render", "--json", *(word for setting in ONE_EACH for word in ("--set", setting))]


# -- the look at the animation, with no help from the product


def pictures(ended: Ended, ffmpeg: str) -> list[Image.Image]:
    """Decode the one output, strictly; its size is the one that JSON tells."""
    size = (ended.output["width"], ended.output["height"])
    command = [ffmpeg, "-v", "error", "-xerror", "-i", f"file:{ended.path}", "-fps_mode", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=True)
    assert done.stderr == b""
    whole = size[0] * size[1] * 3
    assert len(done.stdout) == whole * ended.output["frames"]
    return [Image.frombytes("RGB", size, done.stdout[start : start + whole]) for start in range(0, len(done.stdout), whole)]


def difference(one: Image.Image, other: Image.Image) -> float:
    return sum(ImageStat.Stat(ImageChops.difference(one.convert("L"), other.convert("L"))).mean)


def shows(ended: Ended, steps: Sequence[int], ffmpeg: str, *, size: tuple[int, int] = (32, 24)) -> bool:
    """Whether the pictures are those steps in that order: each is nearest to its own frame, and near it."""
    sources = {step: step_image(step, size) for step in range(1, 14)}
    nearest = []
    for picture in pictures(ended, ffmpeg):
        distances = {step: difference(picture.resize(size), source) for step, source in sources.items()}
        nearest.append(min(distances, key=distances.__getitem__))
        assert distances[nearest[-1]] < 8
    return nearest == list(steps)


def step_image(step: int, size: tuple[int, int] = (32, 24)) -> Image.Image:
    """What ``write_frame`` writes."""
    image = Image.new("RGB", size, (40 + 7 * step % 150, 60, 200 - 7 * step % 150))
    left = step * 5 % max(1, size[0] - 4)
    ImageDraw.Draw(image).rectangle((left, size[1] // 4, left + 3, size[1] * 3 // 4), fill=(250, 240, 20 * step % 255))
    return image


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def linux_only() -> None:
    if not sys.platform.startswith("linux"):
        pytest.skip("this fault is made with means of Linux")


# -- 1, 2, 3, 6, 8, 16: frames that are not there, or are no frames


@pytest.mark.parametrize("sidecar", [{}, None], ids=["with a sidecar", "without"])
def test_a_hole_is_told_and_cuts_nothing(make_run: MakeRun, render: Render, ffmpeg: str, sidecar: Mapping[str, object] | None) -> None:
    """Row 1: the frames behind a hole are rendered, and the missing step is named."""
    folder = make_run(steps=[1, 2, 3, 5, 6, 8], sidecar=sidecar)
    ended = render(folder)
    assert ended.code == 0
    assert ended.run["frames"]["missing"] == [4, 7]
    assert "no frame for step 4, 7; the animation goes on without" in ended.err
    assert shows(ended, [1, 2, 3, 5, 6, 8], ffmpeg)


def cut(path: Path) -> None:
    """Leave two thirds of a file."""
    os.truncate(path, path.stat().st_size * 2 // 3)


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 24\n%%EndComments\n(/tmp/owned) (w) file closefile\n"
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.write_bytes(b""), "is empty (0 bytes)"),
    "cut": (cut, "is cut off before its end"),
    "zeros": (lambda path: path.write_bytes(bytes(4096)), "holds only zeros where an image should begin"),
    "text": (lambda path: path.write_text("not found\n"), "is text, not an image (PNG, JPEG, WebP, BMP or PPM)"),
    "PostScript": (lambda path: path.write_bytes(POSTSCRIPT), "is a PostScript file, not a single image"),
    "other pixels": (lambda path: path.write_bytes(path.read_bytes().replace(b"IDATx", b"IDATy")), "checksum of its IDAT chunk is wrong"),
}


@pytest.mark.parametrize(("damage", "place"), [*((damage, 4) for damage in DAMAGE), ("empty", 1), ("empty", 6), ("cut", 1), ("cut", 6)])
def test_a_damaged_frame_is_named_and_left_out(make_run: MakeRun, render: Render, ffmpeg: str, damage: str, place: int) -> None:
    """Rows 2, 3, 6, 8: first, in the middle or last, whatever is no image is named with the reason, and the others are all shown."""
    folder = make_run(steps=6)
    name = f"{place - 1:05d}.png"
    spoil, reason = DAMAGE[damage]
    spoil(folder / name)
    ended = render(folder)
    assert ended.code == 0
    told = ended.run["frames"]
    assert (told["found"], told["shown"], told["damaged"], told["missing"]) == (6, 5, [name], [])
    assert name in ended.err
    assert reason in ended.err
    assert shows(ended, [step for step in range(1, 7) if step != place], ffmpeg)


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_frame_fails_the_render_where_policy_says_so(make_run: MakeRun, render: Render, damage: str, ffmpeg: str) -> None:
    """Rows 2, 3, 6, 8: with `damaged: fail` nothing is written, and the sentence names the frame."""
    folder = make_run(steps=6)
    DAMAGE[damage][0](folder / "00002.png")
    ended = render(folder, settings=["frames.damaged=fail"])
    assert ended.code == 1
    assert not ended.new
    assert "00002.png" in ended.run["reason"]
    assert "00002.png" in ended.err


def test_nothing_but_damaged_frames_is_no_frame(make_run: MakeRun, render: Render, ffmpeg: str) -> None:
    """Row 2: a run of empty files ends with 66 and makes no output folder."""
    folder = make_run(steps=3)
    for path in folder.glob("*.png"):
        path.write_bytes(b"")
    ended = render(folder)
    assert ended.code == 66
    assert not (folder / "animation").exists()
    assert "00000.png" in ended.err


def test_an_image_counts_whatever_its_name_says(make_run: MakeRun, render: Render, ffmpeg: str) -> None:
    """Row 6: JPEG, WebP and BMP named .png are frames like any other."""
    folder = make_run(steps=6)
    for number, kind in ((2, "JPEG"), (3, "WEBP"), (4, "BMP")):
        path = folder / f"{number:05d}.png"
        step_image(number + 1).save(path, kind, quality=95)
    ended = render(folder)
    assert (ended.code, ended.run["frames"]["damaged"]) == (0, [])
    assert shows(ended, range(1, 7), ffmpeg)


def test_unpadded_numbers_are_numbers(make_run: MakeRun, render: Render, ffmpeg: str) -> None:
    """Row 16: f9 comes before f10."""
    ended = render(make_run(steps=12, names="f{step}.png", sidecar=None))
    assert ended.code == 0
    assert shows(ended, range(1, 13), ffmpeg)


# -- 7: nothing is fetched, nothing else is opened


@pytest.fixture
def listener() -> Iterable[tuple[str, Callable[[], bool]]]:
    """An address on this machine, and whether anybody has knocked."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)

        def knocked() -> bool:
            try:
                server.accept()[0].close()
            except BlockingIOError:
                return False
            return True

        yield f"127.0.0.1:{server.getsockname()[1]}", knocked


@pytest.mark.parametrize("kind", ["playlist", "script", "http name"])
def test_a_playlist_named_png_opens_nothing(
    make_run: MakeRun, spawn: Spawn, ffmpeg: str, tmp_path: Path, listener: tuple[str, Callable[[], bool]], kind: str
) -> None:
    """Row 7: no connection, and no file that a frame names, not even when every frame is one; the sentence says what it is."""
    address, knocked = listener
    secret = write_frame(tmp_path / "untold" / "picture.png")
    text = {
        "playlist": f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://{address}/a.ts\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n",
        "script": f"ffconcat version 1.0\nfile http://{address}/a.png\nfile {secret}\n",
        "http name": "",
    }[kind]
    folder = make_run(steps=6)
    if text:
        (folder / "00002.png").write_text(text)
    else:
        folder = make_run(tmp_path / "http:" / address, sidecar=None, names=f"tcp:{address}?{{step:03d}}.png")
    prefix = []
    trace = tmp_path.parent / f"{tmp_path.name}-trace"
    if shutil.which("strace") and not subprocess.run(["strace", "-o", os.devnull, "true"], check=False, capture_output=True).returncode:
        prefix = ["strace", "-f", "-qq", "-e", "trace=connect,open,openat", "-s", "4096", "-o", str(trace)]
    ended = spawn(folder, into=[folder / "animation"], prefix=prefix)
    assert ended.code == 0, ended.err
    assert not knocked()
    if text:
        assert ended.run["frames"]["damaged"] == ["00002.png"]
        assert {"playlist": "is an HLS playlist", "script": "is a list of files for ffmpeg"}[kind] in ended.err
    if prefix:
        calls = trace.read_text(errors="replace")
        assert "00003.png" in calls or not text
        assert "AF_INET" not in calls
        assert "untold" not in calls


# -- 9, 10, 58: sizes that no machine should try


def bomb(path: Path, side: int = 30000) -> None:
    """Write a PNG of a few kilobytes that wants side x side pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + (side + 7) // 8)
    packed = b"".join(packer.compress(row * 100) for _ in range(side // 100)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", packed) + png_chunk(b"IEND", b""))


def test_a_bomb_is_refused_before_it_unfolds(make_run: MakeRun, spawn: Spawn, ffmpeg: str) -> None:
    """Row 9: 30000x30000 pixels in 100 kB are refused by the header, in little memory, and the other frames are rendered."""
    linux_only()
    folder = make_run(steps=6)
    bomb(folder / "00003.png")
    assert (folder / "00003.png").stat().st_size < 200_000
    ended = spawn(folder, into=[folder / "animation"])
    assert ended.code == 0
    assert ended.run["frames"]["damaged"] == ["00003.png"]
    assert "00003.png: is too large: 30000x30000 pixels, at most 160 million are decoded" in ended.err
    assert ended.peak < 300_000_000


@pytest.mark.parametrize("kind", ["on disk", "when unpacked"])
def test_an_endless_text_in_a_frame_costs_neither_memory_nor_the_frame(make_run: MakeRun, spawn: Spawn, ffmpeg: str, kind: str) -> None:
    """Row 10: 200 MB of text, written out or packed, in a frame whose pixels are fine."""
    linux_only()
    folder = make_run(steps=6)
    path = folder / "00000.png"
    data = path.read_bytes()
    pixels = data.index(b"IDAT") - 4
    length = 200_000_000
    if kind == "on disk":
        start = b"tEXtparameters\0"
        checksum = zlib.crc32(start)
        for _ in range(200):
            checksum = zlib.crc32(bytes(1_000_000), checksum)
        with path.open("wb") as file:
            file.write(data[:pixels] + struct.pack(">I", len(start) - 4 + length) + start)
            file.seek(length, os.SEEK_CUR)  # a hole of zeros: nobody's disk has to hold it
            file.write(struct.pack(">I", checksum) + data[pixels:])
    else:
        packer = zlib.compressobj(9)
        packed = b"".join(packer.compress(b"a" * 1_000_000) for _ in range(200)) + packer.flush()
        path.write_bytes(data[:pixels] + png_chunk(b"zTXt", b"parameters\0\0" + packed) + data[pixels:])
    ended = spawn(folder, into=[folder / "animation"])
    assert ended.code == 0
    assert ended.run["frames"]["damaged"] == []
    assert shows(ended, range(1, 7), ffmpeg)
    assert ended.peak < 200_000_000


def test_a_frame_of_a_hundred_megapixels_is_rendered(make_run: MakeRun, spawn: Spawn, ffmpeg: str) -> None:
    """Row 58: large is not too large; one such frame costs a few times its pixels."""
    linux_only()
    folder = make_run(steps=2, sidecar=None)
    bomb(folder / "00002.png", side=10000)
    ended = spawn("--set", "size.scale=64", folder, into=[folder / "animation"])
    assert ended.code == 0, ended.err
    assert (ended.output["width"], ended.output["height"], ended.output["frames"]) == (64, 64, 3)
    assert ended.run["frames"]["damaged"] == []
    assert ended.peak < 1_500_000_000


@pytest.mark.slow
@pytest.mark.parametrize("interpolation", ["none", "blend"])
def test_memory_does_not_grow_with_the_number_of_frames(spawn: Spawn, ffmpeg: str, tmp_path: Path, interpolation: str) -> None:
    """Row 58: 5,000 frames, whose pixels are 250 MB, take far less than that more than 20 do: facts and a thumbnail of each."""
    linux_only()
    peaks = {}
    for count in (20, 5000):
        folder = tmp_path / str(count)
        kinds = [write_frame(folder / f"{number:05d}.png", step=number, size=(128, 128)).read_bytes() for number in range(1, 11)]
        for number in range(11, count + 1):
            (folder / f"{number:05d}.png").write_bytes(kinds[number % 10])
        settings = ("--set", f"timeline.interpolation={interpolation}", "--set", f"timeline.duration={count // 20}s")
        ended = spawn(*settings, folder, into=[folder / "animation"])
        assert ended.code == 0, ended.err
        assert ended.run["frames"]["found"] == count
        peaks[count] = ended.peak
    assert peaks[5000] < peaks[20] + 150_000_000


# -- 11, 12, 13: sizes and modes


@pytest.mark.parametrize(("match", "expected"), [("largest", (64, 48)), ("last", (48, 48)), ("first", (32, 24))])
def test_a_size_that_changes_follows_the_policy(make_run: MakeRun, render: Render, ffmpeg: str, match: str, expected: tuple[int, int]) -> None:
    """Row 11: all frames come to one size, whole, between bars where their shape is another."""
    folder = make_run(steps=3)
    write_frame(folder / "00003.png", step=4, size=(64, 48))
    Image.new("RGB", (48, 48), (255, 255, 255)).save(folder / "00004.png")
    ended = render(folder, settings=[f"size.match={match}"])
    assert ended.code == 0
    assert (ended.output["width"], ended.output["height"], ended.output["frames"]) == (*expected, 5)
    shown = pictures(ended, ffmpeg)
    assert difference(shown[0], ImageOps.pad(step_image(1), expected)) < 8
    assert difference(shown[3], ImageOps.pad(step_image(4, (64, 48)), expected)) < 8
    assert difference(shown[4], ImageOps.pad(Image.new("RGB", (48, 48), (255, 255, 255)), expected)) < 8


@pytest.mark.parametrize("codec", ["h264", "vp9", "gif"])
@pytest.mark.parametrize("size", [(63, 33), (33, 64), (5, 3)])
def test_odd_sides_lose_no_pixel(make_run: MakeRun, render: Render, ffmpeg: str, size: tuple[int, int], codec: str) -> None:
    """Row 12: planes of half size need even sides, so the last row and column are doubled; a gif stays as it is."""
    ended = render(make_run(steps=3, size=size), settings=[f"outputs={codec}"])
    assert ended.code == 0, ended.err
    wide, high = ended.output["width"], ended.output["height"]
    if codec == "gif":
        assert (wide, high) == size
    elif size == (5, 3):
        assert (wide % 2, high % 2) == (0, 0)
        assert min(wide, high) >= 16
    else:
        assert (wide, high) == (size[0] + size[0] % 2, size[1] + size[1] % 2)
    assert len(pictures(ended, ffmpeg)) == 3


def test_modes_may_change_from_frame_to_frame(make_run: MakeRun, render: Render, ffmpeg: str, tmp_path: Path) -> None:
    """Row 13: RGBA, 16 bits, palette, grey, CMYK and a turned JPEG in one run are all shown, upright and in their colours."""
    folder = make_run(steps=2, sidecar=None)
    sources = [step_image(step) for step in range(1, 9)]
    sources[2].convert("RGBA").save(folder / "00002.png")
    grey = sources[3].convert("L")
    Image.frombytes("I;16", grey.size, b"".join(bytes((0, value)) for value in grey.tobytes())).save(folder / "00003.png")
    sources[4].quantize(64).save(folder / "00004.png")
    grey.save(folder / "00005.png")
    sources[6].convert("CMYK").save(folder / "00006.jpg", quality=95)
    turned = Image.Exif()
    turned[0x0112] = 6
    sources[7].transpose(Image.Transpose.ROTATE_90).save(folder / "00007.jpg", quality=95, exif=turned)
    sources[5] = grey.convert("RGB")
    sources[3] = grey.convert("RGB")
    ended = render(folder)
    assert (ended.code, ended.run["frames"]["damaged"]) == (0, [])
    assert (ended.output["width"], ended.output["height"], ended.output["frames"]) == (32, 24, 8)
    for picture, source in zip(pictures(ended, ffmpeg), sources, strict=True):
        assert max(ImageStat.Stat(ImageChops.difference(picture, source)).mean) < 16


# -- 14, 15: few frames, and the last one


@pytest.mark.parametrize("interpolation", ["none", "blend", "mci"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_few_frames_make_an_animation_of_the_right_length(make_run: MakeRun, render: Render, ffmpeg: str, interpolation: str, count: int) -> None:
    """Row 14: where ffmpeg alone makes nothing of one or two images, there is an animation as long as it shall be."""
    ended = render(make_run(steps=count), settings=[f"timeline.interpolation={interpolation}", "outputs=[{codec: h264, constant_rate: true}]"])
    assert ended.code == 0, ended.err
    assert (ended.output["frames"], ended.output["duration"]) == (24, 1.0)
    shown = pictures(ended, ffmpeg)
    assert difference(shown[0], step_image(1)) < 6
    assert difference(shown[-1], step_image(count)) < 6


@pytest.mark.parametrize("interpolation", ["none", "blend", "mci"])
def test_the_last_image_is_there(make_run: MakeRun, render: Render, ffmpeg: str, interpolation: str) -> None:
    """Row 15: 12 images at 2 a second, and the animation ends with the twelfth, not on the way to it."""
    settings = [f"timeline.interpolation={interpolation}", "timeline.duration=6s", "outputs=[{codec: h264, constant_rate: true}]"]
    ended = render(make_run(steps=12, size=(64, 48)), settings=settings)
    assert ended.code == 0, ended.err
    assert (ended.output["frames"], ended.output["duration"]) == (144, 6.0)
    first, *_, last = pictures(ended, ffmpeg)
    assert difference(first, step_image(1, (64, 48))) < 5
    assert difference(last, step_image(12, (64, 48))) < 5
    assert difference(last, step_image(12, (64, 48))) < difference(last, step_image(11, (64, 48))) / 2


# -- 19, 20: names

NAMES = {
    "line break": "a\nb",
    "quotes": """it's "here" `too`""",
    "percent": "100%d %03d %s",
    "brackets": "[x]*?{a,b}",
    "dash": "-y -i",
    "protocol": "http:",
    "concat": "concat:a|b",
    "pipe": "pipe:1",
    "dollar": "$(touch owned);&|<>#\\",
    "long": "x" * 240,
    "composed": unicodedata.normalize("NFC", "é"),
    "decomposed": unicodedata.normalize("NFD", "é"),
    "emoji": "🚀 👩\u200d🚀",
    "escape": "\x1b[31m\x07",
    "direction": "\u202egnp",
    "blanks": " a ",
}


@pytest.mark.parametrize("kind", NAMES)
def test_any_name_renders(make_run: MakeRun, render: Render, ffmpeg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Row 19: as the name of a run's folder, of its frames, of the output folder and of the animation; told as it is in JSON, escaped in the log."""
    name = NAMES[kind]
    before_number = name.rstrip().replace("{", "{{").replace("}", "}}")
    folder = make_run(tmp_path / name, sidecar=None, names=before_number + "_{step:03d}.png")
    (folder / f"{name.rstrip()}_003.png").write_bytes(b"")
    # From inside, so that the name stands first on the command line.
    monkeypatch.chdir(tmp_path)
    target = tmp_path / "out" / name
    place = json.dumps(str(target), ensure_ascii=False)
    ended = render(name, settings=[f"outputs=[{{codec: h264, name: '{{run}}', dir: {place}}}]"], into=[target])
    assert ended.code == 0, ended.err
    assert ended.run["dir"] == str(folder)
    assert ended.run["frames"]["found"] == 6
    assert ended.run["frames"]["damaged"] == [f"{name.rstrip()}_003.png"]
    assert ended.path.parent == target
    assert shows(ended, [1, 2, 4, 5, 6], ffmpeg)
    assert not list(tmp_path.rglob("owned"))


def test_a_name_of_255_bytes_renders(make_run: MakeRun, render: Render, ffmpeg: str, tmp_path: Path) -> None:
    """Row 19: the longest name that a file system takes, of folder and frame; the animation's is made shorter."""
    folder = tmp_path / ("é" * 127 + "x")
    ended = render(make_run(folder, sidecar=None, names="é" * 124 + "{step:03d}.png"), settings=["outputs=[{codec: h264, name: '{run}-{prompt}'}]"])
    assert ended.code == 0, ended.err
    assert len(os.fsencode(ended.path.name)) <= 255
    assert shows(ended, range(1, 7), ffmpeg)


def test_names_that_only_look_the_same_are_two_runs(make_run: MakeRun, render: Render, ffmpeg: str, tmp_path: Path) -> None:
    """Row 19: composed and decomposed letters beside each other give two animations, and neither is written over the other."""
    top = tmp_path / "runs"
    for form in ("NFC", "NFD"):
        make_run(top / unicodedata.normalize("NFC", "é") if form == "NFC" else top / unicodedata.normalize("NFD", "é"), sidecar=None)
    if len(list(top.iterdir())) == 1:
        pytest.skip("this file system takes them for one name")
    ended = render(top)
    assert ended.code == 0, ended.err
    assert len(ended.new) == len({run["dir"] for run in ended.runs}) == 2


@pytest.mark.parametrize("locale", [NO_UNICODE, {"LC_ALL": "C.UTF-8"}], ids=["C", "UTF-8"])
def test_names_that_are_no_unicode_render_in_any_locale(
    make_run: MakeRun, spawn: Spawn, ffmpeg: str, tmp_path: Path, locale: Mapping[str, str]
) -> None:
    """Row 20: bytes that are no UTF-8 in frames, folders and outputs; JSON carries them, the log escapes them."""
    folder = tmp_path / os.fsdecode(b"bad\xff")
    try:
        make_run(folder, sidecar=None, names=os.fsdecode(b"\xfe\xc3_") + "{step:03d}.png")
    except OSError as error:
        if error.errno not in (errno.EILSEQ, errno.EINVAL):
            raise
        pytest.skip("this file system takes UTF-8 names only")
    cut(folder / os.fsdecode(b"\xfe\xc3_004.png"))
    target = tmp_path / os.fsdecode(b"out\xfd")
    target.mkdir()
    file = target / os.fsdecode(b"clip\xfe.mp4")
    for destination in (target, file):
        ended = spawn("-o", destination, "--", folder, into=[target], env=locale)
        assert ended.code == 0, ended.err
        assert os.fsencode(ended.run["dir"]) == os.fsencode(folder)
        assert list(map(os.fsencode, ended.run["frames"]["damaged"])) == [b"\xfe\xc3_004.png"]
        assert "\\xfe\\xc3_004.png: is cut off" in ended.err
        assert shows(ended, [1, 2, 3, 5, 6], ffmpeg)
    assert file in ended.new


def test_letters_that_a_locale_does_not_know_are_written_as_utf_8(make_run: MakeRun, spawn: Spawn, ffmpeg: str, tmp_path: Path) -> None:
    """Row 20: a prompt and a `dir` of letters that a C locale lacks make the same names on disk as anywhere else."""
    folder = make_run(steps=2, generation={"prompt": "🚀 naïve 日本", "seed": 5})
    (folder / "stepwatch.yaml").write_text("version: 1\noutputs: [{codec: h264, dir: Größe}]\n", encoding="utf-8")
    ended = spawn(folder, into=[folder / "Größe"], env=NO_UNICODE)
    assert ended.code == 0, ended.err
    assert ended.new == [folder / "Größe" / "5-🚀 naïve 日本.mp4"]


# -- 21: prompts

PROMPTS = {
    "controls": "NUL \0, escape \x1b]0;owned\x07\x1b[31m, bell \x07, C1 \x9b31m, \u202eturned\u202c",
    "syntax": 'a=b;c#d\\\n[STREAM]\ntitle=owned\n;FFMETADATA1\nit\'s "so" %d %s ${HOME} `id` {0.__class__} \\',
    "letters": "🚀 👩\u200d🚀 naïve 日本語 \ud83d \u0301",
    "long": "masterpiece, " * 19_000,
}
ALL_CONTAINERS = "outputs=[h264, prores, vp9, gif, webp, apng]"


@pytest.mark.parametrize("kind", PROMPTS)
def test_any_prompt_is_kept_in_every_container(make_run: MakeRun, render: Render, ffmpeg: str, kind: str) -> None:
    """Row 21: mp4, mov, webm, gif, webp and apng give a prompt back, but for control characters; a terminal never sees it raw."""
    prompt = PROMPTS[kind]
    folder = make_run(generation={"prompt": prompt, "seed": 7, "steps": 6, "sampler": "Heun"})
    ended = render(folder, settings=[ALL_CONTAINERS])
    assert ended.code == 0, ended.err
    expected = clean(json.loads(json.dumps(prompt)).encode("utf-16", "surrogatepass").decode("utf-16", "replace"))
    assert len({path.suffix for path in ended.new}) == len(ended.new) == 6
    for path in ended.new:
        found = tags.read(path, ffmpeg=ffmpeg)
        assert found["parameters"].startswith(expected), path.suffix
        assert "Seed: 7" in found["parameters"]
        assert json.loads(found["stepwatch"])["run"] == ended.run["run"]
        assert found["title"].startswith(" ".join(expected.split())[:20])


@pytest.mark.parametrize("length", [300_000, MAX_VALUE + 1000])
def test_a_text_of_hundreds_of_kilobytes_in_a_frame_is_kept_or_cut_by_rule(make_run: MakeRun, render: Render, ffmpeg: str, length: int) -> None:
    """Row 21: more than a sidecar may hold comes from the frames themselves; beyond a megabyte it is cut, and says so."""
    text = "word 🚀 = ; # \\ % ' \" " * (length // 20) + "\nSteps: 6, Sampler: Heun, Seed: 7"
    ended = render(make_run(texts={"parameters": text}, sidecar=None), settings=[ALL_CONTAINERS])
    assert ended.code == 0, ended.err
    kept = clean(text)
    for path in ended.new:
        found = tags.read(path, ffmpeg=ffmpeg)["parameters"]
        assert found == kept, path.suffix
        assert ("cut by stepwatch" in found) == (length > MAX_VALUE)


# -- 22, 23, 24: sidecars


def sidecar_text(folder: Path, **changes: object) -> str:
    return json.dumps(json.loads((folder / "run.json").read_text()) | changes)


BROKEN_SIDECARS: dict[str, tuple[Callable[[str], bytes], str]] = {
    "no JSON": (lambda text: b"state: complete", "it is not complete JSON"),
    "half written": (lambda text: text[: len(text) // 2].encode(), "it is not complete JSON"),
    "empty": (lambda text: b"", "it is empty"),
    "deep": (lambda text: b'{"schema": ' + b"[" * 100_000, "it is nested too deeply"),
    "deep and whole": (lambda text: b'{"a": ' + b"[" * 500 + b"]" * 500 + b"," + text[1:].encode(), "it is nested too deeply"),
    "NaN": (lambda text: text.replace("2.5", "NaN").encode(), "NaN is not JSON"),
    "twice": (lambda text: text.replace('"state"', '"state": "running", "state"').encode(), 'the key "state" is there twice'),
    "digits": (lambda text: text.replace("4242", "4" * 5000).encode(), "a number has 5000 digits"),
    "bytes": (lambda text: text.encode().replace(b"rocket", b"r\xffcket"), "it is not UTF-8 text"),
    "large": (lambda text: (text[:-1] + ', "x": "' + "y" * 300_000 + '"}').encode(), "it is larger than 256 KiB"),
    "a list": (lambda text: f"[{text}]".encode(), "it does not hold a JSON object"),
    "wrong type": (lambda text: text.replace('"complete"', "17").encode(), "its state is 17"),
    "no run_id": (lambda text: text.replace('"run_id"', '"run"').encode(), 'the key "run_id" is missing'),
    "path": (lambda text: re.sub('"run_id": "[^"]*"', '"run_id": "../x"', text).encode(), 'its run_id is "../x"'),
    "version 2": (lambda text: text.replace("run/1", "run/2").encode(), 'its schema is "stepwatch.run/2"'),
}


@pytest.mark.parametrize("kind", BROKEN_SIDECARS)
def test_a_broken_sidecar_is_named_and_the_frames_are_rendered(make_run: MakeRun, render: Render, ffmpeg: str, kind: str) -> None:
    """Row 22: whatever is in run.json, the run is rendered as one without it, and so as incomplete; the log says why."""
    folder = make_run(steps=3)
    make, sentence = BROKEN_SIDECARS[kind]
    (folder / "run.json").write_bytes(make((folder / "run.json").read_text()))
    ended = render(folder, settings=["outputs=webp"])
    assert ended.code == 0, ended.err
    assert f"run.json is not used: {sentence}" in ended.err
    assert ended.path.name == f"{folder.name}-incomplete.webp"
    assert ended.output["frames"] == 3


def test_a_sidecar_of_a_gigabyte_is_not_read(make_run: MakeRun, spawn: Spawn, ffmpeg: str) -> None:
    """Row 22: a limit stands before the read."""
    linux_only()
    folder = make_run(steps=3)
    os.truncate(folder / "run.json", 1 << 30)
    before = os.stat(folder / "run.json").st_blocks
    ended = spawn("--set", "outputs=webp", folder, into=[folder / "animation"])
    assert ended.code == 0, ended.err
    assert "run.json is not used: it is larger than 256 KiB" in ended.err
    assert os.stat(folder / "run.json").st_blocks == before
    assert ended.peak < 200_000_000


def test_what_is_odd_in_a_sidecar_costs_no_more_than_itself(make_run: MakeRun, render: Render, ffmpeg: str) -> None:
    """Row 22: a byte order mark is nothing, and a key of a wrong type is absent and named; the rest counts."""
    folder = make_run(steps=3)
    text = sidecar_text(folder, steps="many", frames={"name": "../{index}.png", "count": -1, "lost": "none"}, created=5, generation=[1])
    (folder / "run.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    ended = render(folder, settings=["outputs=webp"])
    assert ended.code == 0, ended.err
    for key in ("steps", "frames.name", "frames.count", "frames.lost", "created", "generation"):
        assert f"run.json: {key} is ignored" in ended.err
    assert (ended.run["run"], ended.output["frames"]) == (folder.name, 3)
    assert "incomplete" not in ended.path.name


@pytest.mark.parametrize(("planned", "counted"), [(50, 50), (50, 20), (5, 5), (0, 0), (10**9, 10**9)])
@pytest.mark.parametrize("state", ["complete", "running"])
def test_a_sidecar_that_counts_wrongly_is_not_believed(
    make_run: MakeRun, render: Render, ffmpeg: str, planned: int, counted: int, state: str
) -> None:
    """Row 23: the frames that are there are the animation, more or fewer; a final count that is wrong is told."""
    names = "{index:05d}.png"
    promise = {"name": names, "count": counted, "planned": planned, "lost": [], "width": 4000, "height": 9, "scale": 1}
    folder = make_run(steps=12, state=state, sidecar={"frames": promise, "steps": {"planned": planned, "done": planned, "every": 1, "skip": 0}})
    ended = render(folder, settings=["outputs=webp"])
    assert ended.code == 0, ended.err
    assert (ended.run["frames"]["found"], ended.output["frames"]) == (12, 12)
    assert (ended.output["width"], ended.output["height"]) == (32, 24)
    assert ("12 are here" in ended.err) == (state == "complete")
    assert ("incomplete" in ended.path.name) == (state == "running")


@pytest.mark.parametrize("change", ["rewritten", "gone", "one more"])
def test_frames_that_change_under_a_complete_run_are_noticed(
    make_run: MakeRun, render: Render, ffmpeg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """Row 23: the sidecar says complete and the host still writes: never a mix of old and new; a frame that comes too late is simply not in it."""
    folder = make_run(steps=6)
    original = frames.Reader.decode
    seen: list[str] = []

    def decode(reader: frames.Reader, frame: Frame, *, scale: int = 1) -> frames.Decoded:
        seen.append(frame.name)
        if frame.name == "00003.png" and seen.count("00003.png") == 1:
            target = folder / "00004.png"
            if change == "rewritten":
                write_frame(target, step=13)
            elif change == "gone":
                target.unlink()
            else:
                write_frame(folder / "00006.png", step=7)
        return original(reader, frame, scale=scale)

    monkeypatch.setattr(frames.Reader, "decode", decode)
    ended = render(folder, meanwhile=[folder / "00004.png", folder / "00006.png"])
    if change == "one more":
        assert ended.code == 0
        assert shows(ended, range(1, 7), ffmpeg)
    else:
        assert ended.code == 1
        assert "frame 00004.png changed" in ended.run["reason"]
        assert "while" in ended.run["reason"]
        assert not ended.new


HOSTILE = [
    ({"outputs": [{"codec": "h264", "dir": "../../x"}]}, "outputs"),
    ({"outputs": [{"codec": "h264", "dir": "/tmp/x"}]}, "outputs"),
    ({"outputs": [{"codec": "h264", "dir": "~/x"}]}, "outputs"),
    ({"output": "../../x"}, "output"),
    ({"outputs": [{"codec": "h264", "name": "{seed!r}"}]}, "name"),
    ({"outputs": [{"codec": "h264", "name": "{0.__class__}"}]}, "name"),
    ({"outputs": [{"codec": "h264", "name": "{seed.__class__.__mro__}"}]}, "name"),
    ({"outputs": [{"codec": "h264", "name": "{run[0]}"}]}, "name"),
    ({"outputs": [{"codec": "h264", "name": "{seed:9999999999d}"}]}, "name"),
    ({"outputs": ["h264"] * 100}, "outputs"),
    ({"cleanup": {"intermediates": "delete"}}, "cleanup.intermediates"),
    ({"timeline": {"duration": "99h"}}, "timeline.duration"),
    ({"timeline": {"fps": 100000}}, "timeline.fps"),
    ({"size": {"scale": 65000}}, "size.scale"),
    ({"frames": {"pattern": "(a+)+$"}}, "frames.pattern"),
    ({"ffmpeg": "/bin/sh"}, "ffmpeg"),
]


@pytest.mark.parametrize(("wish", "key"), HOSTILE, ids=[json.dumps(wish)[:50] for wish, _ in HOSTILE])
def test_a_sidecar_decides_nothing_but_looks(
    make_run: MakeRun, render: Render, ffmpeg: str, tmp_path: Path, wish: Mapping[str, object], key: str
) -> None:
    """Row 24: a place elsewhere, a template that reaches into objects, clearing, more than bearable: refused by name, and rendered without."""
    folder = make_run(tmp_path / "deep" / "down" / "run", steps=3, sidecar={"stepwatch": wish})
    ended = render(folder)
    assert ended.code == 0, ended.err
    assert ended.path.parent == folder / "animation"
    assert "run.json" in ended.err
    assert key in ended.err
    assert ended.output["duration"] == 1.0


@pytest.mark.parametrize(
    "prompt", ["../../x", "/etc/x", "~root/x", "..", ".", "CON", "C:\\x", "a/b\\c:d", "{seed}{0.__class__}", "-rf", "", ".hidden"]
)
def test_a_prompt_never_leads_out_of_the_output_folder(make_run: MakeRun, render: Render, ffmpeg: str, prompt: str) -> None:
    """Row 24: in a name a prompt is letters and nothing else."""
    folder = make_run(steps=2, generation={"prompt": prompt})
    ended = render(folder, settings=["outputs=[{codec: webp, name: '{prompt}'}]"])
    assert ended.code == 0, ended.err
    assert ended.path.parent == folder / "animation"
    assert not ended.path.name.startswith((".", "-", "~"))


@pytest.mark.parametrize(
    "template", ["{seed!r}", "{0.__class__}", "{seed.real}", "{run[0]}", "{prompt:{seed}}", "{secret}", "../{seed}", "a/b", "{seed"]
)
def test_a_template_with_more_than_plain_fields_is_a_configuration_error(make_run: MakeRun, render: Render, template: str) -> None:
    """Row 24: in a file of our own it is told with file, line and column: 78."""
    folder = make_run(steps=2)
    (folder / "stepwatch.yaml").write_text(f"version: 1\noutputs:\n  - codec: webp\n    name: {json.dumps(template)}\n")
    ended = render(folder)
    assert ended.code == 78
    assert not ended.new
    assert re.search(r"stepwatch\.yaml:4:11: outputs\.?0?.*name: ", ended.err)


# -- 25, 27: what hides behind a name


def test_an_output_folder_that_leads_elsewhere_has_to_be_meant(make_run: MakeRun, render: Render, ffmpeg: str, tmp_path: Path) -> None:
    """Row 25: a link named animation is refused (78) until somebody sets `dir`; runs behind links are not looked for."""
    folder = make_run(steps=2)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (folder / "animation").symlink_to(elsewhere)
    refused = render(folder)
    assert refused.code == 78
    assert not refused.new
    assert "this link leads out of the watched folder" in refused.err
    assert "set `dir`" in refused.err
    (folder / "stepwatch.yaml").write_text("version: 1\noutputs: [{codec: webp, dir: animation}]\n")
    meant = render(folder, into=[elsewhere])
    assert meant.code == 0, meant.err
    assert [path.parent for path in meant.new] == [elsewhere]


def test_a_link_is_no_run(make_run: MakeRun, render: Render, ffmpeg: str, tmp_path: Path) -> None:
    """Row 25: a link to a run's folder is not followed from the folder above; named itself, it is meant."""
    make_run(tmp_path / "elsewhere" / "run", steps=2)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "link").symlink_to(tmp_path / "elsewhere" / "run")
    ended = render(tmp_path / "runs")
    assert ended.code == 66
    assert "holds no run" in ended.err
    meant = render(tmp_path / "runs" / "link", into=[tmp_path / "elsewhere" / "run" / "animation"])
    assert meant.code == 0, meant.err
    assert meant.run["dir"] == str(tmp_path / "elsewhere" / "run")


def test_what_stands_in_a_frames_place_is_never_waited_for(make_run: MakeRun, render: Render, ffmpeg: str, tmp_path: Path) -> None:
    """Row 27: pipe, folder, socket, device, a link to nowhere, to itself, to a device: each is named with what it is; a link to an image is one."""
    folder = make_run(steps=10)
    places = [folder / f"{number:05d}.png" for number in range(10)]
    expected = {
        1: "is a named pipe",
        2: "is a folder",
        3: "is a socket",
        5: "is no longer there",
        6: "is a symbolic link to itself",
        7: "is a device",
    }
    for number in (*expected, 4, 8):
        places[number].unlink()
    os.mkfifo(places[1])
    places[2].mkdir()
    with socket.socket(socket.AF_UNIX) as bound:
        at = os.getcwd()
        os.chdir(folder)  # a socket's path may have no more than about a hundred letters
        try:
            bound.bind(places[3].name)
        finally:
            os.chdir(at)
    try:
        os.mknod(places[4], stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
        expected[4] = "is a device"
    except PermissionError:
        places[4].symlink_to("/dev/zero")
        expected[4] = "is a device"
    places[5].symlink_to("nowhere.png")
    places[6].symlink_to(places[6].name)
    places[7].symlink_to("/dev/zero")
    places[8].symlink_to(write_frame(tmp_path / "elsewhere" / "nine.png", step=9))
    begun = threading.active_count()
    ended = render(folder)
    assert ended.code == 0, ended.err
    for number, reason in expected.items():
        assert f"{places[number].name}: {reason}" in ended.err
    assert shows(ended, [1, 9, 10], ffmpeg)
    assert threading.active_count() == begun


# -- 42, 43: a disk that is really full


@pytest.fixture(scope="session")
def own_mounts() -> list[str]:
    """The command behind which mounts are our own; skipped where the kernel gives none."""
    for command in (["unshare", "-Urm"], ["unshare", "-m"]):
        if shutil.which("unshare"):
            check = subprocess.run([*command, "mount", "-t", "tmpfs", "none", "/mnt"], check=False, capture_output=True)
            if check.returncode == 0:
                return command
    pytest.skip("this kernel lets nobody mount a small disk of their own")


def on_small_disk(own_mounts: list[str], place: Path, options: str, *commands: str) -> list[str]:
    """What comes before stepwatch's command, to run it with a small disk at *place*, which is listed behind it on stderr."""
    script = f'mount -t tmpfs -o {options} none {shlex.quote(str(place))} || exit 99\n"$@"\ncode=$?\n'
    script += f'echo "left: $(ls -A {shlex.quote(str(place))} | tr "\\n" " ")" >&2\n' + "\n".join(commands) + "\nexit $code"
    return [*own_mounts, "sh", "-c", script, "sh"]


def noise(folder: Path, count: int = 12) -> Path:
    """Frames that no encoder makes small."""
    folder.mkdir()
    for number in range(count):
        Image.effect_noise((64, 64), 90 + number).convert("RGB").save(folder / f"{number:05d}.png")
    return folder


@pytest.mark.parametrize("codec", ["h264", "gif", "webp"])
def test_a_full_disk_is_named_and_nothing_is_left(spawn: Spawn, ffmpeg: str, tmp_path: Path, own_mounts: list[str], codec: str) -> None:
    """Row 42: no room at all: 1, a sentence about the disk, an empty output folder; with room again the same command works."""
    folder = noise(tmp_path / "run")
    disk = tmp_path / "disk"
    disk.mkdir()
    arguments = ("--set", f"outputs={codec}", "-o", disk, folder)
    ended = spawn(*arguments, prefix=on_small_disk(own_mounts, disk, "size=8k"), disk=disk)
    assert ended.code == 1, ended.err
    assert re.search("disk is full|no space is left|No space left", ended.run["reason"]), ended.run["reason"]
    assert ended.err.splitlines()[-1].strip() == "left:"
    assert ended.output["path"] is None
    more = spawn(*arguments, prefix=on_small_disk(own_mounts, disk, "size=4m"), disk=disk)
    assert more.code == 0, more.err


def test_a_disk_too_full_for_the_metadata_is_named(spawn: Spawn, make_run: MakeRun, ffmpeg: str, tmp_path: Path, own_mounts: list[str]) -> None:
    """Row 42: the prompt alone is larger than what is left."""
    folder = make_run(steps=2, generation={"prompt": "x" * 200_000, "seed": 1})
    disk = tmp_path / "disk"
    disk.mkdir()
    ended = spawn("-o", disk, folder, prefix=on_small_disk(own_mounts, disk, "size=16k"), disk=disk)
    assert ended.code == 1, ended.err
    assert "no space is left on the disk" in ended.run["reason"]
    assert ended.err.splitlines()[-1].strip() == "left:"


@pytest.mark.parametrize("codec", ["h264", "vp9", "gif", "webp", "apng"])
def test_a_disk_that_fills_at_the_very_end_publishes_nothing(
    spawn: Spawn, render: Render, ffmpeg: str, tmp_path: Path, own_mounts: list[str], codec: str
) -> None:
    """Row 43: one page too few for the whole file, where ffmpeg may well end with 0: what it left is not published."""
    folder = noise(tmp_path / "run", 6)
    whole = render(folder, settings=[f"outputs={codec}"], into=[tmp_path / "run" / "animation"]).output["bytes"]
    page = 4096
    disk = tmp_path / "disk"
    disk.mkdir()
    room = (whole - 1) // page * page
    prefix = on_small_disk(own_mounts, disk, f"size={room}")
    ended = spawn("--set", f"outputs={codec}", "-o", disk, folder, prefix=prefix, disk=disk)
    assert ended.code == 1, ended.err
    assert ended.output["error"]
    assert ended.err.splitlines()[-1].strip() == "left:"


@pytest.mark.slow
@pytest.mark.parametrize("room", range(8192, 90_000, 4096))
@pytest.mark.parametrize("codec", ["h264", "vp9", "gif", "webp", "apng"])
def test_whatever_room_there_is_the_file_is_whole_or_not_there(
    spawn: Spawn, ffmpeg: str, tmp_path: Path, own_mounts: list[str], codec: str, room: int
) -> None:
    """Rows 42, 43: page by page more room: first 1 and nothing left, then 0 and a file that decodes."""
    folder = noise(tmp_path / "run", 6)
    disk = tmp_path / "disk"
    disk.mkdir()
    check = f"for file in {shlex.quote(str(disk))}/*; do {shlex.quote(ffmpeg)} -v error -xerror -i $file -f null - 2>&1 || code=77; done"
    prefix = on_small_disk(own_mounts, disk, f"size={room}", f'if [ $code = 0 ]; then test -z "$({check})" || code=77; fi')
    ended = spawn("--set", f"outputs={codec}", "-o", disk, folder, prefix=prefix, disk=disk)
    left = ended.err.splitlines()[-1].removeprefix("left:").split()
    assert (ended.code, len(left)) in ((0, 1), (1, 0)), ended.err


# -- 52: ffmpeg


def test_a_missing_encoder_is_named_with_what_there_is(
    make_run: MakeRun, render: Render, ffmpeg: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 52: an ffmpeg without libx264 ends with 69 and a sentence that names the codecs it can make."""
    program = tmp_path / "bin" / "ffmpeg"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$*" in *-encoders*) "{ffmpeg}" "$@" | grep -v x264; exit;; esac\nexec "{ffmpeg}" "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("STEPWATCH_FFMPEG", str(program))
    folder = make_run(steps=3)
    ended = render(folder)
    assert ended.code == 69
    assert not ended.new
    assert re.search(r"no encoder libx264, which codec h264 needs; it can make .*gif.*vp9", ended.run["reason"])
    assert "stepwatch doctor" in ended.err
    assert render(folder, settings=["outputs=webp"]).code == 0


# -- 64: settings

MISTAKES = {
    "not YAML": ("version: 1\ntimeline: {duration: 6s\n", 3, ""),
    "half saved": ("version: 1\ntimeline:\n  dur", 3, "dur"),
    "unknown key": ("version: 1\ntimeline: {durration: 6s}\n", 2, "duration"),
    "unit": ("version: 1\ntimeline: {duration: 6 parsecs}\n", 2, "6 parsecs"),
    "twice": ("version: 1\ntimeline: {fps: 5}\ntimeline: {fps: 6}\n", 3, "timeline"),
    "no": ("version: 1\ncreate: no\n", 2, "no"),
    "clock": ("version: 1\ntimeline: {duration: 1:30}\n", 2, "1:30"),
    "octal": ("version: 1\nframes: {skip_first: 012}\n", 2, "012"),
    "bomb": ("version: 1\na: &a [x, x]\n" + "".join(f"{chr(98 + i)}: &{chr(98 + i)} [*{chr(97 + i)}, *{chr(97 + i)}]\n" for i in range(24)), 2, ""),
    "deep": ("version: 1\noutputs: " + "[" * 5000, 2, ""),
    "bytes": ("version: 1\nmetadata: {author: \udcff}\n", 2, ""),
    "tag": ("version: 1\ncreate: !!python/object/apply:os.system [touch owned]\n", 2, ""),
}


@pytest.mark.parametrize("kind", MISTAKES)
@pytest.mark.parametrize("where", ["folder", "service"])
def test_a_mistake_in_a_file_is_told_with_its_place(
    make_run: MakeRun, render: Render, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, where: str
) -> None:
    """Row 64: 78, the file, the line, the value; nothing is rendered by half a policy."""
    text, line, value = MISTAKES[kind]
    folder = make_run(steps=2)
    if where == "folder":
        path = folder / "stepwatch.yaml"
    else:
        path = Path(os.environ["XDG_CONFIG_HOME"]) / "stepwatch" / "service.yaml"
        path.parent.mkdir(parents=True)
        head, _, rest = text.partition("\n")
        text = f"{head}\npolicy:\n" + "".join(f"  {one}\n" for one in rest.splitlines())
        line += 1
    path.write_bytes(os.fsencode(text))
    ended = render(folder)
    assert ended.code == 78, ended.err
    assert not ended.new
    place = rf"{path.name}:{line}:\d+: " if kind != "bytes" else rf"{path.name}: line {line} is not UTF-8"
    assert re.search(place, ended.err)
    assert value in ended.err
    assert not list(tmp_path.rglob("owned"))


def test_all_mistakes_are_told_at_once(make_run: MakeRun, render: Render, tmp_path: Path) -> None:
    """Row 64: those of several files and several keys in one go; a folder without mistakes is rendered all the same."""
    bad = make_run(tmp_path / "runs" / "bad" / "run", steps=2)
    (tmp_path / "runs" / "bad" / "stepwatch.yaml").write_text("version: 1\ntimeline: {fps: fast, duraton: 1s}\n")
    (bad / "stepwatch.yaml").write_text("version: 1\noutputs: h266\n")
    ended = render(tmp_path / "runs" / "bad")
    assert ended.code == 78
    for words in ("fast", "duraton", "h266"):
        assert words in ended.err
    assert ended.err.count("stepwatch.yaml:2:") == 3


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to nowhere"])
def test_a_policy_file_that_cannot_be_read_is_told(make_run: MakeRun, render: Render, kind: str) -> None:
    """Row 64: what is no file is neither waited for nor passed over."""
    folder = make_run(steps=2)
    path = folder / "stepwatch.yaml"
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("nowhere")
    ended = render(folder)
    assert ended.code == 78
    assert "stepwatch.yaml" in ended.err
    assert not ended.new


# -- 69, 70, 71: around the program


def test_a_log_that_ends_half_way_stops_nothing(make_run: MakeRun, ffmpeg: str, tmp_path: Path) -> None:
    """Row 69: who reads the log goes away after its first line, in a C locale; the animation is made and told on stdout."""
    folder = make_run(tmp_path / "🚀", steps=6, generation={"prompt": "🚀", "seed": 1})
    (folder / "00002.png").write_bytes(b"")
    before = contents(tmp_path)
    reader, writer = os.pipe()
    env = {**os.environ, "PYTHONPATH": str(ROOT), **NO_UNICODE, "NO_COLOR": "1"}
    process = subprocess.Popen([*stepwatch(), "-v", str(folder)], env=env, stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    first = os.read(reader, 10)
    os.close(reader)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    ended = judge(Ended(code=0, out=out.decode("ascii"), err=first.decode("ascii")), before, tmp_path, [folder / "animation"])
    assert shows(ended, [1, 2, 4, 5, 6], ffmpeg)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)], ids=oct)
@pytest.mark.parametrize("codec", ["h264", "gif"])
def test_an_animation_has_the_mode_that_the_umask_gives(make_run: MakeRun, render: Render, ffmpeg: str, mask: int, mode: int, codec: str) -> None:
    """Row 70: neither the mode of a temporary file nor more than the umask allows."""
    folder = make_run(steps=2)
    before = os.umask(mask)
    try:
        ended = render(folder, settings=[f"outputs={codec}"])
    finally:
        os.umask(before)
    assert ended.code == 0
    assert stat.S_IMODE(ended.path.stat().st_mode) == mode
    assert stat.S_IMODE((folder / "animation").stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("codec", ["h264", "webp"])
def test_an_animation_has_the_group_of_a_setgid_folder(make_run: MakeRun, render: Render, ffmpeg: str, codec: str) -> None:
    """Row 70: in a folder that a group shares, animation and output folder belong to that group."""
    folder = make_run(steps=2)
    other = next((group for group in (*os.getgroups(), 12345) if group != os.getgid()), os.getgid())
    try:
        os.chown(folder, -1, other)
    except PermissionError:
        pytest.skip("this user has one group only")
    os.chmod(folder, 0o2775)
    ended = render(folder, settings=[f"outputs={codec}"])
    assert ended.code == 0
    assert (ended.path.stat().st_gid, (folder / "animation").stat().st_gid) == (other, other)


@pytest.mark.parametrize("taken", ["file", "link to nowhere", "folder"])
def test_a_name_taken_at_the_last_moment_is_left_alone(
    make_run: MakeRun, render: Render, ffmpeg: str, monkeypatch: pytest.MonkeyPatch, taken: str
) -> None:
    """Row 71: another program makes a file of our name between proof and publishing: it stays, and ours is `-1`."""
    folder = make_run(steps=2)
    name = folder / "animation" / "4242-a slender rocket at dusk.mp4"
    original: Callable[..., object] = vars(rendering)["prove"]

    def prove(*arguments: object, **named: object) -> object:
        done = original(*arguments, **named)
        if taken == "file":
            name.write_text("somebody else's")
        elif taken == "folder":
            name.mkdir()
        else:
            name.symlink_to("nowhere")
        return done

    monkeypatch.setattr(rendering, "prove", prove)
    ended = render(folder, meanwhile=[name])
    assert ended.code == 0, ended.err
    assert ended.path == name.with_name("4242-a slender rocket at dusk-1.mp4")
    assert shows(ended, [1, 2], ffmpeg)
    if taken == "file":
        assert name.read_text() == "somebody else's"
    assert name.is_symlink() == (taken == "link to nowhere")
