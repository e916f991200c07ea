"""H.265: cross-fades between coded pictures, written as pictures of their own without an encoder.

Theory of operation. It is that of `stepwatch.core.avc`: only *anchors* are encoded, as a plain sequence of I- and P-pictures, and `Weaver` moves
them to their places in time and puts B-pictures between in which every block is skipped. A skipped block takes its motion from its neighbours,
the first one none at all (8.5.3.2.2 with one candidate: the zero candidate of 8.5.3.2.5, once in each direction), so that every block is the
mean of the anchors around it. H.265 has no implicit weights; each of these pictures tells its own (7.3.6.3), in parts of 128.

What has to change in the encoder's own units: the parameters get room for two references and for one picture that waits for those before it,
weights in B-slices, and slices that may go without the deblocking filter; each slice header gets its place, and the anchor before it as the only
picture to keep (7.3.7). The coded blocks behind a header are copied as they are.

Motion may not be taken from the anchors' own: a picture that does not offer it would have to be without it for good (7.4.7.1, of
slice_temporal_mvp_enabled_flag). That, rows that are coded side by side, and more than one reference are what x265 has to be told to leave out:
see `PARAMS`.

Clause numbers are those of ITU-T H.265 (08/2021). Units are without start codes; *raw* is a unit without its emulation prevention.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

from stepwatch.core.bits import Reader, Unexpected, Writer, raw_of_unit, unit_of_raw
from stepwatch.core.cabac import Coder, Context

__all__ = ["LONGEST_FADE", "PARAMS", "Unexpected", "Weaver"]

LONGEST_FADE = 127
"""Pictures from one anchor to the next, at most: with more, the nearest would have no weight of their own, and places would take more bits."""
PARAMS = "bframes=0:b-adapt=0:ref=1:temporal-mvp=0:wpp=0:open-gop=0:scenecut=0:keyint=-1"
"""What x265 must be asked for, among its own parameters."""

_TRAILING, _BEGINS, _SLICES = 1, (19, 20), 32
"""nal_unit_type (table 7-1): TRAIL_R; IDR_W_RADL and IDR_N_LP; the first that is no slice."""
_TRAILING_UNREFERRED = 0
_VIDEO, _SEQUENCE, _PICTURE, _ADVICE = 32, 33, 34, 39
_OF_BUFFERS = (0, 1)
"""Payloads of advice (annex D.2.1) that would no longer be true."""
_ONLY_LAYER = 1
"""nuh_layer_id 0 and nuh_temporal_id_plus1 1, as the last nine bits of a unit's header."""
_PROFILES = (1, 2, 4)
"""Main, Main 10, format range extensions (annex A.3)."""
_PROFILE_BITS = 96
"""Of profile_tier_level with nothing but the whole stream in it (7.3.3)."""
_PLACE_BITS = 8
"""Of places as they are told, next to that of the last anchor: more than twice the longest fade (8.3.1)."""
_B, _P = 0, 1
"""slice_type (table 7-7)."""
_DENOMINATOR = 6
"""Of weights, as a power of two: the two together are 128 of them, twice as many as H.264 has. Finer ones take more bytes than they are worth."""
_SPLIT = (-15, 72), (10, 72), (-10, 96)
"""Contexts for split_cu_flag in a B-slice (initial values 107, 139, 126 of clause 9.3.2.2), by how many neighbours are smaller."""
_SKIPPED = (15, 24), (10, 56), (15, 56)
"""Contexts for cu_skip_flag in a B-slice (initial values 197, 185, 201), by how many neighbours are skipped."""
_HEADER_BYTES = 64
"""More than a slice header ever has that knows of no entry points."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sequence:
    width: int
    """In samples, a whole number of smallest blocks."""
    height: int
    smallest: int
    """Of blocks that are not split, as a power of two."""
    largest: int
    """Of those that a picture is cut into at first, as a power of two."""
    chroma: bool
    adaptive: bool
    """Slice headers tell of sample adaptive offsets."""
    place_bits: int
    """As the encoder has written them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parameters:
    number: int
    quantiser: int
    prepared: bool
    """Slice headers tell which contexts to begin with."""
    tinted: bool
    """Slice headers tell of quantisers for colour planes."""
    weighted: bool
    """P-slices have weights."""
    filtered: bool
    """By the deblocking filter, where a slice says nothing else."""
    across: bool
    """Filters go across slices, and slice headers tell whether they do."""


