"""The mappings of a process in the images: where blocks have to end, and what is stored raw.

A stock CRIU stores neighbouring mappings in one pagemap entry. A CRIU that decompresses deals with
one mapping at a time: a block that crosses a border is restored wrongly, by some without an error.
CRIU's own compressed dumps end entries there, and store raw what lies in mappings of huge pages
and in those that a plugin restores.

Sources: images of CRIU 3.17 to 4.2 and of merged CRIU; the bits are CRIU's image.h's.
"""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from typing import TYPE_CHECKING, NamedTuple

from helperd.blocks import PAGE_SIZE
from helperd.errors import ImageFormatError
from helperd.images.fields import LENGTH, walk_fields
from helperd.images.ranges import Ranges
from helperd.images.records import IMG_COMMON_MAGIC, read_records

if TYPE_CHECKING:
    from collections.abc import Iterable

    from helperd.images.directory import ImageDirectory

#: Second words of mm-PID.img, and of vmas-PID.img, where old images keep the mappings.
MM_MAGIC, VMAS_MAGIC = 0x57492820, 0x54123737

_VMAS = 14
_START, _END, _FLAGS, _STATUS = 1, 2, 6, 7
_MAP_HUGETLB = 0x40000
_VMA_EXT_PLUGIN = 1 << 27
#: Bits of a mapping's status: vsyscall, vdso, vvar.
_OF_THE_KERNEL = 1 << 2 | 1 << 3 | 1 << 12
_PROCESS = re.compile(r"pagemap-([0-9]+)\.img", re.ASCII)


class Mapping(NamedTuple):
    """A mapping of a process.

    Attributes:
        start: address of its first byte.
        end: address after its last one.
        flags: mmap's.
        status: CRIU's own bits.
    """

    start: int
    end: int
    flags: int
    status: int

    @property
    def raw(self) -> bool:
        """Whether its pages are never compressed: huge pages, and what a plugin restores."""
        return bool(self.flags & _MAP_HUGETLB or self.status & _VMA_EXT_PLUGIN)

    @property
    def of_the_kernel(self) -> bool:
        """Whether the kernel makes its content: vdso, vvar, vsyscall."""
        return bool(self.status & _OF_THE_KERNEL)


class Mappings:
    """Mappings of one process, which do not overlap.

    Attributes:
        raw: addresses of those whose pages are not compressed.
    """

    def __init__(self, mappings: Iterable[Mapping] = ()) -> None:
        ordered = sorted(mappings)
        self.raw = Ranges((it.start, it.end) for it in ordered if it.raw)
        self._borders = sorted({address for it in ordered for address in (it.start, it.end)})

    def borders(self, start: int, end: int) -> list[int]:
        """Return the borders of mappings between ``start`` and ``end``, ascending.

        Neither of the two is among them.
        """
        return self._borders[bisect_right(self._borders, start) : bisect_left(self._borders, end)]


def mappings_of(directory: ImageDirectory, name: str) -> Mappings | None:
    """Return the mappings that the pages of a pagemap belong to; None where no image has them.

    Shared memory belongs to none, and what a page server wrote lacks the dumper's images.

    Args:
        directory: of the images.
        name: of the pagemap.

    Raises:
        ImageFormatError: the image of the mappings is broken.
        ImageError: it cannot be read.
    """
    process = _PROCESS.fullmatch(name)
    if process is None:
        return None
    mm, vmas = f"mm-{process[1]}.img", f"vmas-{process[1]}.img"
    found = read_mappings(directory.file(mm)) if directory.has(mm) else None
    if not found and directory.has(vmas):
        found = read_mappings(directory.file(vmas), VMAS_MAGIC)
    return None if found is None else Mappings(found)


def read_mappings(path: str, magic: int = MM_MAGIC) -> list[Mapping]:
    """Return the mappings of mm-PID.img, ascending; none if the image does not keep them.

    Args:
        path: of the image.
        magic: its second word; VMAS_MAGIC for a vmas-PID.img.

    Raises:
        ImageFormatError: it is no such image.
        ImageError: it is missing or cannot be read.
    """
    found = []
    for at, record in read_records(path, (IMG_COMMON_MAGIC, magic)):
        try:
            if magic == VMAS_MAGIC:
                found.append(_mapping(record))
                continue
            for number, kind, value, _ in walk_fields(record):
                if number == _VMAS and kind == LENGTH and isinstance(value, bytes):
                    found.append(_mapping(value))
        except ValueError as error:
            raise ImageFormatError(f"{path}: record at offset {at} is broken: {error}") from error
    return sorted(found)


def _mapping(message: bytes) -> Mapping:
    fields = {
        number: value for number, _, value, _ in walk_fields(message) if isinstance(value, int)
    }
    if _START not in fields or _END not in fields:
        raise ValueError("a mapping lacks its borders")
    mapping = Mapping(fields[_START], fields[_END], fields.get(_FLAGS, 0), fields.get(_STATUS, 0))
    if (mapping.start | mapping.end) % PAGE_SIZE:
        raise ValueError("a mapping is not of whole pages")
    return mapping
