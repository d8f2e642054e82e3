"""The spare session: a client finds it forked already."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.support.client import connected
from tests.support.image import BlockImage
from tests.support.memory import OwnMemory
from tests.support.processes import (
    children_of,
    ends,
    eventually,
    parent_of,
    sessions_of,
    spare_of,
)
from tests.support.server import ServerProcess


def test_a_client_gets_it(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    spare = spare_of(server.pid)
    with connected(server, pages) as client:
        assert parent_of(client.session.worker_pid) == spare
        assert sessions_of(server.pid) == {spare}
        assert client.ask(image.request(os.getpid(), memory.address)) == image.answer
        assert spare_of(server.pid) != spare
        assert client.finish() == 0
    assert memory.content() == image.memory


def test_it_has_nothing_of_other_clients(server: ServerProcess, pages: Path) -> None:
    """Or else they would not see the end of their connections."""
    with connected(server, pages) as client:
        spare = spare_of(server.pid)
        # Its own: the standard ones, the log, the channel, what it reports to, and its worker.
        assert len(os.listdir(f"/proc/{spare}/fd")) <= 3 + 4
        waiting = waiting_of(server)
        # While it rehearses it has more.
        assert eventually(lambda: len(os.listdir(f"/proc/{waiting}/fd")) <= 3 + 2)
        assert client.finish() == 0
        assert spare_of(server.pid) == spare


def test_clients_come_faster_than_spares(server: ServerProcess, pages: Path) -> None:
    for _ in range(5):
        with connected(server, pages) as one, connected(server, pages) as another:
            assert one.finish() == another.finish() == 0


def test_one_that_was_killed_is_missed_by_nobody(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    spare = spare_of(server.pid)
    pidfd = os.pidfd_open(spare)
    os.kill(spare, signal.SIGKILL)
    assert ends(pidfd)
    os.close(pidfd)
    with connected(server, pages) as client:
        assert client.ask(image.request(os.getpid(), memory.address)) == image.answer
        assert client.finish() == 0
    assert memory.content() == image.memory


def test_it_ends_with_the_server(server: ServerProcess) -> None:
    spare = os.pidfd_open(spare_of(server.pid))
    assert server.stop() == 0
    assert ends(spare)
    os.close(spare)


def test_there_is_one_only(server: ServerProcess, pages: Path) -> None:
    with connected(server, pages) as client:
        spare_of(server.pid)
        assert client.finish() == 0
    assert eventually(lambda: children_of(server.pid) == {spare_of(server.pid)})


def waiting_of(server: ServerProcess) -> int:
    """Return the pid of the worker that waits with the spare session; waits until it does."""
    found: list[int] = []

    def look() -> bool:
        for pid in children_of(spare_of(server.pid)):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "helperd-waiting":
                    found.append(pid)
        return bool(found)

    assert eventually(look), "no worker waits"
    return found[0]


def test_its_worker_is_there_already(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    waiting = waiting_of(server)
    with connected(server, pages) as client:
        assert client.session.worker_pid == waiting
        assert client.ask(image.request(os.getpid(), memory.address)) == image.answer
        assert client.finish() == 0
    assert memory.content() == image.memory


def test_a_waiting_worker_that_was_killed_is_missed_by_nobody(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    pidfd = os.pidfd_open(waiting_of(server))
    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert ends(pidfd)
    os.close(pidfd)
    with connected(server, pages) as client:
        assert client.ask(image.request(os.getpid(), memory.address)) == image.answer
        assert client.finish() == 0
    assert memory.content() == image.memory


def test_a_waiting_worker_ends_with_its_session(server: ServerProcess) -> None:
    waiting = os.pidfd_open(waiting_of(server))
    os.kill(spare_of(server.pid), signal.SIGKILL)
    assert ends(waiting)
    os.close(waiting)
