"""The address space of a process as /proc/PID/maps tells it: what does an untouched page hold?"""

from __future__ import annotations

from _bisect import bisect_right

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


class Mappings:
    """A snapshot of a process's mappings.

    Only private anonymous memory reads as zero where no page has been touched: a file mapping
    shows the file, shared memory what another process wrote, [vdso] and its like the kernel's
    own pages. What is not known to be anonymous is taken for something else.
    """

    def __init__(self, lines: Iterable[str]) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._anonymous: list[bool] = []
        for line in lines:
            fields = line.split(None, 5)
            start, end = (int(part, 16) for part in fields[0].split("-"))
            self._starts.append(start)
            self._ends.append(end)
            self._anonymous.append(_is_private_anonymous(fields))

    def is_private_anonymous(self, address: int, end: int) -> bool:
        """Return whether all of ``address`` to ``end`` is mapped, private and anonymous."""
        index = bisect_right(self._starts, address) - 1
        while 0 <= index < len(self._starts) and self._starts[index] <= address:
            if address >= self._ends[index] or not self._anonymous[index]:
                return False
            address = self._ends[index]
            if address >= end:
                return True
            index += 1
        return False


def _is_private_anonymous(fields: list[str]) -> bool:
    _, permissions, _, _, inode, *name = fields
    if permissions[3] != "p" or inode != "0":
        return False
    path = name[0].strip() if name else ""
    return path in ("", "[heap]", "[stack]") or path.startswith("[anon:")
