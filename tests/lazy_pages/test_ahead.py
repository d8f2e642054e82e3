"""Reading ahead: where the fill goes on, and who is woken when a piece is there."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from helperd.blocks import PAGE_SIZE
from helperd.codec.chunk import CHUNK_PAGES
from helperd.images.inventory import Schema
from helperd.images.lookup import open_lookup
from helperd.lazy_pages import fill as fill_module
from helperd.lazy_pages.faults import _FIRST_AHEAD, _MOST_AHEAD, Faults
from helperd.lazy_pages.fill import _MOST_HELD_SECONDS, _PAUSE_SECONDS, Fill
from helperd.lazy_pages.pageset import PageSet
from helperd.lazy_pages.restore import Dump
from helperd.lazy_pages.space import AddressSpace
from tests.images.checkpoints import Builder
from tests.lazy_pages.client import BASE_PAGE
from tests.lazy_pages.test_daemon import ZERO, content, images_of

N_PAGES = 100


def pages_from(first: int) -> PageSet:
    pages = PageSet(N_PAGES)
    pages.add(first, N_PAGES)
    return pages


def space_of(first: int) -> AddressSpace:
    """Return as much of a space as is looked at, which lacks all pages from ``first`` on."""
    return cast("AddressSpace", SimpleNamespace(missing=pages_from(first)))


@pytest.fixture
def dump(tmp_path: Path) -> Dump:
    images = images_of(tmp_path / "images", content(N_PAGES))
    lookup = open_lookup(str(images), "pagemap-7.img")
    return Dump(7, lookup, pages_from(0))


def test_who_waits_for_a_piece_is_told_once(dump: Dump) -> None:
    space = space_of(0)
    dump.begin(10, 20)
    assert not dump.wait_for(space, 9, 9 * PAGE_SIZE)
    assert not dump.wait_for(space, 20, 20 * PAGE_SIZE)
    assert dump.wait_for(space, 10, 10 * PAGE_SIZE)
    assert dump.wait_for(space, 19, 19 * PAGE_SIZE)
    assert dump.done(10) == [(space, 10 * PAGE_SIZE), (space, 19 * PAGE_SIZE)]
    dump.begin(10, 20)
    assert dump.done(10) == []
    assert not dump.wait_for(space, 10, 10 * PAGE_SIZE)


def test_the_fill_goes_on_behind_the_reader_and_comes_back(dump: Dump) -> None:
    dump.spaces.append(space_of(0))
    dump.follow(60, 256)
    assert dump.next_missing() == (60, N_PAGES)
    assert dump.window == 256
    dump.begin(60, N_PAGES)
    assert dump.next_missing() == (0, 60)


@pytest.mark.parametrize("window", [0, 1024])
@pytest.mark.parametrize("block_pages", [1, 2, 16, 64, 512])
@pytest.mark.parametrize("lead", [0, 1, 63])
def test_a_piece_of_the_fill_ends_where_a_block_does(
    tmp_path: Path, lead: int, block_pages: int, window: int
) -> None:
    """Else the block would be decoded twice, once for each of the two pieces."""
    n_pages = 2500
    builder = Builder(tmp_path / "images", schema=Schema.SIZES)
    region = block_pages if block_pages > 1 else None
    if lead:
        builder.add(BASE_PAGE, ZERO * lead)
    builder.add(BASE_PAGE + 2 * lead, ZERO * (n_pages - lead), region=region)
    lookup = open_lookup(str(builder.write()), "pagemap-7.img")
    lookup.load_tables()
    pages = PageSet(n_pages)
    pages.add(0, n_pages)
    dump = Dump(7, lookup, pages)
    dump.window = window
    fill = Fill.__new__(Fill)
    fill._rate = 0

    at, ends = 0, []
    while at < n_pages:
        at = fill._limit(dump, at, min(at + 1024, n_pages))
        ends.append(at)
    for end in ends[:-1]:
        assert lookup.block_around(end, 1)[0] == end
    most = max(CHUNK_PAGES, window)
    assert len(ends) <= -(-n_pages // min(most, 1024)) * 2 + 1


def test_only_who_reads_on_makes_the_window_grow(dump: Dump) -> None:
    faults = Faults.__new__(Faults)
    faults._last_page, faults._ahead = (-1, 0), 0

    def fault(number: int, *, dump: Dump = dump) -> int:
        faults._reads_on(dump, space_of(number), number)
        return faults._ahead

    assert fault(5) == 0
    assert [fault(20), fault(40), fault(60), fault(80)] == [
        _FIRST_AHEAD,
        2 * _FIRST_AHEAD,
        _MOST_AHEAD,
        _MOST_AHEAD,
    ]
    # Backwards, and where pages in between are still missing.
    assert fault(10) == 0
    assert not faults._reads_on(dump, space_of(30), 50)


@pytest.mark.parametrize("jumps", [0, 2, 100])
def test_who_jumps_about_holds_the_fill_back_but_not_for_long(
    monkeypatch: pytest.MonkeyPatch, jumps: int
) -> None:
    now, left = 1000.0, jumps
    fill = Fill.__new__(Fill)
    fill._jumped_at = now if jumps else 0.0

    def sleep(seconds: float) -> None:
        nonlocal now, left
        now += seconds
        left -= 1
        if left > 0:
            fill._jumped_at = now

    clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep)
    monkeypatch.setattr(fill_module, "time", clock)
    fill._hold_back()

    held = min(jumps * _PAUSE_SECONDS, _MOST_HELD_SECONDS)
    assert now - 1000 == pytest.approx(held, abs=_PAUSE_SECONDS * 1.01 if jumps > 2 else 1e-6)
