"""The hot path's first half: read a chunk's payload and decode it, nothing done page by page.

Both decoders read with one preadv and leave the chunk's pages in a huge-page buffer that is
used again for every chunk, so it stays in the processor's cache.
"""

from __future__ import annotations

import posix as os
from _operator import not_
from _struct import pack
from array import array
from errno import EIO
from itertools import accumulate, compress

from helperd.blocks import (
    MAX_REGION_PAGES,
    PAGE_SIZE,
    ZERO_PAGE,
    ZERO_SIZE,
    count_sentinels,
    max_stored_size,
    runs,
)
from helperd.codec import liblz4
from helperd.codec.block_ends import TAIL_BYTES, doubtful_ends
from helperd.codec.chunk import CHUNK_PAGES
from helperd.errors import CorruptBlock, ImageError, ShortImage, describe_errno
from helperd.kernel.syscalls import HUGE_PAGE_SIZE, HugeBuffer, is_zero, preadv_all, scatter
from helperd.reports.phases import READ, spent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.codec.chunk import Chunk

WORD = 8
#: Words of a page that are looked at, too, where its first one is zero, and then where those are
#: zero as well: spread, but not evenly, as content often is.
_PLACES = ((1, 265), (9, 64, 155, 358, 450, 511))
#: So many runs of pages are looked at one by one.
_FEW_RUNS = 8
_ZERO_WORD = bytes(WORD)
#: Maps the second byte of a raw block's size to the highest byte of its size word in a frame.
_RAW_FLAG_BYTE = 0x80
_IS_ZERO = bytes(value == 0 for value in range(256))
_IS_RAW = bytes(value == PAGE_SIZE >> 8 for value in range(256))
_RAW_FLAGS = bytes(_RAW_FLAG_BYTE if value == PAGE_SIZE >> 8 else 0 for value in range(256))


class Decoded:
    """The pages of a chunk, decoded.

    Attributes:
        live: one byte for each page of the chunk: 1 when the page is not all zero.
        local: ``array('Q')`` of address, length for each live page, in page order; valid until
            the decoder is used again.
        n_live: number of live pages.
    """

    __slots__ = ("live", "local", "n_live")

    def __init__(self, live: bytearray, local: array[int]) -> None:
        self.live = live
        self.local = local
        self.n_live = len(local) // 2


class _Pages:
    """Decoded pages lying at a fixed stride in a buffer."""

    def __init__(self, buffer: HugeBuffer, start: int, stride: int, n_pages: int) -> None:
        self._buffer = buffer
        self._words = buffer.view.cast("Q")
        self._start = start
        self._stride = stride
        first = buffer.offset + start
        self._slices = [
            slice(first + i * stride, first + i * stride + PAGE_SIZE) for i in range(n_pages)
        ]
        self._addresses = [buffer.address + start + i * stride for i in range(n_pages)]
        self._iovecs = array("Q", (v for a in self._addresses for v in (a, PAGE_SIZE)))

    def iovecs(self, keep: bytearray) -> array[int]:
        """Return the ranges of the pages whose byte in ``keep`` is 1."""
        if 0 not in keep:
            return self._iovecs[: 2 * len(keep)]
        kept = array("Q", compress(self._addresses, keep))
        iovecs = array("Q", (PAGE_SIZE,)) * (2 * len(kept))
        iovecs[0::2] = kept
        return iovecs

    def drop_zero_pages(self, keep: bytearray) -> None:
        """Clear the bytes in ``keep`` of those pages that turn out to be all zero.

        The first word of each page is looked at, in one strided sweep, and then a few more in the
        same way: all pages at once, as a step for each page would be felt. Only what is zero in
        all these places is looked at as a whole, neighbours together if they lie side by side.
        """
        found = self._sweep(0, len(keep))
        for places in _PLACES:
            # Most often there is none, and searching bytes is faster than making a list of numbers.
            if _ZERO_WORD not in found:
                return
            combined = int.from_bytes(found, "little")
            for place in places:
                combined |= int.from_bytes(self._sweep(place, len(keep)), "little")
            found = combined.to_bytes(len(found), "little")
        if _ZERO_WORD in found:
            self._drop_zeros_of(bytearray(map(not_, memoryview(found).cast("Q"))), keep)

    def _sweep(self, place: int, n_pages: int) -> bytes:
        """Return the word at ``place`` of each page."""
        first = self._start // WORD + place
        step = self._stride // WORD
        return self._words[first : first + n_pages * step : step].tobytes()

    def _drop_zeros_of(self, candidates: bytearray, keep: bytearray) -> None:
        """Clear the bytes in ``keep`` of those pages marked in ``candidates`` that are all zero."""
        if self._stride == PAGE_SIZE and candidates.count(b"\1\0") < _FEW_RUNS:
            for first, count in list(runs(candidates, 1)):
                if is_zero(self._addresses[first], count * PAGE_SIZE):
                    keep[first : first + count] = candidates[first : first + count] = bytes(count)
        contents = map(self._buffer.map.__getitem__, compress(self._slices, candidates))
        pages = compress(range(len(keep)), candidates)
        for page in compress(pages, map(ZERO_PAGE.__eq__, contents)):
            keep[page] = 0


