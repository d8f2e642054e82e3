"""The decoders of one thread, and which of them is the one for a chunk."""

from __future__ import annotations

from helperd.codec import frames
from helperd.codec.decode import BlockDecoder, PageDecoder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.codec.chunk import Chunk
    from helperd.codec.decode import Decoded, Output

#: So many pages are decoded faster one by one.
FEW_PAGES = 8


#: See :func:`keep`.
_kept: list[Decoders] = []


def take() -> Decoders:
    """Return decoders for a thread: such as were kept, or new ones."""
    return _kept.pop() if _kept else Decoders()


def keep(decoders: Decoders) -> None:
    """Leave decoders that nobody uses any more to whoever takes some next.

    Their buffers have been used: for the first use of a huge page the kernel has to clear it, and
    that takes as long as decoding a quarter of it does.
    """
    _kept.append(decoders)


def n_kept() -> int:
    """Return how many were left and not taken."""
    return len(_kept)


def is_paged(chunk: Chunk) -> bool:
    """Return whether a chunk is best decoded in one call, as single pages: those of a dump are."""
    return chunk.n_pages > FEW_PAGES and not chunk.block_pages and frames.usable()


class Decoders:
    """The buffers and decoders of one thread, the large ones made when they are first needed.

    What :meth:`decode` returns lies in these buffers until it is called again. Whoever called
    it puts the pages where they belong: into a process, a userfaultfd, a pipe, a file.
    """

    def __init__(self) -> None:
        self._small_decoder = BlockDecoder(FEW_PAGES)
        self._page_decoder: PageDecoder | None = None
        self._block_decoder: BlockDecoder | None = None

    def decode_page(self, fd: int, size: int, offset: int) -> int:
        """Decode one page, see :meth:`helperd.codec.decode.BlockDecoder.decode_page`."""
        return self._small_decoder.decode_page(fd, size, offset)

    def decode(self, fd: int, chunk: Chunk) -> Decoded:
        """Read a chunk from the pages file open as ``fd``, and decode it.

        Raises:
            ShortImage: the file ends inside the payload.
            CorruptBlock: a block does not decode to its pages; the message names it.
            ImageError: the file cannot be read.
        """
        if chunk.n_pages <= FEW_PAGES:
            return self._small_decoder.decode(fd, chunk)
        if not is_paged(chunk):
            if self._block_decoder is None:
                self._block_decoder = BlockDecoder()
            return self._block_decoder.decode(fd, chunk)
        return self._pages().decode(fd, chunk)

    def decode_into(self, output: Output, fd: int, chunk: Chunk) -> Decoded:
        """Do the same with a chunk that :func:`is_paged`, its pages being put into ``output``."""
        return self._pages().decode(fd, chunk, output)

    def _pages(self) -> PageDecoder:
        if self._page_decoder is None:
            self._page_decoder = PageDecoder()
        return self._page_decoder
