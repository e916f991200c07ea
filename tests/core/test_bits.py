"""Codes of a video stream, and the bytes that keep a start code out of a unit."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from stepwatch.core.bits import Reader, Writer, raw_of_unit, unit_of_raw

PAYLOADS = st.lists(st.sampled_from([0, 0, 0, 1, 2, 3, 4, 255]), min_size=1, max_size=40).map(lambda found: bytes([*found, 0x80]))
"""Rich in zeros; the last bit of a payload is a one."""


@given(PAYLOADS)
@example(b"\0\0\0\0\0\0\0\x80")
@example(b"\0\0\3\0\0\3\0\0\3\x80")
@example(b"\0\0\1\0\0\0\1\x80")
def test_no_payload_looks_like_a_start_code_and_each_comes_back(raw: bytes) -> None:
    """Whatever zeros are in it: a unit has no 00 00 00, 01 or 02, and a 03 behind two zeros only where it was put."""
    unit = unit_of_raw(raw)
    assert not re.search(rb"\x00\x00[\x00-\x02]", unit)
    assert raw_of_unit(unit) == raw


@given(st.lists(st.tuples(st.sampled_from(["unsigned", "signed", "flag", "bits"]), st.integers(0, 2**32 - 2)), max_size=30))
def test_codes_come_back_in_order(values: list[tuple[str, int]]) -> None:
    """Exp-Golomb codes up to their largest values, flags and plain bits, mixed."""
    out = Writer()
    expected = []
    for kind, value in values:
        meant = {"signed": (value + 1) // 2 if value & 1 else -(value // 2), "flag": value & 1}.get(kind, value)
        write: dict[str, Callable[[int], None]] = {
            "unsigned": out.unsigned,
            "signed": out.signed,
            "flag": out.flag,
            "bits": functools.partial(out.bits, 32),
        }
        write[kind](meant)
        expected.append(meant)
    size = out.size
    out.close()
    reader = Reader(out.bytes())
    read: dict[str, Callable[[], int]] = {
        "unsigned": reader.unsigned,
        "signed": reader.signed,
        "flag": reader.flag,
        "bits": functools.partial(reader.bits, 32),
    }
    assert [read[kind]() for kind, _ in values] == expected
    assert reader.place == size
    assert reader.flag()
    assert not reader.bits(reader.size - reader.place)


@pytest.mark.parametrize(
    ("value", "signed", "code"),
    [(0, 0, "1"), (1, 1, "010"), (2, -1, "011"), (3, 2, "00100"), (6, -3, "00111"), (7, 4, "0001000"), (254, -127, "0" * 7 + "1" * 8)],
)
def test_codes_are_those_of_the_standard(value: int, signed: int, code: str) -> None:
    """Tables 9-2 and 9-3 of H.264."""
    one, other = Writer(), Writer()
    one.unsigned(value)
    other.signed(signed)
    for out in (one, other):
        assert out.size == len(code)
        out.align()
        assert out.bytes() == int(code.ljust(-(-len(code) // 8) * 8, "0"), 2).to_bytes(-(-len(code) // 8), "big")


@given(st.binary(min_size=1, max_size=20), st.data())
def test_what_is_copied_bit_by_bit_is_the_same(data: bytes, pieces: st.DataObject) -> None:
    """In pieces of any lengths."""
    reader, out = Reader(data), Writer()
    while reader.place < reader.size:
        out.copy(reader, pieces.draw(st.integers(1, reader.size - reader.place)))
    assert out.bytes() == data


def test_a_unit_that_ends_too_early_is_refused() -> None:
    """Also within a code, and a code that never begins."""
    with pytest.raises(ValueError, match="too early"):
        Reader(b"\0").bits(9)
    with pytest.raises(ValueError, match="too early"):
        Reader(b"\x01").unsigned()
    with pytest.raises(ValueError, match="longer than any"):
        Reader(bytes(8)).unsigned()
