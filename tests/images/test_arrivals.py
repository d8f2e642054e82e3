"""What killed writers have left is finished or dropped, and nothing else is touched."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from helperd import errors
from helperd.images import arrivals
from helperd.images.arrivals import ARRIVED, UNDER_WAY, recover
from helperd.images.leftovers import NotOurs, open_folder


def left(folder: Path, prefix: str, *names: str) -> Path:
    """Make what a writer leaves when it is killed."""
    path = folder / f"{prefix}0123"
    path.mkdir(mode=0o700)
    for name in names:
        (path / name).write_bytes(name.encode())
    return path


def test_what_has_arrived_is_moved_in_order_and_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left(tmp_path, ARRIVED, "inventory.img", "pagemap-7.img", "pages-1.img", "parent-x.img")
    steps: list[str] = []
    rename, fsync, rmdir = os.rename, os.fsync, os.rmdir

    def renamed(name: str, new: str, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        steps.append(name)
        rename(name, new, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def synced(fd: int) -> None:
        assert os.path.samestat(os.fstat(fd), tmp_path.stat())
        steps.append("synced")
        fsync(fd)

    def removed(name: str, *, dir_fd: int) -> None:
        steps.append("removed")
        rmdir(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rename", renamed)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rmdir", removed)
    recover(str(tmp_path))
    # Whoever finds a name finds what it refers to; the inventory makes a checkpoint of it.
    order = ["pages-1.img", "parent-x.img", "pagemap-7.img", "inventory.img"]
    assert steps == [*order, "synced", "removed"]
    assert sorted(it.name for it in tmp_path.iterdir()) == sorted(order)


def test_no_descriptor_stays_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = os.listdir("/proc/self/fd")
    left(tmp_path, ARRIVED, "pages-1.img")
    left(tmp_path, UNDER_WAY, "pages-2.img")
    recover(str(tmp_path))
    assert [it.name for it in tmp_path.iterdir()] == ["pages-1.img"]
    (tmp_path / "others").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    fd = os.open(tmp_path, os.O_RDONLY)
    with pytest.raises(NotOurs, match="belongs to user"):
        open_folder("others", fd, str(tmp_path))
    os.close(fd)
    assert os.listdir("/proc/self/fd") == before


def test_what_is_no_folder_of_ours_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "pages-1.img").write_bytes(b"kept")
    (tmp_path / f"{ARRIVED}link").symlink_to("elsewhere")
    (tmp_path / f"{UNDER_WAY}file").write_bytes(b"kept")
    recover(str(tmp_path))
    assert (tmp_path / "elsewhere" / "pages-1.img").read_bytes() == b"kept"
    assert (tmp_path / f"{ARRIVED}link").is_symlink()
    assert (tmp_path / f"{UNDER_WAY}file").read_bytes() == b"kept"


def test_what_cannot_be_cleaned_up_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.ImageError, match="cannot clean up"):
        recover(str(tmp_path / "missing"))


def test_one_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(arrivals.locked(fd, str(tmp_path)))
            monkeypatch.setattr(arrivals, "_LOCK_SECONDS", 0.0)
            with pytest.raises(errors.UsageError, match="another process is changing"):
                arrivals.locked(fd, str(tmp_path)).__enter__()
            # Who comes waits for a while.
            monkeypatch.setattr(arrivals, "_LOCK_SECONDS", 60.0)
            monkeypatch.setattr("time.sleep", lambda seconds: stack.close())
            with arrivals.locked(fd, str(tmp_path)):
                pass
    finally:
        os.close(fd)
