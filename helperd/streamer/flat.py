"""An image as a stock CRIU can read it from a stream: not compressed, and without parents.

Nothing is written anywhere: the few files that have to differ are made when they are asked for,
and the pages are decoded while they are sent.
"""

from __future__ import annotations

import io
import os
import re
import stat
from array import array
from collections.abc import Mapping
from itertools import compress, pairwise
from operator import add, ne, or_, sub
from typing import NamedTuple

from helperd.blocks import pages_to_bytes
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
    pages_name,
)
from helperd.images.pagemap_writer import PagemapWriter, PlainColumns
from helperd.images.pb import pagemap_pb2
from helperd.images.records import open_image
from helperd.streamer.remap import FILES_NAME, remap_listeners

#: The count in both fields, for every CRIU.
_BOTH_COUNTS = NEW_FORM | REPEATS_COUNT
#: The flags of an entry of pages that CRIU gets, by those of the dump's own entry.
_STORED = bytes(PE_PRESENT | flags & PE_LAZY for flags in range(256))

_PAGEMAP = re.compile(r"pagemap-(shmem-)?(0|[1-9][0-9]*)\.img", re.ASCII)


class Pages(NamedTuple):
    """Pages to be sent, in order.

    Attributes:
        lookup: where they are, with its tables.
        spans: their numbers in it: (first, after the last), ascending.
    """

    lookup: Lookup
    spans: list[tuple[int, int]]

    def close(self) -> None:
        """Close the pages files."""
        self.lookup.close()


class FlatImage:
    """An image directory, file by file, in the form in which it is sent.

    Args:
        path: of the directory.
        ports: new ports for TCP sockets that listen, by the old ones.
        lazy: what is left to a lazy-pages daemon: for each pid one byte for each run of its
            lookup, 1 = left. CRIU then gets entries that only --lazy-pages can restore.

    Raises:
        ImageError: there is no such directory, or its inventory is missing or broken.
    """

    def __init__(
        self, path: str, ports: dict[int, int], lazy: Mapping[int, bytearray] | None = None
    ) -> None:
        self._ports = ports
        self._lazy = lazy or {}
        self._directory = ImageDirectory(path)
        if self._directory.inventory is None:
            raise ImageError(f"{path}: has no {INVENTORY_NAME}, so it is no complete checkpoint")
        # Told now, so that what is wrong is known before CRIU starts.
        self._schema = self._directory.schema
        self._pages: dict[str, Pages] = {}

    def open(self, name: str) -> int | Pages | None:
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
        try:
            lazy = self._left(name, lookup)
            if lazy is None and not self._needs_flattening(lookup):
                lookup.close()
                return _open(self._directory.file(name))
            lazy = lazy or bytearray(len(lookup))
            pages = self._pages_of(name, lookup, lazy)
            stream = io.BytesIO()
            head = pagemap_pb2.Head(pages_id=lookup.levels[0].entries.pages_id)
            writer = PagemapWriter(stream, head, Schema.NONE)
            writer.append_columns(_flat_columns(lookup, lazy))
            writer.finish()
        except BaseException:
            lookup.close()
            raise
        self._pages[pages_name(head.pages_id)] = pages
        return _in_memory(name, stream.getvalue())

    def _left(self, name: str, lookup: Lookup) -> bytearray | None:
        """Return which runs are left to a lazy-pages daemon, None if there is none."""
        match = _PAGEMAP.fullmatch(name)
        lazy = self._lazy.get(int(match[2])) if match is not None and not match[1] else None
        if lazy is not None and len(lazy) != len(lookup):
            raise ImageError(f"{self._directory.file(name)}: has changed since it was opened")
        return lazy

    def _needs_flattening(self, lookup: Lookup) -> bool:
        flags = PE_PARENT | PE_PAYLOAD_ALIGNED
        return self._schema is not Schema.NONE or any(
            entry & flags for entry in lookup.levels[0].entries.flags
        )

    def _pages_of(self, name: str, lookup: Lookup, lazy: bytearray) -> Pages:
        """Return the pages that CRIU is to get.

        Raises:
            ImageError: one of them is in no image, or another pagemap names their file.
        """
        path = self._directory.file(name)
        spans: list[tuple[int, int]] = []
        for run, (first, end) in enumerate(pairwise(lookup.numbers)):
            if lazy[run]:
                continue
            if lookup.level_of[run] == ELSEWHERE:
                raise ImageError(
                    f"{path}: page {lookup.starts[run]:#x} is in no image; a dump for lazy-pages"
                    " keeps it in the source process"
                )
            if spans and spans[-1][1] == first:
                spans[-1] = (spans[-1][0], end)
            else:
                spans.append((first, end))
        pages = pages_name(lookup.levels[0].entries.pages_id)
        if pages in self._pages:
            raise ImageFormatError(f"{path}: another pagemap names {pages}, too")
        lookup.load_tables()
        return Pages(lookup, spans)


def _flat_columns(lookup: Lookup, lazy: bytearray) -> PlainColumns:
    """Return the entries that the runs make up: neighbours with the same flags are one."""
    flags = lookup.flags_of.translate(_STORED)
    if any(lazy):
        # What is left to the daemon is marked as the parent's, too: without --lazy-pages there is
        # no parent, and the restore fails.
        flags = bytearray(map(_either, flags, lazy))
    starts, numbers = lookup.starts, lookup.numbers
    counts = map(sub, numbers[1:], numbers)
    ends = list(map(add, starts, map(pages_to_bytes, counts)))
    unlike = map(or_, map(ne, starts[1:], ends), map(ne, flags[1:], flags))
    first = [*([True] * min(len(starts), 1)), *unlike]
    bounds = array("Q", compress(numbers, first))
    bounds.append(numbers[-1])
    return PlainColumns(
        array("Q", compress(starts, first)),
        array("Q", map(sub, bounds[1:], bounds)),
        bytes(compress(flags, first)),
        array("H", (_BOTH_COUNTS,)) * (len(bounds) - 1),
    )


def _either(flags: int, is_left: int) -> int:
    return PE_LAZY | PE_PARENT if is_left else flags


def _open(path: str) -> int:
    with open_image(path) as stream:
        return os.dup(stream.fileno())


def _in_memory(name: str, content: bytes) -> int:
    fd = os.memfd_create(name)
    with open(fd, "wb", closefd=False) as stream:
        stream.write(content)
    return fd
