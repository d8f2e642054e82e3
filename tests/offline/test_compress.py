"""Compressing a checkpoint: the same bytes afterwards, or nothing changed."""

from __future__ import annotations

import os
import random
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helperd import errors
from helperd.blocks import PAGE_SIZE, split_into_regions
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from helperd.images.pagemap import PE_LAZY, PE_PARENT, PagemapEntry
from helperd.offline import convert_directory, convert_pagemap, switch
from helperd.offline.compress import compress_directory
from helperd.offline.decompress import decompress_directory
from tests.conftest import ImageArchive
from tests.images.checkpoints import (
    UNCOMPRESSED,
    Builder,
    Content,
    assert_is_truth,
    content_of,
    load_dumps,
    memory_of,
)


def copy_images(archive: Path, tmp_path: Path) -> Path:
    """Copy the images of an archive, so that they can be changed."""
    return Path(shutil.copytree(archive / "images", tmp_path / "images", symlinks=True))


@pytest.mark.parametrize("region_bytes", [0, 64 << 10, 256 << 10, 1 << 20])
@pytest.mark.parametrize("name", UNCOMPRESSED)
def test_copies_hold_the_dumped_bytes(
    image_archive: ImageArchive, tmp_path: Path, name: str, region_bytes: int
) -> None:
    archive = image_archive(name)
    for dump in sorted(load_dumps(archive), key=lambda dump: str(dump["dir"])):
        source = archive / dump["dir"]
        output = tmp_path / source.name
        before = content_of(source)
        report = compress_directory(str(source), output=str(output), region_bytes=region_bytes)
        assert content_of(source) == before
        after = content_of(output)
        assert after.keys() == before.keys()
        assert_is_truth(output, dump)
        images = ImageDirectory(str(output))
        assert images.inventory is not None
        assert images.inventory.message.compress == (2 if region_bytes else 1)
        assert images.inventory.message.compress_region_size == region_bytes
        for pid, file in zip(images.pids, report.files, strict=True):
            pagemap = images.pagemap(pid=pid)
            stored = [kind for entry in pagemap.entries if entry.present for kind in kinds(entry)]
            for entry in pagemap.entries:
                assert entry.present == (entry.sizes is not None)
                assert not entry.present or entry.region_pages * PAGE_SIZE == region_bytes
            assert file.n_zero == stored.count("zero")
            assert file.n_raw == stored.count("raw")
            assert file.n_lz4 == stored.count("lz4")
            assert file.bytes_after == len(after[pagemap.pages_name])
            assert file.bytes_before == len(before[pagemap.pages_name])
            assert file.bytes_after < file.bytes_before
            assert file.n_pages == pagemap.n_pages
        untouched = [n for n in before if "shmem" in n or not n.startswith(("page", "inventory"))]
        assert untouched
        assert all(after[name] == before[name] for name in untouched)


@pytest.mark.parametrize("name", UNCOMPRESSED)
def test_in_place_holds_the_dumped_bytes(
    image_archive: ImageArchive, tmp_path: Path, name: str
) -> None:
    archive = image_archive(name)
    images = copy_images(archive, tmp_path)
    dumps = load_dumps(archive)
    # In any order: a chain is half compressed in between.
    for dump in dumps:
        folder = images.parent / dump["dir"]
        before = len(os.listdir(folder))
        compress_directory(str(folder), in_place=True, region_bytes=64 << 10)
        assert len(os.listdir(folder)) == before
        assert not switch.is_interrupted(str(folder))
        for other in dumps:
            assert_is_truth(images.parent / other["dir"], other)