class Weaver:
    """Makes a stream with cross-fades of one that has only their ends. Raises Unexpected for what x265 does not write with our options.

    *units* are the stream's video, sequence and picture parameters.
    """

    def __init__(self, units: Sequence[bytes]) -> None:
        by_kind = {unit[0] >> 1 & 63: unit for unit in units if unit}
        if sorted(by_kind) != [_VIDEO, _SEQUENCE, _PICTURE] or len(units) != 3:
            raise Unexpected("it does not begin with one set of video, of sequence and of picture parameters")
        sequence, self._sequence = _new_sequence(by_kind[_SEQUENCE])
        picture, self._picture = _new_picture(by_kind[_PICTURE])
        self.units = [_new_video(by_kind[_VIDEO]), sequence, picture]
        """The stream's new parameters."""
        self._place = 0
        """Of the last anchor, in pictures since the last one that begins anew."""
        self.key = False
        """Whether the last anchor refers to nothing."""

    def anchor(self, units: Sequence[bytes], gap: int) -> list[bytes]:
        """The units of the next anchor, which shows *gap* pictures after the one before it; 0 for the first.

        One that begins anew shows in the very next place: nothing can lead to it. Raises ValueError for more than the longest fade.
        """
        if gap > LONGEST_FADE:
            raise ValueError(f"{gap} pictures from one anchor to the next are more than {LONGEST_FADE}")
        woven = []
        place = None
        for unit in units:
            kind = unit[0] >> 1 & 63
            if kind in (_VIDEO, _SEQUENCE, _PICTURE):
                raise Unexpected("its parameters change")
            if kind == _ADVICE and unit[2] in _OF_BUFFERS:
                raise Unexpected("it promises a bit rate")
            if kind >= _SLICES:
                woven.append(unit)
                continue
            if kind in _BEGINS:
                if gap > 1:
                    raise Unexpected("a picture that others should lead to begins anew")
                place = 0
            elif kind == _TRAILING and gap:
                place = self._place + gap
            else:
                raise Unexpected("a picture is of another kind than asked for")
            woven.append(_placed(unit, self._sequence, self._picture, place=place, gap=gap))
        if place is None:
            raise Unexpected("a picture has no slice")
        self._place, self.key = place, not place
        return woven

    def fades(self, gap: int) -> Iterator[bytes]:
        """The units of the pictures between the last two anchors, in order."""
        for step in range(1, gap):
            yield self._fade(step, gap)

    def _fade(self, step: int, gap: int) -> bytes:
        sequence, picture, out = self._sequence, self._picture, Writer()
        out.bits(7, _TRAILING_UNREFERRED)
        out.bits(9, _ONLY_LAYER)
        out.flag(1)  # first_slice_segment_in_pic_flag
        out.unsigned(picture.number)
        out.unsigned(_B)
        out.bits(_PLACE_BITS, self._place - gap + step)
        _put_references(out, before=step, after=gap - step)
        if sequence.adaptive:
            out.bits(1 + sequence.chroma, 0)
        out.flag(0)  # num_ref_idx_active_override_flag: one in each direction
        out.flag(0)  # mvd_l1_zero_flag
        if picture.prepared:
            out.flag(0)  # cabac_init_flag
        _put_weights(out, step, gap, chroma=sequence.chroma)
        out.unsigned(4)  # five_minus_max_num_merge_cand: one candidate
        out.signed(0)  # slice_qp_delta
        if picture.tinted:
            out.signed(0)
            out.signed(0)
        out.flag(1)  # deblocking_filter_override_flag
        out.flag(1)  # slice_deblocking_filter_disabled_flag: there are no edges
        out.close()
        value, size = _all_skipped(sequence.width, sequence.height, sequence.smallest, sequence.largest, picture.quantiser)
        out.bits(size, value)
        out.align()
        return unit_of_raw(out.bytes())


