"""The memory that is restored and the images it is restored from."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench.images import MODES, PagesImage, make_image
from bench.patterns import BASE, MIB, make_memory

from helperd.blocks import PAGE_SIZE, ZERO_PAGE
from helperd.images.extent import read_pages

SIZE = 2 * MIB


def restored(image: PagesImage) -> bytes:
    return b"".join(content for _, content in read_pages(image.extents))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pattern", ["zero", "mixed", "random", "text", "elf", "sparse"])
def test_an_image_holds_the_memory(pattern: str, mode: str, tmp_path: Path) -> None:
    memory = make_memory(pattern, SIZE, tmp_path)
    image = make_image(memory, mode, tmp_path / "pages.img")
    assert memory.n_bytes == SIZE
    assert memory.ranges == ((BASE, SIZE // PAGE_SIZE),)
    assert restored(image) == memory.source.read_bytes()
    assert image.payload_bytes == image.path.stat().st_size


def test_heap_keeps_its_ranges_apart(tmp_path: Path) -> None:
    memory = make_memory("py-heap", SIZE, tmp_path)
    image = make_image(memory, "256K", tmp_path / "pages.img")
    assert memory.source.stat().st_size == memory.n_bytes
    ends = [address + n_pages * PAGE_SIZE for address, n_pages in memory.ranges]
    starts = [address for address, _ in memory.ranges[1:]]
    assert all(end < start for end, start in zip(ends, starts, strict=False))
    (request,) = image.requests(1, 1 << 20)
    assert request.nr_iovs == len(memory.ranges)
    assert restored(image) == memory.source.read_bytes()


def test_mixed_is_half_zero(tmp_path: Path) -> None:
    content = make_memory("mixed", 32 * MIB, tmp_path).source.read_bytes()
    pages = [content[at : at + PAGE_SIZE] for at in range(0, len(content), PAGE_SIZE)]
    assert 0.45 < pages.count(ZERO_PAGE) / len(pages) < 0.55


def test_sparse_file_is_sparse(tmp_path: Path) -> None:
    memory = make_memory("sparse", 32 * MIB, tmp_path)
    image = make_image(memory, "page", tmp_path / "pages.img")
    n_stored = sum(1 for extent in image.extents for size in extent.sizes if size)
    assert n_stored == memory.n_bytes // PAGE_SIZE // 16


def test_requests_cover_everything_in_pieces(tmp_path: Path) -> None:
    memory = make_memory("text", 16 * MIB, tmp_path)
    image = make_image(memory, "64K", tmp_path / "pages.img")
    requests = image.requests(7, 2048)
    assert [request.n_pages for request in requests] == [2048, 2048]
    assert [list(request.iovs) for request in requests] == [
        [BASE, 8 * MIB],
        [BASE + 8 * MIB, 8 * MIB],
    ]
    assert requests[1].offs == requests[0].total_compressed_size
