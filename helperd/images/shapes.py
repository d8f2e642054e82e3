"""Many entries of a pagemap decoded at once, column by column.

Hundreds of thousands of entries have a handful of *shapes*: the same fields, whose numbers take the
same bytes. Records of one shape lie in a matrix, a record a row, and what has to be looked at are
its columns: no step of Python's for each entry. Records of no common shape are left to whoever
decodes them one by one.
"""

from __future__ import annotations

from array import array

from helperd.blocks import MAX_REGION_PAGES, PAGE_SHIFT
from helperd.images.entry_fields import (
    CONTINUES,
    CONTINUES_KEY,
    HAS_COUNT,
    HAS_REGION,
    REGION_ZERO,
    flags_of,
)
from helperd.images.fields import decode_lanes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    #: Key or place of a field, offset in the record of its number, and the bytes of that.
    Field = tuple[int, int, int]

#: What the records' kinds of tables are: none, or one stored size in either schema.
NO_SIZE, FLAT_SIZE, NESTED_SIZE = 0, 1, 2

_FRAME = 4
#: Longest record that is looked at; its size takes one byte of the frame.
LONGEST = 0xFF
#: Fewer records than these are not worth a shape.
_FEWEST = 8
#: Which bytes have another one behind them in the same number.
_GOES_ON = bytes(byte >> 7 for byte in range(256))
_LANE = 8

# What may follow: by the state, the state after each key. Fields of the entry itself are states by
# their numbers; of the table of the blocks schema, which has but one size, they are these.
_START, _SIZE_LENGTH, _SIZE, _NESTED_TOTAL, _NESTED_REGION = 0, 61, 62, 63, 64
_MARKED = 65
_TAIL = {0x18: 3, 0x20: 4, 0x28: 5, 0x30: 6, 0x32: 60}
_NEXT: dict[int, dict[int, int]] = {
    _START: {0x08: 1},
    1: {0x10: 2},
    2: _TAIL,
    3: {key: state for key, state in _TAIL.items() if key > 0x18},
    4: {key: state for key, state in _TAIL.items() if key > 0x20},
    5: {key: state for key, state in _TAIL.items() if key > 0x28},
    6: {0x38: 7},
    7: {0x40: 8, CONTINUES_KEY[0]: _MARKED},
    8: {CONTINUES_KEY[0]: _MARKED},
    60: {0x0A: _SIZE_LENGTH},
    _SIZE: {0x10: _NESTED_TOTAL},
    _NESTED_TOTAL: {0x18: _NESTED_REGION},
    _NESTED_REGION: {CONTINUES_KEY[0]: _MARKED},
}
_ENDS = frozenset((2, 3, 4, 5, 7, 8, _NESTED_REGION, _MARKED))


