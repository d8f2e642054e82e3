"""Holes of a file: ranges that read as zeros because nothing is stored for them.

CRIU never leaves one in a pages image, so a payload in a hole was lost: punched out by a restore
that consumes its image, or by deduplication.
"""

from __future__ import annotations

import errno
import posix as os
from io import SEEK_CUR, SEEK_SET

_STAT_BLOCK_BYTES = 512
_NO_SUCH_LOOK = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS)


def may_have_holes(status: os.stat_result) -> bool:
    """Return whether a file of this status may have holes; most have none, and say so here.

    Compressed and inlined files may say yes and have none.
    """
    return status.st_blocks * _STAT_BLOCK_BYTES < status.st_size


def first_hole(fd: int, start: int, end: int) -> int:
    """Return the offset of the first byte in a hole from ``start`` to before ``end``, or ``end``.

    Where the file system cannot tell, there is none. The file position, which a restorer may
    share, is where it was before.

    Raises:
        OSError: from the system calls.
    """
    if start >= end:
        return end
    position = os.lseek(fd, 0, SEEK_CUR)
    try:
        hole = os.lseek(fd, start, os.SEEK_HOLE)
    except OSError as error:
        if error.errno in _NO_SUCH_LOOK:
            return end
        if error.errno == errno.ENXIO:
            return start  # behind the end, or in a hole that reaches to it
        raise
    finally:
        os.lseek(fd, position, SEEK_SET)
    return min(hole, end)
