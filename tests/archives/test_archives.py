"""Archives of container engines: everything that is not memory comes back to the byte."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helperd import commands, tools
from helperd.errors import ImageError, ImageFormatError, InternalError, ShortImage, UsageError
from helperd.images import archive as archive_module
from helperd.images import outer as outer_module
from helperd.images.archive import ArchiveReader
from helperd.images.directory import ImageDirectory
from helperd.images.feed import WindowFeed
from helperd.images.outer import OUTERS
from helperd.offline import archived
from helperd.offline.archived import ArchivedCheckpoints
from helperd.offline.summary import show_archive
from helperd.offline.unpack import unpack_archive
from tests.archives.engines import (
    COMPRESS,
    MANAGERS,
    MEMBERS,
    hostile,
    lay_out,
    member,
    pack,
    tree_of,
    unpacked,
)
from tests.conftest import ImageArchive
from tests.images.checkpoints import levels_of, memory_of


@pytest.fixture
def images(image_archive: ImageArchive) -> Path:
    return levels_of(image_archive("tree"))[-1]


def all_memory_of(folder: Path) -> list[dict[int, bytes]]:
    """Return the pages of all processes and shared memory, by address."""
    directory = ImageDirectory(str(folder))
    return [
        *(memory_of(folder, pid=pid) for pid in directory.pids),
        *(memory_of(folder, shmem_id=shmem_id) for shmem_id in directory.shmem_ids),
    ]


def compressed(path: Path, outer: str) -> Path:
    """Compress a tar as a whole."""
    target = path.with_name(f"{path.name}.{outer}")
    target.write_bytes(COMPRESS[outer](path.read_bytes()))
    return target


@pytest.mark.parametrize("outer", OUTERS)
@pytest.mark.parametrize("engine", MEMBERS)
def test_round_trip(engine: str, outer: str, images: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "container", engine, images)
    archive = compressed(pack(folder, tmp_path / "plain.tar"), outer)
    packed, back = tmp_path / "packed.tar", tmp_path / "back.tar"
    report = tools.compress(str(archive), output=str(packed), region_bytes=256 << 10, outer="none")
    assert report.changed
    assert packed.stat().st_size < (tmp_path / "plain.tar").stat().st_size / 2
    inside = unpacked(packed, tmp_path / "packed")
    assert tools.check([str(inside / "checkpoint")]).ok
    assert all_memory_of(inside / "checkpoint") == all_memory_of(images)
    before, after = tree_of(folder), tree_of(inside)
    assert before.keys() == after.keys()
    differ = {name for name in before if before[name] != after[name]}
    processes = {f"pagemap-{pid}.img" for pid in ImageDirectory(str(images)).pids}
    differ_in = {Path(name).name for name in differ}
    assert differ_in > {"inventory.img", *processes}
    assert all(name.startswith("pages-") for name in differ_in - processes - {"inventory.img"})
    tools.decompress(str(packed), output=str(back), outer=outer)
    assert tree_of(unpacked(back, tmp_path / "back")) == before


@pytest.mark.parametrize("layout", ["ustar", "gnu", "pax"])
def test_a_round_trip_changes_no_byte(layout: str, images: Path, tmp_path: Path) -> None:
    """Whatever an archiver's way to write headers is: Go's is not Python's."""
    folder = lay_out(tmp_path / "container", "podman", images)
    archive = pack(folder, tmp_path / "plain.tar", "--format", layout, "--sort=name")
    packed, back = tmp_path / "packed.tar", tmp_path / "back.tar"
    tools.compress(str(archive), output=str(packed))
    tools.decompress(str(packed), output=str(back))
    assert back.read_bytes() == archive.read_bytes()


def headers(path: Path) -> list[tuple[object, ...]]:
    with tarfile.open(path) as tar:
        return [
            (i.name, i.mode, i.uid, i.gid, i.uname, i.gname, i.mtime, i.type, i.linkname)
            for i in tar.getmembers()
        ]


@pytest.mark.parametrize("layout", ["pax", "gnu"])
def test_members_keep_their_order_and_metadata(layout: str, images: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "container", "podman", images)
    (folder / "checkpoint" / ("n" * 180)).write_bytes(b"a long name")
    os.chmod(folder / "rootfs-diff.tar", 0o640)
    options = (
        "--sort=name",
        "--format",
        layout,
        "--owner=nobody:4711",
        "--mtime=2026-01-02 03:04:05.678",
    )
    archive = pack(folder, tmp_path / "plain.tar", *options)
    packed = tmp_path / "packed.tar"
    tools.compress(str(archive), output=str(packed))
    assert headers(packed) == headers(archive)


