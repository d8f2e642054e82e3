"""The stand-in: all that CRIU reads by itself is there, and nothing more."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from helperd import errors
from helperd.blocks import PAGE_SIZE
from helperd.images.chain import resolve
from helperd.images.directory import ImageDirectory
from helperd.images.extent import read_pages
from helperd.images.inventory import Schema
from helperd.images.mappings import read_mappings
from helperd.images.pagemap import PE_LAZY, PE_PARENT, PE_PRESENT, read_pagemap
from helperd.lazy_pages.standin import (
    is_readable_by_criu,
    make_stand_in,
    open_images,
    remove_stand_in,
    watched_mappings,
)
from tests.conftest import ImageArchive
from tests.images.checkpoints import Builder, load_dumps, memory_of
from tests.images.test_chain import pages

ARCHIVES = ("py-heap", "tree", "incremental", "incremental-criu317", "criu-perpage")


@pytest.mark.parametrize("name", [*ARCHIVES, "criu-region256k"])
def test_real_checkpoints(image_archive: ImageArchive, tmp_path: Path, name: str) -> None:
    archive = image_archive(name)
    (dump, *_) = load_dumps(archive)
    folder = archive / dump["dir"]
    images = open_images(str(folder))
    target = tmp_path / "stand-in"
    make_stand_in(images, str(target))
    made = ImageDirectory(str(target))
    assert made.schema is Schema.NONE
    original = ImageDirectory(str(folder))
    assert made.pagemap_names == original.pagemap_names
    assert {name for name in original.names if not name.startswith("pages-")} <= set(made.names)
    for shmem_id in original.shmem_ids:
        assert memory_of(target, shmem_id=shmem_id) == memory_of(folder, shmem_id=shmem_id)
    for pid in original.pids:
        check_task(target, folder, pid)
    images.close()
    remove_stand_in(str(target))
    assert not target.exists()


def check_task(target: Path, folder: Path, pid: int) -> None:
    memory = memory_of(folder, pid=pid)
    seen = 0
    stored = bytearray()
    pagemap = read_pagemap(str(target / f"pagemap-{pid}.img"))
    watched = watched_mappings(str(folder / f"mm-{pid}.img"))
    for entry in pagemap.entries:
        seen += entry.nr_pages
        addresses = range(entry.vaddr, entry.end, PAGE_SIZE)
        assert set(addresses) <= set(memory)
        if entry.flags == PE_PRESENT:
            stored += b"".join(memory[address] for address in addresses)
        else:
            assert entry.flags == PE_LAZY | PE_PARENT
            for address in addresses:
                assert any(start <= address < end for start, end in watched)
    assert seen == len(memory)
    assert (target / pagemap.pages_name).read_bytes() == stored
    assert len(stored) < seen * PAGE_SIZE


@pytest.mark.parametrize("name", ["incremental", "incremental-criu317"])
def test_a_vdso_from_the_parent_is_not_left_to_the_daemon(
    image_archive: ImageArchive, tmp_path: Path, name: str
) -> None:
    """CRIU has it not watched, and looks into it before it goes on."""
    archive = image_archive(name)
    (dump, *_) = load_dumps(archive)
    folder = archive / dump["dir"]
    (pid, *_) = ImageDirectory(str(folder)).pids
    kernels = [each for each in read_mappings(str(folder / f"mm-{pid}.img")) if each.of_the_kernel]
    dumped = [
        address
        for address in memory_of(folder, pid=pid)
        if any(each.start <= address < each.end for each in kernels)
    ]
    assert dumped
    images = open_images(str(folder))
    make_stand_in(images, str(tmp_path / "stand-in"))
    images.close()
    made = read_pagemap(str(tmp_path / "stand-in" / f"pagemap-{pid}.img"))
    for address in dumped:
        (entry,) = (each for each in made.entries if each.vaddr <= address < each.end)
        assert entry.flags == PE_PRESENT


def test_a_restore_that_reads_it_all_fails(image_archive: ImageArchive, tmp_path: Path) -> None:
    images = open_images(str(image_archive("tree") / "images"))
    make_stand_in(images, str(tmp_path / "stand-in"))
    pid = next(iter(images.lookups))
    with pytest.raises(errors.ImageError, match="not listed"):
        list(read_pages(resolve(ImageDirectory(str(tmp_path / "stand-in")), pid=pid)))
    images.close()


def test_what_criu_reads_by_itself_needs_none(tmp_path: Path) -> None:
    plain = Builder(tmp_path / "1").add(5, pages(1, 2)).write()
    assert is_readable_by_criu(open_images(str(plain)))
    packed = Builder(tmp_path / "2", schema=Schema.SIZES).add(5, pages(1, 2), region=0).write()
    assert not is_readable_by_criu(open_images(str(packed)))
    newer = Builder(tmp_path / "3", schema=Schema.BLOCKS).add(5, pages(1, 2), region=2).write()
    assert not is_readable_by_criu(open_images(str(newer)))
    child = Builder(tmp_path / "4").refer(5).write(parent="../1")
    assert not is_readable_by_criu(open_images(str(child)))


@pytest.mark.parametrize(("schema", "region"), [(Schema.SIZES, 0), (Schema.BLOCKS, 4)])
def test_the_eager_pages_are_decoded(tmp_path: Path, schema: Schema, region: int) -> None:
    content = random.Random(1).randbytes(16) * 256 * 11
    builder = Builder(tmp_path / "1", schema=schema).add(5, content, region=region)
    builder.add(50, pages(1, 2, 3), region=region)
    builder.entries[1].flags |= PE_LAZY
    images = open_images(str(builder.write()))
    make_stand_in(images, str(tmp_path / "2"))
    assert (tmp_path / "2" / "pages-1.img").read_bytes() == content
    images.close()


def test_a_corrupt_eager_block_is_said(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "1", schema=Schema.SIZES).add(5, pages(2, 4), region=2)
    builder.payload[:] = b"\xff" * len(builder.payload)
    images = open_images(str(builder.write()))
    with pytest.raises(errors.CorruptBlock, match=r"pages-1.img: block at offset 0"):
        make_stand_in(images, str(tmp_path / "2"))
    images.close()


def test_a_place_that_is_taken(tmp_path: Path) -> None:
    images = open_images(str(Builder(tmp_path / "1").add(5, pages(1)).write()))
    os.mkdir(tmp_path / "2")
    with pytest.raises(errors.HelperdError, match=r"cannot make the stand-in .*EEXIST"):
        make_stand_in(images, str(tmp_path / "2"))
    images.close()
