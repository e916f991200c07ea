"""Tags in finished animations: written into gif, webp and apng, where ffmpeg drops them, and read back from every container.

Nothing is encoded again: a new block is put in and the rest copied as it is, 64 KiB at a time, so that neither pixels nor delays can change.

| container | the readable text (``parameters``, else ``description``) | the other tags |
| gif | a comment block | JSON in an application block named ``stepwatch.1`` |
| webp | EXIF UserComment, as AUTOMATIC1111 writes it | ``prompt:`` and ``workflow:`` under Model and Make, as ComfyUI does; JSON under DocumentName |
| apng | one iTXt chunk for each tag, under its own name, short ones before the pixels | |
| mp4, mov, webm | written by ffmpeg itself, from core.metadata.ffmetadata | |
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
import struct
import subprocess
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from typing import BinaryIO

from stepwatch import system
from stepwatch.core.metadata import exif_text, exif_texts, parse_exif, parse_ffmetadata, png_text, user_comment
from stepwatch.errors import EnvironmentFault, VerifyError

_BLOCK = 1 << 16
_MAX_TAGS = 64 << 20
"""Bytes of tags that are read from one file."""
_MAX_BLOCKS = 1_000_000
_READ_SECONDS = 30

_PNG = b"\x89PNG\r\n\x1a\n"
_EARLY = 1500
"""Bytes of text that stand before an apng's pixels, where every reader looks; the rest comes behind them. ffmpeg tells an apng from a still
picture by its first 2 KiB, and there it wants to see the first pixels."""
_GIF_NAME = b"stepwatch.1"
_DOCUMENT_NAME, _DESCRIPTION, _MAKE, _MODEL, _SOFTWARE, _DATE, _ARTIST = 0x010D, 0x010E, 0x010F, 0x0110, 0x0131, 0x0132, 0x013B
_DETAILS, _USER_COMMENT = 0x8769, 0x9286


class _Malformed(Exception):
    """What is wrong with a file, in plain words."""


# --- writing ---------------------------------------------------------------------------------------------------------------------


def embed(path: Path, kind: str, tags: Mapping[str, str], destination: Path, *, duration: Fraction | None = None) -> None:
    """Copy an animation and put tags into the copy; ``read`` gives them back.

    *kind* is gif, webp or apng. *duration*, seconds, is how long a webp shall last: ffmpeg only guesses how long its last picture shows.
    Raises VerifyError when the file is not a whole one of its kind, EnvironmentFault when the disk is at fault; no copy is left then.
    """
    writers: dict[str, Callable[[BinaryIO, Mapping[str, str], BinaryIO], None]] = {
        "gif": _embed_gif,
        "webp": functools.partial(_embed_webp, duration=duration),
        "apng": _embed_apng,
    }
    try:
        with path.open("rb") as source, destination.open("xb") as target:
            try:
                writers[kind](source, tags, target)
            except BaseException:
                destination.unlink()
                raise
    except _Malformed as error:
        raise VerifyError(f"{path.name} is not a whole {kind}: {error}") from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.ESTALE):
            raise EnvironmentFault(f"the tags of {destination.name} cannot be written: {error.strerror}") from error
        raise VerifyError(f"the tags of {destination.name} cannot be written: {error.strerror or error}") from error


def _take(source: BinaryIO, count: int) -> bytes:
    data = source.read(count)
    if len(data) < count:
        raise _Malformed("it ends too early")
    return data


def _copy(source: BinaryIO, target: BinaryIO, count: int | None = None) -> None:
    """Copy so many bytes, or all that are left."""
    while count is None or count > 0:
        block = source.read(_BLOCK if count is None else min(_BLOCK, count))
        if not block:
            if count:
                raise _Malformed("it ends too early")
            return
        target.write(block)
        if count is not None:
            count -= len(block)


def _split(tags: Mapping[str, str], *, apart: tuple[str, ...] = ()) -> tuple[str, str]:
    """Return the text for people and for readers of prompts, and all other tags as one line of JSON that also says which tag the text is."""
    comment = next((key for key in ("parameters", "description") if tags.get(key)), None)
    others = {key: value for key, value in tags.items() if key != comment and key not in apart}
    return tags[comment] if comment else "", json.dumps({"comment": comment, "tags": others}, separators=(",", ":"))


def _joined(comment: str, line: str) -> dict[str, str]:
    """Undo ``_split``; a line of somebody else's, or none, leaves the comment a comment."""
    tags: dict[str, str] = {}
    with contextlib.suppress(ValueError, RecursionError):
        stored = json.loads(line)
        if isinstance(stored, dict) and isinstance(stored.get("tags"), dict):
            tags = {key: value for key, value in stored["tags"].items() if isinstance(value, str)}
            if comment and isinstance(stored.get("comment"), str):
                tags[stored["comment"]] = comment
            return tags
    return {"comment": comment} if comment else {}


