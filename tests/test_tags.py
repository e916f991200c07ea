"""Tags in finished animations: put in without touching a pixel, and read back from every container."""

from __future__ import annotations

import errno
import io
import json
import os
import struct
import subprocess
import tempfile
import tracemalloc
import zlib
from fractions import Fraction
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageSequence

from stepwatch import tags as tags_module
from stepwatch.core import metadata
from stepwatch.core.metadata import Facts, Identity, output_tags
from stepwatch.errors import EnvironmentFault, VerifyError
from stepwatch.tags import embed, read

Kind = Literal["gif", "webp", "apng"]
KINDS: tuple[Kind, ...] = ("gif", "webp", "apng")
INFOTEXT = "a cat, 猫 😀\nNegative prompt: 100% 'dog' \"x\"\nSteps: 20, Sampler: Euler a, Seed: 7"
FULL = output_tags(
    Facts(
        prompt="a cat, 猫 😀",
        seed=7,
        infotext=INFOTEXT,
        prompt_json='{"1": {"text": "é"}}',
        workflow='{"nodes": []}',
        created="2026-11-22T16:17:28.000Z",
    ),
    include="full",
    author="Ada",
    identity=Identity(run="r", generation="g" * 64, plan="p" * 64, version="0.1.0", frames=3),
)


def pictures(count: int = 5, size: tuple[int, int] = (24, 16)) -> list[Image.Image]:
    """A bar that moves over a plain ground."""
    made = []
    for number in range(count):
        image = Image.new("RGB", size, (10, 60, 120))
        ImageDraw.Draw(image).rectangle((number * 3, 4, number * 3 + 4, 11), fill=(250, 200, 40 * number))
        made.append(image)
    return made


def animation(path: Path, kind: Kind, *, count: int = 5) -> Path:
    """An animation that Pillow wrote, with a delay of its own for each picture."""
    first, *others = pictures(count)
    options: dict[str, object] = {"lossless": True} if kind == "webp" else {}
    first.save(
        path,
        {"apng": "PNG"}.get(kind, kind.upper()),
        save_all=True,
        append_images=others,
        duration=[100 + 20 * n for n in range(count)],
        loop=0,
        **options,
    )
    return path


def shown(path: Path) -> tuple[list[object], list[bytes]]:
    """Every delay and every pixel."""
    with Image.open(path) as image:
        # Pixels first: Pillow knows a webp's delays only when it has decoded them.
        frames = [(frame.convert("RGB").tobytes(), frame.info.get("duration")) for frame in ImageSequence.Iterator(image)]
        return [image.info.get("loop"), *(delay for _, delay in frames)], [pixels for pixels, _ in frames]


def decoded_by(ffmpeg: str, path: Path) -> bytes:
    """What ffmpeg makes of a file; it must not complain."""
    done = subprocess.run([ffmpeg, "-v", "error", "-xerror", "-i", str(path), "-f", "framemd5", "-"], capture_output=True, check=True)
    assert not done.stderr
    return done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_embedded_tags_are_read_back_and_nothing_else_changes(tmp_path: Path, kind: Kind) -> None:
    """Every tag comes back exactly; pictures, delays and loops are what they were."""
    plain = animation(tmp_path / "plain", kind)
    tagged = tmp_path / "tagged"
    embed(plain, kind, FULL, tagged)
    assert read(tagged, ffmpeg="no ffmpeg is needed") == FULL
    assert shown(tagged) == shown(plain)
    assert len(shown(tagged)[1]) == 5
    assert tagged.stat().st_size > plain.stat().st_size


@pytest.mark.parametrize("kind", ["gif", "apng"])
def test_ffmpeg_reads_what_was_embedded(tmp_path: Path, each_ffmpeg: str, kind: Kind) -> None:
    """Each ffmpeg decodes the copy to the same pictures at the same times as the original, without a word."""
    plain = animation(tmp_path / "plain.png", kind)
    embed(plain, kind, FULL, tmp_path / "tagged.png")
    assert decoded_by(each_ffmpeg, tmp_path / "tagged.png") == decoded_by(each_ffmpeg, plain)


