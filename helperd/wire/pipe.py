"""The pipe_hdr protocol without any I/O: parse, validate and build requests and answers.

The helper and the restorer client both use this module; it reads no pipe and knows no process::

    reader = RequestReader()
    reader.receive_data(os.read(fd, reader.bytes_wanted))
    request = reader.next_request()          # None: more bytes are needed

A request on the wire, little-endian and unpadded (source: CRIU pull request 2895):

===============  ==========================================================
header           36 bytes, ``<iqQiiiI``, see :data:`HEADER`
compressed_size  u32 for each block, see :mod:`helperd.blocks` for sentinels
block_pages      u16 for each block, in region mode only (region_pages > 0)
iovs             {u64 base, u64 len} for each destination range
===============  ==========================================================

The answer is one i64: the bytes of all pages that are not zero, or a negative errno.

Rules beyond the layout, all checked before anything is read or written: every count is in range
and agrees with the others, every sum agrees with what it sums up, destinations are whole pages,
non-empty, inside the address space and do not overlap (a page named twice could not hold both
contents). A request of no pages at all is valid and answered with 0.
"""

from __future__ import annotations

from _operator import add, gt, le
from _struct import Struct
from array import array

from helperd import blocks
from helperd.blocks import DEFAULT_MAX_PAGES, MAX_REGION_PAGES, PAGE_SIZE
from helperd.errors import MalformedRequest, RequestTooLarge, TruncatedRequest

#: remote_pid, offs, total_compressed_size, n_pages, nr_iovs, n_blocks, region_pages
HEADER = Struct("<iqQiiiI")
ANSWER = Struct("<q")
IOVEC_BYTES = 16
#: What follows the header of a request of one page: compressed_size, base, len.
_ONE_PAGE = Struct("<IQQ")

#: A restorer starts a new request when the next iovec would be the IOV_MAX-th.
MAX_RESTORER_IOVECS = 1023
#: How many bytes to read at once; a pipe holds 64 KiB unless somebody enlarged it.
READ_SIZE = 1 << 16

_MAX_PID = (1 << 31) - 1
_MAX_OFFSET = (1 << 63) - 1
_ADDRESS_SPACE = 1 << 64
_MAX_PAGE_SIZE = blocks.max_stored_size(PAGE_SIZE)
_IN_PAGE = PAGE_SIZE - 1


class Request:
    """One request: which blocks of the pages image go to which addresses of which process.

    Attributes:
        remote_pid: the process to write into.
        offs: file offset of the first payload byte in the pages image.
        total_compressed_size: payload bytes of all blocks; they lie back to back from ``offs``.
        n_pages: pages of all blocks.
        region_pages: 0 in per-page mode, else the most pages a block may have (1..1024).
        sizes: ``array('I')``, the stored size of each block.
        block_pages: ``array('H')``, the pages of each block; empty in per-page mode.
        iovs: ``array('Q')``, destination ranges as base, length, base, length, ...
    """

    __slots__ = (
        "block_pages",
        "iovs",
        "n_pages",
        "offs",
        "region_pages",
        "remote_pid",
        "sizes",
        "total_compressed_size",
    )

    def __init__(
        self,
        *,
        remote_pid: int,
        offs: int,
        total_compressed_size: int,
        n_pages: int,
        region_pages: int,
        sizes: array[int],
        block_pages: array[int],
        iovs: array[int],
    ) -> None:
        self.remote_pid = remote_pid
        self.offs = offs
        self.total_compressed_size = total_compressed_size
        self.n_pages = n_pages
        self.region_pages = region_pages
        self.sizes = sizes
        self.block_pages = block_pages
        self.iovs = iovs

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return len(self.sizes)

    @property
    def nr_iovs(self) -> int:
        """Number of destination ranges."""
        return len(self.iovs) // 2

    def validate(self, max_pages: int = DEFAULT_MAX_PAGES) -> None:
        """Check every rule of the protocol.

        Raises:
            MalformedRequest: a field or a sum is wrong.
            RequestTooLarge: more than ``max_pages`` pages.
        """
        _check_header(
            self.remote_pid,
            self.offs,
            self.total_compressed_size,
            self.n_pages,
            self.nr_iovs,
            self.n_blocks,
            self.region_pages,
            max_pages,
        )
        _check_blocks(self)
        _check_iovecs(self)

    def to_bytes(self) -> bytes:
        """Return the request as it goes over the wire, without checking it."""
        header = HEADER.pack(
            self.remote_pid,
            self.offs,
            self.total_compressed_size,
            self.n_pages,
            self.nr_iovs,
            self.n_blocks,
            self.region_pages,
        )
        return b"".join(
            (header, self.sizes.tobytes(), self.block_pages.tobytes(), self.iovs.tobytes())
        )