@functools.lru_cache(maxsize=8)
def _all_skipped(width: int, height: int, smallest: int, largest: int, quantiser: int) -> tuple[int, int]:
    """Slice data (7.3.8) of as few blocks as the picture's sides allow."""
    coder = Coder()
    split, skipped = ([Context(*start, quantiser) for start in starts] for starts in (_SPLIT, _SKIPPED))
    left, above = [0] * (height >> smallest), [0] * (width >> smallest)
    """How often the blocks were split that were the last in each row and column of smallest blocks."""

    def put(x: int, y: int, size: int, depth: int) -> None:
        if x + (1 << size) > width or y + (1 << size) > height:
            half = 1 << size - 1
            for down, across in ((0, 0), (0, half), (half, 0), (half, half)):
                if x + across < width and y + down < height:
                    put(x + across, y + down, size - 1, depth + 1)
            return
        row, column = y >> smallest, x >> smallest
        if size > smallest:
            coder.put(split[(x > 0 and left[row] > depth) + (y > 0 and above[column] > depth)], 0)
        coder.put(skipped[(x > 0) + (y > 0)], 1)
        blocks = 1 << size - smallest
        left[row : row + blocks] = above[column : column + blocks] = [depth] * blocks

    for y in range(0, height, 1 << largest):
        for x in range(0, width, 1 << largest):
            if x or y:
                coder.more()
            put(x, y, largest, 0)
    return coder.end()


def _put_references(out: Writer, *, before: int, after: int = 0) -> None:
    """The pictures to keep (7.3.7): one so many pictures before, and one so many after, or none."""
    out.flag(0)  # short_term_ref_pic_set_sps_flag
    out.unsigned(1)
    out.unsigned(int(after > 0))
    for distance in (before, after):
        if distance:
            out.unsigned(distance - 1)
            out.flag(1)


def _put_weights(out: Writer, step: int, gap: int, *, chroma: bool) -> None:
    """Weights (7.3.6.3) of the two anchors: as far as the picture is on its way, for the later one, and what is left, for the earlier one."""
    out.unsigned(_DENOMINATOR)
    if chroma:
        out.signed(0)
    one = 1 << _DENOMINATOR
    later = round(Fraction(2 * one * step, gap))
    for weight in (2 * one - later, later):
        out.bits(1 + chroma, -1)  # all have weights
        out.signed(weight - one)
        out.signed(0)
        if chroma:
            # An offset is told as its distance from one that follows from the weight (7.4.7.3). The weights of both anchors make two wholes, so
            # that those that follow are opposite; nothing has to be told, for only their sum is ever added (8.5.3.3.4.3).
            for _ in range(2):
                out.signed(weight - one)
                out.signed(0)


class _Copy:
    """Copies codes of a payload one by one, and tells what they were."""

    def __init__(self, raw: bytes) -> None:
        self.reader = Reader(raw)
        self.out = Writer()

    def bits(self, count: int) -> int:
        value = self.reader.bits(count)
        self.out.bits(count, value)
        return value

    def flag(self) -> bool:
        return bool(self.bits(1))

    def unsigned(self) -> int:
        value = self.reader.unsigned()
        self.out.unsigned(value)
        return value

    def signed(self) -> int:
        value = self.reader.signed()
        self.out.signed(value)
        return value

    def never(self, complaint: str) -> None:
        """A flag that is not set."""
        if self.flag():
            raise Unexpected(complaint)

    def unit(self, raw: bytes) -> bytes:
        """The new unit, with what is left of *raw* and its end."""
        padding = (raw[-1] & -raw[-1]).bit_length() - 1
        self.bits(self.reader.size - self.reader.place - padding - 1)
        self.out.close()
        return unit_of_raw(self.out.bytes())


