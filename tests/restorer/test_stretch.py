"""Many runs of pages at once: the same bytes at the same addresses, in few requests."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from target import Target

from helperd import errors
from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.codec.block import decode_block
from helperd.images.chain import resolve
from helperd.images.directory import ImageDirectory, pagemap_name
from helperd.images.extent import Extent, read_extent, read_pages
from helperd.images.inventory import Schema
from helperd.images.sweep import sweep
from helperd.restorer import inject
from helperd.restorer import stretch as module
from helperd.restorer.stretch import Scattered, stretches
from helperd.wire.pipe import Request
from tests.images.checkpoints import Builder, Memory
from tests.images.test_chain import chains, page

NAME = pagemap_name(pid=7)
BASE = 0x10_0000_0000
Drawn = list[tuple[Schema, list[tuple[int, int, str, int | None]]]]
#: An entry that is not compressed, one per page, one in regions of 16 pages.
KINDS = [(Schema.NONE, None), (Schema.SIZES, 0), (Schema.SIZES, 16), (Schema.BLOCKS, 16)]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield new folders, one for each example of a property."""
    folder = tmp_path_factory.mktemp("stretches")
    return (folder / str(number) for number in range(1 << 30))


def carry_out(request: Request, payload: bytes, memory: Memory, base: int) -> None:
    """Do what a helper does, whose pages image has these bytes."""
    content, offset = b"", request.offs
    pages = request.block_pages or (1,) * request.n_blocks
    for size, count in zip(request.sizes, pages, strict=True):
        stored = payload[offset : offset + size]
        content += decode_block(memoryview(stored), pages_to_bytes(count))
        offset += size
    at = 0
    for address, length in zip(request.iovs[0::2], request.iovs[1::2], strict=True):
        for page_address in range(address, address + length, PAGE_SIZE):
            assert page_address - base not in memory
            memory[page_address - base] = content[at : at + PAGE_SIZE]
            at += PAGE_SIZE


@settings(max_examples=200, deadline=None)
@given(
    levels=chains(),
    seed=st.integers(0, 1 << 30),
    fewest=st.integers(1, 3),
    limits=st.tuples(st.integers(1, 5), st.integers(5, 12), st.integers(2, 6), st.integers(5, 30)),
    gather=st.booleans(),
    base=st.sampled_from([0, BASE]),
)
def test_any_chain_becomes_the_memory_that_was_dumped(
    numbered: Iterator[Path],
    levels: Drawn,
    seed: int,
    fewest: int,
    limits: tuple[int, int, int, int],
    gather: bool,
    base: int,
) -> None:
    root = next(numbered)
    root.mkdir()
    source = random.Random(seed)
    expected: Memory = {}
    for depth, (schema, runs) in enumerate(levels):
        builder = Builder(root / str(depth), schema=schema)
        memory: Memory = {}
        for first, n_pages, kind, region in runs:
            addresses = [pages_to_bytes(number) for number in range(first, first + n_pages)]
            if kind == "parent":
                builder.refer(first, n_pages)
                memory.update((address, expected[address]) for address in addresses)
            else:
                content = [page(source.randrange(50)) for _ in addresses]
                builder.add(first, b"".join(content), region=region)
                memory.update(zip(addresses, content, strict=True))
        builder.write(parent=f"../{depth - 1}" if depth else None)
        expected = memory
    piece_pages, gathered_pages, max_iovecs, max_pages = limits
    found: Memory = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MANY", fewest)
        patch.setattr(module, "FEWEST", fewest)
        patch.setattr(module, "MAX_PIECE_BYTES", piece_pages * PAGE_SIZE)
        patch.setattr(module, "MAX_GATHERED_PAGES", gathered_pages)
        patch.setattr(module, "MAX_RESTORER_IOVECS", max_iovecs)
        for held in sweep(ImageDirectory(str(builder.folder)), NAME):
            payload = Path(held.level.pages_path).read_bytes()
            for part in stretches(held, gather=gather):
                if isinstance(part, Extent):
                    with open(held.level.pages_path, "rb") as stream:
                        content = [read_extent(part, stream.fileno())]
                    for at in range(part.n_pages):
                        found[part.vaddr + at * PAGE_SIZE] = content[0][at * PAGE_SIZE :][
                            :PAGE_SIZE
                        ]
                    continue
                together = payload
                if isinstance(part, Scattered):
                    assert gather
                    assert len(part.spans) >= fewest
                    assert max(size for _, size in part.spans) <= piece_pages * PAGE_SIZE
                    spans = [payload[offset : offset + size] for offset, size in part.spans]
                    together = b"before" + b"".join(spans)
                    alone = dict(read_pages(part.extents()))
                    part = part.gathered(len(b"before"))
                requests = list(part.requests(7, base=base, max_pages=max_pages))
                for request in requests:
                    assert request.remote_pid == 7
                    assert request.nr_iovs <= max_iovecs
                    assert request.n_pages <= max_pages or request.n_blocks == 1
                    carry_out(request, together, found, base)
                if together is not payload:
                    assert sum(request.n_pages for request in requests) <= gathered_pages
                    for address, content_of in alone.items():
                        assert found[address] == content_of[:PAGE_SIZE]
    assert found == expected


