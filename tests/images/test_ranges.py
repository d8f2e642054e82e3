"""Sets of ranges against sets of integers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from helperd.images.ranges import Ranges, find_holes

PAIRS = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 9))).map(
    lambda pairs: sorted((start, start + length) for start, length in pairs)
)


def numbers(pairs: object) -> set[int]:
    return {number for start, end in pairs for number in range(start, end)}  # type: ignore[attr-defined]


@given(PAIRS, st.integers(0, 70), st.integers(0, 70))
def test_like_a_set(pairs: list[tuple[int, int]], first: int, last: int) -> None:
    start, end = sorted((first, last))
    ranges, model = Ranges(pairs), numbers(pairs)
    window = set(range(start, end))
    assert numbers(ranges) == model
    assert ranges.total == len(model)
    assert numbers(ranges.within(start, end)) == model & window
    assert numbers(ranges.gaps(start, end)) == window - model
    assert ranges.overlaps(start, end) == bool(model & window)
    # Disjoint, and not even touching.
    found = list(ranges)
    assert len(found) == len(ranges)
    assert all(end < start for (_, end), (start, _) in pairwise(found))


def test_holes_are_what_is_not_data() -> None:
    assert list(find_holes(100, [])) == [(0, 100)]
    assert list(find_holes(100, [(0, 10), (20, 100)])) == [(10, 20)]
    assert list(find_holes(0, [])) == []
