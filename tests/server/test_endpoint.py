"""The server's socket: nobody else's file is in danger, and no successor's."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from helperd.errors import EXIT_USAGE
from tests.support.helper import run_helper
from tests.support.server import ServerProcess

Put = Callable[[Path], None]


def _file(path: Path) -> None:
    path.write_text("precious")


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _folder(path: Path) -> None:
    path.mkdir()


def _link_to_a_file(path: Path) -> None:
    (path.parent / "data").write_text("precious")
    path.symlink_to("data")


def _link_to_nowhere(path: Path) -> None:
    path.symlink_to("nowhere")


def _link_to_a_stale_socket(path: Path) -> None:
    _stale(path.parent / "elsewhere", socket.SOCK_SEQPACKET)
    path.symlink_to("elsewhere")


def _living_stream_socket(path: Path) -> None:
    kept = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    kept.bind(str(path))
    kept.listen()
    _kept.append(kept)


_kept: list[socket.socket] = []


def _stale(path: Path, kind: int) -> None:
    with socket.socket(socket.AF_UNIX, kind) as dead:
        dead.bind(str(path))


@pytest.mark.parametrize(
    "put",
    [
        *(_file, _fifo, _folder, _link_to_a_file, _link_to_nowhere, _link_to_a_stale_socket),
        _living_stream_socket,
    ],
    ids=lambda put: put.__name__.strip("_"),
)
def test_what_is_in_the_way_stays(folder: Path, put: Put) -> None:
    path = folder / "s"
    put(path)
    before = path.lstat()
    try:
        outcome = run_helper("serve", "--socket", str(path))
        assert outcome.status == EXIT_USAGE
        assert "cannot listen at" in outcome.error_line
        assert os.path.samestat(path.lstat(), before)
        assert not path.is_file() or path.read_text() == "precious"
    finally:
        while _kept:
            _kept.pop().close()


def test_a_stale_socket_is_replaced(folder: Path) -> None:
    _stale(folder / "s", socket.SOCK_SEQPACKET)
    with ServerProcess(folder) as server:
        assert server.stop() == 0
    assert not (folder / "s").exists()


def test_a_successors_socket_stays(folder: Path) -> None:
    """Somebody has moved the socket away, and another server has taken the place."""
    with ServerProcess(folder) as first:
        (folder / "s").rename(folder / "moved")
        with ServerProcess(folder) as second:
            before = (folder / "s").lstat()
            assert first.stop() == 0
            assert os.path.samestat((folder / "s").lstat(), before)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.connect(str(folder / "s"))
            second.signal(signal.SIGTERM)
            assert second.wait() == 0
    assert not (folder / "s").exists()


# Metrics.


@pytest.mark.parametrize("what", ["folder", "fifo", "device", "nowhere"])
def test_metrics_that_cannot_be_written(folder: Path, what: str) -> None:
    path = folder / "m"
    if what == "folder":
        path.mkdir()
    elif what == "fifo":
        os.mkfifo(path)
    elif what == "device":
        path.symlink_to("/dev/null")
    else:
        path = folder / "nowhere" / "m"
    outcome = run_helper("serve", "--socket", str(folder / "s"), "--metrics", str(path))
    assert outcome.status == EXIT_USAGE
    assert f"--metrics {path}" in outcome.error_line
    assert what == "nowhere" or os.path.lexists(path)
    assert not (folder / "s").exists()


def test_metrics_are_not_written_through_a_link(folder: Path) -> None:
    """In a folder where others may make files, /tmp say."""
    victim = folder / "victim"
    victim.write_text("precious")
    (folder / "metrics.prom.new").symlink_to(victim)
    with ServerProcess(folder) as server:
        assert server.stop() == 0
    assert victim.read_text() == "precious"
    assert "helperd_sessions_active" in (folder / "metrics.prom").read_text()


def test_a_session_is_not_in_the_servers_process_group(server: ServerProcess, pages: Path) -> None:
    """What is sent to that is the server's to pass on, once."""
    from tests.support.client import connected
    from tests.support.processes import sessions_of

    with connected(server, pages) as client:
        (session,) = sessions_of(server.pid)
        assert os.getpgid(session) == session != os.getpgid(server.pid)
        assert client.finish() == 0
