"""Chunks: every block once, every page at its address, nothing larger than it may be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helperd.blocks import PAGE_SIZE
from helperd.engine import plan
from helperd.engine.plan import plan_batches, plan_chunks
from helperd.kernel.syscalls import HUGE_PAGE_SIZE
from helperd.restorer.build import build_request
from helperd.wire.pipe import Request
from tests.wire.test_pipe import requests


def page_addresses(request: Request) -> list[int]:
    pairs = zip(request.iovs[0::2], request.iovs[1::2], strict=True)
    return [base + i for base, length in pairs for i in range(0, length, PAGE_SIZE)]


@given(requests(), st.integers(1, 200))
def test_chunks_are_the_request(request: Request, chunk_pages: int) -> None:
    chunks = list(plan_chunks(request, chunk_pages))
    assert [size for c in chunks for size in c.sizes] == list(request.sizes)
    assert [n for c in chunks for n in c.block_pages] == list(request.block_pages)
    addresses = [a + i * PAGE_SIZE for c in chunks for a, n in c.ranges for i in range(n)]
    assert addresses == page_addresses(request)

    page, block, offset = 0, 0, request.offs
    for chunk in chunks:
        assert (chunk.first_page, chunk.first_block, chunk.offset) == (page, block, offset)
        assert chunk.payload == sum(chunk.sizes)
        assert chunk.n_pages == sum(n for _, n in chunk.ranges)
        assert chunk.n_pages <= chunk_pages or len(chunk.sizes) == 1
        page += chunk.n_pages
        block += len(chunk.sizes)
        offset += chunk.payload
    assert page == request.n_pages


@given(requests(), st.integers(1, 200))
def test_chunks_are_not_needlessly_small(request: Request, chunk_pages: int) -> None:
    chunks = list(plan_chunks(request, chunk_pages))
    for chunk, following in pairwise(chunks):
        next_block = following.block_pages[0] if following.block_pages else 1
        assert chunk.n_pages + next_block > chunk_pages


def dense_windows(request: Request, window_pages: int) -> list[int]:
    """Return the aligned windows inside one destination each that get no page of a zero block."""
    blocks = zip(request.sizes, request.block_pages or [1] * request.n_blocks, strict=True)
    is_zero = [size == 0 for size, n_pages in blocks for _ in range(n_pages)]
    window_bytes = window_pages * PAGE_SIZE
    found, page = [], 0
    for base, length in zip(request.iovs[0::2], request.iovs[1::2], strict=True):
        for at in range(-(-base // window_bytes) * window_bytes, base + length, window_bytes):
            first = page + (at - base) // PAGE_SIZE
            if at + window_bytes <= base + length and not any(is_zero[first:][:window_pages]):
                found.append(at)
        page += length // PAGE_SIZE
    return found


@given(requests(), st.integers(1, 200), st.sampled_from([1, 2, 4, 8, 64]))
def test_dense_windows_are_found_where_they_begin(
    request: Request, chunk_pages: int, window_pages: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "WINDOW_PAGES", window_pages)
        patch.setattr(plan, "WINDOW_BYTES", window_pages * PAGE_SIZE)
        chunks = list(plan_chunks(request, chunk_pages, windows=True))
        batches = list(plan_batches(request, chunk_pages, windows=True))
    assert [w for c in chunks for w in c.windows] == dense_windows(request, window_pages)
    for chunk in chunks:
        assert all(any(a <= w < a + n * PAGE_SIZE for a, n in chunk.ranges) for w in chunk.windows)
    # Who prepares a window begins with it, and goes on for about a window's worth.
    assert [c.first_page for b in batches for c in b] == [c.first_page for c in chunks]
    for batch in batches:
        assert not any(chunk.windows for chunk in batch[1:])
        assert sum(chunk.n_pages for chunk in batch[:-1]) < window_pages
    for batch, following in pairwise(batches):
        n_pages = sum(chunk.n_pages for chunk in batch)
        assert following[0].windows or n_pages >= window_pages


@given(requests(), st.integers(1, 200))
def test_without_windows_a_batch_is_a_chunk(request: Request, chunk_pages: int) -> None:
    batches = list(plan_batches(request, chunk_pages))
    assert all(len(batch) == 1 and not batch[0].windows for batch in batches)
    assert [b[0].first_page for b in batches] == [
        c.first_page for c in plan_chunks(request, chunk_pages)
    ]


def test_blocks_that_fill_a_chunk_to_the_last_page_share_it() -> None:
    request = build_request(
        remote_pid=1,
        offs=0,
        region_pages=4,
        sizes=[100] * 5,
        block_pages=[4, 4, 2, 4, 3],
        iovs=[0, 17 * PAGE_SIZE],
    )
    assert [list(c.block_pages) for c in plan_chunks(request, 8)] == [[4, 4], [2, 4], [3]]


def test_windows_are_not_looked_for_unless_asked_for() -> None:
    n_pages = 2 * plan.WINDOW_PAGES
    request = build_request(
        remote_pid=1, offs=0, region_pages=0, sizes=[100] * n_pages, iovs=[0, n_pages * PAGE_SIZE]
    )
    assert any(chunk.windows for chunk in plan_chunks(request, windows=True))
    assert not any(chunk.windows for chunk in plan_chunks(request))


def test_a_window_is_a_huge_page() -> None:
    assert plan.WINDOW_BYTES == HUGE_PAGE_SIZE == 2 << 20
    assert plan.WINDOW_PAGES * PAGE_SIZE == plan.WINDOW_BYTES
