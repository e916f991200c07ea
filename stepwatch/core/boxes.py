"""Fragments of an MP4 file as a stream of packets: read from one ffmpeg, written for another.

Numbers of clauses are those of ISO/IEC 14496-12 (the boxes) and 14496-15 (the configuration of H.264 and H.265 in them); VP9 and AV1 are in such
files by the VP codec binding, version 1.0, and the AV1 binding, version 1.2. All numbers are big-endian; a box is its length, counting these eight
bytes, four letters, and what is in it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_WAY = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd")
"""Where the description of the pictures is."""
_HEAD = 8
"""Bytes of a box before its contents."""
_ENTRIES, _PICTURE_FIELDS = 8, 78
"""Bytes before the entries of ``stsd``, and before the boxes in an entry for pictures (12.1.3)."""
_KEY, _OTHER = 0x02000000, 0x01010000
"""Sample flags: depends on nothing; depends on others and is no place to begin at (8.8.3.1)."""
_LENGTH_BYTES = 4
_AV1_HEAD = 4
"""Bytes of an AV1CodecConfigurationRecord before its units."""


def boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the contents of each box in *data*. Raises ValueError where one goes beyond the end."""
    place = 0
    while place < len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        if size < _HEAD or place + size > len(data):
            raise ValueError("a box goes beyond what holds it")
        yield data[place + 4 : place + _HEAD], data[place + _HEAD : place + size]
        place += size


def box(kind: bytes, *contents: bytes) -> bytes:
    """One box."""
    body = b"".join(contents)
    return (len(body) + _HEAD).to_bytes(4, "big") + kind + body


class Fragments:
    """Takes a fragmented file as it comes, one picture in each fragment, and gives its boxes ``moov`` and ``mdat``."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def take(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """The boxes that *data* completes. Raises ValueError when these are no boxes."""
        self._rest += data
        while len(self._rest) >= _HEAD:
            size = int.from_bytes(self._rest[:4], "big")
            kind = bytes(self._rest[4:_HEAD])
            if size < _HEAD or not kind.isalnum():
                raise ValueError("it is no file of fragments")
            if len(self._rest) < size:
                return
            contents = bytes(self._rest[_HEAD:size])
            del self._rest[:size]
            if kind in (b"moov", b"mdat"):
                yield kind, contents


@dataclass(frozen=True, slots=True)
class Header:
    """What ``moov`` says of the only track."""

    timescale: int
    """Ticks a second."""
    units: tuple[bytes, ...]
    """The parameters of the stream."""
    _contents: bytes

    @classmethod
    def read(cls, contents: bytes) -> Header:
        """The contents of a box ``moov``. Raises ValueError for what ffmpeg does not write for such streams."""
        media = _descend(contents, _WAY[1:3])
        timing = _descend(media, (b"mdhd",))
        timescale = int.from_bytes(timing[20:24] if timing[0] else timing[12:16], "big")
        description = _descend(media, _WAY[3:])
        (_, entry), *more = boxes(description[_ENTRIES:])
        if more:
            raise ValueError("it has several descriptions of its pictures")
        kind, configuration = next((one for one in boxes(entry[_PICTURE_FIELDS:]) if one[0] in _CONFIGURATIONS), (b"", b""))
        if not kind:
            raise ValueError("it does not say how its pictures are coded")
        return cls(timescale, tuple(_CONFIGURATIONS[kind][0](configuration)), contents)

    def with_units(self, units: Sequence[bytes]) -> bytes:
        """The file's start (``ftyp``, ``moov``) with other parameters of the stream."""
        kinds = box(b"ftyp", b"iso5", (512).to_bytes(4, "big"), b"iso5iso6mp41")
        return kinds + box(b"moov", _replaced(self._contents, _WAY[1:], units))


def _descend(contents: bytes, way: Sequence[bytes]) -> bytes:
    for kind in way:
        contents = next((inner for name, inner in boxes(contents) if name == kind), b"")
        if not contents:
            raise ValueError(f"it has no {kind.decode()}")
    return contents


def _replaced(contents: bytes, way: Sequence[bytes], units: Sequence[bytes]) -> bytes:
    """*contents* with other parameters in the box at the end of *way*; all boxes around it get their new lengths."""
    if not way:
        return _in_description(contents, units)
    return b"".join(box(kind, _replaced(inner, way[1:], units) if kind == way[0] else inner) for kind, inner in boxes(contents))


def _in_description(contents: bytes, units: Sequence[bytes]) -> bytes:
    ((name, entry),) = boxes(contents[_ENTRIES:])
    inner = (box(kind, _CONFIGURATIONS[kind][1](old, units) if kind in _CONFIGURATIONS else old) for kind, old in boxes(entry[_PICTURE_FIELDS:]))
    return contents[:_ENTRIES] + box(name, entry[:_PICTURE_FIELDS], *inner)


