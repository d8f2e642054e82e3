"""One thread's way from an image to a process: pieces decoded, ready to be copied."""

from __future__ import annotations

import os
from array import array

from helperd.blocks import (
    MAX_REGION_PAGES,
    PAGE_SIZE,
    ZERO_SIZE,
    max_stored_size,
    pages_to_bytes,
)
from helperd.codec import liblz4
from helperd.codec.chunk import CHUNK_PAGES
from helperd.codec.decoders import Decoders
from helperd.errors import CorruptBlock, ImageError, ShortImage
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


class PageReader:
    """Reads single pages as fast as they can be had: of a block no more is decoded than that.

    Attributes:
        address: of the page that was read last.
    """

    def __init__(self) -> None:
        block = HugeBuffer(pages_to_bytes(MAX_REGION_PAGES), huge=False)
        stored = HugeBuffer(max_stored_size(pages_to_bytes(MAX_REGION_PAGES)), huge=False)
        self._block, self._stored = block, stored
        self.address = 0

    @property
    def page(self) -> memoryview:
        """The page that was read last, if it was not a zero block's."""
        at = self.address - self._block.address
        return self._block.view[at : at + PAGE_SIZE]

    def read(self, lookup: Lookup, number: int) -> bool:
        """Read a page; return whether it is not stored as a zero block.

        What is wrong with its block behind the page is not seen here.

        Raises:
            CorruptBlock, ShortImage: the page cannot be had.
        """
        which, offset, size, block_pages, page = lookup.place(number)
        level = lookup.levels[which]
        block_bytes = pages_to_bytes(block_pages)
        before = pages_to_bytes(page)
        if size == ZERO_SIZE:
            return False
        if size == block_bytes:
            self._read(level.fd, PAGE_SIZE, offset + before, self._block, level.path)
            self.address = self._block.address
            return True
        self._read(level.fd, size, offset, self._stored, level.path)
        wanted = before + PAGE_SIZE
        got = liblz4.decompress_partly(
            self._stored.address, self._block.address, size, wanted, block_bytes
        )
        if got < wanted:
            raise CorruptBlock(
                f"{level.path}: the block of {size} bytes at offset {offset} does not decode to"
                f" {block_pages} page(s): the image is corrupt"
            )
        self.address = self._block.address + before
        return True

    def _read(self, fd: int, n_bytes: int, offset: int, to: HugeBuffer, path: str) -> None:
        got = os.preadv(fd, [to.view[:n_bytes]], offset)
        if got < n_bytes:
            raise ShortImage(f"{path}: ends inside the payload of {n_bytes} bytes at {offset}")


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
        if decoded.start is not None:
            return Pages(piece.first, piece.end, piece.skip, live, decoded.start, packed=False)
        if not decoded.n_live:
            return Pages(piece.first, piece.end, piece.skip, live, 0, packed=True)
        if local[-2] - local[0] == (decoded.n_live - 1) * PAGE_SIZE:
            return Pages(piece.first, piece.end, piece.skip, live, local[0], packed=True)
        # Pages with something between them: the kernel moves them together in one call.
        if self._dense is None:
            self._dense = HugeBuffer(pages_to_bytes(CHUNK_PAGES))
        gather(array("Q", local), pages_to_bytes(decoded.n_live), self._dense.address)
        return Pages(piece.first, piece.end, piece.skip, live, self._dense.address, packed=True)
