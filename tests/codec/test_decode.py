"""Chunk decoders: exactly the pages that were stored, or the name of the block that is bad."""

from __future__ import annotations

import ctypes
import os
import random
from array import array
from collections.abc import Callable

import lz4.block
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helperd.blocks import PAGE_SIZE, ZERO_PAGE
from helperd.codec.block import encode_block
from helperd.codec.chunk import CHUNK_PAGES, Chunk
from helperd.codec.decode import BlockDecoder, Decoded, Output, PageDecoder
from helperd.errors import CorruptBlock, ShortImage
from tests.codec.test_block import pages

Stored = list[bytes]


class Decoders:
    """One decoder of each kind, used again and again as a worker does."""

    def __init__(self) -> None:
        self.pages = PageDecoder()
        self.regions = BlockDecoder()

    def decode(
        self,
        stored: Stored,
        block_pages: list[int],
        lead: bytes = b"",
        output: Output | None = None,
    ) -> list[bytes]:
        """Return the pages that the blocks ``stored`` decode to, zero pages included.

        In ``output``, if that is given for single pages, they are left behind.
        """
        fd = os.memfd_create("pages")
        try:
            os.write(fd, lead + b"".join(stored))
            chunk = Chunk(
                first_page=1000,
                first_block=2000,
                n_pages=sum(block_pages) if block_pages else len(stored),
                sizes=array("I", map(len, stored)),
                block_pages=array("H", block_pages),
                offset=len(lead),
                ranges=[],
            )
            if block_pages:
                return contents(self.regions.decode(fd, chunk))
            decoded = self.pages.decode(fd, chunk, output)
            if output is not None:
                end = output.address + len(output.view)
                assert all(output.address <= at < end for at in decoded.local[0::2])
            return contents(decoded)
        finally:
            os.close(fd)


def contents(decoded: Decoded) -> list[bytes]:
    assert decoded.local.typecode == "Q"
    assert decoded.n_live == sum(decoded.live) == len(decoded.local) // 2
    assert set(decoded.local[1::2]) <= {PAGE_SIZE}
    live = (ctypes.string_at(address, PAGE_SIZE) for address in decoded.local[0::2])
    return [next(live) if flag else ZERO_PAGE for flag in decoded.live]


@pytest.fixture(scope="module")
def decoders() -> Decoders:
    return Decoders()


any_pages = st.lists(pages(), min_size=1, max_size=CHUNK_PAGES)
fixture_is_shared = settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)


@fixture_is_shared
@given(content=any_pages, lead=st.integers(0, 5000), all_raw=st.booleans())
def test_per_page_chunks(
    decoders: Decoders, content: list[bytes], lead: int, all_raw: bool
) -> None:
    stored = content if all_raw else list(map(encode_block, content))
    assert decoders.decode(stored, [], bytes(lead)) == content


@fixture_is_shared
@given(first=any_pages, second=any_pages, all_raw=st.booleans())
def test_per_page_chunks_where_they_are_to_stay(
    decoders: Decoders, first: list[bytes], second: list[bytes], all_raw: bool
) -> None:
    """Each of two has an output of its own, and neither what the other has left."""
    stored = first if all_raw else list(map(encode_block, first))
    kept = Output(CHUNK_PAGES)
    assert decoders.decode(stored, [], output=kept) == first
    before = bytes(kept.view)
    for output in (None, Output(CHUNK_PAGES)):
        assert decoders.decode(list(map(encode_block, second)), [], output=output) == second
    assert kept.view == before


@fixture_is_shared
@given(content=any_pages, data=st.data())
def test_region_chunks(decoders: Decoders, content: list[bytes], data: st.DataObject) -> None:
    stored, block_pages, left = [], [], list(content)
    while left:
        n_pages = data.draw(st.integers(1, len(left)))
        block = b"".join(left[:n_pages])
        stored.append(block if data.draw(st.booleans()) else encode_block(block))
        block_pages.append(n_pages)
        del left[:n_pages]
    assert decoders.decode(stored, block_pages) == content


