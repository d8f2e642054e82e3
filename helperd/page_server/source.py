"""Pages of image directories, by address, for clients that fetch them."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.codec.chunk import CHUNK_PAGES
from helperd.codec.decoders import Decoders
from helperd.errors import ImageError
from helperd.images.directory import pagemap_name
from helperd.images.lookup import open_lookup
from helperd.kernel.syscalls import HugeBuffer, gather

if TYPE_CHECKING:
    from collections.abc import Iterator

    from helperd.images.lookup import Lookup
    from helperd.wire.page_messages import Get

#: Pages of one reply, at most, as CRIU's clients ask for; more are asked for again.
_MOST_PAGES = 1024


class PageSource:
    """The tasks of a directory, compressed or not, with its parents; each is opened when asked for.

    Args:
        path: the image directory.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._lookups: dict[int, Lookup] = {}
        self._decoders = Decoders()
        self._buffer = HugeBuffer(pages_to_bytes(CHUNK_PAGES))
        self._zeros = HugeBuffer(PAGE_SIZE, huge=False)

    def close(self) -> None:
        """Close all files."""
        for lookup in self._lookups.values():
            lookup.close()

    def pages(self, get: Get) -> tuple[int, Iterator[memoryview]]:
        """Return how many of the pages that are asked for can be had at once, and their bytes.

        Raises:
            ImageError: not even the first; or what it needs is broken.
        """
        lookup = self._lookups.get(get.pid)
        if lookup is None:
            lookup = open_lookup(self._path, pagemap_name(pid=get.pid))
            lookup.load_tables()
            self._lookups[get.pid] = lookup
        first = lookup.number_of(get.vaddr)
        if first < 0:
            raise ImageError(f"{self._path}: has no page {get.vaddr:#x} of task {get.pid}")
        end = min(first + min(get.nr_pages, _MOST_PAGES), lookup.n_pages)
        _, nr_pages = lookup.ranges(first, end)[0]
        return nr_pages, self._read(lookup, first, first + nr_pages)

    def _read(self, lookup: Lookup, number: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes of consecutive pages, each time valid until the next."""
        while number < end:
            piece = lookup.piece(number, end)
            decoded = self._decoders.decode(lookup.levels[piece.level].fd, piece.chunk)
            live = iter(decoded.local[0::2])
            addresses = [next(live) if is_live else self._zeros.address for is_live in decoded.live]
            # Of a large block a part may be wanted, and it may not fit into the buffer at once.
            wanted = addresses[piece.skip : piece.skip + piece.end - piece.first]
            for start in range(0, len(wanted), CHUNK_PAGES):
                some = wanted[start : start + CHUNK_PAGES]
                iovecs = array("Q", (PAGE_SIZE,)) * (2 * len(some))
                iovecs[0::2] = array("Q", some)
                n_bytes = pages_to_bytes(len(some))
                gather(iovecs, n_bytes, self._buffer.address)
                yield self._buffer.view[:n_bytes]
            number = piece.end
