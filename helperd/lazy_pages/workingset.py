"""The working set: which pages a process asks for, in which order, kept for the next restore.

A text file with a line for each time: the task's pid in the images, the address of the first of
the pages that were brought, in hexadecimal, how many they were, and the address of the one that was
asked for, if that is known. Addresses hold for the same memory however it is compressed.
"""

from __future__ import annotations

import errno
import os
from array import array

from helperd.blocks import PAGE_SIZE
from helperd.errors import UsageError, describe_errno

_HEADER = "# helperd working set: pid, address, pages, address of the page asked for\n"
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

    def note(self, pid: int, address: int, pages: int, asked: int) -> None:
        """Note pages that are brought because the one at ``asked`` was asked for."""
        if self._fd >= 0:
            self._noted.extend((pid, address, pages, asked))

    def write(self) -> None:
        """Write what was noted since the last time.

        Raises:
            OSError: it cannot be written.
        """
        if self._fd < 0:
            return
        noted, self._noted = self._noted, array("Q")
        lines = [_HEADER]
        for at in range(0, len(noted), 4):
            pid, address, pages, asked = noted[at : at + 4]
            lines.append(f"{pid} {address:#x} {pages} {asked:#x}\n")
        data = memoryview("".join(lines).encode())
        while data:
            data = data[os.write(self._fd, data) :]


def read_working_set(path: str) -> list[tuple[int, int, int, int]]:
    """Return what :class:`Recorder` has written: (pid, address, pages, asked), in order.

    Where a line does not say which page was asked for, that is -1.

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
            pid, address, pages, *rest = (int(word, 0) for word in line.split())
            is_good = pid > 0 and pages > 0 and len(rest) <= 1
            if not (is_good and all(map(_is_place, (address, *rest)))):
                raise ValueError(line)
        except ValueError:
            raise UsageError(f"{path}, line {number}: not a pid, an address and pages") from None
        found.append((pid, address, pages, rest[0] if rest else -1))
    return found


def _is_place(address: int) -> bool:
    return 0 <= address < _NUMBER_END and address % PAGE_SIZE == 0
