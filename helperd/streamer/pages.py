"""Pages decoded ahead of the pipe that they are sent through.

Real pagemap entries are small and the levels of a chain alternate, so a *job* takes many pieces.
Jobs are carried out by all cores, each into a buffer of its own, and sent in order by the thread
of their pipe: as references to the buffers, not as copies. A pipe's reader may be as late as the
pipe is large; so a buffer is written to again only when more bytes than the pipe holds have been
placed behind it, and the buffers are dropped, not used for another pipe, when all has been sent.
"""

from __future__ import annotations

import re
import threading
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from helperd.blocks import pages_to_bytes
from helperd.codec.chunk import CHUNK_PAGES, Chunk
from helperd.codec.decode import BlockDecoder, Decoded, Output
from helperd.codec.decoders import Decoders, is_paged
from helperd.errors import CorruptBlock, PeerGone, ResourceError, describe_errno
from helperd.images.lookup import Lookup, Piece
from helperd.kernel.syscalls import advance, gather, vmsplice, writev
from helperd.kernel.zeros import zero_range
from helperd.streamer.flat import Pages

#: Jobs of a pipe that are done, or being done, before they can be sent.
_AHEAD = 4
#: Less than this is copied into the pipe: buffers in the pipe must not become many.
_MIN_SPLICED = 256 << 10
#: From more pipes than this on none is decoded ahead for, and copies free the buffers at once.
_MANY_PIPES = 4
_RUN = re.compile(rb"\x01+|\x00+")
_threads = threading.local()


class Job(NamedTuple):
    """Pieces whose pages are sent one after the other, and how many pages that are."""

    pieces: list[Piece]
    n_pages: int


def plan_jobs(lookup: Lookup, spans: list[tuple[int, int]]) -> Iterator[Job]:
    """Yield pages in order, in jobs of about CHUNK_PAGES.

    Args:
        lookup: where they are.
        spans: their numbers, ascending.
    """
    n_pages = 0
    pieces: list[Piece] = []
    for number, end in spans:
        while number < end:
            piece = lookup.piece(number, end, CHUNK_PAGES - n_pages)
            taken = piece.end - piece.first
            if pieces and n_pages + taken > CHUNK_PAGES:
                yield Job(pieces, n_pages)
                pieces, n_pages = [], 0
                continue
            pieces.append(piece)
            n_pages += taken
            number = piece.end
            if n_pages >= CHUNK_PAGES:
                yield Job(pieces, n_pages)
                pieces, n_pages = [], 0
    if pieces:
        yield Job(pieces, n_pages)


