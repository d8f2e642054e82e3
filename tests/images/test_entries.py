"""What an entry, and a pagemap, says of itself."""

from __future__ import annotations

import errno
from array import array
from pathlib import Path

import pytest

from helperd.errors import ImageError, ImageFormatError, ShortImage
from helperd.images.directory import ImageDirectory
from helperd.images.entry_fields import CONTINUES, HAS_REGION, NEW_FORM, REGION_ZERO
from helperd.images.inventory import Schema
from helperd.images.pagemap import (
    PE_LAZY,
    PE_PARENT,
    PE_PAYLOAD_ALIGNED,
    PE_PRESENT,
    PagemapEntry,
    check_pages_size,
    place_payload,
    read_head,
    read_pagemap,
)
from tests.images.checkpoints import Builder, write_pagemap_file


@pytest.mark.parametrize(
    ("nr_pages", "region", "sizes", "kinds"),
    [
        (5, 0, None, (0, 5, 0)),
        (3, 0, [0, 4096, 100], (1, 1, 1)),
        (1, 0, [4096], (0, 1, 0)),
        (1, 0, [0], (1, 0, 0)),
        (6, 4, [0, 8192], (1, 1, 0)),
        (6, 4, [16384, 100], (0, 1, 1)),
        (6, 4, [8192, 8192], (0, 1, 1)),
        (12, 4, [16384, 0, 16384], (1, 2, 0)),
        (12, 4, [4096, 8192, 12288], (0, 0, 3)),
        (3, 4, [12288], (0, 1, 0)),
    ],
)
def test_how_blocks_are_stored(
    nr_pages: int, region: int, sizes: list[int] | None, kinds: tuple[int, int, int]
) -> None:
    table = None if sizes is None else array("I", sizes)
    entry = PagemapEntry(0, nr_pages, region_pages=region, sizes=table)
    assert entry.count_kinds() == kinds


def test_an_entry_without_its_table() -> None:
    flags = PE_PRESENT | PE_LAZY | PE_PAYLOAD_ALIGNED
    form = NEW_FORM | HAS_REGION | REGION_ZERO
    entry = PagemapEntry(
        0x5000, 3, flags, 2, array("I", [1, 2]), offset=7, payload_bytes=3, form=form, extra=b"x"
    )
    assert entry.without_table() == PagemapEntry(
        0x5000, 3, PE_PRESENT | PE_LAZY, offset=7, payload_bytes=12288, form=NEW_FORM, extra=b"x"
    )
    assert PagemapEntry(0x5000, 3, PE_PARENT).without_table() == PagemapEntry(
        0x5000, 3, PE_PARENT, offset=0, payload_bytes=0
    )


def test_a_part_of_an_entry() -> None:
    entry = PagemapEntry(0x5000, 8, offset=0x100, payload_bytes=0x8000, extra=b"x")
    assert entry.part(0, 3) == PagemapEntry(
        0x5000, 3, offset=0x100, payload_bytes=0x3000, extra=b"x"
    )
    assert entry.part(3, 8) == PagemapEntry(
        0x8000, 5, offset=0x3100, payload_bytes=0x5000, form=NEW_FORM | CONTINUES, extra=b"x"
    )
    assert (entry.page_address(2), entry.page_offset(2)) == (0x7000, 0x2100)
    assert (entry.end, entry.n_blocks, entry.block_pages) == (0xD000, 8, 1)
    assert PagemapEntry(0, 9, region_pages=4).n_blocks == 3


@pytest.mark.parametrize(
    ("flags", "sizes", "is_raw"),
    [
        (PE_PRESENT, None, False),
        (PE_PRESENT | PE_PAYLOAD_ALIGNED, None, True),
        (PE_PRESENT | PE_PAYLOAD_ALIGNED, [1], False),
        (PE_PRESENT, [1], False),
    ],
)
def test_what_lz4_gained_nothing_of(flags: int, sizes: list[int] | None, is_raw: bool) -> None:
    table = None if sizes is None else array("I", sizes)
    assert PagemapEntry(0, 1, flags, sizes=table).is_raw == is_raw


