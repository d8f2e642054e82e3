"""Carries out requests: all cores, each with a chunk of its own from the file to the target."""

from __future__ import annotations

import _stat as stat

# Not threading: it takes longer to import, and at each fork, than what is used of it.
import _thread
import posix as os
from array import array
from time import perf_counter

from helperd import blocks
from helperd.blocks import PAGE_SHIFT, PAGE_SIZE
from helperd.codec.decoders import FEW_PAGES
from helperd.engine.crew import Crew
from helperd.engine.plan import WINDOW_PAGES, plan_batches, whole_request
from helperd.engine.readahead import ReadAhead
from helperd.engine.thp import Collapser
from helperd.engine.write import write_chunk
from helperd.errors import CorruptBlock, HelperdError, ShortImage
from helperd.kernel.holes import first_hole, may_have_holes
from helperd.reports.phases import DECODE, INJECT, add, spent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.codec.decoders import Decoders
    from helperd.engine.plan import RequestChunk
    from helperd.engine.release import Release
    from helperd.targets.target import Target
    from helperd.targets.targets import Targets
    from helperd.wire.pipe import Request

#: The size of an image on a block device, which stat does not tell.
_ENDLESS = (1 << 63) - 1


class Totals:
    """What a session has done so far.

    Attributes:
        requests: carried out.
        pages: of those requests.
        payload: bytes of their blocks in the image.
        zero: blocks that are zero,
        raw: stored raw,
        lz4: compressed.
        written: pages written with content,
        zeroed: with zeros.
    """

    __slots__ = ("lz4", "pages", "payload", "raw", "requests", "written", "zero", "zeroed")

    def __init__(self) -> None:
        self.requests = 0
        self.pages = 0
        self.payload = 0
        self.zero = 0
        self.raw = 0
        self.lz4 = 0
        self.written = 0
        self.zeroed = 0

    def count(self, request: Request) -> None:
        """Add a request's own numbers."""
        self.requests += 1
        self.pages += request.n_pages
        self.payload += request.total_compressed_size
        zero, raw = blocks.count_kinds(request.sizes, request.block_pages)
        self.zero += zero
        self.raw += raw
        self.lz4 += request.n_blocks - zero - raw

    def __str__(self) -> str:
        return (
            f"{self.requests} requests, {self.pages} pages ({self.zero} zero, {self.raw} raw,"
            f" {self.lz4} LZ4 blocks, {self.payload} payload bytes),"
            f" {self.written} written, {self.zeroed} zeroed"
        )


class Engine:
    """Restores the pages of requests from one pages image.

    Args:
        pages_fd: the pages image, a file that can be read at an offset.
        targets: decides who may be written to.
        release: is told which payload has been used.
        threads: how many may work on a request, the calling one included.
        thp: whether to collapse dense windows, see :mod:`helperd.engine.thp`.
        holes_are_zeros: take what lies in holes of the image for zeros, not for lost.
    """

    def __init__(
        self,
        pages_fd: int,
        targets: Targets,
        release: Release,
        *,
        threads: int,
        thp: str,
        holes_are_zeros: bool = False,
    ) -> None:
        self._fd = pages_fd
        self._targets = targets
        self._release = release
        self._holes_are_zeros = holes_are_zeros
        self._collapser = Collapser(thp)
        self._crew = Crew(threads)
        status = os.fstat(pages_fd)
        self._is_file = stat.S_ISREG(status.st_mode)
        self._read_ahead = ReadAhead(pages_fd, status.st_size if self._is_file else _ENDLESS)
        self.totals = Totals()

    @property
    def collapsed(self) -> int:
        """Windows of targets that were made huge pages."""
        return self._collapser.collapsed

    def close(self) -> None:
        """Close what this opened itself."""
        self._read_ahead.close()
        self._crew.close()

    def execute(self, request: Request) -> int:
        """Carry out a valid request.

        Returns:
            The bytes of its pages that are not all zero: the answer.

        Raises:
            HelperdError: as the failing step says; the message tells how many pages had been
                written before.
        """
        target = self._targets.get(request.remote_pid)
        # Our own books first: they know why there is a hole.
        self._release.check(request.offs, request.offs + request.total_compressed_size)
        self._check_image(request)
        target.begin_request()
        if 0 < request.n_pages <= FEW_PAGES:
            try:
                live, zeroed = self._carry_page(request, target) or self._carry_few(request, target)
            except HelperdError as error:
                written = error.bytes_done >> PAGE_SHIFT
                raise _with_progress(error, written, request.n_pages) from error
        else:
            live, zeroed = self._carry_many(request, target)
        target.check_alive()
        self.totals.count(request)
        self.totals.written += live
        self.totals.zeroed += zeroed
        return blocks.pages_to_bytes(live)

    def _carry_many(self, request: Request, target: Target) -> tuple[int, int]:
        """Return the pages written with content, and with zeros."""
        work = _Work(self._fd, request, target, self._collapser, self._read_ahead, self._release)
        self._crew.do(work)
        if work.failure is not None:
            raise _with_progress(work.failure, work.written, request.n_pages)
        return work.live, work.zeroed

    def _carry_few(self, request: Request, target: Target) -> tuple[int, int]:
        """Do the same for one chunk, by this thread: what many need would take as long again."""
        chunk = whole_request(request)
        end = request.offs + chunk.payload
        self._read_ahead.reached(request.offs, end)
        with spent(DECODE):
            decoded = self._crew.decoders.decode(self._fd, chunk)
        with spent(INJECT):
            zeroed = write_chunk(target, chunk, decoded)
        self._release.confirmed(request.offs, end)
        return decoded.n_live, zeroed

    def _carry_page(self, request: Request, target: Target) -> tuple[int, int] | None:
        """Do the same for a page in the fewest steps; None if there is more to it."""
        if request.n_pages > 1 or request.region_pages:
            return None
        size, start = request.sizes[0], request.offs
        self._read_ahead.reached(start, start + size)
        address = self._crew.decoders.decode_page(self._fd, size, start)
        if not address:
            return None
        begun = perf_counter()
        target.write(array("Q", (address, PAGE_SIZE)), request.iovs[:], PAGE_SIZE)
        add(INJECT, perf_counter() - begun)
        self._release.confirmed(start, start + size)
        return 1, 0

    def _check_image(self, request: Request) -> None:
        """Refuse a request for what the image does not have before anything is written."""
        if not self._is_file:
            return
        end = request.offs + request.total_compressed_size
        status = os.fstat(self._fd)
        if end > status.st_size:
            raise ShortImage(
                f"the payload ends at offset {end}, the pages image at {status.st_size}:"
                " it is truncated, or of another dump"
            )
        if self._holes_are_zeros or not may_have_holes(status):
            return
        hole = first_hole(self._fd, request.offs, end)
        if hole < end:
            raise CorruptBlock(
                f"the payload at offset {hole} of the pages image lies in a hole: it was consumed"
                " by a restore with --auto-dedup or punched out, and is lost; or a tool that copied"
                " the file left zeros out (then say --holes-are-zeros)"
            )


