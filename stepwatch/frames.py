"""Pillow: what the frames of a run are, and their pixels, one frame at a time.

Two looks at a frame. ``survey`` reads headers and hopes; ``decode`` reads every byte and proves. Both walk PNG, JPEG and WebP themselves before
Pillow may look, because Pillow alone is too kind (it takes a JPEG without its end and a PNG without its last chunk) and too harsh (a huge text
chunk makes it refuse pixels that are fine). What Pillow then gets is known to be one picture, whole, and of a bearable size.

A frame is picked by content, whatever its name says, from PNG, JPEG, WebP, BMP and PPM. Plugins are called directly and not through
``Image.open``: nothing else can be picked, and no limit or warning filter that the whole process shares is touched.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import math
import os
import re
import stat
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.WebPImagePlugin import WebPImageFile

from stepwatch.core.metadata import exif_texts, parse_exif, png_text
from stepwatch.core.model import Frame, FrameFacts, Run, Survey
from stepwatch.core.naming import printable
from stepwatch.errors import EnvironmentFault, RunError

TOLD_BY = 3
"""Frames of a run that are searched to their end for texts."""
MAX_PIXELS = 160_000_000
"""Pixels of the largest frame that is decoded; a larger one is refused by its header."""
MAX_BYTES = 1 << 30
"""Bytes of the largest file that is read."""
KEPT = 8 << 20
"""Bytes of files that are kept from their digest to their decode: a run of twenty steps. To read more of them twice takes a fiftieth of the time in
which they are decoded, and the memory counts."""
THUMBNAIL = 32
"""Width and height of a thumbnail."""

_BLOCK = 1 << 16
_HEADER_BLOCK = 1 << 13
_MAX_TEXT = 4 << 20
_MAX_CHUNKS = 100_000
_KNOWN_FORMATS = "PNG, JPEG, WebP, BMP or PPM"
_MACHINE_ERRORS = frozenset(
    {
        errno.EIO,
        errno.ESTALE,
        errno.ENOTCONN,
        errno.ENODEV,
        errno.ETIMEDOUT,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)
"""What says that the disk, the mount or the machine is ill, not this frame."""


class UnreadableFrameError(EnvironmentFault):
    """The disk or the mount failed while it was to give a frame."""


class FrameError(RunError):
    """One frame cannot be used; ``name`` is the frame's name, ``reason`` why, in plain words."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"frame {printable(name)}: {reason}")
        self.name = name
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Decoded:
    """A frame that was read whole and decoded whole."""

    image: Image.Image
    """RGB, 8 bits, upright, enlarged by the scale that was asked for."""
    digest: str
    """SHA-256 of the file's bytes, the ones that were decoded, in hexadecimal."""


class _Unusable(Exception):
    """Why a file cannot be used as a frame, in plain words."""


@dataclass(slots=True, kw_only=True)
class _Header:
    """What the start of an image file says."""

    format: str
    width: int
    height: int
    mode: str
    exif: bytes = b""
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def orientation(self) -> int:
        """EXIF orientation 1..8; whatever cannot be read is upright."""
        value = parse_exif(self.exif)[0].get(0x0112)
        return value if isinstance(value, int) and value in _UPRIGHT else 1


