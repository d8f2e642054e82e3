"""Pages are given to whoever fetches them, from images of every kind, as often as is asked."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from helperd import tools
from helperd.blocks import PAGE_SIZE
from helperd.errors import HelperdError
from helperd.images.inventory import Schema
from helperd.page_server.connection import Connection
from helperd.page_server.fetched import give
from helperd.page_server.storage import Storage
from helperd.wire.page_client import Requester
from helperd.wire.page_messages import Command, Ended, Layout, Payload, Reply, pack_header
from tests.conftest import ImageArchive
from tests.images.checkpoints import Memory, clone, levels_of, memory_of
from tests.page_server.sessions import SILENT


def fetch(path: Path, asked: list[tuple[int, int, int]], layout: Layout) -> Memory:
    """Fetch ranges of pages, all of each; several requests are under way at once."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=give, args=(Connection(ours), Storage(str(path)), SILENT))
    thread.start()
    requester = Requester(layout)
    memory: Memory = {}
    left = {(pid, vaddr): nr_pages for pid, vaddr, nr_pages in asked}
    vaddr, rest = 0, b""
    theirs.sendall(b"".join(requester.get(*request) for request in asked))
    ended = False
    while not ended:
        for event in requester.receive(theirs.recv(1 << 16)):
            if isinstance(event, Reply):
                vaddr, rest = event.vaddr, b""
                wanted = left.pop((event.pid, event.vaddr), event.nr_pages)
                if event.nr_pages < wanted:
                    more = event.vaddr + event.nr_pages * PAGE_SIZE
                    left[event.pid, more] = wanted - event.nr_pages
                    theirs.sendall(requester.get(event.pid, more, wanted - event.nr_pages))
            elif isinstance(event, Payload):
                rest += bytes(event.data)
                while len(rest) >= PAGE_SIZE:
                    memory[vaddr], rest = rest[:PAGE_SIZE], rest[PAGE_SIZE:]
                    vaddr += PAGE_SIZE
            else:
                assert event == Ended(0)
                ended = True
        if (
            not left
            and not rest
            and not requester.pending
            and not requester.payload_left
            and not ended
        ):
            theirs.sendall(requester.close())
            left[0, 0] = 0  # once
    thread.join()
    ours.close()
    theirs.close()
    return memory


def ranges_of(memory: Memory) -> list[tuple[int, int]]:
    """Return the ranges of consecutive pages, in pages."""
    ranges: list[tuple[int, int]] = []
    for vaddr in sorted(memory):
        if ranges and ranges[-1][0] + ranges[-1][1] * PAGE_SIZE == vaddr:
            ranges[-1] = (ranges[-1][0], ranges[-1][1] + 1)
        else:
            ranges.append((vaddr, 1))
    return ranges


@pytest.mark.parametrize("layout", list(Layout))
@pytest.mark.parametrize(
    "how",
    [None, {}, {"region_bytes": 64 << 10}, {"schema": Schema.BLOCKS, "region_bytes": 4 << 20}],
)
def test_a_chain_is_given_flattened(
    image_archive: ImageArchive, tmp_path: Path, layout: Layout, how: dict[str, object] | None
) -> None:
    archive = clone(image_archive("incremental"), tmp_path / "incremental")
    levels = levels_of(archive)
    top = levels[-1]
    pid = 0
    for path in levels if how is not None else ():
        tools.compress(str(path), in_place=True, **how)  # type: ignore[arg-type]
    for pagemap in sorted(top.glob("pagemap-[0-9]*.img")):
        pid = int(pagemap.stem.removeprefix("pagemap-"))
        memory = memory_of(top, pid=pid)
        asked = [(pid, *it) for it in ranges_of(memory)]
        assert fetch(top, asked, layout) == memory
    assert pid


def test_to_several_at_once_and_again(image_archive: ImageArchive) -> None:
    path = image_archive("criu-region256k") / "images"
    (pagemap,) = path.glob("pagemap-[0-9]*.img")
    pid = int(pagemap.stem.removeprefix("pagemap-"))
    memory = memory_of(path, pid=pid)
    found: list[Memory] = []
    asked = [(pid, *it) for it in ranges_of(memory)]

    def client() -> None:
        found.append(fetch(path, asked + asked[:1], Layout.LONG))

    threads = [threading.Thread(target=client) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [memory] * 3


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (pack_header(Layout.LONG, Command.GET, 1, 1 << 46, 7461), "no pagemap|cannot open|has no"),
        (pack_header(Layout.LONG, Command.OPEN2, 0, 0, 7 << 8 | 1), "only serves"),
        (pack_header(Layout.LONG, Command.GET, 1, 1 << 46, 7461)[:20], "gone inside a message"),
        (b"", "without a CLOSE"),
    ],
)
def test_what_is_refused(image_archive: ImageArchive, request_: bytes, message: str) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(request_)
        theirs.shutdown(socket.SHUT_WR)
        storage = Storage(str(image_archive("criu-perpage") / "images"))
        with pytest.raises(HelperdError, match=message):
            give(Connection(ours), storage, SILENT)
