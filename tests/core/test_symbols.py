"""The arithmetic coder of AV1: a decoder that does what the standard says gets back what was put."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.symbols import WHOLE, Coder, Kind


class Decoder:
    """The decoder for symbols (AV1 specification, clause 8.2)."""

    def __init__(self, data: bytes) -> None:
        self._bits = "".join(f"{byte:08b}" for byte in data)
        self._place = 15
        self._value = (1 << 15) - 1 ^ int(self._ahead(0, 15), 2)
        self._range = 1 << 15

    def take(self, kind: Kind) -> int:
        """The next symbol, from which the kind does not learn."""
        symbol, until = 0, self._range
        while self._value < (beyond := kind.part(symbol, self._range)):
            symbol, until = symbol + 1, beyond
        self._range, self._value = until - beyond, self._value - beyond
        bits = 16 - self._range.bit_length()
        self._range <<= bits
        read = int("0" + self._ahead(self._place, bits), 2)
        self._value = read ^ ((self._value + 1) << bits) - 1
        self._place += bits
        return symbol

    def ended(self) -> bool:
        """Whether nothing is left but the bit that marks the end, and padding (8.2.4)."""
        end = self._place - 15
        return end < len(self._bits) <= end + 8 and self._bits[end:].rstrip("0") == "1"

    def _ahead(self, start: int, count: int) -> str:
        return self._bits[start : start + count].ljust(count, "0")


kinds = st.lists(st.integers(1, WHOLE - 1), min_size=1, max_size=15, unique=True).map(lambda bounds: (*sorted(bounds), WHOLE))


@given(bounds=st.lists(kinds, min_size=1, max_size=3), data=st.data())
def test_what_is_put_comes_back(bounds: list[tuple[int, ...]], data: st.DataObject) -> None:
    """Whatever was likely, and whatever the kinds have learned from on the way."""
    known = [Kind(each) for each in bounds]
    chosen = st.integers(0, len(bounds) - 1).flatmap(lambda number: st.tuples(st.just(number), st.integers(0, len(bounds[number]) - 1)))
    symbols = data.draw(st.lists(chosen, max_size=60))
    coder = Coder()
    for number, symbol in symbols:
        coder.put(known[number], symbol)
    decoder = Decoder(coder.bytes())
    known = [Kind(each) for each in bounds]
    for number, symbol in symbols:
        assert decoder.take(known[number]) == symbol
        known[number].learn(symbol)
    assert decoder.ended()


def test_what_is_expected_costs_next_to_nothing() -> None:
    """A kind that has seen nothing but one value for long needs no bits for it."""
    kind, coder = Kind((WHOLE // 2, WHOLE)), Coder()
    for _ in range(1000):
        coder.put(kind, 1)
    assert len(coder.bytes()) < 10