class _Slot:
    """Buffers for the pages of one job."""

    def __init__(self) -> None:
        self._output: Output | None = None
        self._decoder: BlockDecoder | None = None

    def carry_out(self, lookup: Lookup, job: Job) -> array[int]:
        """Decode a job; return where its pages lie now, as (address, bytes, ...).

        Raises:
            ImageError: a piece cannot be read or decoded.
        """
        iovecs = array("Q")
        decoders: Decoders | None = getattr(_threads, "decoders", None)
        if decoders is None:
            decoders = _threads.decoders = Decoders()
        (first, *others) = job.pieces
        if not others and first.chunk.n_pages <= CHUNK_PAGES:
            # Pages and regions are decoded to where they stay; all else is gathered.
            decode: Callable[[int, Chunk], Decoded] | None = None
            if first.chunk.block_pages:
                if self._decoder is None:
                    self._decoder = BlockDecoder(CHUNK_PAGES)
                decode = self._decoder.decode
            elif is_paged(first.chunk):
                decode = partial(decoders.decode_into, self._room(CHUNK_PAGES))
            if decode is not None:
                _append(iovecs, *_decode(decode, lookup, first))
                return iovecs
        address = self._room(job.n_pages).address
        for piece in job.pieces:
            live, local = _decode(decoders.decode, lookup, piece)
            n_bytes = pages_to_bytes(len(local) // 2)
            gather(local, n_bytes, address)
            _append(iovecs, live, address)
            address += n_bytes
        return iovecs

    def _room(self, n_pages: int) -> Output:
        n_pages = max(n_pages, CHUNK_PAGES)
        if self._output is None or pages_to_bytes(n_pages) > len(self._output.view):
            self._output = Output(n_pages)
        return self._output


def _decode(
    decode: Callable[[int, Chunk], Decoded], lookup: Lookup, piece: Piece
) -> tuple[bytearray, array[int]]:
    """Return for each wanted page of a piece whether it is not zero; and where those lie."""
    level = lookup.levels[piece.level]
    try:
        decoded = decode(level.fd, piece.chunk)
    except CorruptBlock as error:
        start = lookup.address_of(piece.first)
        raise CorruptBlock(f"{level.path}: pages from {start:#x} on: {error}") from error
    live, local = decoded.live, decoded.local
    n_pages = piece.end - piece.first
    if n_pages != piece.chunk.n_pages:
        lead = live[: piece.skip].count(1)
        live = live[piece.skip : piece.skip + n_pages]
        local = local[2 * lead : 2 * (lead + live.count(1))]
    return live, local


def _append(iovecs: array[int], live: bytearray, where: int | array[int]) -> None:
    """Append pages.

    Args:
        iovecs: to be extended.
        live: for each page whether it is not zero.
        where: those pages lie: their (address, bytes, ...), or the address from which on they lie
            side by side. Neighbours that are not zero lie so in any case.
    """
    n_live = 0
    for run in _RUN.finditer(live):
        n_pages = run.end() - run.start()
        n_bytes = pages_to_bytes(n_pages)
        if live[run.start()]:
            start = where + pages_to_bytes(n_live) if isinstance(where, int) else where[2 * n_live]
            _extend(iovecs, start, n_bytes)
            n_live += n_pages
        else:
            iovecs.extend(zero_range(n_bytes))


def _extend(iovecs: array[int], address: int, n_bytes: int) -> None:
    if iovecs and iovecs[-2] + iovecs[-1] == address:
        iovecs[-1] += n_bytes
    else:
        iovecs.extend((address, n_bytes))


def send_pages(
    pages: Pages,
    pipe: int,
    pipe_bytes: int,
    pool: ThreadPoolExecutor,
    stop: threading.Event,
    n_pipes: Callable[[], int],
) -> None:
    """Decode pages in the threads of ``pool`` and put them into a pipe, in order.

    Args:
        pages: to be sent.
        pipe: the write end, blocking.
        pipe_bytes: that it holds at the most.
        pool: decodes.
        stop: when set, the rest is given up.
        n_pipes: says how many pipes are being filled; when they are many each gets little memory.

    Raises:
        PeerGone: nobody reads the pipe any more.
        ImageError: a piece cannot be read or decoded.
    """
    lookup = pages.lookup
    jobs = plan_jobs(lookup, pages.spans)
    begun: deque[tuple[_Slot, Future[array[int]]]] = deque()
    free: list[_Slot] = []
    # Slots that the pipe may still refer to, and how much had been sent when it took them.
    in_pipe: deque[tuple[_Slot, int]] = deque()
    sent = 0
    try:
        while not stop.is_set():
            crowded = n_pipes() > _MANY_PIPES
            ahead = 1 if crowded else _AHEAD
            while len(begun) < ahead and (job := next(jobs, None)) is not None:
                slot = free.pop() if free else _Slot()
                begun.append((slot, pool.submit(slot.carry_out, lookup, job)))
            if not begun:
                return
            slot, future = begun.popleft()
            iovecs = future.result()
            n_bytes = sum(iovecs[1::2])
            copy = crowded or n_bytes < _MIN_SPLICED
            _put(pipe, iovecs, copy=copy)
            sent += n_bytes
            if copy:
                free.append(slot)
            else:
                in_pipe.append((slot, sent))
            while in_pipe and sent - in_pipe[0][1] >= pipe_bytes:
                free.append(in_pipe.popleft()[0])
            if crowded:
                del free[1:]
    finally:
        for _, future in begun:
            future.cancel()


def _put(pipe: int, iovecs: array[int], *, copy: bool) -> None:
    put = writev if copy else vmsplice
    try:
        while iovecs:
            advance(iovecs, put(pipe, iovecs))
    except BrokenPipeError as error:
        raise PeerGone("CRIU has closed a pipe before all of its pages were sent") from error
    except OSError as error:
        what = describe_errno(error.errno or 0)
        raise ResourceError(f"cannot put pages into a pipe: {what}", errno=error.errno) from error
