"""Pagemaps that an earlier dump has left are nobody's."""

from __future__ import annotations

from pathlib import Path

import pytest

from helperd import tools
from helperd.images.directory import ImageDirectory
from helperd.images.pstree import PSTREE_NAME
from tests.conftest import ImageArchive
from tests.images.checkpoints import clone, levels_of, memory_of

STRANGER = 31337


@pytest.fixture
def folder(image_archive: ImageArchive, tmp_path: Path) -> Path:
    """A dump of a tree of processes, with a pagemap of an earlier one."""
    copy = clone(levels_of(image_archive("tree"))[-1], tmp_path / "images")
    (pid, *_) = ImageDirectory(str(copy)).pids
    old = (copy / f"pagemap-{pid}.img").read_bytes()
    (copy / f"pagemap-{STRANGER}.img").write_bytes(old)
    return copy


def all_memory(folder: Path) -> dict[int, dict[int, bytes]]:
    return {pid: memory_of(folder, pid=pid) for pid in ImageDirectory(str(folder)).pids}


def test_it_is_no_process_of_the_dump(folder: Path) -> None:
    directory = ImageDirectory(str(folder))
    assert directory.left_over == {STRANGER}
    assert STRANGER not in directory.pids
    assert f"pagemap-{STRANGER}.img" not in directory.pagemap_names


def test_check_points_it_out(folder: Path) -> None:
    report = tools.check([str(folder)])
    assert report.ok
    assert [f"pagemap-{STRANGER}.img was left" in it.message for it in report.findings] == [True]


def test_a_conversion_leaves_it_alone(folder: Path) -> None:
    before = all_memory(folder)
    old = (folder / f"pagemap-{STRANGER}.img").read_bytes()
    tools.compress(str(folder), in_place=True, region_bytes=64 << 10)
    assert all_memory(folder) == before
    assert (folder / f"pagemap-{STRANGER}.img").read_bytes() == old
    tools.decompress(str(folder), in_place=True)
    assert all_memory(folder) == before


@pytest.mark.parametrize("damage", ["gone", "empty", "cut off", "of another tree"])
def test_what_cannot_be_said_is_not_said(folder: Path, damage: str) -> None:
    image = folder / PSTREE_NAME
    content = image.read_bytes()
    if damage == "gone":
        image.unlink()
    elif damage == "empty":
        image.write_bytes(b"")
    elif damage == "cut off":
        image.write_bytes(content[:-1])
    else:
        # Magics, and one process that has no pagemap here.
        image.write_bytes(content[:8] + b"\x02\0\0\0" + b"\x08\x05")
    assert STRANGER in ImageDirectory(str(folder)).pids
