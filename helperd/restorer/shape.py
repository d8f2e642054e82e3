"""Shaping requests out of extents, the way the real restorer does, without I/O.

A request grows while the payloads are contiguous in the pages image and the region size stays
the same; adjacent addresses share an iovec; there are at most 1023 iovecs.
"""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from helperd.blocks import DEFAULT_MAX_PAGES, pages_to_bytes
from helperd.restorer.build import build_request
from helperd.wire.pipe import MAX_RESTORER_IOVECS, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from helperd.images.extent import Extent


class _Draft:
    """A request while it grows."""

    def __init__(self, extent: Extent) -> None:
        self.offs = extent.offset
        self.region_pages = extent.region_pages
        self.sizes = array("I")
        self.block_pages = array("H")
        self.iovs = array("Q")
        self.n_pages = 0
        self.end_offset = extent.offset
        self.end_address = -1

    def append(self, extent: Extent, address: int) -> None:
        n_bytes = pages_to_bytes(extent.n_pages)
        self.sizes.extend(extent.sizes)
        if extent.block_pages is not None:
            self.block_pages.extend(extent.block_pages)
        if address == self.end_address:
            self.iovs[-1] += n_bytes
        else:
            self.iovs.extend((address, n_bytes))
        self.n_pages += extent.n_pages
        self.end_offset += extent.payload_bytes
        self.end_address = address + n_bytes

    def takes(self, extent: Extent, address: int, max_pages: int) -> bool:
        return (
            extent.offset == self.end_offset
            and extent.region_pages == self.region_pages
            and self.n_pages + extent.n_pages <= max_pages
            and (address == self.end_address or len(self.iovs) // 2 < MAX_RESTORER_IOVECS)
        )


class RequestShaper:
    """Collects extents of one pages image into requests.

    Args:
        pid: the process to be written to.
        base: added to every address; where a shared memory object is mapped.
        max_pages: a request has no more pages than this. The real restorer knows no such limit.
    """

    def __init__(self, pid: int, *, base: int = 0, max_pages: int = DEFAULT_MAX_PAGES) -> None:
        self._pid = pid
        self._base = base
        self._max_pages = max_pages
        self._draft: _Draft | None = None

    def add(self, extent: Extent) -> Request | None:
        """Take in an extent of whole blocks; return the request before it if that is complete."""
        address = self._base + extent.vaddr
        complete = None
        if self._draft and not self._draft.takes(extent, address, self._max_pages):
            complete = self.flush()
        if self._draft is None:
            self._draft = _Draft(extent)
        self._draft.append(extent, address)
        return complete

    def flush(self) -> Request | None:
        """Return the request that has been begun, None if there is none.

        Raises:
            MalformedRequest: the extents do not make a valid one (they overlap, say).
        """
        draft, self._draft = self._draft, None
        if draft is None:
            return None
        return build_request(
            remote_pid=self._pid,
            offs=draft.offs,
            region_pages=draft.region_pages,
            sizes=draft.sizes,
            block_pages=draft.block_pages,
            iovs=draft.iovs,
        )


def shape_requests(
    extents: Iterable[Extent],
    pid: int,
    *,
    base: int = 0,
    max_pages: int = DEFAULT_MAX_PAGES,
) -> Iterator[Request]:
    """Yield the requests for extents of whole blocks that all lie in one pages image.

    See :class:`RequestShaper` for the arguments.
    """
    shaper = RequestShaper(pid, base=base, max_pages=max_pages)
    for extent in extents:
        if (request := shaper.add(extent)) is not None:
            yield request
    if (request := shaper.flush()) is not None:
        yield request
