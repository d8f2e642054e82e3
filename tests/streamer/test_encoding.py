"""Threads that read, compress and write pages: nothing out of order, nothing left behind."""

from __future__ import annotations

import errno
import os
import random
import threading
from array import array
from collections.abc import Iterator

import pytest

from helperd.blocks import PAGE_SIZE
from helperd.codec.block import decode_block
from helperd.codec.encode import PIECE_PAGES
from helperd.errors import ImageFormatError, ResourceError
from helperd.kernel.syscalls import joined
from helperd.streamer.encoding import Encoders, PagesReceiver
from tests.streamer.criu import SECONDS, write_all

PIECE_BYTES = PIECE_PAGES * PAGE_SIZE


class Stored:
    """A file in memory; a write may wait for something, or fail."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.may_write = threading.Event()
        self.may_write.set()
        self.error: ResourceError | None = None
        self.closed = False

    def move(self, source: int, n_bytes: int) -> int:
        raise AssertionError("pages are written, not moved")

    def write(self, payload: bytes) -> None:
        raise AssertionError("pages are written from where they were compressed")

    def write_ranges(self, ranges: array[int], n_bytes: int) -> None:
        assert self.may_write.wait(SECONDS)
        if self.error is not None:
            raise self.error
        self.content += joined(ranges, n_bytes)

    def close(self) -> None:
        self.closed = True


@pytest.fixture(params=[1, 2, 5])
def encoders(request: pytest.FixtureRequest) -> Iterator[Encoders]:
    encoders = Encoders(request.param, 1)
    yield encoders
    encoders.close()
    encoders.close()


class Draining:
    """A receiver that takes what is written into ``pipe``."""

    def __init__(self, encoders: Encoders) -> None:
        self.stored = Stored()
        self.receiver = PagesReceiver("pages-1.img", self.stored, encoders)
        self.woken = threading.Event()
        read_end, self.pipe = os.pipe()
        os.set_blocking(read_end, False)
        self.receiver.drain(read_end, self.woken.set)

    def end(self) -> None:
        """Close the pipe and wait until that has been noticed."""
        os.close(self.pipe)
        assert self.woken.wait(SECONDS)
        self.receiver.check()
        assert self.receiver.ended

    def decoded(self) -> bytes:
        """Return the pages again, by the sizes of their blocks."""
        content, at = [], 0
        for size in self.receiver.finish():
            content.append(decode_block(self.stored.content[at : at + size], PAGE_SIZE))
            at += size
        assert at == len(self.stored.content)
        assert self.stored.closed
        return b"".join(content)


def memory(n_pages: int) -> bytes:
    """Return pages of all kinds, each different from the others."""
    rnd = random.Random(n_pages)
    kinds = (
        lambda: bytes(PAGE_SIZE),
        lambda: rnd.randbytes(PAGE_SIZE),
        lambda: (b"%08x" % rnd.getrandbits(32)) * (PAGE_SIZE // 8),
    )
    return b"".join(rnd.choice(kinds)() for _ in range(n_pages))


@pytest.mark.parametrize("n_pages", [0, 1, PIECE_PAGES - 1, PIECE_PAGES, 7 * PIECE_PAGES + 3])
def test_pages_come_out_in_order(encoders: Encoders, n_pages: int) -> None:
    draining = Draining(encoders)
    pages = memory(n_pages)
    write_all(draining.pipe, pages)
    draining.end()
    assert draining.receiver.n_bytes == len(pages)
    assert draining.decoded() == pages


def test_pieces_wait_for_the_one_in_front(encoders: Encoders) -> None:
    draining = Draining(encoders)
    draining.stored.may_write.clear()
    pages = memory(12 * PIECE_PAGES)
    # While nothing is written all threads read on, until what waits is enough.
    writer = threading.Thread(target=write_all, args=(draining.pipe, pages))
    writer.start()
    writer.join(0.5)
    assert writer.is_alive()
    # As many pieces as there are buffers.
    assert draining.receiver.n_bytes <= (2 + encoders.threads) * PIECE_BYTES
    draining.stored.may_write.set()
    writer.join()
    draining.end()
    assert draining.decoded() == pages


def test_files_that_are_slow_keep_nobody_waiting(encoders: Encoders) -> None:
    slow, quick = Draining(encoders), Draining(encoders)
    write_all(slow.pipe, b"p" * 100)
    write_all(quick.pipe, memory(2 * PIECE_PAGES))
    quick.end()
    assert quick.decoded() == memory(2 * PIECE_PAGES)
    write_all(slow.pipe, b"p" * (PAGE_SIZE - 100))
    slow.end()
    assert slow.decoded() == b"p" * PAGE_SIZE


def test_a_disk_that_is_full(encoders: Encoders) -> None:
    draining = Draining(encoders)
    draining.stored.error = ResourceError("full", errno=errno.ENOSPC)
    # CRIU has to notice, for its dump must fail.
    with pytest.raises(BrokenPipeError):
        write_all(draining.pipe, bytes(64 * PIECE_BYTES))
    assert draining.woken.wait(SECONDS)
    os.close(draining.pipe)
    for ask in (draining.receiver.check, draining.receiver.finish):
        with pytest.raises(ResourceError, match="full"):
            ask()


def test_a_page_that_is_cut_off(encoders: Encoders) -> None:
    draining = Draining(encoders)
    write_all(draining.pipe, bytes(PIECE_BYTES + 1))
    os.close(draining.pipe)
    with pytest.raises(ImageFormatError, match="ends inside a page"):
        draining.receiver.finish()


def test_a_thread_that_nobody_waits_for_does_nothing(
    encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signal ends us between the start of a thread and its first step."""
    late: list[threading.Thread] = []

    def start(thread: threading.Thread) -> None:
        late.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", start)
    done: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        encoders.start(lambda: done.append(True), 0)
    encoders.close()
    late[0].run()
    assert not done


def test_an_early_end_closes_the_pipe(encoders: Encoders) -> None:
    others = threading.active_count()
    draining = Draining(encoders)
    write_all(draining.pipe, bytes(PIECE_BYTES + 1))
    encoders.close()
    assert threading.active_count() == others
    with pytest.raises(BrokenPipeError):
        os.write(draining.pipe, b"x")
    os.close(draining.pipe)
