"""A warm server, and a client that waits for it: what ``latency.c`` is for spawned helpers."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import socket
import subprocess
import time
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from bench.images import PagesImage
from bench.rows import BenchError
from helperd.blocks import PAGE_SIZE
from helperd.options import Options
from helperd.server.attach import Session
from helperd.wire.pipe import ANSWER, Request, unpack_answer

_START_SECONDS = 30


class Server:
    """A running ``helperd serve``; a context manager.

    Args:
        command: what starts helperd.
        folder: for its socket, with a short name.

    Attributes:
        path: of its socket.
        attach: the command line of a client, without its descriptors.

    Raises:
        BenchError: it does not start, or does not end well.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self.path = str(folder / "socket")
        self.attach = (*command, "attach", "--socket", self.path)
        ready_path = folder / "ready"
        # It says when it is ready, as to systemd.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(ready_path))
            ready.settimeout(_START_SECONDS)
            self._process = subprocess.Popen(
                [*command, "serve", "--socket", self.path],
                env={**os.environ, "NOTIFY_SOCKET": str(ready_path)},
                stdin=subprocess.DEVNULL,
            )
            try:
                ready.recv(100)
            except TimeoutError as error:
                self._process.kill()
                self._process.wait()
                raise BenchError("helperd serve does not start") from error
            finally:
                ready_path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        status = self._process.wait()
        if status and kind is None:
            raise BenchError(f"helperd serve has ended with {status}")


def wait_for_pages(server: Server, image: PagesImage, n_requests: int) -> list[float]:
    """Have memory of this process restored, page by page, in a session of its own.

    Args:
        server: to connect to.
        image: of one page, which is compared with each that was restored.
        n_requests: after the first.

    Returns:
        Seconds from before connect to the first answer, then from each request to its answer.

    Raises:
        BenchError: a page is wrong, or there was no right answer.
        HelperdError: the server refuses.
    """
    memory = mmap.mmap(-1, (n_requests + 1) * PAGE_SIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANON)
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    pages_fd = os.open(image.path, os.O_RDONLY)
    request_read, request_write = os.pipe()
    reply_read, reply_write = os.pipe()

    def ask(number: int) -> None:
        os.write(request_write, _one_page(image, address + number * PAGE_SIZE))
        answer = os.read(reply_read, ANSWER.size)
        if not answer or unpack_answer(answer) != PAGE_SIZE:
            raise BenchError(f"helperd serve has answered {answer.hex() or 'nothing'}")

    start = time.perf_counter()
    session = Session(server.path, [pages_fd, request_read, reply_write], Options())
    for fd in (pages_fd, request_read, reply_write):
        os.close(fd)
    seconds = []
    try:
        for number in range(n_requests + 1):
            ask(number)
            end = time.perf_counter()
            seconds.append(end - start)
            start = end
    finally:
        for fd in (request_write, reply_read, session.worker_pidfd):
            os.close(fd)
        code, _ = session.wait()
    if code:
        raise BenchError(f"the session has ended with {code}")
    if memory[:] != image.memory.source.read_bytes() * (n_requests + 1):
        raise BenchError("helperd serve has restored a page that is not the dumped one")
    return seconds


def _one_page(image: PagesImage, address: int) -> bytes:
    """Return a request for the image's only page."""
    return Request(
        remote_pid=os.getpid(),
        offs=0,
        total_compressed_size=image.payload_bytes,
        n_pages=1,
        region_pages=0,
        sizes=array("I", [image.payload_bytes]),
        block_pages=array("H"),
        iovs=array("Q", [address, PAGE_SIZE]),
    ).to_bytes()
