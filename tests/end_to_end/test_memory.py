"""The helper's memory has a fixed budget, however much memory one request covers."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from target import Target

from helperd.blocks import PAGE_SIZE, pages_to_bytes, raw_threshold
from tests.support.helper import HelperProcess
from tests.support.image import BlockImage
from tests.support.processes import peak_rss_bytes
from tests.support.requests import ADDRESS, RawRequest

MIB = 1 << 20
GIB = 1 << 30
BUDGET_BYTES = 64 * MIB
PIECE_BYTES = 4 * MIB
SHARED_MEMORY = Path("/dev/shm")


@pytest.fixture
def big_folder() -> Iterator[Path]:
    """Return a folder in memory if there is one, else on disk."""
    parent = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(prefix="helperd-test-", dir=parent) as folder:
        yield Path(folder)


def real_memory() -> bytes:
    """Return 4 MiB of what memory is made of: program text and readable text."""
    program = Path(sys.executable).resolve().read_bytes()[: PIECE_BYTES // 2]
    text = b"".join(path.read_bytes() for path in sorted(Path(os.__file__).parent.glob("*.py")))
    assert len(text) >= PIECE_BYTES
    return (program + text)[:PIECE_BYTES]


def compressed(memory: bytes, block_bytes: int) -> BlockImage:
    """Return memory in blocks of ``block_bytes``, each stored as a dump would store it."""
    image = BlockImage()
    for at in range(0, len(memory), block_bytes):
        block = memory[at : at + block_bytes]
        if not any(block):
            image.add_zero(len(block) // PAGE_SIZE)
        else:
            image.add_lz4(block)
            if image.sizes[-1] >= raw_threshold(len(block)):
                del image.payload[-image.sizes[-1] :]
                image.payload += block
                image.sizes[-1] = len(block)
    return image


@pytest.mark.parametrize("region_pages", [0, 64], ids=["perpage", "region256k"])
def test_one_request_for_a_gigabyte(target: Target, big_folder: Path, region_pages: int) -> None:
    repeats = GIB // PIECE_BYTES
    piece = compressed(real_memory(), pages_to_bytes(region_pages or 1))
    pages = big_folder / "pages-1.img"
    with pages.open("wb") as file:
        for _ in range(repeats):
            file.write(piece.payload)
    request = RawRequest(
        remote_pid=target.pid,
        offs=0,
        sizes=piece.sizes * repeats,
        block_pages=piece.block_pages * repeats if region_pages else (),
        iovs=[(ADDRESS, GIB)],
        region_pages=region_pages,
    )
    target.map_anonymous(ADDRESS, GIB)
    with HelperProcess(pages) as helper:
        assert helper.ask(request) == piece.answer * repeats
        peaks = [peak_rss_bytes(pid) for pid in (helper.worker_pid, helper.pid)]
        assert helper.finish().status == 0
    assert max(peaks) < BUDGET_BYTES
    for at in range(0, GIB, PIECE_BYTES):
        assert target.read(ADDRESS + at, PIECE_BYTES) == piece.memory


def test_many_requests(target: Target, tmp_path: Path) -> None:
    """What one request takes is given back or used again by the next."""
    piece = compressed(real_memory(), PAGE_SIZE)
    target.map_anonymous(ADDRESS, PIECE_BYTES)
    with HelperProcess(piece.write(tmp_path / "pages-1.img")) as helper:
        for _ in range(50):
            assert helper.ask(piece.request(target.pid, ADDRESS)) == piece.answer
        assert peak_rss_bytes(helper.worker_pid) < BUDGET_BYTES
        assert helper.finish().status == 0


def test_zero_regions_of_sixteen_gigabytes(target: Target, tmp_path: Path) -> None:
    n_blocks = 16 * GIB // pages_to_bytes(1024)
    target.map_anonymous(ADDRESS, 16 * GIB)
    before = target.rss_bytes()
    request = RawRequest(
        remote_pid=target.pid,
        offs=0,
        sizes=[0] * n_blocks,
        block_pages=[1024] * n_blocks,
        iovs=[(ADDRESS, 16 * GIB)],
        region_pages=1024,
    )
    with HelperProcess(BlockImage().write(tmp_path / "pages-1.img")) as helper:
        assert helper.ask(request) == 0
        assert peak_rss_bytes(helper.worker_pid) < BUDGET_BYTES
        assert helper.finish().status == 0
    assert target.rss_bytes() - before < MIB
