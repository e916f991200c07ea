"""VP9: cross-fades between coded pictures, written as pictures of their own without an encoder.

Theory of operation. A VP9 block that is predicted from two pictures is their mean, and where it is skipped and nothing moves, that is all. So a
picture of nothing but such blocks is the mean of two others, in some thirty bytes; and means of means come as near to any cross-fade as one likes
(`halves`). Only the anchors are encoded, as a plain sequence of pictures of which each shows at once. `Weaver` hides each until its time comes,
behind the pictures of the fade that leads to it: what shows, shows in the order of decoding.

Means that lead to others are hidden too. What is hidden goes into one sample with the next picture that shows, as a superframe (annex B), so that
each sample shows one picture.

Every picture of the encoder is *error resilient*: it expects the standard's own probabilities, and leaves these behind, and takes no motion from the
picture before, so that whatever is put between two of them changes nothing about either.

Numbers of clauses are those of the VP9 bitstream specification, version 0.6 (AOMedia, 2016).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from itertools import pairwise

from stepwatch.core.bits import Reader, Unexpected, Writer
from stepwatch.core.halves import AFTER, BEFORE, Mean, halved

__all__ = ["LONGEST_FADE", "Unexpected", "Weaver"]

LONGEST_FADE = 16
"""Pictures from one anchor to the next, at most: as many multiples as halves of halves reach in the slots that there are."""

_DEPTH = 4
_ENCODERS = 0b111
"""Slots that the encoder keeps pictures in: its last, its golden and its alternative one."""
_ANCHORS = 3, 4
"""Slots in which the anchors are kept, by turns; the means of a fade have those behind."""
_MEANS = 5

_MARKER, _SYNC = 2, 0x498342
_HEADER = 64
"""Bytes, more than any uncompressed header has."""
_RGB = 7
_INDEX = 0b11000000
"""The highest bits of the first and last byte of a superframe's index."""
_BLOCK, _SUPERBLOCK = 8, 64
"""Pixels a side."""
_BLOCKS = _SUPERBLOCK // _BLOCK
_REACH = 2
"""Blocks that a larger block may reach beyond the picture: motion that leads from further away is corrected even where there is none (6.4.22)."""
_WIDEST_TILE, _NARROWEST_TILE = 64, 4
"""Superblocks (6.2.14)."""
_QUANTISER = 1
"""Of what is not there; zero would mean lossless."""

_UNCHANGED = 252
"""Probability that a probability stays as it is (6.3.4)."""
_SKIPS, _MODES, _INTER, _REFERENCES, _INTRA_MODES, _PARTITIONS = 3, 7 * 3, 4, 5, 4 * 9, 16 * 3
_MOTION = 3 + 2 * (1 + 10 + 1 + 10) + 2 * (2 * 3 + 3)
"""Probabilities of each kind."""

# Defaults (10.5), of what occurs here.
_PARTITION = (
    (199, 122, 141), (147, 63, 159), (148, 133, 118), (121, 104, 114),
    (174, 73, 87), (92, 41, 83), (82, 99, 50), (53, 39, 39),
    (177, 58, 59), (68, 26, 63), (52, 79, 25), (17, 14, 12),
    (222, 34, 30), (72, 16, 44), (58, 32, 12), (10, 7, 6),
)  # fmt: skip
"""By the size of the square, and by whether what is above, and to the left, is smaller."""
_FINER = 14, 12, 8, 0
"""By the power of a side in blocks: a bit for each larger size (9.3.1)."""
_SKIP = 192, 128, 64
"""By the skipped blocks above and to the left."""
_IS_INTER = 9
_COMPOUND_LAST = 123, 226
"""For the first block, and for one with such around it."""
_IS_ZERO, _IS_NEAREST = 7, 166
"""The mode's first two bits where no block around has a motion of its own."""


