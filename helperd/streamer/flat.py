"""An image as a stock CRIU can read it from a stream: not compressed, and without parents.

Nothing is written anywhere: the few files that have to differ are made when they are asked for,
and the pages are decoded while they are sent.
"""

from __future__ import annotations

import io
import os
import re
import stat
from collections.abc import Iterator
from itertools import pairwise

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.errors import ImageError, ImageFormatError
from helperd.images.directory import ImageDirectory
from helperd.images.entry_fields import NEW_FORM, REPEATS_COUNT
from helperd.images.inventory import INVENTORY_NAME, Schema
from helperd.images.lookup import ELSEWHERE, Lookup, open_lookup
from helperd.images.pagemap import (
    PE_LAZY,
    PE_PARENT,
    PE_PAYLOAD_ALIGNED,
    PE_PRESENT,
    PagemapEntry,
    pages_name,
)
from helperd.images.pagemap_writer import write_pagemap
from helperd.images.pb import pagemap_pb2
from helperd.images.records import open_image
from helperd.streamer.remap import FILES_NAME, remap_listeners

#: The count in both fields, for every CRIU.
_BOTH_COUNTS = NEW_FORM | REPEATS_COUNT

_PAGEMAP = re.compile(r"pagemap-(shmem-)?(0|[1-9][0-9]*)\.img", re.ASCII)


class FlatImage:
    """An image directory, file by file, in the form in which it is sent.

    Args:
        path: of the directory.
        ports: new ports for TCP sockets that listen, by the old ones.

    Raises:
        ImageError: there is no such directory, or its inventory is missing or broken.
    """

    def __init__(self, path: str, ports: dict[int, int]) -> None:
        self._ports = ports
        self._directory = ImageDirectory(path)
        if self._directory.inventory is None:
            raise ImageError(f"{path}: has no {INVENTORY_NAME}, so it is no complete checkpoint")
        # Told now, so that what is wrong is known before CRIU starts.
        self._schema = self._directory.schema
        self._pages: dict[str, Lookup] = {}

    def open(self, name: str) -> int | Lookup | None:
        """Return a descriptor with the content of a file, or its pages, or None: no such file.

        Whoever gets it closes it.

        Raises:
            ImageError: it is there, but broken.
        """
        pages = self._pages.pop(name, None)
        if pages is not None:
            return pages
        if not self._directory.has(name):
            return None
        if name == INVENTORY_NAME and self._schema is not Schema.NONE:
            assert self._directory.inventory is not None
            content = self._directory.inventory.converted(Schema.NONE).encode()
            return _in_memory(name, content)
        if _PAGEMAP.fullmatch(name):
            return self._open_pagemap(name)
        path = self._directory.file(name)
        if name == FILES_NAME and self._ports:
            return _in_memory(name, remap_listeners(path, self._ports))
        if not stat.S_ISREG(os.stat(path).st_mode):
            return None
        return _open(path)

    def close(self) -> None:
        """Close what nobody has asked for."""
        while self._pages:
            self._pages.popitem()[1].close()

    def _open_pagemap(self, name: str) -> int:
        lookup = open_lookup(self._directory.path, name)
        entries = lookup.levels[0].entries
        if not any(flags & (PE_PARENT | PE_PAYLOAD_ALIGNED) for flags in entries.flags) and (
            self._schema is Schema.NONE
        ):
            lookup.close()
            return _open(self._directory.file(name))
        if ELSEWHERE in lookup.level_of:
            address = lookup.starts[lookup.level_of.index(ELSEWHERE)]
            lookup.close()
            raise ImageError(
                f"{self._directory.file(name)}: page {address:#x} is in no image; a dump for"
                " lazy-pages keeps it in the source process"
            )
        lookup.load_tables()
        if self._pages.setdefault(pages_name(entries.pages_id), lookup) is not lookup:
            lookup.close()
            raise ImageFormatError(
                f"{self._directory.file(name)}: another pagemap names"
                f" {pages_name(entries.pages_id)}, too"
            )
        stream = io.BytesIO()
        head = pagemap_pb2.Head(pages_id=entries.pages_id)
        write_pagemap(stream, head, _flat_entries(lookup), Schema.NONE)
        return _in_memory(name, stream.getvalue())


def _flat_entries(lookup: Lookup) -> Iterator[PagemapEntry]:
    """Yield the entries of uncompressed pages that the runs make up."""
    first = end = flags = 0
    for start, run_flags, (number, next_number) in zip(
        lookup.starts, lookup.flags_of, pairwise(lookup.numbers), strict=True
    ):
        run_flags = PE_PRESENT | run_flags & PE_LAZY
        if start != end or run_flags != flags:
            if first < end:
                yield _entry(first, end, flags)
            first, flags = start, run_flags
        end = start + pages_to_bytes(next_number - number)
    if first < end:
        yield _entry(first, end, flags)


def _entry(first: int, end: int, flags: int) -> PagemapEntry:
    return PagemapEntry(first, (end - first) // PAGE_SIZE, flags, form=_BOTH_COUNTS)


def _open(path: str) -> int:
    with open_image(path) as stream:
        return os.dup(stream.fileno())


def _in_memory(name: str, content: bytes) -> int:
    fd = os.memfd_create(name)
    with open(fd, "wb", closefd=False) as stream:
        stream.write(content)
    return fd
