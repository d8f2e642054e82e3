"""The spare session: a client finds it forked already."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from tests.support.client import connected
from tests.support.image import BlockImage, all_kinds
from tests.support.memory import OwnMemory
from tests.support.processes import (
    N_SPARES,
    children_of,
    ends,
    eventually,
    parent_of,
    sessions_of,
    spares_of,
)
from tests.support.server import ServerProcess


def test_a_client_gets_it(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    spares = spares_of(server.pid)
    with connected(server, pages) as client:
        session = parent_of(client.session.worker_pid)
        assert session in spares
        assert sessions_of(server.pid) == {session}
        assert client.ask(image.request(os.getpid(), memory.address)) == image.answer
        assert spares_of(server.pid) != spares
        assert client.finish() == 0
    assert memory.content() == image.memory


def test_it_has_nothing_of_other_clients(server: ServerProcess, pages: Path) -> None:
    """Or else they would not see the end of their connections."""
    with connected(server, pages) as client:
        spares = spares_of(server.pid)
        # Its own: the standard ones, the log, the channel, what it reports to, and its worker.
        # While they rehearse they have more.
        for spare in spares:
            assert eventually(lambda pid=spare: len(os.listdir(f"/proc/{pid}/fd")) <= 3 + 4)
        for waiting in waiting_of(server):
            assert eventually(lambda pid=waiting: len(os.listdir(f"/proc/{pid}/fd")) <= 3 + 2)
        assert client.finish() == 0
        assert spares_of(server.pid) == spares


def test_clients_come_faster_than_spares(server: ServerProcess, pages: Path) -> None:
    for _ in range(5):
        with connected(server, pages) as one, connected(server, pages) as another:
            assert one.finish() == another.finish() == 0


def test_one_that_was_killed_is_missed_by_nobody(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    for spare in spares_of(server.pid):
        pidfd = os.pidfd_open(spare)
        os.kill(spare, signal.SIGKILL)
        assert ends(pidfd)
        os.close(pidfd)
    with connected(server, pages) as client:
        assert client.ask(image.request(os.getpid(), memory.address)) == image.answer
        assert client.finish() == 0
    assert memory.content() == image.memory


def test_it_ends_with_the_server(server: ServerProcess) -> None:
    spares = [os.pidfd_open(spare) for spare in spares_of(server.pid)]
    assert server.stop() == 0
    for spare in spares:
        assert ends(spare)
        os.close(spare)


def test_there_are_no_more(server: ServerProcess, pages: Path) -> None:
    with connected(server, pages) as client:
        spares_of(server.pid)
        assert client.finish() == 0
    assert eventually(lambda: children_of(server.pid) == spares_of(server.pid))


def waiting_of(server: ServerProcess) -> set[int]:
    """Return the pids of the workers that wait with the spare sessions; waits until they do."""
    found: set[int] = set()

    def look() -> bool:
        found.clear()
        for pid in set().union(*map(children_of, spares_of(server.pid))):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "helperd-waiting":
                    found.add(pid)
        return len(found) == N_SPARES

    assert eventually(look), "no worker waits"
    return found


def test_its_worker_is_there_already(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    waiting = waiting_of(server)
    with connected(server, pages) as client:
        assert client.session.worker_pid in waiting
        assert client.ask(image.request(os.getpid(), memory.address)) == image.answer
        assert client.finish() == 0
    assert memory.content() == image.memory


def test_a_large_request_finds_buffers_that_are_ready(server: ServerProcess, folder: Path) -> None:
    """What they were made ready with is not in what is restored."""
    waiting_of(server)
    image = all_kinds(4096)
    memory = OwnMemory(len(image.memory))
    with connected(server, image.write(folder / "large.img")) as client:
        for _ in range(3):
            assert client.ask(image.request(os.getpid(), memory.address)) == image.answer
            assert memory.content() == image.memory
        assert client.finish() == 0
    memory.map.close()


def test_a_waiting_worker_that_was_killed_is_missed_by_nobody(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    for waiting in waiting_of(server):
        pidfd = os.pidfd_open(waiting)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert ends(pidfd)
        os.close(pidfd)
    with connected(server, pages) as client:
        assert client.ask(image.request(os.getpid(), memory.address)) == image.answer
        assert client.finish() == 0
    assert memory.content() == image.memory


def test_a_waiting_worker_ends_with_its_session(server: ServerProcess) -> None:
    pidfds = [os.pidfd_open(pid) for pid in waiting_of(server)]
    for spare in spares_of(server.pid):
        os.kill(spare, signal.SIGKILL)
    for waiting in pidfds:
        assert ends(waiting)
        os.close(waiting)
