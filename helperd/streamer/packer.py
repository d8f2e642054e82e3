"""Compressing an image while its files come, in whatever order they come.

Each page by itself can be compressed at once: such a block never reaches over the end of an entry
or of a mapping. For regions both must be known, and CRIU sends them after the pages; so the pages
wait in a file without a name, on the disk that the image goes to. Either way the pagemap is written
last, when its table is complete, and the inventory at the very end. Shared memory stays as it is,
as CRIU leaves it.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Protocol

from helperd.blocks import PAGE_SIZE
from helperd.codec.encode import PIECE_PAGES
from helperd.errors import ImageError, ImageFormatError
from helperd.images.inventory import INVENTORY_NAME, Schema, read_inventory
from helperd.images.mappings import Mappings, read_mappings
from helperd.images.pagemap import (
    Pagemap,
    PagemapEntry,
    pages_name,
    read_pagemap,
)
from helperd.images.pagemap_writer import PagemapWriter, PlainColumns
from helperd.images.pagesfile import PagesFile
from helperd.offline.convert_columns import compress_columns, may_be_columns, plain_columns
from helperd.offline.encode_entries import Storage, encode_entries
from helperd.streamer.encoding import Encoders, PagesReceiver
from helperd.streamer.sinks import Sink
from helperd.streamer.spool import Spool, Tee

_PAGEMAP = re.compile(r"pagemap-(0|[1-9][0-9]*)\.img", re.ASCII)
_MAPPINGS = re.compile(r"mm-(0|[1-9][0-9]*)\.img", re.ASCII)
_PAGES = re.compile(r"pages-(0|[1-9][0-9]*)\.img", re.ASCII)
#: Of one image; some ten thousand processes have as many. Each takes memory, be it empty.
MAX_FILES = 1 << 18
_PIECE_BYTES = PIECE_PAGES * PAGE_SIZE


@dataclass(frozen=True)
class Compression:
    """How an image is to be compressed.

    Attributes:
        schema: SIZES or BLOCKS.
        region_pages: pages of a block, 0 = each page by itself.
        acceleration: LZ4's.
    """

    schema: Schema
    region_pages: int = 0
    acceleration: int = 1


class Receiver(Protocol):
    """Takes one file as it comes."""

    def move(self, source: int, n_bytes: int) -> int:
        """Take up to ``n_bytes`` from a descriptor, as :meth:`SinkFile.move` does."""

    def close(self) -> None:
        """Say that the file is complete."""


class Packer:
    """Gives each file of an image a receiver, and completes the image.

    Args:
        sink: where the files go.
        compression: None to leave all files as they are.
        scratch: directory for what must wait.
        threads: that compress.
        in_order: whether each pages file is begun right after its pagemap, as CRIU does. In shards
            the first bytes of a file decide; pages whose pagemap is not known must wait.
    """

    def __init__(
        self,
        sink: Sink,
        compression: Compression | None,
        scratch: str,
        threads: int,
        *,
        in_order: bool,
    ) -> None:
        self._sink = sink
        self._compression = compression
        self._scratch = scratch
        self._threads = threads
        self._names: set[str] = set()
        self._spools: dict[str, Spool] = {}
        self._pages: dict[str, _Memory] = {}
        self._in_order = in_order
        self._last_pagemap = ""
        self._encoders = (
            Encoders(threads, compression.acceleration) if compression is not None else None
        )

    def receive(self, name: str) -> Receiver | PagesReceiver:
        """Begin a file.

        Raises:
            MalformedStream, ImageError: it is there already.
        """
        if name in self._names:
            raise ImageFormatError(f"{name} is sent for a second time")
        if len(self._names) >= MAX_FILES:
            raise ImageFormatError(f"{name}: more than {MAX_FILES} files make no image")
        self._names.add(name)
        if self._compression is None or self._encoders is None:
            return self._sink.create(name)
        if name.startswith("pagemap-"):
            self._last_pagemap = name
        if _PAGES.fullmatch(name):
            return self._receive_pages(name, self._encoders, self._compression.region_pages)
        if _MAPPINGS.fullmatch(name) and (
            self._compression.region_pages or self._compression.schema is Schema.BLOCKS
        ):
            return Tee(self._sink.create(name), self._spool(name))
        if _PAGEMAP.fullmatch(name) or name == INVENTORY_NAME:
            return self._spool(name)
        return self._sink.create(name)

    def _receive_pages(
        self, name: str, encoders: Encoders, region_pages: int
    ) -> Receiver | PagesReceiver:
        owner, self._last_pagemap = self._last_pagemap, ""
        if self._in_order and owner and not _PAGEMAP.fullmatch(owner):
            return self._sink.create(name)  # shared memory
        if not self._in_order or not owner or region_pages:
            spool = Spool(self._scratch, name)
            self._pages[name] = _Memory(name, spool=spool)
            return spool
        pages = PagesReceiver(name, self._sink.create(name), encoders)
        self._pages[name] = _Memory(name, pages=pages)
        return pages

    def _spool(self, name: str) -> Spool:
        spool = self._spools[name] = Spool(self._scratch, name)
        return spool

    def finish(self) -> None:
        """Complete the image, once all files are.

        Raises:
            HelperdError: it is not complete, or could not be written.
        """
        if INVENTORY_NAME not in self._names:
            raise ImageError(
                f"there is no {INVENTORY_NAME}, which comes last: the dump was not completed"
            )
        if self._compression is not None:
            self._check_inventory()
            for name in [name for name in self._spools if _PAGEMAP.fullmatch(name)]:
                self._finish_memory(name, self._compression)
            for memory in self._pages.values():
                memory.pass_on(self._sink)
            self._write_inventory(self._compression)
        self._sink.finish()

    def stop(self) -> None:
        """Compress nothing more; can be called again."""
        if self._encoders is not None:
            self._encoders.close()

    def close(self) -> None:
        """Let go of everything; what is not finished is dropped."""
        self.stop()
        for memory in self._pages.values():
            if memory.spool is not None:
                memory.spool.drop()
        for spool in self._spools.values():
            spool.drop()
        self._sink.abandon()

    def _check_inventory(self) -> None:
        inventory = read_inventory(self._spools[INVENTORY_NAME].path)
        if inventory.schema is not Schema.NONE:
            raise ImageError("the image is compressed already: do not compress it again")

    def _write_inventory(self, compression: Compression) -> None:
        inventory = read_inventory(self._spools[INVENTORY_NAME].path).converted(
            compression.schema,
            region_pages=compression.region_pages,
            acceleration=compression.acceleration,
        )
        file = self._sink.create(INVENTORY_NAME)
        file.write(inventory.encode())
        file.close()

    def _finish_memory(self, name: str, compression: Compression) -> None:
        pagemap = read_pagemap(self._spools[name].path)
        memory = self._pages.pop(pages_name(pagemap.head.pages_id), None)
        if memory is None:
            if pagemap.n_pages:
                raise ImageFormatError(
                    f"{name} names {pages_name(pagemap.head.pages_id)}, which has not come"
                )
            new = _Tables(entries=pagemap.entries)
        elif memory.pages is not None:
            if compression.schema is Schema.BLOCKS:
                self._check_raw(pagemap, self._mappings(name))
            new = _tables_of(pagemap, memory.pages.finish(), name)
        else:
            assert memory.spool is not None
            new = self._encode(pagemap, memory.spool, name, compression)
        head = type(pagemap.head)()
        head.CopyFrom(pagemap.head)
        head.checksum = 0  # computed when it is written
        spool = Spool(self._scratch, name)
        with open(spool.fileno(), "wb", closefd=False) as stream:
            writer = PagemapWriter(stream, head, compression.schema)
            if new.columns is not None:
                writer.append_columns(
                    new.columns,
                    new.sizes,
                    compression.region_pages,
                    aligned=new.aligned,
                )
            for entry in new.entries:
                writer.append(entry)
            writer.finish()
        file = self._sink.create(name)
        spool.copy_to(file)
        spool.drop()
        file.close()

    def _encode(
        self, pagemap: Pagemap, spool: Spool, name: str, compression: Compression
    ) -> _Tables:
        storage = Storage(
            compression.region_pages,
            compression.acceleration,
            aligned=compression.schema is Schema.BLOCKS,
            mappings=self._mappings(name) if compression.region_pages else None,
        )
        file = self._sink.create(spool.name)
        blocks = Spool(self._scratch, spool.name)
        with PagesFile(spool.path) as source:
            needed = pagemap.payload_end
            if source.size != needed:
                raise ImageFormatError(
                    f"{spool.name} has {source.size} bytes, its pagemap {name} needs {needed}"
                )
            columns = plain_columns(pagemap)
            if columns is not None and may_be_columns(pagemap, source, storage):
                done = compress_columns(
                    pagemap,
                    source,
                    blocks.fileno(),
                    storage,
                    threads=self._threads,
                    advance=lambda _: None,
                )
                new = _Tables(columns, done.sizes, aligned=storage.aligned)
            else:
                entries = encode_entries(
                    pagemap.entries,
                    source,
                    blocks.fileno(),
                    0,
                    storage,
                    threads=self._threads,
                    advance=lambda _: None,
                )
                new = _Tables(entries=list(entries))
        spool.drop()
        blocks.copy_to(file)
        blocks.drop()
        file.close()
        return new

    def _check_raw(self, pagemap: Pagemap, mappings: Mappings) -> None:
        """Refuse what merged CRIU would: it has huge pages stored raw, and says so too late."""
        for entry in pagemap.entries if len(mappings.raw) else ():
            if entry.present and mappings.raw.overlaps(entry.vaddr, entry.end):
                raise ImageError(
                    f"page {entry.vaddr:#x} lies in a mapping of huge pages, or of a plugin, which"
                    " merged CRIU wants to be raw: capture with --region, which waits for the"
                    " mappings"
                )

    def _mappings(self, name: str) -> Mappings:
        mm = name.replace("pagemap-", "mm-")
        if mm not in self._spools:
            raise ImageError(f"{mm} is missing, which says where the mappings of {name} end")
        return Mappings(read_mappings(self._spools[mm].path))


@dataclass
class _Memory:
    """The pages that belong to a pagemap: compressed as they come, or waiting."""

    name: str
    pages: PagesReceiver | None = None
    spool: Spool | None = None

    def pass_on(self, sink: Sink) -> None:
        """Pass on pages that belong to no process as they are."""
        if self.pages is not None:
            raise ImageFormatError(f"no pagemap names {self.name}")
        if self.spool is not None:
            file = sink.create(self.name)
            self.spool.copy_to(file)
            file.close()


@dataclass
class _Tables:
    """The entries of a pagemap whose pages have been compressed: as columns, or as objects.

    Attributes:
        columns, sizes, aligned: see :meth:`PagemapWriter.append_columns`.
        entries: see :meth:`PagemapWriter.append`.
    """

    columns: PlainColumns | None = None
    sizes: array[int] | None = None
    aligned: bool = False
    entries: Iterable[PagemapEntry] = ()


def _tables_of(pagemap: Pagemap, sizes: array[int], name: str) -> _Tables:
    """Return the entries with the stored sizes of their pages."""
    if pagemap.n_pages != len(sizes):
        raise ImageFormatError(
            f"{name} has {pagemap.n_pages} pages, {len(sizes)} have come with it"
        )
    columns = None if pagemap.schemas else plain_columns(pagemap)
    if columns is not None:
        return _Tables(columns, sizes)
    return _Tables(entries=_with_tables(pagemap, sizes))


def _with_tables(pagemap: Pagemap, sizes: array[int]) -> Iterator[PagemapEntry]:
    at = 0
    for entry in pagemap.entries:
        if not entry.present:
            yield entry
            continue
        yield replace(entry, sizes=sizes[at : at + entry.nr_pages], region_pages=0)
        at += entry.nr_pages
