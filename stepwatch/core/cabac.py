"""The arithmetic coder of H.264 and H.265 (CABAC), as far as pictures need it in which every block is skipped.

ITU-T H.264 (08/2021), clause 9.3.4.2; H.265, clause 9.3.4, has the same coder with other contexts. A bit whose value is as likely as its context
expects costs a small part of a bit, so that a whole picture of skipped blocks takes a few bytes.
"""

from __future__ import annotations

FIRST_RANGE = 510
REGISTER = 10
"""Bits of the standard's register for the lower end of the range."""

_LEAST_PROBABLE: tuple[tuple[int, int, int, int], ...] = (
    (128, 176, 208, 240), (128, 167, 197, 227), (128, 158, 187, 216), (123, 150, 178, 205), (116, 142, 169, 195), (111, 135, 160, 185),
    (105, 128, 152, 175), (100, 122, 144, 166), (95, 116, 137, 158), (90, 110, 130, 150), (85, 104, 123, 142), (81, 99, 117, 135),
    (77, 94, 111, 128), (73, 89, 105, 122), (69, 85, 100, 116), (66, 80, 95, 110), (62, 76, 90, 104), (59, 72, 86, 99),
    (56, 69, 81, 94), (53, 65, 77, 89), (51, 62, 73, 85), (48, 59, 69, 80), (46, 56, 66, 76), (43, 53, 63, 72),
    (41, 50, 59, 69), (39, 48, 56, 65), (37, 45, 54, 62), (35, 43, 51, 59), (33, 41, 48, 56), (32, 39, 46, 53),
    (30, 37, 43, 50), (29, 35, 41, 48), (27, 33, 39, 45), (26, 31, 37, 43), (24, 30, 35, 41), (23, 28, 33, 39),
    (22, 27, 32, 37), (21, 26, 30, 35), (20, 24, 29, 33), (19, 23, 27, 31), (18, 22, 26, 30), (17, 21, 25, 28),
    (16, 20, 23, 27), (15, 19, 22, 25), (14, 18, 21, 24), (14, 17, 20, 23), (13, 16, 19, 22), (12, 15, 18, 21),
    (12, 14, 17, 20), (11, 14, 16, 19), (11, 13, 15, 18), (10, 12, 15, 17), (10, 12, 14, 16), (9, 11, 13, 15),
    (9, 11, 12, 14), (8, 10, 12, 14), (8, 9, 11, 13), (7, 9, 11, 12), (7, 9, 10, 12), (7, 8, 10, 11),
    (6, 8, 9, 11), (6, 7, 9, 10), (6, 7, 8, 9), (2, 2, 2, 2),
)  # fmt: skip
"""Width of the less probable half, by state and by the quarter that the range lies in (table 9-44)."""
_AFTER_LEAST: tuple[int, ...] = (
    0, 0, 1, 2, 2, 4, 4, 5, 6, 7, 8, 9, 9, 11, 11, 12, 13, 13, 15, 15, 16, 16, 18, 18, 19, 19, 21, 21, 22, 22, 23, 24,
    24, 25, 26, 26, 27, 27, 28, 29, 29, 30, 30, 30, 31, 32, 32, 33, 33, 33, 34, 34, 35, 35, 35, 36, 36, 36, 37, 37, 37, 38, 38, 63,
)  # fmt: skip
"""State after a bit that was not the expected one (table 9-45)."""
_SUREST = 62


class Context:
    """What is expected of one kind of bit; it learns from each.

    *slope* and *offset* are the m and n of the standards' tables, *quantiser* is the slice's.
    """

    def __init__(self, slope: int, offset: int, quantiser: int) -> None:
        start = min(126, max(1, (slope * min(51, max(0, quantiser)) >> 4) + offset))
        self.expected = int(start > 63)
        self.state = start - 64 if self.expected else 63 - start


class Coder:
    """Collects bits of the slice data. The standard's carries take care of themselves where a number has no end."""

    def __init__(self) -> None:
        self._low = 0
        self._range = FIRST_RANGE
        self._shifted = 0

    def put(self, context: Context, bit: int) -> None:
        """One bit, 0 or 1, in a context."""
        width = _LEAST_PROBABLE[context.state][self._range >> 6 & 3]
        self._range -= width
        if bit == context.expected:
            context.state = min(context.state + 1, _SUREST)
        else:
            self._low += self._range
            self._range = width
            if not context.state:
                context.expected = 1 - context.expected
            context.state = _AFTER_LEAST[context.state]
        self._renew()

    def more(self) -> None:
        """The slice goes on after this block."""
        self._range -= 2
        self._renew()

    def end(self) -> tuple[int, int]:
        """The slice ends after this block: all bits as a number, and how many; the last of them is the one that ends a payload."""
        self._low += self._range - 2
        self._range = 2
        self._renew()
        # Of the register three bits are written; the first bit of all is always zero, and left out.
        return self._low >> REGISTER - 3 | 1, self._shifted + 2

    def _renew(self) -> None:
        shift = 9 - self._range.bit_length()
        if shift > 0:
            self._low <<= shift
            self._range <<= shift
            self._shifted += shift
