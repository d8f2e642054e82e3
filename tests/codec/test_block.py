"""Single blocks and the rules they follow."""

from __future__ import annotations

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helperd import blocks
from helperd.blocks import PAGE_SIZE
from helperd.codec.block import decode_block, encode_block
from helperd.errors import CorruptBlock


@st.composite
def pages(draw: st.DrawFn) -> bytes:
    """One page: zero, noise, repetition, or noise of some length in a zero page."""
    kind = draw(st.sampled_from(["zero", "noise", "repeat", "sparse"]))
    random = draw(st.randoms(use_true_random=False))
    if kind == "zero":
        return bytes(PAGE_SIZE)
    if kind == "noise":
        return random.randbytes(PAGE_SIZE)
    if kind == "repeat":
        unit = random.randbytes(draw(st.integers(1, 64)))
        return (unit * PAGE_SIZE)[:PAGE_SIZE]
    length = draw(st.integers(1, PAGE_SIZE))
    start = draw(st.integers(0, PAGE_SIZE - length))
    return (bytes(start) + random.randbytes(length)).ljust(PAGE_SIZE, b"\0")


@given(st.lists(pages(), min_size=1, max_size=8), st.integers(1, 20))
def test_any_block_survives(content: list[bytes], acceleration: int) -> None:
    block = b"".join(content)
    stored = encode_block(block, acceleration)
    assert decode_block(stored, len(block)) == block
    if not any(block):
        assert stored == b""
    else:
        assert stored == block or 0 < len(stored) < blocks.raw_threshold(len(block))


def test_raw_from_seven_eighths_on() -> None:
    import random

    noise = random.Random(1).randbytes(PAGE_SIZE)
    below = above = 0
    for length in range(3400, 3700):
        block = noise[:length].ljust(PAGE_SIZE, b"\0")
        lz4_bytes = len(lz4.block.compress(block, store_size=False))
        stored = encode_block(block)
        if lz4_bytes >= 3584:
            assert stored == block
            above += 1
        else:
            assert len(stored) == lz4_bytes
            below += 1
    assert above
    assert below


@pytest.mark.parametrize("pages_decoded", [0, 1, 3])
def test_a_block_of_another_length(pages_decoded: int) -> None:
    stored = lz4.block.compress(bytes(range(256)) * 16 * pages_decoded, store_size=False)
    with pytest.raises(CorruptBlock, match=r"8192|does not decode"):
        decode_block(stored, 2 * PAGE_SIZE)


@given(st.binary(min_size=1, max_size=200))
def test_garbage_is_corrupt_or_whole(stored: bytes) -> None:
    reason = ""
    try:
        block = decode_block(stored, PAGE_SIZE)
    except CorruptBlock as error:
        reason = str(error)
    assert f"{len(stored)} bytes" in reason or len(block) == PAGE_SIZE


def test_the_bounds_of_stored_sizes() -> None:
    assert blocks.max_stored_size(4096) == 4128
    import random

    for n_bytes in (4096, 65536, 4 << 20):
        worst = lz4.block.compress(random.Random(2).randbytes(n_bytes), store_size=False)
        assert n_bytes < len(worst) <= blocks.max_stored_size(n_bytes)


@pytest.mark.parametrize(
    ("n_pages", "region", "expected"),
    [(1, 64, [1]), (64, 64, [64]), (65, 64, [64, 1]), (200, 64, [64, 64, 64, 8]), (0, 4, [])],
)
def test_regions_of_an_entry(n_pages: int, region: int, expected: list[int]) -> None:
    assert blocks.split_into_regions(n_pages, region) == expected
