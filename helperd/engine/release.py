"""Gives consumed parts of the pages image back: from the page cache, or the file's own blocks.

Without ``--auto-dedup`` consumed bytes are dropped from the page cache, which harms nothing. With
it they are punched out of the file, which cannot be undone. So a byte is punched only once every
page that came from it is in the target and, unless the caller wants it early, the restorer has the
answer: what was not answered can always be restored again.
"""

from __future__ import annotations

import _stat as stat

# Not threading: it takes longer to import, and at each fork, than what is used of it.
import _thread
import errno
import posix as os

from helperd.blocks import PAGE_SIZE
from helperd.codec.consumed import Consumed
from helperd.errors import ImageError, describe_errno
from helperd.kernel.hints import advise_file
from helperd.kernel.syscalls import file_flags, punch_hole
from helperd.modes import ANSWERED, NEVER
from helperd.reports.phases import PUNCH, spent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.reports.log import Log

#: Consumed bytes are given back in steps of at least this many while a request is worked on.
_STEP_BYTES = 4 << 20


class Release:
    """Keeps the books of one pages image; its methods may be called from any thread.

    Args:
        pages_fd: the pages image; open for writing if holes are to be punched.
        punch: one of PUNCH_MODES. Where punching cannot work there is one warning, and consumed
            bytes are dropped from the page cache instead.
        log: for that warning.

    Attributes:
        punched: bytes punched so far.
    """

    def __init__(self, pages_fd: int, punch: str, log: Log) -> None:
        self._fd = pages_fd
        self._punch = punch
        self._log = log
        self._lock = _thread.allocate_lock()
        self.punched = 0
        if punch != NEVER and file_flags(pages_fd) & os.O_ACCMODE == os.O_RDONLY:
            self._give_up("it is open for reading only (no symbolic link to it is written through)")
        status = os.fstat(pages_fd)
        if punch != NEVER and status.st_nlink > 1:
            self._give_up(
                f"it has {status.st_nlink} hard links, so other images may need what it holds"
            )
        size = status.st_size if stat.S_ISREG(status.st_mode) else 1 << 63
        # The page cache goes by pages, a file by its file system's blocks.
        self._block = PAGE_SIZE if self._punch == NEVER else os.fstatvfs(pages_fd).f_bsize
        self._consumed = Consumed(self._block, size)

    def check(self, start: int, end: int) -> None:
        """Refuse a payload of which something has been punched: it would read as zeros.

        Raises:
            ImageError: so it is.
        """
        if self._punch == NEVER:
            return
        with self._lock:
            consumed = self._consumed.overlaps(start, end)
        if consumed:
            raise ImageError(
                f"the payload at offsets {start} to {end} has been consumed by an earlier request:"
                " with --auto-dedup nothing can be asked for twice"
            )

    def confirmed(self, start: int, end: int) -> None:
        """Say that all pages from the payload ``start`` to ``end`` are in the target."""
        if self._punch == ANSWERED:
            return
        with self._lock:
            self._consumed.add(start, end)
            if self._consumed.ready_bytes < _STEP_BYTES:
                return
            parts = self._consumed.take()
        self._give_back(parts)

    def answered(self, start: int, end: int) -> None:
        """Say that the restorer has been told so."""
        with self._lock:
            if self._punch == ANSWERED:
                self._consumed.add(start, end)
            parts = self._consumed.take() if self._consumed.ready_bytes else []
        self._give_back(parts)

    def finish(self) -> None:
        """Give back what is left at a clean end: consumed bytes in blocks that others share.

        They are zeroed; a block in which nothing but zeros is left goes as well. So does one that
        this helper consumed a part of and another one, before, the rest.
        """
        for start, end in self._consumed.edges() if self._punch != NEVER else ():
            self._punch_out(start, end)
            block = start // self._block * self._block
            content = os.pread(self._fd, self._block, block)
            if self._punch != NEVER and not content.strip(b"\0"):
                self._punch_out(block, block + self._block)

    def _give_back(self, parts: list[tuple[int, int]]) -> None:
        for start, end in parts:
            if self._punch == NEVER:
                advise_file(self._fd, start, end - start, os.POSIX_FADV_DONTNEED)
            else:
                self._punch_out(start, end)

    def _punch_out(self, start: int, end: int) -> None:
        with spent(PUNCH):
            error = punch_hole(self._fd, start, end - start)
        if not error:
            self.punched += end - start
        elif self._punch != NEVER:
            self._give_up(
                describe_errno(error) if error != errno.EOPNOTSUPP else "its file system cannot"
            )

    def _give_up(self, why: str) -> None:
        self._punch = NEVER
        self._log.warning(
            f"the pages image cannot be punched: {why};"
            " the restore goes on, but the image keeps its size"
        )
