"""The tables of stored sizes of a pagemap's entries: found in one sweep, read when needed."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from itertools import compress

from helperd.blocks import max_stored_size, pages_to_bytes
from helperd.errors import ImageFormatError
from helperd.images.shapes import FLAT_SIZE
from helperd.images.sizes import table_sizes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from helperd.images.shapes import Batch

    class Columns(Protocol):
        """What a table is held against: columns of the entries, and how to say what is wrong."""

        table: array[int]
        nr_pages: array[int]
        block_pages: array[int]
        vaddr: array[int]

        def broken(self, data: bytes, index: int, why: str) -> ImageFormatError:
            """Return the error for an entry of the file whose bytes are ``data``."""


_SUMS_SHIFT = 8
#: Stands for the place of the table of an entry that is not compressed.
NO_TABLE = (1 << 64) - 1
_ITEM = array("Q").itemsize
#: Values of a table: index of its entry, where its fields 6 begin (0: the sum is its only size, and
#: fits) and end, the sum of its sizes, and whether it is of the sizes schema.
_VALUES = 5


class Tables:
    """The tables of the ``entries`` that were read from the bytes ``data``.

    Attributes:
        sizes: ``array('I')``, of all blocks of all entries; filled by :meth:`load`.
        n_sizes: how many there are to be.
    """

    def __init__(self, entries: Columns, data: bytes) -> None:
        self.sizes = array("I")
        self.n_sizes = 0
        self._entries = entries
        self._data: bytes | None = data
        self._found = array("Q")
        # Of which entries the tables are; made when one is asked for by itself.
        self._rows = array("Q")
        self._sums = array("Q", (0,))

    def add(self, values: Iterable[int], n_sizes: int) -> None:
        """Add tables, _VALUES values each; ``n_sizes`` is the new count of all sizes."""
        self._found.extend(values)
        self.n_sizes = n_sizes

    def add_batch(self, batch: Batch, base: int) -> array[int]:
        """Add the tables of entries, the first of which is number ``base``; return their places.

        The places are indices in ``sizes``, NO_TABLE for entries without a table.
        """
        # Whose sum is the only size, and which has been held against its entry.
        rows = list(compress(range(len(batch.kind)), batch.kind))
        places = array("Q", (NO_TABLE,)) * len(batch.kind)
        found = array("Q", bytes(_ITEM * _VALUES * len(rows)))
        found[0::_VALUES] = array("Q", [base + row for row in rows])
        found[3::_VALUES] = array("Q", list(compress(batch.total, batch.kind)))
        found[4::_VALUES] = array("Q", [batch.kind[row] == FLAT_SIZE for row in rows])
        if not batch.tables:
            if len(rows) == len(places):
                places = array("Q", range(self.n_sizes, self.n_sizes + len(rows)))
            else:
                for place, row in enumerate(rows, self.n_sizes):
                    places[row] = place
            self.add(found, self.n_sizes + len(rows))
            return places
        n_sizes, merged, ones = self.n_sizes, array("Q"), iter(range(0, len(found), _VALUES))
        for row in sorted((*rows, *batch.tables)):
            places[row] = n_sizes
            table = batch.tables.get(row)
            if table is None:
                at = next(ones)
                merged += found[at : at + _VALUES]
                n_sizes += 1
            else:
                merged.extend((base + row, table.start, table.end, table.total, table.flat))
                n_sizes -= -batch.nr_pages[row] // batch.block_pages[row]
        self.add(merged, n_sizes)
        return places

    def load(self) -> None:
        """Read all; once done, does nothing.

        Raises:
            ImageFormatError: a table contradicts its entry.
        """
        if self._data is None:
            return
        sizes = self.sizes
        if not any(self._found[1::_VALUES]):
            sizes.fromlist(self._found[3::_VALUES].tolist())
            self._found = array("Q")
        for number, (start, total) in enumerate(
            zip(self._found[1::_VALUES], self._found[3::_VALUES], strict=True)
        ):
            if start:
                sizes.extend(self._parse(number))
            else:
                sizes.append(total)
        self._data = None
        self._found, self._rows = array("Q"), array("Q")
        total, step = 0, 1 << _SUMS_SHIFT
        for first in range(0, len(sizes) - step + 1, step):
            total += sum(sizes[first : first + step])
            self._sums.append(total)

    def of(self, index: int) -> array[int]:
        """Return the sizes of one entry, whether or not they have been loaded.

        Raises:
            ImageFormatError: the table contradicts its entry.
        """
        if self._data is None:
            entries, at = self._entries, self._entries.table[index]
            return self.sizes[at : at + -(-entries.nr_pages[index] // entries.block_pages[index])]
        if not self._rows:
            self._rows = self._found[0::_VALUES]
        return self._parse(bisect_left(self._rows, index))

    def sum(self, first: int, end: int) -> int:
        """Return the sum of the sizes from number ``first`` to before ``end``."""
        return self._sum(end) - self._sum(first)

    def _sum(self, at: int) -> int:
        whole = at >> _SUMS_SHIFT
        return self._sums[whole] + sum(self.sizes[whole << _SUMS_SHIFT : at])

    def _parse(self, number: int) -> array[int]:
        """Return the sizes of the table of this number, after checking them."""
        assert self._data is not None
        values = self._found[_VALUES * number : _VALUES * (number + 1)]
        index, start, end, total, flat = values
        try:
            if not start:
                return array("I", (total,))
            sizes = table_sizes(self._data[start:end], flat=bool(flat))
            self._check(index, sizes, total, flat=bool(flat))
        except (ImageFormatError, OverflowError) as error:
            raise self._entries.broken(self._data, index, str(error)) from error
        return sizes

    def _check(self, index: int, sizes: array[int], total: int, *, flat: bool) -> None:
        entries = self._entries
        block_pages, nr_pages = entries.block_pages[index], entries.nr_pages[index]
        vaddr = entries.vaddr[index]
        n_blocks = -(-nr_pages // block_pages)
        if len(sizes) != n_blocks:
            raise ImageFormatError(
                f"vaddr {vaddr:#x} has {len(sizes)} blocks, {nr_pages} pages in blocks of"
                f" {block_pages} need {n_blocks}"
            )
        if sum(sizes) != total:
            name = "total_compressed_size" if flat else "total_payload_size"
            raise ImageFormatError(f"{name} is {total}, the blocks have {sum(sizes)} bytes")
        last_pages = nr_pages - (n_blocks - 1) * block_pages
        for largest, n_pages in ((max(sizes), block_pages), (sizes[-1], last_pages)):
            if largest > max_stored_size(pages_to_bytes(n_pages)):
                raise ImageFormatError(
                    f"vaddr {vaddr:#x} has a stored size of {largest} for {n_pages} pages"
                )
