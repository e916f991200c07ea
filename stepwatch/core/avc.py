"""H.264: cross-fades between coded pictures, written as pictures of their own without an encoder.

Theory of operation. A B-picture in which every macroblock is skipped is, by the standard, the weighted mean of the two reference pictures around
it: nothing moves where nothing around it does (8.4.1.2.2), no residual is added, no edge is smoothed (8.7.2.1), and with implicit weights each
reference counts by its distance in time (8.4.2.3.1). That is a linear cross-fade, to within a sixty-fourth of the difference of the two, in a few
dozen bytes, and to a decoder it is the cheapest picture there is. So only *anchors* are encoded: the pictures between which the animation goes in a
straight line, as a plain sequence of I- and P-pictures. `Weaver` moves them to their places in time, and puts the pictures between.

What has to change in the encoder's own units: the sequence parameters get picture order counts of type 0 (H.264 derives no places of its own for
pictures that are not in order) and room for two references, the picture parameters implicit weights, and each slice header its place. The coded
macroblocks behind a header are copied as they are.

Clause numbers are those of ITU-T H.264 (08/2021). Units are without start codes; *raw* is a unit without its emulation prevention.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from stepwatch.core.bits import Reader, Unexpected, Writer, raw_of_unit, unit_of_raw
from stepwatch.core.cabac import Coder, Context

__all__ = ["LONGEST_FADE", "Unexpected", "Weaver"]

LONGEST_FADE = 63
"""Pictures from one anchor to the next, at most: weights go by distances of up to 127 fields, and are not exact beyond (8.4.2.3.1)."""

_SLICE, _IDR, _SEQUENCE, _PICTURE = 1, 5, 7, 8
_WITH_CHROMA = frozenset({100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135})
"""Profiles whose sequence parameters tell of planes and depths (7.3.2.1.1)."""
_NO_B_SLICES = 4
"""constraint_set5_flag, among the flags behind the profile (7.4.2.1.1)."""
_PLACE_BITS = 16
_SKIPPED_IN_B = 18, 64
"""Context 24, for mb_skip_flag in a B-slice whose neighbours are skipped too, with cabac_init_idc 0 (table 9-13)."""
_EXTENDED_ASPECT = 255
_B, _I_TYPES, _B_TYPES = 6, (2, 7), (1, 6)
"""slice_type (table 7-6); 6: B, like all of its picture."""


@dataclass(frozen=True, slots=True)
class _Sequence:
    number_bits: int
    """Of frame_num."""
    macroblocks: int
    """In a picture."""
    chroma: bool
    """Whether prediction weights would be told for colour planes too."""


@dataclass(frozen=True, slots=True)
class _Parameters:
    number: int
    quantiser: int
    weighted: bool
    control: bool
    """Slice headers tell of the deblocking filter."""


class Weaver:
    """Makes a stream with cross-fades of one that has only their ends. Raises Unexpected for what x264 does not write with our options.

    *units* are the stream's sequence and picture parameters.
    """

    def __init__(self, units: Sequence[bytes]) -> None:
        by_kind = {unit[0] & 31: unit for unit in units if unit}
        if sorted(by_kind) != [_SEQUENCE, _PICTURE] or len(units) != 2:
            raise Unexpected("it does not begin with one set of sequence parameters and one of picture parameters")
        sequence, self._sequence = _new_sequence(by_kind[_SEQUENCE])
        picture, self._picture = _new_picture(by_kind[_PICTURE])
        self.units = [sequence, picture]
        """The stream's new parameters."""
        self._place = 0
        """Of the last anchor, in pictures since the last one that begins anew."""
        self._numbered = 0
        """frame_num of the last anchor."""
        self.key = False
        """Whether the last anchor refers to nothing."""

    def anchor(self, units: Sequence[bytes], gap: int) -> list[bytes]:
        """The units of the next anchor, which shows *gap* pictures after the one before it; 0 for the first."""
        if gap > LONGEST_FADE:
            raise ValueError(f"{gap} pictures from one anchor to the next are more than {LONGEST_FADE}")
        woven = []
        last: tuple[int, int, bool] | None = None
        for unit in units:
            kind = unit[0] & 31
            if kind in (_SLICE, _IDR):
                begins = kind == _IDR
                if begins and gap > 1:
                    raise Unexpected("a key frame follows pictures that refer to it")
                header = _Header(raw_of_unit(unit), self._sequence, self._picture, begins=begins)
                place = 0 if begins else self._place + gap
                woven.append(header.placed(place))
                last = header.number, place, begins
            elif kind in (_SEQUENCE, _PICTURE):
                raise Unexpected("its parameters change")
            else:
                woven.append(unit)
        if last is None:
            raise Unexpected("a picture has no slice")
        self._numbered, self._place, self.key = last
        return woven

    def fades(self, gap: int) -> Iterator[bytes]:
        """The units of the pictures between the last two anchors, in order."""
        for step in range(1, gap):
            yield self._fade(self._place - gap + step)

    def _fade(self, place: int) -> bytes:
        out = Writer()
        out.bits(8, _SLICE)
        out.unsigned(0)  # first_mb_in_slice
        out.unsigned(_B)
        out.unsigned(self._picture.number)
        out.bits(self._sequence.number_bits, self._numbered + 1)
        out.bits(_PLACE_BITS, 2 * place)
        out.flag(1)  # direct_spatial_mv_pred_flag
        out.flag(1)  # num_ref_idx_active_override_flag: one in each direction
        out.unsigned(0)
        out.unsigned(0)
        out.flag(0)  # ref_pic_list_modification_flag_l0
        out.flag(0)  # ref_pic_list_modification_flag_l1
        out.unsigned(0)  # cabac_init_idc
        out.signed(0)  # slice_qp_delta
        if self._picture.control:
            out.unsigned(1)  # disable_deblocking_filter_idc: there are no edges
        out.align(1)
        value, size = _all_skipped(self._sequence.macroblocks, self._picture.quantiser)
        out.bits(size, value)
        out.align()
        return unit_of_raw(out.bytes())


