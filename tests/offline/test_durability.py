"""When a command has changed a directory, and at each step on the way, what counts is on disk.

A power cut may lose what was written and not synced, and keep a later rename. So each sync is held
to come before the step that relies on it. That the steps themselves are right is what
test_switch.py is about.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from helperd import tools
from helperd.blocks import PAGE_SIZE
from helperd.offline import dedup, switch
from tests.images.checkpoints import Builder, clone

Step = tuple[str, Path]


class Disk:
    """What has been done to files and directories and may be lost with the power.

    Attributes:
        unwritten: files made and not synced since.
        pending: for each directory the names in it that were changed and not synced since.
        steps: all renames, as (name of what is renamed, its new path).
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.unwritten: set[Path] = set()
        self.pending: dict[Path, set[str]] = defaultdict(set)
        self.steps: list[Step] = []
        self.before: Callable[[str, Path, Path], None] = lambda name, source, target: None
        self._calls = {name: getattr(os, name) for name in ("open", "fsync")}
        monkeypatch.setattr(os, "open", self._open)
        monkeypatch.setattr(os, "fsync", self._fsync)
        for name in ("mkdir", "rmdir", "unlink", "link", "symlink", "rename"):
            monkeypatch.setattr(os, name, self._change(name, getattr(os, name)))

    def lost(self, folder: Path) -> set[str]:
        """Return the names in ``folder`` that a power cut may take back."""
        return self.pending.get(folder, set())

    def _open(self, path: Any, flags: int, *more: Any, **options: Any) -> int:
        fd: int = self._calls["open"](path, flags, *more, **options)
        if flags & os.O_CREAT:
            made = Path(os.readlink(f"/proc/self/fd/{fd}"))
            self.unwritten.add(made)
            self.pending[made.parent].add(made.name)
        return fd

    def _fsync(self, fd: int) -> None:
        self._calls["fsync"](fd)
        synced = Path(os.readlink(f"/proc/self/fd/{fd}"))
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self.pending.pop(synced, None)
        else:
            self.unwritten.discard(synced)

    def _change(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def change(*arguments: Any, **options: Any) -> None:
            two = name in ("link", "symlink", "rename")
            folder = options.get("dir_fd")
            source = whole(arguments[0], options.get("src_dir_fd", folder))
            target = whole(arguments[1 if two else 0], options.get("dst_dir_fd", folder))
            self.before(name, source, target)
            call(*arguments, **options)
            for path in (source, target) if name == "rename" else (target,):
                self.pending[path.parent].add(path.name)
            if name == "rename":
                self.steps.append((source.name, target))
                if source in self.unwritten:
                    self.unwritten.remove(source)
                    self.unwritten.add(target)
            elif name == "rmdir":
                self.pending.pop(target, None)

        return change


def whole(name: str, folder: int | None) -> Path:
    """Return the path of a name in an open directory."""
    return Path(name) if folder is None else Path(os.readlink(f"/proc/self/fd/{folder}"), name)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    for pid in (7, 8):
        builder = Builder(tmp_path / "plain", pid=pid, pages_id=pid)
        builder.add(16, bytes(range(256)) * 16 * pid).add(64, bytes(5 * PAGE_SIZE)).write()
    return tmp_path / "plain"


@pytest.mark.parametrize("backups", [False, True])
@pytest.mark.parametrize("forward", [True, False])
def test_every_step_relies_on_what_is_on_disk(
    forward: bool, backups: bool, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, convert = plain, tools.compress
    if not forward:
        source, convert = tmp_path / "compressed", tools.decompress
        tools.compress(str(plain), output=str(source))
    folder = clone(source, tmp_path / "images")
    staging = folder / switch.STAGING_NAME
    disk = Disk(monkeypatch)
    passed = set()

    def before(name: str, source: Path, target: Path) -> None:
        """Look at what a step relies on, see the steps in :mod:`helperd.offline.switch`."""
        if name == "rename" and source.name == "link":
            assert not disk.unwritten, "new content is on disk before anything leads to it"
            assert not disk.lost(staging / "new")
            assert not disk.lost(staging / "old")
        if name == "rename" and target.parent == folder:
            passed.add("replaced by links" if source.name == "link" else "replaced by files")
            assert disk.lost(staging) <= {"link"}, "current leads where it is taken to lead"
            replaced = {target.name for _, target in disk.steps if target.parent == folder}
            assert disk.lost(folder) <= replaced, "the staging folder and the backups are there"
        elif name == "rename":
            assert target == staging / "current"
            passed.add("switched")
            assert not disk.lost(folder), "all files are links before the link is switched"
        elif name == "unlink" and target.parent == staging:
            passed.add("dismantled")
            assert not disk.lost(folder), "all files are in place before the links' way goes"

    disk.before = before
    convert(str(folder), in_place=not backups)
    assert passed == {"replaced by links", "switched", "replaced by files", "dismantled"}
    assert not disk.unwritten
    assert not disk.lost(folder), "what was said to be done is done"


@pytest.mark.parametrize("forward", [True, False])
def test_a_copy_is_on_disk(
    forward: bool, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, convert = plain, tools.compress
    if not forward:
        source, convert = tmp_path / "compressed", tools.decompress
        tools.compress(str(plain), output=str(source))
    (source / "more").mkdir()
    (source / "more" / "file").write_bytes(b"of somebody else")
    disk = Disk(monkeypatch)
    convert(str(source), output=str(tmp_path / "copy"))
    assert (tmp_path / "copy" / "more" / "file").exists()
    assert not disk.unwritten
    for folder in (tmp_path / "copy", tmp_path / "copy" / "more"):
        assert not disk.lost(folder)
    assert not disk.lost(tmp_path), "the copy itself has a name"


def test_holes_are_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Builder(tmp_path / "1").add(1, bytes(range(1, 129)) * 32 * 4).write()
    top = Builder(tmp_path / "2").add(1, bytes(range(2, 130)) * 32 * 4).write(parent="../1")
    punched, synced = set(), set()
    punch_hole, fsync = dedup.punch_hole, os.fsync

    def punch(fd: int, offset: int, n_bytes: int) -> int:
        punched.add(os.fstat(fd).st_ino)
        synced.discard(os.fstat(fd).st_ino)
        return punch_hole(fd, offset, n_bytes)

    def sync(fd: int) -> None:
        fsync(fd)
        synced.add(os.fstat(fd).st_ino)

    monkeypatch.setattr(dedup, "punch_hole", punch)
    monkeypatch.setattr(os, "fsync", sync)
    assert tools.dedup(str(top)).freed_bytes
    assert punched
    assert punched <= synced
