"""Chunks: as much of a pages file as is worked on at once, small enough for the caches."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array

#: Pages of a chunk, 1 MiB: measured best of 256 KiB to 4 MiB on cores with 2 MiB of L2; smaller
#: ones pay the fixed costs of a chunk more often, larger ones leave the cache. A region of more
#: pages (at most 1024) is a chunk of its own. Never more than IOV_MAX pages, so that a chunk with
#: a place of its own for each page is still one system call.
CHUNK_PAGES = 256


class Chunk:
    """Consecutive whole blocks, and where their pages belong.

    It is cut out of something larger: a request, or all that a pages file holds.

    Attributes:
        first_page: number of the chunk's first page in what it was cut out of.
        first_block: number of its first block in that.
        n_pages: pages of all its blocks.
        sizes: ``array('I')``, the stored bytes of each block.
        block_pages: ``array('H')``, the pages of each block; empty in per-page mode.
        offset: file offset of the first payload byte.
        payload: payload bytes of all its blocks.
        ranges: addresses of the pages in page order, as (address, number of pages), adding up to
            ``n_pages``.
    """

    __slots__ = (
        "block_pages",
        "first_block",
        "first_page",
        "n_pages",
        "offset",
        "payload",
        "ranges",
        "sizes",
    )

    def __init__(
        self,
        first_page: int,
        first_block: int,
        n_pages: int,
        sizes: array[int],
        block_pages: array[int],
        offset: int,
        ranges: list[tuple[int, int]],
    ) -> None:
        self.first_page = first_page
        self.first_block = first_block
        self.n_pages = n_pages
        self.sizes = sizes
        self.block_pages = block_pages
        self.offset = offset
        self.payload = sum(sizes)
        self.ranges = ranges
