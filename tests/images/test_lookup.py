"""Random access: any page at once is what going through the chain in order gives."""

from __future__ import annotations

import errno
import os
import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helperd import errors
from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.codec.block import decode_block
from helperd.codec.chunk import CHUNK_PAGES
from helperd.images.entries import NO_TABLE, Entries
from helperd.images.extent import read_exactly
from helperd.images.inventory import Schema
from helperd.images.lookup import ELSEWHERE, Lookup, Piece, open_lookup
from helperd.images.pagemap import PE_LAZY, PE_PARENT, PE_PRESENT, read_pagemap
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


def stored_page(lookup: Lookup, number: int) -> bytes:
    """Return a page from where it is said to be."""
    which, offset, size, n_pages, page = lookup.place(number)
    level = lookup.levels[which]
    stored = read_exactly(level.fd, size, offset, level.path) if size else b""
    at = pages_to_bytes(page)
    return decode_block(stored, pages_to_bytes(n_pages))[at : at + PAGE_SIZE]


def runs_of(addresses: Sequence[int]) -> list[tuple[int, int]]:
    """Return ascending pages as (address, pages), as few as they can be."""
    found: list[tuple[int, int]] = []
    for address in addresses:
        if found and found[-1][0] + pages_to_bytes(found[-1][1]) == address:
            found[-1] = (found[-1][0], found[-1][1] + 1)
        else:
            found.append((address, 1))
    return found


def check_block(lookup: Lookup, number: int, window: int) -> None:
    """See to it that the pages to be had with one are those of its block, or around it."""
    run = bisect_right(lookup.numbers, number) - 1
    run_end = lookup.numbers[run] + lookup.run_pages(run)
    assert lookup.numbers[run] <= number < run_end == lookup.numbers[run + 1]
    first, end = lookup.block_around(number, window)
    _, offset, _, n_pages, page = lookup.place(number)
    if lookup.levels[lookup.level_of[run]].entries.block_pages[lookup.entry_of[run]] == 1:
        assert first == number // window * window
        assert end == min(first + window, lookup.n_pages)
        return
    assert first == max(number - page, lookup.numbers[run])
    # The last block of an entry may be shorter than a block of its kind, never the pages.
    assert min(number - page + n_pages, run_end) == end
    for other in range(first, end):
        assert lookup.place(other)[1] == offset


def check(folder: Path, name: str, memory: dict[int, bytes], source: random.Random) -> None:
    lookup = open_lookup(str(folder), name)
    addresses = sorted(memory)
    try:
        lookup.load_tables()
        assert lookup.n_pages == len(memory)
        assert all_pages(lookup) == memory
        for number in source.sample(range(len(addresses)), min(len(addresses), 20)):
            address = addresses[number]
            assert lookup.number_of(address) == lookup.first_from(address) == number
            assert lookup.number_of(address + PAGE_SIZE - 1) == number
            assert lookup.first_from(address + 1) == number + 1
            assert lookup.address_of(number) == address
            assert stored_page(lookup, number) == memory[address]
            check_block(lookup, number, source.randint(1, 9))
            piece = lookup.piece(number, number + 1)
            assert (piece.first, piece.end) == (number, number + 1)
            assert content_of(lookup, piece) == memory[address]
            first, end = lookup.block_around(number, 4)
            assert lookup.piece(first, end).first == first
            end = source.randint(number, len(addresses))
            assert lookup.ranges(number, end) == runs_of(addresses[number:end])
        for address in source.sample(range(0, addresses[-1] + 2 * PAGE_SIZE, PAGE_SIZE), 20):
            assert lookup.first_from(address) == bisect_left(addresses, address)
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


def test_pieces_of_very_many_raw_pages(tmp_path: Path) -> None:
    content = b"".join(page(2 * number + 1) for number in range(300))
    lookup = open_lookup(str(Builder(tmp_path / "1").add(4, content).write()), NAME)
    piece = lookup.piece(0, 300, 1000)
    assert (piece.end, content_of(lookup, piece)) == (300, content)
    assert [lookup.piece(0, 300, room).end for room in (CHUNK_PAGES, 2, 1, 0, -9)] == [
        256,
        2,
        1,
        1,
        1,
    ]
    lookup.close()


def test_pieces_of_regions_have_room_for_one_at_least(tmp_path: Path) -> None:
    content = b"".join(map(page, range(40)))
    builder = Builder(tmp_path / "1", schema=Schema.SIZES).add(0, content, region=4)
    lookup = open_lookup(str(builder.write()), NAME)
    lookup.load_tables()
    assert [lookup.piece(0, 40, room).end for room in (-9, 0, 1, 4, 7, 8)] == [4, 4, 4, 4, 4, 8]
    assert [lookup.piece(2, 40, room).end for room in (1, 8, 1000)] == [4, 8, 40]
    lookup.close()


def test_a_parent_of_which_nothing_is_needed(tmp_path: Path) -> None:
    broken = Builder(tmp_path / "1").add(4, pages(1)).write()
    (broken / NAME).write_bytes(b"broken")
    folder = Builder(tmp_path / "2").add(5, pages(1)).refer(6, 1, PE_LAZY).write(parent="../1")
    lookup = open_lookup(str(folder), NAME)
    assert len(lookup.levels) == 1
    lookup.close()


