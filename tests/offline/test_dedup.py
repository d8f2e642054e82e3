"""Deduplicating a chain frees what is superseded, and not one byte more."""

from __future__ import annotations

import errno
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helperd import errors, tools
from helperd.blocks import PAGE_SIZE
from helperd.images.chain import ancestors
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from helperd.kernel.syscalls import punch_hole
from helperd.offline import dedup
from tests.conftest import ImageArchive
from tests.images.checkpoints import (
    Builder,
    Memory,
    assert_is_truth,
    clone,
    content_of,
    holes_of,
    levels_of,
    load_dumps,
    memory_of,
)


def page(seed: int) -> bytes:
    return random.Random(seed).randbytes(PAGE_SIZE)


def pages(*seeds: int) -> bytes:
    return b"".join(page(seed) for seed in seeds)


def allocated(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_blocks * 512 for path in folder.rglob("pages-*.img")}


def covers(outer: list[tuple[int, int]], inner: list[tuple[int, int]]) -> bool:
    return all(any(a <= start and end <= b for a, b in outer) for start, end in inner)


def test_all_that_the_dump_freed_and_more(image_archive: ImageArchive, tmp_path: Path) -> None:
    """incremental-dedup is the same workload dumped with --auto-dedup."""
    archive = clone(image_archive("incremental-dedup"), tmp_path / "dedup")
    (dump,) = load_dumps(archive)
    known = json.loads((archive / "extents.json").read_text())
    images = archive / "images"
    before = content_of(images)
    missed = tools.dedup(str(images / "3"))
    assert_is_truth(images / "3", dump)
    after = content_of(images)
    assert {name: len(content) for name, content in after.items()} == {
        name: len(content) for name, content in before.items()
    }
    assert all(after[name] == before[name] for name in before if "pages-" not in name)
    for name, extents in known.items():
        data = [tuple(pair) for pair in extents["data"]]
        punched = [
            (end, start)
            for (_, end), (start, _) in zip(
                [(0, 0), *data], [*data, (extents["size"], 0)], strict=True
            )
            if end < start
        ]
        assert covers(holes_of(images / name), punched)
    # Pages of the first level that are superseded by the third, with no entry in the second.
    assert missed.freed_bytes > 0
    assert sum(file.freed_bytes for file in missed.files if "/1/" in file.path) > 0


def test_a_chain_that_was_never_deduplicated(image_archive: ImageArchive, tmp_path: Path) -> None:
    archive = clone(image_archive("incremental"), tmp_path / "incremental")
    dump = load_dumps(archive)[0]
    images = archive / "images"
    before = allocated(images)
    planned = tools.dedup(str(images / "3"), dry_run=True)
    assert allocated(images) == before
    assert content_of(archive) == content_of(image_archive("incremental"))
    report = tools.dedup(str(images / "3"))
    assert_is_truth(images / "3", dump)
    assert [file.freed_bytes for file in report.files] == [
        file.freed_bytes for file in planned.files
    ]
    after = allocated(images)
    for file in report.files:
        assert file.freed_bytes == file.n_superseded * PAGE_SIZE > 0
        # The file system may need a block more to keep track of the holes.
        assert 0 <= file.freed_bytes - (before[file.path] - after[file.path]) <= 4096
    untouched = {path for path in before if "/3/" in path}
    assert untouched
    assert all(after[path] == before[path] for path in untouched)
    assert tools.dedup(str(images / "3")).freed_bytes == 0
    assert tools.check([str(images / "3")]).findings == []


@pytest.mark.parametrize("schema", [Schema.SIZES, Schema.BLOCKS])
@pytest.mark.parametrize("region_bytes", [0, 16 << 10])
def test_compressed_chains(
    image_archive: ImageArchive, tmp_path: Path, region_bytes: int, schema: Schema
) -> None:
    archive = clone(image_archive("incremental"), tmp_path / "incremental")
    dump = load_dumps(archive)[0]
    levels = levels_of(archive)
    for level in levels:
        tools.compress(str(level), in_place=True, region_bytes=region_bytes, schema=schema)
    before = content_of(archive)
    report = tools.dedup(str(levels[2]))
    assert report.freed_bytes > 0
    assert_is_truth(levels[2], dump)
    assert tools.check([str(levels[2])]).findings == []
    assert {n: len(c) for n, c in content_of(archive).items()} == {
        n: len(c) for n, c in before.items()
    }
    # What was punched out comes back as holes.
    for level in levels:
        tools.decompress(str(level), in_place=True)
    assert_is_truth(levels[2], dump)
    assert tools.check([str(levels[2])]).findings == []
    assert any(holes_of(path) for path in (archive / "images" / "1").glob("pages-*.img"))


