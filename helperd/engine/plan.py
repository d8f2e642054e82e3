"""Planning without I/O: cut a request into chunks that stay in the processor's cache.

A chunk is a run of whole blocks together with the destination ranges of its pages. Chunks are
made one after the other while the request is worked on, so planning costs no memory that grows
with the request.
"""

from __future__ import annotations

from helperd.blocks import PAGE_SHIFT, PAGE_SIZE, ZERO_SIZE
from helperd.codec.chunk import CHUNK_PAGES, Chunk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

    from helperd.wire.pipe import Request

#: What one huge page covers: a *window* of the target, aligned to its size.
WINDOW_BYTES = 2 << 20
WINDOW_PAGES = WINDOW_BYTES // PAGE_SIZE


class RequestChunk(Chunk):
    """A chunk of a request.

    Attributes:
        windows: addresses of the dense windows that begin in this chunk: the request writes all
            of them and none of their blocks is zero. Empty unless they were asked for.
    """

    __slots__ = ("windows",)

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
        super().__init__(first_page, first_block, n_pages, sizes, block_pages, offset, ranges)
        self.windows: list[int] = []


class Destinations:
    """Hands out the destination ranges of a request's pages, in order, a chunk at a time."""

    def __init__(self, iovs: array[int]) -> None:
        self._iovs = iovs
        self._next = 0
        self._address = 0
        self._pages = 0

    @property
    def pages_left(self) -> int:
        """Pages left of the range that the last one taken was a part of."""
        return self._pages

    def take(self, n_pages: int) -> list[tuple[int, int]]:
        """Return the ranges (address, pages) of the next ``n_pages`` pages."""
        ranges = []
        while n_pages:
            if not self._pages:
                self._address = self._iovs[self._next]
                self._pages = self._iovs[self._next + 1] >> PAGE_SHIFT
                self._next += 2
            taken = min(n_pages, self._pages)
            ranges.append((self._address, taken))
            self._address += taken << PAGE_SHIFT
            self._pages -= taken
            n_pages -= taken
        return ranges


def plan_chunks(
    request: Request, chunk_pages: int = CHUNK_PAGES, *, windows: bool = False
) -> Iterator[RequestChunk]:
    """Yield the chunks of a valid request, in order.

    Each has at most ``chunk_pages`` pages, or one block when that alone has more.

    Args:
        request: to be cut.
        chunk_pages: see above.
        windows: fill in the chunks' dense windows.
    """
    destinations = Destinations(request.iovs)
    page, block, offset = 0, 0, request.offs
    while block < request.n_blocks:
        end, n_pages = _chunk_end(request, block, chunk_pages)
        chunk = RequestChunk(
            page,
            block,
            n_pages,
            request.sizes[block:end],
            request.block_pages[block:end],
            offset,
            destinations.take(n_pages),
        )
        if windows:
            chunk.windows = _dense_windows(request, chunk, destinations.pages_left)
        yield chunk
        page, block, offset = page + n_pages, end, offset + chunk.payload


def whole_request(request: Request) -> RequestChunk:
    """Return a valid request as one chunk: it has not more pages than a decoder has room for."""
    ranges = Destinations(request.iovs).take(request.n_pages)
    return RequestChunk(
        0, 0, request.n_pages, request.sizes, request.block_pages, request.offs, ranges
    )


def plan_batches(
    request: Request, chunk_pages: int = CHUNK_PAGES, *, windows: bool = False
) -> Iterator[list[RequestChunk]]:
    """Yield the chunks in batches, each for one thread.

    A batch is one chunk; with ``windows`` it is about a window's worth of them, so that a window
    is mostly written by the thread that prepared it.
    """
    batch: list[RequestChunk] = []
    n_pages = 0
    for chunk in plan_chunks(request, chunk_pages, windows=windows):
        if batch and (not windows or chunk.windows or n_pages >= WINDOW_PAGES):
            yield batch
            batch, n_pages = [], 0
        batch.append(chunk)
        n_pages += chunk.n_pages
    if batch:
        yield batch


def _chunk_end(request: Request, block: int, chunk_pages: int) -> tuple[int, int]:
    """Return the block after the chunk that starts at ``block``, and the chunk's pages."""
    if not request.region_pages:
        end = min(block + chunk_pages, request.n_blocks)
        return end, end - block
    n_pages = request.block_pages[block]
    end = block + 1
    while end < request.n_blocks and n_pages + request.block_pages[end] <= chunk_pages:
        n_pages += request.block_pages[end]
        end += 1
    return end, n_pages


def _dense_windows(request: Request, chunk: RequestChunk, pages_left: int) -> list[int]:
    """Return the dense windows that begin in ``chunk``.

    Args:
        request: that the chunk is of.
        chunk: with its ranges.
        pages_left: of the destination that the chunk's last range is a part of, after it.
    """
    found = []
    page = chunk.first_page
    for index, (address, n_pages) in enumerate(chunk.ranges):
        end = address + (n_pages << PAGE_SHIFT)
        reach = end
        if index == len(chunk.ranges) - 1:
            reach += pages_left << PAGE_SHIFT
        window = -(-address // WINDOW_BYTES) * WINDOW_BYTES
        while window < end and window + WINDOW_BYTES <= reach:
            first = page + ((window - address) >> PAGE_SHIFT)
            if _is_dense(request, chunk, first):
                found.append(window)
            window += WINDOW_BYTES
        page += n_pages
    return found


def _is_dense(request: Request, chunk: RequestChunk, first_page: int) -> bool:
    """Return whether no block of the window's worth of pages from ``first_page`` on is zero."""
    end_page = first_page + WINDOW_PAGES
    if not request.region_pages:
        return ZERO_SIZE not in request.sizes[first_page:end_page]
    page, block = chunk.first_page, chunk.first_block
    while page < end_page:
        page += request.block_pages[block]
        if page > first_page and request.sizes[block] == ZERO_SIZE:
            return False
        block += 1
    return True
