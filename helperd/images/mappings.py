"""mm-PID.img: the mappings that a dumped process had.

Pagemaps of an uncompressed dump do not say where one mapping ends and the next begins, but a
compressed block must not reach over that. Source: the image files themselves.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from helperd.blocks import PAGE_SIZE
from helperd.errors import ImageFormatError
from helperd.images.fields import LENGTH, VARINT, walk_fields
from helperd.images.pagemap import PagemapEntry
from helperd.images.records import IMG_COMMON_MAGIC, read_records

#: Second word of mm-PID.img.
MM_MAGIC = 0x57492820

_VMAS, _START, _END, _FLAGS = 14, 1, 2, 6
_MAP_HUGETLB = 0x40000


class Mapping(NamedTuple):
    """A mapping of a process: its addresses, from and before, and mmap's flags."""

    start: int
    end: int
    flags: int

    @property
    def hugetlb(self) -> bool:
        """Whether it is made of huge pages, which are never compressed."""
        return bool(self.flags & _MAP_HUGETLB)


def read_mappings(path: str) -> list[Mapping]:
    """Return the mappings of mm-PID.img, ascending; none if the image does not keep them.

    Raises:
        ImageFormatError: it is no such image.
        ImageError: it is missing or cannot be read.
    """
    found = []
    for _, record in read_records(path, (IMG_COMMON_MAGIC, MM_MAGIC)):
        try:
            for number, kind, value, _ in walk_fields(record):
                if number == _VMAS and kind == LENGTH and isinstance(value, bytes):
                    found.append(_mapping(value))
        except (ValueError, IndexError) as error:
            raise ImageFormatError(f"{path}: broken: {error}") from error
    return sorted(found)


def cut(entries: list[PagemapEntry], mappings: list[Mapping]) -> Iterator[PagemapEntry]:
    """Yield uncompressed entries so that none reaches over the end of a mapping.

    Args:
        entries: ascending.
        mappings: ascending.
    """
    ends = iter(sorted({end for mapping in mappings for end in (mapping.start, mapping.end)}))
    border = next(ends, None)
    for entry in entries:
        while border is not None and border <= entry.vaddr:
            border = next(ends, None)
        first = 0
        while entry.present and border is not None and border < entry.end:
            page = (border - entry.vaddr) // PAGE_SIZE
            yield entry.part(first, page)
            first = page
            border = next(ends, None)
        yield entry.part(first, entry.nr_pages) if first else entry


def _mapping(message: bytes) -> Mapping:
    fields = {
        number: value
        for number, kind, value, _ in walk_fields(message)
        if kind == VARINT and isinstance(value, int)
    }
    return Mapping(fields.get(_START, 0), fields.get(_END, 0), fields.get(_FLAGS, 0))
