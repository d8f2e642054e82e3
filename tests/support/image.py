"""Pages images made block by block, with the memory they stand for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import lz4.block

from helperd.blocks import PAGE_SIZE, ZERO_PAGE
from tests.support.requests import Iovec, RawRequest


class BlockImage:
    """A pages image under construction.

    Attributes:
        payload: the pages image so far.
        memory: the pages that all blocks together decode to.
        sizes: stored size of each block.
        block_pages: pages of each block.
    """

    def __init__(self) -> None:
        self.payload = bytearray()
        self.memory = bytearray()
        self.sizes: list[int] = []
        self.block_pages: list[int] = []

    def add_zero(self, n_pages: int = 1) -> None:
        """Add a zero block: no payload."""
        self.add_stored(b"", bytes(n_pages * PAGE_SIZE))

    def add_raw(self, block: bytes) -> None:
        """Add a block that is stored as it is."""
        self.add_stored(block, block)

    def add_lz4(self, block: bytes) -> None:
        """Add a block as LZ4."""
        self.add_stored(compress(block), block)

    def add_stored(self, stored: bytes, block: bytes) -> None:
        """Add a block that claims to be ``block``, with any payload."""
        self.payload += stored
        self.memory += block
        self.sizes.append(len(stored))
        self.block_pages.append(len(block) // PAGE_SIZE)

    @property
    def n_pages(self) -> int:
        """Pages of all blocks."""
        return len(self.memory) // PAGE_SIZE

    @property
    def answer(self) -> int:
        """What a helper answers that restored all of it: the bytes of the pages not all zero."""
        pages = range(0, len(self.memory), PAGE_SIZE)
        return sum(PAGE_SIZE for at in pages if self.memory[at : at + PAGE_SIZE] != ZERO_PAGE)

    def write(self, path: Path) -> Path:
        """Write the pages image, and return its path."""
        path.write_bytes(self.payload)
        return path

    def request(
        self, remote_pid: int, iovs: Sequence[Iovec] | int, *, region_pages: int = 0
    ) -> RawRequest:
        """Return the request for all blocks: into ``iovs``, or into one range from there on."""
        return RawRequest(
            remote_pid=remote_pid,
            offs=0,
            sizes=tuple(self.sizes),
            block_pages=tuple(self.block_pages) if region_pages else (),
            iovs=((iovs, len(self.memory)),) if isinstance(iovs, int) else tuple(iovs),
            region_pages=region_pages,
        )


def all_kinds(n_pages: int) -> BlockImage:
    """Return an image of ``n_pages`` pages (a multiple of 4): LZ4, zero, raw, LZ4, ..."""
    image = BlockImage()
    for page in range(n_pages // 4):
        image.add_lz4(text(1, seed=page))
        image.add_zero()
        image.add_raw(noise(1, seed=page))
        image.add_lz4(text(1, seed=100 + page))
    return image


def compress(data: bytes) -> bytes:
    """Return ``data`` as one plain LZ4 block."""
    stored: bytes = lz4.block.compress(data, store_size=False)
    return stored


def text(n_pages: int, seed: int = 0) -> bytes:
    """Return pages that compress well, no two of them alike, none of them zero."""
    lines = random.Random(seed)
    words = ("order", "item", "refund", "pending", "shipped", "cart", "invoice", "parcel")
    pages = bytearray()
    while len(pages) < n_pages * PAGE_SIZE:
        id_, word = lines.randrange(10**9), lines.choice(words)
        pages += f'{{"id": {id_}, "state": "{word}", "page": {len(pages)}}}\n'.encode()
    return bytes(pages[: n_pages * PAGE_SIZE])


def noise(n_pages: int, seed: int = 0) -> bytes:
    """Return pages that do not compress."""
    return random.Random(seed).randbytes(n_pages * PAGE_SIZE)
