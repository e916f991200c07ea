"""Bits of a video stream: fixed-length and Exp-Golomb codes, and the bytes that keep a start code from appearing in a unit.

The codes are those of ITU-T H.264, clause 9.1, which H.265 has taken over; the emulation prevention is that of H.264, clause 7.4.1.
"""

from __future__ import annotations

import re

_EMULATED = re.compile(rb"\x00\x00\x03")
_TO_PREVENT = re.compile(rb"\x00\x00(?=[\x00-\x03])")


class Unexpected(ValueError):
    """The encoder has written what is valid and was not asked for; in plain words."""


def raw_of_unit(unit: bytes) -> bytes:
    """The payload of a NAL unit without its emulation prevention bytes."""
    return _EMULATED.sub(b"\x00\x00", unit)


def unit_of_raw(raw: bytes) -> bytes:
    """The opposite of `raw_of_unit`; a payload never ends with a zero, for its last bit that is not padding is a one."""
    return _TO_PREVENT.sub(b"\x00\x00\x03", raw)


class Reader:
    """Reads codes from the start of *data*. Raises ValueError when it is used up."""

    def __init__(self, data: bytes) -> None:
        self._value = int.from_bytes(data, "big")
        self.size = 8 * len(data)
        self.place = 0
        """Bits that were read."""

    def bits(self, count: int) -> int:
        """An unsigned number of *count* bits."""
        if self.place + count > self.size:
            raise ValueError("the unit ends too early")
        self.place += count
        return self._value >> (self.size - self.place) & ((1 << count) - 1)

    def flag(self) -> bool:
        return bool(self.bits(1))

    def unsigned(self) -> int:
        """An Exp-Golomb code, ue(v)."""
        zeros = 0
        while not self.bits(1):
            zeros += 1
            if zeros > 32:
                raise ValueError("a code is longer than any can be")
        return (1 << zeros) - 1 + self.bits(zeros)

    def signed(self) -> int:
        """A signed Exp-Golomb code, se(v)."""
        code = self.unsigned()
        return (code + 1) // 2 if code & 1 else -(code // 2)


class Writer:
    """Collects codes; `bytes` gives them once their number is a multiple of eight."""

    def __init__(self) -> None:
        self._value = 0
        self.size = 0
        """Bits that were written."""

    def bits(self, count: int, value: int) -> None:
        """An unsigned number as *count* bits."""
        self._value = self._value << count | value & ((1 << count) - 1)
        self.size += count

    def flag(self, value: int) -> None:
        """One bit, 0 or 1."""
        self.bits(1, value)

    def unsigned(self, value: int) -> None:
        """An Exp-Golomb code, ue(v)."""
        self.bits(2 * (value + 1).bit_length() - 1, value + 1)

    def signed(self, value: int) -> None:
        """A signed Exp-Golomb code, se(v)."""
        self.unsigned(2 * value - 1 if value > 0 else -2 * value)

    def copy(self, reader: Reader, count: int) -> None:
        """The next *count* bits of *reader* as they are."""
        self.bits(count, reader.bits(count))

    def align(self, bit: int = 0) -> None:
        """Fill up to a whole byte."""
        while self.size % 8:
            self.bits(1, bit)

    def close(self) -> None:
        """The bit that ends a payload, and zeros behind it (rbsp_trailing_bits)."""
        self.bits(1, 1)
        self.align()

    def bytes(self) -> bytes:
        return self._value.to_bytes(self.size // 8, "big")
