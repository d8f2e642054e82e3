"""Write the decoded pages of a chunk into the target."""

from __future__ import annotations

from array import array
from itertools import compress

from helperd.blocks import MAX_REGION_PAGES, PAGE_SHIFT, PAGE_SIZE, runs
from helperd.kernel.zeros import zero_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.codec.chunk import Chunk
    from helperd.codec.decode import Decoded
    from helperd.targets.target import Target

#: Runs of live pages that are on average shorter than this are written page by page.
_SHORT_RUN = 4
#: A one for the address of each range of a table.
_EACH_RANGE = int.from_bytes(array("Q", (1, 0)).tobytes() * MAX_REGION_PAGES, "little")


def write_chunk(target: Target, chunk: Chunk, decoded: Decoded) -> int:
    """Write a chunk's pages: live ones always, zero ones where something else may be.

    Returns:
        How many zero pages had to be written.

    Raises:
        TargetError, NotPermitted: see :meth:`helperd.targets.target.Target.write`.
    """
    local = decoded.local
    remote = array("Q")
    if decoded.n_live == chunk.n_pages:
        for address, n_pages in chunk.ranges:
            remote.extend((address, n_pages << PAGE_SHIFT))
        target.write(local, remote, decoded.n_live << PAGE_SHIFT)
        return 0
    zeros: list[tuple[int, int]] = []
    page = n_done = 0
    for address, n_pages in chunk.ranges:
        live = decoded.live[page : page + n_pages]
        n_live = live.count(1)
        if n_live == n_pages:
            remote.extend((address, n_pages << PAGE_SHIFT))
        else:
            if live.count(b"\1\0") * _SHORT_RUN <= n_live:
                remote.extend(_runs(address, live))
            elif decoded.start is None:
                remote.extend(_pages(address, live, n_live))
            else:
                offset = address - decoded.start - (page << PAGE_SHIFT)
                remote.extend(_moved(local[n_done : n_done + 2 * n_live], offset))
            zeros += target.zeros_to_write(address, live)
        page += n_pages
        n_done += 2 * n_live
    n_zeroed = 0
    for address, n_pages in zeros:
        local.extend(zero_range(n_pages << PAGE_SHIFT))
        remote.extend((address, n_pages << PAGE_SHIFT))
        n_zeroed += n_pages
    target.write(local, remote, (decoded.n_live + n_zeroed) << PAGE_SHIFT)
    return n_zeroed


def _runs(address: int, live: bytearray) -> array[int]:
    """Return the ranges (address, length, ...) of the live pages from ``address`` on, merged."""
    ranges = array("Q")
    for first, length in runs(live, 1):
        ranges.extend((address + (first << PAGE_SHIFT), length << PAGE_SHIFT))
    return ranges


# Many short runs: a range for each page costs the kernel less than a run costs Python.


def _pages(address: int, live: bytearray, n_live: int) -> array[int]:
    """Return a range for each of the ``n_live`` live pages from ``address`` on."""
    pages = range(address, address + (len(live) << PAGE_SHIFT), PAGE_SIZE)
    ranges = array("Q", (PAGE_SIZE,)) * (2 * n_live)
    ranges[0::2] = array("Q", list(compress(pages, live)))  # Filled faster from a list.
    return ranges


def _moved(ranges: array[int], offset: int) -> array[int]:
    """Return ranges with all addresses changed by ``offset``, in one addition of long integers."""
    octets = ranges.tobytes()
    each = _EACH_RANGE & (1 << 8 * len(octets)) - 1
    moved = int.from_bytes(octets, "little") + offset * each
    return array("Q", moved.to_bytes(len(octets), "little"))
