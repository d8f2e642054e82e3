"""Pre-dumps and the dumps that build on them, through helperd, restored by the CRIU they are of."""

from __future__ import annotations

from pathlib import Path

import pytest
from criu.dumper import Criu
from criu.workload import Workload

from tests.criu.conftest import StartWorkload, helperd

pytestmark = pytest.mark.soft_dirty

_LEVELS = ("1", "2", "3")


@pytest.fixture
def process(start_workload: StartWorkload) -> Workload:
    return start_workload("memory", "text=4", "random=1", "zero=1", "sparse=1")


def dump_chain(criu: Criu, process: Workload, folder: Path) -> Path:
    """Dump a process twice while it runs, then at last; return the last directory."""
    options: tuple[str, ...] = ()
    for level in _LEVELS[:-1]:
        criu.pre_dump(process.pid, folder / level, *options)
        process.ask(f"change {level} 400")
        options = ("--prev-images-dir", f"../{level}")
    criu.dump(process.pid, folder / _LEVELS[-1], "--track-mem", *options)
    return folder / _LEVELS[-1]


def bytes_on_disk(folder: Path) -> int:
    """Return what the pages files of a chain take on the disk."""
    return sum(
        path.stat().st_blocks * 512
        for level in _LEVELS
        for path in (folder / level).glob("pages-*.img")
    )


@pytest.mark.parametrize(
    "mode", [(), ("--schema", "blocks", "--region", "64K")], ids=["page", "blocks-region"]
)
def test_a_chain_is_restored(
    criu: Criu, folder: Path, process: Workload, mode: tuple[str, ...]
) -> None:
    images = dump_chain(criu, process, folder)

    helperd("compress", "--in-place", "--chain", *mode, images)
    helperd("check", images)
    helperd("decompress", "--in-place", "--chain", images)

    criu.restore(images)
    process.check()


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "compressed"])
def test_a_chain_is_restored_after_dedup(
    criu: Criu, folder: Path, process: Workload, compressed: bool
) -> None:
    images = dump_chain(criu, process, folder)
    if compressed:
        helperd("compress", "--in-place", "--chain", images)

    before = bytes_on_disk(folder)
    helperd("dedup", images)
    assert bytes_on_disk(folder) < before
    helperd("check", images)

    if compressed:
        helperd("decompress", "--in-place", "--chain", images)
    criu.restore(images)
    process.check()