def live_flags(decoders: Decoders, content: list[bytes], block_pages: list[int]) -> list[int]:
    """Return which pages of raw blocks are found not to be zero."""
    blocks = [b"".join(content)] if block_pages else content
    fd = os.memfd_create("pages")
    try:
        os.write(fd, b"".join(blocks))
        sizes = array("I", map(len, blocks))
        chunk = Chunk(0, 0, len(content), sizes, array("H", block_pages), 0, [])
        return list((decoders.regions if block_pages else decoders.pages).decode(fd, chunk).live)
    finally:
        os.close(fd)


@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("zeros", ["none", "alternating", "runs", "all"])
@pytest.mark.parametrize("at", [0, 1, 7, 8, 15, 72, 512, 2047, 2048, 2120, 4087, 4088, 4095])
def test_exactly_zero_pages_are_left_out(
    decoders: Decoders, region: bool, zeros: str, at: int
) -> None:
    """Wherever the only byte of a page is that is not zero."""
    page = bytes(at) + b"\1" + bytes(PAGE_SIZE - at - 1)
    wanted = {
        "none": [1] * CHUNK_PAGES,
        "alternating": [0, 1] * (CHUNK_PAGES // 2),
        "runs": ([0] * 5 + [1] * 3) * (CHUNK_PAGES // 8),
        "all": [0] * CHUNK_PAGES,
    }[zeros]
    content = [page if live else ZERO_PAGE for live in wanted]
    assert live_flags(decoders, content, [CHUNK_PAGES] if region else []) == wanted


def test_zero_pages_among_compressed_ones(decoders: Decoders) -> None:
    """There the pages lie further apart."""
    content = [ZERO_PAGE if n % 3 else bytes(n) + b"x" * (PAGE_SIZE - n) for n in range(200)]
    stored = [lz4.block.compress(page, store_size=False) for page in content]
    fd = os.memfd_create("pages")
    try:
        os.write(fd, b"".join(stored))
        chunk = Chunk(0, 0, 200, array("I", map(len, stored)), array("H"), 0, [])
        assert list(decoders.pages.decode(fd, chunk).live) == [int(n % 3 == 0) for n in range(200)]
    finally:
        os.close(fd)


def test_the_largest_region(decoders: Decoders) -> None:
    content = [random.Random(i).randbytes(3000).ljust(PAGE_SIZE, b"\0") for i in range(1024)]
    assert decoders.decode([encode_block(b"".join(content))], [1024]) == content


def lz4_of(n_bytes: int, seed: int = 0) -> bytes:
    """An LZ4 block that decodes to ``n_bytes`` bytes which are not all zero."""
    content = (random.Random(seed).randbytes(50) * n_bytes)[:n_bytes]
    return bytes(lz4.block.compress(content, store_size=False))


@pytest.mark.parametrize(
    "lengths",
    [(2 * PAGE_SIZE, 0), (0, 2 * PAGE_SIZE), (PAGE_SIZE + 1, PAGE_SIZE - 1), (PAGE_SIZE - 8, 4104)],
)
def test_two_wrong_lengths_with_the_right_sum(decoders: Decoders, lengths: tuple[int, int]) -> None:
    good = lz4_of(PAGE_SIZE, 7)
    stored = [good, *(lz4_of(n, i) for i, n in enumerate(lengths)), good]
    with pytest.raises(CorruptBlock, match=r"block 2001 \(page 1001 of the request"):
        decoders.decode(stored, [])
    assert decoders.decode([good], [])


@pytest.mark.parametrize("bad", [0, 1, 63, CHUNK_PAGES - 1])
@pytest.mark.parametrize("region", [False, True])
def test_a_corrupt_block_is_named(decoders: Decoders, bad: int, region: bool) -> None:
    stored = [lz4_of(PAGE_SIZE, i) for i in range(CHUNK_PAGES)]
    stored[5] = b""
    stored[6] = random.Random(6).randbytes(PAGE_SIZE)
    stored[bad] = b"\xff" * 20
    offset = sum(map(len, stored[:bad])) + 11
    place = rf"block {2000 + bad} \(page {1000 + bad} of the request, 20 bytes at offset {offset} "
    with pytest.raises(CorruptBlock, match=place):
        decoders.decode(stored, [1] * len(stored) if region else [], bytes(11))


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=3),
    region=st.booleans(),
)
def test_flipped_bytes_give_pages_or_an_error(
    decoders: Decoders, flips: list[tuple[int, int]], region: bool
) -> None:
    """The decoder of many blocks at once accepts just what one by one would be accepted."""
    stored = [bytearray(lz4_of(PAGE_SIZE, i)) for i in range(20)]
    for place, value in flips:
        block = stored[place % len(stored)]
        block[place // len(stored) % len(block)] ^= value
    expected: list[bytes] | None
    try:
        expected = [
            lz4.block.decompress(bytes(block), uncompressed_size=PAGE_SIZE) for block in stored
        ]
    except lz4.block.LZ4BlockError:
        expected = None
    if expected is not None and any(len(page) != PAGE_SIZE for page in expected):
        expected = None
    blocks = list(map(bytes, stored))
    block_pages = [1] * len(blocks) if region else []
    if expected is None:
        with pytest.raises(CorruptBlock):
            decoders.decode(blocks, block_pages)
    else:
        assert decoders.decode(blocks, block_pages) == expected


@pytest.mark.parametrize("block_pages", [[], [1, 1]])
@pytest.mark.parametrize("encode", [bytes, encode_block])
def test_an_image_that_ends_too_soon(
    decoders: Decoders, block_pages: list[int], encode: Callable[[bytes], bytes]
) -> None:
    stored = [encode(b"text" * 1024), encode(b"more" * 1024)]
    fd = os.memfd_create("pages")
    os.write(fd, b"".join(stored)[:-1])
    sizes = array("I", map(len, stored))
    chunk = Chunk(0, 0, 2, sizes, array("H", block_pages), 0, [])
    decoder = decoders.regions if block_pages else decoders.pages
    with pytest.raises(ShortImage, match=f"ends at offset {sum(sizes) - 1}"):
        decoder.decode(fd, chunk)
    os.close(fd)


@fixture_is_shared
@given(content=pages(), lead=st.integers(0, 5000))
def test_one_compressed_page(decoders: Decoders, content: bytes, lead: int) -> None:
    """It is decoded, or is for those who know what else there is."""
    stored = encode_block(content)
    with os.fdopen(os.memfd_create("pages"), "r+b", buffering=0) as file:
        file.write(bytes(lead) + stored)
        address = decoders.regions.decode_page(file.fileno(), len(stored), lead)
        simple = 0 < len(stored) < PAGE_SIZE and content[:8] != bytes(8)
        assert bool(address) == simple
        assert not address or ctypes.string_at(address, PAGE_SIZE) == content


@pytest.mark.parametrize(
    ("stored", "size"),
    [
        (lz4_of(PAGE_SIZE)[:-1], len(lz4_of(PAGE_SIZE)) - 1),
        (lz4_of(PAGE_SIZE)[:-1], len(lz4_of(PAGE_SIZE))),
        (lz4_of(PAGE_SIZE - 1), len(lz4_of(PAGE_SIZE - 1))),
        (lz4_of(PAGE_SIZE + 1), len(lz4_of(PAGE_SIZE + 1))),
        (lz4_of(PAGE_SIZE) + b"\0", len(lz4_of(PAGE_SIZE)) + 1),
        (b"", 100),
        (b"x" * PAGE_SIZE, PAGE_SIZE),
        (b"", 0),
    ],
)
def test_what_is_not_simply_one_compressed_page(
    decoders: Decoders, stored: bytes, size: int
) -> None:
    # A good page before it: nothing of it may be taken for this one's.
    good = lz4_of(PAGE_SIZE)
    with os.fdopen(os.memfd_create("pages"), "r+b", buffering=0) as file:
        file.write(good + stored)
        assert decoders.regions.decode_page(file.fileno(), len(good), 0)
        assert not decoders.regions.decode_page(file.fileno(), size, len(good))


def test_a_page_of_a_file_that_cannot_be_read(decoders: Decoders) -> None:
    reading, writing = os.pipe()
    assert not decoders.regions.decode_page(reading, 100, 0)
    os.close(reading)
    os.close(writing)
