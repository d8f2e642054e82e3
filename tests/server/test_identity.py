"""A session has its client's rights, no more: these tests need root to become others."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import prctl
import pytest
from target import Target

from helperd.errors import EXIT_PERMISSION
from helperd.options import Options
from helperd.server.attach import NoSession, Session
from tests.support.image import BlockImage
from tests.support.memory import OwnMemory
from tests.support.requests import ADDRESS, ANSWER
from tests.support.server import ServerProcess

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")

USER, OTHER_USER, GROUP, GROUPS = 54321, 54322, 54323, [54324, 54325]


def as_user(uid: int, work: Callable[[], object]) -> None:
    """Run ``work`` in a child process that belongs to ``uid``; fail if it fails."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.setgroups(GROUPS)
            os.setresgid(GROUP, GROUP, GROUP)
            os.setresuid(uid, uid, uid)
            prctl.set_dumpable(1)  # As after an exec: its own user may write to it.
            work()
            status = 0
        except BaseException as error:
            os.write(2, f"{type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class Restorer:
    """One session of the calling process."""

    def __init__(self, server: ServerProcess, pages: Path, *targets: int) -> None:
        options = Options()
        options.targets = list(targets)
        request_read, self._request_fd = os.pipe()
        self._reply_fd, reply_write = os.pipe()
        pages_fd = os.open(pages, os.O_RDONLY)
        self.session = Session(str(server.path), [pages_fd, request_read, reply_write], options)
        os.close(request_read)
        os.close(reply_write)

    def ask(self, image: BlockImage, pid: int, address: int) -> int:
        """Return the answer to a request for all of the image."""
        os.write(self._request_fd, image.request(pid, address).encode())
        value: int = ANSWER.unpack(os.read(self._reply_fd, ANSWER.size))[0]
        return value

    def finish(self) -> int:
        """Return the session's exit code."""
        os.close(self._request_fd)
        return self.session.wait()[0]


def status_of(pid: int) -> dict[str, str]:
    """Return /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_a_user_restores_its_own_process(
    server: ServerProcess, image: BlockImage, pages: Path
) -> None:
    def work() -> None:
        memory = OwnMemory(len(image.memory))
        restorer = Restorer(server, pages)
        assert restorer.ask(image, os.getpid(), memory.address) == image.answer
        status = status_of(restorer.session.worker_pid)
        assert status["Uid"].split() == [str(USER)] * 4
        assert status["Gid"].split() == [str(GROUP)] * 4
        assert status["Groups"].split() == list(map(str, GROUPS))
        assert int(status["CapPrm"], 16) == int(status["CapEff"], 16) == 0
        assert restorer.finish() == 0
        assert memory.content() == image.memory

    as_user(USER, work)


def test_sparse_memory_of_a_user_stays_sparse(server: ServerProcess, folder: Path) -> None:
    """The session can read what /proc tells of its client's memory."""
    image = BlockImage()
    image.add_zero(4)
    image.sizes, image.block_pages = [0] * 4, [1] * 4
    pages = image.write(folder / "zero.img")

    def work() -> None:
        memory = OwnMemory(len(image.memory))
        private = memory.address
        restorer = Restorer(server, pages)
        assert restorer.ask(image, os.getpid(), private) == 0
        assert restorer.finish() == 0

    as_user(USER, work)
    assert "does not show" not in server.log()


@pytest.mark.parametrize("owner", [0, OTHER_USER], ids=["root", "another-user"])
def test_a_user_is_refused_others(
    server: ServerProcess, target_program: Path, image: BlockImage, pages: Path, owner: int
) -> None:
    with Target(target_program) as foreign:
        foreign.map_anonymous(ADDRESS, len(image.memory))
        pid = foreign.pid
        child = -1
        if owner:
            # A process of the other user: a child of ours that has become it, and waits.
            ready, told = os.pipe()
            child = os.fork()
            if child == 0:
                os.setresuid(owner, owner, owner)
                prctl.set_dumpable(1)
                os.write(told, b".")
                os.read(os.pipe()[0], 1)
                os._exit(0)
            os.close(told)
            os.read(ready, 1)
            os.close(ready)
            pid = child

        def work() -> None:
            restorer = Restorer(server, pages, pid)
            assert restorer.ask(image, pid, ADDRESS) == -errno.EPERM
            assert restorer.finish() == EXIT_PERMISSION

        try:
            as_user(USER, work)
        finally:
            if child > 0:
                os.kill(child, 9)
                os.waitpid(child, 0)
        if not owner:
            assert not any(foreign.present_pages(ADDRESS, image.n_pages))


def test_root_keeps_what_the_job_needs(
    server: ServerProcess, image: BlockImage, pages: Path, memory: OwnMemory
) -> None:
    restorer = Restorer(server, pages)
    assert restorer.ask(image, os.getpid(), memory.address) == image.answer
    status = status_of(restorer.session.worker_pid)
    ptrace_and_nice = 1 << 19 | 1 << 23
    assert int(status["CapPrm"], 16) == ptrace_and_nice
    assert int(status["CapEff"], 16) == ptrace_and_nice
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
    assert restorer.finish() == 0


def test_a_server_without_rights_serves_its_own_user_only(
    folder: Path, image: BlockImage, pages: Path
) -> None:
    """The server becomes an ordinary user in the middle of its own start."""
    from helperd.reports.log import Log
    from helperd.server.endpoint import Endpoint
    from helperd.server.limits import Limits
    from helperd.server.listener import Server
    from helperd.server.metrics import Metrics

    path = folder / "s"
    folder.chmod(0o777)
    server = os.fork()
    if server == 0:
        try:
            os.setgroups(GROUPS)
            os.setresgid(GROUP, GROUP, GROUP)
            os.setresuid(USER, USER, USER)
            endpoint = Endpoint.listen(str(path), 0o666)
            log = Log(0)
            Server(endpoint, Limits(), Metrics(None, log), log).run()
        finally:
            os._exit(0)

    class At:
        def __init__(self, path: Path) -> None:
            self.path = path

    def own() -> None:
        memory = OwnMemory(len(image.memory))
        restorer = Restorer(At(path), pages)  # type: ignore[arg-type]
        assert restorer.ask(image, os.getpid(), memory.address) == image.answer
        assert restorer.finish() == 0

    def foreign() -> None:
        with pytest.raises(NoSession, match="serves no other") as refused:
            Restorer(At(path), pages)  # type: ignore[arg-type]
        assert (refused.value.errno, refused.value.exit_code) == (errno.EPERM, EXIT_PERMISSION)

    try:
        while not path.exists():
            os.sched_yield()
        as_user(USER, own)
        as_user(OTHER_USER, foreign)
    finally:
        os.kill(server, 15)
        os.waitpid(server, 0)
