"""The hot path's first half: read a chunk's payload and decode it, nothing done page by page.

Both decoders read with one preadv and leave the chunk's pages side by side in a huge-page buffer
that is used again for every chunk, so it stays in the processor's cache.
"""

from __future__ import annotations

import posix as os
from _operator import eq
from array import array
from errno import EIO
from itertools import compress, repeat
from time import perf_counter

from helperd.blocks import (
    MAX_REGION_PAGES,
    PAGE_SIZE,
    ZERO_PAGE,
    ZERO_SIZE,
    count_sentinels,
    max_stored_size,
)
from helperd.codec import liblz4
from helperd.codec.chunk import CHUNK_PAGES
from helperd.codec.frames import RAW_FLAG, SIZE_BYTES, PageFrame
from helperd.errors import CorruptBlock, ImageError, ShortImage, describe_errno
from helperd.kernel.syscalls import HUGE_PAGE_SIZE, HugeBuffer, is_zero, preadv_all, scatter
from helperd.reports.phases import DECODE, READ, add, spent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from helperd.codec.chunk import Chunk

_WORD = 8
_HALF = (1 << 32) - 1
#: By how many bits sums of 1, 2, 4 ... 32-bit values are moved to be added to those behind them.
_SHIFTS = [32 << step for step in range((CHUNK_PAGES - 1).bit_length())]
_SIZES_BYTES = int.from_bytes(array("I", (SIZE_BYTES,)).tobytes() * CHUNK_PAGES, "little")
_ZERO_WORD = bytes(_WORD)
#: Up to one page in so many is looked at by itself.
_FEW = 4
_IS_ZERO = bytes(value == 0 for value in range(256))
#: It is compared with what a view shows, where bytes only are with bytes.
_ZERO_PAGE = bytearray(PAGE_SIZE)
#: Maps the second byte of a raw block's size to the highest byte of its size word in a frame.
_RAW_FLAG_BYTE = RAW_FLAG >> 24
_RAW_FLAGS = bytes(_RAW_FLAG_BYTE if value == PAGE_SIZE >> 8 else 0 for value in range(256))


class Decoded:
    """The pages of a chunk, decoded.

    Attributes:
        live: one byte for each page of the chunk: 1 when the page is not all zero.
        local: ``array('Q')`` of address, length for each live page, in page order; valid until
            the decoder is used again.
        n_live: number of live pages.
        start: where the first page of the chunk lies, or would if it were live, if all of them lie
            side by side, with room for those that are not live; else, or if none is live, None.
    """

    __slots__ = ("live", "local", "n_live", "start")

    def __init__(self, live: bytearray, local: array[int], start: int | None = None) -> None:
        self.live = live
        self.local = local
        self.n_live = len(local) // 2
        self.start = start


