"""What an engine promises of a request as a whole, with a real process to write to."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from target import Target as Process

from helperd.codec.chunk import CHUNK_PAGES, Chunk
from helperd.codec.decode import Decoded
from helperd.codec.decoders import Decoders
from helperd.engine import crew, engine
from helperd.engine.engine import Engine
from helperd.engine.plan import RequestChunk
from helperd.engine.release import Release
from helperd.errors import CorruptBlock, TargetGone
from helperd.modes import NEVER
from helperd.reports.log import Log
from helperd.targets.hold import Hold
from helperd.targets.target import Target
from helperd.targets.targets import Targets
from helperd.wire.pipe import Request, RequestReader
from tests.support.image import BlockImage, all_kinds
from tests.support.processes import DEADLINE_SECONDS
from tests.support.requests import ADDRESS

N_THREADS = 2


@pytest.fixture
def image() -> BlockImage:
    """Return more pages than one thread takes at once."""
    return all_kinds(4 * CHUNK_PAGES)


@pytest.fixture
def pages_fd(image: BlockImage, tmp_path: Path) -> Iterator[int]:
    """Return the pages image, open."""
    fd = os.open(image.write(tmp_path / "pages-1.img"), os.O_RDONLY)
    yield fd
    os.close(fd)


def new_engine(pages_fd: int) -> Engine:
    log = Log()
    release = Release(pages_fd, NEVER, log)
    return Engine(pages_fd, Targets(Hold.open, log), release, threads=N_THREADS, thp="never")


def request_for(image: BlockImage, process: Process) -> Request:
    process.map_anonymous(ADDRESS, len(image.memory))
    reader = RequestReader()
    reader.receive_data(image.request(process.pid, ADDRESS).encode())
    request = reader.next_request()
    assert request is not None
    return request


def test_the_target_is_looked_at_after_the_last_write(
    image: BlockImage, pages_fd: int, target: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Had it died in between, its pid could be somebody else's by the last write."""
    request = request_for(image, target)
    n_left = request.n_pages
    lock = threading.Lock()

    def write_then_die(process: Target, chunk: Chunk, decoded: Decoded) -> int:
        nonlocal n_left
        with lock:
            zeroed = write_chunk(process, chunk, decoded)
            n_left -= chunk.n_pages
            if n_left == 0:
                os.kill(target.pid, 9)
                os.waitid(os.P_PID, target.pid, os.WEXITED | os.WNOWAIT)
            return zeroed

    write_chunk = engine.write_chunk
    monkeypatch.setattr(engine, "write_chunk", write_then_die)
    with pytest.raises(TargetGone):
        new_engine(pages_fd).execute(request)
    assert n_left == 0, "all of it had been written"


@pytest.mark.parametrize("later_fails_first", [True, False])
def test_of_several_failures_the_one_nearest_to_the_start_is_told(
    later_fails_first: bool,
    image: BlockImage,
    pages_fd: int,
    target: Process,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both_begun = threading.Barrier(N_THREADS, timeout=DEADLINE_SECONDS)
    one_has_failed = threading.Event()
    begun: list[int] = []

    def decode(_decoders: Decoders, _fd: int, chunk: Chunk) -> Decoded:
        begun.append(chunk.first_page)
        both_begun.wait()
        if (chunk.first_page > 0) != later_fails_first:
            assert one_has_failed.wait(DEADLINE_SECONDS)
        raise CorruptBlock(f"at page {chunk.first_page}")

    class Work(engine._Work):
        def _fail(self, chunk: RequestChunk, error: Exception) -> None:
            super()._fail(chunk, error)
            one_has_failed.set()

    monkeypatch.setattr(Decoders, "decode", decode)
    monkeypatch.setattr(engine, "_Work", Work)
    monkeypatch.setattr(crew, "_THREADS_PAGES", 0)
    with pytest.raises(CorruptBlock, match=r"^at page 0; 0 of "):
        new_engine(pages_fd).execute(request_for(image, target))
    assert len(begun) == N_THREADS
    assert max(begun) > 0
