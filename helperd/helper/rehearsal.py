"""Requests that a worker serves before there is a client: its own memory, restored.

What a process writes to for the first time after a fork is copied then, page by page, and Python
writes to all that it uses. Large buffers have to be cleared by the kernel before their first use.
A client need not wait for any of that.
"""

from __future__ import annotations

import _signal as signal
import posix as os
from array import array

from helperd.blocks import PAGE_SIZE
from helperd.codec import decoders
from helperd.codec.chunk import CHUNK_PAGES
from helperd.engine.plan import plan_chunks
from helperd.errors import HelperdError
from helperd.helper.worker import Worker
from helperd.kernel.syscalls import HugeBuffer
from helperd.modes import OFF
from helperd.options import Options
from helperd.reports import phases
from helperd.reports.log import SILENT, Log
from helperd.targets.hold import Hold
from helperd.wire.pipe import Request

#: A page of one letter as an LZ4 block: a literal, a match that repeats it, five literals.
_LENGTHS, _LAST = divmod(PAGE_SIZE - 1 - 5 - 4 - 15, 255)
_BLOCK = b"\x1fx\x01\x00" + b"\xff" * _LENGTHS + bytes((_LAST,)) + b"\x50xxxxx"


def rehearse() -> None:
    """Serve requests as a session would, a small and a large one, to nobody, in this process.

    The buffers are kept for the session; so are those of a second thread, if that may be another
    CPU's. More threads make their own, in requests that take far longer than that.
    """
    image = os.memfd_create("rehearsal", os.MFD_CLOEXEC)
    os.write(image, _BLOCK * CHUNK_PAGES)
    memory = HugeBuffer(CHUNK_PAGES * PAGE_SIZE, huge=False)
    large = _request(memory.address, CHUNK_PAGES)
    _serve(image, (_request(memory.address, 1), large))
    if len(os.sched_getaffinity(0)) > 1:
        first = decoders.take()
        try:
            second = decoders.take()
            for chunk in plan_chunks(large):
                second.decode(image, chunk)
            decoders.keep(second)
        except (MemoryError, OSError, HelperdError):
            pass  # It may not have so much memory; a session will see whether it needs it.
        decoders.keep(first)
    os.close(image)
    phases.forget()


def _request(address: int, n_pages: int) -> Request:
    size = len(_BLOCK)
    return Request(
        remote_pid=os.getpid(),
        offs=0,
        total_compressed_size=size * n_pages,
        n_pages=n_pages,
        region_pages=0,
        sizes=array("I", (size,)) * n_pages,
        block_pages=array("H"),
        iovs=array("Q", (address, n_pages * PAGE_SIZE)),
    )


def _serve(image: int, requests: tuple[Request, ...]) -> None:
    requesting, asking = os.pipe()
    answers, answering = os.pipe()
    for request in requests:
        os.write(asking, request.to_bytes())
    os.close(asking)
    options, log = Options(), Log(SILENT, None)
    options.threads = 1  # More could not be confined afterwards.
    worker = Worker(image, requesting, answering, Hold.open, lambda _words: None, options, log)
    worker.serve(OFF, ())
    worker.close()
    for fd in (requesting, answers, answering):
        os.close(fd)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
