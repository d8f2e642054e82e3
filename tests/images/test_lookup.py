"""Random access: any page at once is what going through the chain in order gives."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helperd import errors
from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.codec.block import decode_block
from helperd.images.entries import NO_TABLE, Entries
from helperd.images.extent import read_exactly
from helperd.images.inventory import Schema
from helperd.images.lookup import ELSEWHERE, Lookup, Piece, open_lookup
from helperd.images.pagemap import PE_LAZY, read_pagemap
from helperd.kernel.syscalls import punch_hole
from tests.conftest import ImageArchive
from tests.images.checkpoints import ARCHIVES, Builder, load_dumps, memory_of
from tests.images.test_chain import chains, page, pages
from tests.images.test_pagemap import mutations, short_pagemap

NAME = "pagemap-7.img"


def content_of(lookup: Lookup, piece: Piece) -> bytes:
    """Return the wanted pages of a piece."""
    chunk = piece.chunk
    decoded, at = [], chunk.offset
    for index, size in enumerate(chunk.sizes):
        n_pages = chunk.block_pages[index] if chunk.block_pages else 1
        level = lookup.levels[piece.level]
        stored = read_exactly(level.fd, size, at, level.path) if size else b""
        decoded.append(decode_block(stored, pages_to_bytes(n_pages)))
        at += size
    content = b"".join(decoded)
    assert len(content) == pages_to_bytes(chunk.n_pages)
    start = pages_to_bytes(piece.skip)
    return content[start : start + pages_to_bytes(piece.end - piece.first)]


def all_pages(lookup: Lookup, *, max_pages: int = 16) -> dict[int, bytes]:
    """Return every page by address, through pieces from the first to the last."""
    memory: dict[int, bytes] = {}
    number = 0
    while number < lookup.n_pages:
        piece = lookup.piece(number, lookup.n_pages, max_pages)
        assert piece.first == number < piece.end
        content = content_of(lookup, piece)
        ranges = lookup.ranges(piece.first, piece.end)
        assert ranges == piece.chunk.ranges
        at = 0
        for address, n_pages in ranges:
            for _ in range(n_pages):
                memory[address] = content[at : at + PAGE_SIZE]
                address += PAGE_SIZE
                at += PAGE_SIZE
        number = piece.end
    return memory


def check(folder: Path, name: str, memory: dict[int, bytes], source: random.Random) -> None:
    lookup = open_lookup(str(folder), name)
    try:
        lookup.load_tables()
        assert lookup.n_pages == len(memory)
        assert all_pages(lookup) == memory
        for address in source.sample(sorted(memory), min(len(memory), 20)):
            number = lookup.number_of(address)
            assert lookup.address_of(number) == address
            assert lookup.first_from(address) == number
            first, end = lookup.block_around(number, 4)
            assert first <= number < end
            piece = lookup.piece(number, number + 1)
            assert content_of(lookup, piece) == memory[address]
            whole = lookup.piece(first, end)
            assert whole.first == first
        for address in (0, max(memory) + PAGE_SIZE):
            if address not in memory:
                assert lookup.number_of(address) == -1
    finally:
        lookup.close()


@pytest.mark.parametrize("name", ARCHIVES)
def test_real_checkpoints(image_archive: ImageArchive, name: str) -> None:
    archive = image_archive(name)
    for dump in load_dumps(archive):
        folder = archive / dump["dir"]
        for process in dump["processes"]:
            memory = memory_of(folder, pid=process["pid"])
            check(folder, f"pagemap-{process['pid']}.img", memory, random.Random(1))
        for shmem in dump["shmem"]:
            memory = memory_of(folder, shmem_id=shmem["shmid"])
            check(folder, f"pagemap-shmem-{shmem['shmid']}.img", memory, random.Random(1))


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield new folders, one for each example of a property."""
    folder = tmp_path_factory.mktemp("lookups")
    return (folder / str(number) for number in range(1 << 30))


@settings(max_examples=80, deadline=None)
@given(levels=chains(), seed=st.integers(0, 1 << 30))
def test_any_chain(
    numbered: Iterator[Path],
    levels: list[tuple[Schema, list[tuple[int, int, str, int | None]]]],
    seed: int,
) -> None:
    root = next(numbered)
    root.mkdir()
    source = random.Random(seed)
    for depth, (schema, runs) in enumerate(levels):
        builder = Builder(root / str(depth), schema=schema)
        for first, n_pages, kind, region in runs:
            if kind == "parent":
                builder.refer(first, n_pages)
                continue
            seeds = [source.randrange(50) for _ in range(n_pages)]
            content = b"".join(page(seed) if seed % 3 else bytes(PAGE_SIZE) for seed in seeds)
            aligned = schema is Schema.BLOCKS and source.random() < 0.3
            builder.add(first, content, region=region, aligned=aligned)
        builder.write(parent=f"../{depth - 1}" if depth else None)
        check(builder.folder, NAME, memory_of(builder.folder, pid=7), source)