def test_what_a_pagemap_says_of_all_its_entries(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "1", schema=Schema.SIZES)
    content = bytes(range(256)) * 16
    builder.add(1, content * 2).refer(10, 5).add(20, content * 3, region=0)
    builder.add(30, content * 5, region=2)
    pagemap = ImageDirectory(str(builder.write())).pagemap(pid=7)
    assert (pagemap.n_pages, pagemap.n_blocks) == (10, 2 + 3 + 3)
    assert pagemap.kinds_of_blocks == {1, 2}
    assert pagemap.largest_region == 2
    assert not pagemap.has_raw
    assert [entry.vaddr for entry in pagemap.uncompressed()] == [0x1000]
    assert pagemap.name == "pagemap-7.img"
    assert pagemap.is_process


def test_pages_files_of_other_lengths(tmp_path: Path) -> None:
    pagemap = ImageDirectory(str(Builder(tmp_path / "1").add(1, bytes(8192)).write())).pagemap(
        pid=7
    )
    check_pages_size(pagemap, "pages-1.img", 8192, exact=True)
    check_pages_size(pagemap, "pages-1.img", 8193, exact=False)
    with pytest.raises(ImageFormatError, match="has 8193 bytes"):
        check_pages_size(pagemap, "pages-1.img", 8193, exact=True)
    with pytest.raises(ShortImage, match="ends at offset 8191"):
        check_pages_size(pagemap, "pages-1.img", 8191, exact=False)


def test_payload_up_to_the_end_of_any_file() -> None:
    end = (1 << 63) - 1
    entry = PagemapEntry(0x1000, 1, sizes=array("I", [5]))
    assert place_payload(entry, end - 5) == end
    assert (entry.offset, entry.payload_bytes) == (end - 5, 5)
    with pytest.raises(ImageFormatError, match="vaddr 0x1000 has its payload beyond any file"):
        place_payload(entry, end - 4)
    plain = PagemapEntry(0x1000, 2)
    assert place_payload(plain, 3) == 8195
    assert (plain.offset, plain.payload_bytes) == (3, 8192)


def test_regions_of_one_page_are_told_from_single_pages(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "1", schema=Schema.SIZES)
    builder.add(1, bytes(4096) * 2, region=0).add(5, bytes(4096) * 2, region=1)
    pagemap = ImageDirectory(str(builder.write())).pagemap(pid=7)
    assert [entry.region_pages for entry in pagemap.entries] == [0, 1]
    assert pagemap.largest_region == 1


def test_a_pagemap_without_entries(tmp_path: Path) -> None:
    pagemap = ImageDirectory(str(Builder(tmp_path / "1").write())).pagemap(pid=7)
    assert (pagemap.n_pages, pagemap.n_blocks, pagemap.largest_region) == (0, 0, 0)
    assert (pagemap.entries, pagemap.kinds_of_blocks, pagemap.has_raw) == ([], set(), False)


def test_payload_is_that_of_the_entries_that_have_some(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "1", schema=Schema.SIZES)
    builder.add(1, bytes(range(256)) * 32, region=0).refer(10, 3).add(20, bytes(8192))
    pagemap = ImageDirectory(str(builder.write())).pagemap(pid=7)
    table, parent, plain = pagemap.entries
    assert table.payload_bytes == sum(table.sizes or ()) == plain.offset
    assert (parent.payload_bytes, plain.payload_bytes) == (0, 8192)
    # Single pages by a table that says nothing of regions.
    assert pagemap.largest_region == 0


def test_a_file_without_a_head(tmp_path: Path) -> None:
    path = write_pagemap_file(tmp_path / "pagemap-7.img")
    with pytest.raises(ImageFormatError, match="has no head"):
        read_head(str(path))


@pytest.mark.parametrize(
    ("head", "why"), [(b"\x0b", "is not a head"), (b"", "does not name a pages file")]
)
def test_a_head_that_is_none(tmp_path: Path, head: bytes, why: str) -> None:
    path = write_pagemap_file(tmp_path / "pagemap-7.img", head)
    with pytest.raises(ImageFormatError, match=why):
        read_head(str(path))


def test_a_pagemap_that_cannot_be_read() -> None:
    # There is nothing at address 0, so reading from the start fails as on a broken disk.
    with pytest.raises(ImageError, match="cannot read /proc/self/mem") as caught:
        read_pagemap("/proc/self/mem")
    assert caught.value.errno == errno.EIO


def test_a_new_entry_has_no_payload_yet() -> None:
    entry = PagemapEntry(0x1000, 2)
    assert (entry.region_pages, entry.sizes, entry.offset, entry.payload_bytes) == (0, None, 0, 0)
    assert entry.with_table(array("I", [1]), 2, PE_PRESENT) == PagemapEntry(
        0x1000, 2, PE_PRESENT, 2, array("I", [1])
    )
