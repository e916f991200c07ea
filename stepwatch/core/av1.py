"""AV1: cross-fades between coded pictures, written as pictures of their own without an encoder.

Theory of operation. A block in *skip mode* is the mean of the two references whose order hints are nearest to its picture's, without a residual
(5.11.10, 7.11.3.1); nothing moves where nothing around it does (7.10.2), and no filter is told to work. So a picture of nothing but such blocks, two
symbols for each superblock, is the mean of two pictures; and with means of means (`halves`) the whole way from one picture to another is covered. To
a decoder they are the cheapest pictures there are. So only *anchors* are encoded: the pictures between which the animation goes in a straight line,
each shown as soon as it is decoded. `Weaver` puts the pictures between.

An anchor that a fade leads to is decoded before the fade and shown after it: its header says that it is hidden for now, and a header without a
picture shows it when the time has come. The same is done with means that others are made of before they are due. Every sample shows one picture.

Decoders keep eight pictures, in *slots*. The encoder fills most of them, but hardly ever refers to more than three again. So anchors are put in other
slots than it asks for, each in one, and others give way to means: those of long ago, then those whose quantiser is coarse, for that is how it treats
pictures which little depends on, then those that were not referred to for long. Should it refer to one of them after all, its stream cannot be woven.
What SVT-AV1 does in low delay: every picture (hierarchical-levels=0), every second (1), every fourth (2) or every eighth (1.4 always) is fine, and
refers to the last one of that kind (1.4: also to the last but two), others to that or to one between. Presets below 10 refer to the last key frame
besides, or one that has taken its place; with more than one level they refer to more pictures than there is room for.

Order hints of anchors stay as they are; a mean has the next hint after those of its references, and no anchor ever refers to it.

Clause numbers are those of the AV1 Bitstream & Decoding Process Specification. Units are OBUs with their headers and sizes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepwatch.core.bits import Reader, Unexpected, Writer
from stepwatch.core.halves import AFTER, BEFORE, Mean, halved
from stepwatch.core.symbols import WHOLE, Coder, Kind

__all__ = ["LARGEST", "LONGEST_FADE", "WIDEST", "Unexpected", "Weaver"]

_DEPTH, _DEPTH_OF_LONG = 4, 5
"""Halvings; a picture is off by no more than a thirty-second of the difference of its anchors, and half of that in a long fade."""
_LONG = 17
"""Pictures from one anchor to the next; with fewer, no two between them are the same at either depth."""
_MEANS = 3
"""Slots that means have, at most."""
LONGEST_FADE = (2 << _DEPTH_OF_LONG) - 1
"""Pictures from one anchor to the next, at most: beyond, the first ones would be the anchor itself, and key frames cannot be shown twice (6.8.2)."""
_LONG_AGO = 24
"""Anchors that lie between a picture and what it refers to, at most: three times eight."""

_SEQUENCE, _DELIMITER, _HEADER, _METADATA, _FRAME, _PADDING = 1, 2, 3, 5, 6, 15
"""obu_type (6.2.2)."""
_SIZED = 2
"""obu_has_size_field, in the first byte of a unit."""
_KEY, _INTER = 0, 1
"""frame_type (6.8.2)."""
_SLOTS = 8
_REFERENCES = 7
_NONE = 7
"""primary_ref_frame of a picture that learns from no other."""
_CHOOSE = 2
"""seq_force_screen_content_tools and seq_force_integer_mv, where pictures say so themselves."""
_SEGMENTS = 8
_FEATURE_BITS = (9, 7, 7, 7, 7, 3, 0, 0)
"""Of what segments may differ in, with their signs (5.9.14)."""
_LONGEST_HEADER = 256
"""Bytes that no picture's header has (5.9.2)."""
WIDEST, LARGEST = 4096, 4096 * 2304
"""Samples; beyond, a picture is more than one (5.9.15)."""
_MOST_TILES = 64
"""In each direction."""
_SUPERBLOCK = 8
"""Blocks of 8x8 samples in each direction of one; of larger ones twice as many."""

