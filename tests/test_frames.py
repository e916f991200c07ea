"""Frames: what their headers say, that only whole ones decode, and what their pixels become."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from stepwatch import frames
from stepwatch.core.model import Frame, Run, RunKey, Survey
from stepwatch.errors import EnvironmentFault
from stepwatch.frames import FrameError

SHARED = Path(__file__).parents[2] / "shared" / "frames"
linux = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")


def noise(size: tuple[int, int] = (41, 37), seed: int = 1) -> Image.Image:
    """An image in which every pixel counts."""
    return Image.frombytes("RGB", size, random.Random(seed).randbytes(size[0] * size[1] * 3))


def smooth(size: tuple[int, int] = (40, 24)) -> Image.Image:
    """An image of three gradients."""
    ramp = Image.linear_gradient("L").resize(size)
    return Image.merge("RGB", (ramp, ramp.transpose(Image.Transpose.FLIP_TOP_BOTTOM), Image.radial_gradient("L").resize(size)))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *, extra: bytes = b"", interlace: int = 0) -> bytes:
    """A PNG written by hand, of kinds that Pillow does not write."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace))
    return b"\x89PNG\r\n\x1a\n" + header + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def with_chunk(data: bytes, extra: bytes) -> bytes:
    """A PNG with one more chunk behind its header."""
    return data[:33] + extra + data[33:]


def exif(orientation: int) -> bytes:
    """An EXIF block that says how to turn a picture."""
    block = Image.Exif()
    block[0x0112] = orientation
    return block.tobytes()


def frame(name: str = "f", size: int = 1) -> Frame:
    """A frame of that name."""
    return Frame(step=1, name=name, size=size)


def decoded(folder: Path, data: bytes, *, scale: int = 1) -> Image.Image:
    """The picture of a file with these bytes."""
    (folder / "f").write_bytes(data)
    return frames.decode(str(folder), frame(), scale=scale).image


def surveyed(folder: Path, *names: str) -> Survey:
    """The survey of a run of these files."""
    found = tuple(Frame(step=number, name=name, size=1) for number, name in enumerate(names, 1))
    return frames.survey(Run(key=RunKey(folder=str(folder)), name="run", frames=found))


def reason(folder: Path, data: bytes) -> str:
    """Why a file with these bytes is no frame."""
    with pytest.raises(FrameError) as caught:
        decoded(folder, data)
    return caught.value.reason


# --- whole or not ----------------------------------------------------------------------------------------------------------------

