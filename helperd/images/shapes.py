"""Many entries of a pagemap decoded at once, column by column.

Hundreds of thousands of entries have a handful of *shapes*: the same fields, whose numbers take the
same bytes. Records of one shape make a matrix, a record a row, of whose columns the numbers are
made: no step of Python's for each entry. Whatever has no shape in common with others, or more than
one stored size, is decoded field by field.
"""

from __future__ import annotations

from array import array
from itertools import compress
from operator import itemgetter

from helperd.blocks import MAX_REGION_PAGES, PAGE_SHIFT
from helperd.errors import ImageFormatError
from helperd.images.entry_fields import (
    CONTINUES,
    CONTINUES_KEY,
    HAS_COUNT,
    HAS_REGION,
    REGION_ZERO,
    Table,
    decode_fields,
    flags_of,
)
from helperd.images.fields import decode_lanes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    #: What a number is, the offset of its first byte in the record, and how many it has.
    Field = tuple[int, int, int]
    #: Records that look alike so far: their indices, their bytes, the last number's name, where
    #: the number begins that is being looked at (0: a key is next), how far it is, their numbers.
    Alike = tuple[Sequence[int], bytes, int, int, int, tuple[Field, ...]]

#: The stored size of an entry of one block: there is none, or one of either schema.
NO_SIZE, FLAT_SIZE, NESTED_SIZE = 0, 1, 2
#: Longest record that has a shape: its size takes one byte of the frame.
LONGEST = 0xFF

_FRAME = 4
_COUNT_END = 1 << 32
#: Fewer records than these are not worth a shape.
_FEWEST = 8
#: Bytes of the longest number that is decoded as one of many.
_LANE = 8
#: Which bytes have another one of the same number behind them.
_GOES_ON = bytes(byte >> 7 for byte in range(256))

# Numbers are named by their field; those in the blocks schema's table, and marks, are: how long the
# table is, how long the list of sizes is, the one size, their sum, pages of a block, CONTINUES.
_START, _NESTED, _LIST, _SIZE, _SUM, _REGION, _MARK = 0, 60, 61, 62, 63, 64, 65
_TAIL = {0x18: 3, 0x20: 4, 0x28: 5, 0x30: 6, 0x32: _NESTED}
_MARKED = {CONTINUES_KEY[0]: _MARK}
#: Which number each key begins, by the number before.
_NEXT: dict[int, dict[int, int]] = {
    _START: {0x08: 1},
    1: {0x10: 2},
    2: _TAIL,
    3: {key: name for key, name in _TAIL.items() if key > 0x18},
    4: {key: name for key, name in _TAIL.items() if key > 0x20},
    5: {key: name for key, name in _TAIL.items() if key > 0x28},
    6: {0x38: 7},
    7: {0x40: 8} | _MARKED,
    8: _MARKED,
    _NESTED: {0x0A: _LIST},
    _SIZE: {0x10: _SUM},
    _SUM: {0x18: _REGION},
    _REGION: _MARKED,
    _MARK: {},
}
_LAST = frozenset((2, 3, 4, 5, 7, 8, _REGION, _MARK))


class Batch:
    """Entries, column by column.

    Attributes:
        vaddr, nr_pages: ``array('Q')``.
        flags: one byte each.
        form: ``array('H')``.
        block_pages: ``array('Q')``.
        kind: one byte each, NO_SIZE, FLAT_SIZE or NESTED_SIZE.
        total: ``array('Q')``, the one stored size; 0 where there is none.
        tables: of the entries that have a table instead, by index, ascending.
        extra: unknown fields of those that have some, by index.
    """

    __slots__ = (
        "block_pages",
        "extra",
        "flags",
        "form",
        "kind",
        "nr_pages",
        "tables",
        "total",
        "vaddr",
    )

    def __init__(self) -> None:
        self.vaddr = array("Q")
        self.nr_pages = array("Q")
        self.flags = bytearray()
        self.form = array("H")
        self.block_pages = array("Q")
        self.kind = bytearray()
        self.total = array("Q")
        self.tables: dict[int, Table] = {}
        self.extra: dict[int, bytes] = {}

    def sort(self, rows: Sequence[int]) -> None:
        """Bring the entries, which are in the order of ``rows``, into the order of the file."""
        order = [0] * len(rows)
        for at, row in enumerate(rows):
            order[row] = at
        if len(order) < 2:
            return
        pick = itemgetter(*order)
        self.flags, self.kind = bytearray(pick(self.flags)), bytearray(pick(self.kind))
        for name in ("vaddr", "nr_pages", "block_pages", "total"):
            setattr(self, name, array("Q", pick(getattr(self, name))))
        self.form = array("H", pick(self.form))


