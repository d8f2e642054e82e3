"""A session writes below its own directories, and nowhere else, whatever it is brought to do."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helperd.confined import landlock
from helperd.modes import STRICT
from helperd.page_server.confinement import confine_session
from helperd.page_server.storage import Storage
from tests.page_server.sessions import SILENT


def has_landlock() -> bool:
    """Say whether this kernel has it; in a child, for it is for good."""
    return in_child(lambda: landlock.restrict([], ["/"])) == ""


def in_child(work: Callable[[], object]) -> str:
    """Do something in a process of its own; return what it raises, or nothing."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException as error:
            os.write(write, type(error).__name__.encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    with open(read, "rb") as file:
        return file.read().decode()


needs_landlock = pytest.mark.skipif(not has_landlock(), reason="the kernel has no Landlock")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("images", "parent", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"as it was")
    (tmp_path / "images" / "parent").symlink_to("../parent")
    return tmp_path / "images"


def confined(
    images: Path, work: Callable[[], object], *, dedup: bool = False, writes: bool = True
) -> str:
    """Do something in a confined process."""

    def run() -> None:
        storage = Storage(str(images), dedup=dedup)
        confine_session(STRICT, storage, SILENT, writes=writes)
        work()

    return in_child(run)


@needs_landlock
def test_what_a_session_does(images: Path) -> None:
    def work() -> None:
        (images / "new").mkdir()
        (images / "new" / "a").write_bytes(b"pages")
        os.rename(images / "new" / "a", images / "a")
        (images / "new").rmdir()
        assert (images / "parent" / "file").read_bytes() == b"as it was"

    assert confined(images, work) == ""
    assert (images / "a").read_bytes() == b"pages"


@needs_landlock
@pytest.mark.parametrize("dedup", [False, True])
def test_only_dedup_writes_to_parents(images: Path, dedup: bool) -> None:
    def work() -> None:
        os.close(os.open(images / "parent" / "file", os.O_RDWR))

    assert confined(images, work, dedup=dedup) == ("" if dedup else "PermissionError")


@needs_landlock
def test_giving_pages_writes_nothing(images: Path) -> None:
    def work() -> None:
        os.close(os.open(images / "file", os.O_RDWR))

    assert confined(images, work, writes=False) == "PermissionError"
    assert confined(images, lambda: (images / "file").read_bytes(), writes=False) == ""


FORBIDDEN: dict[str, Callable[[Path], object]] = {
    "read elsewhere": lambda path: (path.parent / "elsewhere" / "file").read_bytes(),
    "write elsewhere": lambda path: (path.parent / "elsewhere" / "new").touch(),
    "out by a link": lambda path: (path / "parent" / "new").touch(),
    "another program": lambda _path: os.execv(sys.executable, [sys.executable, "-c", ""]),
    "another process": lambda _path: os.fork(),
    "a connection": lambda _path: socket.socket(),
    "a signal": lambda _path: os.kill(os.getppid(), signal.SIGURG),
    "a device": lambda path: os.mknod(path / "device", 0o20600, os.makedev(1, 3)),
}


@needs_landlock
@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_a_session_cannot_do(images: Path, what: str) -> None:
    assert confined(images, lambda: FORBIDDEN[what](images)) == "PermissionError"
    assert (images.parent / "elsewhere" / "file").read_bytes() == b"as it was"
