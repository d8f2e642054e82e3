"""One thread's way from an image to a process: pieces decoded, ready to be copied."""

from __future__ import annotations

from array import array

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.codec.chunk import CHUNK_PAGES
from helperd.codec.decoders import Decoders
from helperd.errors import ImageError
from helperd.kernel.syscalls import HugeBuffer, gather

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from helperd.images.lookup import Lookup, Piece


class Pages:
    """Decoded pages; good until their :class:`Bringer` is used again.

    Attributes:
        first: number of the first page.
        end: number after the last one.
    """

    __slots__ = ("_address", "_live", "_packed", "_skip", "end", "first")

    def __init__(
        self, first: int, end: int, skip: int, live: bytearray, address: int, *, packed: bool
    ) -> None:
        self.first = first
        self.end = end
        self._skip = skip
        self._live = live
        self._address = address
        self._packed = packed

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield (first, end, address) of runs of pages, address 0 for those that are all zero."""
        lead = self._skip - self.first
        live = self._live
        at, stop = first + lead, end + lead
        while at < stop:
            kind = live[at]
            until = live.find(0 if kind else 1, at, stop)
            if until < 0:
                until = stop
            address = 0
            if kind:
                place = live.count(1, 0, at) if self._packed else at
                address = self._address + place * PAGE_SIZE
            yield at - lead, until - lead, address
            at = until


class Bringer:
    """Decoders and buffers of one thread."""

    def __init__(self) -> None:
        self._decoders = Decoders()
        self._dense: HugeBuffer | None = None

    def decode(self, lookup: Lookup, piece: Piece) -> Pages:
        """Read and decode a piece.

        Raises:
            CorruptBlock, ShortImage, ImageError: naming the pages file.
        """
        level = lookup.levels[piece.level]
        try:
            decoded = self._decoders.decode(level.fd, piece.chunk)
        except ImageError as error:
            # Of the same class, with the name of the file in front.
            raise type(error)(f"{level.path}: {error}", errno=error.errno) from error
        live, local = decoded.live, decoded.local
        if not decoded.n_live:
            return Pages(piece.first, piece.end, piece.skip, live, 0, packed=True)
        start = local[0]
        reach = local[-2] - start
        if reach == (decoded.n_live - 1) * PAGE_SIZE:
            return Pages(piece.first, piece.end, piece.skip, live, start, packed=True)
        first = live.find(1)
        if reach == (live.rfind(1) - first) * PAGE_SIZE:
            start -= first * PAGE_SIZE
            return Pages(piece.first, piece.end, piece.skip, live, start, packed=False)
        # Pages with something between them: the kernel moves them together in one call.
        if self._dense is None:
            self._dense = HugeBuffer(pages_to_bytes(CHUNK_PAGES))
        gather(array("Q", local), pages_to_bytes(decoded.n_live), self._dense.address)
        return Pages(piece.first, piece.end, piece.skip, live, self._dense.address, packed=True)