def decode_batch(data: bytes, starts: Sequence[int]) -> Batch:
    """Return the entries of records that follow one another.

    What an entry says by itself is checked; not where it lies, nor its flags.

    Args:
        data: the pagemap.
        starts: where each record's frame begins, and where the last record ends; none has more
            than LONGEST bytes.

    Raises:
        ImageFormatError: one of them is no entry.
    """
    batch = Batch()
    done: list[Sequence[int]] = []
    others: list[int] = []
    for rows, block, fields in _shapes(data, starts, others):
        try:
            _add_shape(batch, rows, block, fields)
        except ValueError:
            others += rows
        else:
            done.append(rows)
    others.sort()
    for row in others:
        _add_other(batch, row, data, starts[row] + _FRAME, starts[row + 1])
    if len(done) != 1 or others:
        batch.sort([row for rows in (*done, others) for row in rows])
    return batch


def _shapes(
    data: bytes, starts: Sequence[int], others: list[int]
) -> Iterator[tuple[Sequence[int], bytes, tuple[Field, ...]]]:
    """Yield records of each shape, with the matrix of their bytes; put the rest into ``others``."""
    todo: list[Alike] = []
    rows: Sequence[int] = range(len(starts) - 1)
    if isinstance(starts, range):
        todo.append((rows, data[starts[0] : starts[-1]], _START, 0, _FRAME, ()))
    else:
        lengths = bytes([data[at] for at in starts[:-1]])
        for length in set(lengths):
            rows = [row for row, found in enumerate(lengths) if found == length]
            stride = _FRAME + length
            block = b"".join([data[at : at + stride] for at in itemgetter(*rows, -1)(starts)[:-1]])
            todo.append((rows, block, _START, 0, _FRAME, ()))
    while todo:
        alike = todo.pop()
        rows, block, last, begun, at, fields = alike
        stride = len(block) // len(rows)
        if len(rows) < _FEWEST:
            others += rows
        elif at < stride:
            todo += _further(alike, stride, others)
        elif not begun and last in _LAST:
            yield rows, block, fields
        else:
            others += rows


def _further(alike: Alike, stride: int, others: list[int]) -> Iterator[Alike]:
    """Yield the same records, looked at for one byte more."""
    rows, block, last, begun, at, fields = alike
    column = block[at::stride]
    if begun:
        for goes_on, some, part in _split(rows, block, column.translate(_GOES_ON)):
            if not goes_on:
                yield some, part, last, 0, at + 1, (*fields, (last, begun, at + 1 - begun))
            elif at + 1 - begun < _LANE:
                yield some, part, last, begun, at + 1, fields
            else:
                others += some
        return
    if last == _LIST:
        yield rows, block, _SIZE, at, at, fields
        return
    for key, some, part in _split(rows, block, column):
        name = _NEXT[last].get(key, _START)
        if name == _START:
            others += some
        elif name != _MARK:
            yield some, part, name, at + 1, at + 1, fields
        elif all(
            part[at + index :: stride].count(byte) == len(some)
            for index, byte in enumerate(CONTINUES_KEY)
        ):
            yield some, part, _MARK, 0, at + len(CONTINUES_KEY), (*fields, (_MARK, at, 1))
        else:
            others += some


def _split(
    rows: Sequence[int], block: bytes, marks: bytes
) -> Iterator[tuple[int, Sequence[int], bytes]]:
    """Yield each mark with the records that have it."""
    if marks.count(marks[0]) == len(marks):
        yield marks[0], rows, block
        return
    stride = len(block) // len(rows)
    for mark in set(marks):
        chosen = [found == mark for found in marks]
        starts = compress(range(0, len(block), stride), chosen)
        yield (
            mark,
            list(compress(rows, chosen)),
            b"".join([block[at : at + stride] for at in starts]),
        )