def test_pieces_take_many_small_entries_and_stay_bounded(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "1", schema=Schema.SIZES)
    for at in range(0, 600, 2):
        builder.add(at, page(at), region=0)
    lookup = open_lookup(str(builder.write()), NAME)
    lookup.load_tables()
    assert [lookup.piece(at, 300).end for at in (0, 256)] == [256, 300]
    assert len(lookup.piece(0, 300).chunk.ranges) == 256
    assert lookup.block_around(100, 64) == (64, 128)
    lookup.close()


def test_a_page_that_only_the_source_process_has(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(1, pages(1)).refer(5, 3, PE_LAZY).write()
    lookup = open_lookup(str(folder), NAME)
    assert lookup.n_pages == 4
    assert list(lookup.level_of) == [0, ELSEWHERE]
    with pytest.raises(errors.ImageError, match="page 0x6000 is in no image"):
        lookup.piece(2, 4)
    lookup.close()


@pytest.mark.parametrize("parent", [".", "../1", "../gone"])
def test_parents_that_are_none(tmp_path: Path, parent: str) -> None:
    Builder(tmp_path / "1").refer(5).write(parent="../2")
    folder = Builder(tmp_path / "2").refer(5).write(parent=parent)
    with pytest.raises(errors.ImageError, match=r"loop back to|no parent with a"):
        open_lookup(str(folder), NAME)


def test_a_parent_without_the_page(tmp_path: Path) -> None:
    Builder(tmp_path / "1").add(4, pages(1)).add(6, pages(1)).write()
    folder = Builder(tmp_path / "2").refer(5).write(parent="../1")
    with pytest.raises(errors.ImageError, match="page 0x5000 is needed from here but not listed"):
        open_lookup(str(folder), NAME)


def test_a_short_pages_file(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(4, pages(1, 2)).write()
    with open(folder / "pages-1.img", "r+b") as stream:
        stream.truncate(PAGE_SIZE + 1)
    with pytest.raises(errors.ShortImage, match=r"ends at offset 4097, .* needs 8192"):
        open_lookup(str(folder), NAME)


@pytest.mark.parametrize("schema", [Schema.NONE, Schema.SIZES])
def test_payload_in_a_hole_is_lost_and_not_zeros(tmp_path: Path, schema: Schema) -> None:
    memory = random.Random(5).randbytes(64 * PAGE_SIZE)
    folder = Builder(tmp_path / "1", schema=schema).add(4, memory).write()
    path = folder / "pages-1.img"
    open_lookup(str(folder), NAME).close()
    with open(path, "r+b") as stream:
        punch_hole(stream.fileno(), 8 * PAGE_SIZE, 4 * PAGE_SIZE)
    with pytest.raises(
        errors.CorruptBlock, match=f"payload at offset {8 * PAGE_SIZE} lies in a hole"
    ):
        open_lookup(str(folder), NAME)


def test_a_hole_where_a_later_dump_has_the_pages_is_none(tmp_path: Path) -> None:
    first = Builder(tmp_path / "1").add(4, pages(1, 2, 3)).write()
    second = Builder(tmp_path / "2").refer(4).add(5, pages(7)).refer(6).write(parent="../1")
    with open(first / "pages-1.img", "r+b") as stream:
        punch_hole(stream.fileno(), PAGE_SIZE, PAGE_SIZE)
    lookup = open_lookup(str(second), NAME)
    assert b"".join(all_pages(lookup).values()) == pages(1, 7, 3)
    lookup.close()


def columns(path: Path, content: bytes) -> tuple[Entries | None, str]:
    """Return a pagemap's columns, or the error."""
    try:
        entries = Entries(str(path), content)
        entries.load_tables()
    except errors.ImageFormatError as error:
        return None, str(error)
    return entries, ""


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_both_ways_of_reading_pagemaps_agree(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutated-entries.img"
    schema = data.draw(st.sampled_from(Schema))
    content = data.draw(st.composite(mutations)(short_pagemap(schema)))
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        # All that have a shape by it, though they be few.
        patch.setattr("helperd.images.shapes._FEWEST", 1)
        entries, error = columns(path, content)
        # Field by field, as what has no shape.
        patch.setattr("helperd.images.entries._SHORT", {})
        slow, slow_error = columns(path, content)
    assert error == slow_error
    if entries is None or slow is None:
        return
    for name in ("vaddr", "nr_pages", "flags", "form", "block_pages", "offset", "table", "sizes"):
        assert getattr(entries, name) == getattr(slow, name)
    assert (entries.schemas, entries.extra) == (slow.schemas, slow.extra)
    pagemap = read_pagemap(str(path))
    assert len(entries) == len(pagemap.entries)
    assert entries.pages_id == pagemap.head.pages_id
    assert entries.payload_end == pagemap.payload_end
    for index, entry in enumerate(pagemap.entries):
        assert entries.vaddr[index] == entry.vaddr
        assert entries.end(index) == entry.end
        assert entries.flags[index] == entry.flags
        assert not entry.present or entries.offset[index] == entry.offset
        if entry.sizes is None:
            assert entries.table[index] == NO_TABLE
        else:
            assert entries.block_pages[index] == entry.block_pages
            assert entries.table_of(index) == entry.sizes