_VERTICAL = 2, 3, 4, 6, 7, 9
"""Ways of cutting a block, of which any has a vertical cut but one (table 6.10.4)."""
_HORIZONTAL = 1, 3, 4, 5, 6, 8
_SKIP_MODE = 32621, 20708, 8127
"""Likelihood that a block is not in skip mode, by how many of its two neighbours are."""
_PARTITION = {
    1: ((19132, 25510, 30392), (13928, 19855, 28540), (12522, 23679, 28629), (9896, 18783, 25853)),
    2: (
        (15597, 20929, 24571, 26706, 27664, 28821, 29601, 30571, 31902),
        (7925, 11043, 16785, 22470, 23971, 25043, 26651, 28701, 29834),
        (5414, 13269, 15111, 20488, 22360, 24500, 25537, 26336, 32117),
        (2662, 6362, 8614, 20860, 23053, 24778, 26436, 27829, 31171),
    ),
    4: (
        (18462, 20920, 23124, 27647, 28227, 29049, 29519, 30178, 31544),
        (7689, 9060, 12056, 24992, 25660, 26182, 26951, 28041, 29052),
        (6015, 9009, 10062, 24544, 25409, 26545, 27071, 27526, 32047),
        (1394, 2208, 2796, 28614, 29061, 29466, 29840, 30185, 31899),
    ),
    8: (
        (20137, 21547, 23078, 29566, 29837, 30261, 30524, 30892, 31724),
        (6732, 7490, 9497, 27944, 28250, 28515, 28969, 29630, 30104),
        (5945, 7663, 8348, 28683, 29117, 29749, 30064, 30298, 32238),
        (870, 1212, 1487, 31198, 31394, 31574, 31743, 31881, 32332),
    ),
    16: (
        (27899, 28219, 28529, 32484, 32539, 32619, 32639),
        (6607, 6990, 8268, 32060, 32219, 32338, 32371),
        (5429, 6676, 7122, 32027, 32227, 32531, 32582),
        (711, 966, 1172, 32448, 32538, 32617, 32664),
    ),
}
"""How a block is parted, by its size in blocks of 8x8 samples, and by whether that above is narrower, that to the left lower (clause 9.3)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stream:
    """The sequence header, as far as pictures depend on it (5.5.1)."""

    across: int
    """Blocks of 8x8 samples."""
    down: int
    superblock: int
    """Those in each direction of one, 8 or 16."""
    warps: bool
    vectors: bool
    """Pictures may predict motion from that of others."""
    tools: int
    """seq_force_screen_content_tools."""
    whole: int
    """seq_force_integer_mv."""
    hint_bits: int
    scales: bool
    """Pictures may be stretched (superres)."""
    directions: bool
    """Pictures may be smoothed in a direction (CDEF)."""
    restores: bool
    apart: bool
    """Colour planes may have quantisers of their own."""

    def later(self, hint: int, other: int) -> int:
        """By how much *hint* is later than *other* (5.9.3)."""
        half = 1 << self.hint_bits - 1
        return (hint - other + half) % (2 * half) - half


@dataclass(slots=True, eq=False)
class _Picture:
    hint: int
    slot: int | None
    """Where it is; None once it has given way."""
    number: int
    """Of the anchor, from 1."""
    quantiser: int
    """Coarse where no other picture, or only the next ones, refer to it."""
    used: int
    """Number of the last anchor that refers to it, or its own."""


class Weaver:
    """Makes a stream with cross-fades of one that has only their ends. Raises Unexpected for what SVT-AV1 does not write with our options.

    *units* are those that the container has beside the samples: the sequence header.
    """

    def __init__(self, units: Sequence[bytes]) -> None:
        parted = [part for unit in units for part in _parted(unit)]
        if [kind for kind, _, _ in parted] != [_SEQUENCE]:
            raise Unexpected("it does not begin with one sequence header")
        self._stream = _stream_of(parted[0][2])
        self.units = [parted[0][1]]
        """The stream's parameters. Those that come with the first picture count, and may be others: SVT-AV1 tells a container of its own before it
        has made up its mind."""
        self._asked: list[_Picture | None] = [None] * _SLOTS
        """What the encoder believes to be in each slot."""
        self._hints = [0] * _SLOTS
        """Of what is in them."""
        self._last: _Picture | None = None
        self._number = 0
        """Of the last anchor."""
        self.key = False
        """Whether the last anchor refers to nothing."""

    def pictures(self, sample: bytes, gap: int) -> list[bytes]:
        """The samples up to the next anchor, whose own is *sample*, and which shows *gap* pictures after the one before it; 0 for the first.

        Each shows one picture, the last one the anchor.
        """
        if gap > LONGEST_FADE:
            raise ValueError(f"{gap} pictures from one anchor to the next are more than {LONGEST_FADE}")
        ahead, coded = self._frame(sample)
        header = _Header(coded, self._stream)
        self._number += 1
        self.key = header.key
        if header.key:
            if gap > 1:
                raise Unexpected("a key frame follows pictures that refer to it")
            self._last = _Picture(header.hint, 0, self._number, header.quantiser, self._number)
            self._asked = [self._last] * _SLOTS
            self._hints = [header.hint] * _SLOTS
            return [ahead + _unit(_FRAME, coded)]
        if self._last is None or gap < 1:
            raise Unexpected("it does not begin with a key frame")
        before = self._last
        references = [self._referred(slot) for slot in header.references]
        anchor = self._last = _Picture(header.hint, None, self._number, header.quantiser, self._number)
        for slot in range(_SLOTS):
            if header.refreshed >> slot & 1:
                self._asked[slot] = anchor
        (anchor.slot,) = self._free(1, before, anchor)
        changed = header.changed(
            hidden=gap > 1,
            references=[slot for slot, _ in references],
            hints=[hint for _, hint in references],
            refreshed=1 << anchor.slot,
        )
        self._hints[anchor.slot] = header.hint
        ahead += _unit(_FRAME, changed)
        return self._faded(ahead, before, anchor, gap) if gap > 1 else [ahead]

    def _frame(self, sample: bytes) -> tuple[bytes, bytes]:
        """What stays as it is before a sample's picture, and the picture's payload."""
        ahead = b""
        coded: bytes | None = None
        for kind, unit, payload in _parted(sample):
            if coded is not None and kind != _PADDING:
                raise Unexpected("a sample holds more than a picture")
            if kind == _SEQUENCE:
                if self._last is None:
                    self._stream, self.units = _stream_of(payload), [unit]
                elif unit != self.units[0]:
                    raise Unexpected("its parameters change")
                ahead += unit
            elif kind == _METADATA:
                ahead += unit
            elif kind == _FRAME:
                coded = payload
            elif kind not in (_DELIMITER, _PADDING):
                raise Unexpected("a picture is not in one piece")
        if coded is None:
            raise Unexpected("a sample has no picture")
        return ahead, coded

    def _referred(self, asked: int) -> tuple[int, int]:
        """Slot and order hint of what the encoder has put in one."""
        picture = self._asked[asked]
        if picture is None or picture.slot is None:
            raise Unexpected("a picture refers to one of long ago")
        picture.used = self._number
        return picture.slot, picture.hint

    def _free(self, count: int, *needed: _Picture) -> list[int]:
        """Slots that may be filled, and that none of the *needed* pictures is in."""
        kept = {picture.slot: picture for picture in self._asked if picture is not None and picture.slot is not None and picture not in needed}
        taken = {picture.slot for picture in needed}
        free = [slot for slot in range(_SLOTS) if slot not in taken and slot not in kept]
        for slot, picture in sorted(kept.items(), key=lambda item: self._dispensable(item[1]), reverse=True):
            if len(free) >= count:
                break
            picture.slot = None
            free.append(slot)
        return free[:count]

    def _dispensable(self, picture: _Picture) -> tuple[bool, int, int]:
        """The greater, the sooner it gives way."""
        forgotten = self._number - picture.number > _LONG_AGO and picture.used < self._number
        return forgotten, picture.quantiser, -picture.used

    def _faded(self, ahead: bytes, before: _Picture, anchor: _Picture, gap: int) -> list[bytes]:
        """Samples that show the pictures between two anchors, and the second one; *ahead* is what the first has besides."""
        plan = halved(gap, _DEPTH if gap < _LONG else _DEPTH_OF_LONG, _MEANS)
        way = self._stream.later(anchor.hint, before.hint)
        if not 0 < way < (1 << self._stream.hint_bits - 1) - _DEPTH_OF_LONG:
            raise Unexpected("its pictures are not in order")
        kept = 1 + max((step.kept for step in plan if isinstance(step, Mean) and step.kept is not None), default=-1)
        assert before.slot is not None
        assert anchor.slot is not None
        slots = {BEFORE: before.slot, AFTER: anchor.slot, **dict(enumerate(self._free(kept, before, anchor)))}
        samples = []
        for step in plan:
            if not isinstance(step, Mean):
                samples.append(ahead + _shown(slots[step.slot]))
                ahead = b""
                continue
            first, second = slots[step.first], slots[step.second]
            hint = max(self._since(first, before), self._since(second, before)) + 1 + before.hint
            hint %= 1 << self._stream.hint_bits
            ahead += _mean(self._stream, first, second, None if step.kept is None else slots[step.kept], hint, shown=step.shown)
            if step.kept is not None:
                self._hints[slots[step.kept]] = hint
            if step.shown:
                samples.append(ahead)
                ahead = b""
        return [*samples, ahead + _shown(anchor.slot)]

    def _since(self, slot: int, before: _Picture) -> int:
        return self._stream.later(self._hints[slot], before.hint)


@functools.lru_cache(maxsize=_SLOTS)
def _shown(slot: int) -> bytes:
    """A header that shows what is in a slot (5.9.2), with the bit that ends it."""
    return _unit(_HEADER, bytes([0x88 | slot << 4]))


@functools.lru_cache(maxsize=4096)
def _mean(stream: _Stream, first: int, second: int, kept: int | None, hint: int, *, shown: bool) -> bytes:
    """A picture that is the mean of those in two slots (5.9.2)."""
    out = Writer()
    out.bits(3, _INTER)  # Behind show_existing_frame.
    out.flag(shown)
    if not shown:
        out.flag(1)  # showable_frame
    out.flag(0)  # error_resilient_mode
    out.flag(0)  # disable_cdf_update
    out.bits(*_tools_unused(stream))
    out.flag(0)  # frame_size_override_flag
    out.bits(stream.hint_bits, hint)
    out.bits(3, _NONE)
    out.bits(_SLOTS, 0 if kept is None else 1 << kept)
    out.flag(0)  # frame_refs_short_signaling
    # Skip mode takes the two latest of all references: each of the seven is one of these.
    out.bits(3, first)
    for _ in range(_REFERENCES - 1):
        out.bits(3, second)
    out.bits(*_rest_of_mean(stream))
    out.align()
    return _unit(_FRAME, out.bytes() + _all_skipped(stream.across, stream.down, stream.superblock))


@functools.lru_cache(maxsize=8)
def _tools_unused(stream: _Stream) -> tuple[int, int]:
    """How many bits say that screen content is nothing special, and which."""
    asked = stream.tools == _CHOOSE
    return int(asked or (stream.tools == 1 and stream.whole == _CHOOSE)), 0


@functools.lru_cache(maxsize=8)
def _rest_of_mean(stream: _Stream) -> tuple[int, int]:
    """The header of a mean, from behind its references: how many bits, and which."""
    out = Writer()
    if stream.scales:
        out.flag(0)  # use_superres
    out.flag(0)  # render_and_frame_size_different
    if stream.tools != 1 or stream.whole != 1:
        out.flag(0)  # allow_high_precision_mv
    out.bits(3, 0)  # is_filter_switchable, interpolation_filter
    out.flag(0)  # is_motion_mode_switchable
    if stream.vectors:
        out.flag(0)  # use_ref_frame_mvs
    out.flag(1)  # disable_frame_end_update_cdf
    tiles = _Tiles(stream)
    out.flag(1)  # uniform_tile_spacing_flag
    for most in (tiles.most_across, tiles.most_down):
        if most:
            out.flag(0)
    # With a quantiser of zero, without residuals, there is no word of any filter.
    out.bits(8, 0)
    out.bits(4 if stream.apart else 3, 0)  # Nothing differs from it.
    out.flag(0)  # using_qmatrix
    out.flag(0)  # segmentation_enabled
    out.flag(1)  # reference_select
    out.flag(1)  # skip_mode_present
    if stream.warps:
        out.flag(0)  # allow_warped_motion
    out.flag(0)  # reduced_tx_set
    out.bits(_REFERENCES, 0)  # is_global
    size = out.size
    out.align()
    return size, int.from_bytes(out.bytes(), "big") >> -size % 8


@functools.lru_cache(maxsize=8)
def _all_skipped(across: int, down: int, superblock: int) -> bytes:
    """The tile of a picture in which every block is in skip mode, as large as it can be; in blocks of 8x8 samples."""
    return _Skipped(across, down).tile(superblock)


class _Skipped:
    """Writes a tile (5.11): how each superblock is parted, which it is at the edges of the picture only, and that its blocks are in skip mode."""

    def __init__(self, across: int, down: int) -> None:
        self._across, self._down = across, down
        self._coder = Coder()
        self._modes = [Kind((bound, WHOLE)) for bound in _SKIP_MODE]
        self._partitions = {size: [Kind((*bounds, WHOLE)) for bounds in table] for size, table in _PARTITION.items()}
        self._above = [0] * across
        """Width of the block above, for each column; 0 at the edge."""
        self._left = [0] * down
        """Height of the block to the left, for each row."""

    def tile(self, superblock: int) -> bytes:
        """All of it, with superblocks of this size."""
        for row in range(0, self._down, superblock):
            self._left = [0] * self._down
            for column in range(0, self._across, superblock):
                self._part(row, column, superblock)
        return self._coder.bytes()

    def _part(self, row: int, column: int, size: int) -> None:
        if row >= self._down or column >= self._across:
            return
        half = size // 2
        # Of the smallest blocks no half is outside, for pictures are coded in whole ones.
        wide, high = column + half < self._across, row + half < self._down
        narrow = 0 < self._above[column] < size
        low = 0 < self._left[row] < size
        kind = self._partitions[size][2 * low + narrow]
        if wide and high:
            self._coder.put(kind, 0)
            self._block(row, column, size, size)
        elif wide:
            self._coder.put_fixed(_either(kind, _VERTICAL), 0)
            self._block(row, column, size, half)
        elif high:
            self._coder.put_fixed(_either(kind, _HORIZONTAL), 0)
            self._block(row, column, half, size)
        else:
            for down in (row, row + half):
                for across in (column, column + half):
                    self._part(down, across, half)

    def _block(self, row: int, column: int, width: int, height: int) -> None:
        self._coder.put(self._modes[(self._above[column] > 0) + (self._left[row] > 0)], 1)
        for place in range(column, min(column + width, self._across)):
            self._above[place] = width
        for place in range(row, min(row + height, self._down)):
            self._left[place] = height


def _either(kind: Kind, splits: tuple[int, ...]) -> Kind:
    """At an edge a block is halved along it, or quartered, which has the likelihood of all *splits* (8.3.2)."""
    bounds = [0, *kind.bounds]
    return Kind((WHOLE - sum(bounds[way + 1] - bounds[way] for way in splits if way < len(kind.bounds)), WHOLE))


class _Header:
    """The header of an anchor, from its start to its tiles (5.9.2)."""

    def __init__(self, coded: bytes, stream: _Stream) -> None:
        self._coded, self._stream = coded, stream
        self._reader = reader = Reader(coded[:_LONGEST_HEADER])
        if reader.flag():
            raise Unexpected("a picture is shown that was made before")
        kind = reader.bits(2)
        self.key = kind == _KEY
        self._before_shown = reader.place
        if kind not in (_KEY, _INTER) or not reader.flag():
            raise Unexpected("not every picture is shown as soon as it is decoded")
        if not self.key and reader.flag():
            raise Unexpected("its pictures do not rely on one another")
        self._learns = not reader.flag()
        tools = reader.bits(1) if stream.tools == _CHOOSE else stream.tools
        self._whole = bool(tools) and bool(reader.bits(1) if stream.whole == _CHOOSE else stream.whole)
        if reader.flag():
            raise Unexpected("its pictures differ in size")
        self.hint = reader.bits(stream.hint_bits)
        self.refreshed = (1 << _SLOTS) - 1
        """Slots, as bits, that the encoder puts it in."""
        self.references: list[int] = []
        """Slots that it refers to, as the encoder counts them."""
        if not self.key:
            self._alone = reader.bits(3) == _NONE
            self._before_refreshed = reader.place
            self.refreshed = reader.bits(_SLOTS)
            if reader.flag():
                raise Unexpected("it does not say what a picture refers to")
            self._before_references = reader.place
            self.references = [reader.bits(3) for _ in range(_REFERENCES)]
        self._skip_to_quantiser(tools=bool(tools))
        self.quantiser = reader.bits(8)
        """base_q_idx."""

    def changed(self, *, hidden: bool, references: Sequence[int], hints: Sequence[int], refreshed: int) -> bytes:
        """The payload of a picture that is no key frame, with other slots.

        *hints* are those of its references. What is *hidden* can be shown later.
        """
        end = -(-self._reader.place // 8) * 8
        if hidden:
            # One bit more: all behind the header moves, so that its end must be found.
            self._skip_rest(hints)
            end = self._reader.place
        reader, out = Reader(self._coded[:_LONGEST_HEADER]), Writer()
        out.copy(reader, self._before_shown)
        reader.flag()
        out.flag(not hidden)
        if hidden:
            out.flag(1)  # showable_frame
        out.copy(reader, self._before_refreshed - reader.place)
        reader.bits(_SLOTS)
        out.bits(_SLOTS, refreshed)
        out.copy(reader, self._before_references - reader.place)
        reader.bits(3 * _REFERENCES)
        for slot in references:
            out.bits(3, slot)
        out.copy(reader, end - reader.place)
        out.align()
        return out.bytes() + self._coded[-(-end // 8) :]

    def _skip_to_quantiser(self, *, tools: bool) -> None:
        reader, stream = self._reader, self._stream
        if stream.scales and reader.flag():
            raise Unexpected("its pictures are stretched")
        if reader.flag():
            reader.bits(32)  # render_width_minus_1, render_height_minus_1
        if self.key:
            if tools:
                reader.flag()  # allow_intrabc
        else:
            self._precise = not self._whole and reader.flag()
            if not reader.flag():
                reader.bits(2)  # interpolation_filter
            reader.flag()  # is_motion_mode_switchable
            if stream.vectors:
                reader.flag()  # use_ref_frame_mvs
        if self._learns:
            reader.flag()  # disable_frame_end_update_cdf
        _Tiles(stream).skip(reader)

    def _skip_rest(self, hints: Sequence[int]) -> None:
        reader, stream = self._reader, self._stream
        if not self.quantiser:
            raise Unexpected("its pictures may be without loss")
        self._skip_quantisers()
        self._skip_filters()
        reader.flag()  # tx_mode_select
        several = reader.flag()
        if several and self._may_skip(hints):
            reader.flag()  # skip_mode_present
        if stream.warps:
            reader.flag()  # allow_warped_motion
        reader.flag()  # reduced_tx_set
        for _ in range(_REFERENCES):
            self._skip_global_motion()

    def _skip_quantisers(self) -> None:
        """How others differ from the one, segments, and whether blocks differ from those (5.9.12, 5.9.14, 5.9.17, 5.9.18)."""
        reader = self._reader
        _skip_change(reader)
        apart = self._stream.apart and reader.flag()
        for _ in range(4 if apart else 2):
            _skip_change(reader)
        if reader.flag():
            reader.bits(12 if self._stream.apart else 8)  # using_qmatrix
        if reader.flag():
            self._skip_segments()
        if reader.flag():
            reader.bits(2)  # delta_q_res
            if reader.flag():
                reader.bits(3)  # delta_lf_res, delta_lf_multi

    def _skip_segments(self) -> None:
        reader = self._reader
        anew = True
        if not self._alone:
            if reader.flag():
                reader.flag()  # segmentation_temporal_update
            anew = reader.flag()
        if anew:
            for _ in range(_SEGMENTS):
                for size in _FEATURE_BITS:
                    if reader.flag():
                        reader.bits(size)

    def _skip_filters(self) -> None:
        """Smoothing of edges, in directions, and restoration (5.9.11, 5.9.19, 5.9.20)."""
        reader, stream = self._reader, self._stream
        if reader.bits(12):
            reader.bits(12)  # loop_filter_level of colour planes
        reader.bits(3)  # loop_filter_sharpness
        if reader.flag() and reader.flag():
            for _ in range(_REFERENCES + 1 + 2):
                if reader.flag():
                    reader.bits(7)
        if stream.directions:
            reader.bits(2)  # cdef_damping_minus_3
            reader.bits(12 << reader.bits(2))
        if stream.restores:
            kinds = [reader.bits(2) for _ in range(3)]
            if any(kinds):
                if reader.flag() and stream.superblock == _SUPERBLOCK:
                    reader.flag()  # lr_unit_extra_shift
                if any(kinds[1:]):
                    reader.flag()  # lr_uv_shift

    def _may_skip(self, hints: Sequence[int]) -> bool:
        """Whether it has a mode that is the mean of two references (5.9.22): one from each direction, or two earlier ones."""
        distances = {self._stream.later(hint, self.hint) for hint in hints}
        earlier = {distance for distance in distances if distance < 0}
        return bool(earlier) and (max(distances) > 0 or len(earlier) > 1)

    def _skip_global_motion(self) -> None:
        """How all of a picture has moved since one reference (5.9.24, 5.9.25)."""
        reader = self._reader
        if not reader.flag():
            return
        turned = reader.flag()
        moved = not turned and reader.flag()
        sizes = [8 + self._precise] * 2 if moved else [12] * (4 if turned else 6)
        for size in sizes:
            _skip_subexponential(reader, (2 << size) + 1)


class _Tiles:
    """Into how many tiles a picture may be cut (5.9.15); all numbers are logarithms."""

    def __init__(self, stream: _Stream) -> None:
        self.across, self.down = (-(-blocks // stream.superblock) for blocks in (stream.across, stream.down))
        """Superblocks; these are none."""
        size = 8 * stream.superblock
        self._widest = WIDEST // size
        self.fewest_across = _halvings(self.across, self._widest)
        self.most_across = _halvings(min(self.across, _MOST_TILES))
        self.most_down = _halvings(min(self.down, _MOST_TILES))
        self.fewest = max(self.fewest_across, _halvings(self.across * self.down, LARGEST // size**2))

    def skip(self, reader: Reader) -> None:
        """Read which tiles there are."""
        if not reader.flag():
            raise Unexpected("its tiles differ in size")
        across = self.fewest_across
        while across < self.most_across and reader.flag():
            across += 1
        down = max(self.fewest - across, 0)
        while down < self.most_down and reader.flag():
            down += 1
        if across + down:
            reader.bits(across + down + 2)  # context_update_tile_id, tile_size_bytes_minus_1


def _halvings(number: int, until: int = 1) -> int:
    """How often *until* is doubled, until *number* is not greater (tile_log2)."""
    return (-(-number // until) - 1).bit_length()


def _skip_change(reader: Reader) -> None:
    """Read by how much a quantiser differs (5.9.13)."""
    if reader.flag():
        reader.bits(7)


def _skip_subexponential(reader: Reader, count: int) -> None:
    """Read one of *count* numbers, of which small ones have fewer bits (5.9.28)."""
    passed, size = 0, 3
    while count > passed + 3 * (1 << size):
        if not reader.flag():
            reader.bits(size)
            return
        passed += 1 << size
        size += passed > 8
    # What is left is about equally likely (4.10.7).
    left = count - passed
    most = left.bit_length()
    if reader.bits(most - 1) >= (1 << most) - left:
        reader.flag()


def _stream_of(payload: bytes) -> _Stream:
    """What a sequence header says (5.5)."""
    reader = Reader(payload)
    if reader.bits(3) or reader.bits(2):
        raise Unexpected("its colours are not at half the resolution, or it is a single picture")
    if reader.flag():
        raise Unexpected("it promises when pictures are shown")
    promised = reader.flag()  # initial_display_delay_present_flag
    if reader.bits(5) or reader.bits(12):
        raise Unexpected("it has layers")
    if reader.bits(5) > 7:
        reader.flag()  # seq_tier
    if promised and reader.flag():
        reader.bits(4)
    sizes = reader.bits(4) + 1, reader.bits(4) + 1
    across, down = (-(-(reader.bits(size) + 1) // 8) for size in sizes)
    if reader.flag():
        raise Unexpected("its pictures are numbered")
    superblock = 2 * _SUPERBLOCK if reader.flag() else _SUPERBLOCK
    reader.bits(4)  # Filters of what is predicted within a picture, and two kinds of mixes.
    warps = reader.flag()
    reader.flag()  # enable_dual_filter
    if not reader.flag():
        raise Unexpected("it does not say which picture is later")
    reader.flag()  # enable_jnt_comp
    vectors = reader.flag()
    tools = _CHOOSE if reader.flag() else reader.bits(1)
    whole = _CHOOSE if not tools or reader.flag() else reader.bits(1)
    hint_bits = reader.bits(3) + 1
    scales, directions, restores = reader.flag(), reader.flag(), reader.flag()
    reader.flag()  # high_bitdepth
    if reader.flag():
        raise Unexpected("it has no colours")
    if reader.flag():
        reader.bits(24)  # What its colours are.
    reader.bits(3)  # color_range, chroma_sample_position
    apart = reader.flag()
    if reader.flag():
        raise Unexpected("it has film grain")
    stream = _Stream(
        across=across,
        down=down,
        superblock=superblock,
        warps=warps,
        vectors=vectors,
        tools=tools,
        whole=whole,
        hint_bits=hint_bits,
        scales=scales,
        directions=directions,
        restores=restores,
        apart=apart,
    )
    if _Tiles(stream).fewest:
        raise Unexpected("its pictures are too large for one tile")
    return stream


def _parted(data: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Kind, whole and payload of each unit (5.3). Raises ValueError where one is cut short."""
    start = 0
    while start < len(data):
        first = data[start]
        if first & ~(15 << 3) != _SIZED:
            raise Unexpected("a unit has no size, or belongs to a layer")
        size, begin = 0, start + 1
        for shift in range(0, 35, 7):
            if begin >= len(data):
                raise ValueError("a unit ends too early")
            byte = data[begin]
            begin += 1
            size |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
        else:
            raise ValueError("a size is longer than any can be")
        end = begin + size
        if end > len(data):
            raise ValueError("a unit ends too early")
        yield first >> 3, data[start:end], data[begin:end]
        start = end


def _unit(kind: int, payload: bytes) -> bytes:
    out = bytearray([kind << 3 | _SIZED])
    size = len(payload)
    while size > 0x7F:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + payload
