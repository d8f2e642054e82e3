"""Which bytes of a pages image are used up, without I/O.

Payloads do not end on block boundaries, and only whole blocks of a file can be given back. So
neighbours are merged, across chunks, threads and requests, and a block is handed out once every
byte of it has been consumed.
"""

from __future__ import annotations

from _bisect import bisect_left, bisect_right


class Consumed:
    """A set of consumed byte ranges that hands out the whole blocks in it, each once.

    Args:
        block_bytes: of a block of the file.
        file_bytes: of the file; what lies behind its end counts as consumed.
    """

    def __init__(self, block_bytes: int, file_bytes: int) -> None:
        self._block = block_bytes
        self._file_bytes = file_bytes
        # Disjoint, not touching, ascending.
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._ready: list[tuple[int, int]] = []
        #: Bytes of whole blocks that can be taken.
        self.ready_bytes = 0

    def add(self, start: int, end: int) -> None:
        """Add the range from ``start`` to before ``end``."""
        if start >= end:
            return
        if end >= self._file_bytes:
            end = self._round_up(end)
        first = bisect_left(self._ends, start)
        last = bisect_right(self._starts, end)
        if first < last and self._starts[first] <= start and end <= self._ends[first]:
            return  # Nothing new, as when one page is put in many places.
        merged_start, merged_end = start, end
        if first < last:
            merged_start = min(start, self._starts[first])
            merged_end = max(end, self._ends[last - 1])
        # What was whole in a part has been handed out; the gaps between those become so now.
        position = self._round_up(merged_start)
        for part_start, part_end in zip(
            self._starts[first:last], self._ends[first:last], strict=True
        ):
            whole_start, whole_end = self._whole(part_start, part_end)
            if whole_start < whole_end:
                self._make_ready(position, whole_start)
                position = whole_end
        self._make_ready(position, self._round_down(merged_end))
        self._starts[first:last] = [merged_start]
        self._ends[first:last] = [merged_end]

    def overlaps(self, start: int, end: int) -> bool:
        """Return whether any byte from ``start`` to before ``end`` has been consumed."""
        first = bisect_right(self._ends, start)
        return start < end and first < len(self._starts) and self._starts[first] < end

    def take(self) -> list[tuple[int, int]]:
        """Return the ranges of whole blocks, ascending, that became so since the last call."""
        ready, self._ready = sorted(self._ready), []
        self.ready_bytes = 0
        merged: list[tuple[int, int]] = []
        for start, end in ready:
            if merged and merged[-1][1] == start:
                merged[-1] = (merged[-1][0], end)
            else:
                merged.append((start, end))
        return merged

    def edges(self) -> list[tuple[int, int]]:
        """Return the consumed ranges that lie in blocks which are not consumed as a whole."""
        edges = []
        for start, end in zip(self._starts, self._ends, strict=True):
            whole_start, whole_end = self._whole(start, end)
            if whole_start >= whole_end:
                middle = min(end, self._round_up(start))
                edges += [(start, middle), (middle, end)]
            else:
                edges += [(start, whole_start), (whole_end, end)]
        return [(start, end) for start, end in edges if start < end]

    def _whole(self, start: int, end: int) -> tuple[int, int]:
        return self._round_up(start), self._round_down(end)

    def _make_ready(self, start: int, end: int) -> None:
        if start < end:
            self._ready.append((start, end))
            self.ready_bytes += end - start

    def _round_up(self, offset: int) -> int:
        return -(-offset // self._block) * self._block

    def _round_down(self, offset: int) -> int:
        return offset // self._block * self._block