@pytest.mark.parametrize(("schema", "region"), KINDS)
def test_many_entries_are_few_requests(
    target: Target, tmp_path: Path, schema: Schema, region: int | None
) -> None:
    """The parent has every page, in entries of one and of two; the child every other entry."""
    parent, child = Builder(tmp_path / "1", schema=schema), Builder(tmp_path / "2", schema=schema)
    expected: Memory = {}
    for index in range(2200):
        number, count = 0x10000 + index * 4, 1 + index % 3 % 2
        old, new = page(index % 7) * count, page(index % 11) * count
        parent.add(number, old, region=region)
        if index % 2:
            child.refer(number, count)
        else:
            child.add(number, new, region=region)
        content = old if index % 2 else new
        for at in range(count):
            expected[pages_to_bytes(number + at)] = content[at * PAGE_SIZE :][:PAGE_SIZE]
    parent.write()
    child.write(parent="../1")
    target.map_anonymous(pages_to_bytes(0x10000), pages_to_bytes(2200 * 4))
    report = inject(tmp_path / "2", target.pid, image_pid=7)
    assert {address: target.read(address, PAGE_SIZE) for address in expected} == expected
    assert report.pages == len(expected)
    # 1100 iovecs of each level, of which a request has at most 1023.
    assert report.requests == 4


def scattered_parent(folder: Path, n_entries: int = 200, *, raw: bool = False) -> Path:
    """Write a chain whose child has every other page of its parent; return the child."""
    parent, child = Builder(folder / "1", schema=Schema.SIZES), Builder(folder / "2")
    for index in range(n_entries):
        parent.add(0x10000 + index, page(2 * index + raw), region=0)
        if index % 2:
            child.refer(0x10000 + index)
        else:
            child.add(0x10000 + index, page(index))
    parent.write()
    return child.write(parent="../1")


def test_a_corrupt_block_among_scattered_ones_is_named(target: Target, tmp_path: Path) -> None:
    child = scattered_parent(tmp_path)
    target.map_anonymous(pages_to_bytes(0x10000), pages_to_bytes(200))
    (extent,) = (
        it for it in resolve(ImageDirectory(str(child)), pid=7) if it.vaddr == 0x10065 * PAGE_SIZE
    )
    with open(extent.pages_path, "r+b") as stream:
        stream.seek(extent.offset)
        stream.write(b"\xff" * extent.payload_bytes)
    where = rf"1/pages-1\.img: block of page 0x10065000 at offset {extent.offset}:"
    with pytest.raises(errors.CorruptBlock, match=where):
        inject(child, target.pid, image_pid=7)


def test_a_hole_among_scattered_blocks_fails_the_restore(target: Target, tmp_path: Path) -> None:
    child = scattered_parent(tmp_path, 2000)
    target.map_anonymous(pages_to_bytes(0x10000), pages_to_bytes(2000))
    path = tmp_path / "1" / "pages-1.img"
    content = path.read_bytes()
    start = len(content) // 2 // PAGE_SIZE * PAGE_SIZE
    with open(path, "wb") as stream:
        stream.write(content[:start])
        stream.seek(start + PAGE_SIZE)
        stream.write(content[start + PAGE_SIZE :])
    assert os.stat(path).st_blocks * 512 < len(content)
    with pytest.raises(errors.HelperFailed, match="lies in a hole"):
        inject(child, target.pid, image_pid=7)


def test_scattered_blocks_are_destroyed_like_others(target: Target, tmp_path: Path) -> None:
    child = scattered_parent(tmp_path, raw=True)
    target.map_anonymous(pages_to_bytes(0x10000), pages_to_bytes(200))
    inject(child, target.pid, image_pid=7, auto_dedup=True)
    for index in (1, 101, 199):
        assert target.read(pages_to_bytes(0x10000 + index), PAGE_SIZE) == page(2 * index + 1)
    status = os.stat(tmp_path / "1" / "pages-1.img")
    # What the child has itself was not asked for.
    assert status.st_blocks * 512 == status.st_size // 2