# --- gif -------------------------------------------------------------------------------------------------------------------------


def _embed_gif(source: BinaryIO, tags: Mapping[str, str], target: BinaryIO) -> None:
    start = _gif_start(source)
    source.seek(-1, 2)
    if source.read(1) != b"\x3b":
        raise _Malformed("its end mark is missing")
    source.seek(len(start))
    target.write(b"GIF89a" + start[6:])  # comments came with this version
    # Some players look for the number of loops in the very first block only: it keeps its place.
    position = source.tell()
    while (head := source.read(14)) in (b"\x21\xff\x0bNETSCAPE2.0", b"\x21\xff\x0bANIMEXTS1.0"):
        target.write(head)
        target.writelines(bytes([len(block)]) + block for block in _sub_blocks(source))
        target.write(b"\0")
        position = source.tell()
    source.seek(position)
    comment, line = _split(tags)
    if comment:
        target.write(b"\x21\xfe" + _as_sub_blocks(comment.encode("utf-8")))
    target.write(b"\x21\xff\x0b" + _GIF_NAME + _as_sub_blocks(line.encode("ascii")))
    _copy(source, target)


def _gif_start(source: BinaryIO) -> bytes:
    """Return the header, the screen's description and its colours."""
    start = _take(source, 13)
    if start[:6] not in (b"GIF87a", b"GIF89a"):
        raise _Malformed("it does not begin like one")
    return start + _take(source, 3 << (start[10] & 7) + 1) if start[10] & 0x80 else start


def _sub_blocks(source: BinaryIO) -> Iterator[bytes]:
    while size := _take(source, 1)[0]:
        yield _take(source, size)


def _as_sub_blocks(data: bytes) -> bytes:
    return b"".join(bytes([len(part)]) + part for part in (data[at : at + 255] for at in range(0, len(data), 255))) + b"\0"


def _read_gif(source: BinaryIO) -> dict[str, str]:
    _gif_start(source)
    comments: list[bytes] = []
    line = b""
    size = 0
    while _take(source, 1) == b"\x21":  # until the first picture
        label = _take(source, 1)
        body: list[bytes] = []
        for block in _sub_blocks(source):
            size += len(block)
            if size > _MAX_TAGS:
                raise _Malformed("its blocks are too large")
            body.append(block)
        if label == b"\xfe":
            comments.append(b"".join(body))
        elif label == b"\xff" and body and body[0] == _GIF_NAME:
            line = b"".join(body[1:])
    return _joined(comments[0].decode("utf-8", "replace") if comments else "", line.decode("utf-8", "replace"))


# --- webp ------------------------------------------------------------------------------------------------------------------------