def _add_shape(batch: Batch, rows: Sequence[int], block: bytes, fields: tuple[Field, ...]) -> None:
    """Add records of one shape.

    Raises:
        ValueError: they need a closer look; nothing was added.
    """
    count = len(rows)
    columns = {name: _numbers(block, at, length, count) for name, at, length in fields}
    compat = columns[2]
    nr_pages, base = columns.get(5, compat), 0
    if 5 in columns:
        base = HAS_COUNT
        _require(not any(compat))
    else:
        _require(max(compat) < _COUNT_END)
    base |= CONTINUES if _MARK in columns else 0
    none = (None,) * count
    kinds = list(zip(columns.get(4, none), columns.get(3, none), strict=True))
    known = {kind: flags_of(*kind) for kind in set(kinds)}
    _require(all(flags <= LONGEST for flags, _ in known.values()))
    form = array("H", [base | known[kind][1] for kind in kinds])
    kind, sizes, sums, regions = NO_SIZE, array("Q"), array("Q"), None
    if 6 in columns:
        kind, sizes, sums, regions = FLAT_SIZE, columns[6], columns[7], columns.get(8)
    elif _SIZE in columns:
        kind, sizes, sums, regions = NESTED_SIZE, columns[_SIZE], columns[_SUM], columns[_REGION]
        _require_nested(columns, fields)
    block_pages = array("Q", (1,)) * count
    if regions is not None:
        block_pages = array("Q", [region or 1 for region in regions])
        _require(max(block_pages) <= MAX_REGION_PAGES)
        if kind == FLAT_SIZE:
            forms = zip(form, regions, strict=True)
            form = array(
                "H", [it | HAS_REGION | (0 if region else REGION_ZERO) for it, region in forms]
            )
    if kind:
        _require(sizes == sums)
        _require(all(map(int.__le__, nr_pages, block_pages)))
        _require(all(map(int.__le__, sizes, [pages << PAGE_SHIFT for pages in nr_pages])))
    batch.vaddr += columns[1]
    batch.nr_pages += nr_pages
    batch.flags += bytes([known[kind][0] for kind in kinds])
    batch.form += form
    batch.block_pages += block_pages
    batch.kind += bytes((kind,)) * count
    batch.total += sizes if kind else array("Q", (0,)) * count


def _require_nested(columns: dict[int, array[int]], fields: Iterable[Field]) -> None:
    """See to it that the lengths in a table of the blocks schema are right."""
    places = {name: (at, at + length) for name, at, length in fields}
    nested = places[_REGION][1] - places[_NESTED][1]
    listed = places[_SIZE][1] - places[_SIZE][0]
    _require(columns[_NESTED].count(nested) == columns[_LIST].count(listed) == len(columns[_LIST]))
    _require(0 not in columns[_REGION])


def _require(condition: bool) -> None:
    if not condition:
        raise ValueError


def _numbers(block: bytes, at: int, length: int, count: int) -> array[int]:
    """Return the numbers of a column of varints that take ``length`` bytes each."""
    stride = len(block) // count
    if length == 1:
        return array("Q", list(block[at::stride]))
    lanes = bytearray(_LANE * count)
    for index in range(length):
        lanes[index::_LANE] = block[at + index :: stride]
    return decode_lanes(lanes, count)


def _add_other(batch: Batch, row: int, data: bytes, start: int, end: int) -> None:
    fields = decode_fields(data, start, end)
    if fields.flags > LONGEST:
        raise ImageFormatError("no entry")
    batch.vaddr.append(fields.vaddr)
    batch.nr_pages.append(fields.nr_pages)
    batch.flags.append(fields.flags)
    batch.form.append(fields.form)
    batch.block_pages.append(fields.block_pages)
    batch.kind.append(NO_SIZE)
    batch.total.append(0)
    if fields.table is not None:
        batch.tables[row] = fields.table
    if fields.extra:
        batch.extra[row] = fields.extra
