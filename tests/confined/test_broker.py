"""The broker between a worker, which may have been taken over, and its parent."""

from __future__ import annotations

import _socket
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helperd.confined.broker import Broker, BrokerClient, socket_pair
from helperd.errors import HelperdError, InternalError, NotPermitted, TargetGone
from helperd.targets.hold import Hold


def only_ourselves(question: bytes) -> Hold:
    """Return a hold on this process, and a reason for everybody else."""
    if len(question) != 4:
        raise NotPermitted("that is no process")
    (pid,) = struct.unpack("<i", question)
    if pid == os.getpid():
        return Hold.open(pid)
    if pid == 1:
        raise NotPermitted("process 1 is not yours")
    raise TargetGone(f"process {pid} is gone", errno=3)


ANSWERS = {b"P": only_ourselves}


@pytest.fixture
def ends() -> Iterator[tuple[Broker, _socket.socket]]:
    """Return the parent's broker and the worker's end."""
    parents_end, workers_end = socket_pair()
    yield Broker(parents_end, ANSWERS), workers_end
    parents_end.close()
    workers_end.close()


def ask(ends: tuple[Broker, _socket.socket], pid: int) -> Hold:
    """Ask and answer in one thread: the question waits in the socket."""
    broker, workers_end = ends
    client = BrokerClient(workers_end)
    answered: list[bool] = []
    send = workers_end.send

    class End:
        def send(self, data: bytes) -> int:
            sent = send(data)
            answered.append(broker.answer())
            return sent

        recvmsg = workers_end.recvmsg

    client._end = End()  # type: ignore[assignment]
    try:
        return Hold.from_fds(pid, client.ask(b"P", struct.pack("<i", pid), f"process {pid}"))
    finally:
        assert answered == [True]


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_a_hold_is_handed_over(ends: tuple[Broker, _socket.socket]) -> None:
    before = open_fds()
    hold = ask(ends, os.getpid())
    assert hold.pidfd.is_alive()
    assert hold.maps is not None
    assert os.pread(hold.maps, 10, 0)
    assert open_fds() == before + len(hold.fds), "the parent keeps nothing"
    del hold
    assert open_fds() == before


@pytest.mark.parametrize(("pid", "kind"), [(1, NotPermitted), (4711, TargetGone)])
def test_a_reason_is_handed_over(
    ends: tuple[Broker, _socket.socket], pid: int, kind: type[HelperdError]
) -> None:
    with pytest.raises(kind, match=f"process {pid} is"):
        ask(ends, pid)


def test_last_words(ends: tuple[Broker, _socket.socket]) -> None:
    broker, workers_end = ends
    BrokerClient(workers_end).leave("requests 1\nreason \udcff")
    assert broker.answer()
    assert broker.last_words.startswith("requests 1\nreason ")


def test_a_parent_that_is_gone(ends: tuple[Broker, _socket.socket]) -> None:
    broker, workers_end = ends
    broker.close()
    with pytest.raises(InternalError, match="cannot ask the parent"):
        BrokerClient(workers_end).ask(b"P", b"1234", "process 1")
    BrokerClient(workers_end).leave("unheard")


def test_a_worker_that_is_gone(ends: tuple[Broker, _socket.socket]) -> None:
    broker, workers_end = ends
    assert broker.answer(), "nothing to do is no end"
    workers_end.close()
    assert not broker.answer()


def test_a_worker_that_does_not_read(ends: tuple[Broker, _socket.socket]) -> None:
    """It is given up, before its parent waits for it."""
    broker, workers_end = ends
    before = open_fds()
    workers_end.setblocking(False)
    question = b"P" + struct.pack("<i", 1)
    for _ in range(10_000):
        try:
            workers_end.send(question)
        except BlockingIOError:
            pytest.fail("the parent no longer reads")
        if not broker.answer():
            break
    else:
        pytest.fail("the parent never gave up")
    assert open_fds() == before


@given(st.binary(min_size=1, max_size=64))
def test_hostile_messages(message: bytes) -> None:
    parents_end, workers_end = socket_pair()
    broker = Broker(parents_end, ANSWERS)
    workers_end.send(message)
    assert broker.answer() == (message[:1] in (b"E", b"P"))
    parents_end.close()
    workers_end.close()
