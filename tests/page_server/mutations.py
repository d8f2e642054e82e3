"""Sessions that are broken in any way, and what may come of one: all its pages, or nothing."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

from helperd.blocks import PAGE_SIZE
from helperd.codec.block import decode_block, encode_block
from helperd.errors import ImageError, ProtocolError, ResourceError
from helperd.images.chain import resolve
from helperd.images.extent import read_pages
from helperd.images.inventory import Schema
from helperd.images.pagemap import PE_PARENT, PE_PRESENT, PagemapEntry
from helperd.images.received import ReceivedDirectory
from helperd.images.writer import ImageWriter
from helperd.page_server.storage import Storage
from helperd.wire.page_messages import (
    Command,
    Kind,
    Layout,
    ObjectId,
    Opened,
    Pages,
    Payload,
    StoredPages,
    pack_header,
)
from helperd.wire.page_server import Receiver
from tests.page_server.sessions import Outcome, hold

BASE = 0x7F0000000000
TASK, OTHER, SHMEM = ObjectId(Kind.TASK, 7), ObjectId(Kind.TASK, 8), ObjectId(Kind.SHMEM, 3)
NAMES = {TASK: "pagemap-7.img", OTHER: "pagemap-8.img", SHMEM: "pagemap-shmem-3.img"}
#: What the parent has of TASK.
PARENT_PAGES = 16

Choose = Callable[[int], int]
Memory = dict[tuple[ObjectId, int], bytes]

STORAGES: tuple[dict[str, object], ...] = (
    {"schema": Schema.NONE},
    {},
    {"region_pages": 4},
    {"schema": Schema.BLOCKS, "region_pages": 3, "threads": 1},
)


def page(seed: int) -> bytes:
    """Return a page that is zero, text, or random, by its seed."""
    if seed % 3 == 0:
        return bytes(PAGE_SIZE)
    if seed % 3 == 1:
        return (b"%d " % seed * PAGE_SIZE)[:PAGE_SIZE]
    return random.Random(seed).randbytes(PAGE_SIZE)


def session(layout: Layout) -> bytes:
    """Return a small session with every kind of message."""
    parts: list[bytes] = []

    def send(target: ObjectId, command: int, flags: int = 0, nr: int = 0, vaddr: int = 0) -> None:
        parts.append(pack_header(layout, command | flags << 16, nr, vaddr, target.dst_id))

    def pages(target: ObjectId, vaddr: int, nr: int, *, flags: int = PE_PRESENT) -> None:
        send(target, Command.ADD_F, flags, nr, vaddr)
        parts.extend(page(vaddr // PAGE_SIZE + index) for index in range(nr))

    send(TASK, Command.PARENT)
    send(SHMEM, Command.OPEN2)
    pages(SHMEM, 0, 3)
    send(TASK, Command.OPEN2)
    pages(TASK, BASE, 5)
    send(TASK, Command.ADD_F, PE_PARENT, 2, BASE + 5 * PAGE_SIZE)
    send(TASK, Command.HOLE, 0, 1, BASE + 8 * PAGE_SIZE)
    send(TASK, Command.ADD, 0, 1, BASE + 20 * PAGE_SIZE)
    parts.append(page(1))
    send(OTHER, Command.OPEN)
    send(OTHER, Command.ADD_F_COMPRESSED, 6, 4, BASE)
    for seed in range(4):
        block = encode_block(page(seed))
        parts.append(len(block).to_bytes(4, "little") + block)
    pages(OTHER, BASE + 9 * PAGE_SIZE, 6, flags=6)
    parts.append(pack_header(layout, Command.CLOSE, 0, 0, 0))
    return b"".join(parts)


def mutate(stream: bytes, choose: Choose) -> bytes:
    """Return a session with a few bytes changed, removed, repeated, or cut off."""
    mutated = bytearray(stream)
    headers = [at for at in range(0, len(mutated), 4) if mutated[at + 1 : at + 2] == b"\0"]
    for _ in range(1 + choose(3)):
        at = headers[choose(len(headers))] + choose(32) if choose(2) else choose(len(mutated))
        at = min(at, len(mutated) - 1)
        what = choose(6)
        if what == 0:
            mutated[at] ^= 1 << choose(8)
        elif what == 1:
            mutated[at : at + 8] = choose(1 << 63).to_bytes(8, "little")
        elif what == 2:
            del mutated[at : at + 1 + choose(64)]
        elif what == 3:
            mutated[at:at] = mutated[at : at + 1 + choose(64)]
        elif what == 4:
            mutated[at] = choose(256)
        else:
            del mutated[max(at, 1) :]
            break
    return bytes(mutated)


def make_parent(path: Path) -> Path:
    """Make a directory that has pages of TASK."""
    path.mkdir()
    with ImageWriter(str(path)) as images:
        memory = images.memory(NAMES[TASK], Schema.NONE)
        memory.append_payload(page(2) * PARENT_PAGES)
        memory.append_entry(PagemapEntry(BASE, PARENT_PAGES))
        images.finish()
    return path


def expected(stream: bytes) -> Memory:
    """Return what a whole session says, read as simply as can be."""
    memory: Memory = {}
    receiver = Receiver()
    target, vaddr = TASK, 0
    rest = b""
    for event in receiver.receive(stream):
        if isinstance(event, Opened):
            target = event.object
        elif isinstance(event, Pages):
            assert receiver.object is not None
            target, vaddr, rest = receiver.object, event.vaddr, b""
            if event.flags & PE_PARENT:
                for index in range(event.nr_pages):
                    memory[target, vaddr + index * PAGE_SIZE] = page(2)
        elif isinstance(event, Payload):
            rest += bytes(event.data)
            while len(rest) >= PAGE_SIZE:
                memory[target, vaddr], rest = rest[:PAGE_SIZE], rest[PAGE_SIZE:]
                vaddr += PAGE_SIZE
        elif isinstance(event, StoredPages):
            payload = event.payload
            for size in event.sizes:
                memory[target, vaddr], payload = (
                    decode_block(payload[:size], PAGE_SIZE),
                    payload[size:],
                )
                vaddr += PAGE_SIZE
    return memory


def stored(path: Path) -> Memory:
    """Return all pages of a directory."""
    directory = ReceivedDirectory(str(path))
    memory: Memory = {}
    objects = [ObjectId(Kind.TASK, pid) for pid in directory.pids]
    objects += [ObjectId(Kind.SHMEM, number) for number in directory.shmem_ids]
    for target in objects:
        which = {"pid" if target.kind is Kind.TASK else "shmem_id": target.id}
        for vaddr, content in read_pages(resolve(directory, **which)):
            for at in range(0, len(content), PAGE_SIZE):
                memory[target, vaddr + at] = content[at : at + PAGE_SIZE]
    return memory


class Bench:
    """A folder in which sessions are held, each in a directory of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parent = make_parent(folder / "parent")

    def check(self, stream: bytes, how: dict[str, object]) -> str:
        """Hold a session; return its outcome in a word.

        Raises:
            AssertionError: it has left something else than its pages, or than nothing.
        """
        path = self._folder / "images"
        path.mkdir()
        (path / "core-7.img").write_bytes(b"as it was")
        try:
            outcome = hold(stream, Storage(str(path), parent="../parent", **how))  # type: ignore[arg-type]
            self._check(path, outcome, stream)
        finally:
            shutil.rmtree(path)
        assert sorted(os.listdir(self._folder)) == ["parent"]
        assert len(os.listdir(self._parent)) == 2
        return "ok" if outcome.failure is None else type(outcome.failure).__name__

    def _check(self, path: Path, outcome: Outcome, stream: bytes) -> None:
        names = set(os.listdir(path)) - {"core-7.img"}
        assert (path / "core-7.img").read_bytes() == b"as it was"
        failure = outcome.failure
        if failure is None:
            assert outcome.answers.endswith(bytes(4))
            assert stored(path) == expected(stream)
            return
        assert isinstance(failure, ProtocolError | ImageError | ResourceError), failure
        assert "\n" not in str(failure)
        if "after the CLOSE" in str(failure):
            # The client has been told, and rightly so.
            return
        assert not names, (names, failure)
