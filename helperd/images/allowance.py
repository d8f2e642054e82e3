"""What somebody may still write: bytes of its own, and of what everybody shares."""

from __future__ import annotations

import errno
import os

from helperd.errors import ResourceError
from helperd.images.records import os_failure

#: What may be written before the disk is looked at again.
_UNCHECKED_BYTES = 1 << 20


class Allowance:
    """Bytes that somebody may still write.

    Args:
        path: of a directory on the disk that it writes to.
        max_bytes: in all; None for no limit.
        keep_free: bytes of that disk that stay free, whoever has written the others.
    """

    def __init__(self, path: str, max_bytes: int | None = None, keep_free: int = 0) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._keep_free = keep_free
        self._taken = 0
        # How many they were when the disk was looked at.
        self._checked = -_UNCHECKED_BYTES

    def take(self, n_bytes: int) -> None:
        """Take some, before they are written.

        Raises:
            ResourceError: there are not so many left.
        """
        self._taken += n_bytes
        if self._max_bytes is not None and self._taken > self._max_bytes:
            raise ResourceError(
                f"the images would take more than {self._max_bytes} bytes (--max-bytes)",
                errno=errno.EDQUOT,
            )
        if self._keep_free and self._taken - self._checked >= _UNCHECKED_BYTES:
            self._checked = self._taken
            self._check_disk(n_bytes)

    def _check_disk(self, n_bytes: int) -> None:
        try:
            disk = os.statvfs(self._path)
        except OSError as error:
            raise os_failure(error, f"cannot ask how much is free for {self._path}") from error
        free = disk.f_bavail * disk.f_frsize
        if free - n_bytes < self._keep_free:
            raise ResourceError(
                f"{self._path}: of {free} bytes that are free {self._keep_free} have to stay so"
                " (--keep-free)",
                errno=errno.ENOSPC,
            )
