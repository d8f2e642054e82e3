"""Pages that a task is about to ask for, decoded before there is memory to put them in.

While CRIU restores a task nothing can be copied into it, and the daemon has nothing else to do. So
what was recorded is decoded meanwhile. The memory is where it belongs only some milliseconds before
the task runs, or less: then the pages have but to be copied, many times faster than it asks for
them.
"""

from __future__ import annotations

from itertools import count

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.errors import HelperdError
from helperd.kernel.syscalls import HugeBuffer

#: Pages that are copied in one go: some 100 microseconds.
_AT_ONCE = 16

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from helperd.images.lookup import Lookup
    from helperd.lazy_pages.bring import PageReader


class Ahead:
    """Pages of one task, in the order in which they will be asked for.

    Args:
        lookup: of the dump.
        numbers: of the pages, all of them in an image.
        room: how many may be kept at most, decoded.

    Attributes:
        n_kept: how many can be kept.
        n_under_way: threads that are decoding them.
        is_ready: whether there is memory to put them in.
    """

    def __init__(self, lookup: Lookup, numbers: list[int], room: int) -> None:
        self.n_kept = min(len(numbers), room)
        self.n_under_way = 0
        self.is_ready = False
        self._lookup = lookup
        self._left = numbers[::-1]
        self._decoded: list[tuple[int, int, int]] = []
        self._turns = count(0, _AT_ONCE)
        self._places = iter(range(0, pages_to_bytes(self.n_kept), PAGE_SIZE))
        self._kept = HugeBuffer(pages_to_bytes(self.n_kept), huge=False) if self.n_kept else None

    def decode(self, reader: PageReader) -> None:
        """Decode pages until there is no room for more, or memory to put them in.

        Several threads may do so at once; each page is then nearly in its turn.
        """
        if self._kept is None:
            return
        base = self._kept.address
        while not self.is_ready:
            at = next(self._places, -1)
            number = self._next() if at >= 0 else -1
            if number < 0:
                return
            try:
                is_data = reader.read(self._lookup, number)
            except HelperdError:
                continue  # Whoever brings its block tells of that.
            if is_data:
                self._kept.view[at : at + PAGE_SIZE] = reader.page
            self._decoded.append(
                (number, self._lookup.address_of(number), base + at if is_data else 0)
            )

    def pages(self, reader: PageReader) -> Iterator[list[tuple[int, int, int]]]:
        """Yield some pages at a time, in order.

        Each as its number, where it belongs and where it is, 0 for one that is all zero. Those that
        were not decoded before are now, and stay where they are until the next ones. Several
        threads may share them, once nobody decodes any more.
        """
        while batch := self._decoded[(at := next(self._turns)) : at + _AT_ONCE]:
            yield batch
        while (number := self._next()) >= 0:
            try:
                is_data = reader.read(self._lookup, number)
            except HelperdError:
                continue
            source = reader.address if is_data else 0
            yield [(number, self._lookup.address_of(number), source)]

    def _next(self) -> int:
        """Return the next page that is to be decoded, or -1."""
        try:
            return self._left.pop()
        except IndexError:
            return -1
