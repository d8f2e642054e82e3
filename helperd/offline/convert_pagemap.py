"""Convert the pages file and the pagemap of one process: compress them, or the reverse.

Entries are converted one by one, since compressed and uncompressed ones may stand side by side.
Pages in holes of the pages file, which deduplication has made, stay distinguishable from dumped
zero pages: compressed, they are LZ4 blocks of zeros, where those are blocks of no bytes; not
compressed, they are holes again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from helperd import blocks
from helperd.images.entry_fields import CONTINUES
from helperd.images.inventory import Schema
from helperd.images.mappings import Mappings
from helperd.images.pagemap import (
    PE_PAYLOAD_ALIGNED,
    Pagemap,
    PagemapEntry,
    check_pages_size,
    place_payload,
)
from helperd.images.pagemap_writer import PagemapWriter
from helperd.images.pagesfile import PagesFile
from helperd.offline.convert_columns import (
    Compressed,
    compress_columns,
    may_be_columns,
    plain_columns,
)
from helperd.offline.encode_entries import Advance, Storage, encode_entries
from helperd.offline.expand_entries import expand_entries
from helperd.offline.files import Place, copy_data, new_file


@dataclass(frozen=True, slots=True)
class Mode:
    """How pages are to be stored.

    Attributes:
        schema: of the pagemaps; NONE = not compressed.
        region_pages: pages compressed at once, 0 = per page.
        acceleration: LZ4's.
        again: compress again what is compressed already.
    """

    schema: Schema
    region_pages: int = 0
    acceleration: int = 1
    again: bool = False


@dataclass(frozen=True, slots=True)
class Job:
    """One pagemap to convert, and where to.

    Attributes:
        pagemap: as it is.
        open_source: opens its pages file; None when there is none, and nothing stored.
        pagemap_path: the new pagemap, to be made.
        pages_path: the new pages file, to be made; None when there is none.
        scratch_path: for the uncompressed pages while they are compressed again.
        mappings: that its pages belong to; None = not known, or none.
    """

    pagemap: Pagemap
    open_source: Callable[[], PagesFile] | None
    pagemap_place: Place
    pages_place: Place | None
    scratch_place: Place
    mappings: Mappings | None = None

    @property
    def name(self) -> str:
        """Name of the pagemap."""
        return os.path.basename(self.pagemap.path)


@dataclass(frozen=True, slots=True)
class FileReport:
    """What became of the pages of one process.

    Attributes:
        name: of the pagemap.
        n_pages: pages with a payload.
        bytes_before: of the pages file.
        bytes_after: of the new pages file.
        n_zero: blocks that are all zero and take no space.
        n_raw: blocks stored as they are.
        n_lz4: blocks stored compressed.
    """

    name: str
    n_pages: int
    bytes_before: int
    bytes_after: int
    n_zero: int = 0
    n_raw: int = 0
    n_lz4: int = 0


def convert(job: Job, mode: Mode, *, threads: int, advance: Advance) -> FileReport:
    """Write the new pages file and pagemap of one process.

    Raises:
        ShortImage: the pages file ends before the payload does.
        ImageFormatError: it goes on after the payload; then the pagemap may be cut off, and those
            pages would be lost.
        CorruptBlock: a block that has to be decoded does not, and was not punched out.
        OSError: from the system calls.
    """
    pagemap = job.pagemap
    head = type(pagemap.head)()
    head.CopyFrom(pagemap.head)
    head.ClearField("checksum")
    if mode.schema is not Schema.NONE:
        head.checksum = 0  # computed when it is written
    storage = Storage(
        mode.region_pages, mode.acceleration, mode.schema is Schema.BLOCKS, job.mappings
    )
    tally = _Tally(mode.region_pages or 1)
    bytes_before = 0
    with contextlib.ExitStack() as stack:
        stream = stack.enter_context(new_file(job.pagemap_place, pagemap.path))
        writer = PagemapWriter(stream, head, mode.schema)
        columns = plain_columns(pagemap)
        entries: Iterable[PagemapEntry] = ()
        if job.open_source is not None and job.pages_place is not None:
            source = stack.enter_context(job.open_source())
            bytes_before = source.size
            check_pages_size(pagemap, source.path, source.size, exact=True)
            pages = stack.enter_context(new_file(job.pages_place, source.path)).fileno()
            if mode.schema is Schema.NONE:
                if columns is None:
                    entries = plain_entries(pagemap)
                else:
                    tally.n_bytes = blocks.pages_to_bytes(pagemap.n_pages)
                    writer.append_columns(columns)
                expand_entries(pagemap, source, pages, threads=threads, advance=advance)
            elif mode.again:
                scratch = stack.enter_context(_scratch(job.scratch_place))
                expand_entries(pagemap, source, scratch, threads=threads, advance=advance)
                expanded = stack.enter_context(PagesFile(job.scratch_place.path, os.dup(scratch)))
                plain = plain_entries(pagemap)
                entries = _compress(plain, expanded, pages, storage, threads, advance)
            elif columns is not None and may_be_columns(pagemap, source, storage):
                done = compress_columns(
                    pagemap, source, pages, storage, threads=threads, advance=advance
                )
                tally.add(done)
                writer.append_columns(
                    columns, done.sizes, mode.region_pages, aligned=storage.aligned
                )
            else:
                entries = _compress(pagemap.entries, source, pages, storage, threads, advance)
        else:
            entries = pagemap.entries
        for entry in tally.count(entries):
            writer.append(entry)
        writer.finish()
    return FileReport(
        name=job.name,
        n_pages=pagemap.n_pages,
        bytes_before=bytes_before,
        bytes_after=tally.n_bytes,
        n_zero=tally.n_zero,
        n_raw=tally.n_raw,
        n_lz4=tally.n_lz4,
    )


def plain_entries(pagemap: Pagemap) -> list[PagemapEntry]:
    """Return the entries as those of uncompressed pages that lie back to back.

    What was cut in order to be compressed is whole again.
    """
    entries: list[PagemapEntry] = []
    for entry in pagemap.entries:
        plain = entry.without_table()
        plain.form &= ~CONTINUES
        last = entries[-1] if entries else plain
        if (
            entry.form & CONTINUES
            and last.end == plain.vaddr
            and (last.flags, last.form, last.extra) == (plain.flags, plain.form, plain.extra)
        ):
            last.nr_pages += plain.nr_pages
        else:
            entries.append(plain)
    offset = 0
    for entry in entries:
        offset = place_payload(entry, offset)
    return entries


@contextlib.contextmanager
def _scratch(place: Place) -> Iterator[int]:
    """Give the descriptor of a file that is removed afterwards."""
    fd = place.make(os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)
        place.remove()


def _compress(
    entries: Iterable[PagemapEntry],
    source: PagesFile,
    pages: int,
    storage: Storage,
    threads: int,
    advance: Advance,
) -> Iterator[PagemapEntry]:
    """Yield the new entries, in order, each after its payload was written to ``pages``."""
    offset = 0
    plain: list[PagemapEntry] = []

    def flush() -> Iterator[PagemapEntry]:
        # Together, since many entries have a few pages only.
        nonlocal offset
        for entry in encode_entries(
            plain, source, pages, offset, storage, threads=threads, advance=advance
        ):
            offset = place_payload(entry, offset)
            yield entry
        plain.clear()

    for entry in entries:
        if entry.sizes is None:
            plain.append(entry.without_table())
            continue
        yield from flush()
        # Compressed already: the payload is copied, with its holes.
        flags = entry.flags if storage.aligned else entry.flags & ~PE_PAYLOAD_ALIGNED
        kept = entry.with_table(entry.sizes, entry.region_pages, flags)
        offset = place_payload(kept, offset)
        end = entry.offset + entry.payload_bytes
        copy_data(source, entry.offset, end, pages, kept.offset)
        yield kept
        advance(blocks.pages_to_bytes(entry.nr_pages))
    yield from flush()
    os.ftruncate(pages, offset)


@dataclass(slots=True)
class _Tally:
    """Counts of the blocks that went by, and where the payload ends."""

    block_pages: int
    n_bytes: int = 0
    n_zero: int = 0
    n_raw: int = 0
    n_lz4: int = 0

    def add(self, done: Compressed) -> None:
        """Count all blocks of a pagemap."""
        self.n_bytes = done.n_bytes
        self.n_zero = done.sizes.count(blocks.ZERO_SIZE)
        self.n_raw = done.n_raw
        self.n_lz4 = len(done.sizes) - self.n_zero - self.n_raw

    def count(self, entries: Iterable[PagemapEntry]) -> Iterator[PagemapEntry]:
        for entry in entries:
            if entry.sizes is not None:
                kinds = entry.count_kinds()
                self.n_zero += kinds.zero
                self.n_raw += kinds.raw
                self.n_lz4 += kinds.lz4
            elif entry.is_raw:
                self.n_raw += -(-entry.nr_pages // self.block_pages)
            self.n_bytes = max(self.n_bytes, entry.offset + entry.payload_bytes)
            yield entry