class Weaver:
    """Makes a stream with cross-fades of one that has only their ends. Raises Unexpected for what libvpx does not write with our options.

    *units* are the stream's parameters, of which VP9 has none.
    """

    def __init__(self, units: Sequence[bytes] = ()) -> None:
        self.units = list(units)
        self.key = False
        """Whether the last anchor refers to nothing."""
        self._size = (0, 0)
        self._profile = 0
        self._last = _ANCHORS[1]
        """Slot of the last anchor."""

    def pictures(self, sample: bytes, gap: int) -> list[bytes]:
        """The samples up to the next anchor, whose own is *sample*, which shows *gap* pictures after the one before it; 0 for the first.

        One for each picture, in order; the last one shows the anchor.
        """
        if gap > LONGEST_FADE:
            raise ValueError(f"{gap} pictures from one anchor to the next are more than {LONGEST_FADE}")
        header = _Header(sample, self._size)
        if header.key and gap > 1:
            raise Unexpected("a key frame follows pictures that refer to it")
        self.key, self._size, self._profile = header.key, header.size, header.profile
        before, self._last = self._last, _ANCHORS[self._last == _ANCHORS[0]]
        if gap <= 1:
            return [header.rewritten(kept=self._last, shown=True)]
        return list(_samples(self._fade(gap, before), header.rewritten(kept=self._last, shown=False), self._shown(self._last)))

    def _fade(self, gap: int, before: int) -> Iterator[tuple[bytes, bool]]:
        """The frames between two anchors, and whether each shows."""
        slots = {BEFORE: before, AFTER: self._last}
        for step in halved(gap, _DEPTH):
            if isinstance(step, Mean):
                first, second = (slots.get(slot, slot + _MEANS) for slot in (step.first, step.second))
                kept = None if step.kept is None else step.kept + _MEANS
                yield _mean(self._profile, self._size, first, second, kept, shown=step.shown), step.shown
            else:
                yield self._shown(slots.get(step.slot, step.slot + _MEANS)), True

    def _shown(self, slot: int) -> bytes:
        out = Writer()
        _begin(out, self._profile)
        out.flag(1)
        out.bits(3, slot)
        out.align()
        return out.bytes()


def _samples(frames: Iterator[tuple[bytes, bool]], *ends: bytes) -> Iterator[bytes]:
    """Each frame that shows in a sample, with the hidden ones before it; *ends* are the first frame, hidden, and the last, which shows."""
    first, last = ends
    waiting = [first]
    for frame, shown in frames:
        waiting.append(frame)
        if shown:
            yield _superframe(waiting)
            waiting = []
    yield _superframe([*waiting, last])


def _superframe(frames: Sequence[bytes]) -> bytes:
    """Frames in one sample, with the index that tells how long each is (annex B)."""
    if len(frames) == 1:
        return frames[0]
    width = (max(map(len, frames)).bit_length() + 7) // 8
    marker = bytes([_INDEX | width - 1 << 3 | len(frames) - 1])
    return b"".join((*frames, marker, *(len(frame).to_bytes(width, "little") for frame in frames), marker))


def _begin(out: Writer, profile: int) -> None:
    out.bits(2, _MARKER)
    out.bits(1, profile & 1)
    out.bits(1, profile >> 1)
    if profile == 3:
        out.flag(0)


