"""Encoded pieces to images, in the order in which they came."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, NamedTuple

from helperd.blocks import PAGE_SHIFT
from helperd.codec.encode import Encoder
from helperd.images.pagemap import PE_PRESENT, PagemapEntry

if TYPE_CHECKING:
    from helperd.page_server.pieces import Piece
    from helperd.page_server.storage import Storage


class Encoded(NamedTuple):
    """A piece as it is to be stored.

    Attributes:
        piece: that was encoded.
        sizes: of its blocks; None if it is stored as it is.
        payload: valid until the piece has been stored.
    """

    piece: Piece
    sizes: array[int] | None
    payload: bytes | bytearray | memoryview


class Encoders:
    """As many encoders as pieces are under way at the same time."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._free: list[Encoder] = []

    def take(self) -> Encoder:
        """Return a free one."""
        if self._free:
            return self._free.pop()
        storage = self._storage
        return Encoder(
            storage.acceleration, per_page=storage.compresses and not storage.region_pages
        )

    def give_back(self, piece: Piece) -> None:
        """Let the encoder of a piece be used again."""
        if piece.encoder is not None:
            self._free.append(piece.encoder)


def encode(piece: Piece) -> Encoded:
    """Encode a piece, in any thread."""
    if piece.stored is not None:
        return Encoded(piece, array("I", map(len, piece.stored)), b"".join(piece.stored))
    if piece.encoder is None:
        return Encoded(piece, array("I") if piece.encodes else None, b"")
    if not piece.encodes:
        return Encoded(piece, None, piece.encoder.pages[: piece.n_pages << PAGE_SHIFT])
    sizes, payload = piece.encoder.encode(piece.block_pages)
    return Encoded(piece, sizes, payload)


class Store:
    """Writes what was encoded.

    Attributes:
        n_pages: that were stored.
        payload_bytes: that they take.
    """

    def __init__(self, storage: Storage) -> None:
        self._region_pages = storage.region_pages
        self._block_pages = storage.region_pages or 1
        # Of an entry whose other parts are still to come.
        self._vaddr = self._nr_pages = 0
        self._sizes = array("I")
        self.n_pages = 0
        self.payload_bytes = 0

    def put(self, encoded: Encoded) -> None:
        """Write a piece; the one that follows the last.

        Raises:
            ImageError, ResourceError: it cannot be written.
        """
        piece, sizes, payload = encoded
        memory = piece.memory
        memory.append_payload(payload)
        self.n_pages += piece.n_pages
        self.payload_bytes += len(payload)
        first = 0
        for part in piece.parts:
            if not self._nr_pages:
                self._vaddr = part.vaddr
            self._nr_pages += part.nr_pages
            entry = PagemapEntry(self._vaddr, self._nr_pages, part.flags)
            if sizes is not None and part.flags & PE_PRESENT:
                end = first - (-part.nr_pages // self._block_pages)
                self._sizes.extend(sizes[first:end])
                first = end
                entry.region_pages, entry.sizes = self._region_pages, self._sizes
            if part.goes_on:
                continue
            memory.append_entry(entry)
            self._nr_pages = 0
            self._sizes = array("I")
        if piece.last:
            # Now, for there may be many objects.
            memory.finish()
