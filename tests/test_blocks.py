"""The rules of blocks."""

from __future__ import annotations

from array import array
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from helperd.blocks import (
    DEFAULT_MAX_PAGES,
    MAX_REGION_PAGES,
    PAGE_SIZE,
    ZERO_SIZE,
    count_kinds,
    count_sentinels,
    max_stored_size,
    pages_to_bytes,
    runs,
)

# The sentinels, their neighbours, sizes that share a byte with them, and any.
sizes = st.one_of(
    st.sampled_from([0, 1, 255, 256, 257, 3840, 4095, 4096, 4097, max_stored_size(PAGE_SIZE)]),
    st.integers(0, max_stored_size(PAGE_SIZE)),
)


@given(st.lists(sizes, max_size=600))
def test_sentinels_are_counted(drawn: list[int]) -> None:
    expected = drawn.count(ZERO_SIZE), drawn.count(PAGE_SIZE)
    assert count_sentinels(array("I", drawn)) == expected


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 5 * PAGE_SIZE + 1)), max_size=60))
def test_kinds_of_regions_blocks_are_counted(drawn: list[tuple[int, int]]) -> None:
    drawn += [(count, pages_to_bytes(count)) for count, _ in drawn[::3]]
    counts, stored = array("H", [n for n, _ in drawn]), array("I", [size for _, size in drawn])
    raw = sum(size == pages_to_bytes(count) for count, size in drawn)
    assert count_kinds(stored, counts) == (stored.count(ZERO_SIZE), raw)


def test_blocks_without_a_count_are_pages() -> None:
    assert count_kinds(array("I", [0, 0, PAGE_SIZE, 5]), array("H")) == (2, 1)


@given(st.lists(st.booleans(), max_size=40), st.sampled_from([0, 1]))
def test_runs_are_those_of_one_value(drawn: list[bool], value: int) -> None:
    found = list(runs(bytes(drawn), value))
    pages = [page for first, count in found for page in range(first, first + count)]
    assert pages == [page for page, it in enumerate(drawn) if it == value]
    # As long as they can be.
    assert all(before[0] + before[1] < after[0] for before, after in pairwise(found))


def test_limits_of_regions_and_requests() -> None:
    assert pages_to_bytes(MAX_REGION_PAGES) == 4 << 20
    assert pages_to_bytes(DEFAULT_MAX_PAGES) == 256 << 30