def fragment(number: int, data: bytes, *, decoded: int, shown: int, duration: int, key: bool) -> bytes:
    """One picture as a fragment of its own (``moof``, ``mdat``), *number* counting from 1; times in ticks."""
    run = struct.pack(">IIiIIII", 0x01000F01, 1, 0, duration, len(data), _KEY if key else _OTHER, shown - decoded)
    track = box(
        b"traf",
        box(b"tfhd", struct.pack(">II", 0x00020000, 1)),
        box(b"tfdt", struct.pack(">IQ", 0x01000000, decoded)),
        box(b"trun", run),
    )
    head = box(b"moof", box(b"mfhd", struct.pack(">II", 0, number)), track)
    # The picture begins behind the head of its own box.
    at = len(head) - len(run) + 8  # Past its flags and its one sample.
    return head[:at] + (len(head) + _HEAD).to_bytes(4, "big") + head[at + 4 :] + box(b"mdat", data)


def units_of(sample: bytes) -> list[bytes]:
    """The NAL units of one sample. Raises ValueError where they do not fill it exactly."""
    units, place = [], 0
    while place < len(sample):
        size = int.from_bytes(sample[place : place + _LENGTH_BYTES], "big")
        place += _LENGTH_BYTES
        if not size or place + size > len(sample):
            raise ValueError("a unit goes beyond its picture")
        units.append(sample[place : place + size])
        place += size
    return units


def sample_of(units: Sequence[bytes]) -> bytes:
    """The opposite of `units_of`."""
    return b"".join(len(unit).to_bytes(_LENGTH_BYTES, "big") + unit for unit in units)


def _counted(data: bytes, place: int, count: int) -> tuple[list[bytes], int]:
    units = []
    for _ in range(count):
        size = int.from_bytes(data[place : place + 2], "big")
        units.append(data[place + 2 : place + 2 + size])
        place += 2 + size
    return units, place


def _avc_units(data: bytes) -> list[bytes]:
    """The units in an AVCDecoderConfigurationRecord (14496-15, 5.3.3.1)."""
    sequences, place = _counted(data, 6, data[5] & 31)
    pictures, _ = _counted(data, place + 1, data[place])
    return sequences + pictures


def _avc_with(data: bytes, units: Sequence[bytes]) -> bytes:
    sequences, place = _counted(data, 6, data[5] & 31)
    _, place = _counted(data, place + 1, data[place])
    new = [len(unit).to_bytes(2, "big") + unit for unit in units]
    first, rest = new[: len(sequences)], new[len(sequences) :]
    return b"".join((data[:6], *first, bytes([len(rest)]), *rest, data[place:]))


def _hevc_arrays(data: bytes) -> Iterator[tuple[int, list[bytes]]]:
    place = 23
    for _ in range(data[22]):
        kind = data[place]
        units, place = _counted(data, place + 3, int.from_bytes(data[place + 1 : place + 3], "big"))
        yield kind, units


def _hevc_units(data: bytes) -> list[bytes]:
    """The parameter sets in an HEVCDecoderConfigurationRecord (14496-15, 8.3.3.1)."""
    return [unit for kind, units in _hevc_arrays(data) for unit in units if kind & 63 in (32, 33, 34)]


def _hevc_with(data: bytes, units: Sequence[bytes]) -> bytes:
    arrays = []
    for kind, old in _hevc_arrays(data):
        new = [unit for unit in units if unit[0] >> 1 & 63 == kind & 63] or old
        arrays.append(bytes([kind]) + len(new).to_bytes(2, "big") + b"".join(len(unit).to_bytes(2, "big") + unit for unit in new))
    return data[:22] + bytes([len(arrays)]) + b"".join(arrays)


def _no_units(_data: bytes) -> list[bytes]:
    """VP9 has no parameters but those in its key frames."""
    return []


def _as_it_is(data: bytes, _units: Sequence[bytes]) -> bytes:
    return data


def _av1_units(data: bytes) -> list[bytes]:
    """The units in an AV1CodecConfigurationRecord, all in one piece."""
    return [data[_AV1_HEAD:]]


def _av1_with(data: bytes, units: Sequence[bytes]) -> bytes:
    return data[:_AV1_HEAD] + b"".join(units)


_CONFIGURATIONS = {
    b"avcC": (_avc_units, _avc_with),
    b"hvcC": (_hevc_units, _hevc_with),
    b"av1C": (_av1_units, _av1_with),
    b"vpcC": (_no_units, _as_it_is),
}
