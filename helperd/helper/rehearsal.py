"""A request that a worker serves before there is a client: its own memory, restored once.

What a process writes to for the first time after a fork is copied then, page by page, and Python
writes to all that it uses. A client need not wait for that.
"""

from __future__ import annotations

import _signal as signal
import posix as os
from array import array

from helperd.blocks import PAGE_SIZE
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
    """Serve one request as a session would, to nobody, in this process."""
    image = os.memfd_create("rehearsal", os.MFD_CLOEXEC)
    os.write(image, _BLOCK)
    requests, asking = os.pipe()
    answers, answering = os.pipe()
    page = HugeBuffer(PAGE_SIZE, huge=False)
    request = Request(
        remote_pid=os.getpid(),
        offs=0,
        total_compressed_size=len(_BLOCK),
        n_pages=1,
        region_pages=0,
        sizes=array("I", (len(_BLOCK),)),
        block_pages=array("H"),
        iovs=array("Q", (page.address, PAGE_SIZE)),
    )
    os.write(asking, request.to_bytes())
    os.close(asking)
    options, log = Options(), Log(SILENT, None)
    worker = Worker(image, requests, answering, Hold.open, lambda _words: None, options, log)
    worker.serve(OFF, ())
    worker.close()
    for fd in (image, requests, answers, answering):
        os.close(fd)
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)
    phases.forget()