def _placed(unit: bytes, sequence: _Sequence, picture: _Parameters, *, place: int, gap: int) -> bytes:
    """An anchor's slice at a place in time, which is 0 if it begins anew (7.3.6.1)."""
    raw = raw_of_unit(unit)
    copy = _Copy(raw[:_HEADER_BYTES])
    if copy.bits(16) & 0x1FF != _ONLY_LAYER:
        raise Unexpected("it has layers")
    if not copy.flag():
        # x265 takes more than one only with rows that are coded side by side.
        raise Unexpected("a picture has several slices")
    if not place:
        copy.flag()  # no_output_of_prior_pics_flag
    if copy.unsigned() != picture.number:
        raise Unexpected("a slice names parameters that are not there")
    kind = copy.unsigned()
    if kind == _B:
        raise Unexpected("it has pictures that refer to later ones")
    if place:
        _skip_references(copy.reader, sequence)
        copy.out.bits(_PLACE_BITS, place)
        _put_references(copy.out, before=gap)
    adaptive = sequence.adaptive and copy.bits(1 + sequence.chroma) > 0
    if kind == _P:
        if copy.flag() and copy.unsigned():
            raise Unexpected("a picture refers to several")
        if picture.prepared:
            copy.flag()  # cabac_init_flag
        if picture.weighted:
            _copy_weights(copy, chroma=sequence.chroma)
        copy.unsigned()  # five_minus_max_num_merge_cand
    copy.signed()  # slice_qp_delta
    if picture.tinted:
        copy.signed()
        copy.signed()
    copy.out.flag(0)  # deblocking_filter_override_flag
    if picture.across and (adaptive or picture.filtered):
        copy.flag()  # slice_loop_filter_across_slices_enabled_flag
    copy.out.close()
    padding = 8 - copy.reader.place % 8
    if copy.reader.bits(padding) != 1 << padding - 1:
        raise Unexpected("its slice headers are longer than asked for")
    return unit_of_raw(copy.out.bytes() + raw[copy.reader.place // 8 :])


def _skip_references(reader: Reader, sequence: _Sequence) -> None:
    """A place, and which pictures to keep; if any, the one before (7.3.7, for a set that is the first)."""
    reader.bits(sequence.place_bits)
    if reader.flag():
        raise Unexpected("it has sets of references in stock")
    earlier, later = reader.unsigned(), reader.unsigned()
    if later:
        raise Unexpected("it has pictures that refer to later ones")
    for number in range(earlier):
        distance, used = reader.unsigned() + 1, reader.flag()
        if number == 0 and (distance != 1 or not used):
            raise Unexpected("a picture refers to another than the one before it")


def _copy_weights(copy: _Copy, *, chroma: bool) -> None:
    """Weights of the one reference of a P-slice (7.3.6.3)."""
    copy.unsigned()
    if chroma:
        copy.signed()
    luma, colours = copy.flag(), chroma and copy.flag()
    for _ in range(2 * luma + 4 * colours):
        copy.signed()


def _copy_profile(copy: _Copy) -> None:
    if copy.bits(_PROFILE_BITS) >> _PROFILE_BITS - 8 & 31 not in _PROFILES:
        raise Unexpected("its profile is another than asked for")


def _copy_buffering(copy: _Copy) -> None:
    """How many pictures are kept at once, wait for those before them, and for how long: three, one, and nothing promised."""
    copy.flag()
    for value in (max(2, copy.reader.unsigned()), max(1, copy.reader.unsigned())):
        copy.out.unsigned(value)
    copy.reader.unsigned()
    copy.out.unsigned(0)


def _new_video(unit: bytes) -> bytes:
    """Video parameters (7.3.2.1) with room for two references."""
    raw = raw_of_unit(unit)
    copy = _Copy(raw)
    copy.bits(16 + 4 + 2)
    if copy.bits(6 + 3):
        raise Unexpected("it has layers")
    copy.bits(1 + 16)
    _copy_profile(copy)
    _copy_buffering(copy)
    return copy.unit(raw)


def _new_sequence(unit: bytes) -> tuple[bytes, _Sequence]:
    """Sequence parameters (7.3.2.2.1) with room for two references, and places of as many bits as they need."""
    raw = raw_of_unit(unit)
    copy = _Copy(raw)
    copy.bits(16 + 4)
    if copy.bits(3):
        raise Unexpected("it has layers")
    copy.flag()
    _copy_profile(copy)
    copy.unsigned()  # sps_seq_parameter_set_id
    chroma = copy.unsigned()
    if chroma == 3:
        copy.never("its planes are coded each by itself")
    width, height = copy.unsigned(), copy.unsigned()
    if copy.flag():
        for _ in range(4):
            copy.unsigned()  # cropping
    copy.unsigned()  # depths
    copy.unsigned()
    place_bits = copy.reader.unsigned() + 4
    copy.out.unsigned(_PLACE_BITS - 4)
    _copy_buffering(copy)
    smallest = copy.unsigned() + 3
    largest = smallest + copy.unsigned()
    for _ in range(4):
        copy.unsigned()  # transforms
    copy.never("it has scaling matrices")
    copy.flag()  # amp_enabled_flag
    adaptive = copy.flag()
    copy.never("it has blocks that are not coded")
    if copy.unsigned():
        raise Unexpected("it has sets of references in stock")
    copy.never("it has references for long")
    copy.never("it takes motion from other pictures")
    return copy.unit(raw), _Sequence(
        width=width,
        height=height,
        smallest=smallest,
        largest=largest,
        chroma=chroma != 0,
        adaptive=adaptive,
        place_bits=place_bits,
    )


def _new_picture(unit: bytes) -> tuple[bytes, _Parameters]:
    """Picture parameters (7.3.2.3.1) with weights in B-slices, which may go without the deblocking filter."""
    raw = raw_of_unit(unit)
    copy = _Copy(raw)
    copy.bits(16)
    number = copy.unsigned()
    copy.unsigned()  # pps_seq_parameter_set_id
    copy.never("it has slices that depend on others")
    copy.never("it has pictures that are not shown")
    if copy.bits(3):
        raise Unexpected("its slice headers are longer than asked for")
    copy.flag()  # sign_data_hiding_enabled_flag
    prepared = copy.flag()
    if copy.unsigned() or copy.unsigned():
        raise Unexpected("a picture refers to several")
    quantiser = 26 + copy.signed()
    copy.bits(2)  # constrained_intra_pred_flag, transform_skip_enabled_flag
    if copy.flag():
        copy.unsigned()  # diff_cu_qp_delta_depth
    copy.signed()  # quantisers for colour planes
    copy.signed()
    tinted = copy.flag()
    weighted = copy.flag()
    copy.reader.flag()
    copy.out.flag(1)  # weighted_bipred_flag
    copy.never("it may be lossless")
    copy.never("it has tiles")
    copy.never("its rows are coded side by side")
    across = copy.flag()
    filtered = _copy_filter(copy)
    copy.never("it has scaling matrices")
    copy.never("it orders its references")
    copy.unsigned()  # log2_parallel_merge_level_minus2
    copy.never("its slice headers are longer than asked for")
    copy.never("it has extensions")
    return copy.unit(raw), _Parameters(
        number=number,
        quantiser=quantiser,
        prepared=prepared,
        tinted=tinted,
        weighted=weighted,
        filtered=filtered,
        across=across,
    )


def _copy_filter(copy: _Copy) -> bool:
    """What picture parameters say of the deblocking filter, now with leave for slices to say something else; whether it is on."""
    told = copy.reader.flag()
    if told and copy.reader.flag():
        raise Unexpected("its slices have filters of their own")
    copy.out.flag(1)  # deblocking_filter_control_present_flag
    copy.out.flag(1)  # deblocking_filter_override_enabled_flag
    if told:
        filtered = not copy.flag()
        if filtered:
            copy.signed()
            copy.signed()
        return filtered
    copy.out.flag(0)  # pps_deblocking_filter_disabled_flag
    copy.out.signed(0)
    copy.out.signed(0)
    return True
