"""Files for an image directory that come into effect all at once, or leave no trace."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from array import array
from pathlib import Path

import pytest

from helperd.blocks import PAGE_SIZE
from helperd.errors import ImageError, ResourceError
from helperd.images.arrivals import recover
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from helperd.images.pagemap import PE_PARENT, PagemapEntry, read_head, read_pagemap
from helperd.images.writer import ImageWriter
from tests.images.checkpoints import content_of

BASE = 0x7F0000000000
NAME = "pagemap-7.img"


def write_two(images: ImageWriter, schema: Schema = Schema.SIZES) -> None:
    memory = images.memory(NAME, schema)
    memory.append_payload(b"x" * 100)
    memory.append_payload(b"y" * PAGE_SIZE)
    sizes = array("I", [100, 0])
    memory.append_entry(PagemapEntry(BASE, 2, sizes=sizes))
    memory.append_entry(PagemapEntry(BASE + 2 * PAGE_SIZE, 1))
    memory.append_entry(PagemapEntry(BASE + 9 * PAGE_SIZE, 4, flags=PE_PARENT))


@pytest.mark.parametrize("schema", [Schema.SIZES, Schema.BLOCKS])
@pytest.mark.parametrize("checksum", [True, False])
def test_what_is_written_can_be_read(tmp_path: Path, schema: Schema, checksum: bool) -> None:
    with ImageWriter(str(tmp_path)) as images:
        memory = images.memory(NAME, schema, checksum=checksum)
        memory.append_payload(b"x" * 100)
        memory.append_entry(PagemapEntry(BASE, 2, sizes=array("I", [100, 0])))
        memory.append_payload(b"y" * PAGE_SIZE)
        memory.append_entry(PagemapEntry(BASE + 2 * PAGE_SIZE, 1))
        assert memory.n_pages == 3
        assert [name for name in os.listdir(tmp_path) if not name.startswith(".")] == []
        images.finish()
    assert sorted(os.listdir(tmp_path)) == [NAME, "pages-65537.img"]
    pagemap = read_pagemap(str(tmp_path / NAME))
    assert [(it.vaddr, it.nr_pages, it.offset) for it in pagemap.entries] == [
        (BASE, 2, 0),
        (BASE + 2 * PAGE_SIZE, 1, 100),
    ]
    assert pagemap.head.HasField("checksum") == checksum
    assert (tmp_path / pagemap.pages_name).read_bytes() == b"x" * 100 + b"y" * PAGE_SIZE


def test_old_counts(tmp_path: Path) -> None:
    with ImageWriter(str(tmp_path)) as images:
        memory = images.memory(NAME, Schema.NONE, checksum=False, old_counts=True)
        memory.append_entry(PagemapEntry(0x41F000, 2, flags=PE_PARENT))
        images.finish()
    # As CRIU 3.17.1 writes it: vaddr, compat_nr_pages, flags.
    assert (tmp_path / NAME).read_bytes().endswith(bytes.fromhex("08 80 e0 87 02 10 02 20 01"))


def test_without_finish_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"as it was")
    with ImageWriter(str(tmp_path), replace=True) as images:
        write_two(images)
    assert content_of(tmp_path) == {NAME: b"as it was"}


def test_entries_account_for_the_payload(tmp_path: Path) -> None:
    with ImageWriter(str(tmp_path)) as images:
        images.memory(NAME, Schema.NONE).append_payload(b"stray")
        with pytest.raises(ImageError, match="0 bytes of payload, 5 were written"):
            images.finish()
    assert os.listdir(tmp_path) == []


def test_two_writers_get_pages_files_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "pages-65538.img").touch()
    with ImageWriter(str(tmp_path)) as one, ImageWriter(str(tmp_path)) as other:
        one.memory("pagemap-1.img", Schema.NONE)
        other.memory("pagemap-2.img", Schema.NONE)
        one.memory("pagemap-shmem-1.img", Schema.NONE)
        one.finish()
        other.finish()
    heads = {
        name: read_head(str(tmp_path / name)).pages_id
        for name in ImageDirectory(str(tmp_path)).pagemap_names
    }
    assert heads == {"pagemap-1.img": 65537, "pagemap-2.img": 65539, "pagemap-shmem-1.img": 65540}
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


def test_what_is_there_is_not_overwritten_by_itself(tmp_path: Path) -> None:
    with ImageWriter(str(tmp_path)) as slow, ImageWriter(str(tmp_path)) as fast:
        slow.memory(NAME, Schema.NONE)
        fast.memory(NAME, Schema.NONE)
        fast.finish()
        with pytest.raises(ImageError, match=f"has {NAME} already"):
            slow.finish()
    assert read_head(str(tmp_path / NAME)).pages_id == 65538
    assert sorted(os.listdir(tmp_path)) == [NAME, "pages-65538.img"]
    with ImageWriter(str(tmp_path)) as late, pytest.raises(ImageError, match="already"):
        late.memory(NAME, Schema.NONE)
    assert sorted(os.listdir(tmp_path)) == [NAME, "pages-65538.img"]


def test_replacing_takes_the_old_pages_along(tmp_path: Path) -> None:
    for _ in range(2):
        with ImageWriter(str(tmp_path), replace=True) as images:
            write_two(images)
            images.finish()
    assert sorted(os.listdir(tmp_path)) == [NAME, "pages-65538.img"]
    assert read_pagemap(str(tmp_path / NAME)).pages_name == "pages-65538.img"


def test_a_parent_link_stays_as_it_is(tmp_path: Path) -> None:
    for target in ("../1", "../2"):
        with ImageWriter(str(tmp_path)) as images:
            images.link_parent(target)
            images.finish()
        assert os.listdir(tmp_path) == ["parent"]
    assert os.readlink(tmp_path / "parent") == "../1"


@pytest.mark.parametrize("name", ["", "a/b", "../a", ".hidden", "a\0b"])
def test_names_that_lead_elsewhere(tmp_path: Path, name: str) -> None:
    with ImageWriter(str(tmp_path)) as images, pytest.raises(ImageError, match="no name"):
        images.create(name)


def test_a_full_disk_leaves_all_as_it_was(tmp_path: Path) -> None:
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    with ImageWriter(str(tmp_path)) as images:
        memory = images.memory(NAME, Schema.NONE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (PAGE_SIZE, limit[1]))
        try:
            memory.append_payload(bytes(PAGE_SIZE))
            with pytest.raises(ImageError, match="cannot write the pages of"):
                memory.append_payload(bytes(PAGE_SIZE))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert os.listdir(tmp_path) == []


def test_a_missing_directory(tmp_path: Path) -> None:
    with pytest.raises((ImageError, ResourceError), match="cannot write images to"):
        ImageWriter(str(tmp_path / "nowhere"))


_KILLED = """
    import os, signal, sys
    from helperd.images import writer
    from helperd.images.inventory import Schema
    where, path = sys.argv[1:]
    calls = 0
    real = {name: getattr(os, name) for name in ("rename", "fsync", "rmdir", "unlink")}
    def counted(name):
        def call(*arguments, **named):
            global calls
            calls += 1
            if calls == int(where):
                os.kill(os.getpid(), signal.SIGKILL)
            return real[name](*arguments, **named)
        return call
    for name in real:
        setattr(os, name, counted(name))
    images = writer.ImageWriter(path, replace=True)
    memory = images.memory("pagemap-7.img", Schema.NONE)
    memory.append_payload(b"new")
    memory.append_entry = None
    memory._offset = 3
    images.create("core-7.img").write(b"new")
    images.finish()
    print(calls)
