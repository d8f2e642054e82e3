"""Chunks: every block once, every page at its address, nothing larger than it may be."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from helperd.blocks import PAGE_SIZE
from helperd.engine.plan import plan_chunks
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
