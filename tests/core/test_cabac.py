"""The arithmetic coder: what the decoder that the standards describe makes of its bits."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stepwatch.core.bits import Reader
from stepwatch.core.cabac import Coder, Context
from tests.weaving import Decoder

CONTEXTS = st.lists(st.tuples(st.integers(-45, 30), st.integers(-16, 126), st.integers(-12, 60)), min_size=1, max_size=4)
BLOCKS = st.lists(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 1)), max_size=12), min_size=1, max_size=60)
"""Blocks of bits, each with the number of its context."""


@given(CONTEXTS, BLOCKS)
def test_bits_come_back_and_the_slice_ends_where_it_ended(starts: list[tuple[int, int, int]], blocks: list[list[tuple[int, int]]]) -> None:
    """Any bits in any contexts; the last bit that is read is the one that ends the payload."""
    coder = Coder()
    contexts = [Context(*start) for start in starts]
    for number, block in enumerate(blocks):
        if number:
            coder.more()
        for context, bit in block:
            coder.put(contexts[context % len(contexts)], bit)
    value, size = coder.end()

    reader = Reader((value << -size % 8).to_bytes(-(-size // 8), "big"))
    decoder = Decoder(reader)
    contexts = [Context(*start) for start in starts]
    for number, block in enumerate(blocks):
        if number:
            assert not decoder.ended()
        assert [decoder.take(contexts[context % len(contexts)]) for context, _ in block] == [bit for _, bit in block]
    assert decoder.ended()
    assert reader.place == size
    assert value & 1


def test_what_is_expected_costs_next_to_nothing() -> None:
    """A thousand bits of a kind take less than a hundred of the stream."""
    coder, context = Coder(), Context(18, 64, 26)
    for _ in range(1000):
        coder.put(context, 1)
    assert coder.end()[1] < 100


def test_contexts_begin_as_the_tables_say() -> None:
    """Clause 9.3.1.1 of H.264: 18 * 26 / 16 + 64 = 93, of which what is above 63 expects a one."""
    context = Context(18, 64, 26)
    assert (context.expected, context.state) == (1, 93 - 64)
    context = Context(-18, 64, 51)
    assert (context.expected, context.state) == (0, 63 - 6)
    assert Context(20, 100, 51).state == Context(20, 100, 90).state == 62