_UPRIGHT: Mapping[int, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what turns the picture upright."""


# --- files -----------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(folder: str, name: str, *, buffering: int = _BLOCK) -> Iterator[BinaryIO]:
    """Open a frame for reading, and never block: a FIFO, socket, device or folder is refused.

    A symbolic link to an ordinary file is as good as the file. Errors of the file system while the frame is being read are told apart here:
    those of the machine become EnvironmentFault, those of the frame FrameError.
    """
    path = os.path.join(folder, name)
    try:
        # A look before the open, because opening some devices does something; and one after it, because the name may have changed hands.
        _check_ordinary(os.stat(path), name)
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
        with open(descriptor, "rb", buffering=buffering) as file:
            _check_ordinary(os.fstat(descriptor), name)
            yield file
    except OSError as error:
        if error.errno in _MACHINE_ERRORS:
            raise UnreadableFrameError(f"frame {printable(name)} cannot be read: {error.strerror}") from error
        reasons = {errno.ENOENT: "is no longer there", errno.EACCES: "may not be read by this user", errno.ELOOP: "is a symbolic link to itself"}
        raise FrameError(name, reasons.get(error.errno or 0, f"cannot be read: {error.strerror or error}")) from error
    except ValueError as error:  # a NUL in the name
        raise FrameError(name, f"cannot be opened: {error}") from error


def _check_ordinary(status: os.stat_result, name: str) -> None:
    kinds: tuple[tuple[Callable[[int], bool], str], ...] = (
        (stat.S_ISDIR, "a folder"),
        (stat.S_ISFIFO, "a named pipe"),
        (stat.S_ISSOCK, "a socket"),
        (stat.S_ISCHR, "a device"),
        (stat.S_ISBLK, "a device"),
    )
    for is_kind, kind in kinds:
        if is_kind(status.st_mode):
            raise FrameError(name, f"is {kind}, not a file")
    if status.st_size == 0:
        raise FrameError(name, "is empty (0 bytes)")
    if status.st_size > MAX_BYTES:
        raise FrameError(name, f"is too large ({status.st_size} bytes, at most {MAX_BYTES})")


def read(folder: str, frame: Frame) -> bytes:
    """Return the bytes of a frame's file; raises FrameError or EnvironmentFault."""
    with _opened(folder, frame.name) as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise FrameError(frame.name, f"is too large (more than {MAX_BYTES} bytes)")
    return data


def digest(folder: str, frame: Frame) -> str:
    """Return the SHA-256 of a frame's file in hexadecimal, without holding the file in memory."""
    sha256 = hashlib.sha256()
    with _opened(folder, frame.name) as file:
        while block := file.read(_BLOCK):
            sha256.update(block)
    return sha256.hexdigest()


# --- headers ---------------------------------------------------------------------------------------------------------------------

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


Surveyed = tuple[FrameFacts, Mapping[str, str]]
"""What a frame's header says, and the texts in it."""


def survey(run: Run, known: Mapping[Frame, Surveyed] | None = None) -> Survey:
    """Read the header of every frame of a run; whatever is wrong with a frame, and that it is gone, is its ``problem``.

    ``texts`` comes from the first frame that has any. A clean survey is a hope: only ``decode`` proves a frame. *known* is what `survey_one` has said
    of some of them. Raises EnvironmentFault alone: a lost mount must not pass for a run whose frames are all damaged.
    """
    known = known or {}
    facts: list[FrameFacts] = []
    texts: Mapping[str, str] = {}
    for number, frame in enumerate(run.frames):
        one, found = known.get(frame) or survey_one(run, frame, number=number, texts=not texts)
        facts.append(one)
        texts = texts or found
    return Survey(facts=tuple(facts), texts=texts)


def survey_one(run: Run, frame: Frame, *, number: int, texts: bool = True) -> Surveyed:
    """The same of one frame, whose place in the run is *number*, counted from 0; *texts* are looked for when wanted."""
    try:
        with _opened(run.key.folder, frame.name, buffering=_HEADER_BLOCK) as file:
            # Some programs write their text behind the pixels. To look there costs a walk through the whole file: a few frames will tell.
            header = _read_header(file, texts=texts, to_the_end=number < TOLD_BY)
    except FrameError as error:
        return FrameFacts(frame=frame, problem=error.reason), {}
    except _Unusable as error:
        return FrameFacts(frame=frame, problem=str(error)), {}
    width, height = header.width, header.height
    if header.orientation >= 5:
        width, height = height, width
    return FrameFacts(frame=frame, width=width, height=height, mode=header.mode, format=header.format), header.texts


def _read_header(file: BinaryIO, *, texts: bool = False, to_the_end: bool = False) -> _Header:
    """Read as little of a file as says what picture it holds; raises _Unusable."""
    head = file.read(64)
    file.seek(0)
    if head.startswith(_PNG):
        header = _png_header(file, texts=texts, to_the_end=to_the_end)
    elif head.startswith(b"\xff\xd8\xff"):
        header = _jpeg_header(file)
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        header = _webp_header(file)
    elif head[:2] == b"BM" and len(head) >= 18 and struct.unpack_from("<I", head, 14)[0] in _BMP_HEADERS:
        header = _plugin_header(BmpImageFile, file)
    elif re.match(rb"P[1-6][\s#]", head):
        header = _plugin_header(PpmImageFile, file)
    else:
        raise _Unusable(_not_an_image(head))
    if header.width <= 0 or header.height <= 0:
        raise _Unusable(f"says that it is {header.width}x{header.height} pixels large")
    if header.width * header.height > MAX_PIXELS:
        raise _Unusable(f"is too large: {header.width}x{header.height} pixels, at most {MAX_PIXELS // 1_000_000} million are decoded")
    if texts and header.exif and not header.texts:
        header.texts = exif_texts(header.exif)
    return header


def _not_an_image(head: bytes) -> str:
    """Say what a file is instead of a frame."""
    if not head.strip(b"\0"):
        return "holds only zeros where an image should begin"
    names = (
        (b"#EXTM3U", "an HLS playlist"),
        (b"ffconcat", "a list of files for ffmpeg"),
        (b"%!PS", "a PostScript file"),
        (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
        (b"%PDF", "a PDF file"),
        (b"GIF8", "a GIF animation"),
        (b"II*\0", "a TIFF image"),
        (b"MM\0*", "a TIFF image"),
        (b"\x1aE\xdf\xa3", "a video"),
        (b"v/1\x01", "an OpenEXR image"),
    )
    for start, what in names:
        if head.startswith(start):
            return f"is {what}, not a single image ({_KNOWN_FORMATS})"
    if head[4:8] == b"ftyp":
        what = "an AVIF or HEIF image" if head[8:12] in (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1") else "a video"
        return f"is {what}; frames are {_KNOWN_FORMATS}"
    if all(byte >= 0x20 or byte in b"\t\r\n" for byte in head):
        return f"is text, not an image ({_KNOWN_FORMATS})"
    return f"is not an image that can be read ({_KNOWN_FORMATS})"


def _take(file: BinaryIO, count: int, what: str) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise _Unusable(f"is cut off in {what}")
    return data


def _png_header(file: BinaryIO, *, texts: bool, to_the_end: bool) -> _Header:
    """Walk the chunks of a PNG up to its pixels, passing over the bodies that nobody needs; beyond them only while no text was found."""
    file.seek(len(_PNG))
    length, kind = struct.unpack(">I4s", _take(file, 8, "its header"))
    if kind != b"IHDR" or length != 13:
        raise _Unusable("is a damaged PNG: it does not begin with its header")
    width, height, depth, colour = struct.unpack(">IIBB", _take(file, 17, "its header")[:10])
    if colour not in _PNG_MODES:
        raise _Unusable(f"is a damaged PNG: there is no colour type {colour}")
    mode = {(0, 16): "I;16", (0, 1): "1"}.get((colour, depth), _PNG_MODES[colour])
    header = _Header(format="PNG", width=width, height=height, mode=mode)
    pixels = False
    for _ in range(_MAX_CHUNKS):
        start = file.read(8)
        if len(start) < 8 or start[4:] == b"IEND":
            if pixels:
                return header  # whether the file is whole is for the decode to say
            raise _Unusable("is cut off before its pixels" if len(start) < 8 else "is a PNG without pixels")
        length, kind = struct.unpack(">I4s", start)
        after = file.tell() + length + 4
        if kind == b"IDAT":
            if not (texts and to_the_end) or header.texts:
                return header
            pixels = True
        elif kind == b"acTL" and struct.unpack(">I", _take(file, 4, "its header"))[0] > 1:
            raise _Unusable("is an animated PNG, not a single image")
        elif kind == b"eXIf" and not pixels and length <= _MAX_TEXT:
            header.exif = file.read(length)
        elif kind in (b"tEXt", b"zTXt", b"iTXt") and texts and length <= _MAX_TEXT:
            found = png_text(kind, file.read(length), _MAX_TEXT)
            if found and found[0] in ("parameters", "prompt", "workflow"):
                header.texts.setdefault(*found)
        file.seek(after)
    raise _Unusable(f"is a PNG of more than {_MAX_CHUNKS} chunks")


def _jpeg_header(file: BinaryIO) -> _Header:
    """Walk the segments of a JPEG up to its pixels."""
    file.seek(2)
    header: _Header | None = None
    exif = b""
    for _ in range(_MAX_CHUNKS):
        marker = _take(file, 2, "its header")
        while marker == b"\xff\xff":  # any number of fill bytes
            marker = b"\xff" + _take(file, 1, "its header")
        if marker[0] != 0xFF:
            raise _Unusable("is a damaged JPEG: its header does not add up")
        code = marker[1]
        if code == 0xD9:
            break
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            continue
        length = struct.unpack(">H", _take(file, 2, "its header"))[0] - 2
        if length < 0:
            raise _Unusable("is a damaged JPEG: its header does not add up")
        if code == 0xDA:
            if header is None:
                break
            header.exif = exif
            return header
        position = file.tell()
        if code in _START_OF_FRAME and header is None:
            _, height, width, components = struct.unpack(">BHHB", _take(file, 6, "its header"))
            mode = {1: "L", 3: "RGB", 4: "CMYK"}.get(components)
            if mode is None:
                raise _Unusable(f"is a JPEG of {components} colour components")
            header = _Header(format="JPEG", width=width, height=height, mode=mode)
        elif code == 0xE1 and not exif:
            body = file.read(length)
            exif = body if body.startswith(b"Exif\0\0") else b""
        file.seek(position + length)
    raise _Unusable("is a JPEG without pixels")


def _webp_header(file: BinaryIO) -> _Header:
    """Read the first chunk of a WebP, and of an extended one walk the others."""
    size = struct.unpack("<4sI4s", _take(file, 12, "its header"))[1]
    kind, length = struct.unpack("<4sI", _take(file, 8, "its header"))
    body = _take(file, min(length, 10), "its header").ljust(10, b"\0")
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", body[6:10])
        if body[3:6] != b"\x9d\x01\x2a":
            raise _Unusable("is a damaged WebP: its pixels do not begin as they should")
        return _Header(format="WEBP", width=width & 0x3FFF, height=height & 0x3FFF, mode="RGB")
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        if body[0] != 0x2F:
            raise _Unusable("is a damaged WebP: its pixels do not begin as they should")
        return _Header(format="WEBP", width=(bits & 0x3FFF) + 1, height=(bits >> 14 & 0x3FFF) + 1, mode="RGBA" if bits >> 28 & 1 else "RGB")
    if kind != b"VP8X":
        raise _Unusable("is a damaged WebP: it does not begin with its header")
    width, height = 1 + int.from_bytes(body[4:7], "little"), 1 + int.from_bytes(body[7:10], "little")
    header = _Header(format="WEBP", width=width, height=height, mode="RGBA" if body[0] & 0x10 else "RGB")
    if not body[0] & (0x02 | 0x08):  # neither animated nor with EXIF: nothing more to learn
        return header
    pictures = 0
    position = 20 + length + length % 2
    for _ in range(_MAX_CHUNKS):
        file.seek(position)
        start = file.read(8)
        if len(start) < 8 or position >= size + 8:
            break
        kind, length = struct.unpack("<4sI", start)
        pictures += kind == b"ANMF"
        if pictures > 1:
            raise _Unusable("is an animated WebP, not a single image")
        if kind == b"EXIF" and length <= _MAX_TEXT * 2:
            header.exif = file.read(length)
        position += 8 + length + length % 2
    return header


def _plugin_header(plugin: type[BmpImageFile | PpmImageFile], file: BinaryIO) -> _Header:
    try:
        image = plugin(file)
    except Exception as error:  # a plugin's constructor may raise nearly anything for foreign bytes
        raise _Unusable(f"is a damaged image: {_plain(error)}") from error
    return _Header(format=image.format or "", width=image.width, height=image.height, mode=image.mode)


def _plain(error: BaseException) -> str:
    """Return the first line of what Pillow said, or what kind of error it was."""
    text = str(error).strip().splitlines()
    return printable(text[0]) if text else type(error).__name__


# --- pixels ----------------------------------------------------------------------------------------------------------------------


def decode(folder: str, frame: Frame, *, scale: int = 1) -> Decoded:
    """Read a frame once, prove it whole, and return its pixels as people see them.

    Raises FrameError for everything that is wrong with the frame, EnvironmentFault when the disk or the machine is at fault.
    """
    with _opened(folder, frame.name) as file:
        return _decoded(_Source(file), frame, scale)


class Reader:
    """Reads the file of each frame of a folder once for both, its digest and its pixels.

    What a digest was taken of is kept until it is decoded: `KEPT` bytes at most, so memory does not grow with the number of frames. What finds no
    room is read again for its pixels, and digested again, for it may be another file by then.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._kept: dict[str, tuple[bytes, str]] = {}
        self._room = KEPT

    def digest(self, frame: Frame, *, keep: bool) -> str:
        """As `digest`; with *keep* its bytes are likely to be asked for."""
        if not keep or frame.size > self._room:
            return digest(self._folder, frame)
        sha256 = hashlib.sha256()
        with _opened(self._folder, frame.name, buffering=0) as file:
            data = file.read(frame.size)
            sha256.update(data)
            whole = len(data) == frame.size
            while block := file.read(_BLOCK):
                sha256.update(block)
                whole = False
        found = sha256.hexdigest()
        if whole:
            self._kept[frame.name] = data, found
            self._room -= len(data)
        return found

    def decode(self, frame: Frame, *, scale: int = 1) -> Decoded:
        """As `decode`; bytes that were kept are let go. Several threads may ask at once."""
        kept = self._kept.pop(frame.name, None)
        if kept is None:
            return decode(self._folder, frame, scale=scale)
        data, known = kept
        self._room += len(data)
        return _decoded(_Source(io.BytesIO(data), known), frame, scale)


def _decoded(source: _Source, frame: Frame, scale: int) -> Decoded:
    try:
        header = _read_header(source.file)
        if header.width * header.height * scale * scale > MAX_PIXELS:
            raise _Unusable(f"is too large: {header.width}x{header.height} pixels enlarged {scale} times")
        source.file.seek(0)
        pixels = _whole(source, header)
    except _Unusable as error:
        raise FrameError(frame.name, str(error)) from error
    sha256 = source.finish()
    try:
        image = _to_rgb(_load(pixels, header), header)
        orientation = header.orientation
        if orientation in _UPRIGHT:
            image = image.transpose(_UPRIGHT[orientation])
        if scale > 1:
            image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC)
    except MemoryError as error:
        raise FrameError(frame.name, f"does not fit into memory ({header.width}x{header.height} pixels)") from error
    except _Unusable as error:
        raise FrameError(frame.name, str(error)) from error
    except Exception as error:  # SyntaxError, ValueError, struct.error, zlib.error, OSError ...: foreign bytes make plugins raise anything
        raise FrameError(frame.name, f"is damaged: {_plain(error)}") from error
    return Decoded(image=image, digest=sha256)


class _Source:
    """A file that is read once, from its start to its end, and hashed on the way unless its digest is known."""

    def __init__(self, file: BinaryIO, known: str = "") -> None:
        self.file = file
        self._known = known
        self._sha256 = hashlib.sha256()
        self._count = 0

    def read(self, count: int) -> bytes:
        """Return the next bytes, fewer only at the end of the file."""
        data = self.file.read(count)
        self._count += len(data)
        if self._count > MAX_BYTES:
            raise _Unusable(f"is too large (more than {MAX_BYTES} bytes)")
        if not self._known:
            self._sha256.update(data)
        return data

    def finish(self) -> str:
        """Pass over what is left and return the digest of everything."""
        while not self._known and (block := self.file.read(_BLOCK)):
            self._sha256.update(block)
        return self._known or self._sha256.hexdigest()


_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Within the coded pixels of a JPEG: the next marker that is not part of them."""


def _whole(source: _Source, header: _Header) -> io.BytesIO:
    """Read a file to its end and return what Pillow needs of it; raises _Unusable when something is missing."""
    if header.format == "PNG":
        return _whole_png(source)
    data = source.read(MAX_BYTES)
    if header.format == "JPEG":
        return _whole_jpeg(data)
    if header.format == "WEBP":
        missing = struct.unpack_from("<I", data, 4)[0] + 8 - len(data)
        if missing > 0:
            raise _Unusable(f"is cut off: {missing} bytes are missing")
    elif header.format == "BMP":
        missing = struct.unpack_from("<I", data, 2)[0] - len(data)
        if missing > 0:
            raise _Unusable(f"is cut off: {missing} bytes are missing")
    elif data[:2] in (b"P1", b"P2", b"P3") and not data[-1:].isspace():
        # Numbers in plain text: "25" may be what is left of "255". Every writer ends its last line.
        raise _Unusable("is cut off: its last number has no end")
    return io.BytesIO(data)


def _whole_png(source: _Source) -> io.BytesIO:
    """Check every chunk of a PNG and keep those that make its pixels.

    Text, colour profile and the like are checked and dropped block by block: however large, they cost no memory and cannot make Pillow refuse
    the pixels. That the last chunk is there and every checksum right is what makes a PNG proved, which Pillow does not ask for.
    """
    kept = io.BytesIO()
    kept.write(source.read(len(_PNG)))
    pixels = False
    while True:
        start = source.read(8)
        if len(start) < 8:
            raise _Unusable("is cut off before its end")
        length, kind = struct.unpack(">I4s", start)
        keep = kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")
        if keep:
            kept.write(start)
        checksum = zlib.crc32(kind)
        left = length
        while left:
            block = source.read(min(left, _BLOCK))
            if not block:
                raise _Unusable("is cut off before its end")
            checksum = zlib.crc32(block, checksum)
            left -= len(block)
            if keep:
                kept.write(block)
        end = source.read(4)
        if len(end) < 4:
            raise _Unusable("is cut off before its end")
        if end != checksum.to_bytes(4, "big"):
            raise _Unusable(f"is damaged: the checksum of its {printable(kind.decode('latin-1'))} chunk is wrong")
        if keep:
            kept.write(end)
        pixels = pixels or kind == b"IDAT"
        if kind == b"IEND":
            break
    if not pixels:
        raise _Unusable("is a PNG without pixels")
    kept.seek(0)
    return kept


def _whole_jpeg(data: bytes) -> io.BytesIO:
    """Find the mark that ends a JPEG, behind its last scan, and keep what makes its pixels.

    EXIF, colour profile and the like are dropped, as of a PNG: Pillow would warn about broken ones. What follows the end (camera data) is
    nobody's concern.
    """
    kept = io.BytesIO()
    kept.write(data[:2])
    position = 2
    while True:
        while data[position : position + 2] == b"\xff\xff":
            position += 1
        marker = data[position : position + 2]
        if marker == b"\xff\xd9":
            break
        if len(marker) < 2 or marker[0] != 0xFF:
            raise _Unusable("is cut off or damaged: the end of its pixels is missing")
        start, code = position, marker[1]
        position += 2
        if code != 0x01 and not 0xD0 <= code <= 0xD8:
            position += int.from_bytes(data[position : position + 2], "big")
        if code == 0xDA:
            found = _NEXT_MARKER.search(data, position)
            if found is None:
                raise _Unusable("is cut off: the end of its pixels is missing")
            position = found.start()
        # APP0 and APP14 say how colours are coded; the other APPs and comments say nothing of pixels.
        if not (0xE1 <= code <= 0xEF and code != 0xEE) and code != 0xFE:
            kept.write(memoryview(data)[start:position])
    kept.write(b"\xff\xd9")
    kept.seek(0)
    return kept


def _load(pixels: io.BytesIO, header: _Header) -> Image.Image:
    """Decode every pixel of a single image."""
    image: Image.Image
    match header.format:
        case "PNG":
            image = PngImageFile(pixels)
        case "JPEG":
            image = JpegImageFile(pixels)
        case "WEBP":
            image = WebPImageFile(pixels)
        case "BMP":
            image = BmpImageFile(pixels)
        case _:
            image = PpmImageFile(pixels)
    if image.width * image.height > MAX_PIXELS:
        raise _Unusable(f"is too large: {image.width}x{image.height} pixels")
    if (image.width, image.height) != (header.width, header.height):
        raise _Unusable("is damaged: its header and its pixels differ in size")
    image.load()
    # Rows that a PNG does not hold stay zero in Pillow's image, without a word; only where the last row is zero is it worth counting.
    if header.format == "PNG" and not image.crop((0, image.height - 1, *image.size)).tobytes().strip(b"\0"):
        _check_png_rows(pixels)
    return image


_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}


def _check_png_rows(pixels: io.BytesIO) -> None:
    """Unpack a PNG's pixels without keeping them and compare their number with the size that it claims."""
    data = pixels.getbuffer()
    width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", data, 16)
    if interlaced:
        return  # there Pillow notices by itself
    missing = height * (1 + (width * depth * _PNG_SAMPLES[colour] + 7) // 8)
    unpacker = zlib.decompressobj()
    position = len(_PNG)
    while position < len(data) and missing > 0:
        length, kind = struct.unpack_from(">I4s", data, position)
        packed: memoryview | bytes = data[position + 8 : position + 8 + length] if kind == b"IDAT" else b""
        while packed and missing > 0 and not unpacker.eof:
            missing -= len(unpacker.decompress(packed, _BLOCK))
            packed = unpacker.unconsumed_tail
        position += length + 12
    # What is still inside the unpacker when the last block is read.
    while missing > 0 and (rest := unpacker.decompress(b"", _BLOCK)):
        missing -= len(rest)
    if missing > 0:
        raise _Unusable(f"is damaged: {missing} bytes of its pixels are missing")


def _to_rgb(image: Image.Image, header: _Header) -> Image.Image:
    """Convert any mode to RGB with 8 bits.

    Transparent pixels become black: the colour of the bars that pad a frame and of a player's background. What lies under a transparent
    pixel is undefined in most programs, so dropping alpha would show garbage. 16 bits are reduced to their upper byte, as Pillow does for
    colour. Colour profiles are ignored, as the hosts write none.
    """
    mode = image.mode
    if mode.startswith("I;16"):
        raw = image.tobytes()
        image = Image.frombytes("L", image.size, raw[0::2] if mode == "I;16B" else raw[1::2])
    elif mode == "I":  # PGM of more than 8 bits: Pillow brings it to 0..65535
        image = image.point(lambda value: value * (1 / 256) + 0).convert("L")
    elif mode == "F":
        raise _Unusable("holds floating-point numbers, which are not supported")
    elif mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        lowest, highest = alpha.getextrema()
        # Some programs leave the fourth byte of a BMP at zero and mean an opaque picture.
        if lowest == 255 or (header.format == "BMP" and highest == 0):
            return image.convert("RGB")
        black = Image.new("RGB", image.size)
        black.paste(image, mask=alpha)
        return black
    return image if image.mode == "RGB" else image.convert("RGB")


# --- sizes -----------------------------------------------------------------------------------------------------------------------


def fit(image: Image.Image, size: tuple[int, int], how: str, *, even: bool = False) -> Image.Image:
    """Bring an image to a size: ``pad`` with black bars, ``crop`` around the centre, or ``stretch``.

    With ``even`` a size of odd numbers is then enlarged to even ones by repeating the last row and column, so that no pixel is lost.
    """
    width, height = size
    if image.size != size:
        if how == "pad":
            image = _pad(image, width, height)
        elif how == "crop":
            image = image.resize(size, Image.Resampling.LANCZOS, box=_centre(image, width, height))
        elif how == "stretch":
            image = image.resize(size, Image.Resampling.LANCZOS)
        else:
            raise ValueError(f"unknown way to fit: {how!r}; pad, crop or stretch")
    return _make_even(image) if even else image


def _pad(image: Image.Image, width: int, height: int) -> Image.Image:
    factor = min(width / image.width, height / image.height)
    inner = (max(1, min(width, round(image.width * factor))), max(1, min(height, round(image.height * factor))))
    if inner != image.size:
        image = image.resize(inner, Image.Resampling.LANCZOS)
    if inner == (width, height):
        return image
    canvas = Image.new("RGB", (width, height))
    canvas.paste(image, ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return canvas


def _centre(image: Image.Image, width: int, height: int) -> tuple[float, float, float, float]:
    """Return the largest box in the middle of an image that has the shape of width x height."""
    factor = max(width / image.width, height / image.height)
    left = max(0.0, (image.width - width / factor) / 2)
    top = max(0.0, (image.height - height / factor) / 2)
    return (left, top, image.width - left, image.height - top)


def _make_even(image: Image.Image) -> Image.Image:
    width, height = image.size
    if width % 2 == 0 and height % 2 == 0:
        return image
    canvas = Image.new("RGB", (width + width % 2, height + height % 2))
    canvas.paste(image, (0, 0))
    if width % 2:
        canvas.paste(canvas.crop((width - 1, 0, width, canvas.height)), (width, 0))
    if height % 2:
        canvas.paste(canvas.crop((0, height - 1, canvas.width, height)), (0, height))
    return canvas


_LUMA = (0.2126 * 219 / 255, 0.7152 * 219 / 255, 0.0722 * 219 / 255, 16.0)
"""BT.709 luma in the limited range of video, as the encoders get it."""


def thumbnail(image: Image.Image) -> bytes:
    """Return 32x32 bytes of BT.709 limited-range luma: what ffmpeg's ``scale=32:32:flags=area,format=yuv420p`` says of the same picture.

    Every pixel of the image weighs in by its exact area, whatever its size; the two agree within about a level.
    """
    if image.width % THUMBNAIL == 0 and image.height % THUMBNAIL == 0:
        return image.reduce((image.width // THUMBNAIL, image.height // THUMBNAIL)).convert("L", _LUMA).tobytes()
    # The axis that divides goes first: it leaves the other one little to do.
    if image.width % THUMBNAIL == 0:
        return _average_rows(_average_columns(image).convert("L", _LUMA)).tobytes()
    if image.height % THUMBNAIL == 0:
        return _average_columns(_average_rows(image).convert("L", _LUMA)).tobytes()
    return _average_columns(_average_rows(image.convert("L", _LUMA))).tobytes()


def _average_columns(image: Image.Image) -> Image.Image:
    finer, how = _divisible(image.width)
    if finer != image.width:
        image = image.resize((finer, image.height), how)
    return image.reduce((finer // THUMBNAIL, 1))


def _average_rows(image: Image.Image) -> Image.Image:
    finer, how = _divisible(image.height)
    if finer != image.height:
        image = image.resize((image.width, finer), how)
    return image.reduce((1, finer // THUMBNAIL))


def _divisible(length: int) -> tuple[int, Image.Resampling]:
    """Return to how many rows (or columns) a side is brought, and how, so that averages over whole ones give exact areas.

    Pillow's BOX filter counts a row in or out by its centre, so rows are repeated before they are averaged: a long side about four times only,
    which is exact to an eighth of a row. What is smaller than a thumbnail ffmpeg enlarges by straight lines, and so does this.
    """
    if length < THUMBNAIL:
        return THUMBNAIL, Image.Resampling.BILINEAR
    exact = math.lcm(length, THUMBNAIL)
    if exact > max(4096, 4 * length):
        exact = -(-4 * length // THUMBNAIL) * THUMBNAIL
    return exact, Image.Resampling.NEAREST
