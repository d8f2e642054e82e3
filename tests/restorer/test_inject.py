"""Whole restores: compress a real dump, inject every process, compare with the truth."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from target import Target
from truth import differing_ranges, load_truth, map_ranges

from helperd.blocks import PAGE_SIZE
from helperd.errors import EXIT_TARGET, HelperFailed, ImageError
from helperd.offline.compress import compress_directory
from helperd.restorer import inject
from tests.conftest import ImageArchive
from tests.images.checkpoints import memory_of
from tests.offline.test_dialects import packed_image
from tests.support.processes import children_of

ARCHIVES = ["py-heap", "tree", "incremental", "incremental-criu317"]
MODES = {"plain": None, "per-page": 0, "64K": 64 << 10, "256K": 256 << 10, "1M": 1 << 20}


def compressed(archive: Path, images: Path, output: Path, region_bytes: int | None) -> Path:
    """Return the archive's images, every level of its chain compressed (None: as it is)."""
    if region_bytes is None:
        return images
    if images == archive / "images":
        compress_directory(str(images), output=str(output), region_bytes=region_bytes)
        return output
    output.mkdir()
    for level in sorted((archive / "images").iterdir()):
        compress_directory(str(level), output=str(output / level.name), region_bytes=region_bytes)
    return output / images.name


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ARCHIVES)
def test_every_process_of_a_dump(
    image_archive: ImageArchive, target_program: Path, tmp_path: Path, name: str, mode: str
) -> None:
    archive = image_archive(name)
    truth = load_truth(archive)
    images = compressed(archive, truth.images, tmp_path / "images", MODES[mode])
    before = children_of(os.getpid())
    for process in truth.processes:
        with Target(target_program) as target:
            map_ranges(target, process.ranges)
            progress: list[tuple[int, int]] = []
            report = inject(
                images,
                target.pid,
                image_pid=process.pid,
                progress=lambda done, total, seen=progress: seen.append((done, total)),
            )
            assert differing_ranges(target, process.ranges) == []
            n_pages = sum(item.n_pages for item in process.ranges)
            zero_pages = sum(item.zero_pages for item in process.ranges)
            assert report.pages == n_pages
            assert report.answered_bytes == (n_pages - zero_pages) * 4096
            assert report.warnings == ""
            assert progress[-1] == (n_pages, n_pages)
    assert children_of(os.getpid()) == before


@pytest.mark.parametrize("name", ARCHIVES)
def test_shared_memory_objects(image_archive: ImageArchive, target: Target, name: str) -> None:
    archive = image_archive(name)
    images = load_truth(archive).images
    base = 0x10_0000_0000
    for item in json.loads((archive / "truth.json").read_text())["shmem"]:
        for part in item["ranges"]:
            target.map_anonymous(
                base + int(part["vaddr"], 16), part["nr_pages"] * 4096, shared=True
            )
        inject(images, target.pid, shmem_id=item["shmid"], base=base)
        for part in item["ranges"]:
            content = target.read(base + int(part["vaddr"], 16), part["nr_pages"] * 4096)
            assert hashlib.sha256(content).hexdigest() == part["sha256"]
        base += 0x10_0000_0000


def test_a_mixed_chain(image_archive: ImageArchive, target: Target, tmp_path: Path) -> None:
    """The last dump compressed in regions, its parents not at all and per page."""
    archive = image_archive("incremental")
    truth = load_truth(archive)
    levels = archive / "images"
    compress_directory(str(levels / "3"), output=str(tmp_path / "3"), region_bytes=65536)
    compress_directory(str(levels / "2"), output=str(tmp_path / "2"), region_bytes=0)
    (tmp_path / "1").symlink_to(levels / "1")
    process = truth.processes[0]
    map_ranges(target, process.ranges)
    report = inject(tmp_path / "3", target.pid, image_pid=process.pid)
    assert differing_ranges(target, process.ranges) == []
    assert report.lz4_blocks
    assert report.raw_blocks


def test_the_command(image_archive: ImageArchive, target: Target) -> None:
    process = load_truth(image_archive("criu-region256k")).processes[0]
    map_ranges(target, process.ranges)
    images = load_truth(image_archive("criu-region256k")).images
    command = [sys.executable, "-I", "-m", "helperd", "inject", str(images)]
    command += ["--pid", str(target.pid), "--image-pid", str(process.pid)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
    assert f"process {target.pid}: 2238 pages restored in 1 requests" in result.stdout
    assert "(26 zero, 25 raw, 123 LZ4 blocks" in result.stdout
    assert differing_ranges(target, process.ranges) == []


def test_a_dead_target_names_itself_and_the_exit_code(
    image_archive: ImageArchive, target: Target
) -> None:
    truth = load_truth(image_archive("criu-perpage"))
    target.kill()
    with pytest.raises(HelperFailed, match=f"target {target.pid} is not a process") as caught:
        inject(truth.images, target.pid, image_pid=truth.processes[0].pid)
    assert caught.value.exit_code == EXIT_TARGET


def test_unmapped_addresses(image_archive: ImageArchive, target: Target) -> None:
    truth = load_truth(image_archive("criu-perpage"))
    before = children_of(os.getpid())
    with pytest.raises(HelperFailed, match="not mapped writable") as caught:
        inject(truth.images, target.pid, image_pid=truth.processes[0].pid)
    assert caught.value.exit_code == EXIT_TARGET
    assert children_of(os.getpid()) == before


def test_an_unknown_process(image_archive: ImageArchive, target: Target) -> None:
    truth = load_truth(image_archive("tree"))
    with pytest.raises(ImageError, match=r"pagemap-4242\.img"):
        inject(truth.images, target.pid, image_pid=4242)


@pytest.mark.parametrize("name", ["merged-perpage", "merged-block256k"])
def test_images_of_merged_criu(
    image_archive: ImageArchive, target_program: Path, name: str
) -> None:
    truth = load_truth(image_archive(name))
    (process,) = truth.processes
    with Target(target_program) as target:
        map_ranges(target, process.ranges)
        report = inject(truth.images, target.pid, image_pid=process.pid)
        assert differing_ranges(target, process.ranges) == []
        assert report.pages == sum(item.n_pages for item in process.ranges)


@pytest.mark.parametrize("region", [0, 2, 16])
def test_packed_tables_of_sizes(target: Target, tmp_path: Path, region: int) -> None:
    packed_image(tmp_path / "1", region)
    memory = memory_of(tmp_path / "1", pid=7)
    for address in memory:
        target.map_anonymous(address, PAGE_SIZE)
    inject(tmp_path / "1", target.pid, image_pid=7)
    assert {address: target.read(address, PAGE_SIZE) for address in memory} == memory
