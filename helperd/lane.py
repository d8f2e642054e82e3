"""One thread's way of a chunk: read and decode it, inject it."""

from __future__ import annotations

from array import array

from helperd.blocks import PAGE_SHIFT
from helperd.decode import BlockDecoder, PageDecoder
from helperd.target import zero_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.decode import Decoded
    from helperd.plan import Chunk
    from helperd.target import Target


#: So many pages are decoded faster one by one.
_FEW_PAGES = 8


class Lane:
    """The buffers and decoders of one thread, made when they are first needed.

    Args:
        pages_fd: the pages image.
    """

    def __init__(self, pages_fd: int) -> None:
        self._fd = pages_fd
        self._page_decoder: PageDecoder | None = None
        self._block_decoder: BlockDecoder | None = None

    def decode(self, chunk: Chunk) -> Decoded:
        """Read and decode a chunk; see :mod:`helperd.decode` for what is raised."""
        if chunk.block_pages or chunk.n_pages <= _FEW_PAGES:
            if self._block_decoder is None:
                self._block_decoder = BlockDecoder()
            return self._block_decoder.decode(self._fd, chunk)
        if self._page_decoder is None:
            self._page_decoder = PageDecoder()
        return self._page_decoder.decode(self._fd, chunk)


def inject(target: Target, chunk: Chunk, decoded: Decoded) -> int:
    """Write a chunk's pages: live ones always, zero ones where something else may be.

    Returns:
        How many zero pages had to be written.

    Raises:
        TargetError, NotPermitted: see :meth:`helperd.target.Target.write`.
    """
    local = decoded.local
    remote = array("Q")
    n_zeroed = 0
    if decoded.n_live == chunk.n_pages:
        for address, n_pages in chunk.ranges:
            remote.extend((address, n_pages << PAGE_SHIFT))
    else:
        zeros: list[tuple[int, int]] = []
        page = 0
        for address, n_pages in chunk.ranges:
            live_runs, zero_runs = _runs(decoded.live, page, n_pages)
            for first, length in live_runs:
                remote.extend((address + (first << PAGE_SHIFT), length << PAGE_SHIFT))
            if zero_runs:
                zeros += target.zeros_to_write(address, n_pages, zero_runs)
            page += n_pages
        for address, n_pages in zeros:
            local.extend(zero_range(n_pages << PAGE_SHIFT))
            remote.extend((address, n_pages << PAGE_SHIFT))
            n_zeroed += n_pages
    target.write(local, remote, (decoded.n_live + n_zeroed) << PAGE_SHIFT)
    return n_zeroed


def _runs(
    live: bytearray, start: int, count: int
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Return the runs of live pages and of zero pages among ``count`` pages from ``start`` on.

    Each run is (first page, pages), counted from ``start``.
    """
    runs: tuple[list[tuple[int, int]], list[tuple[int, int]]] = ([], [])
    position, end = start, start + count
    is_live = live[start]
    while position < end:
        change = live.find(1 - is_live, position, end)
        if change < 0:
            change = end
        runs[1 - is_live].append((position - start, change - position))
        position, is_live = change, 1 - is_live
    return runs
