"""The arithmetic coder of AV1, as far as pictures need it in which every block is skipped.

AV1 specification, clause 8.2: symbols have several values, not two, and what is expected of a kind is a table that learns from what it is used for.
"""

from __future__ import annotations

WHOLE = 1 << 15
"""A likelihood of one."""
_LEAST = 4
"""What every value gets of the range, however unlikely (EC_MIN_PROB)."""


class Kind:
    """What is expected of one kind of symbol; it learns from each.

    *bounds* are likelihoods that a symbol is no greater than 0, 1 and so on, in parts of WHOLE; the last one is WHOLE.
    """

    def __init__(self, bounds: tuple[int, ...]) -> None:
        self.bounds = list(bounds)
        self._seen = 0

    def part(self, symbol: int, width: int) -> int:
        """What a range of *width* has left for the values beyond *symbol* (8.2.6)."""
        share = (width >> 8) * (WHOLE - self.bounds[symbol] >> 6) >> 1
        return share + _LEAST * (len(self.bounds) - 1 - symbol)

    def learn(self, symbol: int) -> None:
        """Expect more of the same from now on."""
        rate = 3 + (self._seen > 15) + (self._seen > 31) + min(len(self.bounds).bit_length() - 1, 2)
        for value, bound in enumerate(self.bounds[:-1]):
            self.bounds[value] = bound + (WHOLE - bound >> rate) if value >= symbol else bound - (bound >> rate)
        self._seen = min(self._seen + 1, 32)


class Coder:
    """Collects symbols of a tile. Carries take care of themselves where a number has no end.

    What the decoder reads is the complement of the number that is collected here.
    """

    def __init__(self) -> None:
        self._low = 0
        self._width = WHOLE
        self._shifted = 0

    def put(self, kind: Kind, symbol: int) -> None:
        """One symbol, from 0."""
        self.put_fixed(kind, symbol)
        kind.learn(symbol)

    def put_fixed(self, kind: Kind, symbol: int) -> None:
        """One symbol of a kind that does not learn from it."""
        beyond = kind.part(symbol, self._width)
        until = kind.part(symbol - 1, self._width) if symbol else self._width
        self._low += beyond
        self._width = until - beyond
        shift = 16 - self._width.bit_length()
        self._low <<= shift
        self._width <<= shift
        self._shifted += shift

    def bytes(self) -> bytes:
        """The whole tile: the bits that matter, a one behind them, and zeros to the end of the byte (8.2.4)."""
        # Of all numbers in the range, the one whose complement has a one and nothing but zeros after the bits that were shifted out.
        number = -(-(self._low - (WHOLE // 2 - 1)) // WHOLE)
        code = (1 << self._shifted) - 1 - number
        size = self._shifted + 1
        return ((code << 1 | 1) << -size % 8).to_bytes(-(-size // 8), "big")