def test_whatever_the_level_and_whoever_is_gone(tmp_path: Path) -> None:
    """Page 1 has no entry in level 2; process 8 exists in level 1 only."""
    Builder(tmp_path / "1").add(1, pages(1, 2, 3, 4)).write()
    Builder(tmp_path / "1", pid=8, pages_id=8).add(1, pages(5, 6)).write()
    Builder(tmp_path / "2").add(2, pages(20)).refer(3).write(parent="../1")
    top = Builder(tmp_path / "3").add(1, pages(10)).refer(2, 2).write(parent="../2")
    before = memory_of(top, pid=7)
    report = tools.dedup(str(top))
    assert [(os.path.basename(f.path), f.n_superseded) for f in report.files] == [
        ("pages-1.img", 0),
        ("pages-1.img", 3),
        ("pages-8.img", 2),
    ]
    assert memory_of(top, pid=7) == before
    assert holes_of(tmp_path / "1" / "pages-1.img") == [
        (0, 2 * PAGE_SIZE),
        (3 * PAGE_SIZE, 4 * PAGE_SIZE),
    ]
    assert holes_of(tmp_path / "1" / "pages-8.img") == [(0, 2 * PAGE_SIZE)]
    assert holes_of(tmp_path / "2" / "pages-1.img") == []


def test_only_blocks_without_a_needed_page_go(tmp_path: Path) -> None:
    """Regions of 4 pages: the second is needed for one page of it."""
    builder = Builder(tmp_path / "1", schema=Schema.SIZES)
    builder.add(0, pages(*range(4), *range(4, 8), *range(8, 12)), region=4).write()
    top = Builder(tmp_path / "2").refer(5).write(parent="../1")
    report = tools.dedup(str(top))
    assert memory_of(top, pid=7) == {5 * PAGE_SIZE: page(5)}
    assert report.freed_bytes == 8 * PAGE_SIZE
    assert holes_of(tmp_path / "1" / "pages-1.img") == [
        (0, 4 * PAGE_SIZE),
        (8 * PAGE_SIZE, 12 * PAGE_SIZE),
    ]


ENTRY = st.tuples(st.integers(0, 3), st.lists(st.integers(0, 5), min_size=1, max_size=12))
LEVEL = st.tuples(
    st.lists(ENTRY, min_size=1, max_size=5), st.sampled_from([None, 0, 1, 3, 8]), st.booleans()
)


@settings(max_examples=80, deadline=None)
@given(st.lists(LEVEL, min_size=2, max_size=4), st.randoms(use_true_random=False))
def test_random_chains_restore_as_before(
    tmp_path_factory: pytest.TempPathFactory,
    levels: list[tuple[list[tuple[int, list[int]]], int | None, bool]],
    source: random.Random,
) -> None:
    root = tmp_path_factory.mktemp("chain")
    held: Memory = {}
    top = root
    for number, (entries, region, aligned) in enumerate(levels):
        schema = Schema.NONE if region is None else Schema.BLOCKS if aligned else Schema.SIZES
        builder = Builder(root / str(number), schema=schema)
        level: Memory = {}
        at = 0
        for gap, kinds in entries:
            at += gap
            addresses = range(at, at + len(kinds))
            if all(address in held for address in addresses) and source.random() < 0.6:
                builder.refer(at, len(kinds))
                level |= {address: held[address] for address in addresses}
            else:
                contents = [
                    page(source.randrange(99)) if kind > 2 else bytes([kind]) * PAGE_SIZE
                    for kind in kinds
                ]
                builder.add(at, b"".join(contents), region=region, aligned=aligned and region == 0)
                level |= dict(zip(addresses, contents, strict=True))
            at += len(kinds)
        held = level
        top = builder.write(parent=f"../{number - 1}" if number else None)
    expected = {address * PAGE_SIZE: content for address, content in held.items()}
    assert memory_of(top, pid=7) == expected
    planned = tools.dedup(str(top), dry_run=True)
    report = tools.dedup(str(top))
    assert report.freed_bytes == planned.freed_bytes
    assert memory_of(top, pid=7) == expected
    assert tools.dedup(str(top)).freed_bytes == 0
    for file in report.files:
        if file.n_superseded == file.n_pages:
            assert os.stat(file.path).st_blocks == 0


