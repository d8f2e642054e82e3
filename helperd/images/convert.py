"""Compress the pages and the pagemap of one process."""

from __future__ import annotations

import dataclasses
import os
from array import array
from collections.abc import Iterator
from typing import BinaryIO, Final

from helperd import blocks, codec, errors
from helperd.images import copying, records
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from helperd.images.pagemap import PE_PAYLOAD_ALIGNED, Pagemap, PagemapEntry, write_pagemap
from helperd.images.payload import read_exactly

# Pages are read and encoded in pieces of about this size,
_CHUNK_BYTES: Final = 1 << 20
# and larger entries are split (1 GiB of pages), so that no table has to be held for more.
_MAX_ENTRY_PAGES: Final = 1 << 18


@dataclasses.dataclass(frozen=True, slots=True)
class Mode:
    """How to compress.

    Attributes:
        region_pages: pages compressed at once, 0 = per page.
        acceleration: LZ4's.
    """

    region_pages: int
    acceleration: int

    @property
    def block_bytes(self) -> int:
        """Bytes compressed at once."""
        return blocks.pages_to_bytes(self.region_pages or 1)


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """One pagemap to convert, and where to.

    Attributes:
        name: of the pagemap.
        pages_id: that the new pagemap names.
        pagemap_path: the new pagemap, to be made.
        pages_path: the new pages file, to be made.
    """

    name: str
    pages_id: int
    pagemap_path: str
    pages_path: str


@dataclasses.dataclass(frozen=True, slots=True)
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
    n_zero: int
    n_raw: int
    n_lz4: int


def convert(directory: ImageDirectory, job: Job, mode: Mode) -> FileReport:
    """Write the compressed pages file and pagemap of one process.

    Raises:
        ShortImage: the pages file ends before the payload does.
        ImageFormatError: it goes on after the payload; then the pagemap may be cut off, and those
            pages would be lost.
        OSError: from the system calls.
    """
    pagemap = directory.pagemap_by_name(job.name)
    source_path = directory.file(pagemap.pages_name)
    bytes_before = 0
    if not pagemap.payload_end and not os.path.lexists(source_path):
        source_path = pagemap.path  # no payload: only the owner and mode are taken from it
    else:
        bytes_before = os.stat(source_path).st_size
    if bytes_before > pagemap.payload_end:
        raise errors.ImageFormatError(
            f"{source_path}: has {bytes_before} bytes, but its pagemap {pagemap.path} knows of"
            f" {pagemap.payload_end} only; the rest would be lost"
        )
    head = type(pagemap.head)()
    head.CopyFrom(pagemap.head)
    head.pages_id = job.pages_id
    tally = _Tally()
    with (
        records.open_image(source_path) as source,
        copying.new_file(job.pages_path, source_path) as pages,
        copying.new_file(job.pagemap_path, pagemap.path) as stream,
    ):
        compressed = _compress_entries(pagemap, source, source_path, pages, mode)
        write_pagemap(stream, head, tally.count(compressed), Schema.SIZES)
    return FileReport(
        name=job.name,
        n_pages=pagemap.n_pages,
        bytes_before=bytes_before,
        bytes_after=tally.n_bytes,
        n_zero=tally.n_zero,
        n_raw=tally.n_raw,
        n_lz4=tally.n_lz4,
    )


def _compress_entries(
    pagemap: Pagemap, source: BinaryIO, source_path: str, pages: BinaryIO, mode: Mode
) -> Iterator[PagemapEntry]:
    """Yield the entries of the compressed pagemap, after writing the payload of each."""
    for entry in pagemap.entries:
        if not entry.present:
            yield entry
            continue
        for part in _split(entry):
            sizes = array("I")
            for chunk in _chunks(part, source, source_path, mode):
                for stored in _encode_chunk(chunk, mode):
                    sizes.append(len(stored))
                    pages.write(stored)
            yield dataclasses.replace(
                part,
                flags=part.flags & ~PE_PAYLOAD_ALIGNED,
                region_pages=mode.region_pages,
                sizes=sizes,
            )


def _split(entry: PagemapEntry) -> Iterator[PagemapEntry]:
    for page in range(0, entry.nr_pages, _MAX_ENTRY_PAGES):
        start = blocks.pages_to_bytes(page)
        yield dataclasses.replace(
            entry,
            vaddr=entry.vaddr + start,
            offset=entry.offset + start,
            nr_pages=min(entry.nr_pages - page, _MAX_ENTRY_PAGES),
        )


def _chunks(entry: PagemapEntry, source: BinaryIO, source_path: str, mode: Mode) -> Iterator[bytes]:
    """Yield the uncompressed pages of an entry in pieces of whole blocks."""
    step = max(_CHUNK_BYTES // mode.block_bytes, 1) * mode.block_bytes
    n_bytes = blocks.pages_to_bytes(entry.nr_pages)
    for start in range(0, n_bytes, step):
        wanted = min(step, n_bytes - start)
        yield read_exactly(source.fileno(), wanted, entry.offset + start, source_path)


def _encode_chunk(chunk: bytes, mode: Mode) -> list[bytes]:
    """Return the stored form of each block of a chunk; needs nothing else, so can run anywhere."""
    view = memoryview(chunk)
    return [
        codec.encode_block(view[start : start + mode.block_bytes], mode.acceleration)
        for start in range(0, len(chunk), mode.block_bytes)
    ]


@dataclasses.dataclass(slots=True)
class _Tally:
    """Counts of the blocks and bytes that went by."""

    n_bytes: int = 0
    n_zero: int = 0
    n_raw: int = 0
    n_lz4: int = 0

    def count(self, entries: Iterator[PagemapEntry]) -> Iterator[PagemapEntry]:
        for entry in entries:
            if entry.sizes is not None:
                self._add(entry, entry.sizes)
            yield entry

    def _add(self, entry: PagemapEntry, sizes: array[int]) -> None:
        # LZ4 blocks stay below 7/8 of their block, so a size tells what a block is; the last one
        # may be shorter than the others.
        block_bytes = blocks.pages_to_bytes(entry.block_pages)
        last_bytes = blocks.pages_to_bytes(entry.nr_pages) - (len(sizes) - 1) * block_bytes
        n_zero = sizes.count(blocks.ZERO_SIZE)
        n_raw = sizes[:-1].count(block_bytes) + (sizes[-1] == last_bytes)
        self.n_bytes += sum(sizes)
        self.n_zero += n_zero
        self.n_raw += n_raw
        self.n_lz4 += len(sizes) - n_zero - n_raw