def _embed_webp(source: BinaryIO, tags: Mapping[str, str], target: BinaryIO, *, duration: Fraction | None = None) -> None:
    chunks = [chunk for chunk in _webp_chunks(source) if chunk[0] not in (b"EXIF", b"VP8X")]
    last, lasts = _last_picture(source, chunks, duration)
    header = _webp_header(source)
    exif = _exif(tags)
    body = sum(8 + size + size % 2 for _, _, size in chunks)
    size = 4 + 8 + len(header) + body + 8 + len(exif) + len(exif) % 2
    if size > 0xFFFFFFFE:
        raise _Malformed("it is too large for tags")
    target.write(b"RIFF" + struct.pack("<I", size) + b"WEBPVP8X" + struct.pack("<I", len(header)) + header)
    written = False
    for kind, position, length in chunks:
        if kind == b"XMP " and not written:  # the order of the standard: EXIF, then XMP
            target.write(_riff_chunk(b"EXIF", exif))
            written = True
        source.seek(position)
        target.write(struct.pack("<4sI", kind, length))
        if position == last:
            target.write(_take(source, _ANMF_DURATION) + lasts.to_bytes(3, "little"))
            source.seek(3, os.SEEK_CUR)
            _copy(source, target, length - _ANMF_DURATION - 3)
        else:
            _copy(source, target, length)
        target.write(b"\0" * (length % 2))
    if not written:
        target.write(_riff_chunk(b"EXIF", exif))


_ANMF_DURATION = 12
"""Where an ANMF block (RFC 9649, 2.7.1.2) has the 24 bits that say for how many milliseconds its picture shows."""


def _last_picture(source: BinaryIO, chunks: list[tuple[bytes, int, int]], duration: Fraction | None) -> tuple[int | None, int]:
    """Return where the last picture of an animation lies and for how many milliseconds it must show so that all of it takes *duration*."""
    pictures = [position for name, position, length in chunks if name == b"ANMF" and length > _ANMF_DURATION + 3]
    if duration is None or not pictures:
        return None, 0
    spent = 0
    for position in pictures[:-1]:
        source.seek(position + _ANMF_DURATION)
        spent += int.from_bytes(_take(source, 3), "little")
    return pictures[-1], min(max(round(duration * 1000) - spent, 1), 0xFFFFFF)


def _riff_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(body)) + body + b"\0" * (len(body) % 2)


def _webp_chunks(source: BinaryIO) -> list[tuple[bytes, int, int]]:
    """Return name, position and length of every chunk's body, and prove that all of them are there."""
    source.seek(0, 2)
    there = source.tell()
    source.seek(0)
    riff, size, kind = struct.unpack("<4sI4s", _take(source, 12))
    if riff != b"RIFF" or kind != b"WEBP":
        raise _Malformed("it does not begin like one")
    if size + 8 > there:
        raise _Malformed("it ends too early")
    chunks: list[tuple[bytes, int, int]] = []
    position = 12
    while position + 8 <= size + 8:
        source.seek(position)
        name, length = struct.unpack("<4sI", _take(source, 8))
        if position + 8 + length > size + 8:
            raise _Malformed(f"its {name.decode('latin-1')!r} block ends too early")
        chunks.append((name, position + 8, length))
        if len(chunks) > _MAX_BLOCKS:
            raise _Malformed("it has too many blocks")
        position += 8 + length + length % 2
    if not chunks or chunks[0][0] not in (b"VP8X", b"VP8 ", b"VP8L"):
        raise _Malformed("it holds no picture")
    return chunks


def _webp_header(source: BinaryIO) -> bytes:
    """Return the body of the extended header with the mark for EXIF; a simple file gets one made from the size of its picture."""
    source.seek(12)
    kind, length = struct.unpack("<4sI", _take(source, 8))
    if kind == b"VP8X":
        body = _take(source, max(length, 10))[:10]
        return bytes([body[0] | 0x08]) + body[1:]
    body = _take(source, 10)
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        width, height, alpha = bits & 0x3FFF, bits >> 14 & 0x3FFF, bits >> 28 & 1  # both are one less than the size, as the header wants them
    else:
        width, height, alpha = (int.from_bytes(body[6:8], "little") & 0x3FFF) - 1, (int.from_bytes(body[8:10], "little") & 0x3FFF) - 1, 0
    if width < 0 or height < 0:
        raise _Malformed("its picture has no size")
    return bytes([0x08 | alpha << 4, 0, 0, 0]) + width.to_bytes(3, "little") + height.to_bytes(3, "little")