@pytest.mark.parametrize("kind", KINDS)
def test_ffmpegs_own_files_take_tags(tmp_path: Path, ffmpeg: str, kind: Kind) -> None:
    """What ffmpeg encodes, not only what Pillow writes."""
    plain = tmp_path / f"plain.{kind}"
    codec = {"gif": "gif", "webp": "libwebp_anim", "apng": "apng"}[kind]
    source = ["-f", "lavfi", "-i", "testsrc=s=24x16:r=10:d=0.6"]
    subprocess.run([ffmpeg, "-v", "error", *source, "-c:v", codec, "-f", kind, str(plain)], check=True)
    embed(plain, kind, FULL, tmp_path / "tagged")
    assert read(tmp_path / "tagged", ffmpeg=ffmpeg) == FULL
    assert shown(tmp_path / "tagged") == shown(plain)
    assert len(shown(plain)[1]) == 6


@settings(max_examples=40, deadline=None)
@given(
    tags=st.dictionaries(
        st.sampled_from(["title", "description", "artist", "comment", "date", "software", "parameters", "prompt", "workflow", "stepwatch"]),
        st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40).map(metadata.clean).filter(bool),
    )
)
@example(tags={"title": "prompt:of nothing", "artist": "workflow:", "description": "{"})
def test_any_clean_tags_survive(tags: dict[str, str]) -> None:
    """Whatever the texts are, in all three kinds."""
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            plain = animation(Path(folder) / f"plain.{kind}", kind, count=2)
            tagged = Path(folder) / f"tagged.{kind}"
            embed(plain, kind, tags, tagged)
            assert read(tagged, ffmpeg="") == tags


def test_gif_comments_are_for_readers_of_prompts(tmp_path: Path) -> None:
    """The comment is the infotext alone, as Pillow gives it to those who paste it back; the rest does not get into their way."""
    embed(animation(tmp_path / "plain", "gif"), "gif", FULL, tmp_path / "tagged")
    with Image.open(tmp_path / "tagged") as image:
        assert image.info["comment"].decode() == INFOTEXT
        assert image.info["loop"] == 0


def test_webp_tags_are_where_others_look(tmp_path: Path) -> None:
    """UserComment as AUTOMATIC1111 writes it, Model and Make as ComfyUI does, title, artist and date in their own places."""
    embed(animation(tmp_path / "plain", "webp"), "webp", FULL, tmp_path / "tagged")
    with Image.open(tmp_path / "tagged") as image:
        exif = image.getexif()
        comment = exif.get_ifd(0x8769)[0x9286]
    assert comment == b"UNICODE\0" + INFOTEXT.encode("utf-16-be")
    assert exif[0x010F] == "workflow:" + FULL["workflow"]
    assert exif[0x0110].encode("latin-1").decode() == "prompt:" + FULL["prompt"]
    assert exif[0x013B] == "Ada"
    assert exif[0x0132] == "2026:11:22 16:17:28"


def test_apng_tags_are_png_texts(tmp_path: Path) -> None:
    """One iTXt for each key, before the pixels."""
    embed(animation(tmp_path / "plain", "apng"), "apng", FULL, tmp_path / "tagged")
    with Image.open(tmp_path / "tagged") as image:
        assert {key: image.info[key] for key in FULL} == FULL


@pytest.mark.parametrize("kind", KINDS)
def test_private_tags_leave_no_prompt(tmp_path: Path, kind: Kind) -> None:
    """Without parameters the description is the readable text; with the stamp alone there is none."""
    plain = animation(tmp_path / "plain", kind)
    for number, wanted in enumerate(({"description": "seed 7", "stepwatch": FULL["stepwatch"]}, {"stepwatch": FULL["stepwatch"]}, {})):
        tagged = tmp_path / f"tagged{number}"
        embed(plain, kind, wanted, tagged)
        assert read(tagged, ffmpeg="") == wanted
        if kind == "gif":
            with Image.open(tagged) as image:
                assert image.info.get("comment", b"").decode() == wanted.get("description", "")


