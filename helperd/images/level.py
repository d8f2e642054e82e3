"""One directory's part of a dump, open: a pagemap and the pages file that it names."""

from __future__ import annotations

import os
import stat

from helperd.errors import CorruptBlock, ImageError, ShortImage, from_errno
from helperd.images.entries import Entries
from helperd.kernel.holes import first_hole, may_have_holes


class Level:
    """One directory's part of a dump: the pagemap and the open pages file.

    Attributes:
        path: of the pages file.
        fd: the pages file; -1 when nothing is stored in it.
        entries: of the pagemap.
    """

    def __init__(self, path: str, fd: int, entries: Entries) -> None:
        self.path = path
        self.fd = fd
        self.entries = entries

    def may_have_holes(self) -> bool:
        """Return whether the pages file may have holes."""
        return self.fd >= 0 and may_have_holes(os.fstat(self.fd))

    def check_holes(self, start: int, end: int) -> None:
        """Raise CorruptBlock if the pages file has a hole from ``start`` to before ``end``."""
        try:
            hole = first_hole(self.fd, start, end)
        except OSError as error:
            raise from_errno(error.errno or 0, f"cannot read {self.path}") from error
        if hole < end:
            raise CorruptBlock(
                f"{self.path}: the payload at offset {hole} lies in a hole: punched out and lost,"
                " or zeros that a copying tool left out (then copy it with cp --sparse=never)"
            )

    def close(self) -> None:
        """Close the pages file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def open_level(path: str, name: str) -> Level:
    """Open one directory's part; raises as :func:`open_lookup` does."""
    pagemap = os.path.join(path, name)
    entries = Entries(pagemap, read_image(pagemap))
    pages = os.path.join(path, f"pages-{entries.pages_id}.img")
    if not entries.payload_end:
        return Level(pages, -1, entries)
    fd = _open(pages)
    size = os.fstat(fd).st_size
    if size < entries.payload_end:
        os.close(fd)
        raise ShortImage(
            f"{pages}: ends at offset {size}, its pagemap {pagemap} needs"
            f" {entries.payload_end} bytes"
        )
    return Level(pages, fd, entries)


def read_image(path: str) -> bytes:
    """Return all of an image file that is not pages.

    Raises:
        ImageError: it is missing or cannot be read.
    """
    fd = _open(path)
    try:
        with os.fdopen(fd, "rb", buffering=0) as stream:
            return stream.readall()
    except OSError as error:
        raise from_errno(error.errno or 0, f"cannot read {path}") from error


def _open(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        failure = from_errno(error.errno or 0, f"cannot open {path}")
        raise ImageError(str(failure), errno=error.errno) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise ImageError(f"{path}: not a regular file")
    return fd