def _exif(tags: Mapping[str, str]) -> bytes:
    """Write an EXIF block: big endian throughout, as many readers take UserComment for UTF-16 of that order whatever the block says."""
    comment, line = _split(tags, apart=("prompt", "workflow"))
    texts = {
        _DOCUMENT_NAME: "stepwatch:" + line,
        _DESCRIPTION: tags.get("title", ""),
        _MAKE: f"workflow:{tags['workflow']}" if tags.get("workflow") else "",
        _MODEL: f"prompt:{tags['prompt']}" if tags.get("prompt") else "",
        _SOFTWARE: tags.get("software", ""),
        _DATE: _exif_date(tags.get("date", "")),
        _ARTIST: tags.get("artist", ""),
    }
    entries = [(tag, 2, text.encode("utf-8") + b"\0") for tag, text in texts.items() if text]
    details = [(_USER_COMMENT, 7, b"UNICODE\0" + comment.encode("utf-16-be"))] if comment else []
    first = 8
    second = first + _ifd_size([*entries, (_DETAILS, 4, b"\0" * 4)] if details else entries)
    if details:
        entries.append((_DETAILS, 4, struct.pack(">I", second)))
    return b"MM\0*" + struct.pack(">I", first) + _ifd(entries, first) + (_ifd(details, second) if details else b"")


def _exif_date(text: str) -> str:
    found = re.match(r"(\d{4})-(\d\d)-(\d\d)[Tt ](\d\d:\d\d:\d\d)", text)
    return "{}:{}:{} {}".format(*found.groups()) if found else ""


def _ifd_size(entries: list[tuple[int, int, bytes]]) -> int:
    return 6 + 12 * len(entries) + sum(len(value) + len(value) % 2 for _, _, value in entries if len(value) > 4)


def _ifd(entries: list[tuple[int, int, bytes]], offset: int) -> bytes:
    """Write one folder of EXIF: its entries in the order of their tags, then the values that do not fit into an entry."""
    table, values = struct.pack(">H", len(entries)), b""
    behind = offset + 6 + 12 * len(entries)
    for tag, kind, value in sorted(entries):
        count = len(value) // 4 if kind == 4 else len(value)
        if len(value) <= 4:
            table += struct.pack(">HHI", tag, kind, count) + value.ljust(4, b"\0")
        else:
            table += struct.pack(">HHII", tag, kind, count, behind + len(values))
            values += value + b"\0" * (len(value) % 2)
    return table + b"\0" * 4 + values


def _read_webp(source: BinaryIO) -> dict[str, str]:
    for kind, position, length in _webp_chunks(source):
        if kind == b"EXIF" and length <= _MAX_TAGS:
            source.seek(position)
            return _tags_of_exif(_take(source, length))
    return {}


def _tags_of_exif(data: bytes) -> dict[str, str]:
    image, details = parse_exif(data)
    marked, _, line = exif_text(image.get(_DOCUMENT_NAME)).partition(":")
    if marked != "stepwatch":
        return exif_texts(data)
    # Ours say what they are; what they look like besides, a title that begins with "prompt:" or a description in braces, means nothing.
    told = {"prompt": exif_text(image.get(_MODEL)), "workflow": exif_text(image.get(_MAKE))}
    texts = {key: text.removeprefix(f"{key}:") for key, text in told.items() if text}
    return texts | _joined(user_comment(details.get(_USER_COMMENT)), line)


# --- apng ------------------------------------------------------------------------------------------------------------------------


