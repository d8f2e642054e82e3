"""Pagemaps gone through as columns: it is the same as entry by entry."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helperd import errors
from helperd.blocks import PAGE_SIZE
from helperd.codec.chunk import Chunk
from helperd.images import sweep as module
from helperd.images.chain import walk
from helperd.images.directory import ImageDirectory, pagemap_name
from helperd.images.inventory import Schema
from helperd.images.pagesfile import plan_payload
from helperd.images.ranges import Ranges
from helperd.images.sweep import plan_pagemap, sweep
from tests.images.checkpoints import Builder
from tests.images.test_chain import chains, page

NAME = pagemap_name(pid=7)
Drawn = list[tuple[Schema, list[tuple[int, int, str, int | None]]]]


@pytest.fixture(scope="module")
def numbered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Yield new folders, one for each example of a property."""
    folder = tmp_path_factory.mktemp("sweeps")
    return (folder / str(number) for number in range(1 << 30))


def blocks_of(chunks: Iterator[Chunk]) -> list[tuple[int, int, int, int, int]]:
    """Return offset, size, pages, number and address of each block, however they are chunked."""
    found = []
    for chunk in chunks:
        assert chunk.payload == sum(chunk.sizes)
        addresses = [
            address + PAGE_SIZE * index for address, count in chunk.ranges for index in range(count)
        ]
        assert len(addresses) == chunk.n_pages
        offset, at = chunk.offset, 0
        for size, count in zip(
            chunk.sizes, chunk.block_pages or (1,) * len(chunk.sizes), strict=True
        ):
            found.append((offset, size, count, chunk.first_page + at, addresses[at]))
            offset, at = offset + size, at + count
        assert at == chunk.n_pages
    return found


@settings(max_examples=150, deadline=None)
@given(levels=chains(), seed=st.integers(0, 1 << 30), fewest=st.integers(1, 4))
def test_any_chain_is_the_same_by_columns(
    numbered: Iterator[Path], levels: Drawn, seed: int, fewest: int
) -> None:
    root = next(numbered)
    root.mkdir()
    source = random.Random(seed)
    for depth, (schema, runs) in enumerate(levels):
        builder = Builder(root / str(depth), schema=schema)
        for first, n_pages, kind, region in runs:
            if kind == "parent":
                builder.refer(first, n_pages)
            else:
                content = [page(source.randrange(50)) for _ in range(n_pages)]
                builder.add(first, b"".join(content), region=region)
        builder.write(parent=f"../{depth - 1}" if depth else None)
        directory = ImageDirectory(str(builder.folder))
        one_by_one = [
            (run.first, run.end, run.level.depth, run.entry) for run in walk(directory, NAME)
        ]
        by_columns = [
            (start, end, held.level.depth, held.level.pagemap.entry(row))
            for held in sweep(directory, NAME)
            for start, end, row in zip(held.starts, held.ends, held.entries, strict=True)
        ]
        assert sorted(by_columns, key=lambda run: run[0]) == one_by_one
        pagemap = directory.pagemap_by_name(NAME)
        assert pagemap.n_blocks == sum(it.n_blocks for it in pagemap.entries if it.present)
        assert pagemap.has_raw == any(it.is_raw for it in pagemap.entries)
        assert pagemap.largest_region == max(it.region_pages for it in pagemap.entries)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(module, "_FEWEST", fewest)
            planned = blocks_of(plan_pagemap(pagemap))
        assert planned == blocks_of(plan_payload(pagemap.entries))


def test_many_entries_of_different_lengths_share_chunks(tmp_path: Path) -> None:
    for schema, region in ((Schema.NONE, None), (Schema.SIZES, None), (Schema.SIZES, 16)):
        builder = Builder(tmp_path / f"{schema}{region}", schema=schema)
        at = 0
        source = random.Random(1)
        for index in range(400):
            n_pages = source.randrange(1, 12)
            builder.add(at, page(index % 6) * n_pages, region=region)
            at += n_pages + index % 3
        pagemap = ImageDirectory(str(builder.write())).pagemap_by_name(NAME)
        chunks = list(plan_pagemap(pagemap))
        # With no more pages than fit, of as many entries as can be had.
        assert len(chunks) < 14
        assert max(chunk.n_pages for chunk in chunks) <= 256
        assert blocks_of(iter(chunks)) == blocks_of(plan_payload(pagemap.entries))


def test_what_is_wrong_is_told_of_the_lowest_page(tmp_path: Path) -> None:
    Builder(tmp_path / "1").add(10, page(1)).add(20, page(2)).write()
    Builder(tmp_path / "2").refer(10).refer(15).refer(20).write(parent="../1")
    directory = ImageDirectory(str(tmp_path / "2"))
    with pytest.raises(errors.ImageError, match="page 0xf000 is needed from here"):
        sweep(directory, NAME)
    Builder(tmp_path / "3").refer(10).refer(15).write()
    with pytest.raises(errors.ImageError, match="page 0xa000 is in the parent"):
        sweep(ImageDirectory(str(tmp_path / "3")), NAME)


@given(
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=8),
    st.integers(0, 60),
    st.integers(1, 9),
)
def test_what_a_set_covers(pairs: list[tuple[int, int]], start: int, length: int) -> None:
    taken = {at for first, count in pairs for at in range(first, first + count)}
    in_order = Ranges((at, at + 1) for at in sorted(taken))
    assert list(Ranges.of([at for at, _ in in_order], [end for _, end in in_order])) == list(
        in_order
    )
    singles = sorted(taken)
    assert list(Ranges.of(singles, [at + 1 for at in singles])) == list(in_order)
    wanted = set(range(start, start + length))
    expected = True if wanted <= taken else None if wanted & taken else False
    assert in_order.covers([start], [start + length]) == [expected]
