"""Answers: what the restorer is told, and that it lives to read it."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator

import pytest

from helperd.errors import EXIT_TARGET, PeerGone, TargetGone
from helperd.helper.answers import answer, answer_failure, fail
from helperd.kernel import pipes
from helperd.reports.log import Log
from helperd.wire.pipe import ANSWER, unpack_answer
from tests.support.processes import DEADLINE_SECONDS

GONE = TargetGone("target process 7 is gone")


class Pipes:
    """The two pipes of a restorer, both ends."""

    def __init__(self) -> None:
        self.request_fd, self.restorer_writes = os.pipe()
        self.restorer_reads, self.reply_fd = os.pipe()

    def answered(self) -> list[int]:
        """Close the helper's end, and return all that it has answered."""
        os.close(self.reply_fd)
        self.reply_fd = -1
        data = os.read(self.restorer_reads, 1 << 16)
        assert len(data) % ANSWER.size == 0
        return [unpack_answer(data[at : at + 8]) for at in range(0, len(data), 8)]


@pytest.fixture
def both() -> Iterator[Pipes]:
    made = Pipes()
    yield made
    for fd in vars(made).values():
        if fd >= 0:
            os.close(fd)


def test_bytes_that_are_not_zero(both: Pipes) -> None:
    answer(both.reply_fd, 1 << 40)
    answer(both.reply_fd, 0)
    assert both.answered() == [1 << 40, 0]


def test_a_session_that_does_not_begin(both: Pipes) -> None:
    """The restorer gets the answer, the log the reason; what was being written goes nowhere."""
    log_fd = os.memfd_create("log")
    os.write(both.restorer_writes, b"half a request")
    end = fail(both.request_fd, both.reply_fd, GONE, Log(fd=log_fd))
    assert (end.exit_code, end.reason) == (EXIT_TARGET, str(GONE))
    assert b"target process 7 is gone" in os.pread(log_fd, 1 << 16, 0)
    os.close(log_fd)
    assert both.answered() == [-errno.ESRCH]
    os.set_blocking(both.request_fd, False)
    with pytest.raises(BlockingIOError):
        os.read(both.request_fd, 1)


def test_a_restorer_that_writes_on_is_listened_to(both: Pipes) -> None:
    """A pipe closed under it would kill it before it could read why."""
    n_bytes = 1 << 20

    def restorer() -> None:
        pipes.write_all(both.restorer_writes, bytes(n_bytes))
        written.set()

    written = threading.Event()
    thread = threading.Thread(target=restorer, daemon=True)
    thread.start()
    answer_failure(both.request_fd, both.reply_fd, GONE, mid_request=True)
    assert written.wait(DEADLINE_SECONDS)
    thread.join()
    assert both.answered() == [-errno.ESRCH]


def test_behind_a_whole_request_nothing_is_read(both: Pipes) -> None:
    os.write(both.restorer_writes, b"the next request")
    answer_failure(both.request_fd, both.reply_fd, GONE, mid_request=False)
    assert os.read(both.request_fd, 100) == b"the next request"
    assert both.answered() == [-errno.ESRCH]


def test_who_is_gone_is_not_answered(both: Pipes) -> None:
    os.write(both.restorer_writes, b"half a request")
    answer_failure(both.request_fd, both.reply_fd, PeerGone("no reader"), mid_request=True)
    assert both.answered() == []
    assert os.read(both.request_fd, 100) == b"half a request"


def test_nobody_reads_the_answer(both: Pipes) -> None:
    os.close(both.restorer_reads)
    both.restorer_reads = -1
    os.write(both.restorer_writes, b"half a request")
    answer_failure(both.request_fd, both.reply_fd, GONE, mid_request=True)
    assert os.read(both.request_fd, 100) == b"half a request"
    with pytest.raises(PeerGone):
        answer(both.reply_fd, 1)