class PageDecoder:
    """Decodes chunks of per-page blocks, many pages in one call of liblz4.

    A Python-level call for each page would cost as much as the decoding. So the blocks are laid
    out as one LZ4 *frame*, which liblz4 decodes in one call::

        frame header | mark | size, block 0 | mark | size, block 1 | ... | mark | end

    preadv scatters the blocks from the image to their places, and one process_vm_readv on
    ourselves puts the words between them. A frame's block may decode to any length up to
    64 KiB, and two wrong lengths may add up to the right sum; hence the *marks*: raw blocks of
    one secret word before and after each page. Only if every page has exactly PAGE_SIZE bytes
    is every mark in its place in the output. The marks cost nothing measurable.

    A frame also lets blocks pass that end against the rules; see :mod:`helperd.codec.block_ends`.
    """

    # LZ4 frame format: magic, FLG (version 1, independent blocks, no checksums), BD (blocks of
    # at most 64 KiB), header checksum (the second byte of xxh32 of FLG and BD).
    _HEADER = bytes.fromhex("04224d18604082")
    _RAW_FLAG = _RAW_FLAG_BYTE << 24
    _MARK_BYTES = WORD
    #: What lies between two blocks: u32 size of the mark, the mark, u32 size of the next block.
    _GAP_BYTES = 4 + _MARK_BYTES + 4
    _STRIDE = _MARK_BYTES + PAGE_SIZE
    #: With less room than a block's maximum liblz4 would decode into a buffer of its own first.
    _OUTPUT_SLACK = 64 << 10

    def __init__(self) -> None:
        n_pages = CHUNK_PAGES
        self._context = liblz4.FrameContext()
        self._mark = int.from_bytes(os.urandom(self._MARK_BYTES), "little")
        gaps_bytes = self._GAP_BYTES * (n_pages + 1)
        frame_bytes = len(self._HEADER) + gaps_bytes + n_pages * max_stored_size(PAGE_SIZE)
        self._frame = HugeBuffer(frame_bytes)
        self._frame.view[: len(self._HEADER)] = self._HEADER
        self._output = HugeBuffer((n_pages + 1) * self._STRIDE + self._OUTPUT_SLACK)
        self._capacity = len(self._output.view)
        self._output_words = self._output.view.cast("Q")
        self._marked = _Pages(self._output, self._MARK_BYTES, self._STRIDE, n_pages)
        self._dense = _Pages(self._output, 0, PAGE_SIZE, n_pages)
        self._marks = self._mark.to_bytes(WORD, "little") * (n_pages + 1)
        gap = pack("<IQI", self._RAW_FLAG | self._MARK_BYTES, self._mark, 0)
        self._gaps = array("I", gap * (n_pages + 1))
        self._gap_iovecs = array("Q", (0, self._GAP_BYTES) * (n_pages + 1))
        # Where the gap before block i starts, less the payload before it; and a gap's length.
        first = self._frame.address + len(self._HEADER)
        self._ramp = array("Q", range(first, first + gaps_bytes, self._GAP_BYTES)).tobytes()
        self._gap_lengths = array("Q", (self._GAP_BYTES,) * n_pages).tobytes()
        # Where in the frame block i ends, less the payload up to there.
        first = len(self._HEADER) + self._GAP_BYTES
        self._end_ramp = array("Q", range(first, first + gaps_bytes, self._GAP_BYTES)).tobytes()

    def decode(self, fd: int, chunk: Chunk) -> Decoded:
        """Read and decode one chunk.

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
        if n_raw == len(stored):
            pages = self._dense
            _read(fd, chunk, array("Q", (self._output.address, chunk.payload)))
        else:
            pages = self._marked
            self._decode_frame(fd, chunk, stored, n_raw)
        keep = bytearray(b"\1") * len(stored)
        pages.drop_zero_pages(keep)
        if 0 in keep:
            _clear_dropped(live, keep)
        return Decoded(live, pages.iovecs(keep))

    def _decode_frame(self, fd: int, chunk: Chunk, stored: array[int], n_raw: int) -> None:
        count = len(stored)
        before = array("Q", accumulate(stored, initial=0)).tobytes()
        gap_starts = _add_words(before, self._ramp)
        block_starts = array("Q", _add_words(gap_starts[:-WORD], self._gap_lengths))
        gap_iovecs = self._gap_iovecs[: 2 * (count + 1)]
        gap_iovecs[0::2] = array("Q", gap_starts)
        block_iovecs = array("Q", bytes(2 * WORD * count))
        block_iovecs[0::2] = block_starts
        block_iovecs[1::2] = _widen(stored)

        self._gaps[3 : 4 * count : 4] = self._size_words(stored, n_raw) if n_raw else stored
        self._gaps[4 * count + 3] = 0  # The end mark of the frame.
        scatter(self._gaps, self._GAP_BYTES * (count + 1), gap_iovecs)
        _read(fd, chunk, block_iovecs)

        frame_bytes = len(self._HEADER) + chunk.payload + self._GAP_BYTES * (count + 1)
        produced = self._context.decompress(
            self._frame.address, frame_bytes, self._output.address, self._capacity
        )
        if produced != count * self._STRIDE + self._MARK_BYTES or not self._marks_stand(count):
            self._decode_one_by_one(chunk, stored, block_starts)
        self._judge_ends(chunk, stored, block_starts, before, n_raw)

    def _judge_ends(
        self, chunk: Chunk, stored: array[int], starts: array[int], before: bytes, n_raw: int
    ) -> None:
        """Have LZ4_decompress_safe judge the blocks whose ends a frame does not look at."""
        count = len(stored)
        frame = self._frame.view
        ends = array("Q", _add_words(before[WORD:], self._end_ramp))
        tails = b"".join([frame[end - TAIL_BYTES : end] for end in ends])
        output, end = self._output.view, count * self._STRIDE + self._MARK_BYTES

        def column(at: int) -> bytes:
            return output[self._MARK_BYTES + at : end : self._STRIDE].tobytes()

        doubtful = doubtful_ends(tails, column)
        if n_raw:
            doubtful = _without_raw(doubtful, stored)
        # Behind all pages there is room.
        scratch = self._output.address + self._capacity - self._OUTPUT_SLACK
        index = doubtful.find(1)
        while index >= 0:
            size = stored[index]
            if liblz4.decompress_safe(starts[index], scratch, size, PAGE_SIZE) != PAGE_SIZE:
                self._decode_one_by_one(chunk, stored, starts)
            index = doubtful.find(1, index + 1)

    def _size_words(self, stored: array[int], n_raw: int) -> array[int]:
        """Return the sizes with the flag of a frame's raw blocks where a block is raw."""
        words = bytearray(stored.tobytes())
        # Little-endian, at most 4128: of all sizes only those from 4096 on have this second byte.
        flags = words[1::4].translate(_RAW_FLAGS)
        if flags.count(_RAW_FLAG_BYTE) != n_raw:
            raw = self._RAW_FLAG | PAGE_SIZE
            return array("I", (raw if size == PAGE_SIZE else size for size in stored))
        words[3::4] = flags
        return array("I", bytes(words))

    def _marks_stand(self, count: int) -> bool:
        step = self._STRIDE // WORD
        marks = self._output_words[: count * step + 1 : step].tobytes()
        return marks == self._marks[: len(marks)]

    def _decode_one_by_one(self, chunk: Chunk, stored: array[int], starts: array[int]) -> None:
        """Decode each block by itself, to name the bad one."""
        blocks = [index for index, size in enumerate(chunk.sizes) if size != ZERO_SIZE]
        destination = self._output.address + self._MARK_BYTES
        offset = chunk.offset
        for block, size, start in zip(blocks, stored, starts, strict=True):
            if size == PAGE_SIZE:
                at = start - self._frame.address
                to = destination - self._output.address
                self._output.view[to : to + size] = self._frame.view[at : at + size]
            elif liblz4.decompress_safe(start, destination, size, PAGE_SIZE) != PAGE_SIZE:
                raise _corrupt(chunk, block, block, 1, size, offset)
            offset += size
            destination += self._STRIDE


