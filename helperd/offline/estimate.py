"""What other block sizes would make of a dump, estimated from samples of its pages."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from helperd.blocks import MAX_REGION_PAGES, PAGE_SIZE, pages_to_bytes, split_into_regions
from helperd.codec.encode import Encoder
from helperd.images.chain import resolve
from helperd.images.directory import ImageDirectory
from helperd.images.extent import Extent, read_pages

#: Pages of a block: single pages, then regions of 16K to 4M.
BLOCK_PAGES = (1, 4, 16, 64, 256, 1024)
#: Pages that are looked at, at most: some tenths of a second for each block size.
SAMPLE_PAGES = (32 << 20) // PAGE_SIZE

_MAX_BYTES = pages_to_bytes(MAX_REGION_PAGES)


@dataclass(frozen=True, slots=True)
class Estimate:
    """What one block size would make of the samples.

    Attributes:
        block_pages: pages of a block.
        memory_bytes: of the samples.
        payload_bytes: that they would take.
    """

    block_pages: int
    memory_bytes: int
    payload_bytes: int

    @property
    def ratio(self) -> float:
        """Bytes of memory for each byte of payload."""
        return self.memory_bytes / max(self.payload_bytes, 1)


def estimate(directory: ImageDirectory, *, sample_pages: int = SAMPLE_PAGES) -> list[Estimate]:
    """Compress samples of a dump's processes, spread over all of them, in every block size.

    Args:
        directory: of the dump; its chain is followed.
        sample_pages: pages that are looked at, at most.

    Returns:
        One estimate for each of BLOCK_PAGES; none where there are no pages.

    Raises:
        ImageError: the images are broken or incomplete.
    """
    payload = dict.fromkeys(BLOCK_PAGES, 0)
    n_bytes = 0
    encoders = {pages: Encoder(1, per_page=pages == 1) for pages in BLOCK_PAGES}
    for content in _joined(read_pages(_samples(directory, sample_pages))):
        n_bytes += len(content)
        n_pages = len(content) // PAGE_SIZE
        for pages, encoder in encoders.items():
            encoder.pages[: len(content)] = content
            block_pages = array("H", split_into_regions(n_pages, pages))
            payload[pages] += len(encoder.encode(block_pages).payload)
    if not n_bytes:
        return []
    return [Estimate(pages, n_bytes, payload[pages]) for pages in BLOCK_PAGES]


def _samples(directory: ImageDirectory, sample_pages: int) -> Iterator[Extent]:
    """Yield every so many-th of the stretches that a block of the largest size can come from."""
    total = sum(sum(directory.pagemap(pid=pid).columns.nr_pages) for pid in directory.pids)
    step = max(1, -(-total // sample_pages))
    left = sample_pages
    for index, stretch in enumerate(_stretches(directory)):
        if index % step:
            continue
        n_pages = sum(extent.n_pages for extent in stretch)
        if n_pages > left:
            return
        left -= n_pages
        yield from stretch


def _stretches(directory: ImageDirectory) -> Iterator[list[Extent]]:
    for pid in directory.pids:
        yield from _gathered(resolve(directory, pid=pid))


def _gathered(extents: Iterable[Extent]) -> Iterator[list[Extent]]:
    """Yield extents in groups of about MAX_REGION_PAGES pages."""
    group: list[Extent] = []
    n_pages = 0
    for extent in extents:
        if group and n_pages + extent.n_pages > MAX_REGION_PAGES:
            yield group
            group, n_pages = [], 0
        group.append(extent)
        n_pages += extent.n_pages
    if group:
        yield group


def _joined(contents: Iterable[tuple[int, bytes]]) -> Iterator[bytes]:
    """Yield neighbouring pages together, as blocks can hold them, but no more than one block."""
    run, end = bytearray(), -1
    for address, content in contents:
        if run and (address != end or len(run) + len(content) > _MAX_BYTES):
            yield bytes(run)
            run.clear()
        run += content
        end = address + len(content)
    if run:
        yield bytes(run)
