"""Chains of parents: every page is the dumped one, or there is an error that says why not."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helperd import errors
from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.images.chain import ancestors, resolve, walk, with_parents
from helperd.images.directory import ImageDirectory, pagemap_name
from helperd.images.extent import MAX_EXTENT_PAGES, Extent, read_pages
from helperd.images.inventory import Schema
from helperd.images.pagemap import PE_LAZY
from tests.conftest import ImageArchive
from tests.images.checkpoints import (
    ARCHIVES,
    Builder,
    Memory,
    assert_is_truth,
    load_dumps,
    memory_of,
)

ZERO = bytes(PAGE_SIZE)


def page(seed: int) -> bytes:
    """Return a page that compresses (even seeds) or does not (odd ones)."""
    source = random.Random(seed)
    if seed % 2:
        return source.randbytes(PAGE_SIZE)
    return (source.randbytes(16) * PAGE_SIZE)[:PAGE_SIZE]


def pages(*seeds: int) -> bytes:
    return b"".join(page(seed) for seed in seeds)


def extents_of(folder: Path, pid: int = 7) -> list[Extent]:
    return list(resolve(ImageDirectory(str(folder)), pid=pid))


def by_page(memory: Memory) -> dict[int, bytes]:
    return {address // PAGE_SIZE: content for address, content in memory.items()}


def check_shape(extents: list[Extent]) -> None:
    """Check what a restore client relies on."""
    end = 0
    for extent in extents:
        assert extent.vaddr >= end
        end = extent.vaddr + pages_to_bytes(extent.n_pages)
        assert 1 <= extent.n_pages <= MAX_EXTENT_PAGES
        if extent.region_pages == 0:
            assert extent.block_pages is None
            assert len(extent.sizes) == extent.n_pages
            assert not extent.partial
        else:
            assert extent.block_pages is not None
            assert len(extent.sizes) == len(extent.block_pages)
            assert all(1 <= n <= extent.region_pages for n in extent.block_pages)
            if extent.partial:
                assert len(extent.sizes) == 1
                assert extent.skip_pages + extent.n_pages <= extent.block_pages[0]
        if not extent.partial:
            assert extent.skip_pages == 0
        assert extent.offset + extent.payload_bytes <= os.path.getsize(extent.pages_path)


@pytest.mark.parametrize("name", ARCHIVES)
def test_real_checkpoints_resolve_to_the_dumped_bytes(
    image_archive: ImageArchive, name: str
) -> None:
    archive = image_archive(name)
    for dump in load_dumps(archive):
        assert_is_truth(archive / dump["dir"], dump)
        for process in dump["processes"]:
            check_shape(extents_of(archive / dump["dir"], process["pid"]))


@pytest.mark.parametrize("name", ["criu-perpage", "criu-region256k", "criu-fragmented"])
def test_tables_are_those_of_the_recorded_restore(image_archive: ImageArchive, name: str) -> None:
    archive = image_archive(name)
    requests = json.loads((archive / "requests.json").read_text())["requests"]
    counts = {"zero": 0, "raw": 0, "lz4": 0}
    n_pages = n_bytes = 0
    for extent in extents_of(archive / "images", requests[0]["remote_pid"]):
        n_pages += extent.n_pages
        n_bytes += extent.payload_bytes
        for index, size in enumerate(extent.sizes):
            block_pages = 1 if extent.block_pages is None else extent.block_pages[index]
            raw = size == pages_to_bytes(block_pages)
            counts["zero" if size == 0 else "raw" if raw else "lz4"] += 1
    for kind, count in counts.items():
        assert count == sum(request["blocks"][kind] for request in requests)
    assert n_pages == sum(request["n_pages"] for request in requests)
    assert n_bytes == sum(request["total_compressed_size"] for request in requests)


def test_a_directory_without_inventory_is_read_by_its_entries(
    image_archive: ImageArchive, tmp_path: Path
) -> None:
    images = image_archive("criu-perpage") / "images"
    for name in ("pagemap-26514.img", "pages-1.img"):
        (tmp_path / name).symlink_to(images / name)
    assert memory_of(tmp_path, pid=26514) == memory_of(images, pid=26514)


def test_an_uncompressed_directory_without_inventory_is_read(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(5, pages(1, 2)).write()
    (folder / "inventory.img").unlink()
    assert ImageDirectory(str(folder)).inventory is None
    assert by_page(memory_of(folder, pid=7)) == {5: page(1), 6: page(2)}


def test_one_entry_of_the_child_spans_several_of_the_parent(tmp_path: Path) -> None:
    first = Builder(tmp_path / "1").add(10, pages(1, 2)).add(12, pages(3)).add(13, pages(4, 5))
    first.write()
    second = Builder(tmp_path / "2").refer(11, 3).add(14, pages(9))
    second.write(parent="../1")
    memory = by_page(memory_of(tmp_path / "2", pid=7))
    assert memory == {11: page(2), 12: page(3), 13: page(4), 14: page(9)}


def test_each_level_knows_its_place(tmp_path: Path) -> None:
    Builder(tmp_path / "1").add(10, pages(1)).write()
    Builder(tmp_path / "2").refer(10).add(11, pages(2)).write(parent="../1")
    Builder(tmp_path / "3").refer(10, 2).add(12, pages(3)).write(parent="../2")
    runs = walk(ImageDirectory(str(tmp_path / "3")), pagemap_name(pid=7))
    assert [run.level.depth for run in runs] == [2, 1, 0]


def test_parents_come_before_their_children_and_once(tmp_path: Path) -> None:
    for level in (1, 2, 3):
        builder = Builder(tmp_path / f"{level}").add(10, pages(level))
        builder.write(parent=f"../{level - 1}" if level > 1 else None)
    folders = [str(tmp_path / f"{level}") for level in (1, 2, 3)]
    assert [level.path for level in ancestors(ImageDirectory(folders[2]))] == folders[::-1]
    assert with_parents([folders[1], folders[2]]) == folders


def test_a_pages_file_may_be_longer_than_what_is_wanted_of_it(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(10, pages(1)).write()
    with (folder / "pages-1.img").open("ab") as file:
        file.write(page(2))
    assert by_page(memory_of(folder, pid=7)) == {10: page(1)}


def test_a_page_that_only_the_parent_has_is_stale(tmp_path: Path) -> None:
    Builder(tmp_path / "1").add(10, pages(1, 2, 3)).write()
    Builder(tmp_path / "2").refer(10).add(12, pages(8)).write(parent="../1")
    assert by_page(memory_of(tmp_path / "2", pid=7)) == {10: page(1), 12: page(8)}


def test_the_same_process_may_have_another_pages_id_in_each_level(tmp_path: Path) -> None:
    Builder(tmp_path / "1", pages_id=4).add(10, pages(1)).write()
    Builder(tmp_path / "2", pages_id=9).refer(10).write(parent="../1")
    (extent,) = extents_of(tmp_path / "2")
    assert extent.pages_path == str(tmp_path / "1" / "pages-4.img")


def test_parts_of_a_region_are_partial_extents(tmp_path: Path) -> None:
    content = pages(2, 4, 6, 8, 10, 12, 14, 16, 18, 20)
    Builder(tmp_path / "1", schema=Schema.SIZES).add(100, content, region=4).write()
    second = Builder(tmp_path / "2").refer(101, 2)  # the middle of block 0
    second.refer(104, 2)  # the start of block 1
    second.refer(107, 3)  # the end of block 1, all of block 2 (the short one)
    second.write(parent="../1")
    extents = extents_of(tmp_path / "2")
    check_shape(extents)
    shapes = [
        (e.vaddr // PAGE_SIZE, e.n_pages, e.skip_pages, list(e.block_pages or ()), e.partial)
        for e in extents
    ]
    assert shapes == [
        (101, 2, 1, [4], True),
        (104, 2, 0, [4], True),
        (107, 1, 3, [4], True),
        (108, 2, 0, [2], False),
    ]
    memory = by_page(memory_of(tmp_path / "2", pid=7))
    assert memory == {
        100 + at: content[pages_to_bytes(at) : pages_to_bytes(at + 1)]
        for at in (1, 2, 4, 5, 7, 8, 9)
    }


@pytest.mark.parametrize("region", [None, 0, 1, 3, 1000, 1024])
def test_large_entries_come_in_bounded_extents(tmp_path: Path, region: int | None) -> None:
    content = pages(*range(0, 20, 2)) * 250
    schema = Schema.NONE if region is None else Schema.SIZES
    Builder(tmp_path / "1", schema=schema).add(1, content, region=region).write()
    extents = extents_of(tmp_path / "1")
    check_shape(extents)
    assert len(extents) >= 3
    assert b"".join(run for _, run in read_pages(extents)) == content


def test_both_schemas_and_aligned_payloads_in_one_chain(tmp_path: Path) -> None:
    Builder(tmp_path / "1").add(1, pages(1, 2, 3, 4)).write()
    second = Builder(tmp_path / "2", schema=Schema.BLOCKS)
    second.add(1, pages(12), region=1).refer(2).add(3, pages(14, 16), region=64, aligned=True)
    second.write(parent="../1")
    third = Builder(tmp_path / "3", schema=Schema.SIZES)
    third.refer(1, 3).add(4, pages(21) + ZERO, region=0).write(parent="../2")
    memory = by_page(memory_of(tmp_path / "3", pid=7))
    assert memory == {1: page(12), 2: page(2), 3: page(14), 4: page(21), 5: ZERO}


def test_a_chain_longer_than_any_recursion_or_link_limit(tmp_path: Path) -> None:
    Builder(tmp_path / "0").add(5, pages(3)).write()
    first = Builder(tmp_path / "1").refer(5).write(parent="../0")
    for level in range(2, 1200):
        folder = tmp_path / str(level)
        folder.mkdir()
        for name in ("inventory.img", "pagemap-7.img"):
            os.link(first / name, folder / name)
        (folder / "parent").symlink_to(f"../{level - 1}")
    assert by_page(memory_of(tmp_path / "1199", pid=7)) == {5: page(3)}


def fail_at_page(folder: Path, first_good: bytes, message: str) -> None:
    """Check that the first extent can be used, and that the next one raises an ImageError."""
    found = read_pages(resolve(ImageDirectory(str(folder)), pid=7))
    assert next(found)[1] == first_good
    with pytest.raises(errors.ImageError, match=message) as caught:
        next(found)
    assert "\n" not in str(caught.value)


def child(tmp_path: Path, parent: str | None) -> Path:
    return Builder(tmp_path / "2").add(1, pages(1)).refer(5).write(parent=parent)


def test_a_missing_parent_is_said_when_the_first_page_needs_it(tmp_path: Path) -> None:
    folder = child(tmp_path, None)
    fail_at_page(folder, page(1), r"page 0x5000 is in the parent, but .* has no parent link")


def test_a_parent_link_to_nowhere(tmp_path: Path) -> None:
    fail_at_page(child(tmp_path, "../gone"), page(1), "cannot follow the parent link .*ENOENT")


def test_a_parent_link_to_itself(tmp_path: Path) -> None:
    fail_at_page(child(tmp_path, "parent"), page(1), "cannot follow the parent link .*ELOOP")


def test_a_parent_link_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    fail_at_page(child(tmp_path, "../file"), page(1), "cannot list .*ENOTDIR")


@pytest.mark.parametrize("parent", [".", "../1"])
def test_a_loop_of_parents(tmp_path: Path, parent: str) -> None:
    Builder(tmp_path / "1").refer(5).write(parent="../2")
    fail_at_page(child(tmp_path, parent), page(1), "make a loop back to")


def test_a_parent_without_this_pagemap(tmp_path: Path) -> None:
    Builder(tmp_path / "1", pid=8).add(5, pages(1)).write()
    fail_at_page(child(tmp_path, "../1"), page(1), r"page 0x5000 .* has no pagemap-7.img")


def test_a_parent_without_the_page(tmp_path: Path) -> None:
    Builder(tmp_path / "1").add(4, pages(1)).add(6, pages(1)).write()
    fail_at_page(child(tmp_path, "../1"), page(1), "page 0x5000 is needed from here but not listed")


def test_a_parent_with_a_short_pages_file(tmp_path: Path) -> None:
    Builder(tmp_path / "1").add(4, pages(1, 2)).write()
    os.truncate(tmp_path / "1" / "pages-1.img", 2 * PAGE_SIZE - 1)
    fail_at_page(child(tmp_path, "../1"), page(1), "ends at offset 8191, its pagemap .* needs 8192")


def test_a_broken_parent_does_not_matter_when_it_is_not_needed(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "2").add(1, pages(1)).write(parent="../gone")
    assert by_page(memory_of(folder, pid=7)) == {1: page(1)}


@pytest.mark.parametrize("flags", [PE_LAZY, 0])
def test_pages_that_are_stored_nowhere(tmp_path: Path, flags: int) -> None:
    folder = Builder(tmp_path / "2").add(1, pages(1)).refer(5, flags=flags).write()
    fail_at_page(folder, page(1), "page 0x5000 is stored nowhere")


def test_a_corrupt_block_names_its_page(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "1", schema=Schema.SIZES)
    builder.add(1, ZERO * 4 + pages(2, 4), region=2)
    assert builder.entries[0].sizes is not None
    size = builder.entries[0].sizes[2]
    builder.payload[:] = b"\xff" * size
    folder = builder.write()
    with pytest.raises(errors.CorruptBlock, match="block of page 0x5000 at offset 0"):
        memory_of(folder, pid=7)


def test_a_pages_file_that_shrinks_while_it_is_read(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(1, pages(1)).add(3, pages(2)).write()
    found = read_pages(resolve(ImageDirectory(str(folder)), pid=7))
    next(found)
    os.truncate(folder / "pages-1.img", PAGE_SIZE + 10)
    with pytest.raises(errors.ShortImage, match="ends at offset 4106"):
        next(found)


def test_a_missing_directory_pagemap_or_argument(tmp_path: Path) -> None:
    with pytest.raises(errors.ImageError, match=r"cannot list .*ENOENT"):
        ImageDirectory(str(tmp_path / "gone"))
    images = ImageDirectory(str(tmp_path))
    with pytest.raises(errors.ImageError, match=r"pagemap-shmem-3.img: ENOENT"):
        list(resolve(images, shmem_id=3))
    for arguments in ({}, {"pid": 1, "shmem_id": 1}):
        with pytest.raises(errors.UsageError):
            list(resolve(images, **arguments))
    assert pagemap_name(shmem_id=0) == "pagemap-shmem-0.img"


def test_only_names_that_criu_gives_are_pagemaps(tmp_path: Path) -> None:
    for name in ("12", "shmem-3", "007", "x", "-1", "1" * 70, "\N{SUPERSCRIPT TWO}", "9.img"):
        (tmp_path / f"pagemap-{name}.img").touch()
    images = ImageDirectory(str(tmp_path))
    assert (images.pids, images.shmem_ids) == ([12], [3])


@st.composite
def chains(draw: st.DrawFn) -> list[tuple[Schema, list[tuple[int, int, str, int | None]]]]:
    """Draw levels: a schema, and runs of (first page, pages, kind, region)."""
    levels: list[tuple[Schema, list[tuple[int, int, str, int | None]]]] = []
    known: set[int] = set()
    for depth in range(draw(st.integers(1, 4))):
        schema = draw(st.sampled_from(Schema))
        runs: list[tuple[int, int, str, int | None]] = []
        at = 0
        while at < 40:
            at += draw(st.integers(0, 3))
            n_pages = draw(st.integers(1, 12))
            in_parent = depth > 0 and known.issuperset(range(at, at + n_pages))
            if in_parent and draw(st.integers(0, 3)):
                runs.append((at, n_pages, "parent", None))
            else:
                region = None
                if schema is not Schema.NONE and draw(st.integers(0, 3)):
                    region = draw(st.integers(1 if schema is Schema.BLOCKS else 0, 5))
                runs.append((at, n_pages, "data", region))
            at += n_pages
        known = {page for first, n, _, _ in runs for page in range(first, first + n)}
        levels.append((schema, runs))
    return levels


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield new folders, one for each example of a property."""
    folder = tmp_path_factory.mktemp("chains")
    return (folder / str(number) for number in range(1 << 30))


@settings(max_examples=120)
@given(levels=chains(), seed=st.integers(0, 1 << 30))
def test_any_chain_resolves_to_what_was_put_into_it(
    numbered: Iterator[Path],
    levels: list[tuple[Schema, list[tuple[int, int, str, int | None]]]],
    seed: int,
) -> None:
    root = next(numbered)
    root.mkdir()
    memory: dict[int, bytes] = {}
    source = random.Random(seed)
    for depth, (schema, runs) in enumerate(levels):
        builder = Builder(root / str(depth), schema=schema)
        now: dict[int, bytes] = {}
        for first, n_pages, kind, region in runs:
            if kind == "parent":
                builder.refer(first, n_pages)
                now |= {at: memory[at] for at in range(first, first + n_pages)}
            else:
                content = [
                    ZERO if source.random() < 0.3 else page(source.randrange(50))
                    for _ in range(n_pages)
                ]
                builder.add(first, b"".join(content), region=region)
                now |= dict(zip(range(first, first + n_pages), content, strict=True))
        builder.write(parent=f"../{depth - 1}" if depth else None)
        memory = now
        check_shape(extents_of(builder.folder))
        assert by_page(memory_of(builder.folder, pid=7)) == memory
