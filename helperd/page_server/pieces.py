"""Pages of several entries, dense in one buffer: as much as is encoded at once."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

from helperd.blocks import PAGE_SHIFT, split_into_regions

if TYPE_CHECKING:
    from helperd.codec.encode import Encoder
    from helperd.images.writer import MemoryWriter

#: Entries without pages take no place in the buffer; they must not pile up either.
_MAX_PARTS = 1 << 12
# Larger entries are split (1 GiB of pages), so that no table has to be held for more.
_MAX_ENTRY_PAGES = 1 << 18


class Part(NamedTuple):
    """Pages of one entry: all of them, or with ``goes_on`` a part that others follow."""

    vaddr: int
    nr_pages: int
    flags: int
    goes_on: bool


class Piece:
    """What is encoded at once, of one object.

    Attributes:
        memory: where it is stored.
        encoder: has the pages in its buffer; None if there are none.
        encodes: whether they are to be compressed.
        last: whether it is the last of its object; it may have nothing in it then.
        block_pages: of each block that is made of them.
        parts: the entries, in order.
        stored: pages that were received compressed and are stored as they came.
    """

    def __init__(self, memory: MemoryWriter, *, encodes: bool) -> None:
        self.memory = memory
        self.encodes = encodes
        self.last = False
        self.encoder: Encoder | None = None
        self.n_pages = 0
        self.block_pages = array("H")
        self.parts: list[Part] = []
        self.stored: list[bytes] | None = None


class PieceBuilder:
    """Lays pages out in pieces; does no I/O.

    Args:
        capacity: pages of a piece.
        region_pages: pages of a block, 0 = 1.
        take_encoder: gives a free encoder.
    """

    def __init__(
        self, capacity: int, region_pages: int, take_encoder: Callable[[], Encoder]
    ) -> None:
        self._capacity = capacity
        self._block_pages = region_pages or 1
        self._take_encoder = take_encoder
        self._piece: Piece | None = None
        self._entry_pages = 0

    def begin(self, memory: MemoryWriter, *, encodes: bool) -> None:
        """Let the pages that follow be those of an object; the piece before has been taken."""
        self._piece = Piece(memory, encodes=encodes)

    @property
    def piece(self) -> Piece:
        """The piece under construction."""
        assert self._piece is not None
        return self._piece

    def take(self) -> Piece | None:
        """Return the piece, if there is anything in it, and begin the next of the same object."""
        piece = self._piece
        if piece is None or not piece.parts:
            return None
        self._piece = Piece(piece.memory, encodes=piece.encodes)
        return piece

    def end(self) -> Iterator[Piece]:
        """Yield the last piece of the object, if there is one."""
        if self._piece is not None:
            self._piece.last = True
            yield self._piece
            self._piece = None

    @property
    def is_full(self) -> bool:
        """Whether the piece has to be taken before anything else is added."""
        return len(self.piece.parts) >= _MAX_PARTS

    def room(self, nr_pages: int, *, stored: bool = False) -> int:
        """Return how many of so many pages of an entry fit in; 0: the piece has to be taken."""
        piece = self.piece
        if self.is_full or (piece.n_pages and stored != (piece.stored is not None)):
            return 0
        room = self._capacity - piece.n_pages
        if nr_pages > room:
            # An entry is cut between blocks only.
            nr_pages = room // self._block_pages * self._block_pages
        return min(nr_pages, _MAX_ENTRY_PAGES - self._entry_pages)

    def view(self, nr_pages: int) -> memoryview:
        """Return where the bytes of the next pages belong."""
        piece = self.piece
        if piece.encoder is None:
            piece.encoder = self._take_encoder()
        start = piece.n_pages << PAGE_SHIFT
        return piece.encoder.pages[start : start + (nr_pages << PAGE_SHIFT)]

    def add_stored(self, block: memoryview) -> None:
        """Put in a page as it is to be stored."""
        if self.piece.stored is None:
            self.piece.stored = []
        self.piece.stored.append(bytes(block))

    def add(self, vaddr: int, nr_pages: int, flags: int, *, goes_on: bool) -> None:
        """Note pages whose bytes are in their place; ``goes_on`` if more of the entry follow."""
        piece = self.piece
        piece.n_pages += nr_pages
        self._entry_pages += nr_pages
        if self._entry_pages >= _MAX_ENTRY_PAGES and piece.encodes:
            goes_on = False
        piece.parts.append(Part(vaddr, nr_pages, flags, goes_on))
        if piece.encodes:
            if self._block_pages == 1:
                piece.block_pages.extend((1,) * nr_pages)
            else:
                piece.block_pages.extend(split_into_regions(nr_pages, self._block_pages))
        if not goes_on:
            self._entry_pages = 0

    def add_absent(self, vaddr: int, nr_pages: int, flags: int) -> None:
        """Note an entry whose pages are elsewhere."""
        self.piece.parts.append(Part(vaddr, nr_pages, flags, goes_on=False))