def test_punched_files_keep_their_times(tmp_path: Path) -> None:
    first = Builder(tmp_path / "1").add(1, pages(1, 2)).write() / "pages-1.img"
    top = Builder(tmp_path / "2").add(1, pages(3)).refer(2).write(parent="../1")
    long_ago = (1_600_000_000_123_456_789, 1_500_000_000_987_654_321)
    os.utime(first, ns=long_ago)
    assert tools.dedup(str(top)).freed_bytes == PAGE_SIZE
    assert first.stat().st_mtime_ns == long_ago[1]


def test_there_is_a_parent(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(1, pages(1)).write()
    with pytest.raises(errors.UsageError, match="has no parent"):
        tools.dedup(str(folder))


def broken_chain(tmp_path: Path) -> Path:
    Builder(tmp_path / "1").add(1, pages(1, 2, 3)).write()
    return Builder(tmp_path / "2").add(2, pages(9)).refer(3).write(parent="../1")


def test_a_broken_chain_is_not_touched(tmp_path: Path) -> None:
    top = broken_chain(tmp_path)
    os.truncate(tmp_path / "1" / "pages-1.img", 100)
    before = content_of(tmp_path)
    with pytest.raises(errors.ImageError, match="ends at offset 100"):
        tools.dedup(str(top))
    assert content_of(tmp_path) == before


def test_the_chain_is_checked_before_anything_is_freed(tmp_path: Path) -> None:
    """What is left of a dump that is broken may be all that anyone will ever have of it."""
    parent = Builder(tmp_path / "1", schema=Schema.SIZES)
    parent.add(1, pages(*range(8))).add(20, b"text" * PAGE_SIZE, region=1)
    (*_, n_bytes) = parent.entries[-1].sizes or ()
    parent.payload[-n_bytes:] = b"\xff" * n_bytes
    parent.write()
    top = Builder(tmp_path / "2").add(1, pages(*range(8, 16))).refer(20, 4).write(parent="../1")
    assert tools.check([str(top)]).problems
    before, held = content_of(tmp_path), allocated(tmp_path)
    with pytest.raises(errors.ImageError, match="does not decode"):
        tools.dedup(str(top))
    assert content_of(tmp_path) == before
    assert allocated(tmp_path) == held


def test_needed_pages_in_holes_are_lost_unless_told_otherwise(tmp_path: Path) -> None:
    top = broken_chain(tmp_path)
    with open(tmp_path / "1" / "pages-1.img", "r+b") as stream:
        assert punch_hole(stream.fileno(), 2 * PAGE_SIZE, PAGE_SIZE) == 0
    with pytest.raises(errors.ImageError, match="lie in holes"):
        tools.dedup(str(top))
    assert tools.dedup(str(top), holes_are_zeros=True).freed_bytes == 2 * PAGE_SIZE


def test_no_process_in_the_last_dump(tmp_path: Path) -> None:
    """With a page server the pagemaps may still be elsewhere: not everything is superseded."""
    top = broken_chain(tmp_path)
    (top / "pagemap-7.img").unlink()
    before = content_of(tmp_path)
    with pytest.raises(errors.ImageError, match="no pagemap of a process"):
        tools.dedup(str(top))
    assert content_of(tmp_path) == before


def test_hard_links_are_others_too(tmp_path: Path) -> None:
    top = broken_chain(tmp_path)
    os.link(tmp_path / "1" / "pages-1.img", tmp_path / "copy")
    before = content_of(tmp_path)
    with pytest.raises(errors.ImageError, match="has 2 hard links"):
        tools.dedup(str(top))
    assert content_of(tmp_path) == before


def test_a_file_system_that_cannot_punch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = broken_chain(tmp_path)
    before = content_of(tmp_path)
    monkeypatch.setattr(dedup, "punch_hole", lambda fd, offset, n_bytes: errno.EOPNOTSUPP)
    with pytest.raises(errors.ImageError, match=r"cannot punch holes \(E(OP)?NOTSUPP?,") as caught:
        tools.dedup(str(top))
    assert caught.value.exit_code == errors.EXIT_IMAGE
    assert "\n" not in str(caught.value)
    assert content_of(tmp_path) == before


def test_another_process_at_work(tmp_path: Path) -> None:
    from helperd.offline.switch import locked

    top = broken_chain(tmp_path)
    with locked(str(tmp_path / "1")), pytest.raises(errors.UsageError, match="another process"):
        tools.dedup(str(top))


def test_a_file_that_is_another_by_now(tmp_path: Path) -> None:
    top = broken_chain(tmp_path)
    path = tmp_path / "1" / "pages-1.img"
    plans = list(dedup.plan_files(list(ancestors(ImageDirectory(str(top))))))
    path.rename(tmp_path / "kept")
    path.write_bytes((tmp_path / "kept").read_bytes())
    before = content_of(tmp_path)
    with pytest.raises(errors.ImageError, match="not the file any more that was looked at"):
        list(dedup.punch_files(plans, os.geteuid()))
    assert content_of(tmp_path) == before


def test_a_file_that_cannot_be_opened_any_more(tmp_path: Path) -> None:
    top = broken_chain(tmp_path)
    plans = list(dedup.plan_files(list(ancestors(ImageDirectory(str(top))))))
    (tmp_path / "1" / "pages-1.img").unlink()
    with pytest.raises(errors.ImageError, match=r"cannot write .*/pages-1\.img: ENOENT"):
        list(dedup.punch_files(plans, os.geteuid()))


def test_only_the_pagemaps_that_are_named_are_planned(tmp_path: Path) -> None:
    for pid in (7, 8):
        Builder(tmp_path / "1", pid=pid, pages_id=pid).add(1, pages(1, 2)).write()
        top = Builder(tmp_path / "2", pid=pid, pages_id=pid).add(1, pages(3, 4))
        top.write(parent="../1" if pid == 7 else None)
    directories = list(ancestors(ImageDirectory(str(tmp_path / "2"))))
    for names in (["pagemap-7.img"], ["pagemap-8.img"], ["pagemap-7.img", "pagemap-8.img"]):
        assert [plan.file.pagemap for plan in dedup.plan_files(directories, names)] == names
    assert len(list(dedup.plan_files(directories))) == 2


def test_the_chain_is_checked_again_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong while something is freed is told, and not found by a restore."""
    top = Builder(tmp_path / "2")
    Builder(tmp_path / "1").add(1, pages(1, 2)).write()
    top.refer(1).add(2, pages(3)).write(parent="../1")
    punch_files = dedup.punch_files

    def punch_more(*arguments: Any) -> Iterator[dedup.FilePlan]:
        yield from punch_files(*arguments)
        os.truncate(tmp_path / "1" / "pages-1.img", 100)

    monkeypatch.setattr(dedup, "punch_files", punch_more)
    with pytest.raises(errors.ImageError, match="ends at offset 100"):
        tools.dedup(str(tmp_path / "2"))


@pytest.mark.parametrize("refused", [False, True])
def test_no_descriptor_stays_open(tmp_path: Path, refused: bool) -> None:
    top = broken_chain(tmp_path)
    plans = list(dedup.plan_files(list(ancestors(ImageDirectory(str(top))))))
    assert plans[0].ranges
    if refused:
        os.link(tmp_path / "1" / "pages-1.img", tmp_path / "copy")
    before = sorted(os.listdir("/proc/self/fd"))
    try:
        list(dedup.punch_files(plans, os.geteuid()))
    except errors.ImageError:
        assert refused
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_disk_that_fails_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    top = broken_chain(tmp_path)

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(errors.HelperdError, match="EIO") as caught:
        tools.dedup(str(top))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("n_problems", [1, 3])
def test_it_is_told_how_much_is_wrong(tmp_path: Path, n_problems: int) -> None:
    parent = Builder(tmp_path / "1", schema=Schema.SIZES)
    parent.add(20, b"text" * PAGE_SIZE, region=1)
    (*_, n_bytes) = sizes = list(parent.entries[-1].sizes or ())
    for index in range(n_problems):
        at = sum(sizes[:index])
        parent.payload[at : at + n_bytes] = b"\xff" * n_bytes
    parent.write()
    top = Builder(tmp_path / "2").add(1, pages(1)).refer(20, 4).write(parent="../1")
    problems = tools.check([str(top)]).problems
    with pytest.raises(errors.ImageError) as caught:
        tools.dedup(str(top))
    more = f" (and {len(problems) - 1} more problems; see helperd check)"
    assert str(caught.value) == problems[0].message + (more if len(problems) > 1 else "")
