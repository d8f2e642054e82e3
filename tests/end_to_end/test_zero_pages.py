"""Zero pages: zero afterwards whatever was there, untouched where nothing was."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from target import Target

from helperd.blocks import PAGE_SIZE
from tests.support.helper import HelperProcess
from tests.support.image import BlockImage, text
from tests.support.requests import ADDRESS, RawRequest

MIB = 1 << 20
HUGE_PAGES = 512


def all_zero(image: BlockImage, n_pages: int) -> None:
    for _ in range(n_pages):
        image.add_zero()


def all_raw_zeros(image: BlockImage, n_pages: int) -> None:
    for _ in range(n_pages):
        image.add_raw(bytes(PAGE_SIZE))


def all_lz4_zeros(image: BlockImage, n_pages: int) -> None:
    for _ in range(n_pages):
        image.add_lz4(bytes(PAGE_SIZE))


def among_data(image: BlockImage, n_pages: int) -> None:
    for page in range(n_pages):
        if page % 3:
            image.add_zero()
        else:
            image.add_lz4(text(1, seed=page))


def zero_regions(image: BlockImage, n_pages: int) -> None:
    image.add_zero(n_pages // 2)
    image.add_raw(bytes(PAGE_SIZE * 2))
    image.add_lz4(bytes(PAGE_SIZE) + text(2) + bytes(PAGE_SIZE))
    image.add_zero(n_pages - image.n_pages)


def untouched_private(target: Target, n_bytes: int, _: Path) -> None:
    target.map_anonymous(ADDRESS, n_bytes)


def filled_private(target: Target, n_bytes: int, _: Path) -> None:
    target.map_anonymous(ADDRESS, n_bytes)
    target.fill(ADDRESS, n_bytes, 0xAA)


def partly_filled_private(target: Target, n_bytes: int, _: Path) -> None:
    target.map_anonymous(ADDRESS, n_bytes)
    for at in range(0, n_bytes, 5 * PAGE_SIZE):
        target.fill(ADDRESS + at, PAGE_SIZE, 0xAA)


def untouched_huge_pages(target: Target, n_bytes: int, _: Path) -> None:
    target.map_anonymous(ADDRESS, n_bytes)
    target.advise(ADDRESS, n_bytes, hugepage=True)


def partly_filled_huge_pages(target: Target, n_bytes: int, folder: Path) -> None:
    partly_filled_private(target, n_bytes, folder)
    target.advise(ADDRESS, n_bytes, hugepage=True)


def filled_huge_pages(target: Target, n_bytes: int, _: Path) -> None:
    target.map_anonymous(ADDRESS, n_bytes)
    target.advise(ADDRESS, n_bytes, hugepage=True)
    target.fill(ADDRESS, n_bytes, 0xAA)


def filled_shared(target: Target, n_bytes: int, _: Path) -> None:
    target.map_anonymous(ADDRESS, n_bytes, shared=True)
    target.fill(ADDRESS, n_bytes, 0xAA)


def private_file(target: Target, n_bytes: int, folder: Path) -> None:
    path = folder / "file"
    path.write_bytes(b"\xaa" * n_bytes)
    target.map_file(ADDRESS, n_bytes, path)


def file_between_anonymous(target: Target, n_bytes: int, folder: Path) -> None:
    third = n_bytes // 3 // PAGE_SIZE * PAGE_SIZE
    path = folder / "file"
    path.write_bytes(b"\xaa" * third)
    target.map_anonymous(ADDRESS, third)
    target.map_file(ADDRESS + third, third, path)
    target.map_anonymous(ADDRESS + 2 * third, n_bytes - 2 * third)


@pytest.mark.parametrize(
    "memory",
    [
        untouched_private,
        filled_private,
        partly_filled_private,
        untouched_huge_pages,
        partly_filled_huge_pages,
        filled_huge_pages,
        filled_shared,
        private_file,
        file_between_anonymous,
    ],
)
@pytest.mark.parametrize("blocks", [all_zero, all_raw_zeros, all_lz4_zeros, among_data])
@pytest.mark.parametrize("region_pages", [0, 1], ids=["perpage", "region"])
def test_every_page_holds_the_dumped_bytes(
    target: Target,
    tmp_path: Path,
    memory: Callable[[Target, int, Path], None],
    blocks: Callable[[BlockImage, int], None],
    region_pages: int,
) -> None:
    image = BlockImage()
    blocks(image, 1100)  # more than two huge pages
    memory(target, len(image.memory), tmp_path)
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        request = image.request(target.pid, ADDRESS, region_pages=region_pages)
        assert helper.ask(request) == image.answer
        assert helper.finish().status == 0
    assert target.read(ADDRESS, len(image.memory)) == image.memory


@pytest.mark.parametrize(
    "memory", [untouched_private, filled_private, filled_shared, file_between_anonymous]
)
def test_zero_pages_of_regions(
    target: Target, tmp_path: Path, memory: Callable[[Target, int, Path], None]
) -> None:
    image = BlockImage()
    zero_regions(image, 600)
    memory(target, len(image.memory), tmp_path)
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS, region_pages=1024)) == image.answer
        assert helper.finish().status == 0
    assert target.read(ADDRESS, len(image.memory)) == image.memory
    assert image.answer == 2 * PAGE_SIZE


def test_fresh_memory_stays_untouched(target: Target, tmp_path: Path) -> None:
    n_pages = 64 * MIB // PAGE_SIZE
    image = BlockImage()
    all_zero(image, n_pages)
    target.map_anonymous(ADDRESS, len(image.memory))
    before = target.rss_bytes()
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == 0
        assert helper.finish().status == 0
    assert not any(target.present_pages(ADDRESS, n_pages))
    assert target.rss_bytes() - before < MIB
    assert target.read(ADDRESS, len(image.memory)) == image.memory


def test_only_data_is_populated(target: Target, tmp_path: Path) -> None:
    image = BlockImage()
    among_data(image, 999)
    target.map_anonymous(ADDRESS, len(image.memory))
    target.advise(ADDRESS, len(image.memory), hugepage=False)
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert helper.finish().status == 0
    assert target.present_pages(ADDRESS, image.n_pages) == [True, False, False] * 333


def test_shared_memory_that_another_process_filled(target: Target, tmp_path: Path) -> None:
    """A fork inherits shared memory without page table entries: populated, yet not present."""
    image = BlockImage()
    all_zero(image, 64)
    filled_shared(target, len(image.memory), tmp_path)
    child = target.fork()
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        assert helper.ask(image.request(child, ADDRESS)) == 0
        assert helper.finish().status == 0
    assert target.read(ADDRESS, len(image.memory), pid=child) == image.memory


def test_private_memory_is_zeroed_in_the_named_process_only(target: Target, tmp_path: Path) -> None:
    image = BlockImage()
    all_zero(image, 64)
    filled_private(target, len(image.memory), tmp_path)
    child = target.fork()
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        assert helper.ask(image.request(child, ADDRESS)) == 0
        assert helper.finish().status == 0
    assert target.read(ADDRESS, len(image.memory), pid=child) == image.memory
    assert target.read(ADDRESS, len(image.memory)) == b"\xaa" * len(image.memory)


def test_mappings_that_change_between_requests(target: Target, tmp_path: Path) -> None:
    image = BlockImage()
    all_zero(image, 64)
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        request = image.request(target.pid, ADDRESS)
        assert helper.ask(request) == 0
        for memory in (private_file, filled_private, filled_shared, private_file):
            target.unmap(ADDRESS, len(image.memory))
            memory(target, len(image.memory), tmp_path)
            # Not looked at before: reading one page of a file makes its neighbours present, too.
            assert helper.ask(request) == 0
            assert target.read(ADDRESS, len(image.memory)) == image.memory
        assert helper.finish().status == 0


def test_neighbours_keep_their_bytes(target: Target, tmp_path: Path) -> None:
    n_pages = HUGE_PAGES * 2
    target.map_anonymous(ADDRESS, n_pages * PAGE_SIZE)
    target.fill(ADDRESS, n_pages * PAGE_SIZE, 0xAA)
    odd = [(ADDRESS + page * PAGE_SIZE, PAGE_SIZE) for page in range(1, n_pages, 2)]
    request = RawRequest(target.pid, 0, sizes=[0] * len(odd), iovs=odd)
    with HelperProcess(BlockImage().write(tmp_path / "pages.img")) as helper:
        assert helper.ask(request) == 0
        assert helper.finish().status == 0
    pair = b"\xaa" * PAGE_SIZE + bytes(PAGE_SIZE)
    assert target.read(ADDRESS, n_pages * PAGE_SIZE) == pair * (n_pages // 2)
