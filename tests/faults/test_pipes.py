"""Pipes that close at any byte, and peers that are slow: sessions of a server, to have many."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import tempfile
import termios
from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from helperd.errors import EXIT_OK, EXIT_PROTOCOL
from helperd.options import Options
from helperd.server.attach import Session
from tests.support.client import Client, connected
from tests.support.image import BlockImage, noise, text
from tests.support.memory import OwnMemory
from tests.support.processes import DEADLINE_SECONDS, sessions_of
from tests.support.requests import ANSWER
from tests.support.server import ServerProcess


class Setting:
    """A server, an image, memory to restore into, and a session's bytes.

    Attributes:
        requests: two requests, per page and in regions, one after the other.
    """

    def __init__(self, folder: Path, server: ServerProcess) -> None:
        self.server = server
        self._image = BlockImage()
        self._image.add_lz4(text(2))
        self._image.add_zero(1)
        self._image.add_raw(noise(1))
        single = BlockImage()
        single.add_lz4(text(1))
        self.pages = self._image.write(folder / "pages-1.img")
        self.memory = OwnMemory(len(self._image.memory))
        first = self._image.request(os.getpid(), self.memory.address, region_pages=2)
        self.requests = (first.encode(), first.encode())
        self.answers = (self._image.answer, self._image.answer)

    @property
    def stream(self) -> bytes:
        return b"".join(self.requests)

    def is_right(self) -> bool:
        return self.memory.content() == self._image.memory


@pytest.fixture(scope="module")
def setting() -> Iterator[Setting]:
    with tempfile.TemporaryDirectory(prefix="hd-") as name:
        folder = Path(name)
        with ServerProcess(folder) as server:
            one = Setting(folder, server)
            yield one
            assert server.stop() == 0
            server.log()
        one.memory.map.close()


@pytest.fixture(autouse=True)
def nothing_left(setting: Setting) -> Iterator[None]:
    """Fail a test that leaves a session behind."""
    yield
    assert sessions_of(setting.server.pid) == set()


def answers_of(client: Client) -> list[int]:
    """Return all answers until the pipe ends."""
    data = b""
    while part := os.read(client.reply_fd, 1 << 12):
        data += part
    return [value for (value,) in ANSWER.iter_unpack(data)]


def test_request_pipe_closes_at_every_byte(setting: Setting) -> None:
    first = len(setting.requests[0])
    for position in range(len(setting.stream) + 1):
        with connected(setting.server, setting.pages) as client:
            os.write(client.request_fd, setting.stream[:position])
            status = client.finish()
            answers = answers_of(client)
        whole = position // first
        expected = list(setting.answers[:whole])
        if position % first == 0:
            assert (status, answers) == (EXIT_OK, expected), position
        else:
            assert (status, answers) == (EXIT_PROTOCOL, [*expected, -errno.EPROTO]), position


def test_answer_pipe_closes_before_every_byte(setting: Setting) -> None:
    """It is noticed at the next answer, if there is one."""
    first = len(setting.requests[0])
    for position in range(len(setting.stream) + 1):
        with connected(setting.server, setting.pages) as client:
            os.write(client.request_fd, setting.stream[:position])
            if position < first:
                os.close(client.reply_fd)
                client.reply_fd = -1
                with open(client.request_fd, "wb", closefd=False) as pipe:
                    pipe.write(setting.stream[position:first])
                status = client.finish()
                assert status == EXIT_PROTOCOL
                continue
            assert client.receive() == setting.answers[0]
            os.close(client.reply_fd)
            client.reply_fd = -1
            status = client.finish()
            # Nothing of the second request; a part of it; all of it, answered or not.
            assert status in ((EXIT_OK,) if position == first else (EXIT_OK, EXIT_PROTOCOL))


def test_a_byte_at_a_time(setting: Setting) -> None:
    with connected(setting.server, setting.pages) as client:
        for request, answer in zip(setting.requests, setting.answers, strict=True):
            for at in range(len(request)):
                os.write(client.request_fd, request[at : at + 1])
                while unread(client.request_fd):
                    os.sched_yield()
            assert client.receive() == answer
        assert client.finish() == EXIT_OK
    assert setting.is_right()


def test_answers_read_a_byte_at_a_time(setting: Setting) -> None:
    with connected(setting.server, setting.pages) as client:
        os.write(client.request_fd, setting.stream)
        data = b""
        while len(data) < 2 * ANSWER.size:
            data += os.read(client.reply_fd, 1)
        assert [value for (value,) in ANSWER.iter_unpack(data)] == list(setting.answers)
        assert client.finish() == EXIT_OK


def test_pipes_that_do_not_block(setting: Setting) -> None:
    """A restorer may have made them so, for its own reasons."""
    fds = (*os.pipe2(os.O_NONBLOCK), *os.pipe2(os.O_NONBLOCK), os.open(setting.pages, os.O_RDONLY))
    request_read, request_write, reply_read, reply_write, pages = fds
    session = Session(str(setting.server.path), [pages, request_read, reply_write], Options())
    for request, answer in zip(setting.requests, setting.answers, strict=True):
        os.write(request_write, request)
        select.select([reply_read], [], [], DEADLINE_SECONDS)
        assert ANSWER.unpack(os.read(reply_read, ANSWER.size)) == (answer,)
    for fd in fds:
        os.close(fd)
    assert session.wait()[0] == EXIT_OK
    os.close(session.worker_pidfd)


def unread(pipe_fd: int) -> int:
    """Return how much of what was written to a pipe nobody has read yet."""
    count = array("i", [0])
    fcntl.ioctl(pipe_fd, termios.FIONREAD, count)
    return count[0]