class RequestReader:
    """Turns the bytes of a request pipe into validated requests.

    Holds only bytes that really arrived, whatever the counts of a header promise; a header that
    breaks a rule is refused before its tables are waited for.
    """

    def __init__(self, max_pages: int = DEFAULT_MAX_PAGES) -> None:
        self._max_pages = max_pages
        self._buffer = bytearray()
        self._header: tuple[int, int, int, int, int, int, int] | None = None
        self._length = HEADER.size

    @property
    def mid_request(self) -> bool:
        """True when a part of a request has been received and the rest has not."""
        return bool(self._buffer)

    @property
    def bytes_wanted(self) -> int:
        """How many bytes to read next: never 0, never more than :data:`READ_SIZE`.

        While a header is awaited that is more than the header: a small request then arrives in
        one read. What belongs to the next request is kept for it.
        """
        if self._header is None:
            return READ_SIZE
        return min(self._length - len(self._buffer), READ_SIZE)

    def receive_data(self, data: bytes) -> None:
        """Take in bytes from the pipe; call :meth:`next_request` after it."""
        self._buffer += data

    def receive_eof(self) -> None:
        """Say that the pipe has ended.

        Raises:
            TruncatedRequest: it ended inside a request.
        """
        if self._buffer:
            raise TruncatedRequest(
                f"the request pipe ended after {len(self._buffer)} of {self._length} bytes"
                " of a request"
            )

    def next_request(self) -> Request | None:
        """Return the next complete request, or None when more bytes are needed.

        Raises:
            MalformedRequest, RequestTooLarge: see :meth:`Request.validate`. The reader cannot
                be used any more: where the next request starts is not known.
        """
        if self._header is None:
            if len(self._buffer) < HEADER.size:
                return None
            self._header = HEADER.unpack_from(self._buffer)
            _check_header(*self._header, self._max_pages)
            *_, nr_iovs, n_blocks, region_pages = self._header
            block_bytes = 6 if region_pages else 4
            self._length = HEADER.size + n_blocks * block_bytes + nr_iovs * IOVEC_BYTES
        if len(self._buffer) < self._length:
            return None
        request = self._parse()
        self._header = None
        self._length = HEADER.size
        _check_blocks(request)
        _check_iovecs(request)
        return request

    def _parse(self) -> Request:
        assert self._header is not None
        remote_pid, offs, total, n_pages, nr_iovs, n_blocks, region_pages = self._header
        sizes, block_pages, iovs = array("I"), array("H"), array("Q")
        if n_blocks == nr_iovs == 1 and not region_pages:
            size, *iov = _ONE_PAGE.unpack_from(self._buffer, HEADER.size)
            sizes.append(size)
            iovs.extend(iov)
        else:
            position = HEADER.size
            with memoryview(self._buffer) as view:
                for table, count in (
                    (sizes, n_blocks),
                    (block_pages, n_blocks if region_pages else 0),
                    (iovs, nr_iovs * 2),
                ):
                    end = position + count * table.itemsize
                    table.frombytes(view[position:end])
                    position = end
        del self._buffer[: self._length]
        return Request(
            remote_pid=remote_pid,
            offs=offs,
            total_compressed_size=total,
            n_pages=n_pages,
            region_pages=region_pages,
            sizes=sizes,
            block_pages=block_pages,
            iovs=iovs,
        )


def pack_answer(value: int) -> bytes:
    """Return an answer: bytes of the pages that are not zero, or a negative errno."""
    return ANSWER.pack(value)


def unpack_answer(data: bytes) -> int:
    """Return the value of an answer of ``ANSWER.size`` bytes."""
    value: int = ANSWER.unpack(data)[0]
    return value


