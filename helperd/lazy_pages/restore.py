"""One restore: the address spaces of its tasks, and what of their dumps has still to be brought."""

from __future__ import annotations

from helperd.images.lookup import ELSEWHERE
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
        remote: the pages that are in no image.
        spaces: that are not done yet.
        busy: the pieces that are under way, as first number -> number after the last.
        window: pages of a piece at least, where somebody reads on and on; else 0.
    """

    def __init__(self, pid: int, lookup: Lookup, lazy: PageSet) -> None:
        self.pid = pid
        self.lookup = lookup
        self.lazy = lazy
        self.remote = remote_pages(lookup)
        self.spaces: list[AddressSpace] = []
        self.busy: dict[int, int] = {}
        self.window = 0
        self._cursor = {False: 0, True: 0}
        self._waiting: dict[int, list[tuple[AddressSpace, int]]] = {}

    @property
    def missing(self) -> int:
        """Pages that are still to be brought to all spaces together."""
        return sum(space.missing.count for space in self.spaces)

    def next_missing(self, *, remote: bool = False) -> tuple[int, int] | None:
        """Return the next pages that somebody misses and nobody is bringing: (first, end).

        Args:
            remote: of the pages that are in no image, or of those that are.
        """
        spaces = list(self.spaces)
        wrapped = False
        while spaces:
            cursor = self._cursor[remote]
            found = [space.missing.first_from(cursor) for space in spaces]
            firsts = [number for number in found if number >= 0]
            first = min(firsts, default=-1)
            if first >= 0:
                skipped = self._other_kind_end(first, remote=remote) or self._busy_end(first)
                if skipped is None:
                    space = spaces[found.index(first)]
                    ahead = [busy for busy in list(self.busy) if busy > first]
                    limit = min(first + _LOOK_AHEAD, self._kind_end(first, remote=remote), *ahead)
                    return next(space.missing.runs(first, limit))
                self._cursor[remote] = skipped
                continue
            if wrapped or not cursor:
                return None
            self._cursor[remote], wrapped = 0, True
        return None

    def begin(self, first: int, end: int) -> None:
        """Note that pages are under way, and go on behind them."""
        self.busy[first] = end
        self._cursor[first in self.remote] = end

    def local_from(self, number: int) -> int:
        """Return the first page from a number on that is in an image, or the number of all."""
        while number in self.remote:
            number = self.lookup.numbers[self.lookup.run_of(number) + 1]
        return number

    def done(self, first: int) -> list[tuple[AddressSpace, int]]:
        """Note that the pages from ``first`` on are under way no more; return who is to be woken.

        Each as the address space, and the address of a fault.
        """
        del self.busy[first]
        return self._waiting.pop(first, [])

    def wait_for(self, space: AddressSpace, number: int, address: int) -> bool:
        """Have a fault woken once a page is there; return False if it is not under way."""
        for first, end in self.busy.items():
            if first <= number < end:
                self._waiting.setdefault(first, []).append((space, address))
                return True
        return False

    def follow(self, number: int, window: int) -> None:
        """Go on from a page on, in pieces of at least so many pages."""
        self._cursor[False] = number
        self.window = window

    def _other_kind_end(self, number: int, *, remote: bool) -> int | None:
        """Return where pages of the other kind end, if the page is of that."""
        if (number in self.remote) == remote:
            return None
        if remote:
            found = self.remote.first_from(number)
            return found if found >= 0 else self.lookup.n_pages
        return self.local_from(number)

    def _kind_end(self, number: int, *, remote: bool) -> int:
        """Return how far pages of one kind are sure to reach."""
        if remote:
            return self.lookup.numbers[self.lookup.run_of(number) + 1]
        found = self.remote.first_from(number)
        return found if found >= 0 else self.lookup.n_pages

    def _busy_end(self, number: int) -> int | None:
        for first, end in list(self.busy.items()):
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
    """

    def __init__(self, ident: int) -> None:
        self.ident = ident
        self.finished = False
        self.dumps: dict[int, Dump] = {}

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


def remote_pages(lookup: Lookup) -> PageSet:
    """Return the pages that are in no image: a dump for lazy-pages kept them."""
    return _pages_of(lookup, [level == ELSEWHERE for level in lookup.level_of])


def lazy_pages(lookup: Lookup, lazy: Sequence[int]) -> PageSet:
    """Return the pages of the runs that are left to the daemon (1 in ``lazy``)."""
    return _pages_of(lookup, lazy)


def _pages_of(lookup: Lookup, wanted: Sequence[int]) -> PageSet:
    pages = PageSet(lookup.n_pages)
    start = -1
    for run, is_wanted in enumerate(wanted):
        if is_wanted and start < 0:
            start = lookup.numbers[run]
        elif not is_wanted and start >= 0:
            pages.add(start, lookup.numbers[run])
            start = -1
    if start >= 0:
        pages.add(start, lookup.n_pages)
    return pages
