"""The pipes that come from CRIU."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helperd.streamer import endpoint


@pytest.fixture
def pipe() -> Iterator[int]:
    reader, writer = os.pipe()
    yield reader
    os.close(reader)
    os.close(writer)


def test_a_pipe_holds_what_the_system_allows_if_that_is_less(pipe: int) -> None:
    allowed = int(Path("/proc/sys/fs/pipe-max-size").read_text())
    held = endpoint.enlarge(pipe, 4 * allowed)
    assert held == fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
    # More than is allowed to all, the privileged get.
    assert held in (allowed, 4 * allowed)


def test_a_pipe_is_never_made_smaller(pipe: int) -> None:
    before = fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ)
    assert endpoint.enlarge(pipe, before // 2) == before
    assert fcntl.fcntl(pipe, fcntl.F_GETPIPE_SZ) == before


def test_what_is_no_pipe_holds_nothing(tmp_path: Path) -> None:
    with open(tmp_path / "file", "wb") as file:
        assert endpoint.enlarge(file.fileno(), 1 << 20) == 0