def test_what_is_not_ours_is_the_same_bytes(images: Path, tmp_path: Path) -> None:
    """Sparse members, xattrs, end mark: all between our members is copied as it is."""
    folder = lay_out(tmp_path / "container", "cri-o", images)
    with (folder / "rootfs-diff.tar").open("wb") as file:
        file.write(b"start")
        file.seek(8 << 20)
        file.write(b"end")
    archive = pack(folder, tmp_path / "plain.tar", "--sparse", "--format=pax", "--sort=name")
    packed = tmp_path / "packed.tar"
    tools.compress(str(archive), output=str(packed))

    def foreign(path: Path) -> list[bytes]:
        found = []
        with ArchiveReader(str(path)) as reader:
            for item in reader.members():
                if item.name.startswith("checkpoint/"):
                    continue
                found.append(item.header + b"".join(piece for _, piece in item.pieces()))
        return found

    assert foreign(packed) == foreign(archive)
    assert packed.stat().st_size % 512 == 0


def test_pagemaps_come_before_their_pages(images: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "container", "podman", images)
    archive = tmp_path / "plain.tar"
    with tarfile.open(archive, "w") as tar:
        for path in sorted(folder.rglob("*"), reverse=True):  # pages-2.img before pagemap-*.img
            tar.add(path, str(path.relative_to(folder)), recursive=False)
    packed = tmp_path / "packed.tar"
    tools.compress(str(archive), output=str(packed))
    names = [header[0] for header in headers(packed)]
    assert sorted(map(str, names)) == sorted(str(header[0]) for header in headers(archive))
    directory = ImageDirectory(str(folder / "checkpoint"))
    for pid in directory.pids:
        pages = directory.pagemap(pid=pid).pages_name
        place = names.index
        assert place(f"checkpoint/pagemap-{pid}.img") < place(f"checkpoint/{pages}")
    assert tools.check([str(unpacked(packed, tmp_path / "packed") / "checkpoint")]).ok


