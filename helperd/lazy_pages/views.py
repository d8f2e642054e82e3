"""Where the pages of a dump are in a process that moves its memory about.

An address of the process and the address that the page had when it was dumped differ by what
mremap has done since.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_END = 1 << 64


class Views:
    """Ranges of a process's addresses, each with the dumped address of its first byte.

    At first all addresses are what they were. A range that was moved away is no one's any more.

    Attributes:
        moved: whether anything may be elsewhere than it was.
    """

    def __init__(self) -> None:
        self._views: list[tuple[int, int, int]] = [(0, _END, 0)]
        self.moved = False

    def copy(self) -> Views:
        """Return views that change on their own."""
        other = Views()
        other._views = self._views[:]
        other.moved = self.moved
        return other

    def dumped(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield the dumped addresses, from and before, of what is between two addresses now."""
        for first, last, image in self._views:
            low, high = max(first, start), min(last, end)
            if low < high:
                yield image + low - first, image + high - first

    def now(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield where the dumped addresses ``start`` to before ``end`` are: (dumped, from, before).

        What is nowhere any more is left out.
        """
        for first, last, image in self._views:
            low, high = max(image, start), min(image + last - first, end)
            if low < high:
                yield low, first + low - image, first + high - image

    def move(self, source: int, to: int, n_bytes: int) -> None:
        """Move what is at ``source`` to ``to``."""
        self.moved = True
        taken = [
            (max(first, source), min(last, source + n_bytes), image + max(first, source) - first)
            for first, last, image in self._views
            if max(first, source) < min(last, source + n_bytes)
        ]
        self._clear(source, source + n_bytes)
        self._clear(to, to + n_bytes)
        self._views += [
            (to + low - source, to + high - source, image) for low, high, image in taken
        ]
        self._views.sort()

    def _clear(self, start: int, end: int) -> None:
        kept = []
        for first, last, image in self._views:
            if first < min(last, start):
                kept.append((first, min(last, start), image))
            if max(first, end) < last:
                low = max(first, end)
                kept.append((low, last, image + low - first))
        self._views = kept