@functools.lru_cache(maxsize=8)
def _all_skipped(macroblocks: int, quantiser: int) -> tuple[int, int]:
    coder, skipped = Coder(), Context(*_SKIPPED_IN_B, quantiser)
    for _ in range(macroblocks - 1):
        coder.put(skipped, 1)
        coder.more()
    coder.put(skipped, 1)
    return coder.end()


class _Header:
    """A slice header, from its start to the first macroblock (7.3.3)."""

    def __init__(self, raw: bytes, sequence: _Sequence, picture: _Parameters, *, begins: bool) -> None:
        self._raw = raw
        reader = Reader(raw[:64])
        referred = reader.bits(8) >> 5 & 3
        reader.unsigned()  # first_mb_in_slice
        kind = reader.unsigned()
        if kind in _B_TYPES or not referred:
            raise Unexpected("it has pictures that refer to later ones")
        if reader.unsigned() != picture.number:
            raise Unexpected("a slice names parameters that are not there")
        self.number = reader.bits(sequence.number_bits)
        if begins:
            reader.unsigned()  # idr_pic_id
        self._until = reader.place
        """Bits before pic_order_cnt_lsb."""
        if kind not in _I_TYPES:
            active = 1
            if reader.flag():
                active = reader.unsigned() + 1
            if active != 1:
                raise Unexpected("a picture refers to several")
            if reader.flag():
                while reader.unsigned() != 3:
                    reader.unsigned()
            if picture.weighted:
                self._skip_weights(reader, sequence)
        self._skip_marking(reader, begins=begins)
        if kind not in _I_TYPES:
            reader.unsigned()  # cabac_init_idc
        reader.signed()  # slice_qp_delta
        if picture.control and reader.unsigned() != 1:
            reader.signed()
            reader.signed()
        self._header = reader.place

    def placed(self, place: int) -> bytes:
        """The slice as a unit, at a place in time."""
        reader, out = Reader(self._raw[:64]), Writer()
        out.copy(reader, self._until)
        out.bits(_PLACE_BITS, 2 * place)
        out.copy(reader, self._header - self._until)
        out.align(1)
        return unit_of_raw(out.bytes() + self._raw[-(-self._header // 8) :])

    @staticmethod
    def _skip_weights(reader: Reader, sequence: _Sequence) -> None:
        reader.unsigned()
        if sequence.chroma:
            reader.unsigned()
        if reader.flag():
            reader.signed()
            reader.signed()
        if sequence.chroma and reader.flag():
            for _ in range(4):
                reader.signed()

    @staticmethod
    def _skip_marking(reader: Reader, *, begins: bool) -> None:
        if begins:
            reader.bits(2)
        elif reader.flag():
            raise Unexpected("a picture says which others to keep")


def _new_sequence(unit: bytes) -> tuple[bytes, _Sequence]:
    """Sequence parameters (7.3.2.1.1) with places that are told, and two references."""
    reader, out = Reader(raw_of_unit(unit)), Writer()

    def unsigned() -> int:
        value = reader.unsigned()
        out.unsigned(value)
        return value

    def flag() -> bool:
        value = reader.flag()
        out.flag(value)
        return value

    out.copy(reader, 8)
    profile = reader.bits(8)
    out.bits(8, profile)
    out.bits(8, reader.bits(8) & ~_NO_B_SLICES)
    out.copy(reader, 8)  # level_idc
    unsigned()  # seq_parameter_set_id
    chroma = 1
    if profile in _WITH_CHROMA:
        chroma = unsigned()
        if chroma == 3 and flag():
            raise Unexpected("its planes are coded each by itself")
        unsigned()  # depths
        unsigned()
        flag()  # qpprime_y_zero_transform_bypass_flag
        if flag():
            raise Unexpected("it has scaling matrices")
    number_bits = unsigned() + 4
    order = reader.unsigned()
    if order == 1:
        raise Unexpected("it counts pictures in cycles")
    if order == 0:
        raise Unexpected("it expects pictures that refer to later ones")
    out.unsigned(0)
    out.unsigned(_PLACE_BITS - 4)
    out.unsigned(max(2, reader.unsigned()))  # max_num_ref_frames
    flag()  # gaps_in_frame_num_value_allowed_flag
    across = unsigned() + 1
    down = unsigned() + 1
    if not flag():
        raise Unexpected("it is interlaced")
    flag()  # direct_8x8_inference_flag
    if flag():
        for _ in range(4):
            unsigned()  # cropping
    if flag():
        _copy_usability(reader, out)
    out.close()
    return unit_of_raw(out.bytes()), _Sequence(number_bits=number_bits, macroblocks=across * down, chroma=chroma != 0)


def _copy_usability(reader: Reader, out: Writer) -> None:
    """Usability information (annex E.1.1): a picture may wait for one other, and two are kept."""

    def flag() -> bool:
        value = reader.flag()
        out.flag(value)
        return value

    if flag():  # aspect ratio
        aspect = reader.bits(8)
        out.bits(8, aspect)
        if aspect == _EXTENDED_ASPECT:
            out.copy(reader, 32)
    if flag():
        out.copy(reader, 1)  # overscan
    if flag():
        out.copy(reader, 4)  # kind of signal, range
        if flag():
            out.copy(reader, 24)  # colours
    if flag():  # where chroma lies
        out.unsigned(reader.unsigned())
        out.unsigned(reader.unsigned())
    if flag():
        out.copy(reader, 65)  # rate
    if flag() or flag():
        raise Unexpected("it promises a bit rate")
    flag()  # pic_struct_present_flag
    if not flag():
        raise Unexpected("it does not say how many pictures wait")
    out.copy(reader, 1)
    for _ in range(4):
        out.unsigned(reader.unsigned())
    reader.unsigned()
    out.unsigned(1)  # max_num_reorder_frames
    out.unsigned(max(2, reader.unsigned()))  # max_dec_frame_buffering


def _new_picture(unit: bytes) -> tuple[bytes, _Parameters]:
    """Picture parameters (7.3.2.2) with implicit weights in B-slices."""
    raw = raw_of_unit(unit)
    reader, out = Reader(raw), Writer()
    out.copy(reader, 8)
    number = reader.unsigned()
    out.unsigned(number)
    out.unsigned(reader.unsigned())  # seq_parameter_set_id
    if not reader.flag():
        raise Unexpected("its codes are not arithmetic")
    out.flag(1)
    if reader.flag():
        raise Unexpected("it tells places twice")
    out.flag(0)
    groups = reader.unsigned()
    if groups:
        raise Unexpected("its slices lie in groups")
    out.unsigned(0)
    if reader.unsigned():
        raise Unexpected("a picture refers to several")
    out.unsigned(0)
    out.unsigned(reader.unsigned())
    weighted = reader.flag()
    out.flag(weighted)
    reader.bits(2)
    out.bits(2, 2)  # weighted_bipred_idc
    quantiser = reader.signed()
    out.signed(quantiser)
    out.signed(reader.signed())
    out.signed(reader.signed())
    control = reader.flag()
    out.flag(control)
    out.copy(reader, 1)  # constrained_intra_pred_flag
    if reader.flag():
        raise Unexpected("it has redundant pictures")
    out.flag(0)
    # What follows is copied with its end; its length in bits is what is left but for the padding behind the last one.
    padding = (raw[-1] & -raw[-1]).bit_length() - 1
    out.copy(reader, reader.size - reader.place - padding - 1)
    out.close()
    # Quantisers of deeper samples begin below zero, which contexts do not see (9.3.1.1).
    return unit_of_raw(out.bytes()), _Parameters(number=number, quantiser=26 + quantiser, weighted=weighted, control=control)