class BlockDecoder:
    """Decodes chunks block by block, each straight to its place in the output.

    The way for regions, and for so few pages that laying out a frame would take longer.

    Args:
        max_pages: of a chunk.
    """

    def __init__(self, max_pages: int = max(CHUNK_PAGES, MAX_REGION_PAGES)) -> None:
        n_bytes = max_pages * PAGE_SIZE
        huge = n_bytes >= HUGE_PAGE_SIZE
        self._output = HugeBuffer(n_bytes, huge=huge)
        # The bound of one large block and that of many small ones differ by a few bytes each.
        self._payload = HugeBuffer(max_stored_size(n_bytes) + 16 * max_pages, huge=huge)
        self._pages = _Pages(self._output, 0, PAGE_SIZE, n_bytes // PAGE_SIZE)

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
        self._pages.drop_zero_pages(live)
        return Decoded(live, self._pages.iovecs(live))


def _without_raw(flags: bytes, stored: array[int]) -> bytes:
    """Clear the flags of blocks that are stored raw: of the sizes only theirs is 0x1000."""
    octets = stored.tobytes()
    low = int.from_bytes(octets[0::4].translate(_IS_ZERO), "little")
    raw = low & int.from_bytes(octets[1::4].translate(_IS_RAW), "little")
    return (int.from_bytes(flags, "little") & ~raw).to_bytes(len(flags), "little")


def _add_words(left: bytes, right: bytes) -> bytes:
    """Add two rows of 64-bit words, as many as ``left`` has; no sum may overflow.

    As one addition of long integers, which costs much less than a step for each word.
    """
    total = int.from_bytes(left, "little") + int.from_bytes(right[: len(left)], "little")
    return total.to_bytes(len(left), "little")


def _widen(values: array[int]) -> array[int]:
    """Return 32-bit values as 64-bit ones."""
    halves = array("I", bytes(WORD * len(values)))
    halves[0::2] = values
    return array("Q", halves.tobytes())


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
