"""``helperd attach``: for its spawner nothing differs from a helper of its own."""

from __future__ import annotations

import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from target import Target

from helperd.errors import (
    EXIT_IMAGE,
    EXIT_PERMISSION,
    EXIT_PROTOCOL,
    EXIT_RESOURCES,
    EXIT_SIGNAL_BASE,
    EXIT_TARGET,
    EXIT_USAGE,
)
from tests.support.helper import FrontEnd, HelperProcess, run_helper
from tests.support.image import BlockImage
from tests.support.memory import OwnMemory
from tests.support.processes import children_of, ends, exists, sessions_of
from tests.support.requests import ADDRESS
from tests.support.server import ServerProcess


def session_of(server: ServerProcess) -> int:
    """Return the pid of the only session process."""
    (session,) = sessions_of(server.pid)
    return session


def worker_of(server: ServerProcess) -> int:
    """Return the pid of the only worker."""
    (worker,) = children_of(session_of(server))
    return worker


@pytest.mark.parametrize("front_end", list(FrontEnd), ids=lambda front_end: front_end.name)
def test_restores_its_spawner(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory, front_end: FrontEnd
) -> None:
    with HelperProcess(pages, front_end=front_end, command=server.attach) as helper:
        request = image.request(os.getpid(), memory.address)
        for _ in range(2):
            assert helper.ask(request) == image.answer
        worker = worker_of(server)
        outcome = helper.finish()
        assert not exists(worker)
        assert sessions_of(server.pid) == set()
    assert (outcome.status, outcome.stderr) == (0, "")
    assert memory.content() == image.memory


def test_restores_a_descendant(
    server: ServerProcess, target: Target, image: BlockImage, pages: Path
) -> None:
    target.map_anonymous(ADDRESS, len(image.memory))
    child = target.fork()
    with HelperProcess(pages, command=server.attach) as helper:
        assert helper.ask(image.request(child, ADDRESS)) == image.answer
        assert helper.finish().status == 0
    assert target.read(ADDRESS, len(image.memory), pid=child) == image.memory


def test_a_foreign_process_needs_to_be_named(
    server: ServerProcess, target: Target, image: BlockImage, pages: Path
) -> None:
    target.map_anonymous(ADDRESS, len(image.memory))
    under_a_shell = ("sh", "-c", '"$@"; exit $?', "sh")
    request = image.request(target.pid, ADDRESS)
    with HelperProcess(pages, command=server.attach, wrapper=under_a_shell) as helper:
        assert helper.ask(request) == -errno.EPERM
        outcome = helper.finish()
    assert outcome.status == EXIT_PERMISSION
    assert "--target" in outcome.error_line
    named = ("--target", str(target.pid))
    with HelperProcess(pages, *named, command=server.attach, wrapper=under_a_shell) as helper:
        assert helper.ask(request) == image.answer
        assert helper.finish().status == 0


def test_a_process_of_the_server_is_refused(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    with HelperProcess(pages, command=server.attach) as helper:
        assert helper.ask(image.request(os.getpid(), memory.address)) == image.answer
        assert helper.ask(image.request(worker_of(server), memory.address)) == -errno.EPERM
        assert helper.finish().status == EXIT_PERMISSION


@pytest.mark.parametrize(
    ("number", "status"),
    [
        (errno.EPROTO, EXIT_PROTOCOL),
        (errno.EIO, EXIT_IMAGE),
        (errno.EFAULT, EXIT_TARGET),
    ],
)
def test_failures_are_those_of_a_helper(
    server: ServerProcess,
    image: BlockImage,
    pages: Path,
    memory: OwnMemory,
    number: int,
    status: int,
) -> None:
    request = image.request(os.getpid(), memory.address)
    if number == errno.EPROTO:
        request = replace(request, n_pages=7)
    elif number == errno.EIO:
        request = replace(request, offs=1 << 40)
    else:
        request = image.request(os.getpid(), 1 << 20)
    with HelperProcess(pages, command=server.attach) as helper:
        assert helper.ask(request) == -number
        outcome = helper.finish()
    assert outcome.status == status
    assert outcome.error_line


def test_statistics_and_log_are_the_clients(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory, folder: Path
) -> None:
    stats = folder / "stats.json"
    options = ("--stats", str(stats), "--log-json", "-v4")
    with HelperProcess(pages, *options, command=server.attach) as helper:
        assert helper.ask(image.request(os.getpid(), memory.address)) == image.answer
        outcome = helper.finish()
    events = [json.loads(line)["event"] for line in outcome.stderr.splitlines()]
    assert events == ["confined", "request", "answer", "session-end"]
    document = json.loads(stats.read_text())
    assert (document["requests"], document["pages"]) == (1, image.n_pages)
    assert document["exit_reason"] == "all requests served"
    assert 'helperd_sessions_total{exit_code="0"} 1\n' in server.metrics.read_text()
    assert f"helperd_pages_total {image.n_pages}\n" in server.metrics.read_text()


def test_worker_is_killed(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    with HelperProcess(pages, command=server.attach) as helper:
        assert helper.ask(image.request(os.getpid(), memory.address)) == image.answer
        os.kill(worker_of(server), signal.SIGKILL)
        outcome = helper.wait()
    assert outcome.status == EXIT_SIGNAL_BASE + signal.SIGKILL
    assert outcome.error_line


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_attach_is_killed(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory, number: int
) -> None:
    with HelperProcess(pages, command=server.attach) as helper:
        assert helper.ask(image.request(os.getpid(), memory.address)) == image.answer
        worker = os.pidfd_open(worker_of(server))
        os.kill(helper.pid, number)
        assert helper.wait().status != 0
        assert helper.receive() is None
        assert ends(worker)
        os.close(worker)


def test_server_is_killed(folder: Path, image: BlockImage, pages: Path, memory: OwnMemory) -> None:
    with ServerProcess(folder) as server:
        with HelperProcess(pages, command=server.attach) as helper:
            assert helper.ask(image.request(os.getpid(), memory.address)) == image.answer
            worker = os.pidfd_open(worker_of(server))
            server.signal(signal.SIGKILL)
            outcome = helper.wait()
            assert ends(worker)
            os.close(worker)
        assert outcome.status == EXIT_RESOURCES
        assert outcome.error_line


def test_no_server(folder: Path, image: BlockImage, pages: Path, memory: OwnMemory) -> None:
    server = ServerProcess(folder)
    assert server.stop() == 0
    with HelperProcess(pages, command=server.attach) as helper:
        assert helper.ask(image.request(os.getpid(), memory.address)) == -errno.ENOENT
        outcome = helper.finish()
    assert outcome.status == EXIT_RESOURCES
    assert str(server.path) in outcome.error_line


def test_socket_is_needed() -> None:
    outcome = run_helper("attach", "--pages-fd", "3", "--request-fd", "4", "--reply-fd", "5")
    assert outcome.status == EXIT_USAGE
    assert "--socket" in outcome.error_line
