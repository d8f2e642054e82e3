"""A set of page numbers that costs next to nothing where it is all or nothing.

Most of a dump is either still missing or all there; only few groups of pages are in between. Of
those there is a byte for each page, of the others one for each group.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_GROUP = 512
_NONE, _ALL, _SOME = 0, 1, 2
_FULL = b"\1" * _GROUP
_EMPTY = bytes(_GROUP)


class PageSet:
    """Numbers from 0 to before ``n_pages``; empty at first.

    One thread at a time may change it, while others look: they see it as it was or as it will be.

    Attributes:
        count: numbers in it.
    """

    def __init__(self, n_pages: int) -> None:
        self._n_pages = n_pages
        self._groups = bytearray(-(-n_pages // _GROUP))
        self._some: dict[int, bytearray] = {}
        self.count = 0

    def copy(self) -> PageSet:
        """Return another set of the same numbers."""
        other = PageSet(0)
        other._n_pages = self._n_pages
        other._groups = self._groups[:]
        other._some = {group: pages[:] for group, pages in self._some.items()}
        other.count = self.count
        return other

    def __contains__(self, number: int) -> bool:
        if not 0 <= number < self._n_pages:
            return False
        group, page = divmod(number, _GROUP)
        kind, pages = self._look(group)
        return bool(pages[page]) if pages is not None else kind == _ALL

    def add(self, first: int, end: int) -> None:
        """Add the numbers from ``first`` to before ``end``."""
        self._set(first, end, 1)

    def discard(self, first: int, end: int) -> int:
        """Take out the numbers from ``first`` to before ``end``; return how many there were."""
        before = self.count
        self._set(first, end, 0)
        return before - self.count

    def runs(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield what of ``first`` to before ``end`` is in the set, as (first, end) in order."""
        start = -1
        at = first
        while at < end:
            group, page = divmod(at, _GROUP)
            stop = min(end, (group + 1) * _GROUP)
            kind, pages = self._look(group)
            if pages is not None:
                # Up to the next page of the other kind.
                wanted = pages[page]
                found = pages.find(0 if wanted else 1, page, stop - group * _GROUP)
                if found >= 0:
                    stop = group * _GROUP + found
                is_in = bool(wanted)
            else:
                is_in = kind == _ALL
            if is_in and start < 0:
                start = at
            elif not is_in and start >= 0:
                yield start, at
                start = -1
            at = stop
        if start >= 0:
            yield start, end

    def first_from(self, number: int) -> int:
        """Return the smallest number in the set that is at least ``number``, or -1."""
        while number < self._n_pages:
            group, page = divmod(number, _GROUP)
            kind, pages = self._look(group)
            if kind == _ALL:
                return number
            if pages is not None:
                found = pages.find(1, page)
                if found >= 0:
                    return group * _GROUP + found
            # Groups without any are passed over in one go.
            ahead = self._groups.find(_ALL, group + 1), self._groups.find(_SOME, group + 1)
            later = [found for found in ahead if found >= 0]
            if not later:
                return -1
            number = min(later) * _GROUP
        return -1

    def _look(self, group: int) -> tuple[int, bytearray | None]:
        """Return the kind of a group, and its pages if it is in between."""
        while True:
            kind = self._groups[group]
            if kind != _SOME:
                return kind, None
            pages = self._some.get(group)
            if pages is not None:
                return kind, pages
            # Just now it has become one of the other kinds, in another thread.

    def _set(self, first: int, end: int, value: int) -> None:
        at = first
        while at < end:
            group, page = divmod(at, _GROUP)
            stop = min(end, (group + 1) * _GROUP)
            self._set_in_group(group, page, page + stop - at, value)
            at = stop

    def _set_in_group(self, group: int, first: int, end: int, value: int) -> None:
        kind = self._groups[group]
        if kind == value:
            return
        size = min(_GROUP, self._n_pages - group * _GROUP)
        if kind != _SOME:
            if end - first == size:
                self._groups[group] = value
                self.count += size if value else -size
                return
            pages = self._some[group] = bytearray((_FULL if kind == _ALL else _EMPTY)[:size])
            self._groups[group] = _SOME
        else:
            pages = self._some[group]
        there = pages.count(1, first, end)
        pages[first:end] = (_FULL if value else _EMPTY)[: end - first]
        self.count += (end - first - there) if value else -there
        total = pages.count(1)
        if total in (0, size):
            self._groups[group] = _ALL if total else _NONE
            del self._some[group]
