"""What is missing, and where it is: small models against the plainest ones there are."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from helperd.lazy_pages.pageset import PageSet
from helperd.lazy_pages.views import Views

SIZE = 1700
RANGES = st.lists(st.tuples(st.booleans(), st.integers(0, SIZE), st.integers(0, SIZE)), max_size=30)


@settings(max_examples=150, deadline=None)
@given(ranges=RANGES, looks=st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE))))
def test_a_page_set_is_a_set(
    ranges: list[tuple[bool, int, int]], looks: list[tuple[int, int]]
) -> None:
    pages, model = PageSet(SIZE), set[int]()
    for adds, one, other in ranges:
        first, end = sorted((one, other))
        if adds:
            pages.add(first, end)
            model |= set(range(first, end))
        else:
            gone = pages.discard(first, end)
            assert gone == len(model & set(range(first, end)))
            model -= set(range(first, end))
        assert pages.count == len(model)
    twin = pages.copy()
    twin.discard(0, SIZE)
    assert not twin.count
    assert [number in pages for number in range(-1, SIZE + 1)] == [
        number in model for number in range(-1, SIZE + 1)
    ]
    for one, other in looks:
        first, end = sorted((one, other))
        found = list(pages.runs(first, end))
        assert [n for start, stop in found for n in range(start, stop)] == sorted(
            model & set(range(first, end))
        )
        assert all(before[1] < after[0] for before, after in pairwise(found))
        assert pages.first_from(first) == min((n for n in model if n >= first), default=-1)


def test_a_set_that_is_all_or_nothing_takes_a_byte_for_a_group() -> None:
    pages = PageSet(SIZE)
    for first, end in ((0, 512), (512, SIZE), (0, SIZE)):
        pages.add(first, end)
        assert not pages._some
        pages.discard(first, end)
        assert not pages._some
    pages.add(3, 512)
    pages.add(1024, SIZE - 1)
    assert len(pages._some) == 2
    pages.add(0, 3)
    assert list(pages._some) == [3]
    pages.discard(1536, SIZE)
    assert not pages._some
    assert list(pages.runs(0, SIZE)) == [(0, 512), (1024, 1536)]


def test_runs_from_the_first_page_on() -> None:
    pages = PageSet(SIZE)
    pages.add(0, SIZE)
    assert list(pages.runs(0, SIZE)) == [(0, SIZE)]
    pages.discard(512, 1024)
    assert list(pages.runs(0, SIZE)) == [(0, 512), (1024, SIZE)]
    pages.discard(1, 600)
    assert list(pages.runs(0, SIZE)) == [(0, 1), (1024, SIZE)]
    assert list(pages.runs(0, 1)) == [(0, 1)]


def test_a_set_of_whole_groups() -> None:
    pages = PageSet(1024)
    pages.add(0, 1024)
    assert pages.first_from(1024) == -1
    assert 1024 not in pages
    assert pages.first_from(1023) == 1023


def test_the_first_page_from_any_other_on() -> None:
    edges = [it for group in range(0, SIZE, 512) for it in (group, group + 1, group + 511)]
    for first in (*(it for it in edges if it < SIZE), SIZE - 1):
        for end in (first + 1, (first // 512 + 1) * 512, SIZE):
            pages = PageSet(SIZE)
            pages.add(first, min(end, SIZE))
            for number in (*edges, SIZE - 1, SIZE, SIZE + 600):
                expected = max(first, number) if number < min(end, SIZE) else -1
                assert pages.first_from(number) == expected
    # In some groups all, in others some.
    pages = PageSet(SIZE)
    pages.add(512, 1024)
    pages.add(1030, 1040)
    assert [pages.first_from(it) for it in (0, 600, 1023, 1024, 1039, 1040)] == [
        *(512, 600, 1023, 1030, 1039),
        -1,
    ]


MOVES = st.lists(
    st.tuples(st.integers(0, 60), st.integers(0, 60), st.integers(1, 20)).filter(
        lambda move: move[0] + move[2] <= move[1] or move[1] + move[2] <= move[0]
    ),
    max_size=12,
)


@settings(max_examples=200, deadline=None)
@given(moves=MOVES, low=st.integers(0, 80), high=st.integers(0, 80))
def test_views_follow_every_move(moves: list[tuple[int, int, int]], low: int, high: int) -> None:
    views = Views()
    #: What was dumped at the address that is now the index; None = nothing.
    model: list[int | None] = list(range(100))
    for source, to, length in moves:
        views.move(source, to, length)
        taken = model[source : source + length]
        model[source : source + length] = [None] * length
        model[to : to + length] = taken
        assert views.moved
    first, end = sorted((low, high))
    dumped = [at for start, stop in views.dumped(first, end) for at in range(start, stop)]
    assert dumped == [at for at in model[first:end] if at is not None]
    places = {
        dumped_at + step: start + step
        for dumped_at, start, stop in views.now(first, end)
        for step in range(stop - start)
    }
    assert places == {
        at: now for now, at in enumerate(model) if at is not None and first <= at < end
    }