def _embed_apng(source: BinaryIO, tags: Mapping[str, str], target: BinaryIO) -> None:
    last, end = b"", 0
    for kind, position, _ in _png_chunks(source):
        last, end = kind, position - 8
    if last != b"IEND":
        raise _Malformed("its end mark is missing")
    early, late = bytearray(), bytearray()
    for key, value in sorted(tags.items(), key=lambda tag: tag[0] != "parameters"):
        if value:
            body = b"iTXt" + key.encode("latin-1", "replace")[:79] + b"\0\0\0\0\0" + value.encode("utf-8")
            chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
            (early if len(early) + len(chunk) <= _EARLY else late).extend(chunk)
    source.seek(0)
    header = len(_PNG) + 25  # it has to stay the first chunk
    _copy(source, target, header)
    target.write(early)
    _copy(source, target, end - header)
    target.write(late)
    _copy(source, target)


def _png_chunks(source: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Yield name, position and length of every chunk's body up to the last one."""
    source.seek(0, 2)
    there = source.tell()
    source.seek(0)
    if _take(source, 8) != _PNG:
        raise _Malformed("it does not begin like one")
    position = len(_PNG)
    for number in range(_MAX_BLOCKS):
        source.seek(position)
        length, kind = struct.unpack(">I4s", _take(source, 8))
        if (number == 0) != (kind == b"IHDR" and length == 13):
            raise _Malformed("its header is not where it should be")
        if position + length + 12 > there:
            raise _Malformed("it ends too early")
        yield kind, position + 8, length
        if kind == b"IEND":
            return
        position += length + 12
    raise _Malformed("it has too many blocks")


def _read_png(source: BinaryIO) -> dict[str, str]:
    tags: dict[str, str] = {}
    size = 0
    for kind, position, length in _png_chunks(source):
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            size += length
            if size > _MAX_TAGS:
                break
            source.seek(position)
            found = png_text(kind, _take(source, length), _MAX_TAGS)
            if found:
                tags.setdefault(*found)
    return tags


# --- reading ---------------------------------------------------------------------------------------------------------------------


def read(path: Path, *, ffmpeg: str) -> dict[str, str]:
    """Return the tags of an animation under the names that they were written with; {} for a foreign, broken or missing file. Never raises."""
    with contextlib.suppress(Exception):  # whatever a foreign file does to a parser, it has no tags of ours
        with path.open("rb") as source:
            head = source.read(16)
            source.seek(0)
            if head.startswith(b"GIF8"):
                return _read_gif(source)
            if head.startswith(b"RIFF"):
                return _read_webp(source)
            if head.startswith(_PNG):
                return _read_png(source)
        # The demuxer is named by us: what says that it is a playlist would have ffmpeg open other files, or the network.
        if head[4:8] == b"ftyp":
            return _read_by_ffmpeg(path, "mov", ffmpeg)
        if head.startswith(b"\x1aE\xdf\xa3"):
            return _read_by_ffmpeg(path, "matroska", ffmpeg)
    return {}


def _read_by_ffmpeg(path: Path, demuxer: str, ffmpeg: str) -> dict[str, str]:
    command = [ffmpeg, "-nostdin", "-v", "error", "-protocol_whitelist", "file", "-f", demuxer, "-i", f"file:{path}", "-f", "ffmetadata", "-"]
    with tempfile.TemporaryFile() as output:
        with system.start(command, stdout=output, stderr=subprocess.DEVNULL) as process:
            try:
                code = process.wait(_READ_SECONDS)
            except subprocess.TimeoutExpired:
                system.end_group(process)
                return {}
        if code:
            return {}
        output.seek(0)
        tags = parse_ffmetadata(output.read(_MAX_TAGS).decode("utf-8", "replace"))
    # Where an mp4 has room for known names only (see core.metadata.apple_tags), the stamp is kept under another one.
    if "stepwatch" not in tags and tags.get("grouping", "").startswith('{"run":'):
        tags["stepwatch"] = tags.pop("grouping")
    return tags
