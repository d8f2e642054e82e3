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


def why_not_written(lines: Iterable[str], address: int) -> str:
    """Return why the page at ``address`` could not be written, as far as the mappings tell."""
    for line in lines:
        fields = line.split(None, 5)
        start, end = (int(part, 16) for part in fields[0].split("-"))
        if not start <= address < end:
            continue
        permissions, name = fields[1], fields[5].strip() if len(fields) > 5 else ""
        if "w" not in permissions:
            return f"is not mapped writable: its mapping is {permissions} {name}".rstrip()
        if "hugepage" in name:
            return (
                f"is mapped ({name}), but no huge page is free for it: see vm.nr_hugepages and the"
                " limits of its cgroup"
            )
        return (
            f"is mapped {permissions} {name}".rstrip() + ", but the kernel has no memory for it: it"
            " lies behind the end of its file, no huge page is free, or a limit is reached"
        )
    return "is not mapped writable: nothing is mapped there"


def _is_private_anonymous(fields: list[str]) -> bool:
    _, permissions, _, _, inode, *name = fields
    if permissions[3] != "p" or inode != "0":
        return False
    path = name[0].strip() if name else ""
    return path in ("", "[heap]", "[stack]") or path.startswith("[anon:")