class Output:
    """A buffer with decoded pages lying side by side, from its start on.

    Args:
        n_pages: that it has room for.
        huge: whether it is to have huge pages.

    Attributes:
        address: of the buffer.
        view: of all its bytes.
    """

    def __init__(self, n_pages: int, *, huge: bool = True) -> None:
        buffer = self._buffer = HugeBuffer(n_pages * PAGE_SIZE, huge=huge)
        self.address = buffer.address
        self.view = buffer.view
        self._words = buffer.view.cast("Q")
        addresses = range(buffer.address, buffer.address + n_pages * PAGE_SIZE, PAGE_SIZE)
        self._iovecs = array("Q", (0, PAGE_SIZE)) * n_pages
        self._iovecs[0::2] = array("Q", addresses)
        # The same in pieces of one page, and what lies there; both made when they are needed.
        self._single_iovecs: list[bytes] = []
        self._views: tuple[memoryview, ...] = ()

    def iovecs(self, keep: bytearray) -> array[int]:
        """Return the ranges of the pages whose byte in ``keep`` is 1."""
        if 0 not in keep:
            return self._iovecs[: 2 * len(keep)]
        if not self._single_iovecs:
            octets = self._iovecs.tobytes()
            self._single_iovecs = [
                octets[at : at + 2 * _WORD] for at in range(0, len(octets), 2 * _WORD)
            ]
        return array("Q", b"".join(compress(self._single_iovecs, keep)))

    @property
    def first_word(self) -> int:
        """The first 8 bytes: only if they are 0 the first page may be zero."""
        return self._words[0]

    def drop_zero_pages(self, keep: bytearray) -> None:
        """Clear the bytes in ``keep`` of those pages that turn out to be all zero.

        The first word of each page is looked at, in one strided sweep; mostly none is zero. Where
        it may be, the page is compared with a zero page, as few steps being taken as will do.
        """
        count = len(keep)
        words = self._words[: count * PAGE_SIZE // _WORD : PAGE_SIZE // _WORD].tobytes()
        if _ZERO_WORD not in words:
            return
        suspects = words[::_WORD].translate(_IS_ZERO)
        if 0 not in suspects and is_zero(self.address, count * PAGE_SIZE):
            keep[:] = bytes(count)
            return
        if not self._views:
            starts = range(0, len(self._iovecs) // 2 * PAGE_SIZE, PAGE_SIZE)
            self._views = tuple(self.view[start : start + PAGE_SIZE] for start in starts)
        views = self._views[:count]
        few = suspects.count(1) * _FEW < count
        if few:
            views = tuple(compress(views, suspects))
        if not ZERO_PAGE.startswith(views):  # With any of them.
            return
        zero = bytes(map(eq, repeat(_ZERO_PAGE), views))
        if few:
            for page in compress(compress(range(count), suspects), zero):
                keep[page] = 0
        else:
            kept = int.from_bytes(keep, "little") & ~int.from_bytes(zero, "little")
            keep[:] = kept.to_bytes(count, "little")


class PageDecoder:
    """Decodes chunks of per-page blocks, many pages in one call of liblz4.

    A Python-level call for each page would cost as much as the decoding. So the blocks are laid
    out as an LZ4 *frame*, which liblz4 decodes in one call and, as :mod:`helperd.codec.frames` has
    it, with the verdict on each block that decoding it by itself would have::

        size, block 0 | size, block 1 | ...

    preadv scatters the blocks from the image to their places, and one process_vm_readv on
    ourselves puts the sizes between them.
    """

    def __init__(self) -> None:
        n_pages = CHUNK_PAGES
        self._frame = PageFrame()
        self._blocks = HugeBuffer(n_pages * (SIZE_BYTES + max_stored_size(PAGE_SIZE)))
        self._output = Output(n_pages)
        # Where the sizes and the blocks start, less the payload before them: the buffer is aligned
        # to more than it is long, so the lower halves of its addresses are all that differs.
        low, high = self._blocks.address & _HALF, self._blocks.address >> 32
        self._ramp = _join(range(low, low + n_pages * SIZE_BYTES, SIZE_BYTES))
        self._size_iovecs = array("I", (0, high, SIZE_BYTES, 0)) * n_pages
        self._block_iovecs = array("I", (0, high, 0, 0)) * n_pages

    def decode(self, fd: int, chunk: Chunk, output: Output | None = None) -> Decoded:
        """Read and decode one chunk.

        Args:
            fd: of the image.
            chunk: of CHUNK_PAGES pages at the most.
            output: where its pages go; None for the decoder's own.

        Raises:
            ShortImage: the image ends inside the payload.
            CorruptBlock: a block does not decode to one page; the message names it.
        """
        sizes = chunk.sizes
        live = bytearray(b"\1") * chunk.n_pages
        stored = sizes
        n_zero, n_raw = count_sentinels(sizes)
        if n_zero:
            live = bytearray(map(bool, sizes))
            stored = array("I", filter(None, sizes))
        if not stored:
            return Decoded(live, array("Q"))
        if output is None:
            output = self._output
        if n_raw == len(stored):
            _read(fd, chunk, array("Q", (output.address, chunk.payload)))
        else:
            self._decode_frame(fd, chunk, stored, n_raw, output)
        keep = bytearray(b"\1") * len(stored)
        output.drop_zero_pages(keep)
        if 0 in keep:
            if n_zero:
                _clear_dropped(live, keep)
            else:
                live = keep
        return Decoded(live, output.iovecs(keep), None if n_zero else output.address)

    def _decode_frame(
        self, fd: int, chunk: Chunk, stored: array[int], n_raw: int, output: Output
    ) -> None:
        count = len(stored)
        starts = _sums_before(stored) + self._ramp
        size_iovecs = self._size_iovecs[: 4 * count]
        size_iovecs[0::4] = _split(starts, count)
        block_iovecs = self._block_iovecs[: 4 * count]
        block_iovecs[0::4] = _split(starts + _SIZES_BYTES, count)
        block_iovecs[2::4] = stored
        words = self._size_words(stored, n_raw) if n_raw else stored
        scatter(words, SIZE_BYTES * count, array("Q", size_iovecs.tobytes()))
        _read(fd, chunk, array("Q", block_iovecs.tobytes()))
        size = SIZE_BYTES * count + chunk.payload
        if not self._frame.decompress(self._blocks.address, size, output.address, count):
            self._decode_one_by_one(chunk, stored, output)

    def _size_words(self, stored: array[int], n_raw: int) -> array[int]:
        """Return the sizes with the flag of a frame's raw blocks where a block is raw."""
        words = bytearray(stored.tobytes())
        # Little-endian, at most 4128: of all sizes only those from 4096 on have this second byte.
        flags = words[1::4].translate(_RAW_FLAGS)
        if flags.count(_RAW_FLAG_BYTE) != n_raw:
            raw = RAW_FLAG | PAGE_SIZE
            return array("I", (raw if size == PAGE_SIZE else size for size in stored))
        words[3::4] = flags
        return array("I", bytes(words))

    def _decode_one_by_one(self, chunk: Chunk, stored: array[int], output: Output) -> None:
        """Decode each block by itself, to name the bad one or to find that there is none."""
        blocks = [index for index, size in enumerate(chunk.sizes) if size != ZERO_SIZE]
        source, destination, offset = self._blocks.address, output.address, chunk.offset
        for block, size in zip(blocks, stored, strict=True):
            source += SIZE_BYTES
            if size == PAGE_SIZE:
                at = source - self._blocks.address
                to = destination - output.address
                output.view[to : to + size] = self._blocks.view[at : at + size]
            elif liblz4.decompress_safe(source, destination, size, PAGE_SIZE) != PAGE_SIZE:
                raise _corrupt(chunk, block, block, 1, size, offset)
            source += size
            offset += size
            destination += PAGE_SIZE


class BlockDecoder:
    """Decodes chunks block by block, each straight to its place in the output.

    The way for regions, and for so few pages that laying out a frame would take longer.

    Args:
        max_pages: of a chunk.
    """

    def __init__(self, max_pages: int = max(CHUNK_PAGES, MAX_REGION_PAGES)) -> None:
        n_bytes = max_pages * PAGE_SIZE
        huge = n_bytes >= HUGE_PAGE_SIZE
        self._output = Output(max_pages, huge=huge)
        # The bound of one large block and that of many small ones differ by a few bytes each.
        self._payload = HugeBuffer(max_stored_size(n_bytes) + 16 * max_pages, huge=huge)

    def decode_page(self, fd: int, size: int, offset: int) -> int:
        """Read and decode one compressed page, in the fewest steps.

        Returns:
            Its address; 0 if there is more to it: it cannot be read, is not compressed or corrupt,
            or may be zero. As a chunk it is decoded, or refused, all the same.
        """
        if not ZERO_SIZE < size < PAGE_SIZE:
            return 0
        start = perf_counter()
        try:
            got = os.preadv(fd, (self._payload.view[:size],), offset)
        except OSError:
            return 0
        then = perf_counter()
        add(READ, then - start)
        address = self._output.address
        done = liblz4.decompress_safe(self._payload.address, address, size, PAGE_SIZE)
        add(DECODE, perf_counter() - then)
        return address if got == size and done == PAGE_SIZE and self._output.first_word else 0

    def decode(self, fd: int, chunk: Chunk) -> Decoded:
        """Read and decode one chunk; raises as :meth:`PageDecoder.decode` does."""
        block_pages = chunk.block_pages or array("H", (1,)) * len(chunk.sizes)
        live = bytearray(b"\1") * chunk.n_pages
        if not chunk.payload:
            return Decoded(bytearray(chunk.n_pages), array("Q"))
        reads = array("Q")
        decodes = []
        source, page, offset = self._payload.address, 0, chunk.offset
        for block, (size, pages) in enumerate(zip(chunk.sizes, block_pages, strict=True)):
            block_bytes = pages * PAGE_SIZE
            destination = self._output.address + page * PAGE_SIZE
            if size == ZERO_SIZE:
                live[page : page + pages] = bytes(pages)
            elif size == block_bytes:
                reads.extend((destination, size))
            else:
                reads.extend((source, size))
                decodes.append((block, page, source, size, destination, block_bytes, offset))
                source += size
            page += pages
            offset += size
        _read(fd, chunk, reads)
        for block, page, source, size, destination, block_bytes, offset in decodes:
            if liblz4.decompress_safe(source, destination, size, block_bytes) != block_bytes:
                raise _corrupt(chunk, block, page, block_bytes // PAGE_SIZE, size, offset)
        self._output.drop_zero_pages(live)
        return Decoded(live, self._output.iovecs(live), self._output.address)


# Rows of 32-bit numbers as one long integer: all are added by one addition, which costs much less
# than a step for each. No sum may overflow, except behind the numbers that matter.


def _join(values: Iterable[int]) -> int:
    return int.from_bytes(array("I", values).tobytes(), "little")


def _split(row: int, count: int) -> array[int]:
    """Return the first ``count`` numbers of a row."""
    n_bytes = 4 * count
    return array("I", (row & (1 << 8 * n_bytes) - 1).to_bytes(n_bytes, "little"))


def _sums_before(values: array[int]) -> int:
    """Return a row with, for each of up to CHUNK_PAGES numbers, the sum of all before it.

    Each of a few additions adds the sums of twice as many.
    """
    sums = int.from_bytes(values.tobytes(), "little") << 32
    for shift in _SHIFTS:
        sums += sums << shift
    return sums


def _read(fd: int, chunk: Chunk, iovecs: array[int]) -> None:
    try:
        with spent(READ):
            got = preadv_all(fd, iovecs, chunk.payload, chunk.offset)
    except OSError as error:
        number = error.errno or EIO
        raise ImageError(
            f"cannot read {chunk.payload} bytes at offset {chunk.offset} of the pages image:"
            f" {describe_errno(number)}",
            errno=number,
        ) from error
    if got < chunk.payload:
        raise ShortImage(
            f"the pages image ends at offset {chunk.offset + got}, inside the payload of"
            f" {chunk.payload} bytes at {chunk.offset}: it is truncated, or of another dump"
        )


def _clear_dropped(live: bytearray, keep: bytearray) -> None:
    """Clear in ``live`` the pages whose bytes in ``keep`` (one for each live page) are 0."""
    flags = iter(keep)
    for page, is_live in enumerate(live):
        if is_live:
            live[page] = next(flags)


def _corrupt(
    chunk: Chunk, block: int, page: int, n_pages: int, size: int, offset: int
) -> CorruptBlock:
    return CorruptBlock(
        f"block {chunk.first_block + block} (page {chunk.first_page + page} of the request,"
        f" {size} bytes at offset {offset} of the pages image)"
        f" does not decode to {n_pages} page(s): the image is corrupt"
    )