def _check_header(
    remote_pid: int,
    offs: int,
    total: int,
    n_pages: int,
    nr_iovs: int,
    n_blocks: int,
    region_pages: int,
    max_pages: int,
) -> None:
    if not 0 < remote_pid <= _MAX_PID:
        raise MalformedRequest(f"remote_pid is {remote_pid}, not a process")
    if n_pages < 0 or nr_iovs < 0 or n_blocks < 0:
        raise MalformedRequest(
            f"negative count: n_pages {n_pages}, nr_iovs {nr_iovs}, n_blocks {n_blocks}"
        )
    if n_pages > max_pages:
        raise RequestTooLarge(
            f"n_pages is {n_pages}, more than the {max_pages} this helper accepts in one request"
            " (see --max-request)"
        )
    if not 0 <= region_pages <= MAX_REGION_PAGES:
        raise MalformedRequest(f"region_pages is {region_pages}, not 0..{MAX_REGION_PAGES}")
    if region_pages == 0 and n_blocks != n_pages:
        raise MalformedRequest(f"per-page mode with n_blocks {n_blocks} and n_pages {n_pages}")
    if n_blocks > n_pages or n_blocks * region_pages < (n_pages if region_pages else 0):
        raise MalformedRequest(
            f"{n_blocks} blocks of at most {region_pages} pages cannot cover {n_pages} pages"
        )
    if nr_iovs > n_pages:
        raise MalformedRequest(f"nr_iovs is {nr_iovs}, more than the {n_pages} pages")
    if offs < 0 or offs + total > _MAX_OFFSET:
        raise MalformedRequest(f"payload of {total} bytes at offs {offs} lies in no file")


def _check_blocks(request: Request) -> None:
    """Check the stored sizes and the pages of the blocks against the header."""
    sizes, block_pages = request.sizes, request.block_pages
    n_bytes = sum(sizes)
    if request.region_pages:
        if sum(block_pages) != request.n_pages:
            raise MalformedRequest(
                f"block_pages add up to {sum(block_pages)}, n_pages is {request.n_pages}"
            )
        for block, (size, pages) in enumerate(zip(sizes, block_pages, strict=True)):
            if not 1 <= pages <= request.region_pages:
                raise MalformedRequest(
                    f"block {block} has {pages} pages, not 1..{request.region_pages}"
                )
            if size > blocks.max_stored_size(pages * PAGE_SIZE):
                raise _oversized(block, size, pages)
    elif sizes and max(sizes) > _MAX_PAGE_SIZE:
        size = max(sizes)
        raise _oversized(sizes.index(size), size, 1)
    if n_bytes != request.total_compressed_size:
        raise MalformedRequest(
            f"compressed sizes add up to {n_bytes},"
            f" total_compressed_size is {request.total_compressed_size}"
        )


def _oversized(block: int, size: int, pages: int) -> MalformedRequest:
    bound = blocks.max_stored_size(pages * PAGE_SIZE)
    return MalformedRequest(
        f"compressed_size of block {block} is {size}, the most for {pages} page(s) is {bound}"
    )


def _check_iovecs(request: Request) -> None:
    """Check the destination ranges; written to run at C speed, there may be very many."""
    iovs = request.iovs
    if len(iovs) == 2:
        # One range, in few steps. What is wrong with it, if it is not this, is found below.
        base, length = iovs
        whole = not (base | length) & _IN_PAGE and base + length <= _ADDRESS_SPACE
        if whole and 0 < length == blocks.pages_to_bytes(request.n_pages):
            return
    bases, lengths = iovs[0::2], iovs[1::2]
    if any(map(_IN_PAGE.__and__, iovs)):
        index = next(i for i, value in enumerate(iovs) if value & _IN_PAGE) // 2
        raise MalformedRequest(f"{_name_iovec(request, index)} is not made of whole pages")
    if 0 in lengths:
        raise MalformedRequest(f"{_name_iovec(request, lengths.index(0))} is empty")
    if sum(lengths) != blocks.pages_to_bytes(request.n_pages):
        raise MalformedRequest(
            f"iovecs cover {sum(lengths)} bytes, n_pages {request.n_pages} are"
            f" {blocks.pages_to_bytes(request.n_pages)}"
        )
    ends = list(map(add, bases, lengths))
    if ends and max(ends) > _ADDRESS_SPACE:
        index = next(i for i, end in enumerate(ends) if end > _ADDRESS_SPACE)
        raise MalformedRequest(f"{_name_iovec(request, index)} leaves the address space")
    if not all(map(le, ends, bases[1:])):
        # Not in ascending order, which is allowed; overlapping is not.
        order = sorted(range(len(ends)), key=bases.__getitem__)
        starts = [bases[i] for i in order[1:]]
        if any(map(gt, [ends[i] for i in order], starts)):
            index = next(i for i, start in zip(order, starts, strict=False) if ends[i] > start)
            raise MalformedRequest(f"{_name_iovec(request, index)} overlaps another iovec")


def _name_iovec(request: Request, index: int) -> str:
    base, length = request.iovs[2 * index : 2 * index + 2]
    return f"iovec {index} (base {base:#x}, len {length:#x})"
