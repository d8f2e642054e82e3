"""Compressed, checked and decompressed between a dump and a restore by the same CRIU."""

from __future__ import annotations

from pathlib import Path

import pytest
from criu.dumper import Criu
from criu.redis import Redis

from tests.criu.conftest import IN_VM, StartWorkload, helperd, not_in_vm

_MIB = 8 if IN_VM else 24
WORKLOADS = {
    "memory": (("memory", f"text={_MIB}", f"random={_MIB // 4}", "zero=8", "sparse=4"), 1),
    "tree": (("tree", str(_MIB // 4)), 4),
    "threads": (("threads", str(_MIB // 4), "4"), 1),
}
MODES = {
    "page": (),
    "region": ("--region", "256K"),
    "blocks-page": ("--schema", "blocks"),
    "blocks-region": ("--schema", "blocks", "--region", "64K"),
}
#: The machine is emulated: there, each workload and each mode once.
CASES = [
    pytest.param(*WORKLOADS[workload], MODES[mode], id=f"{workload}-{mode}")
    for workload, mode in (
        [("memory", "region"), ("tree", "blocks-region")]
        if IN_VM
        else [
            *(("memory", mode) for mode in MODES),
            *(("tree", mode) for mode in ("page", "blocks-region")),
            ("threads", "region"),
        ]
    )
]


def contents(images: Path) -> dict[str, bytes]:
    """Return what is in the image files of a directory."""
    return {path.name: path.read_bytes() for path in images.glob("*.img")}


@pytest.mark.parametrize(("arguments", "processes", "mode"), CASES)
def test_a_restore_from_decompressed_images_has_the_memory(
    criu: Criu,
    folder: Path,
    start_workload: StartWorkload,
    arguments: tuple[str, ...],
    processes: int,
    mode: tuple[str, ...],
) -> None:
    process = start_workload(*arguments, processes=processes)
    images = folder / "images"
    criu.dump(process.pid, images)
    dumped = contents(images)

    helperd("compress", "--in-place", *mode, images)
    helperd("check", images)
    compressed = contents(images)
    helperd("decompress", "--in-place", images)

    pages = [name for name in dumped if name.startswith("pages-")]
    assert sum(len(compressed[name]) for name in pages) < sum(len(dumped[name]) for name in pages)
    assert contents(images) == dumped
    criu.restore(images)
    process.check()


@not_in_vm
def test_redis_has_its_keys(criu: Criu, folder: Path, redis: Redis) -> None:
    redis.fill(10_000 if IN_VM else 100_000)
    digest = redis.digest()
    images = folder / "images"
    criu.dump(redis.pid, images)

    helperd("compress", "--in-place", "--region", "256K", images)
    helperd("decompress", "--in-place", images)

    criu.restore(images)
    assert redis.digest() == digest
