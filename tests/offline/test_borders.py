"""Blocks end where mappings end, so that every CRIU restores them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helperd import tools
from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from helperd.images.mappings import Mappings, mappings_of
from helperd.images.pagemap import PE_PAYLOAD_ALIGNED, Pagemap
from tests.conftest import ImageArchive
from tests.images.checkpoints import (
    Builder,
    assert_is_truth,
    clone,
    content_of,
    load_dumps,
    memory_of,
)
from tests.images.test_mappings import HUGETLB, PLUGIN, mapping, write_mm
from tests.support.image import noise, text

BOTH_SCHEMAS = pytest.mark.parametrize("schema", [Schema.SIZES, Schema.BLOCKS])
KIB = 1024


def mapped(folder: Path) -> tuple[Pagemap, Mappings]:
    """Return the pagemap of the one process, and its mappings."""
    directory = ImageDirectory(str(folder))
    (pid,) = directory.pids
    mappings = mappings_of(directory, f"pagemap-{pid}.img")
    assert mappings is not None
    return directory.pagemap(pid=pid), mappings


def pagemap_of(folder: Path) -> tuple[bytes, bytes]:
    """Return the bytes of the pagemap and of the pages of process 7."""
    return (folder / "pagemap-7.img").read_bytes(), (folder / "pages-1.img").read_bytes()


def crossings(folder: Path) -> list[int]:
    """Return the addresses of blocks that cross a border, and of LZ4 where it may not be."""
    pagemap, mappings = mapped(folder)
    found = []
    for entry in pagemap.entries:
        address = entry.vaddr
        for size in entry.sizes or ():
            end = min(address + pages_to_bytes(entry.block_pages), entry.end)
            is_lz4 = size not in (0, end - address)
            if mappings.borders(address, end) or (is_lz4 and mappings.raw.overlaps(address, end)):
                found.append(address)
            address = end
    return found


@BOTH_SCHEMAS
@pytest.mark.parametrize("region", [0, 8, 32, 64, 256, 1024, 4096])
@pytest.mark.parametrize("name", ["borders", "borders-hugetlb"])
def test_no_block_crosses_a_border(
    image_archive: ImageArchive, tmp_path: Path, name: str, region: int, schema: Schema
) -> None:
    archive = clone(image_archive(name), tmp_path / name)
    before = content_of(archive)
    (dump,) = load_dumps(archive)
    folder = archive / dump["dir"]
    tools.compress(str(folder), in_place=True, region_bytes=region * KIB, schema=schema)
    assert crossings(folder) == []
    assert_is_truth(folder, dump)
    assert tools.check([str(folder)]).findings == []
    assert not tools.compress(str(folder), in_place=True).changed
    tools.decompress(str(folder), in_place=True)
    # What was cut is whole again.
    assert content_of(archive) == before


@BOTH_SCHEMAS
def test_huge_pages_and_plugins_are_stored_raw(tmp_path: Path, schema: Schema) -> None:
    pages = text(24)
    folder = Builder(tmp_path / "1").add(16, pages).add(60, text(2, seed=5)).write()
    write_mm(
        folder,
        mapping(16, 20),
        mapping(20, 28, HUGETLB),
        mapping(28, 36),
        mapping(36, 40, status=PLUGIN),
        mapping(60, 62, HUGETLB),
    )
    before = memory_of(folder, pid=7)
    for region in (0, 16):
        output = tmp_path / f"region{region}"
        tools.compress(str(folder), output=str(output), region_bytes=region * KIB, schema=schema)
        pagemap, _ = mapped(output)
        stored = {entry.vaddr // PAGE_SIZE: entry.sizes is None for entry in pagemap.entries}
        assert stored == {16: False, 20: True, 28: False, 36: True, 60: True}
        assert memory_of(output, pid=7) == before
        assert tools.check([str(output)]).findings == []
        assert not tools.compress(str(output), in_place=True).changed
        tools.decompress(str(output), in_place=True)
        assert pagemap_of(output) == pagemap_of(folder)


@BOTH_SCHEMAS
def test_check_finds_blocks_that_cross_and_force_mends_them(tmp_path: Path, schema: Schema) -> None:
    # As an image was compressed by those who do not look at the mappings.
    builder = Builder(tmp_path / "1", schema=schema)
    folder = builder.add(16, text(16), region=8).add(40, text(3), region=8).write()
    assert tools.check([str(folder)]).findings == []
    write_mm(folder, mapping(16, 21), mapping(21, 32), mapping(40, 42), mapping(42, 43, HUGETLB))
    before = memory_of(folder, pid=7)
    problems = [finding.message for finding in tools.check([str(folder)]).problems]
    assert any("2 blocks cross" in line and "0x10000" in line for line in problems)
    assert any("1 block" in line and "LZ4" in line and "0x28000" in line for line in problems)
    assert all("--force" in line for line in problems)
    tools.compress(str(folder), in_place=True, force=True, region_bytes=32 * KIB)
    assert crossings(folder) == []
    assert memory_of(folder, pid=7) == before
    assert tools.check([str(folder)]).findings == []


def test_the_blocks_schema_is_stored_as_merged_criu_stores_it(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "1")
    builder.add(1, text(1)).add(3, noise(2)).add(6, noise(1) + text(1)).add(9, text(1) + noise(1))
    builder.add(12, bytes(PAGE_SIZE))
    folder = builder.write()
    before = memory_of(folder, pid=7)
    tools.compress(str(folder), in_place=True, schema=Schema.BLOCKS)
    entries = ImageDirectory(str(folder)).pagemap(pid=7).entries
    aligned = [bool(entry.flags & PE_PAYLOAD_ALIGNED) for entry in entries]
    # What begins with a raw block begins at a page boundary; raw blocks alone have no table.
    assert aligned == [False, True, True, False, False]
    assert [entry.sizes is None for entry in entries] == [False, True, False, False, False]
    for entry, is_aligned in zip(entries, aligned, strict=True):
        assert not is_aligned or entry.offset % PAGE_SIZE == 0
    assert memory_of(folder, pid=7) == before
    assert tools.check([str(folder)]).findings == []
    assert not tools.compress(str(folder), in_place=True).changed


@pytest.mark.parametrize("name", ["merged-perpage", "merged-block256k"])
def test_images_of_merged_criu(image_archive: ImageArchive, tmp_path: Path, name: str) -> None:
    archive = clone(image_archive(name), tmp_path / name)
    (dump,) = load_dumps(archive)
    folder = archive / dump["dir"]
    (process,) = dump["processes"]
    original = ImageDirectory(str(folder)).pagemap(pid=process["pid"])
    assert_is_truth(folder, dump)
    assert tools.check([str(folder)]).findings == []
    assert tools.show(str(folder)).schemas == ("blocks",)
    assert not tools.compress(str(folder), in_place=True).changed
    tools.decompress(str(folder), in_place=True)
    assert_is_truth(folder, dump)
    assert tools.check([str(folder)]).findings == []
    region = 0 if name == "merged-perpage" else 256 * KIB
    tools.compress(str(folder), in_place=True, schema=Schema.BLOCKS, region_bytes=region)
    assert_is_truth(folder, dump)
    assert tools.check([str(folder)]).findings == []
    # It makes of the pages what CRIU made of them: the same blocks in the same places.
    again = ImageDirectory(str(folder)).pagemap(pid=process["pid"])
    assert [
        (entry.vaddr, entry.nr_pages, entry.flags, entry.sizes is None) for entry in again.entries
    ] == [
        (entry.vaddr, entry.nr_pages, entry.flags, entry.sizes is None)
        for entry in original.entries
    ]


@st.composite
def layouts(draw: st.DrawFn) -> tuple[list[tuple[int, int]], list[tuple[int, int, int]]]:
    """Draw runs of pages (first, pages), and mappings (first, end, flags) over and between them."""
    runs, page = [], draw(st.integers(1, 4))
    for _ in range(draw(st.integers(1, 5))):
        n_pages = draw(st.integers(1, 20))
        runs.append((page, n_pages))
        page += n_pages + draw(st.sampled_from([0, 0, 1, 7]))
    mappings, start = [], draw(st.integers(0, 3))
    while start < page:
        end = start + draw(st.integers(1, 16))
        mappings.append((start, end, draw(st.sampled_from([0, 0, 0, HUGETLB]))))
        start = end + draw(st.sampled_from([0, 0, 0, 2]))
    return runs, mappings


@settings(max_examples=60, deadline=None)
@given(layouts(), st.sampled_from([0, 2, 3, 8, 16]), st.sampled_from(Schema), st.data())
def test_any_mappings_and_entries(
    tmp_path_factory: pytest.TempPathFactory,
    layout: tuple[list[tuple[int, int]], list[tuple[int, int, int]]],
    region: int,
    schema: Schema,
    data: st.DataObject,
) -> None:
    folder = tmp_path_factory.mktemp("borders") / "1"
    builder = Builder(folder)
    kinds = st.sampled_from([text(1), noise(1), bytes(PAGE_SIZE)])
    for first, n_pages in layout[0]:
        content = data.draw(st.lists(kinds, min_size=n_pages, max_size=n_pages))
        builder.add(first, b"".join(content))
    builder.write()
    write_mm(folder, *(mapping(*it) for it in layout[1]))
    original, before = pagemap_of(folder), memory_of(folder, pid=7)
    tools.compress(
        str(folder),
        in_place=True,
        region_bytes=pages_to_bytes(region),
        schema=None if schema is Schema.NONE else schema,
    )
    assert crossings(folder) == []
    assert memory_of(folder, pid=7) == before
    assert tools.check([str(folder)]).findings == []
    tools.decompress(str(folder), in_place=True)
    assert pagemap_of(folder) == original
