"""Pages that are in no image: fetched from a source that speaks as criu dump --lazy-pages does."""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from helperd.blocks import PAGE_SIZE
from helperd.images.pagemap import PE_LAZY, PE_PRESENT
from helperd.wire.page_messages import STATUS, Closed, Get, Layout, pages_header
from helperd.wire.page_server import Receiver
from tests.images.checkpoints import Builder
from tests.lazy_pages.client import BASE_PAGE, Daemon, RestoredProcess, address_of, digest
from tests.lazy_pages.test_daemon import content, part

N_PAGES = 900
#: Pages that are in the images; the others the source has kept.
STORED = range(200, 300)


class Source:
    """Serves pages of one memory, as many of each request as it likes."""

    def __init__(self, memory: bytes, layout: Layout, *, most: int = 1024, ends_after: int = 0):
        self._memory = memory
        self._layout = layout
        self._most = most
        self._ends_after = ends_after
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.asked: list[tuple[int, int]] = []
        self.closed = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        client, _ = self._listener.accept()
        receiver = Receiver(self._layout)
        with client, self._listener:
            # A client that failed does not say goodbye.
            while data := self._receive(client):
                for event in receiver.receive(data):
                    if isinstance(event, Closed):
                        self.closed = True
                        client.sendall(STATUS.pack(0))
                        continue
                    assert isinstance(event, Get)
                    if self._ends_after and len(self.asked) == self._ends_after:
                        return
                    first = event.vaddr // PAGE_SIZE - BASE_PAGE
                    self.asked.append((first, event.nr_pages))
                    n_pages = min(event.nr_pages, self._most)
                    start = first * PAGE_SIZE
                    client.sendall(
                        pages_header(self._layout, event, n_pages)
                        + self._memory[start : start + n_pages * PAGE_SIZE]
                    )

    @staticmethod
    def _receive(client: socket.socket) -> bytes:
        try:
            return client.recv(1 << 12)
        except ConnectionResetError:
            return b""

    def join(self) -> None:
        self._thread.join(60)
        assert not self._thread.is_alive()


@pytest.fixture
def memory() -> bytes:
    return content(N_PAGES, seed=3)


def images_of(folder: Path, memory: bytes) -> Path:
    """Write what a source leaves: entries that are LAZY alone, and some from a pre-dump."""
    stored = memory[STORED.start * PAGE_SIZE : STORED.stop * PAGE_SIZE]
    builder = Builder(folder).refer(BASE_PAGE, STORED.start, PE_LAZY)
    builder.add(BASE_PAGE + STORED.start, stored)
    builder.entries[-1].flags = PE_PRESENT | PE_LAZY
    builder.refer(BASE_PAGE + STORED.stop, N_PAGES - STORED.stop, PE_LAZY)
    return builder.write()


def restoring(
    tmp_path: Path, memory: bytes, source: Source, *options: str
) -> Iterator[tuple[Daemon, RestoredProcess]]:
    images = images_of(tmp_path / "images", memory)
    where = ("--page-server", f"127.0.0.1:{source.port}")
    with (
        Daemon(images, tmp_path / "work", *where, *options) as daemon,
        RestoredProcess() as process,
    ):
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        yield daemon, process


@pytest.mark.parametrize("most", [1024, 3])
@pytest.mark.parametrize("layout", Layout)
def test_what_is_nowhere_else_is_fetched(
    tmp_path: Path, memory: bytes, layout: Layout, most: int
) -> None:
    source = Source(memory, layout, most=most)
    for daemon, process in restoring(tmp_path, memory, source, "--wire", str(layout.value)):
        assert process.read(700) == part(memory, 700)
        assert process.do("finish") == "ok"
        assert process.read(0, N_PAGES) == digest(memory)
        assert daemon.wait() == 0
    source.join()
    assert source.closed
    first_of = {first for first, _ in source.asked}
    assert not first_of & set(STORED)
    assert all(first + n <= STORED.start or first >= STORED.stop for first, n in source.asked)
    if most == 1024:
        # No page is asked for twice.
        assert sum(n for _, n in source.asked) == N_PAGES - len(STORED)


def test_only_what_is_asked_for(tmp_path: Path, memory: bytes) -> None:
    source = Source(memory, Layout.LONG)
    options = ("--fill", "never")
    for daemon, process in restoring(tmp_path, memory, source, *options):
        assert process.do("finish") == "ok"
        assert process.read(500) == part(memory, 500)
        assert process.do("dontneed", address_of(600), 20 * PAGE_SIZE) == "ok"
        assert process.read(600, 20) == digest(bytes(20 * PAGE_SIZE))
        daemon.process.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
        assert process.read(0, 600) == part(memory, 0, 600)
        assert process.read(600, 20) == digest(bytes(20 * PAGE_SIZE))
    source.join()


def test_a_source_that_goes_away_leaves_no_zeros(tmp_path: Path, memory: bytes) -> None:
    source = Source(memory, Layout.LONG, ends_after=2)
    for daemon, process in restoring(tmp_path, memory, source):
        assert process.do("finish") == "ok"
        assert daemon.wait() == 3
        assert process.do("read", address_of(0), N_PAGES * PAGE_SIZE) == ""
        assert process.process.wait() in (-signal.SIGBUS, -signal.SIGKILL)
    source.join()


def test_no_source(tmp_path: Path, memory: bytes) -> None:
    images = images_of(tmp_path / "images", memory)
    with Daemon(images, tmp_path / "work") as daemon, RestoredProcess() as process:
        process.map(0, N_PAGES)
        process.connect(daemon, 7)
        assert process.do("touch", address_of(5)) == ""
        assert process.process.wait() in (-signal.SIGBUS, -signal.SIGKILL)
    assert "no page server has them" in daemon.log.read_text()


def test_nobody_listens(tmp_path: Path, memory: bytes) -> None:
    images = images_of(tmp_path / "images", memory)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    options = ("--page-server", "--address", "127.0.0.1", "--port", str(port))
    with Daemon(images, tmp_path / "work", *options) as daemon:
        assert daemon.wait() == 3
        assert daemon.process.stderr is not None
        assert b"no connection to the page server" in daemon.process.stderr.read()
