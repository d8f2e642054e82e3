"""The mappings of a process, as its images have them."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from helperd import errors
from helperd.blocks import PAGE_SIZE
from helperd.images import records
from helperd.images.directory import ImageDirectory
from helperd.images.fields import encode_varint
from helperd.images.mappings import MM_MAGIC, VMAS_MAGIC, Mappings, mappings_of
from tests.conftest import ImageArchive
from tests.images.checkpoints import load_dumps

NAME = "pagemap-7.img"
HUGETLB, PLUGIN = 0x40000, 1 << 27


def mapping(first: int, end: int, flags: int = 0, status: int = 1) -> bytes:
    """Return a vma_entry of the pages from ``first`` to before ``end``."""
    numbers = {1: first * PAGE_SIZE, 2: end * PAGE_SIZE, 3: 0, 6: flags, 7: status}
    return b"".join(encode_varint(key << 3) + encode_varint(it) for key, it in numbers.items())


def write_mm(folder: Path, *mappings: bytes) -> ImageDirectory:
    """Write mm-7.img."""
    mm = b"".join(b"\x72" + encode_varint(len(it)) + it for it in mappings)
    with open(folder / "mm-7.img", "wb") as stream:
        records.write_magics(stream, (records.IMG_COMMON_MAGIC, MM_MAGIC))
        records.write_record(stream, mm)
    return ImageDirectory(str(folder))


@pytest.mark.parametrize("name", ["borders", "borders-hugetlb"])
def test_the_borders_of_real_mappings(image_archive: ImageArchive, name: str) -> None:
    archive = image_archive(name)
    (dump,) = load_dumps(archive)
    (process,) = dump["processes"]
    directory = ImageDirectory(str(archive / dump["dir"]))
    mappings = mappings_of(directory, f"pagemap-{process['pid']}.img")
    assert mappings is not None
    n_borders = 0
    for known in process["ranges"]:
        start = end = int(known["vaddr"], 16)
        borders = []
        for vma in known["vmas"]:
            end += vma["nr_pages"] * PAGE_SIZE
            borders.append(end)
        assert mappings.borders(start, end) == borders[:-1]
        n_borders += len(borders) - 1
    assert n_borders >= 9
    assert (name == "borders-hugetlb") == (mappings.raw.total == 2 << 20)


def test_what_is_stored_raw(tmp_path: Path) -> None:
    directory = write_mm(
        tmp_path,
        mapping(10, 20, HUGETLB),
        mapping(1, 4),
        mapping(4, 5, status=PLUGIN | 1),
        mapping(20, 21, HUGETLB | 0x22),
    )
    mappings = mappings_of(directory, NAME)
    assert mappings is not None
    pages = [(start // PAGE_SIZE, end // PAGE_SIZE) for start, end in mappings.raw]
    assert pages == [(4, 5), (10, 21)]
    borders = mappings.borders(1 * PAGE_SIZE, 20 * PAGE_SIZE)
    assert [border // PAGE_SIZE for border in borders] == [4, 5, 10]
    assert mappings.borders(12 * PAGE_SIZE, 13 * PAGE_SIZE) == []


def test_old_images_keep_the_mappings_beside(tmp_path: Path) -> None:
    write_mm(tmp_path)
    with open(tmp_path / "vmas-7.img", "wb") as stream:
        records.write_magics(stream, (records.IMG_COMMON_MAGIC, VMAS_MAGIC))
        for it in (mapping(1, 3), mapping(3, 9)):
            records.write_record(stream, it)
    mappings = mappings_of(ImageDirectory(str(tmp_path)), NAME)
    assert mappings is not None
    assert mappings.borders(0, 100 * PAGE_SIZE) == [PAGE_SIZE, 3 * PAGE_SIZE, 9 * PAGE_SIZE]


def test_shared_memory_has_no_mappings(tmp_path: Path) -> None:
    directory = write_mm(tmp_path, mapping(1, 2))
    assert mappings_of(directory, "pagemap-shmem-7.img") is None
    assert mappings_of(directory, "pagemap-8.img") is None


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"\x72\x02\x08\x01", "lacks its borders"),
        (b"\x72\x05", "is broken"),
        (b"\x72\x05\x08\x01\x10\x80\x20", "not of whole pages"),
    ],
)
def test_a_broken_image_of_mappings(tmp_path: Path, payload: bytes, message: str) -> None:
    content = struct.pack("<II", records.IMG_COMMON_MAGIC, MM_MAGIC)
    (tmp_path / "mm-7.img").write_bytes(content + struct.pack("<I", len(payload)) + payload)
    with pytest.raises(errors.ImageFormatError, match=message):
        mappings_of(ImageDirectory(str(tmp_path)), NAME)


def test_no_mappings() -> None:
    assert Mappings().borders(0, 1 << 64) == []
