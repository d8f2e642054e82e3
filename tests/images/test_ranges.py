"""Sets of ranges against sets of integers."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from helperd.images.ranges import Ranges, find_holes

ADDRESS_END = 1 << 64

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


@given(PAIRS)
def test_made_at_once_or_one_after_the_other(pairs: list[tuple[int, int]]) -> None:
    kept: list[tuple[int, int]] = []
    for start, end in pairs:
        if start < end and (not kept or kept[-1][1] <= start):
            kept.append((start, end))
    starts, ends = [start for start, _ in kept], [end for _, end in kept]
    assert list(Ranges.of(starts, ends)) == list(Ranges(kept))


@given(PAIRS, PAIRS)
def test_what_is_covered(pairs: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    ranges, model = Ranges(pairs), numbers(pairs)
    asked = [(start, end) for start, end in asked if start < end]
    expected = []
    for start, end in asked:
        found = len(model & set(range(start, end)))
        expected.append(None if 0 < found < end - start else found > 0)
    assert ranges.covers(*zip(*asked, strict=True) if asked else ((), ())) == expected


def test_up_to_the_last_address() -> None:
    assert Ranges().covers([ADDRESS_END - 4096], [ADDRESS_END]) == [False]
    assert Ranges([(4096, ADDRESS_END)]).covers([4096, 0], [ADDRESS_END, 4096]) == [True, False]


def test_nothing_is_in_nothing() -> None:
    ranges = Ranges([(0, 5)])
    ranges.append(9, 9)
    ranges.append(12, 10)
    assert list(ranges) == [(0, 5)]
    assert not ranges.overlaps(3, 3)
    assert not ranges.overlaps(4, 2)
    assert not list(ranges.gaps(7, 7))
    assert list(ranges.gaps(0, 5)) == []
    assert list(Ranges.of([], [])) == []


def test_holes_are_what_is_not_data() -> None:
    assert list(find_holes(100, [])) == [(0, 100)]
    assert list(find_holes(100, [(0, 10), (20, 100)])) == [(10, 20)]
    assert list(find_holes(0, [])) == []
