"""An image that has lost its data fails the restore; it never restores zeros instead."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from target import Target

from helperd.blocks import PAGE_SIZE
from helperd.errors import EXIT_IMAGE, HelperFailed
from helperd.kernel.holes import first_hole, may_have_holes
from helperd.kernel.syscalls import punch_hole
from helperd.restorer import inject
from tests.images.checkpoints import Builder
from tests.support.helper import HelperProcess
from tests.support.image import BlockImage, noise, text
from tests.support.requests import ADDRESS


def raw_image(path: Path) -> BlockImage:
    """Write an image of raw blocks whose third page is a hole."""
    image = BlockImage()
    for page in range(8):
        image.add_raw(noise(1, seed=page))
    image.write(path)
    with open(path, "r+b") as stream:
        assert punch_hole(stream.fileno(), 2 * PAGE_SIZE, PAGE_SIZE) == 0
    return image


def test_a_raw_block_in_a_hole_fails_before_anything_is_written(
    target: Target, tmp_path: Path
) -> None:
    image = raw_image(tmp_path / "pages.img")
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(tmp_path / "pages.img") as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == -errno.EBADMSG
        outcome = helper.finish()
    assert outcome.status == EXIT_IMAGE
    assert "offset 8192 of the pages image lies in a hole" in outcome.error_line
    assert target.read(ADDRESS, len(image.memory)) == bytes(len(image.memory))


def test_who_knows_that_zeros_were_left_out_can_say_so(target: Target, tmp_path: Path) -> None:
    image = raw_image(tmp_path / "pages.img")
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(tmp_path / "pages.img", "--holes-are-zeros") as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == 7 * PAGE_SIZE
        helper.finish()
    image.memory[2 * PAGE_SIZE : 3 * PAGE_SIZE] = bytes(PAGE_SIZE)
    assert target.read(ADDRESS, len(image.memory)) == bytes(image.memory)


def test_uncompressed_pages_and_parts_of_regions(target: Target, tmp_path: Path) -> None:
    first = ADDRESS // PAGE_SIZE
    target.map_anonymous(ADDRESS, 64 * PAGE_SIZE)
    plain = Builder(tmp_path / "1").add(first, text(4)).write()
    with open(plain / "pages-1.img", "r+b") as stream:
        assert punch_hole(stream.fileno(), PAGE_SIZE, PAGE_SIZE) == 0
    child = Builder(tmp_path / "2").refer(first).refer(first + 3).write(parent="../1")
    with pytest.raises(HelperFailed, match="lies in a hole"):
        inject(plain, target.pid, image_pid=7)
    inject(child, target.pid, image_pid=7)  # needs none of what is lost
    report = inject(plain, target.pid, image_pid=7, helper_options=("--holes-are-zeros",))
    assert report.answered_bytes == 3 * PAGE_SIZE


def test_a_look_at_the_holes_leaves_the_file_position_alone(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(noise(4))
    fd = os.open(path, os.O_RDWR)
    try:
        assert not may_have_holes(os.fstat(fd))
        os.lseek(fd, 77, os.SEEK_SET)
        assert first_hole(fd, 0, 4 * PAGE_SIZE) == 4 * PAGE_SIZE
        assert punch_hole(fd, 2 * PAGE_SIZE, PAGE_SIZE) == 0
        os.fsync(fd)
        assert may_have_holes(os.fstat(fd))
        assert first_hole(fd, 0, 4 * PAGE_SIZE) == 2 * PAGE_SIZE
        assert first_hole(fd, 0, 2 * PAGE_SIZE) == 2 * PAGE_SIZE
        assert first_hole(fd, 3 * PAGE_SIZE, 4 * PAGE_SIZE) == 4 * PAGE_SIZE
        assert first_hole(fd, 9 * PAGE_SIZE, 10 * PAGE_SIZE) == 9 * PAGE_SIZE
        assert os.lseek(fd, 0, os.SEEK_CUR) == 77
    finally:
        os.close(fd)