@pytest.mark.parametrize("outer", OUTERS)
@pytest.mark.parametrize("order", ["pagemaps first", "pagemaps last"])
@pytest.mark.parametrize(("copied", "times"), [("all", 2), ("all but the largest", 2), ("none", 3)])
def test_what_is_compressed_as_a_whole_is_decompressed_twice(
    outer: str,
    order: str,
    copied: str,
    times: int,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once more only for pages that are not copied, and stay as they are: shared memory."""
    folder = lay_out(tmp_path / "container", "podman", images)
    largest = max(path.stat().st_size for path in images.glob("pages-*.img"))
    copied_bytes = {"all": largest, "all but the largest": largest - 1, "none": 0}[copied]
    monkeypatch.setattr(archived, "_COPIED_BYTES", copied_bytes)
    archive = tmp_path / "plain.tar"
    with tarfile.open(archive, "w") as tar:
        paths = [path for path in folder.rglob("*") if path.is_file()]
        for path in sorted(paths, reverse=order == "pagemaps last"):
            tar.add(path, str(path.relative_to(folder)), recursive=False)
    if outer != "none":
        archive = compressed(archive, outer)
    opened = 0

    def open_outer(*arguments: Any) -> Any:
        nonlocal opened
        opened += arguments[1] != "none"
        return outer_module.open_outer(*arguments)

    monkeypatch.setattr(archive_module, "open_outer", open_outer)
    before = set(os.listdir(tmp_path))
    packed = tmp_path / "packed.tar"
    tools.compress(str(archive), output=str(packed), outer="none")
    assert set(os.listdir(tmp_path)) - before == {"packed.tar"}
    if outer != "none":
        # Headers of pagemaps that come late are looked for, too.
        assert opened == times + (times == 3 and order == "pagemaps last")
    inside = unpacked(packed, tmp_path / "inside")
    again = tools.decompress(str(inside / "checkpoint"), in_place=True)
    assert again.changed
    found, expected = tree_of(inside), tree_of(folder)
    assert found.keys() == expected.keys()
    different = {name for name in expected if found[name] != expected[name]}
    assert not {name for name in different if "pagemap-" not in name and "inventory" not in name}
    assert all_memory_of(inside / "checkpoint") == all_memory_of(folder / "checkpoint")


def test_an_archive_where_nothing_may_be_written(images: Path, tmp_path: Path) -> None:
    """There is nothing to convert: that can be said all the same."""
    folder = lay_out(tmp_path / "container", "podman", images)
    tools.compress(str(folder / "checkpoint"), in_place=True)
    place = tmp_path / "place"
    place.mkdir()
    archive = compressed(pack(folder, place / "plain.tar"), "zst")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(tempfile, "TemporaryFile", _refuse)
        assert not tools.compress(str(archive)).changed
        packed = place / "packed.tar"
        tools.decompress(str(archive), output=str(packed))
    inside = unpacked(packed, tmp_path / "inside")
    assert all_memory_of(inside / "checkpoint") == all_memory_of(images)


def _refuse(**_: object) -> None:
    raise PermissionError(errno.EACCES, "not here")


def test_a_chain_in_one_archive(image_archive: ImageArchive, tmp_path: Path) -> None:
    levels = levels_of(image_archive("incremental"))
    parent, top = levels[-2], levels[-1]
    # Two levels only: what the pre-dump itself has in its parent is left out by its builder.
    folder = lay_out(tmp_path / "container", "podman", top, parent)
    (folder / "pre-checkpoint" / "parent").symlink_to("../first")
    shutil.copytree(levels[-3], folder / "first")
    archive = pack(folder, tmp_path / "plain.tar")
    assert tools.check([str(archive)]).ok
    summaries, _ = show_archive(str(archive))
    (summary,) = summaries
    assert summary.chain_depth == 3
    packed = tmp_path / "packed.tar"
    tools.compress(str(archive), output=str(packed), region_bytes=64 << 10)
    assert tools.check([str(packed)]).ok
    inside = unpacked(packed, tmp_path / "packed")
    assert all_memory_of(inside / "checkpoint") == all_memory_of(folder / "checkpoint")
    output = tmp_path / "restored"
    unpack_archive(str(packed), str(output), decompress=True)
    assert tree_of(output) == tree_of(folder)


def test_two_checkpoints_in_one_archive(
    image_archive: ImageArchive, images: Path, tmp_path: Path
) -> None:
    folder = lay_out(tmp_path / "container", "podman", images)
    shutil.copytree(levels_of(image_archive("py-heap"))[-1], folder / "second" / "checkpoint")
    archive = pack(folder, tmp_path / "plain.tar", "--sort=name")
    summaries, _ = show_archive(str(archive))
    assert [summary.path.partition(":")[2] for summary in summaries] == [
        "checkpoint",
        "second/checkpoint",
    ]
    tools.compress(str(archive), in_place=True)
    inside = unpacked(archive, tmp_path / "packed")
    for name in ("checkpoint", "second/checkpoint"):
        assert all_memory_of(inside / name) == all_memory_of(folder / name)


@pytest.mark.parametrize("engine", MEMBERS)
def test_who_made_it(
    engine: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = pack(lay_out(tmp_path / "container", engine, images), tmp_path / "plain.tar")
    assert commands.run(["show", str(archive), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["origin"]["engine"] == MANAGERS[engine]
    assert found["origin"]["container"] == "web"
    assert found["origin"]["command"] == "nginx -g"
    assert found["checkpoints"][0]["memories"][0]["n_pages"] > 100


def test_foreign_words_do_not_command_a_terminal(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = lay_out(tmp_path / "container", "podman", images)
    (folder / "config.dump").write_text(json.dumps({"name": "\x1b]0;owned\x07\n"}))
    assert commands.run(["show", str(pack(folder, tmp_path / "plain.tar"))]) == 0
    assert "\x1b" not in capsys.readouterr().out


def test_in_place_keeps_a_backup_once(images: Path, tmp_path: Path) -> None:
    archive = pack(lay_out(tmp_path / "container", "podman", images), tmp_path / "c.tar")
    before = archive.read_bytes()
    os.chmod(archive, 0o600)
    tools.compress(str(archive))
    assert (tmp_path / "c.tar.bak").read_bytes() == before
    assert archive.stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(tmp_path)) == ["c.tar", "c.tar.bak", "container"]
    with pytest.raises(UsageError, match="exists and would be overwritten"):
        tools.decompress(str(archive))
    assert not tools.compress(str(archive), in_place=True).changed


def test_a_broken_block_is_found_where_it_is(images: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "container", "podman", images)
    tools.compress(str(folder / "checkpoint"), in_place=True)
    directory = ImageDirectory(str(folder / "checkpoint"))
    pages = folder / "checkpoint" / directory.pagemap(pid=directory.pids[0]).pages_name
    content = bytearray(pages.read_bytes())
    content[10_000:60_000] = b"\xff" * 50_000
    pages.write_bytes(content)
    archive = compressed(pack(folder, tmp_path / "plain.tar"), "zst")
    report = tools.check([str(archive)])
    assert not report.ok
    assert all(str(archive) in finding.message for finding in report.problems)
    assert not any("helperd-archive-" in finding.message for finding in report.findings)
    packed = tmp_path / "x.tar"
    with pytest.raises(ImageError):
        tools.decompress(str(archive), output=str(packed))
    assert not packed.exists()
    assert sorted(os.listdir(tmp_path)) == ["container", "plain.tar", archive.name]


HOSTILE = {
    "a name that climbs": (member("checkpoint/../../etc/x"), "leads out"),
    "an absolute name": (member("/etc/x.img"), "leads out"),
    "a link in the place of memory": (
        member("checkpoint/pages-1.img", kind=tarfile.SYMTYPE, link="/etc/shadow"),
        "is no file",
    ),
    "a device in the place of memory": (
        member("checkpoint/pagemap-1.img", kind=tarfile.CHRTYPE),
        "is no file",
    ),
    "a parent outside": (
        member("checkpoint/parent", kind=tarfile.SYMTYPE, link="../../.."),
        "leads out",
    ),
    "an absolute parent": (
        member("checkpoint/parent", kind=tarfile.SYMTYPE, link="/var"),
        "leads out",
    ),
    "a parent through a parent": (
        member("checkpoint/parent", kind=tarfile.SYMTYPE, link="../a/parent/.."),
        "leads out",
    ),
    "nothing": (member("checkpoint/readme"), "without a checkpoint"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_archives_are_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    header, why = HOSTILE[kind]
    archive = hostile(tmp_path / "x.tar", header)
    for work in (
        lambda: tools.compress(str(archive), output=str(tmp_path / "y.tar")),
        lambda: show_archive(str(archive)),
        lambda: unpack_archive(str(archive), str(tmp_path / "z")),
    ):
        with pytest.raises(ImageFormatError, match=why) as caught:
            work()
        assert "\n" not in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == ["x.tar"]


def test_a_member_that_comes_twice(tmp_path: Path) -> None:
    archive = hostile(tmp_path / "x.tar", member("checkpoint/a"), member("./checkpoint//a"))
    with pytest.raises(ImageFormatError, match="twice"):
        show_archive(str(archive))


@pytest.mark.parametrize("outer", OUTERS)
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_an_archive_that_is_cut_off(outer: str, share: float, images: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "container", "podman", images)
    archive = compressed(pack(folder, tmp_path / "plain.tar", "--sort=name"), outer)
    content = archive.read_bytes()
    archive.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(ImageFormatError, match=r"cut off|compression is broken|without"):
        show_archive(str(archive))


def test_a_bomb_is_refused_by_what_it_claims(tmp_path: Path) -> None:
    info = member("checkpoint/pages-1.img")
    info.size = 1 << 43
    archive = tmp_path / "x.tar"
    archive.write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(ImageFormatError, match="too many for a checkpoint"):
        show_archive(str(archive))


def test_unpacking_takes_no_links(images: Path, tmp_path: Path) -> None:
    folder = lay_out(tmp_path / "container", "podman", images)
    (folder / "link").symlink_to("/etc/passwd")
    archive = pack(folder, tmp_path / "plain.tar")
    with pytest.raises(ImageFormatError, match="is not unpacked"):
        unpack_archive(str(archive), str(tmp_path / "out"))
    # What is not unpacked can be compressed all the same: it is only copied.
    assert tools.compress(str(archive), output=str(tmp_path / "packed.tar")).changed


def test_nothing_is_left_in_memory(images: Path, tmp_path: Path) -> None:
    archive = pack(lay_out(tmp_path / "container", "podman", images), tmp_path / "plain.tar")
    with ArchivedCheckpoints(str(archive)) as archived:
        scratch = archived.scratch
        assert os.path.isdir(scratch)
    assert not os.path.exists(scratch)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_window_shows_what_is_asked_for_in_order(data: st.DataObject) -> None:
    content = data.draw(st.binary(min_size=1, max_size=60_000))
    cuts = sorted(data.draw(st.sets(st.integers(1, len(content)), max_size=20)) | {len(content)})
    pieces, start = [], 0
    for end in cuts:
        pieces.append((start, content[start:end]))
        start = end
    feed = WindowFeed("x", len(content), (), pieces, window_bytes=16_384)
    try:
        at = 0
        while at < len(content):
            end = min(len(content), at + data.draw(st.integers(1, 9_000)))
            feed.require(at, end)
            assert os.pread(feed.fd, end - at, at) == content[at:end]
            at = end
        assert os.fstat(feed.fd).st_blocks * 512 <= 16_384 * 5 // 4 + 9_000 + 60_000 // 4 + 8192
        with pytest.raises(ShortImage):
            feed.require(0 if len(content) < 10 else len(content) - 1, len(content) + 1)
    finally:
        feed.close()


def test_going_back_in_a_window_is_no_silence() -> None:
    feed = WindowFeed("x", 1 << 20, (), [(0, b"x" * (1 << 20))], window_bytes=1 << 16)
    try:
        feed.require(0, 1 << 20)
        with pytest.raises(InternalError, match="needed again"):
            feed.require(0, 1)
    finally:
        feed.close()
