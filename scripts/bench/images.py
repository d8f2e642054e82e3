"""Pages images for the benchmark, and the requests that restore from them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.patterns import Memory
from helperd.blocks import pages_to_bytes, split_into_regions
from helperd.codec.block import encode_block
from helperd.images.extent import MAX_EXTENT_PAGES, Extent
from helperd.restorer import shape_requests
from helperd.wire.pipe import Request

#: Pages of a region by mode, 0 per page; None: not compressed, every page is a raw block.
MODES: dict[str, int | None] = {"raw": None, "page": 0, "64K": 16, "256K": 64, "1M": 256}


@dataclass(frozen=True)
class PagesImage:
    """A pages image of some memory in one mode.

    Attributes:
        memory: what it holds.
        mode: a key of :data:`MODES`.
        path: the file.
        extents: its blocks, in order.
    """

    memory: Memory
    mode: str
    path: Path
    extents: tuple[Extent, ...]

    @property
    def payload_bytes(self) -> int:
        """Bytes of the file."""
        return sum(extent.payload_bytes for extent in self.extents)

    def requests(self, pid: int, max_pages: int) -> list[Request]:
        """Return the requests that restore everything into ``pid``, as a restorer shapes them."""
        return list(shape_requests(self.extents, pid, max_pages=max_pages))


def make_image(memory: Memory, mode: str, path: Path) -> PagesImage:
    """Compress ``memory`` into the file ``path``, as ``mode`` says."""
    region_pages = MODES[mode]
    extents = []
    offset = 0
    with memory.source.open("rb") as source, path.open("wb") as image:
        for address, n_pages in _pieces(memory):
            content = memoryview(source.read(pages_to_bytes(n_pages)))
            split = split_into_regions(n_pages, region_pages or 1)
            sizes = array("I")
            at = 0
            for block_pages in split:
                block = content[at : at + pages_to_bytes(block_pages)]
                stored = block if region_pages is None else encode_block(block)
                sizes.append(image.write(stored))
                at += len(block)
            extent = Extent(
                vaddr=address,
                n_pages=n_pages,
                pages_path=str(path),
                offset=offset,
                region_pages=region_pages or 0,
                sizes=sizes,
                block_pages=array("H", split) if region_pages else None,
            )
            extents.append(extent)
            offset += extent.payload_bytes
    return PagesImage(memory, mode, path, tuple(extents))


def _pieces(memory: Memory) -> Iterator[tuple[int, int]]:
    """Yield the ranges in pieces that an extent can hold."""
    for address, n_pages in memory.ranges:
        for first in range(0, n_pages, MAX_EXTENT_PAGES):
            yield address + pages_to_bytes(first), min(MAX_EXTENT_PAGES, n_pages - first)
