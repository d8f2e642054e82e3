"""One restore: the address spaces of its tasks, and what of their dumps has still to be brought."""

from __future__ import annotations

import threading

from helperd.lazy_pages.pageset import PageSet
from helperd.lazy_pages.space import AddressSpace

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from helperd.images.lookup import Lookup


class Dump:
    """The dumped memory of one task, and all address spaces that it is brought to.

    Those are the task's own, and those of the children that it has forked meanwhile.

    Attributes:
        pid: of the task in the images.
        lookup: where its pages are.
        lazy: the pages that are left to the daemon.
        spaces: that are not done yet.
        busy: the pieces that are under way, as first number -> number after the last.
    """

    def __init__(self, pid: int, lookup: Lookup, lazy: PageSet) -> None:
        self.pid = pid
        self.lookup = lookup
        self.lazy = lazy
        self.spaces: list[AddressSpace] = []
        self.busy: dict[int, int] = {}
        self._cursor = 0

    @property
    def missing(self) -> int:
        """Pages that are still to be brought to all spaces together."""
        return sum(space.missing.count for space in self.spaces)

    def next_missing(self) -> tuple[int, int] | None:
        """Return the next pages that somebody misses and nobody is bringing: (first, end)."""
        spaces = list(self.spaces)
        wrapped = False
        while spaces:
            found = [space.missing.first_from(self._cursor) for space in spaces]
            firsts = [number for number in found if number >= 0]
            if not firsts:
                if wrapped or not self._cursor:
                    return None
                self._cursor, wrapped = 0, True
                continue
            first = min(firsts)
            end = self._busy_end(first)
            if end is not None:
                self._cursor = end
                continue
            space = spaces[found.index(first)]
            return next(space.missing.runs(first, min(first + _LOOK_AHEAD, self.lookup.n_pages)))
        return None

    def begin(self, first: int, end: int) -> None:
        """Note that pages are under way, and go on behind them."""
        self.busy[first] = end
        self._cursor = end

    def done(self, first: int) -> None:
        """Note that the pages from ``first`` on are under way no more."""
        del self.busy[first]

    def _busy_end(self, number: int) -> int | None:
        for first, end in self.busy.items():
            if first <= number < end:
                return end
        return None


#: Pages beyond which a piece never reaches: a chunk, or one block of the largest region.
_LOOK_AHEAD = 1024


class Restore:
    """One run of ``criu restore``.

    Attributes:
        ident: number of it.
        finished: whether all of its tasks run.
        dumps: by the task's pid.
        lock: guards which spaces there are and what is under way.
    """

    def __init__(self, ident: int) -> None:
        self.ident = ident
        self.finished = False
        self.dumps: dict[int, Dump] = {}
        self.lock = threading.Lock()

    @property
    def spaces(self) -> list[AddressSpace]:
        """All address spaces that are not done."""
        return [space for dump in self.dumps.values() for space in dump.spaces]

    @property
    def missing(self) -> int:
        """Pages that are still to be brought."""
        return sum(dump.missing for dump in self.dumps.values())

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to be brought to anybody."""
        return not any(dump.spaces for dump in self.dumps.values())


def lazy_pages(lookup: Lookup, lazy: Sequence[int]) -> PageSet:
    """Return the pages of the runs that are left to the daemon (1 in ``lazy``)."""
    pages = PageSet(lookup.n_pages)
    start = -1
    for run, is_lazy in enumerate(lazy):
        if is_lazy and start < 0:
            start = lookup.numbers[run]
        elif not is_lazy and start >= 0:
            pages.add(start, lookup.numbers[run])
            start = -1
    if start >= 0:
        pages.add(start, lookup.n_pages)
    return pages