PLAIN = b"P3\n3 2\n255\n" + b" ".join(b"%d" % value for value in range(200, 218)) + b"\n"
WHOLE: dict[str, Callable[[], bytes]] = {
    "png": lambda: encoded(noise(), "PNG"),
    "png of 16 grey bits": lambda: png(3, 2, 16, 0, b"\0abcdef" * 2),
    "interlaced png": lambda: png(1, 1, 8, 2, b"\0abc", interlace=1),
    "png with text at its end": lambda: encoded(noise(), "PNG")[:-12] + chunk(b"tEXt", b"parameters\0x") + chunk(b"IEND", b""),
    "jpeg": lambda: encoded(noise(), "JPEG"),
    "progressive jpeg": lambda: encoded(noise(), "JPEG", progressive=True),
    "webp": lambda: encoded(noise(), "WEBP"),
    "lossless webp": lambda: encoded(noise(), "WEBP", lossless=True),
    "webp with exif": lambda: encoded(noise(), "WEBP", exif=exif(1)),
    "bmp": lambda: encoded(noise(), "BMP"),
    "palette bmp": lambda: encoded(noise().quantize(16), "BMP"),
    "ppm": lambda: encoded(noise(), "PPM"),
    "pgm": lambda: encoded(noise().convert("L"), "PPM"),
    "pbm": lambda: encoded(noise().convert("1"), "PPM"),
    "plain ppm": lambda: PLAIN,
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_frame_cut_anywhere_is_damaged(tmp_path: Path, kind: str) -> None:
    """Row 3: whole it decodes; without its end, be it one byte, it never does (Pillow itself takes some such files)."""
    data = WHOLE[kind]()
    decoded(tmp_path, data)
    step = max(1, len(data) // 150)
    for length in {*range(1, len(data), step), *range(max(1, len(data) - 40), len(data))}:
        assert reason(tmp_path, data[:length])


@settings(max_examples=80, deadline=None)
@given(position=st.integers(min_value=0, max_value=10_000), mask=st.integers(min_value=1, max_value=255))
def test_a_changed_byte_in_a_png_is_found(position: int, mask: int) -> None:
    """A PNG in which any byte is wrong is damaged: every byte is under a checksum or a rule."""
    data = bytearray(encoded(noise((21, 13)), "PNG"))
    data[position % len(data)] ^= mask
    with tempfile.TemporaryDirectory() as folder:
        assert reason(Path(folder), bytes(data))


@settings(max_examples=150, deadline=None)
@given(
    start=st.sampled_from(
        [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1", b"RIFF\x40\0\0\0WEBPVP8X", b"RIFF\x40\0\0\0WEBPVP8L", b"BM", b"P6 ", b"P3 2 2 ", b"P5\n"]
    ),
    rest=st.binary(max_size=200),
)
def test_junk_is_a_reason_and_never_another_exception(start: bytes, rest: bytes) -> None:
    """Whatever bytes a file has, the survey names a problem or a size, and the decode ends in an image or a FrameError."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "f").write_bytes(start + rest)
        facts = surveyed(Path(folder), "f").facts[0]
        assert facts.problem or facts.width
        try:
            frames.decode(folder, frame())
        except FrameError:
            assert reason(Path(folder), start + rest)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp", "ppm"])
def test_bytes_behind_the_end_do_no_harm(tmp_path: Path, kind: str) -> None:
    """Cameras and careless writers leave something behind a picture; its digest is of all of it."""
    data = WHOLE[kind]()
    whole = decoded(tmp_path, data)
    more = data + b"camera data \xff\xd9 \n"
    assert decoded(tmp_path, more).tobytes() == whole.tobytes()
    assert frames.decode(str(tmp_path), frame()).digest == hashlib.sha256(more).hexdigest()


def test_a_jpeg_with_a_thumbnail_and_no_end_is_damaged(tmp_path: Path) -> None:
    """The end mark of the small picture in its header does not count."""
    small = encoded(noise((8, 8)), "JPEG")
    data = encoded(noise(), "JPEG", exif=b"Exif\0\0" + small)
    assert "the end of its pixels is missing" in reason(tmp_path, data[:-2])


@pytest.mark.parametrize("interlace", [0, 1])
def test_a_png_whose_pixels_end_too_early_is_damaged(tmp_path: Path, interlace: int) -> None:
    """All chunks and checksums are right, but rows are missing (Pillow leaves them black); a black picture with all its rows is fine."""
    row = b"\0" + b"abc" * 8
    assert "damaged" in reason(tmp_path, png(8, 8, 8, 2, row, interlace=interlace))
    assert "damaged" in reason(tmp_path, png(8, 8, 8, 2, (b"\0" + bytes(24)) * 7 + bytes(24), interlace=interlace))
    black = noise((70, 50))
    black.paste((0, 0, 0), (0, 20, 70, 50))
    data = encoded(black, "PNG")
    assert decoded(tmp_path, data).tobytes() == black.tobytes()


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (5, 5), (8, 9), (21, 34)])
@pytest.mark.parametrize(("depth", "colour"), [(1, 0), (8, 2), (16, 6)])
def test_an_interlaced_png_needs_all_its_passes(tmp_path: Path, size: tuple[int, int], depth: int, colour: int) -> None:
    """One byte too few in the seven passes is noticed, the right number is enough."""
    bits = depth * {0: 1, 2: 3, 6: 4}[colour]
    rows = b""
    for left, top, across, down in ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)):
        columns = len(range(left, size[0], across))
        rows += (b"\0" + bytes((columns * bits + 7) // 8)) * len(range(top, size[1], down)) if columns else b""
    assert decoded(tmp_path, png(*size, depth, colour, rows, interlace=1)).size == size
    assert "damaged" in reason(tmp_path, png(*size, depth, colour, rows[:-1], interlace=1))


# --- what is not a frame ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty (0 bytes)"),
        (b"\0" * 5000, "only zeros"),
        (b"a note to myself\n" * 9, "text, not an image"),
        (b"#EXTM3U\nhttp://127.0.0.1:9/x.ts\n", "an HLS playlist"),
        (b"ffconcat version 1.0\nfile /etc/passwd\n", "a list of files for ffmpeg"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript file"),
        (b"\0\0\0\x20ftypavif\0\0\0\0", "AVIF"),
        (b"\0\0\0\x20ftypisom\0\0\0\0", "a video"),
        (b"\x7fELF\x02\x01\x01\xff\xfe\0\0", "not an image that can be read"),
    ],
)
def test_what_is_no_image_is_named(tmp_path: Path, data: bytes, words: str) -> None:
    """Rows 2, 6, 7, 8: nothing is guessed from a name, no script or playlist is followed, Ghostscript is never run."""
    (tmp_path / "f.png").write_bytes(data)
    problem = surveyed(tmp_path, "f.png").facts[0].problem
    assert problem
    assert words in problem
    with pytest.raises(FrameError, match=r"^frame f\.png: ") as caught:
        frames.decode(str(tmp_path), frame("f.png"))
    assert caught.value.reason == problem


SOF = b"\xff\xc0\0\x11\x08\0\x10\0\x10\x03" + bytes(9)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x89PNG\r\n\x1a\n" + chunk(b"IDAT", b"x" * 13), "does not begin with its header"),
        (png(4, 4, 8, 5, b""), "there is no colour type 5"),
        (png(0, 4, 8, 2, b""), "0x4 pixels"),
        (png(4, 4, 8, 2, b"")[:33] + chunk(b"IEND", b""), "without pixels"),
        (png(4, 4, 8, 2, b"")[:33], "cut off before its pixels"),
        (png(4, 4, 8, 2, b"")[:33] + chunk(b"tEXt", b"") * 100_001, "more than 100000 chunks"),
        (b"\xff\xd8\xff\xd9", "a JPEG without pixels"),
        (b"\xff\xd8\xff\xda\0\x02", "a JPEG without pixels"),
        (b"\xff\xd8\xff\xff\xff\x01\xff\xe0\0\x02junk", "its header does not add up"),
        (b"\xff\xd8\xff\xe0\0\0", "its header does not add up"),
        (b"\xff\xd8" + SOF.replace(b"\x10\x03", b"\x10\x02"), "2 colour components"),
        (b"\xff\xd8" + SOF, "cut off in its header"),
        (b"RIFF\x20\0\0\0WEBPVP8 \x10\0\0\0" + bytes(16), "do not begin as they should"),
        (b"RIFF\x20\0\0\0WEBPVP8L\x10\0\0\0" + bytes(16), "do not begin as they should"),
        (b"RIFF\x20\0\0\0WEBPEXIF\x10\0\0\0" + bytes(16), "does not begin with its header"),
        (b"BM" + bytes(12) + struct.pack("<I", 40) + bytes(4), "damaged image"),
        (b"P6 x y", "damaged image"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_headers_that_make_no_sense_are_named(tmp_path: Path, data: bytes, words: str) -> None:
    """Row 2: the survey says in which way a file is broken, and the decode says the same."""
    (tmp_path / "f").write_bytes(data)
    problem = surveyed(tmp_path, "f").facts[0].problem
    assert problem
    assert words in problem
    assert reason(tmp_path, data) == problem


@pytest.mark.parametrize(("kind", "format_"), [("JPEG", "JPEG"), ("WEBP", "WEBP"), ("BMP", "BMP"), ("PPM", "PPM")])
def test_content_counts_whatever_the_name_says(tmp_path: Path, kind: str, format_: str) -> None:
    """Row 6: a JPEG in a file named .png is a JPEG."""
    (tmp_path / "f.png").write_bytes(encoded(smooth(), kind))
    facts = surveyed(tmp_path, "f.png").facts[0]
    assert (facts.format, facts.width, facts.height, facts.problem) == (format_, 40, 24, None)
    assert frames.decode(str(tmp_path), frame("f.png")).image.size == (40, 24)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP"])
def test_animations_are_not_frames(tmp_path: Path, kind: str) -> None:
    """A file of several pictures is refused in words, not shown as its first."""
    data = encoded(noise((16, 16)), kind, save_all=True, append_images=[noise((16, 16), 2), noise((16, 16), 3)], duration=100)
    assert "animat" in reason(tmp_path, data)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    """Row 9: 900 megapixels in a few bytes are refused before anything is unpacked, in the survey and in the decode."""
    (tmp_path / "f").write_bytes(png(30_000, 30_000, 1, 0, bytes(3751)))
    problem = surveyed(tmp_path, "f").facts[0].problem
    assert problem == "is too large: 30000x30000 pixels, at most 160 million are decoded"
    with pytest.raises(FrameError, match="30000x30000"):
        frames.decode(str(tmp_path), frame())
    for data in (b"BM" + struct.pack("<IIIIiiHHIIiiII", 99, 0, 54, 40, 30_000, 30_000, 1, 24, 0, 0, 0, 0, 0, 0), b"P6 30000 30000 255\n abc"):
        assert "too large" in reason(tmp_path, data)


def test_a_bomb_between_pillows_limits_gives_no_warning(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """Row 9: our own limit holds; Pillow's, which the whole process would share, is neither needed nor changed."""
    before = Image.MAX_IMAGE_PIXELS
    (tmp_path / "f").write_bytes(png(12_000, 12_000, 1, 0, bytes(10)))
    assert surveyed(tmp_path, "f").facts[0].problem is None
    with pytest.raises(FrameError, match="damaged"):
        frames.decode(str(tmp_path), frame())
    assert not recwarn.list
    assert before == Image.MAX_IMAGE_PIXELS


def test_enlarging_obeys_the_pixel_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that the sidecar wants enlarged beyond the limit is refused before it is."""
    monkeypatch.setattr(frames, "MAX_PIXELS", 40 * 24 * 15)
    (tmp_path / "f").write_bytes(encoded(smooth(), "PNG"))
    assert frames.decode(str(tmp_path), frame(), scale=3).image.size == (120, 72)
    with pytest.raises(FrameError, match="40x24 pixels enlarged 4 times"):
        frames.decode(str(tmp_path), frame(), scale=4)


def test_an_endless_file_is_refused_by_its_size(tmp_path: Path) -> None:
    """A sparse file of more than a gigabyte is not read."""
    (tmp_path / "f").write_bytes(encoded(smooth(), "PNG"))
    os.truncate(tmp_path / "f", frames.MAX_BYTES + 1)
    for action in (frames.decode, frames.read, frames.digest):
        with pytest.raises(FrameError, match="too large"):
            action(str(tmp_path), frame())


# --- texts that are larger than pictures -----------------------------------------------------------------------------------------

MEMORY = """
import sys
from stepwatch import frames
from stepwatch.core.model import Frame, Run, RunKey
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
one = Frame(step=1, name="f", size=1)
before = peak()
frames.survey(Run(key=RunKey(folder=sys.argv[1]), name="run", frames=(one,)))
print(frames.decode(sys.argv[1], one).image.size, (peak() - before) // 1024)
"""


WITH_STEPWATCH = os.environ | {"PYTHONPATH": str(Path(frames.__file__).parents[1])}


@linux
@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "iCCP"])
def test_an_endless_text_costs_no_memory_and_no_frame(tmp_path: Path, kind: str) -> None:
    """Row 10: a text chunk of 200 MB (packed, or plain with 60 MB) is passed over; the pixels are fine, so the frame is."""
    packed = {"zTXt": b"parameters\0\0", "iTXt": b"parameters\0\1\0\0\0", "iCCP": b"profile\0\0"}
    body = packed[kind] + zlib.compress(bytes(200_000_000), 1) if kind in packed else b"parameters\0" + b"x" * 60_000_000
    (tmp_path / "f").write_bytes(with_chunk(encoded(smooth(), "PNG"), chunk(kind.encode(), body)))
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True, env=WITH_STEPWATCH)
    size, _, grown = done.stdout.rpartition(" ")
    assert size == "(40, 24)"
    assert int(grown) < 20


def test_broken_texts_do_not_break_a_frame(tmp_path: Path) -> None:
    """Row 10: what stands in a text chunk cannot make good pixels bad, as long as the chunk itself is whole."""
    data = encoded(smooth(), "PNG")
    for body in (b"", b"no separator", b"parameters\0\0not zlib", b"parameters\0\0" + zlib.compress(bytes(9_000_000))):
        broken = with_chunk(data, chunk(b"zTXt", body))
        assert decoded(tmp_path, broken).tobytes() == smooth().tobytes()
        assert surveyed(tmp_path, "f").texts == {}


def test_memory_does_not_grow_with_the_number_of_frames(tmp_path: Path) -> None:
    """Row 58: forty frames leave no more behind than four."""
    (tmp_path / "f").write_bytes(encoded(noise((256, 256)), "PNG"))

    def peak(count: int) -> int:
        tracemalloc.start()
        for _ in range(count):
            frames.thumbnail(frames.decode(str(tmp_path), frame()).image)
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(2)
    assert peak(40) < peak(4) + 100_000


@pytest.mark.slow
@linux
def test_a_frame_of_a_hundred_megapixels_decodes(tmp_path: Path) -> None:
    """Row 58: one large frame is decoded within a few times its own size."""
    (tmp_path / "f").write_bytes(png(12_000, 8_400, 8, 0, (b"\0" + bytes(range(240)) * 50) * 8_400))
    done = subprocess.run([sys.executable, "-c", MEMORY, str(tmp_path)], capture_output=True, text=True, check=True, env=WITH_STEPWATCH)
    size, _, grown = done.stdout.rpartition(" ")
    assert size == "(12000, 8400)"
    assert int(grown) < 900


# --- files that are no files -----------------------------------------------------------------------------------------------------


def test_nothing_but_a_file_is_opened(tmp_path: Path) -> None:
    """Row 27: a pipe, a folder, a socket or a device in the place of a frame is reported, never opened, and nothing hangs."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to("nowhere")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(tmp_path)  # the whole path may be too long for a socket
        try:
            server.bind("socket")
        finally:
            os.chdir(here)
        wanted = {
            "pipe": "is a named pipe, not a file",
            "folder": "is a folder, not a file",
            "socket": "is a socket, not a file",
            "device": "is a device, not a file",
            "loop": "is a symbolic link to itself",
            "dangling": "is no longer there",
            "gone": "is no longer there",
        }
        facts = surveyed(tmp_path, *wanted).facts
        assert {fact.frame.name: fact.problem for fact in facts} == wanted
        for name, words in wanted.items():
            for action in (frames.decode, frames.read, frames.digest):
                with pytest.raises(FrameError, match=words):
                    action(str(tmp_path), frame(name))


def test_a_pipe_that_takes_a_frames_place_does_not_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 27: also between the look and the open."""
    os.mkfifo(tmp_path / "f")
    (tmp_path / "other").write_bytes(b"x")
    ordinary = os.stat(tmp_path / "other")
    monkeypatch.setattr(os, "stat", lambda path: ordinary)
    with pytest.raises(FrameError, match="named pipe"):
        frames.read(str(tmp_path), frame())


def test_a_link_to_a_file_is_as_good_as_the_file(tmp_path: Path) -> None:
    """Row 27: a symbolic link is followed."""
    (tmp_path / "real").write_bytes(encoded(smooth(), "PNG"))
    (tmp_path / "f").symlink_to("real")
    assert frames.decode(str(tmp_path), frame()).image.tobytes() == smooth().tobytes()


@pytest.mark.parametrize(
    "name",
    [
        b"two\nlines.png",
        b"'\"`$(x).png",
        b"100%d %05d.png",
        b"[x]*?.png",
        b"-y.png",
        b"http:x.png",
        b"concat:a|b.png",
        b"e\xcc\x81.png",
        b"\xc3\xa9.png",
        b"\xf0\x9f\x98\x80.png",
        b"x" * 251 + b".png",
        b"bad\xff\xfe.png",
        b"esc\x1b[31m.png",
    ],
)
def test_any_name_will_do(tmp_path: Path, name: bytes) -> None:
    """Rows 19, 20: names are only ever opened, never parsed; in a message they are harmless text."""
    path = os.path.join(os.fsencode(tmp_path), name)
    with open(path, "wb") as file:
        file.write(encoded(smooth(), "PNG"))
    text = os.fsdecode(name)
    assert surveyed(tmp_path, text).facts[0].problem is None
    assert frames.decode(str(tmp_path), frame(text)).image.tobytes() == smooth().tobytes()
    with open(path, "wb") as file:
        file.write(b"text")
    with pytest.raises(FrameError) as caught:
        frames.decode(str(tmp_path), frame(text))
    caught.value.message.encode("utf-8")
    assert caught.value.message.isprintable()
    assert caught.value.name == text


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EMFILE])
def test_an_ill_disk_is_not_a_damaged_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """When the machine cannot read, no frame is called damaged for it."""
    (tmp_path / "f").write_bytes(encoded(smooth(), "PNG"))

    def fail(*args: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "open", fail)
    for action in (frames.decode, frames.read, frames.digest):
        with pytest.raises(EnvironmentFault, match="frame f cannot be read"):
            action(str(tmp_path), frame())
    with pytest.raises(EnvironmentFault):
        surveyed(tmp_path, "f")


def test_too_little_memory_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that does not fit is a named error and no crash."""

    def fail(self: object) -> None:
        raise MemoryError

    monkeypatch.setattr(PngImagePlugin.PngImageFile, "load", fail)
    assert reason(tmp_path, encoded(smooth(), "PNG")) == "does not fit into memory (40x24 pixels)"


def test_the_digest_is_of_the_bytes_that_were_decoded(tmp_path: Path) -> None:
    """Decode and digest agree with SHA-256 over the file."""
    for kind in ("PNG", "JPEG", "WEBP", "BMP", "PPM"):
        data = encoded(noise(), kind)
        (tmp_path / "f").write_bytes(data)
        wanted = hashlib.sha256(data).hexdigest()
        assert frames.decode(str(tmp_path), frame()).digest == wanted
        assert frames.digest(str(tmp_path), frame()) == wanted
        assert frames.read(str(tmp_path), frame()) == data


def test_a_frame_is_read_once_for_its_digest_and_its_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is digested first is decoded from memory; what finds no room there, or is not wanted, is read again and has the digest of what is read."""
    first, second = encoded(noise(), "PNG"), encoded(noise(seed=2), "PNG")
    monkeypatch.setattr(frames, "KEPT", len(first) + len(second) // 2)
    reader, there = frames.Reader(str(tmp_path)), {}
    for name, data in (("a", first), ("b", second), ("c", first)):
        (tmp_path / name).write_bytes(data)
        there[name] = frame(name, len(data))
    for name, data in (("a", first), ("b", second)):
        assert reader.digest(there[name], keep=True) == hashlib.sha256(data).hexdigest()
    for name in "ab":
        (tmp_path / name).write_bytes(first if name == "b" else second)
    kept, again = reader.decode(there["a"]), reader.decode(there["b"])
    assert (kept.digest, kept.image.tobytes()) == (hashlib.sha256(first).hexdigest(), noise().tobytes())
    assert (again.digest, again.image.tobytes()) == (hashlib.sha256(first).hexdigest(), noise().tobytes())
    assert reader.decode(there["a"]).digest == hashlib.sha256(second).hexdigest(), "nothing is kept for longer than it is needed"
    reader.digest(there["c"], keep=False)
    (tmp_path / "c").write_bytes(second)
    assert reader.decode(there["c"]).digest == hashlib.sha256(second).hexdigest()


def test_a_frame_that_has_grown_is_digested_whole_and_not_kept(tmp_path: Path) -> None:
    """Its size was read before; its digest is of all that is there now."""
    data = encoded(noise(), "PNG")
    (tmp_path / "f").write_bytes(data + b"more")
    reader = frames.Reader(str(tmp_path))
    assert reader.digest(frame("f", len(data)), keep=True) == hashlib.sha256(data + b"more").hexdigest()
    (tmp_path / "f").write_bytes(data)
    assert reader.decode(frame("f", len(data))).digest == hashlib.sha256(data).hexdigest()


# --- pixels ----------------------------------------------------------------------------------------------------------------------


def test_every_mode_becomes_rgb_with_8_bits(tmp_path: Path) -> None:
    """Row 13: each kind of pixel comes out as people see it."""
    image = smooth()
    grey = image.convert("L")
    transparent = image.convert("RGBA")
    transparent.putalpha(Image.new("L", image.size, 128))
    dimmed = image.point(lambda value: round(value * 128 / 255))
    cases = [
        (encoded(image, "PNG"), image),
        (encoded(grey, "PNG"), grey.convert("RGB")),
        (encoded(image.convert("1"), "PNG"), image.convert("1").convert("RGB")),
        (encoded(image.quantize(64), "PNG"), image.quantize(64).convert("RGB")),
        (encoded(image.convert("RGBA"), "PNG"), image),
        (encoded(image.convert("RGBA"), "BMP"), image),
        (encoded(transparent, "PNG"), dimmed),
        (encoded(transparent, "WEBP", lossless=True, exact=True), dimmed),
        (encoded(grey, "PPM"), grey.convert("RGB")),
        (encoded(image.convert("CMYK"), "JPEG", quality=100), image),
    ]
    for data, wanted in cases:
        got = decoded(tmp_path, data)
        assert (got.mode, got.size) == ("RGB", wanted.size)
        difference = max(abs(a - b) for a, b in zip(got.tobytes(), wanted.tobytes(), strict=True))
        assert difference <= (4 if data.startswith(b"\xff\xd8") else 1)


@pytest.mark.parametrize(("colour", "samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_16_bits_are_scaled_and_not_clipped(tmp_path: Path, colour: int, samples: int) -> None:
    """Row 13: half of 65535 is half of 255, in grey and in colour, with alpha and without."""
    values = {1: (0x8001,), 2: (0x8001, 0xFFFF), 3: (0x2000, 0x8001, 0xFFFE), 4: (0x2000, 0x8001, 0xFFFE, 0xFFFF)}[samples]
    row = b"\0" + struct.pack(f">{samples}H", *values) * 4
    pixel = decoded(tmp_path, png(4, 3, 16, colour, row * 3)).getpixel((2, 1))
    assert pixel == ((0x20, 0x80, 0xFF) if samples > 2 else (0x80, 0x80, 0x80))


def test_16_bit_ppm_is_scaled(tmp_path: Path) -> None:
    """Row 13: PGM and PPM with 65535 levels."""
    assert decoded(tmp_path, b"P5 2 1 65535\n" + struct.pack(">2H", 0x8001, 0xFFFF)).getpixel((0, 0)) == (0x80, 0x80, 0x80)
    pixel = decoded(tmp_path, b"P6 1 1 65535\n" + struct.pack(">3H", 0x2000, 0x8001, 0xFFFE)).tobytes()
    assert max(abs(a - b) for a, b in zip(pixel, b"\x20\x80\xff", strict=True)) <= 1


def test_transparent_pixels_are_black(tmp_path: Path) -> None:
    """Row 13: whatever colour lies under them, by alpha, by palette or by a colour key."""
    image = Image.new("RGBA", (4, 4), (250, 10, 90, 0))
    assert decoded(tmp_path, encoded(image, "PNG")).getcolors() == [(16, (0, 0, 0))]
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 250, 10, 90])
    assert decoded(tmp_path, encoded(palette, "PNG", transparency=1)).getcolors() == [(16, (0, 0, 0))]
    key = Image.new("RGB", (4, 4), (250, 10, 90))
    key.putpixel((0, 0), (1, 2, 3))
    assert decoded(tmp_path, encoded(key, "PNG", transparency=(250, 10, 90))).getpixel((0, 0)) == (1, 2, 3)
    assert decoded(tmp_path, encoded(key, "PNG", transparency=(250, 10, 90))).getpixel((1, 1)) == (0, 0, 0)


def test_a_bmp_with_an_unused_fourth_byte_is_opaque(tmp_path: Path) -> None:
    """Some programs declare alpha in a BMP and leave it at zero."""
    header = struct.pack("<IiiHHIIiiII", 108, 2, 1, 1, 32, 3, 8, 0, 0, 0, 0) + struct.pack("<IIII", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + bytes(52)
    data = b"BM" + struct.pack("<IHHI", 14 + 108 + 8, 0, 0, 14 + 108) + header + bytes((30, 20, 10, 0)) * 2
    assert decoded(tmp_path, data).getpixel((1, 0)) == (10, 20, 30)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_frame_upright(tmp_path: Path, kind: str, orientation: int) -> None:
    """Row 13: survey and decode agree on the upright size, and the bright corner is where the camera saw it."""
    image = Image.new("RGB", (48, 32))
    image.paste((255, 255, 255), (0, 0, 16, 16))  # top left as stored
    (tmp_path / "f").write_bytes(encoded(image, kind, exif=exif(orientation)))
    facts = surveyed(tmp_path, "f").facts[0]
    upright = frames.decode(str(tmp_path), frame()).image
    assert upright.size == (facts.width, facts.height) == ((32, 48) if orientation >= 5 else (48, 32))
    corners = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}
    across, down = upright.width - 1, upright.height - 1
    bright = {
        name
        for name, at in {"tl": (0, 0), "tr": (across, 0), "bl": (0, down), "br": (across, down)}.items()
        if upright.getchannel("G").crop((*at, at[0] + 1, at[1] + 1)).tobytes()[0] > 200
    }
    assert bright == {corners[orientation]}


def test_broken_exif_is_upright(tmp_path: Path) -> None:
    """What cannot be read turns nothing, and is no reason to lose a frame."""
    for block in (b"Exif\0\0junk", b"Exif\0\0II*\0\xff\xff\xff\xff", exif(77)):
        assert decoded(tmp_path, encoded(smooth(), "JPEG", exif=block)).size == (40, 24)


def test_scale_enlarges(tmp_path: Path) -> None:
    """Frames that a hook wrote small come out at their full size."""
    (tmp_path / "f").write_bytes(encoded(smooth((8, 6)), "PNG"))
    large = frames.decode(str(tmp_path), frame(), scale=8).image
    assert large.size == (64, 48)
    assert large.tobytes() == smooth((8, 6)).resize((64, 48), Image.Resampling.BICUBIC).tobytes()


# --- texts -----------------------------------------------------------------------------------------------------------------------

INFOTEXT = "a cat, 猫\nNegative prompt: blurry\nSteps: 20, Sampler: Euler a, Seed: 7"


def comment(value: bytes) -> bytes:
    """An EXIF block with a UserComment."""
    block = Image.Exif()
    block.get_ifd(0x8769)[0x9286] = value
    return block.tobytes()


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
@pytest.mark.parametrize(
    "value",
    [
        b"UNICODE\0" + INFOTEXT.encode("utf-16-be"),
        b"UNICODE\0" + INFOTEXT.encode("utf-16-le"),
        b"ASCII\0\0\0" + INFOTEXT.encode(),
        b"\0" * 8 + INFOTEXT.encode(),
        INFOTEXT.encode(),
    ],
)
def test_infotext_is_found_in_exif(tmp_path: Path, kind: str, value: bytes) -> None:
    """A1111 and its forks write UserComment in several ways."""
    (tmp_path / "f").write_bytes(encoded(smooth(), kind, exif=comment(value)))
    assert surveyed(tmp_path, "f").texts == {"parameters": INFOTEXT}


def test_comfyui_graphs_are_found_in_webp(tmp_path: Path) -> None:
    """ComfyUI writes `prompt:{...}` under Model and `workflow:{...}` under Make."""
    block = Image.Exif()
    block[0x0110] = 'prompt:{"1":{}}'
    block[0x010F] = 'workflow:{"nodes":[]}'
    (tmp_path / "f").write_bytes(encoded(smooth(), "WEBP", exif=block.tobytes()))
    assert surveyed(tmp_path, "f").texts == {"prompt": '{"1":{}}', "workflow": '{"nodes":[]}'}


@pytest.mark.parametrize("kind", [b"tEXt", b"zTXt", b"iTXt"])
@pytest.mark.parametrize("late", [False, True])
def test_png_texts_are_found_before_and_after_the_pixels(tmp_path: Path, kind: bytes, *, late: bool) -> None:
    """Each kind of text chunk, in the first frame that has any."""
    body = {
        b"tEXt": b"parameters\0" + INFOTEXT.encode(),
        b"zTXt": b"parameters\0\0" + zlib.compress(INFOTEXT.encode()),
        b"iTXt": b"parameters\0\0\0\0\0" + INFOTEXT.encode(),
    }[kind]
    plain = encoded(smooth(), "PNG")
    text = chunk(kind, body)
    (tmp_path / "plain").write_bytes(plain)
    (tmp_path / "texts").write_bytes(plain[:-12] + text + plain[-12:] if late else with_chunk(plain, text))
    (tmp_path / "later").write_bytes(with_chunk(plain, chunk(b"tEXt", b"parameters\0later")))
    assert surveyed(tmp_path, "plain", "texts", "later").texts == {"parameters": INFOTEXT}


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real runs are not here")
def test_real_runs(tmp_path: Path) -> None:
    """Real frames: sizes, texts, and the one that an interrupted run left half-written."""
    sizes = {"A": (512, 512), "C": (512, 768), "D": (512, 512), "E": (512, 512), "F": (256, 256)}
    for name, size in sizes.items():
        names = sorted(file.name for file in (SHARED / name).iterdir() if file.suffix in (".png", ".jpg"))
        survey = surveyed(SHARED / name, *names)
        assert {(fact.width, fact.height, fact.problem) for fact in survey.facts} == {(*size, None)}
        assert "Sampler:" in survey.texts["parameters"]
    with pytest.raises(FrameError, match="cut off"):
        frames.decode(str(SHARED / "E"), frame("step_00023.png"))
    assert frames.decode(str(SHARED / "E"), frame("step_00022.png")).image.size == (512, 512)


# --- sizes -----------------------------------------------------------------------------------------------------------------------

sides = st.integers(min_value=1, max_value=70)


@settings(max_examples=120, deadline=None)
@given(have=st.tuples(sides, sides), want=st.tuples(sides, sides), how=st.sampled_from(["pad", "crop", "stretch"]), even=st.booleans())
def test_fit_gives_the_size_that_was_asked_for(have: tuple[int, int], want: tuple[int, int], how: str, *, even: bool) -> None:
    """Row 12: exactly that size, or with `even` the next even one; a plain image stays plain apart from bars."""
    fitted = frames.fit(Image.new("RGB", have, (200, 100, 50)), want, how, even=even)
    assert fitted.mode == "RGB"
    assert fitted.size == ((want[0] + want[0] % 2, want[1] + want[1] % 2) if even else want)
    colours = {colour for _, colour in fitted.getcolors(100_000) or []}
    assert colours <= ({(200, 100, 50), (0, 0, 0)} if how == "pad" else {(200, 100, 50)})
    assert (200, 100, 50) in colours


def test_fit_leaves_an_image_of_that_size_alone() -> None:
    """Nothing is resampled that need not be."""
    image = noise()
    for how in ("pad", "crop", "stretch"):
        assert frames.fit(image, image.size, how) is image


def test_pad_centres_between_black_bars() -> None:
    """The whole picture, its shape kept."""
    fitted = frames.fit(Image.new("RGB", (20, 10), "white"), (20, 20), "pad")
    assert fitted.getbbox() == (0, 5, 20, 15)


def test_crop_keeps_the_middle() -> None:
    """Both sides lose the same."""
    image = Image.new("RGB", (30, 10), "red")
    image.paste((0, 0, 255), (10, 0, 20, 10))
    assert frames.fit(image, (10, 10), "crop").getcolors() == [(100, (0, 0, 255))]


def test_even_repeats_the_last_row_and_column() -> None:
    """Row 12: no pixel of an odd picture is lost or mixed."""
    image = noise((5, 3))
    fitted = frames.fit(image, (5, 3), "pad", even=True)
    assert fitted.size == (6, 4)
    assert fitted.crop((0, 0, 5, 3)).tobytes() == image.tobytes()
    assert fitted.crop((5, 0, 6, 3)).tobytes() == image.crop((4, 0, 5, 3)).tobytes()
    assert fitted.crop((0, 3, 6, 4)).tobytes() == fitted.crop((0, 2, 6, 3)).tobytes()


def test_fit_knows_its_ways() -> None:
    """A misspelled way is a mistake of the program."""
    with pytest.raises(ValueError, match="pad, crop or stretch"):
        frames.fit(noise(), (8, 8), "squeeze")


@pytest.mark.parametrize("size", [(64, 48), (17, 31), (512, 768), (100, 10), (32, 32), (8, 8), (33, 513), (1000, 600)])
def test_thumbnails_are_what_ffmpeg_makes_of_the_video(tmp_path: Path, each_ffmpeg: str, size: tuple[int, int]) -> None:
    """A lossless video of the picture and the picture itself have the same thumbnail, within a level."""
    image = noise(size, seed=3) if size[0] % 3 else Image.blend(noise(size), smooth(size), 0.6)
    video = str(tmp_path / "v.mkv")
    colours = "scale=out_color_matrix=bt709:out_range=tv:flags=bicubic+accurate_rnd,format=yuv444p"
    encode = [
        each_ffmpeg,
        "-v",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        f"{size[0]}x{size[1]}",
        "-i",
        "-",
        "-vf",
        colours,
        "-c:v",
        "ffv1",
    ]
    subprocess.run([*encode, "-colorspace", "bt709", "-color_range", "tv", video], input=image.tobytes(), check=True)
    read = [each_ffmpeg, "-v", "error", "-i", video, "-vf", "scale=32:32:flags=area,format=yuv420p", "-f", "rawvideo", "-"]
    theirs = subprocess.run(read, capture_output=True, check=True).stdout[:1024]
    ours = frames.thumbnail(image)
    assert len(ours) == len(theirs) == 1024
    difference = [abs(a - b) for a, b in zip(ours, theirs, strict=True)]
    assert max(difference) <= 1
    assert sum(difference) / 1024 < 0.5


@settings(max_examples=60, deadline=None)
@given(size=st.tuples(st.integers(min_value=1, max_value=300), st.integers(min_value=1, max_value=300)))
def test_a_thumbnail_keeps_brightness_at_any_size(size: tuple[int, int]) -> None:
    """White is 235 and black 16 everywhere, however odd the size."""
    assert frames.thumbnail(Image.new("RGB", size, "white")) == bytes([235]) * 1024
    assert frames.thumbnail(Image.new("RGB", size, "black")) == bytes([16]) * 1024
