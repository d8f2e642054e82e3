"""Pages files that come in pieces, from front to back: a window of them in memory.

What is needed next is written into a file without a name, at the place where it belongs, and what
lies far enough behind it is punched out again. So whoever goes through a pages file in its order
reads it as a file, although it lies in an archive that cannot be sought in.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import Protocol

from helperd.blocks import MAX_REGION_PAGES, max_stored_size, pages_to_bytes
from helperd.errors import InternalError, ShortImage
from helperd.images.ranges import Ranges
from helperd.kernel.syscalls import punch_hole

#: What is kept behind the place that was asked for last: as many pieces of work as are begun before
#: the first has ended, for two threads.
WINDOW_BYTES = 8 * max_stored_size(pages_to_bytes(MAX_REGION_PAGES))
_PAGE = os.sysconf("SC_PAGE_SIZE")


class Feed(Protocol):
    """Where a pages file comes from that is a part of something else.

    Attributes:
        fd: to be read from, where :meth:`require` was called for.
        base: offset in ``fd`` of the file's first byte.
        size: of the file.
        holes: its ranges without data.
    """

    fd: int
    base: int
    size: int
    holes: Ranges

    def require(self, start: int, end: int) -> None:
        """See to it that the bytes from ``start`` to ``end`` of the file can be read."""

    def close(self) -> None:
        """Give everything back."""


class SliceFeed:
    """A pages file that lies in one piece in a file that can be sought in; see :class:`Feed`.

    Args:
        fd: of the other file; taken over.
        base: offset in it of the first byte.
        size: of the pages file.
    """

    def __init__(self, fd: int, base: int, size: int) -> None:
        self.fd = fd
        self.base = base
        self.size = size
        self.holes = Ranges()

    def require(self, start: int, end: int) -> None:
        """Do nothing: everything is there."""

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)


class WindowFeed:
    """A pages file of which only a window is there; see :class:`Feed`.

    Args:
        path: of the file, for messages.
        size: of the file.
        holes: its ranges without data.
        pieces: its data as (offset, bytes), ascending.
        window_bytes: that are kept behind the place that was asked for last.

    Attributes:
        fd: to be read from, where :meth:`require` was called for.
        size: of the file.
        holes: its ranges without data.
    """

    def __init__(
        self,
        path: str,
        size: int,
        holes: Iterable[tuple[int, int]],
        pieces: Iterable[tuple[int, bytes]],
        window_bytes: int = WINDOW_BYTES,
    ) -> None:
        self._path = path
        self.base = 0
        self.size = size
        self.holes = Ranges(holes)
        self._pieces = iter(pieces)
        self._window_bytes = window_bytes
        self._lock = threading.Lock()
        self._filled = 0
        self._dropped = 0
        self.fd = os.memfd_create("helperd-pages", os.MFD_CLOEXEC)
        os.ftruncate(self.fd, size)

    def require(self, start: int, end: int) -> None:
        """See to it that the bytes from ``start`` to ``end`` can be read.

        Raises:
            ShortImage: the pieces end before.
            InternalError: they were dropped: somebody does not go from front to back.
            HelperdError: as whatever gives the pieces says.
        """
        with self._lock:
            if start < self._dropped:
                raise InternalError(
                    f"{self._path}: offset {start} is needed again after {self._filled}"
                )
            while self._filled < end:
                piece = next(self._pieces, None)
                if piece is None:
                    if end <= self.size:
                        self._filled = self.size  # Nothing but a hole is left.
                        break
                    raise ShortImage(f"{self._path}: ends before offset {end}")
                offset, data = piece
                done = 0
                while done < len(data):
                    done += os.pwrite(self.fd, memoryview(data)[done:], offset + done)
                self._filled = offset + len(data)
            keep = (end - self._window_bytes) // _PAGE * _PAGE
            if keep - self._dropped >= self._window_bytes // 4:
                punch_hole(self.fd, self._dropped, keep - self._dropped)
                self._dropped = keep

    def close(self) -> None:
        """Give the memory back."""
        os.close(self.fd)
