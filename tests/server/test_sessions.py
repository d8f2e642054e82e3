"""Clients of the server that speak its protocol themselves, well or badly."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import sys
import termios
from array import array
from contextlib import ExitStack
from pathlib import Path

import pytest

from helperd.errors import EXIT_PROTOCOL, EXIT_RESOURCES, EXIT_SIGNAL_BASE
from helperd.options import Options
from helperd.server.attach import NoSession, Session
from helperd.server.pb.session_pb2 import SessionReply, SessionRequest
from tests.support.client import Client, connected
from tests.support.helper import COMMAND, run_helper
from tests.support.image import BlockImage
from tests.support.memory import OwnMemory
from tests.support.processes import (
    DEADLINE_SECONDS,
    children_of,
    ends,
    eventually,
    parent_of,
    sessions_of,
    spares_of,
)
from tests.support.requests import RawRequest
from tests.support.server import ServerProcess

#: Passes a socket and executes the rest of its command line.
AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.argv[2], sys.argv[2:])
"""


def test_a_session(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    with connected(server, pages) as client:
        assert parent_of(client.session.worker_pid) in sessions_of(server.pid)
        assert client.ask(image.request(os.getpid(), memory.address)) == image.answer
        assert client.finish() == 0
        assert ends(client.session.worker_pidfd)
        assert sessions_of(server.pid) == set()
    assert memory.content() == image.memory


def test_a_client_that_leaves_ends_its_session(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    with connected(server, pages) as client:
        assert client.ask(image.request(os.getpid(), memory.address)) == image.answer
        client.session.close()
        assert ends(client.session.worker_pidfd)


def test_a_hundred_sessions_at_once(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    options = Options()
    options.threads = 1
    with ExitStack() as stack:
        clients = [stack.enter_context(connected(server, pages, options)) for _ in range(100)]
        assert len({client.session.worker_pid for client in clients}) == 100
        request = image.request(os.getpid(), memory.address)
        for client in clients:
            os.write(client.request_fd, request.encode())
        assert [client.receive() for client in clients] == [image.answer] * 100
        assert [client.finish() for client in clients] == [0] * 100
    assert memory.content() == image.memory
    assert sessions_of(server.pid) == set()


def test_no_descriptor_is_leaked(server: ServerProcess, pages: Path) -> None:
    def descriptors() -> int:
        return len(os.listdir(f"/proc/{server.pid}/fd"))

    spares = spares_of(server.pid)
    # The sessions of the test before may be at their ends still.
    assert eventually(lambda: children_of(server.pid) == spares)
    before = descriptors()
    for _ in range(10):
        with connected(server, pages) as client:
            assert client.finish() == 0
    # The last one is closed a moment after its client has heard; and then there are spares again.
    assert spares.isdisjoint(spares_of(server.pid))
    assert eventually(lambda: descriptors() <= before)


# Limits.


def test_sessions_at_once(folder: Path, pages: Path) -> None:
    with ServerProcess(folder, "--max-sessions", "1") as server:
        with connected(server, pages) as client:
            with pytest.raises(NoSession, match="--max-sessions") as refused:
                Client(server, pages)
            assert refused.value.errno == errno.EAGAIN
            assert refused.value.exit_code == EXIT_RESOURCES
            assert client.finish() == 0
        with connected(server, pages) as client:
            assert client.finish() == 0
        assert "helperd_refused_total 1\n" in server.metrics.read_text()
        assert server.stop() == 0


def test_one_after_the_other(folder: Path, pages: Path) -> None:
    """A client may be told of the end before the server knows of it."""
    with ServerProcess(folder, "--max-sessions", "1") as server:
        for _ in range(20):
            with connected(server, pages) as client:
                assert client.finish() == 0
        assert server.stop() == 0


def test_request_size(folder: Path, image: BlockImage, pages: Path, memory: OwnMemory) -> None:
    with ServerProcess(folder, "--max-request", "16K") as server:
        with connected(server, pages) as client:
            assert client.ask(image.request(os.getpid(), memory.address)) == -errno.EPROTO
            assert client.finish() == EXIT_PROTOCOL
        assert server.stop() == 0


def test_idle_time(folder: Path, pages: Path) -> None:
    with ServerProcess(folder, "--idle-timeout", "1") as server:
        with connected(server, pages) as client:
            assert client.receive() == -errno.ETIMEDOUT
            assert client.session.wait()[0] == EXIT_PROTOCOL
        assert server.stop() == 0


def test_memory_of_a_session(folder: Path, pages: Path) -> None:
    """Tables of 64 Mi blocks do not fit; the session ends, the server does not notice."""
    n_blocks = 1 << 26
    header = RawRequest(
        remote_pid=os.getpid(),
        offs=0,
        sizes=(),
        iovs=(),
        n_blocks=n_blocks,
        n_pages=n_blocks,
        nr_iovs=1,
        total_compressed_size=0,
    ).header()
    with ServerProcess(folder, "--max-memory", "100M") as server:
        with connected(server, pages) as client:
            os.write(client.request_fd, header)
            zeros = bytes(1 << 16)
            for _ in range(n_blocks * 4 // len(zeros)):
                os.write(client.request_fd, zeros)
            assert client.receive() == -errno.ENOMEM
            assert client.finish() == EXIT_RESOURCES
        with connected(server, pages) as client:
            assert client.finish() == 0
        assert server.stop() == 0


# Clients that do not know how, or do not want to.


def hello(**changes: object) -> bytes:
    """Return a SessionRequest that is right but for ``changes``."""
    request = SessionRequest(version=1)
    for name, value in changes.items():
        if isinstance(value, list):
            getattr(request, name).extend(value)
        else:
            setattr(request, name, value)
    return request.SerializeToString()


BAD_HELLOS = {
    "garbage": (b"\xff" * 64, 3),
    "empty": (b"", 3),
    "no descriptors": (hello(), 0),
    "two descriptors": (hello(), 2),
    "five descriptors": (hello(), 5),
    "version": (hello(version=2), 3),
    "targets": (hello(targets=list(range(2, 100))), 3),
    "thp": (hello(thp="sometimes"), 3),
    "sandbox": (hello(sandbox="a little"), 3),
    "layout": (hello(log_layout="\x00" * 100), 4),
    "threads": (hello(threads=1 << 31), 3),
    "no such target": (hello(targets=[0x3FFFFFFF]), 3),
    "negative target": (hello(targets=[-1]), 3),
    "too long": (hello(thp="x" * 10000), 3),
}


@pytest.mark.parametrize("name", BAD_HELLOS)
def test_bad_hello(server: ServerProcess, pages: Path, name: str) -> None:
    message, n_fds = BAD_HELLOS[name]
    with ExitStack() as stack:
        file = stack.enter_context(pages.open("rb"))
        connection = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        connection.settimeout(DEADLINE_SECONDS)
        connection.connect(str(server.path))
        # Descriptors that nobody reads from: a pages image as good as any, three times.
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [file.fileno()] * n_fds))]
        connection.sendmsg([message], rights if n_fds else [])
        reply = SessionReply.FromString(connection.recv(1 << 14))
        assert reply.WhichOneof("what") == "ended"
        assert reply.ended.exit_code != 0
        assert reply.ended.reason
        assert connection.recv(1 << 14) == b""
    assert sessions_of(server.pid) == set()


@pytest.mark.parametrize("say", [False, True], ids=["silent", "after-hello"])
def test_a_client_that_hangs_up(server: ServerProcess, pages: Path, say: bool) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.connect(str(server.path))
        if say:
            with pages.open("rb") as file:
                rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [file.fileno()] * 3))]
                connection.sendmsg([hello()], rights)
    with connected(server, pages) as client:
        assert client.finish() == 0


