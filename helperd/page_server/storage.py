"""How received pages are to be stored, and where."""

from __future__ import annotations

from dataclasses import dataclass

from helperd.blocks import MAX_REGION_PAGES
from helperd.codec.encode import PIECE_PAGES
from helperd.images.inventory import Schema
from helperd.offline.parallel import n_threads
from helperd.wire.page_messages import Kind, Layout

#: What the buffers of a session may take. Each thread works on one, another is being filled, and
#: one waits; with the interpreter that makes less than 64 MiB, however many cores there are.
_BUFFER_BYTES = 32 << 20
#: What one takes: pages and blocks, in huge pages; of the largest regions more.
_USUAL_BYTES, _LARGEST_BYTES = 4 << 20, 11 << 20


@dataclass(frozen=True)
class Storage:
    """What becomes of the pages of a session.

    Attributes:
        path: the image directory.
        schema: of its pagemaps; NONE = pages are stored as they are.
        region_pages: pages compressed at once, 0 = each by itself.
        acceleration: LZ4's.
        threads: that compress, 0 = one for each CPU.
        replace: images of the same names are replaced.
        parent: the directory of the dump before, as the link to it has it; None for none, unless
            the link is there already.
        layout: of the client's messages; None to tell it by the first.
        dedup: free in the parents what they need no longer have.
        max_bytes: that the images of a session may take; None for no limit.
        keep_free: bytes that stay free on the disk, whatever all sessions send.
    """

    path: str
    schema: Schema = Schema.SIZES
    region_pages: int = 0
    acceleration: int = 1
    threads: int = 0
    replace: bool = False
    parent: str | None = None
    layout: Layout | None = None
    dedup: bool = False
    max_bytes: int | None = None
    keep_free: int = 0

    @property
    def compresses(self) -> bool:
        """Whether anything is compressed."""
        return self.schema is not Schema.NONE

    def encodes(self, kind: Kind) -> bool:
        """Return whether the pages of such objects are compressed.

        Like CRIU, shared memory is left as it is.
        """
        return self.compresses and kind is Kind.TASK

    @property
    def n_threads(self) -> int:
        """How many threads compress; bounded by the memory that their buffers take."""
        if not self.compresses:
            return 1
        large = self.region_pages > PIECE_PAGES
        most = _BUFFER_BYTES // (_LARGEST_BYTES if large else _USUAL_BYTES) - 2
        return max(1, min(n_threads(self.threads), most))

    @property
    def piece_pages(self) -> int:
        """Pages of one piece of work."""
        return min(max(PIECE_PAGES, self.region_pages), MAX_REGION_PAGES)
