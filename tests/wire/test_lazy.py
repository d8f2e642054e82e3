"""What a restore says on lazy-pages.socket: taken apart, whatever comes."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helperd.errors import ProtocolError
from helperd.wire.lazy import DeadTask, Finished, Handshake, Task

FINISHED = bytes.fromhex("46545352")


@given(
    tasks=st.lists(st.tuples(st.integers(1, 1 << 22), st.booleans()), max_size=8),
    cuts=st.lists(st.integers(1, 4), min_size=1),
)
def test_any_tree_in_any_pieces(tasks: list[tuple[int, bool]], cuts: list[int]) -> None:
    stream = bytearray()
    fds: dict[int, int] = {}
    for which, (pid, lives) in enumerate(tasks):
        stream += struct.pack("<i", pid if lives else -pid)
        if lives:
            fds[len(stream)] = 100 + which
            stream += b"\0"
    stream += FINISHED
    handshake, at, found = Handshake(), 0, []
    for turn in range(len(stream)):
        if at == len(stream):
            break
        size = min(handshake.wanted, cuts[turn % len(cuts)])
        passed = [fds[at]] if at in fds else []
        event = handshake.receive(bytes(stream[at : at + size]), passed)
        at += size
        if isinstance(event, Task):
            found.append((event.pid, True, event.fd))
        elif isinstance(event, DeadTask):
            found.append((event.pid, False, 0))
        elif isinstance(event, Finished):
            assert at == len(stream)
    expected = [
        (pid, lives, 100 + which if lives else 0) for which, (pid, lives) in enumerate(tasks)
    ]
    assert found == expected
    assert handshake.finished
    assert handshake.wanted == 1
    assert handshake.receive(b"", []) is None


@pytest.mark.parametrize("pid", [1, 2, 1 << 22])
def test_the_first_and_the_last_process(pid: int) -> None:
    handshake = Handshake()
    dead = handshake.receive(struct.pack("<i", -pid), [])
    assert isinstance(dead, DeadTask)
    assert dead.pid == pid
    assert handshake.receive(struct.pack("<i", pid), []) is None
    assert isinstance(handshake.receive(b"\0", [3]), Task)
    with pytest.raises(ProtocolError, match="is no process number"):
        handshake.receive(struct.pack("<i", (1 << 22) + pid), [])


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([(b"", [])], "the restore ended before it was over"),
        ([(b"\1\0", []), (b"", [])], "the restore ended before it was over"),
        ([(struct.pack("<i", 5), []), (b"\0", [])], "0 descriptors .* for task 5, not one"),
        ([(struct.pack("<i", 5), []), (b"\0", [3, 4])], "2 descriptors .* for task 5, not one"),
        ([(struct.pack("<i", 5), [3])], "a descriptor from the restore before"),
        ([(struct.pack("<i", 0), [])], "0 from the restore is no process number"),
        ([(struct.pack("<i", 1 << 23), [])], "8388608 from the restore is no process number"),
        ([(struct.pack("<i", -(1 << 31)), [])], "is no process number"),
        ([(FINISHED, []), (b"\0", [])], "says more after it was over"),
        ([(b"12345", [])], "5 bytes from the restore where 4 are due"),
    ],
)
def test_what_no_restore_says(pieces: list[tuple[bytes, list[int]]], message: str) -> None:
    handshake = Handshake()
    for data, fds in pieces[:-1]:
        handshake.receive(data, fds)
    with pytest.raises(ProtocolError, match=message):
        handshake.receive(*pieces[-1])