def test_a_parent_of_which_only_lazy_pages_are_needed(tmp_path: Path) -> None:
    Builder(tmp_path / "1").add(4, pages(1, 2)).write()
    folder = Builder(tmp_path / "2").refer(4, 2, PE_PARENT | PE_LAZY).write(parent="../1")
    lookup = open_lookup(str(folder), NAME)
    assert list(all_pages(lookup).values()) == [page(1), page(2)]
    lookup.close()


def test_a_piece_ends_where_only_a_part_of_a_block_is_wanted(tmp_path: Path) -> None:
    first = Builder(tmp_path / "1", schema=Schema.SIZES)
    first.add(0, pages(1, 2, 3, 4), region=4).add(4, pages(5, 6, 7, 8), region=4).write()
    # Of the first block two pages, of the one behind it in the file all.
    folder = Builder(tmp_path / "2").refer(0, 2).refer(4, 4).write(parent="../1")
    lookup = open_lookup(str(folder), NAME)
    lookup.load_tables()
    assert lookup.piece(0, 6).end == 2
    assert b"".join(all_pages(lookup).values()) == pages(1, 2, 5, 6, 7, 8)
    lookup.close()


def test_chains_of_as_many_levels_as_there_can_be(tmp_path: Path) -> None:
    Builder(tmp_path / "1").add(5, pages(1)).write()
    for depth in range(2, 256):
        Builder(tmp_path / str(depth)).refer(5).write(parent=f"../{depth - 1}")
    lookup = open_lookup(str(tmp_path / "254"), NAME)
    assert list(lookup.level_of) == [253]
    assert stored_page(lookup, 0) == page(1)
    lookup.close()
    with pytest.raises(errors.ImageError, match="there is no parent with a"):
        open_lookup(str(tmp_path / "255"), NAME)


def test_pages_files_are_closed(tmp_path: Path) -> None:
    Builder(tmp_path / "1").add(5, pages(1)).write()
    good = Builder(tmp_path / "2").add(4, pages(1)).refer(5).write(parent="../1")
    bad = Builder(tmp_path / "3").add(4, pages(1)).refer(6).write(parent="../1")
    before = os.listdir("/proc/self/fd")
    open_lookup(str(good), NAME).close()
    with pytest.raises(errors.ImageError, match="not listed"):
        open_lookup(str(bad), NAME)
    assert os.listdir("/proc/self/fd") == before


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(
        errors.ImageError, match=r"cannot open the image directory .*ENOENT"
    ) as caught:
        open_lookup(str(tmp_path / "none"), NAME)
    assert caught.value.errno == errno.ENOENT


def test_which_level_has_a_run_and_what_the_dump_says_of_it(tmp_path: Path) -> None:
    first = Builder(tmp_path / "1").add(1, pages(1)).refer(2, 1, PE_LAZY)
    first.add(3, pages(3, 4)).write()
    second = Builder(tmp_path / "2").refer(0, 1, PE_LAZY).refer(1, 3)
    folder = second.refer(4, 1, PE_PARENT | PE_LAZY).add(5, pages(5)).write(parent="../1")
    lookup = open_lookup(str(folder), NAME)
    assert list(lookup.level_of) == [ELSEWHERE, 1, ELSEWHERE, 1, 1, 0]
    assert [lookup.run_pages(run) for run in range(len(lookup))] == [1] * 6
    assert list(lookup.flags_of) == [
        PE_LAZY,
        PE_PARENT,
        PE_PARENT | PE_LAZY,
        PE_PARENT,
        PE_PARENT | PE_LAZY,
        PE_PRESENT,
    ]
    # What is in no image is in no block either.
    assert lookup.block_around(2, 4) == (0, 4)
    lookup.close()


def test_a_page_that_only_the_source_process_has(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(1, pages(1)).refer(5, 3, PE_LAZY).write()
    lookup = open_lookup(str(folder), NAME)
    assert lookup.n_pages == 4
    assert list(lookup.level_of) == [0, ELSEWHERE]
    assert list(lookup.flags_of) == [PE_PRESENT, PE_LAZY]
    assert [lookup.block_around(number, 1) for number in (2, 3)] == [(2, 3), (3, 4)]
    with pytest.raises(errors.ImageError, match="page 0x6000 is in no image"):
        lookup.piece(2, 4)
    lookup.close()


@pytest.mark.parametrize(
    ("parent", "why"),
    [(".", "loop back to"), ("../1", "loop back to"), ("../gone", "there is no parent with a")],
)
def test_parents_that_are_none(tmp_path: Path, parent: str, why: str) -> None:
    Builder(tmp_path / "1").refer(5).write(parent="../2")
    folder = Builder(tmp_path / "2").refer(5).write(parent=parent)
    with pytest.raises(errors.ImageError, match=why):
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


@pytest.mark.parametrize(
    ("schema", "region"), [(Schema.NONE, None), (Schema.SIZES, None), (Schema.SIZES, 0)]
)
def test_payload_in_a_hole_is_lost_and_not_zeros(
    tmp_path: Path, schema: Schema, region: int | None
) -> None:
    memory = random.Random(5).randbytes(64 * PAGE_SIZE)
    folder = Builder(tmp_path / "1", schema=schema).add(4, memory, region=region).write()
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