def test_an_image_that_is_a_pipe(server: ServerProcess, pages: Path) -> None:
    ends_of_pipe = os.pipe()
    with pytest.raises(NoSession, match="not a file"):
        Session(str(server.path), [ends_of_pipe[0], *ends_of_pipe], Options())
    for fd in ends_of_pipe:
        os.close(fd)


# The end of the server.


def test_stop_ends_idle_sessions(
    folder: Path, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    with ServerProcess(folder) as server, connected(server, pages) as client:
        assert client.ask(image.request(os.getpid(), memory.address)) == image.answer
        server.signal(signal.SIGTERM)
        assert client.session.wait()[0] == EXIT_SIGNAL_BASE + signal.SIGTERM
        assert server.wait() == 0
        assert not server.path.exists()


def unread_bytes(pipe_fd: int) -> int:
    """Return how much of what was written to a pipe nobody has read yet."""
    count = array("i", [0])
    fcntl.ioctl(pipe_fd, termios.FIONREAD, count)
    return count[0]


def test_stop_lets_a_request_end(
    folder: Path, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    request = image.request(os.getpid(), memory.address)
    data = request.encode()
    with ServerProcess(folder) as server, connected(server, pages) as client:
        os.write(client.request_fd, data[:40])
        while unread_bytes(client.request_fd):
            os.sched_yield()
        server.signal(signal.SIGTERM)
        while "letting requests end" not in server.log():  # It has heard of it.
            os.sched_yield()
        os.write(client.request_fd, data[40:])
        assert client.receive() == image.answer
        assert client.session.wait()[0] == EXIT_SIGNAL_BASE + signal.SIGTERM
        assert server.wait() == 0
    assert memory.content() == image.memory


def test_a_second_server_at_the_same_place(server: ServerProcess, folder: Path) -> None:
    outcome = run_helper("serve", "--socket", str(server.path))
    assert outcome.status == 2
    assert "another server" in outcome.error_line


def test_what_a_killed_server_left_is_replaced(folder: Path, pages: Path) -> None:
    with ServerProcess(folder) as server:
        server.signal(signal.SIGKILL)
        server.wait()
    assert server.path.exists()
    with ServerProcess(folder) as server:
        with connected(server, pages) as client:
            assert client.finish() == 0
        assert server.stop() == 0


def test_socket_activation(folder: Path, pages: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(folder / "s"))
        listener.listen()
        with ServerProcess(
            folder,
            command=[
                *(sys.executable, "-c", AS_SYSTEMD, str(listener.fileno())),
                *(*COMMAND, "serve"),
            ],
            environment={"LISTEN_FDS": "1"},
            pass_fds=(listener.fileno(),),
        ) as server:
            with connected(server, pages) as client:
                assert client.finish() == 0
            assert server.stop() == 0
        assert server.path.exists(), "the socket is systemd's"