"""


def test_killed_anywhere_the_next_start_finds_all_old_or_all_new(tmp_path: Path) -> None:
    """Kill a writer at each of its steps."""
    script = textwrap.dedent(_KILLED)

    def run(where: int, path: Path) -> subprocess.CompletedProcess[str]:
        path.mkdir()
        with ImageWriter(str(path)) as images:
            images.memory(NAME, Schema.NONE)
            images.create("core-7.img").write(b"old")
            images.finish()
        return subprocess.run(
            [sys.executable, "-c", script, str(where), str(path)], capture_output=True, text=True
        )

    whole = run(0, tmp_path / "0")
    n_steps = int(whole.stdout)
    assert n_steps > 8
    seen = set()
    for where in range(1, n_steps + 1):
        path = tmp_path / str(where)
        assert run(where, path).returncode == -signal.SIGKILL
        recover(str(path))
        content = content_of(path)
        assert not [name for name in os.listdir(path) if name.startswith(".")]
        pages = content[f"pages-{read_head(str(path / NAME)).pages_id}.img"]
        core = content["core-7.img"]
        assert (pages, core) in {(b"", b"old"), (b"new", b"new")}
        seen.add(core)
    assert seen == {b"old", b"new"}


def test_what_lives_is_not_cleaned_up(tmp_path: Path) -> None:
    with ImageWriter(str(tmp_path)) as images:
        write_two(images)
        recover(str(tmp_path))
        images.finish()
    assert NAME in os.listdir(tmp_path)


def test_what_is_not_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / ".helperd-incoming.x").write_bytes(b"somebody's")
    recover(str(tmp_path))
    with ImageWriter(str(tmp_path)) as images:
        write_two(images)
        images.finish()
    assert (tmp_path / ".helperd-incoming.x").read_bytes() == b"somebody's"
    assert NAME in os.listdir(tmp_path)


def test_interrupted_after_it_was_decided_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal's exception, say, while the files that have arrived are put in their places."""
    rename, n_moved = os.rename, 0

    def interrupted(*arguments: object, **folders: object) -> None:
        nonlocal n_moved
        n_moved += 1
        if n_moved == 3:
            raise KeyboardInterrupt
        rename(*arguments, **folders)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rename", interrupted)

    def write() -> None:
        with ImageWriter(str(tmp_path)) as images:
            write_two(images)
            images.finish()

    with pytest.raises(KeyboardInterrupt):
        write()
    monkeypatch.undo()
    assert n_moved == 3
    recover(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == [NAME, "pages-65537.img"]
    assert (tmp_path / "pages-65537.img").read_bytes() == b"x" * 100 + b"y" * PAGE_SIZE


def test_a_pages_file_that_another_pagemap_names_stays(tmp_path: Path) -> None:
    """CRIU writes none like that, but somebody may have."""
    for name in (NAME, "pagemap-8.img"):
        with ImageWriter(str(tmp_path)) as images:
            images.memory(name, Schema.NONE).append_entry(PagemapEntry(BASE, 1, flags=PE_PARENT))
            images.finish()
    shared = (tmp_path / f"pages-{read_head(str(tmp_path / NAME)).pages_id}.img").name
    (tmp_path / "pagemap-8.img").write_bytes((tmp_path / NAME).read_bytes())
    with ImageWriter(str(tmp_path), replace=True) as images:
        write_two(images)
        images.finish()
    assert shared in os.listdir(tmp_path)
    with ImageWriter(str(tmp_path), replace=True) as images:
        images.memory("pagemap-8.img", Schema.NONE)
        images.finish()
    assert shared not in os.listdir(tmp_path)
