"""The working set: which pages a process asks for, in which order, kept for the next restore.

A text file with a line for each: the task's pid in the images, the address of the first page in
hexadecimal, how many pages. Addresses hold for the same memory however it is compressed.
"""

from __future__ import annotations

import errno
import os
from array import array

from helperd.blocks import PAGE_SIZE
from helperd.errors import UsageError, describe_errno

_HEADER = "# helperd working set: pid, address, pages\n"
_MOST_BYTES = 64 << 20
_NUMBER_END = 1 << 64


class Recorder:
    """Notes what is asked for, and writes it to an open file; without one it does nothing."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._noted = array("Q")

    @property
    def is_on(self) -> bool:
        """Whether there is a file to write to."""
        return self._fd >= 0

    def note(self, pid: int, address: int, pages: int) -> None:
        """Note pages that were asked for."""
        if self._fd >= 0:
            self._noted.extend((pid, address, pages))

    def write(self) -> None:
        """Write what was noted since the last time.

        Raises:
            OSError: it cannot be written.
        """
        if self._fd < 0:
            return
        noted, self._noted = self._noted, array("Q")
        lines = [_HEADER]
        for at in range(0, len(noted), 3):
            lines.append(f"{noted[at]} {noted[at + 1]:#x} {noted[at + 2]}\n")
        data = memoryview("".join(lines).encode())
        while data:
            data = data[os.write(self._fd, data) :]


def read_working_set(path: str) -> list[tuple[int, int, int]]:
    """Return what :class:`Recorder` has written: (pid, address, pages), in order.

    Raises:
        UsageError: the file cannot be read, or is none of these.
    """
    try:
        with open(path, "rb") as stream:
            data = stream.read(_MOST_BYTES + 1)
    except OSError as error:
        what = describe_errno(error.errno or errno.EIO)
        raise UsageError(f"cannot read the working set {path}: {what}") from error
    if len(data) > _MOST_BYTES:
        raise UsageError(f"the working set {path} has more than {_MOST_BYTES} bytes")
    found = []
    for number, line in enumerate(data.decode("ascii", "replace").splitlines(), 1):
        if line.startswith("#"):
            continue
        try:
            pid, address, pages = (int(word, 0) for word in line.split())
            if pid <= 0 or address % PAGE_SIZE or not pages > 0 or not 0 <= address < _NUMBER_END:
                raise ValueError(line)
        except ValueError:
            raise UsageError(f"{path}, line {number}: not a pid, an address and pages") from None
        found.append((pid, address, pages))
    return found
