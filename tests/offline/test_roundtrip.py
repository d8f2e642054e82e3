"""Compress, check, decompress: the same pages, and the same holes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helperd import tools
from helperd.blocks import PAGE_SIZE
from helperd.errors import CorruptBlock, UsageError
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from helperd.images.pagemap import PE_LAZY, PE_PARENT
from helperd.kernel.syscalls import punch_hole
from helperd.offline import convert_directory
from tests.conftest import ImageArchive
from tests.images.checkpoints import (
    COMPRESSED,
    UNCOMPRESSED,
    Builder,
    assert_is_truth,
    clone,
    content_of,
    holes_of,
    levels_of,
    load_dumps,
    memory_of,
)

BOTH_SCHEMAS = pytest.mark.parametrize("schema", [Schema.SIZES, Schema.BLOCKS])


@BOTH_SCHEMAS
@pytest.mark.parametrize("region_bytes", [0, 256 << 10])
@pytest.mark.parametrize("name", UNCOMPRESSED)
def test_decompressing_is_the_inverse(
    image_archive: ImageArchive, tmp_path: Path, name: str, region_bytes: int, schema: Schema
) -> None:
    archive = clone(image_archive(name), tmp_path / name)
    before = content_of(archive)
    levels = levels_of(archive)
    for level in levels:
        tools.compress(str(level), in_place=True, region_bytes=region_bytes, schema=schema)
        assert ImageDirectory(str(level)).schema is schema
    for dump in load_dumps(archive):
        assert_is_truth(archive / dump["dir"], dump)
    assert tools.check([str(levels[-1])]).findings == []
    for level in levels:
        tools.decompress(str(level), in_place=True)
    assert content_of(archive) == before


@BOTH_SCHEMAS
@pytest.mark.parametrize("region_bytes", [0, 64 << 10])
def test_holes_of_a_deduplicated_chain_stay_holes(
    image_archive: ImageArchive, tmp_path: Path, region_bytes: int, schema: Schema
) -> None:
    archive = clone(image_archive("incremental-dedup"), tmp_path / "images")
    (dump,) = load_dumps(archive)
    levels = levels_of(archive)
    pages = sorted((archive / "images").rglob("pages-*.img"))
    before = {path: (path.read_bytes(), holes_of(path)) for path in pages}
    for level in levels:
        tools.compress(str(level), in_place=True, region_bytes=region_bytes, schema=schema)
    # Nothing needed was punched out, and nothing that was is taken for a zero page.
    assert tools.check([str(levels[-1])]).findings == []
    assert not tools.check([str(levels[0])]).ok
    assert_is_truth(archive / dump["dir"], dump)
    for level in levels:
        tools.decompress(str(level), in_place=True)
    assert {path: (path.read_bytes(), holes_of(path)) for path in pages} == before
    assert tools.check([str(levels[-1])]).findings == []


@pytest.mark.parametrize("name", COMPRESSED)
def test_what_criu_compressed(image_archive: ImageArchive, tmp_path: Path, name: str) -> None:
    archive = clone(image_archive(name), tmp_path / name)
    (dump,) = load_dumps(archive)
    images = archive / dump["dir"]
    original = memory_of(images, pid=dump["processes"][0]["pid"])
    tools.decompress(str(images), in_place=True)
    assert ImageDirectory(str(images)).schema is Schema.NONE
    assert_is_truth(images, dump)
    pages = next(images.glob("pages-*.img")).read_bytes()
    assert pages == b"".join(original.values())
    for region_bytes in (0, 256 << 10):
        again = tmp_path / str(region_bytes)
        tools.compress(str(images), output=str(again), region_bytes=region_bytes)
        assert tools.check([str(again)]).findings == []
        assert_is_truth(again, dump)


@BOTH_SCHEMAS
@pytest.mark.parametrize("name", ["criu-perpage", "criu-region256k"])
def test_force_compresses_again(
    image_archive: ImageArchive, tmp_path: Path, name: str, schema: Schema
) -> None:
    archive = clone(image_archive(name), tmp_path / name)
    (dump,) = load_dumps(archive)
    images = archive / dump["dir"]
    before = content_of(images)
    with pytest.raises(UsageError, match="--force"):
        tools.compress(str(images), in_place=True, region_bytes=1 << 20, schema=schema)
    assert content_of(images) == before
    for region_bytes in (1 << 20, 0):
        report = tools.compress(
            str(images), in_place=True, region_bytes=region_bytes, schema=schema, force=True
        )
        assert report.changed
        assert_is_truth(images, dump)
        directory = ImageDirectory(str(images))
        assert directory.schema is schema
        (pagemap,) = [directory.pagemap(pid=pid) for pid in directory.pids]
        regions = {entry.region_pages for entry in pagemap.entries if not entry.is_raw}
        assert regions == {region_bytes // PAGE_SIZE}
        assert content_of(images).keys() == before.keys()


def test_nothing_to_do_is_no_error(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").add(1, b"x" * 8 * PAGE_SIZE).write()
    assert not tools.decompress(str(folder)).changed
    assert tools.compress(str(folder), in_place=True, region_bytes=16 << 10).changed
    before = content_of(folder)
    for region_bytes in (None, 16 << 10):
        report = tools.compress(str(folder), in_place=True, region_bytes=region_bytes)
        assert (report.changed, report.files) == (False, ())
    assert content_of(folder) == before
    copy = tmp_path / "2"
    assert not tools.compress(str(folder), output=str(copy)).changed
    assert content_of(copy) == before


def test_a_dry_run_changes_nothing(image_archive: ImageArchive, tmp_path: Path) -> None:
    archive = clone(image_archive("tree"), tmp_path / "tree")
    before = content_of(archive)
    tools.compress(str(archive / "images"), dry_run=True)
    tools.compress(str(archive / "images"), output=str(tmp_path / "new"), dry_run=True)
    assert content_of(archive) == before
    assert not (tmp_path / "new").exists()


def test_only_what_is_left_is_compressed(tmp_path: Path) -> None:
    text, noise = bytes(range(64)) * 64, bytes(i * i * 7 % 251 for i in range(PAGE_SIZE))
    builder = Builder(tmp_path / "1", schema=Schema.SIZES)
    builder.add(1, text * 3).add(4, bytes(PAGE_SIZE) + text * 8, region=4)
    builder.refer(20, 5).add(30, noise, region=0).add(31, text * 2).refer(
        40, 2, PE_LAZY | PE_PARENT
    )
    folder = builder.write()

    def stored() -> dict[int, bytes]:
        pagemap = ImageDirectory(str(folder)).pagemap(pid=7)
        payload = (folder / pagemap.pages_name).read_bytes()
        return {
            entry.vaddr // PAGE_SIZE: payload[entry.offset : entry.offset + entry.payload_bytes]
            for entry in pagemap.entries
        }

    before = stored()
    assert tools.compress(str(folder), in_place=True, region_bytes=8 << 10).changed
    pagemap = ImageDirectory(str(folder)).pagemap(pid=7)
    assert [entry.region_pages for entry in pagemap.entries] == [2, 4, 0, 0, 2, 0]
    after = stored()
    assert all(after[page] == before[page] for page in (4, 20, 30, 40))
    assert len(after[1]) < len(before[1])
    tools.decompress(str(folder), in_place=True)
    expanded = (folder / "pages-1.img").read_bytes()
    assert expanded == text * 3 + bytes(PAGE_SIZE) + text * 8 + noise + text * 2


PAGES = st.sampled_from([bytes(PAGE_SIZE), b"ab" * 2048, bytes(range(256)) * 16, b"", None])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.lists(PAGES, min_size=1, max_size=9), st.booleans()), max_size=6),
    st.sampled_from([0, 1, 2, 5, 1024]),
    st.sampled_from([Schema.SIZES, Schema.BLOCKS]),
    st.integers(1, 6),
)
def test_any_pages_and_holes(
    tmp_path_factory: pytest.TempPathFactory,
    entries: list[tuple[list[bytes | None], bool]],
    region_pages: int,
    schema: Schema,
    piece_pages: int,
) -> None:
    """None is a page in a hole, b"" one that does not compress."""
    tmp_path = tmp_path_factory.mktemp("any")
    builder = Builder(tmp_path / "1")
    holes: list[int] = []
    page = 1
    for contents, apart in entries:
        for content in contents:
            if content is None:
                holes.append(len(builder.payload))
            noise = bytes((page * 31 + i * i) % 256 ^ (i >> 8) for i in range(PAGE_SIZE))
            builder.payload += bytes(PAGE_SIZE) if content is None else content or noise
        payload = bytes(builder.payload[-len(contents) * PAGE_SIZE :])
        del builder.payload[-len(payload) :]
        builder.add(page, payload)
        page += len(contents) + apart
    folder = builder.write()
    pages = folder / "pages-1.img"
    with open(pages, "r+b") as stream:
        for offset in holes:
            assert punch_hole(stream.fileno(), offset, PAGE_SIZE) == 0
    before, holes_before = content_of(folder), holes_of(pages)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("helperd.offline.encode_entries._PIECE_PAGES", piece_pages)
        tools.compress(
            str(folder), in_place=True, region_bytes=region_pages * PAGE_SIZE, schema=schema
        )
    memory = memory_of(folder, pid=7)
    assert b"".join(memory.values()) == before["pages-1.img"]
    assert tools.check([str(folder)]).ok == (not holes)
    tools.decompress(str(folder), in_place=True)
    assert (folder / "pages-1.img").read_bytes() == before["pages-1.img"]
    assert holes_of(pages) == holes_before
    if holes:
        # What is lost is lost: it is not taken for zeros that were dumped.
        with pytest.raises(CorruptBlock, match="lies in a hole"):
            memory_of(folder, pid=7)
    else:
        assert memory_of(folder, pid=7) == memory


def test_progress_ends_at_the_end(image_archive: ImageArchive, tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    output = str(tmp_path / "new")
    tools.compress(
        str(image_archive("tree") / "images"),
        output=output,
        progress=lambda done, total: calls.append((done, total)),
    )
    assert calls == sorted(calls)
    assert calls[-1] == (2404 * PAGE_SIZE, 2404 * PAGE_SIZE)
    calls.clear()
    tools.check([output], progress=lambda done, total: calls.append((done, total)))
    assert calls[-1][0] == calls[-1][1] > 0


def test_one_thread_makes_the_same_files(image_archive: ImageArchive, tmp_path: Path) -> None:
    images = str(image_archive("py-heap") / "images")
    contents = []
    for threads in (1, 3):
        output = tmp_path / str(threads)
        tools.compress(images, output=str(output), region_bytes=64 << 10, threads=threads)
        contents.append(content_of(output))
        tools.decompress(str(output), in_place=True, threads=threads)
        contents.append(content_of(output))
    assert contents[0] == contents[2]
    assert contents[1] == contents[3] == content_of(Path(images))
    assert convert_directory.STAGING_NAME not in contents[0]