def test_criu_finds_the_same_blocks(image_archive: ImageArchive, tmp_path: Path) -> None:
    for name, region_bytes in (("criu-perpage", 0), ("criu-region256k", 256 << 10)):
        images = image_archive(name) / "images"
        plain = Builder(tmp_path / name, pid=26514)
        original = ImageDirectory(str(images)).pagemap(pid=26514)
        memory = memory_of(images, pid=26514)
        for entry in original.entries:
            addresses = range(entry.vaddr, entry.end, PAGE_SIZE)
            plain.add(entry.vaddr // PAGE_SIZE, b"".join(memory[at] for at in addresses))
        output = tmp_path / f"{name}-again"
        compress_directory(str(plain.write()), output=str(output), region_bytes=region_bytes)
        again = ImageDirectory(str(output)).pagemap(pid=26514)
        assert len(again.entries) == len(original.entries)
        for ours, criu in zip(again.entries, original.entries, strict=True):
            assert ours.region_pages == criu.region_pages
            # Another LZ4 may find other matches, but not other kinds of blocks.
            assert kinds(ours) == kinds(criu)


def kinds(entry: PagemapEntry) -> list[str]:
    """Return how each block of a compressed entry is stored."""
    assert entry.sizes is not None
    pages = split_into_regions(entry.nr_pages, entry.block_pages)
    return [
        "zero" if size == 0 else "raw" if size == n_pages * PAGE_SIZE else "lz4"
        for size, n_pages in zip(entry.sizes, pages, strict=True)
    ]


def test_higher_acceleration_is_recorded_and_still_exact(
    image_archive: ImageArchive, tmp_path: Path
) -> None:
    archive = image_archive("tree")
    (dump,) = load_dumps(archive)
    sizes = []
    for acceleration in (1, 50):
        output = tmp_path / str(acceleration)
        report = compress_directory(
            str(archive / "images"), output=str(output), acceleration=acceleration
        )
        assert_is_truth(output, dump)
        inventory = ImageDirectory(str(output)).inventory
        assert inventory is not None
        assert inventory.message.HasField("acceleration_or_block_size") == (acceleration != 1)
        sizes.append(sum(file.bytes_after for file in report.files))
    assert sizes[0] < sizes[1]


def test_entries_without_payload_and_unknown_fields_stay(tmp_path: Path) -> None:
    unknown = b"\x9a\x06\x05later"
    builder = Builder(tmp_path / "1")
    builder.add(1, bytes(PAGE_SIZE)).refer(2, 3).refer(5, 4, PE_LAZY).add(9, b"x" * PAGE_SIZE)
    for entry in builder.entries:
        entry.extra = unknown
    folder = builder.write()
    compress_directory(str(folder), output=str(tmp_path / "2"))
    entries = ImageDirectory(str(tmp_path / "2")).pagemap(pid=7).entries
    assert [e.vaddr for e in entries] == [e.vaddr for e in builder.entries]
    assert [e.flags for e in entries] == [e.flags for e in builder.entries]
    assert all(entry.extra == unknown for entry in entries)
    assert [entry.sizes is None for entry in entries] == [False, True, True, False]
    assert list(entries[0].sizes or ()) == [0]


def test_packed_payloads_are_not_marked_as_aligned(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "1")
    for at in (1, 3):
        builder.add(at, b"x" * PAGE_SIZE, aligned=True)
    before = memory_of(builder.write(), pid=7)
    compress_directory(str(builder.folder), in_place=True)
    assert memory_of(builder.folder, pid=7) == before


def test_large_entries_are_split(
    image_archive: ImageArchive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("encode_entries", "convert_columns"):
        monkeypatch.setattr(f"helperd.offline.{module}.MAX_ENTRY_PAGES", 24)
    monkeypatch.setattr("helperd.offline.encode_entries._PIECE_PAGES", 8)
    archive = image_archive("incremental-criu317")
    images = copy_images(archive, tmp_path)
    for dump in load_dumps(archive):
        compress_directory(str(images.parent / dump["dir"]), in_place=True, region_bytes=20 << 10)
        pagemap = ImageDirectory(str(images.parent / dump["dir"])).pagemap(
            pid=dump["processes"][0]["pid"]
        )
        assert max(entry.nr_pages for entry in pagemap.entries if entry.present) == 24
    for dump in load_dumps(archive):
        for process in dump["processes"]:
            memory = memory_of(images.parent / dump["dir"], pid=process["pid"])
            original = memory_of(archive / dump["dir"], pid=process["pid"])
            assert memory == original


@pytest.mark.parametrize("largest", [1, 20])
@pytest.mark.parametrize("region_bytes", [None, 4 << 10, 16 << 10, 64 << 10, 4 << 20])
@pytest.mark.parametrize("schema", [Schema.SIZES, Schema.BLOCKS])
def test_by_columns_and_entry_by_entry_the_same_comes_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    schema: Schema,
    region_bytes: int | None,
    largest: int,
) -> None:
    source = random.Random(largest)
    kinds = (
        lambda: bytes(PAGE_SIZE),
        lambda: source.randbytes(PAGE_SIZE),
        lambda: source.randbytes(64) * 64,
    )
    builder = Builder(tmp_path / "plain")
    at = 0
    for index in range(700):
        if index % 9 == 8:
            builder.refer(at, 3, flags=PE_PARENT)
            at += 3
            continue
        # Some are one kind of page only, so that all their blocks are raw.
        kind = kinds[source.randrange(3)]
        n_pages = source.randint(1, largest)
        mixed = source.random() < 0.5
        content = b"".join(
            kinds[source.randrange(3)]() if mixed else kind() for _ in range(n_pages)
        )
        builder.add(at, content)
        at += n_pages + source.choice((0, 1, 1 << 20, 1 << 33))
    builder.write()

    def convert(where: str) -> list[Content]:
        first, again = tmp_path / f"{where}-compressed", tmp_path / f"{where}-plain"
        reports = [
            compress_directory(
                str(builder.folder), output=str(first), region_bytes=region_bytes, schema=schema
            ),
            decompress_directory(str(first), output=str(again)),
        ]
        figures.append([report.files for report in reports])
        return [content_of(first), content_of(again)]

    figures: list[object] = []
    by_columns = convert("columns")
    monkeypatch.setattr("helperd.offline.convert_pagemap.plain_columns", lambda pagemap: None)
    assert by_columns == convert("entries")
    assert figures[0] == figures[1]
    for name in ("pagemap-7.img", "pages-1.img"):
        assert by_columns[1][name] == (builder.folder / name).read_bytes()


def test_nothing_stored_and_no_pages_file(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").refer(1).write(parent="../0")
    (folder / "pages-1.img").unlink()
    report = compress_directory(str(folder), output=str(tmp_path / "2"))
    assert report.files[0].bytes_after == 0
    assert not (tmp_path / "2" / "pages-1.img").exists()
    compress_directory(str(folder), in_place=True)
    assert ImageDirectory(str(folder)).schema is Schema.SIZES


def test_copies_keep_links_modes_times_and_holes(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(1, b"x" * PAGE_SIZE).write(parent="../0")
    (folder / "sub").mkdir()
    (folder / "sub" / "note").write_text("kept")
    (folder / "dangling").symlink_to("nowhere")
    with open(folder / "pages-9.img", "wb") as sparse:
        sparse.seek(1 << 20)
        sparse.write(b"data")
        sparse.truncate(64 << 20)
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if not path.is_symlink():
            path.chmod(0o700 if path.is_dir() else 0o640)
            os.utime(path, ns=(10**18 + number, 10**18 + number))
    os.utime(folder, (10**9, 10**9))
    folder.chmod(0o750)
    output = tmp_path / "2"
    compress_directory(str(folder), output=str(output))
    assert os.readlink(output / "parent") == "../0"
    assert os.readlink(output / "dangling") == "nowhere"
    assert (output / "pages-9.img").read_bytes() == (folder / "pages-9.img").read_bytes()
    assert (output / "pages-9.img").stat().st_blocks == (folder / "pages-9.img").stat().st_blocks
    for path in [folder, *folder.rglob("*")]:
        before, after = path.lstat(), (output / path.relative_to(folder)).lstat()
        assert stat.filemode(after.st_mode) == stat.filemode(before.st_mode), path
        assert after.st_mtime_ns == before.st_mtime_ns, path
        assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


def without_inventory(folder: Path) -> None:
    (folder / "inventory.img").unlink()


def without_pagemaps(folder: Path) -> None:
    for path in folder.glob("pagemap-*"):
        path.unlink()


def without_pages(folder: Path) -> None:
    (folder / "pages-5.img").unlink()


def short_pages(folder: Path) -> None:
    os.truncate(folder / "pages-5.img", os.path.getsize(folder / "pages-5.img") - 1)


def long_pages(folder: Path) -> None:
    with open(folder / "pages-5.img", "ab") as pages:
        pages.write(b"more")


def cut_pagemap(folder: Path) -> None:
    os.truncate(folder / "pagemap-12780.img", 40)


def shared_pages(folder: Path) -> None:
    # Another process of the dump: what pstree.img does not list is left over, and nobody's.
    shutil.copy(folder / "pagemap-12779.img", folder / "pagemap-12780.img")


REFUSED = [
    (without_inventory, errors.ImageError, "has no inventory.img"),
    (without_pagemaps, errors.ImageError, "no pagemap of a process"),
    (without_pages, errors.ImageError, "pages-5.img"),
    (short_pages, errors.ShortImage, "pages-5.img: ends at"),
    (long_pages, errors.ImageFormatError, "the rest would be lost"),
    (cut_pagemap, errors.ImageFormatError, "pagemap-12780.img"),
    (shared_pages, errors.ImageFormatError, "both name pages-[45].img"),
]


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize(("damage", "cls", "message"), REFUSED)
def test_a_refused_checkpoint_is_not_changed(
    image_archive: ImageArchive,
    tmp_path: Path,
    damage: Callable[[Path], None],
    cls: type[errors.HelperdError],
    message: str,
    in_place: bool,
) -> None:
    folder = copy_images(image_archive("tree"), tmp_path)
    damage(folder)
    before = content_of(tmp_path)
    output = None if in_place else str(tmp_path / "output")
    with pytest.raises(cls, match=message) as caught:
        compress_directory(str(folder), output=output, in_place=in_place)
    assert "\n" not in str(caught.value)
    assert content_of(tmp_path) == before
    assert os.listdir(tmp_path) == ["images"]


def test_a_copy_refuses_what_it_cannot_copy(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(1, b"x" * PAGE_SIZE).write()
    os.mkfifo(folder / "zzz")
    (tmp_path / "empty").mkdir()
    with pytest.raises(errors.ImageError, match="zzz: neither a file"):
        compress_directory(str(folder), output=str(tmp_path / "empty"))
    assert os.listdir(tmp_path / "empty") == []


def test_outputs_that_make_no_sense(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(1, b"x" * PAGE_SIZE).write()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    before = content_of(tmp_path)
    for output, message in (
        (folder, "lies in"),
        (folder / "sub", "lies in"),
        (tmp_path / "full", "not an empty directory"),
        (tmp_path / "full" / "file", "not an empty directory"),
    ):
        with pytest.raises(errors.UsageError, match=message):
            compress_directory(str(folder), output=str(output))
    with pytest.raises(errors.ImageError, match="ENOENT"):
        compress_directory(str(folder), output=str(tmp_path / "gone" / "2"))
    assert content_of(tmp_path) == before


@pytest.mark.parametrize(
    "arguments",
    [
        {"output": "x", "in_place": True},
        {"schema": Schema.NONE},
        {"threads": -1},
        {"threads": 1000},
        {"in_place": True, "region_bytes": 5000},
        {"in_place": True, "region_bytes": 8 << 20},
        {"in_place": True, "region_bytes": -4096},
        {"in_place": True, "acceleration": 0},
        {"in_place": True, "acceleration": 1 << 20},
    ],
)
def test_arguments_that_make_no_sense(tmp_path: Path, arguments: dict[str, int]) -> None:
    folder = Builder(tmp_path / "1").add(1, b"x" * PAGE_SIZE).write()
    before = content_of(tmp_path)
    with pytest.raises(errors.UsageError):
        compress_directory(str(folder), **arguments)
    assert content_of(tmp_path) == before


@pytest.mark.parametrize("in_place", [False, True])
def test_a_full_disk_changes_nothing(
    image_archive: ImageArchive, tmp_path: Path, in_place: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_images(image_archive("tree"), tmp_path)
    before = content_of(tmp_path)
    real = convert_directory.convert

    def convert_some(
        job: convert_pagemap.Job, *arguments: Any, **options: Any
    ) -> convert_pagemap.FileReport:
        report = real(job, *arguments, **options)
        if job.name == "pagemap-12779.img":
            raise OSError(28, "No space left on device")
        return report

    monkeypatch.setattr("helperd.offline.convert_directory.convert", convert_some)
    output = None if in_place else str(tmp_path / "output")
    with pytest.raises(errors.ResourceError, match=r"cannot convert .*ENOSPC"):
        compress_directory(str(folder), output=output, in_place=in_place)
    assert content_of(tmp_path) == before


def test_two_runs_in_place_do_not_meet(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(1, b"x" * PAGE_SIZE).write()
    with (
        switch.locked(str(folder)),
        pytest.raises(errors.UsageError, match="another process"),
    ):
        compress_directory(str(folder), in_place=True)
    compress_directory(str(folder), in_place=True)