class Group:
    """Records of one shape.

    Attributes:
        rows: their indices among all.
        vaddr, nr_pages: ``array('Q')``.
        flags: one byte each.
        form: ``array('H')``.
        block_pages: ``array('H')``.
        kind: NO_SIZE, FLAT_SIZE or NESTED_SIZE, of all.
        sizes: ``array('Q')``, the one stored size of each; empty for NO_SIZE.
    """

    __slots__ = ("block_pages", "flags", "form", "kind", "nr_pages", "rows", "sizes", "vaddr")

    def __init__(self, rows: Sequence[int], block: bytes, stride: int, fields: list[Field]) -> None:
        """Decode the columns of a matrix.

        Raises:
            ValueError: the records are not what they look like, all or some.
        """
        count = len(rows)
        columns = {
            state: (block, stride, at, length, count) for state, at, length in fields if length
        }
        self.rows = rows
        self.vaddr = _numbers(*columns[1])
        compat = _numbers(*columns[2])
        form = 0
        if 5 in columns:
            self.nr_pages, form = _numbers(*columns[5]), HAS_COUNT
            if any(compat):
                raise ValueError("two counts")
        else:
            self.nr_pages = compat
        bits = _bytes(columns, 4, count)
        parents = _bytes(columns, 3, count)
        kinds = list(zip(bits, parents, strict=True))
        known = {kind: flags_of(*kind) for kind in set(kinds)}
        if any(flags > LONGEST for flags, _ in known.values()):
            raise ValueError("unknown flags")
        self.flags = bytes([known[kind][0] for kind in kinds])
        if _MARKED in {state for state, _, _ in fields}:
            form |= CONTINUES
        self.kind, self.sizes = NO_SIZE, array("Q")
        regions = None
        if 6 in columns:
            self.kind, self.sizes, total = FLAT_SIZE, _numbers(*columns[6]), columns[7]
            if 8 in columns:
                form |= HAS_REGION
                regions = _numbers(*columns[8])
        elif _SIZE in columns:
            self.kind, self.sizes = NESTED_SIZE, _numbers(*columns[_SIZE])
            total = columns[_NESTED_TOTAL]
            regions = _numbers(*columns[_NESTED_REGION])
            if 0 in regions:
                raise ValueError("blocks of no pages")
        if self.kind and self.sizes != _numbers(*total):
            raise ValueError("more than one size, or a wrong sum")
        if len(known) == 1:
            self.form = array("H", (form | next(iter(known.values()))[1],)) * count
        else:
            self.form = array("H", [form | known[kind][1] for kind in kinds])
        if regions is None:
            self.block_pages = array("H", (1,)) * count
        else:
            if max(regions) > MAX_REGION_PAGES:
                raise ValueError("blocks are too large")
            if 0 in regions:
                self.form = array(
                    "H",
                    [
                        form | (0 if region else REGION_ZERO)
                        for form, region in zip(self.form, regions, strict=True)
                    ],
                )
            self.block_pages = array("H", [region or 1 for region in regions])
        if self.kind:
            several = any(
                pages > largest
                for pages, largest in zip(self.nr_pages, self.block_pages, strict=True)
            )
            if several or any(
                size > pages << PAGE_SHIFT
                for size, pages in zip(self.sizes, self.nr_pages, strict=True)
            ):
                raise ValueError("no table of one block")


def _bytes(
    columns: dict[int, tuple[bytes, int, int, int, int]], state: int, count: int
) -> Sequence[int | None]:
    if state not in columns:
        return (None,) * count
    block, stride, at, length, _ = columns[state]
    if length > 1:
        raise ValueError("a flag that none knows")
    return block[at::stride]


def _numbers(block: bytes, stride: int, at: int, length: int, count: int) -> array[int]:
    """Return the numbers of a column of varints that take ``length`` bytes each."""
    if length == 1:
        return array("Q", list(block[at::stride]))
    lanes = bytearray(_LANE * count)
    for index in range(length):
        lanes[index::_LANE] = block[at + index :: stride]
    return decode_lanes(lanes, count)


def groups_of(data: bytes, starts: Sequence[int]) -> tuple[list[Group], list[int]]:
    """Return records that follow one another, decoded by shapes, and the indices of the others.

    Args:
        data: the pagemap.
        starts: where each record's frame begins, and where the last record ends; none has more
            than LONGEST bytes.
    """
    groups: list[Group] = []
    others: list[int] = []
    sizes = bytes([data[at] for at in starts[:-1]])
    whole = range(len(sizes))
    for size in set(sizes):
        stride = _FRAME + size
        if len(sizes) * stride == starts[-1] - starts[0]:
            todo = [(whole, data[starts[0] : starts[-1]], _START, _FRAME, _FRAME, [])]
        else:
            rows = [row for row in whole if sizes[row] == size]
            block = b"".join([data[starts[row] : starts[row] + stride] for row in rows])
            todo = [(rows, block, _START, _FRAME, _FRAME, [])]
        while todo:
            rows, block, state, begun, at, fields = todo.pop()
            if len(rows) < _FEWEST:
                others += rows
            elif at == begun and at == stride and state in _ENDS:
                try:
                    groups.append(Group(rows, block, stride, fields))
                except ValueError:
                    others += rows
            elif at >= stride:
                others += rows
            else:
                todo += _next(rows, block, stride, state, begun, at, fields)
                if not todo or todo[-1] is None:
                    pass
    others.sort()
    return groups, others
