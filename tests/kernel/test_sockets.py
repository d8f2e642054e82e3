"""Names of sockets: nobody else's file is lost, and whoever lives is not disturbed."""

from __future__ import annotations

import os
import select
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from helperd.errors import EXIT_USAGE, UsageError
from helperd.kernel import sockets
from helperd.kernel.replace import replace_file
from tests.support.helper import COMMAND
from tests.support.processes import DEADLINE_SECONDS

KINDS = {"stream": socket.SOCK_STREAM, "seqpacket": socket.SOCK_SEQPACKET}


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a short name, as sockets need it."""
    with tempfile.TemporaryDirectory(prefix="hd-") as name:
        yield Path(name)


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def listener(request: pytest.FixtureRequest) -> Iterator[socket.socket]:
    """Return a socket to be bound."""
    with socket.socket(socket.AF_UNIX, request.param) as one:
        yield one


def test_a_stale_socket_is_replaced(folder: Path, listener: socket.socket) -> None:
    path = str(folder / "s")
    with socket.socket(socket.AF_UNIX, listener.type) as dead:
        dead.bind(path)
    bound = sockets.bind(listener, path, 0o640)
    assert bound.st_mode & 0o777 == 0o640
    listener.listen()
    with socket.socket(socket.AF_UNIX, listener.type) as client:
        client.connect(path)
    sockets.unbind(listener, path, bound)
    sockets.unbind(listener, path, bound)
    assert not os.path.lexists(path)


@pytest.mark.parametrize("kind", [*KINDS.values(), socket.SOCK_DGRAM])
def test_one_that_lives_is_not_disturbed(
    folder: Path, listener: socket.socket, kind: socket.SocketKind
) -> None:
    """Not even by somebody who connects to see whether it lives."""
    path = str(folder / "s")
    with socket.socket(socket.AF_UNIX, kind) as living:
        living.bind(path)
        if kind != socket.SOCK_DGRAM:
            living.listen()
        before = os.lstat(path)
        with pytest.raises(UsageError, match="another server listens there"):
            sockets.bind(listener, path, 0o600)
        assert os.path.samestat(os.lstat(path), before)
        assert not select.select([living], [], [], 0)[0], "nobody has connected"


def test_a_successors_name_stays(folder: Path, listener: socket.socket) -> None:
    path = str(folder / "s")
    bound = sockets.bind(listener, path, 0o600)
    os.unlink(path)
    with socket.socket(socket.AF_UNIX, listener.type) as successor:
        successor.bind(path)
        sockets.unbind(listener, path, bound)
        assert os.path.lexists(path)


@pytest.mark.parametrize("what", ["file", "fifo", "folder", "link"])
def test_what_is_no_socket_stays(folder: Path, listener: socket.socket, what: str) -> None:
    path = folder / "s"
    if what == "file":
        path.write_text("precious")
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "folder":
        path.mkdir()
    else:
        with socket.socket(socket.AF_UNIX, listener.type) as dead:
            dead.bind(str(folder / "dead"))
        path.symlink_to("dead")
    before = path.lstat()
    with pytest.raises(UsageError, match="no socket; move it away"):
        sockets.bind(listener, str(path), 0o600)
    assert os.path.samestat(path.lstat(), before)


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["lazy-pages", "-D"], "lazy-pages.socket"),
        (["stream", "--images-dir"], "streamer-capture.sock"),
    ],
    ids=["lazy-pages", "stream"],
)
def test_the_doors_delete_nothing(folder: Path, command: list[str], name: str) -> None:
    path = folder / name
    path.write_text("precious")
    words = [*command, str(folder), *(["capture"] if command[0] == "stream" else [])]
    done = subprocess.run(
        [*COMMAND, *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == EXIT_USAGE, done.stderr
    assert "what is there is no socket" in done.stderr
    assert path.read_text() == "precious"


# Files that are replaced.


def test_a_replaced_file_is_never_written_through_a_link(folder: Path) -> None:
    (folder / "victim").write_text("precious")
    for name in ("report.new", "report"):
        path = folder / name
        path.unlink(missing_ok=True)
        path.symlink_to("victim")
        if name == "report.new":
            replace_file(str(folder / "report"), "one")
            assert (folder / "report").read_text() == "one"
        else:
            with pytest.raises(OSError, match="not a file"):
                replace_file(str(folder / "report"), "two")
    assert (folder / "victim").read_text() == "precious"
    replace_file(str(folder / "other"), "one")
    replace_file(str(folder / "other"), "two")
    assert (folder / "other").read_text() == "two"


def test_what_a_bound_socket_leaves_and_takes(folder: Path, listener: socket.socket) -> None:
    before = os.umask(0o022)
    try:
        bound = sockets.bind(listener, str(folder / "s"), 0o666)
        assert bound.st_mode & 0o777 == 0o666
        assert os.umask(0o022) == 0o022, "the umask is the caller's again"
    finally:
        os.umask(before)
    sockets.unbind(listener, str(folder / "s"), bound)
    assert listener.fileno() == -1


@pytest.mark.parametrize(
    ("name", "why"), [("nowhere/s", "ENOENT"), ("x" * 200, "too long"), ("nul\0", "null")]
)
def test_names_that_cannot_be(folder: Path, listener: socket.socket, name: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        sockets.bind(listener, f"{folder}/{name}", 0o600)
