"""Check finds what is wrong before a restore does, and nothing else."""

from __future__ import annotations

import os
import random
import re
import shutil
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from helperd import errors, tools
from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.codec.block import encode_block
from helperd.codec.chunk import Chunk
from helperd.codec.decode import Decoded
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from helperd.images.pagemap import PE_LAZY, PagemapEntry
from helperd.images.pagesfile import PagesFile
from helperd.kernel.syscalls import punch_hole
from helperd.offline.findings import PROBLEM, WARNING, Finding
from helperd.offline.switch import STAGING_NAME
from tests.archives.engines import pack
from tests.conftest import ImageArchive
from tests.images.checkpoints import (
    ARCHIVES,
    Builder,
    Memory,
    clone,
    levels_of,
    load_dumps,
    memory_of,
    write_inventory,
)

TEXT = bytes(range(64)) * (PAGE_SIZE // 64)
NOISE = random.Random(1).randbytes(PAGE_SIZE)


def problems(*folders: Path) -> list[str]:
    """Return the problems of a check, which has to agree with itself."""
    report = tools.check([str(folder) for folder in folders], threads=1)
    assert report.ok == (not report.problems)
    assert all("\n" not in finding.message for finding in report.findings)
    return [finding.message for finding in report.problems]


def warnings(*folders: Path) -> list[str]:
    report = tools.check([str(folder) for folder in folders])
    assert report.ok
    return [finding.message for finding in report.findings if finding.severity == WARNING]


@pytest.mark.parametrize("name", [*ARCHIVES, "incremental-dedup"])
def test_real_images_are_whole(image_archive: ImageArchive, name: str) -> None:
    archive = image_archive(name)
    (dump, *_) = load_dumps(archive)
    report = tools.check([str(archive / dump["dir"])])
    assert report.findings == []
    assert len(report.directories) == len(levels_of(archive))
    truth = [*dump["processes"], *dump["shmem"]]
    assert report.n_pages >= sum(r["nr_pages"] for item in truth for r in item["ranges"]) > 0
    assert report.payload_bytes > 0


def test_a_deduplicated_level_is_whole_only_for_its_child(image_archive: ImageArchive) -> None:
    levels = levels_of(image_archive("incremental-dedup"))
    assert problems(levels[2]) == []
    assert problems(*levels) == []
    assert problems(levels[1]) != []
    found = tools.check([str(levels[0])]).problems
    assert found
    assert all("lie in holes" in finding.message for finding in found if finding.vaddr is not None)
    assert tools.check([str(levels[0])], holes_are_zeros=True).ok


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a compressed checkpoint of one process: an LZ4, a zero, a raw block, regions."""
    builder = Builder(tmp_path / "1", schema=Schema.SIZES)
    builder.add(1, TEXT + bytes(PAGE_SIZE) + NOISE, region=0).add(10, 6 * TEXT + NOISE, region=4)
    return builder.write()


def rewrite(path: Path, offset: int, content: bytes) -> None:
    with open(path, "r+b") as stream:
        stream.seek(offset)
        stream.write(content)


def no_inventory(folder: Path) -> None:
    (folder / "inventory.img").unlink()


def no_images(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


def no_pages(folder: Path) -> None:
    (folder / "pages-1.img").unlink()


def short_pages(folder: Path) -> None:
    os.truncate(folder / "pages-1.img", 100)


def long_pages(folder: Path) -> None:
    with open(folder / "pages-1.img", "ab") as stream:
        stream.write(b"more")


def bad_lz4(folder: Path) -> None:
    rewrite(folder / "pages-1.img", 0, b"\xff" * 8)


def bad_region(folder: Path) -> None:
    entry = ImageDirectory(str(folder)).pagemap(pid=7).entries[1]
    assert entry.sizes is not None
    rewrite(folder / "pages-1.img", entry.offset + entry.sizes[0], b"\xff" * 64)


def shared_pages(folder: Path) -> None:
    shutil.copy(folder / "pagemap-7.img", folder / "pagemap-8.img")


def other_schema(folder: Path) -> None:
    write_inventory(folder, Schema.BLOCKS)


def no_schema(folder: Path) -> None:
    write_inventory(folder, Schema.NONE)


def new_version(folder: Path) -> None:
    write_inventory(folder)
    inventory = ImageDirectory(str(folder)).inventory
    assert inventory is not None
    inventory.message.img_version = 9
    (folder / "inventory.img").write_bytes(inventory.encode())


def bad_magic(folder: Path) -> None:
    rewrite(folder / "pagemap-7.img", 4, b"\0")


def cut_pagemap(folder: Path) -> None:
    os.truncate(folder / "pagemap-7.img", os.path.getsize(folder / "pagemap-7.img") - 1)


def pagemap_lacks_an_entry(folder: Path) -> None:
    pagemap = (folder / "pagemap-7.img").read_bytes()
    (folder / "pagemap-7.img").write_bytes(pagemap[: 8 + 4 + 2])


def no_pagemap(folder: Path) -> None:
    (folder / "mm-8.img").write_bytes(bytes.fromhex("1943565420284957"))


def cut_core(folder: Path) -> None:
    (folder / "core-7.img").write_bytes(bytes.fromhex("1943565447380555") + b"\xff\0\0\0short")


def unknown_core(folder: Path) -> None:
    (folder / "core-7.img").write_bytes(b"not an image at all")


def a_pipe(folder: Path) -> None:
    (folder / "pages-1.img").unlink()
    os.mkfifo(folder / "pages-1.img")


def lazy_only(folder: Path) -> None:
    Builder(folder).refer(5, 2, PE_LAZY).add(9, TEXT).write()


def no_parent(folder: Path) -> None:
    Builder(folder).refer(5, 2).add(9, TEXT).write()


def parent_is_gone(folder: Path) -> None:
    Builder(folder).refer(5, 2).add(9, TEXT).write(parent="../gone")


def loop(folder: Path) -> None:
    Builder(folder).refer(5, 2).add(9, TEXT).write(parent="../2")
    Builder(folder.parent / "2", pid=7).refer(5, 2).write(parent="../1")


def punched(folder: Path) -> None:
    Builder(folder).add(5, TEXT * 4).write()
    with open(folder / "pages-1.img", "r+b") as stream:
        assert punch_hole(stream.fileno(), PAGE_SIZE, 2 * PAGE_SIZE) == 0


def punched_region(folder: Path) -> None:
    builder = Builder(folder, schema=Schema.SIZES)
    builder.add(5, random.Random(3).randbytes(8 * PAGE_SIZE), region=8).write()
    with open(folder / "pages-1.img", "r+b") as stream:
        assert punch_hole(stream.fileno(), 4 * PAGE_SIZE, PAGE_SIZE) == 0


BROKEN: list[tuple[Callable[[Path], None], str]] = [
    (no_images, "not an image directory"),
    (no_inventory, "has no inventory.img that says its pages are compressed"),
    (no_pages, "cannot open .*pages-1.img"),
    (short_pages, "pages-1.img: ends at offset 100, its pagemap"),
    (long_pages, "the rest would be lost"),
    (bad_lz4, "pages-1.img: 1 pages from 0x1000 on do not decode; the first: .*at offset 0"),
    (bad_region, "pages-1.img: 3 pages from 0xe000 on do not decode"),
    (shared_pages, "pagemap-7.img and pagemap-8.img both name pages-1.img"),
    (other_schema, r"says compressed \(blocks schema\), but .*complete sets it right"),
    (no_schema, r"says not compressed, but the pagemaps are compressed \(sizes"),
    (new_version, "image version 9 is newer"),
    (bad_magic, "pagemap-7.img: starts with"),
    (cut_pagemap, "pagemap-7.img: record at offset"),
    (pagemap_lacks_an_entry, "the rest would be lost"),
    (no_pagemap, "has mm-8.img but no pagemap-8.img"),
    (cut_core, "core-7.img: record at offset 8 claims 255 bytes"),
    (unknown_core, "core-7.img: starts with"),
    (a_pipe, "pages-1.img: not a regular file"),
    (lazy_only, "page 0x5000 is stored nowhere"),
    (no_parent, "has no parent link"),
    (parent_is_gone, "cannot follow the parent link"),
    (loop, "make a loop"),
    (punched, "2 pages from 0x6000 on are needed but lie in holes"),
    (punched_region, "8 pages from 0x5000 on are needed but lie in holes"),
]


@pytest.mark.parametrize(("damage", "message"), BROKEN)
def test_damage_is_found(folder: Path, damage: Callable[[Path], None], message: str) -> None:
    assert problems(folder) == []
    damage(folder)
    found = problems(folder)
    assert any(re.search(message, line) for line in found), found
    # One fault, told once.
    assert len(found) <= 2, found
    assert len(set(found)) == len(found)


def test_no_directory_is_a_problem_and_the_others_are_still_checked(
    folder: Path, tmp_path: Path
) -> None:
    report = tools.check([str(tmp_path / "gone"), str(folder)])
    (problem,) = report.problems
    assert problem.path == str(tmp_path / "gone")
    assert report.n_pagemaps == 1


def test_threads_that_make_no_sense(folder: Path) -> None:
    with pytest.raises(errors.UsageError):
        tools.check([str(folder)], threads=-2)


def test_what_nobody_needs_is_no_problem(folder: Path, tmp_path: Path) -> None:
    Builder(tmp_path / "2").add(1, TEXT * 3).refer(10, 7).write(parent="../1")
    rewrite(folder / "pages-1.img", 0, b"\xff" * 8)
    (warning,) = warnings(tmp_path / "2")
    assert "1 pages from 0x1000 on do not decode, but are superseded" in warning
    (problem,) = problems(tmp_path / "2", Builder(tmp_path / "3").refer(1).write(parent="../1"))
    assert "1 pages from 0x1000 on do not decode;" in problem


def test_progress_and_time_are_told(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    report = tools.check(
        [str(folder)], threads=1, progress=lambda done, total: seen.append((done, total))
    )
    n_bytes = (folder / "pages-1.img").stat().st_size
    assert report.payload_bytes == n_bytes
    assert seen[-1] == (n_bytes, n_bytes)
    assert all(total == n_bytes for _, total in seen)
    assert sorted(seen) == seen
    assert 0 < report.seconds < 600


def test_progress_begins_at_nothing(tmp_path: Path) -> None:
    for pid in (7, 8):
        folder = Builder(tmp_path / "1", pid=pid, pages_id=pid).add(1, NOISE * pid).write()
    seen: list[tuple[int, int]] = []
    tools.check([str(folder)], threads=1, progress=lambda *at: seen.append(at))
    assert seen == [(7 * PAGE_SIZE, 15 * PAGE_SIZE), (15 * PAGE_SIZE, 15 * PAGE_SIZE)]


def test_of_what_is_no_image_directory_that_is_all_that_is_said(tmp_path: Path) -> None:
    (tmp_path / "pages-1.img").write_bytes(NOISE)
    (finding,) = tools.check([str(tmp_path)]).findings
    assert finding.message == f"{tmp_path}: not an image directory"


def test_without_its_inventory_nothing_is_said_of_pagemaps(folder: Path) -> None:
    """A broken inventory leaves open what they mean."""
    (folder / "inventory.img").write_bytes(b"no inventory")
    os.truncate(folder / "pages-1.img", 100)
    report = tools.check([str(folder)])
    (problem,) = report.findings
    assert "inventory.img" in problem.message
    assert report.n_pagemaps == report.n_pages == 0


def test_left_overs_are_pointed_out(folder: Path) -> None:
    (folder / "pages-9.img").write_bytes(b"whose?")
    (warning,) = warnings(folder)
    assert "pages-9.img: no pagemap names it" in warning


def test_without_an_inventory_pagemaps_tell_what_they_are(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1", schema=Schema.NONE).add(1, TEXT).write()
    (folder / "inventory.img").unlink()
    (warning,) = warnings(folder)
    assert warning == f"{folder}: has no inventory.img; taken as its pagemaps are"


def test_what_only_begins_like_an_image_is_none(folder: Path) -> None:
    (folder / "core-7.txt").write_bytes(b"notes of somebody")
    assert not tools.check([str(folder)]).findings


def test_pages_and_blocks_are_counted(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "1", schema=Schema.SIZES)
    builder.add(1, TEXT + bytes(PAGE_SIZE) + NOISE, region=0).add(10, 6 * TEXT + NOISE, region=4)
    report = tools.check([str(builder.write())])
    assert (report.n_pagemaps, report.n_pages, report.n_blocks) == (1, 3 + 7, 3 + 2)


def test_whose_pages_are_left_is_open_while_a_pagemap_is_broken(folder: Path) -> None:
    bad_magic(folder)
    (folder / "pages-9.img").write_bytes(b"whose?")
    (finding,) = tools.check([str(folder)]).findings
    assert finding.severity == PROBLEM
    assert "pagemap-7.img" in finding.message


def test_a_conversion_under_way_is_pointed_out(folder: Path) -> None:
    (folder / STAGING_NAME).mkdir(mode=0o700)
    (warning,) = warnings(folder)
    assert warning.startswith(f"{folder}: a conversion was interrupted here, or is under way")


def test_troubles_in_an_archive_are_told_by_its_name(folder: Path, tmp_path: Path) -> None:
    os.truncate(folder / "pages-1.img", 100)
    archive = pack(folder, tmp_path / "checkpoint.tar")
    (problem, *_) = tools.check([str(archive)]).problems
    assert problem.path.startswith(str(archive))
    assert f"{archive}" in problem.message


def test_many_troubles_are_summed_up(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "1", schema=Schema.SIZES)
    for page in range(1, 100, 2):
        builder.add(page, TEXT, region=0)
    stored = bytes(builder.payload)
    builder.payload[:] = b"\xff" * len(stored)
    found = tools.check([str(builder.write())]).problems
    assert len(found) == 21
    assert sum(finding.n_pages for finding in found) == 20
    assert "30 more pages are like these" in found[-1].message
    assert found[0] == Finding(PROBLEM, found[0].path, found[0].message, 0x1000, 1)


def test_neighbours_are_told_of_together(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "1", schema=Schema.SIZES)
    builder.add(1, TEXT * 700, region=0)
    builder.payload[:] = b"\xff" * len(builder.payload)
    (found,) = tools.check([str(builder.write())]).problems
    assert (found.vaddr, found.n_pages) == (0x1000, 700)


def one_process(archive: Path, target: Path, pid: int) -> Path:
    """Copy the images of one process of a checkpoint."""
    target.mkdir()
    pagemap = ImageDirectory(str(archive / "images")).pagemap(pid=pid)
    for name in ("inventory.img", f"pagemap-{pid}.img", pagemap.pages_name):
        shutil.copy(archive / "images" / name, target / name)
    return target


def flip(path: Path, source: random.Random) -> tuple[int, bytes]:
    """Change one byte of a file; return where and what it was."""
    content = path.read_bytes()
    offset = source.randrange(len(content))
    rewrite(path, offset, bytes([content[offset] ^ source.randrange(1, 256)]))
    return offset, content[offset : offset + 1]


@pytest.mark.parametrize("region_bytes", [0, 64 << 10])
@pytest.mark.parametrize("schema", [Schema.SIZES, Schema.BLOCKS])
def test_a_corrupted_byte_is_found_or_harmless(
    image_archive: ImageArchive, tmp_path: Path, schema: Schema, region_bytes: int
) -> None:
    """250 places for each of the four; what passes the check restores to the truth."""
    folder = one_process(image_archive("tree"), tmp_path / "1", 12780)
    tools.compress(str(folder), in_place=True, schema=schema, region_bytes=region_bytes)
    truth = memory_of(folder, pid=12780)
    places = random.Random(region_bytes)
    n_harmless = 0
    for number in range(250):
        name = "inventory.img" if number % 10 == 0 else "pagemap-12780.img"
        offset, old = flip(folder / name, places)
        if not problems(folder):
            n_harmless += 1
            assert memory_of(folder, pid=12780) == truth, (name, offset)
        rewrite(folder / name, offset, old)
    assert problems(folder) == []
    assert n_harmless < 25


@pytest.mark.parametrize("name", ["criu-perpage", "criu-region256k"])
def test_a_corrupted_byte_of_criu_is_found_or_only_moves_pages(
    image_archive: ImageArchive, tmp_path: Path, name: str
) -> None:
    """CRIU writes no checksum: an address may become another one that is free.

    Nothing else may pass unnoticed: no page is lost, and none has other bytes.
    """
    folder = one_process(image_archive(name), tmp_path / "1", 26514)
    pagemap = folder / "pagemap-26514.img"
    truth: Memory = memory_of(folder, pid=26514)
    places = random.Random(9)
    n_moved = 0
    for _ in range(150):
        offset, old = flip(pagemap, places)
        if not problems(folder):
            memory = memory_of(folder, pid=26514)
            n_moved += memory != truth
            assert list(memory.values()) == list(truth.values())
        rewrite(pagemap, offset, old)
    assert n_moved < 30


def test_a_checksum_is_checked_whoever_reads(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(16, TEXT * 5).write()
    tools.compress(str(folder), in_place=True)
    pagemap = ImageDirectory(str(folder)).pagemap(pid=7)
    assert pagemap.head.HasField("checksum")
    content = (folder / "pagemap-7.img").read_bytes()
    # The address 0x10000 as a varint; 0x20000 would be as good.
    assert content.count(b"\x08\x80\x80\x04") == 1
    (folder / "pagemap-7.img").write_bytes(content.replace(b"\x80\x80\x04", b"\x80\x80\x08"))
    with pytest.raises(errors.ImageFormatError, match="its checksum is"):
        memory_of(folder, pid=7)


def test_a_hole_at_the_end_and_beyond_any_disk(tmp_path: Path) -> None:
    """A sparse file of a TiB is checked in no time: holes are not read."""
    builder = Builder(tmp_path / "1").add(1, TEXT)
    builder.entries[0].nr_pages = (1 << 40) // PAGE_SIZE
    folder = builder.write()
    os.truncate(folder / "pages-1.img", 1 << 40)
    (found,) = tools.check([str(folder)]).problems
    assert found.vaddr == PAGE_SIZE + pages_to_bytes(1)
    assert found.n_pages == (1 << 40) // PAGE_SIZE - 1


def test_clones_keep_holes(image_archive: ImageArchive, tmp_path: Path) -> None:
    """What the tests above rely on."""
    archive = clone(image_archive("incremental-dedup"), tmp_path / "clone")
    assert problems(levels_of(archive)[2]) == []


def test_time_goes_with_what_is_stored_not_with_what_is_claimed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A table of some KiB claims GiB of zero pages between two blocks: nothing of it is decoded."""
    chunks = []
    decode = PagesFile.decode

    def counted(file: PagesFile, chunk: Chunk) -> Decoded:
        chunks.append(chunk)
        return decode(file, chunk)

    monkeypatch.setattr(PagesFile, "decode", counted)
    n_zero = 3000
    builder = Builder(tmp_path / "1", schema=Schema.SIZES)
    for number in range(3):
        blocks = [TEXT * 4, *[b""] * n_zero, TEXT * 4, *[b""] * number]
        stored = [encode_block(block) if block else b"" for block in blocks]
        builder.entries.append(
            PagemapEntry(
                (number + 1) << 40,
                len(blocks) * 4,
                region_pages=4,
                sizes=array("I", map(len, stored)),
            )
        )
        builder.payload += b"".join(stored)
    report = tools.check([str(builder.write())])
    assert report.findings == []
    assert report.n_pages == 3 * (n_zero + 2) * 4 + 3 * 4
    assert sum(len(chunk.sizes) for chunk in chunks) <= 3 * (2 + 2)
    with open(tmp_path / "1" / "pages-1.img", "r+b") as stream:
        stream.seek(-8, os.SEEK_END)
        stream.write(b"\xff" * 8)
    (problem,) = tools.check([str(builder.folder)]).problems
    assert problem.vaddr == (3 << 40) + (n_zero + 1) * 4 * PAGE_SIZE