@pytest.mark.parametrize("alpha", ["", "alpha"])
@pytest.mark.parametrize("lossless", ["", "lossless"])
def test_a_single_webp_picture_takes_tags(tmp_path: Path, lossless: str, alpha: str) -> None:
    """A webp of one picture has no extended header: it gets one with the right size and alpha."""
    image = pictures(1, (25, 17))[0].convert("RGBA" if alpha else "RGB")
    if alpha:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    image.save(tmp_path / "plain.webp", lossless=bool(lossless))
    embed(tmp_path / "plain.webp", "webp", FULL, tmp_path / "tagged.webp")
    with Image.open(tmp_path / "plain.webp") as before, Image.open(tmp_path / "tagged.webp") as after:
        assert (after.size, after.mode, after.tobytes()) == (before.size, before.mode, before.tobytes())
    assert read(tmp_path / "tagged.webp", ffmpeg="") == FULL


def test_tags_that_a_webp_has_are_replaced(tmp_path: Path) -> None:
    """Embedding again does not pile up; XMP stays, behind EXIF."""
    image = pictures(1)[0]
    image.save(tmp_path / "plain.webp", exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0", xmp=b"<x:xmpmeta/>")
    embed(tmp_path / "plain.webp", "webp", {"title": "one"}, tmp_path / "one.webp")
    embed(tmp_path / "one.webp", "webp", {"title": "two"}, tmp_path / "two.webp")
    assert read(tmp_path / "two.webp", ffmpeg="") == {"title": "two"}
    data = (tmp_path / "two.webp").read_bytes()
    assert data.count(b"EXIF") == 1
    assert 0 < data.index(b"EXIF") < data.index(b"XMP ")
    with Image.open(tmp_path / "two.webp") as after:
        assert after.info["xmp"] == b"<x:xmpmeta/>"


def test_an_old_gif_gets_the_version_that_has_comments(tmp_path: Path) -> None:
    """GIF87a knows no blocks beside pictures; its screen may have no colours of its own."""
    buffer = io.BytesIO()
    pictures(1)[0].quantize(4).save(buffer, "GIF")
    (tmp_path / "plain.gif").write_bytes(b"GIF87a" + buffer.getvalue()[6:])
    embed(tmp_path / "plain.gif", "gif", FULL, tmp_path / "tagged.gif")
    assert (tmp_path / "tagged.gif").read_bytes().startswith(b"GIF89a")
    assert read(tmp_path / "tagged.gif", ffmpeg="") == FULL
    assert shown(tmp_path / "tagged.gif")[1] == shown(tmp_path / "plain.gif")[1]


def test_the_last_picture_of_a_webp_shows_as_long_as_it_should(tmp_path: Path) -> None:
    """ffmpeg guesses how long the last picture shows: with a duration given, all pictures together take exactly that."""
    plain = animation(tmp_path / "plain", "webp")  # 100, 120, 140, 160 and 180 ms
    embed(plain, "webp", FULL, tmp_path / "tagged", duration=Fraction(3, 2))
    delays, pixels = shown(tmp_path / "tagged")
    assert delays[1:] == [100, 120, 140, 160, 980]
    assert pixels == shown(plain)[1]
    assert read(tmp_path / "tagged", ffmpeg="") == FULL


# --- faults ----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_broken_file_takes_no_tags(tmp_path: Path, kind: Kind) -> None:
    """A file that is cut, empty, or of another kind is refused in words, and no copy is left behind."""
    whole = animation(tmp_path / "whole", kind).read_bytes()
    for number, data in enumerate((b"", whole[:5], whole[:40], whole[: len(whole) // 2], whole[:-1], b"text" * 50, b"\xff\xd8\xff" + whole)):
        broken = tmp_path / f"broken{number}"
        broken.write_bytes(data)
        with pytest.raises(VerifyError, match=rf"^broken{number} is not a whole {kind}: "):
            embed(broken, kind, FULL, tmp_path / "copy")
        assert not (tmp_path / "copy").exists()


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    """The destination is a new file, or an error."""
    plain = animation(tmp_path / "plain", "gif")
    (tmp_path / "there").write_bytes(b"precious")
    with pytest.raises(VerifyError):
        embed(plain, "gif", FULL, tmp_path / "there")
    assert (tmp_path / "there").read_bytes() == b"precious"


def test_a_full_disk_is_not_the_runs_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC becomes an EnvironmentFault, and the half copy goes."""

    def fail(*args: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(tags_module, "_copy", fail)
    with pytest.raises(EnvironmentFault, match="No space left"):
        embed(animation(tmp_path / "plain", "gif"), "gif", FULL, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@settings(max_examples=120, deadline=None)
@given(
    start=st.sampled_from(
        [
            b"GIF89a\x10\0\x10\0\0\0\0!\xff\x0bstepwatch.1",
            b"GIF89a",
            b"RIFF\x30\0\0\0WEBPVP8X",
            b"\x89PNG\r\n\x1a\n",
            b"\0\0\0\x18ftypisom",
            b"\x1aE\xdf\xa3",
            b"",
        ]
    ),
    rest=st.binary(max_size=80),
)
def test_reading_junk_is_no_tags(start: bytes, rest: bytes) -> None:
    """No file of any content makes `read` raise."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "f"
        path.write_bytes(start + rest)
        assert "stepwatch" not in read(path, ffmpeg="/nonexistent/ffmpeg")


def test_what_is_no_file_has_no_tags(tmp_path: Path) -> None:
    """A missing file and a folder."""
    assert read(tmp_path / "gone", ffmpeg="") == {}
    assert read(tmp_path, ffmpeg="") == {}


def test_foreign_files_have_their_own_tags_only(tmp_path: Path) -> None:
    """A comment of somebody else's is a comment; nothing of it becomes ours."""
    first, *others = pictures(3)
    first.save(tmp_path / "f.gif", save_all=True, append_images=others, comment=b"made by hand")
    assert read(tmp_path / "f.gif", ffmpeg="") == {"comment": "made by hand"}


def test_a_playlist_is_not_followed(tmp_path: Path, ffmpeg: str) -> None:
    """A file that would have ffmpeg open others has no tags."""
    for text in ("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/x.ts\n", "ffconcat version 1.0\nfile other.mp4\n"):
        (tmp_path / "f.mp4").write_text(text)
        assert read(tmp_path / "f.mp4", ffmpeg=ffmpeg) == {}


@pytest.mark.parametrize("kind", KINDS)
def test_embedding_needs_no_memory_for_the_file(tmp_path: Path, kind: Kind) -> None:
    """A file of many megabytes is copied in small blocks."""
    plain = animation(tmp_path / "plain", kind)
    data = plain.read_bytes()
    padding = bytes(20_000_000)
    if kind == "gif":
        blocks = (b"\xff" + bytes(255)) * 80_000
        data = data[:-1] + b"\x21\xfe" + blocks + b"\0" + b"\x3b"
    elif kind == "webp":
        data += b"ABCD" + struct.pack("<I", len(padding)) + padding
        data = data[:4] + struct.pack("<I", len(data) - 8) + data[8:]
    else:
        data = data[:-12] + struct.pack(">I", len(padding)) + b"abCd" + padding + struct.pack(">I", zlib.crc32(b"abCd" + padding)) + data[-12:]
    plain.write_bytes(data)
    del data
    tracemalloc.start()
    embed(plain, kind, FULL, tmp_path / "tagged")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000
    assert read(tmp_path / "tagged", ffmpeg="") == FULL


# --- through ffmpeg --------------------------------------------------------------------------------------------------------------

CONTAINERS = {
    "mp4 keys": ("mp4", "mpeg4", ["-movflags", "use_metadata_tags+faststart"]),
    "mp4 apple": ("mp4", "mpeg4", ["-movflags", "faststart"]),
    "mov": ("mov", "mpeg4", ["-movflags", "use_metadata_tags+faststart"]),
    "webm": ("webm", "libvpx", []),
}
HARD = {
    "title": "a 'q' \"dq\" 100% = ; # \\",
    "description": "; lead\n# two\n[STREAM]\nkey=value\n\n\\\\\n\\",
    "artist": "日本 😀",
    "album_artist": "[CHAPTER]",
    "comment": "tab\there \\n no newline",
    "date": "2026-11-22T10:00:00.123Z",
    "software": "stepwatch 1",
    "parameters": "é" * 150_000 + "\n\nend\\",
    "prompt": '{"1": {"text": "a\\nb"}}',
    "workflow": "#;=",
    "stepwatch": FULL["stepwatch"],
}


def muxed(ffmpeg: str, folder: Path, container: str, tags: dict[str, str]) -> dict[str, str]:
    """Write a clip with these tags and return what is read of it."""
    suffix, codec, flags = CONTAINERS[container]
    if container == "mp4 apple":
        tags = metadata.apple_tags(tags)
    source = folder / "tags.txt"
    source.write_bytes(metadata.ffmetadata(tags).encode())
    clip = folder / f"100%d [x] 'clip'.{suffix}"
    inputs = ["-f", "lavfi", "-i", "color=s=32x32:r=10:d=0.2", "-f", "ffmetadata", "-i", str(source)]
    subprocess.run([ffmpeg, "-v", "error", "-y", *inputs, "-map", "0:v", "-map_metadata", "1", "-c:v", codec, *flags, str(clip)], check=True)
    return read(clip, ffmpeg=ffmpeg)


@pytest.mark.parametrize("container", CONTAINERS)
def test_tags_go_through_ffmpeg_unchanged(tmp_path: Path, each_ffmpeg: str, container: str) -> None:
    """Row 21: quotes, line feeds, what ends a line or begins a section in ffmpeg's format, a last backslash, emoji, 300 kB."""
    got = muxed(each_ffmpeg, tmp_path, container, HARD)
    wanted = HARD if container != "mp4 apple" else {key: HARD[key] for key in (*metadata.APPLE_KEYS, "stepwatch")}
    assert {key: got.get(key) for key in wanted} == wanted
    ours = set(got) - {"major_brand", "minor_version", "compatible_brands", "encoder"}
    assert ours == set(wanted)


@settings(max_examples=6, deadline=None)
@given(
    texts=st.lists(
        (st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=60) | st.text(alphabet="\\=;#\n[]a '\"%", max_size=20))
        .map(metadata.clean)
        .filter(bool),
        min_size=3,
        max_size=3,
    )
)
def test_any_clean_text_goes_through_ffmpeg(ffmpeg: str, texts: list[str]) -> None:
    """Whatever a prompt is, what ffmpeg stores is what was given to it."""
    tags = dict(zip(("title", "parameters", "comment"), texts, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        for container in ("mp4 keys", "webm"):
            got = muxed(ffmpeg, Path(folder), container, tags)
            assert {key: got.get(key) for key in tags} == tags


def test_the_stamp_is_found_in_every_container(tmp_path: Path, ffmpeg: str) -> None:
    """A lost receipt costs a look: run, generation and plan can be read back wherever stepwatch writes."""
    for container in CONTAINERS:
        assert json.loads(muxed(ffmpeg, tmp_path, container, FULL)["stepwatch"])["generation"] == "g" * 64