class _Header:
    """A frame's uncompressed header (6.2), as far as the frame has to be told another purpose; *size* is that of the pictures so far."""

    def __init__(self, data: bytes, size: tuple[int, int]) -> None:
        self._data = data
        if _is_superframe(data):
            raise Unexpected("several pictures are in one")
        self._reader = reader = Reader(data[:_HEADER])
        if reader.bits(2) != _MARKER:
            raise Unexpected("a picture does not begin as one")
        self.profile = reader.bits(1) | reader.bits(1) << 1
        if self.profile == 3:
            reader.bits(1)
        if reader.flag():
            raise Unexpected("it shows pictures that were made before")
        self.key = not reader.flag()
        self._shown_at = reader.place
        if not reader.flag():
            raise Unexpected("it has pictures that do not show")
        if not reader.flag():
            raise Unexpected("a picture depends on how another one was coded")
        self.size = size
        self._refreshed = 0
        if self.key:
            self._read_key()
        else:
            if not all(size):
                raise Unexpected("it does not begin with a key frame")
            self._refreshed = reader.bits(8)
            self._read_references()
        self._read_rest()
        self._end = reader.place

    def rewritten(self, *, kept: int, shown: bool) -> bytes:
        """The frame, shown or hidden, and kept in one more slot; a key frame is in every slot."""
        if self.key:
            return self._data
        reader, out = Reader(self._data[:_HEADER]), Writer()
        out.copy(reader, self._shown_at)
        reader.bits(1)
        out.flag(shown)
        out.copy(reader, 1)  # error_resilient_mode
        if not shown:
            out.flag(0)  # intra_only
        reader.bits(8)
        out.bits(8, self._refreshed | 1 << kept)
        out.copy(reader, self._end - reader.place)
        out.align()
        return out.bytes() + self._data[-(-self._end // 8) :]

    def _read_key(self) -> None:
        reader = self._reader
        if reader.bits(24) != _SYNC:
            raise Unexpected("a key frame does not begin as one")
        if self.profile >= 2:
            reader.bits(1)
        if reader.bits(3) == _RGB:
            raise Unexpected("its planes are red, green and blue")
        reader.bits(1)
        if self.profile & 1:
            reader.bits(3)
        self.size = reader.bits(16) + 1, reader.bits(16) + 1
        if reader.flag():
            reader.bits(32)

    def _read_references(self) -> None:
        reader = self._reader
        referred = []
        for _ in range(3):
            referred.append(reader.bits(3))
            reader.bits(1)
        if self._refreshed & ~_ENCODERS or not all(_ENCODERS >> slot & 1 for slot in referred):
            raise Unexpected("it keeps more pictures than it was asked for")
        if not any(reader.flag() for _ in range(3)):
            raise Unexpected("its size changes")
        if reader.flag():
            reader.bits(32)
        reader.bits(1)  # allow_high_precision_mv
        if not reader.flag():
            reader.bits(2)

    def _read_rest(self) -> None:
        reader = self._reader
        reader.bits(2)  # frame_context_idx
        reader.bits(9)  # the loop filter's level and sharpness
        if reader.flag() and reader.flag():
            for _ in range(6):
                if reader.flag():
                    reader.bits(7)
        reader.bits(8)
        for _ in range(3):
            if reader.flag():
                reader.bits(5)
        if reader.flag():
            raise Unexpected("its pictures are in segments")
        least, most = _tile_columns(self.size[0])
        while least < most and reader.flag():
            least += 1
        if reader.flag():
            reader.bits(1)
        reader.bits(16)


def _is_superframe(data: bytes) -> bool:
    if not data or data[-1] >> 5 != _INDEX >> 5:
        return False
    size = 2 + ((data[-1] >> 3 & 3) + 1) * ((data[-1] & 7) + 1)
    return data[-size : 1 - size] == data[-1:]


def _tile_columns(width: int) -> tuple[int, int]:
    """Logarithms of the fewest and the most columns of tiles (6.2.14)."""
    across = -(-width // _SUPERBLOCK)
    least, most = 0, 1
    while _WIDEST_TILE << least < across:
        least += 1
    while across >> most >= _NARROWEST_TILE:
        most += 1
    return least, max(least, most - 1)


@functools.lru_cache(maxsize=256)
def _mean(profile: int, size: tuple[int, int], first: int, second: int, kept: int | None, *, shown: bool) -> bytes:
    """A frame that is the mean of the pictures in two slots."""
    coded, tiles = _all_skipped(*size)
    out = Writer()
    _begin(out, profile)
    out.flag(0)
    out.flag(1)  # frame_type: not a key frame
    out.flag(shown)
    out.flag(0)  # error_resilient_mode, which knows no means of two
    if not shown:
        out.flag(0)  # intra_only
    out.bits(2, 0)  # reset_frame_context
    out.bits(8, 0 if kept is None else 1 << kept)
    for slot, bias in ((first, 0), (first, 0), (second, 1)):
        out.bits(3, slot)
        out.flag(bias)
    out.flag(1)  # as large as the first
    out.flag(0)  # and shown so
    out.flag(0)  # allow_high_precision_mv
    out.flag(0)  # is_filter_switchable
    out.bits(2, 1)  # nothing moves, so that no filter is used
    out.flag(0)  # refresh_frame_context
    out.flag(1)  # frame_parallel_decoding_mode
    out.bits(2, 0)  # frame_context_idx
    out.bits(6 + 3 + 1, 0)  # no loop filter
    out.bits(8, _QUANTISER)
    out.bits(3 + 1, 0)  # no other quantisers, no segments
    least, most = _tile_columns(size[0])
    if least < most:
        out.flag(0)
    out.flag(0)
    out.bits(16, len(coded))
    out.align()
    return out.bytes() + coded + tiles


@functools.lru_cache(maxsize=8)
def _all_skipped(width: int, height: int) -> tuple[bytes, bytes]:
    """The compressed header and the tiles of a picture that is the mean of its two references."""
    across, down = (-(-side // _BLOCK) for side in (width, height))
    columns = 1 << _tile_columns(width)[0]
    superblocks = -(-width // _SUPERBLOCK)
    ends = [min(across, (superblocks * tile // columns) * _BLOCKS) for tile in range(columns + 1)]
    *tiles, last = (_Tile(begin, end, down).coded() for begin, end in pairwise(ends))
    return _compressed_header(), b"".join((*(len(tile).to_bytes(4, "big") + tile for tile in tiles), last))


def _compressed_header() -> bytes:
    """All that differs from the standard's probabilities (6.3), namely nothing; and that every block has two references."""
    coder = _Coder()
    coder.even(0, 0)  # tx_mode: ONLY_4X4
    coder.even(0)  # its coefficients
    coder.same(_SKIPS + _MODES + _INTER)
    coder.even(1, 0)  # reference_mode: COMPOUND_REFERENCE
    coder.same(_REFERENCES + _INTRA_MODES + _PARTITIONS + _MOTION)
    return coder.coded()


class _Tile:
    """The blocks of a tile (6.4), as large as they can be; places and sizes count blocks of 8x8 pixels."""

    def __init__(self, begin: int, end: int, down: int) -> None:
        self._begin, self._end, self._down = begin, end, down
        self._coder = _Coder()
        self._above = [0] * (end - begin + _BLOCKS)
        self._left = [0] * _BLOCKS

    def coded(self) -> bytes:
        for row in range(0, self._down, _BLOCKS):
            self._left = [0] * _BLOCKS
            for column in range(self._begin, self._end, _BLOCKS):
                self._put(row, column, 3)
        return self._coder.coded()

    def _put(self, row: int, column: int, power: int) -> None:
        """A square of 2^power blocks a side, in parts where it reaches far beyond the picture."""
        if row >= self._down or column >= self._end:
            return
        side = 1 << power
        half = side >> 1
        rows, columns = row + half < self._down, column + half < self._end
        finer = 2 * (self._left[row % _BLOCKS] >> power & 1) + (self._above[column - self._begin] >> power & 1)
        probabilities = _PARTITION[4 * power + finer]
        # Where only one way leads into the picture, it need not be told that there is no other.
        told = probabilities if rows and columns else probabilities[1:2] if columns else probabilities[2:] if rows else ()
        height, width = side if rows else half, side if columns else half
        if row + height - self._down > _REACH or column + width - self._end > _REACH or not told:
            for probability in told:
                self._coder.put(probability, 1)
            for down, across in ((0, 0), (0, half), (half, 0), (half, half)):
                self._put(row + down, column + across, power - 1)
            return
        self._coder.put(told[0], 0)
        self._block(row, column)
        # A bit for each size that the block is smaller than.
        self._above[column - self._begin : column - self._begin + side] = [_FINER[power if columns else power - 1]] * side
        self._left[row % _BLOCKS : row % _BLOCKS + side] = [_FINER[power if rows else power - 1]] * side

    def _block(self, row: int, column: int) -> None:
        """A block that is the mean of both references: skipped, from LAST_FRAME and the fixed one, with NEARESTMV, which is no motion."""
        around = (row > 0) + (column > self._begin)
        self._coder.put(_SKIP[around], 1)
        self._coder.put(_IS_INTER, 1)
        self._coder.put(_COMPOUND_LAST[around > 0], 0)
        self._coder.put(_IS_ZERO, 1)
        self._coder.put(_IS_NEAREST, 0)


class _Coder:
    """The arithmetic coder (9.2): a bit, and how likely it is a zero, in parts of 256. Carries take care of themselves where a number has no end."""

    def __init__(self) -> None:
        self._low, self._range, self._size = 0, 255, 8
        self.even(0)  # marker_bit

    def put(self, probability: int, bit: int) -> None:
        split = 1 + ((self._range - 1) * probability >> 8)
        if bit:
            self._low += split
            self._range -= split
        else:
            self._range = split
        shift = 8 - self._range.bit_length()
        self._low <<= shift
        self._range <<= shift
        self._size += shift

    def even(self, *bits: int) -> None:
        """Bits of which neither value is more likely."""
        for bit in bits:
            self.put(128, bit)

    def same(self, count: int) -> None:
        """So many probabilities stay as they are."""
        for _ in range(count):
            self.put(_UNCHANGED, 0)

    def coded(self) -> bytes:
        """The bytes; where the last could be taken for a superframe's index, one more."""
        padding = -self._size % 8
        coded = (self._low << padding).to_bytes((self._size + padding) // 8, "big")
        return coded + b"\0" if coded[-1] >> 5 == _INDEX >> 5 else coded
