"""Gives consumed parts of the pages image back: from the page cache, or from the file itself."""

from __future__ import annotations

import os
import stat
import threading

from helperd.blocks import PAGE_SIZE
from helperd.consumed import Consumed

#: Consumed bytes are dropped in steps of at least this many, to save system calls.
_STEP_BYTES = 8 << 20


class Release:
    """Keeps the books of one pages image; its methods may be called from any thread.

    Args:
        pages_fd: the pages image.
    """

    def __init__(self, pages_fd: int) -> None:
        self._fd = pages_fd
        self._lock = threading.Lock()
        status = os.fstat(pages_fd)
        size = status.st_size if stat.S_ISREG(status.st_mode) else 1 << 63
        self._consumed = Consumed(PAGE_SIZE, size)

    def confirmed(self, start: int, end: int) -> None:
        """Say that all pages from the payload ``start`` to ``end`` are in the target."""
        with self._lock:
            self._consumed.add(start, end)
            if self._consumed.ready_bytes < _STEP_BYTES:
                return
            parts = self._consumed.take()
        self._drop(parts)

    def answered(self) -> None:
        """Say that everything confirmed so far has been answered for."""
        with self._lock:
            parts = self._consumed.take()
        self._drop(parts)

    def _drop(self, parts: list[tuple[int, int]]) -> None:
        for start, end in parts:
            os.posix_fadvise(self._fd, start, end - start, os.POSIX_FADV_DONTNEED)
