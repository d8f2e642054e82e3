"""Sets of ranges: addresses that are needed, holes of a file."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from itertools import compress
from operator import lt

#: Behind every address, and every offset.
_NEVER = 1 << 65


class Ranges:
    """Disjoint ranges of integers, each from its start to before its end, built ascending."""

    def __init__(self, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        for start, end in ranges:
            self.append(start, end)

    @classmethod
    def of(cls, starts: list[int], ends: list[int]) -> Ranges:
        """Return the set of these ranges, ascending, none of them empty; some may touch."""
        ranges = cls()
        apart = list(map(lt, ends, starts[1:]))
        if all(apart):
            ranges._starts, ranges._ends = starts, ends
        else:
            ranges._starts = starts[:1] + list(compress(starts[1:], apart))
            ranges._ends = list(compress(ends, apart)) + ends[-1:]
        return ranges

    def append(self, start: int, end: int) -> None:
        """Add a range that lies behind all others; one that touches the last is merged with it."""
        if start >= end:
            return
        if self._ends and start <= self._ends[-1]:
            self._ends[-1] = max(end, self._ends[-1])
        else:
            self._starts.append(start)
            self._ends.append(end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def __len__(self) -> int:
        return len(self._starts)

    @property
    def total(self) -> int:
        """How many integers are in the set."""
        return sum(self._ends) - sum(self._starts)

    def overlaps(self, start: int, end: int) -> bool:
        """Return whether any integer from ``start`` to before ``end`` is in the set."""
        if start >= end:
            return False
        index = bisect_right(self._ends, start)
        return index < len(self._starts) and self._starts[index] < end

    def covers(self, starts: Iterable[int], ends: Iterable[int]) -> list[bool | None]:
        """Return of each of these ranges whether all of it is in the set; None for a part of it."""
        firsts, lasts = [*self._starts, _NEVER], self._ends
        return [
            False
            if firsts[at := bisect_right(lasts, start)] >= end
            else True
            if firsts[at] <= start and end <= lasts[at]
            else None
            for start, end in zip(starts, ends, strict=True)
        ]

    def within(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield what is in the set between ``start`` and ``end``, ascending."""
        first = bisect_right(self._ends, start)
        last = bisect_left(self._starts, end)
        for index in range(first, last):
            yield max(self._starts[index], start), min(self._ends[index], end)

    def gaps(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """Yield what is not in the set between ``start`` and ``end``, ascending."""
        for covered_start, covered_end in self.within(start, end):
            if start < covered_start:
                yield start, covered_start
            start = covered_end
        if start < end:
            yield start, end


def find_holes(file_bytes: int, data: Iterable[tuple[int, int]]) -> Ranges:
    """Return the holes of a file of ``file_bytes`` bytes from its ranges of data, ascending."""
    return Ranges(Ranges(data).gaps(0, file_bytes))