class _Work:
    """One request while it is carried out, shared by the threads that do so.

    Attributes:
        live: pages written with content.
        zeroed: pages written with zeros.
        written: pages that had been written when it ended, those of a failed chunk included.
        failure: what went wrong, of several things the one nearest to the request's start.
    """

    def __init__(
        self,
        pages_fd: int,
        request: Request,
        target: Target,
        collapser: Collapser,
        read_ahead: ReadAhead,
        release: Release,
    ) -> None:
        self._fd = pages_fd
        self._target = target
        self._collapser = collapser
        may_fill = request.n_pages >= WINDOW_PAGES
        self._batches = plan_batches(request, windows=may_fill and collapser.looks_at(target))
        self._read_ahead = read_ahead
        self._end = request.offs + request.total_compressed_size
        self._release = release
        self._lock = _thread.allocate_lock()
        self._failed_page = request.n_pages
        self.n_pages = request.n_pages
        self.live = 0
        self.zeroed = 0
        self.written = 0
        self.failure: Exception | None = None

    def run(self, decoders: Decoders) -> None:
        """Carry out batches until none is left or one has failed, in whatever thread."""
        while batch := self._take():
            for chunk in batch:
                try:
                    self._carry(decoders, chunk)
                except Exception as error:
                    self._fail(chunk, error)
                    return

    def _take(self) -> list[RequestChunk]:
        """Return the next batch, or none when there is none, or nothing is to be begun any more."""
        with self._lock:
            if self.failure is not None:
                return []
            try:
                batch = next(self._batches, [])
                if batch:
                    self._read_ahead.reached(batch[-1].offset, self._end)
            except Exception as error:
                self.failure = error
                return []
            return batch

    def _carry(self, decoders: Decoders, chunk: RequestChunk) -> None:
        with spent(DECODE):
            decoded = decoders.decode(self._fd, chunk)
        # Nothing is written any more once a failure was seen.
        if self.failure is not None:
            return
        # Zero pages inside regions are known only now; a chunk with some is not dense after all.
        dense = decoded.n_live == chunk.n_pages
        with spent(INJECT):
            for window in chunk.windows if dense else ():
                self._collapser.collapse(self._target, window)
            zeroed = write_chunk(self._target, chunk, decoded)
        with self._lock:
            self.live += decoded.n_live
            self.zeroed += zeroed
            self.written += decoded.n_live + zeroed
        self._release.confirmed(chunk.offset, chunk.offset + chunk.payload)

    def _fail(self, chunk: RequestChunk, error: Exception) -> None:
        with self._lock:
            if isinstance(error, HelperdError):
                self.written += error.bytes_done >> PAGE_SHIFT
            if chunk.first_page < self._failed_page:
                self._failed_page = chunk.first_page
                self.failure = error


def _with_progress(error: Exception, written: int, n_pages: int) -> Exception:
    """Return the error with a word on what the target has already received."""
    if not isinstance(error, HelperdError):
        return error
    message = f"{error}; {written} of the request's {n_pages} pages had been written"
    told = type(error)(message, errno=error.errno)
    told.__cause__ = error
    return told
