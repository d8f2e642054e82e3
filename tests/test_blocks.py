"""The rules of blocks."""

from __future__ import annotations

from array import array

from hypothesis import given
from hypothesis import strategies as st

from helperd.blocks import PAGE_SIZE, ZERO_SIZE, count_sentinels, max_stored_size

# The sentinels, their neighbours, sizes that share a byte with them, and any.
sizes = st.one_of(
    st.sampled_from([0, 1, 255, 256, 257, 3840, 4095, 4096, 4097, max_stored_size(PAGE_SIZE)]),
    st.integers(0, max_stored_size(PAGE_SIZE)),
)


@given(st.lists(sizes, max_size=600))
def test_sentinels_are_counted(drawn: list[int]) -> None:
    expected = drawn.count(ZERO_SIZE), drawn.count(PAGE_SIZE)
    assert count_sentinels(array("I", drawn)) == expected
