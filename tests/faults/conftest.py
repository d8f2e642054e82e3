"""Fixtures of the fault tests: a restore that takes long enough to be disturbed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from target import Target

from tests.support.helper import HelperProcess
from tests.support.image import BlockImage, noise, text
from tests.support.requests import ADDRESS, RawRequest

REPEATS = 64


class LongRestore:
    """One request for 64 MiB: the same 256 pages, again and again.

    Attributes:
        pages: the pages image.
        n_bytes: of memory.
    """

    def __init__(self, target: Target, folder: Path) -> None:
        piece = BlockImage()
        for page in range(64):
            piece.add_lz4(text(1, seed=page))
            piece.add_raw(noise(1, seed=page))
            piece.add_zero()
            piece.add_lz4(text(1, seed=1000 + page))
        self._piece = piece
        self._target = target
        self.n_bytes = len(piece.memory) * REPEATS
        self.pages = folder / "pages-1.img"
        self.pages.write_bytes(piece.payload * REPEATS)
        self.request = RawRequest(
            remote_pid=target.pid,
            offs=0,
            sizes=piece.sizes * REPEATS,
            iovs=[(ADDRESS, self.n_bytes)],
        )
        self.answer = piece.answer * REPEATS
        target.map_anonymous(ADDRESS, self.n_bytes)

    def has_begun(self) -> bool:
        """Return whether anything has been written yet."""
        return any(self._target.present_pages(ADDRESS, 256))

    def is_right(self) -> bool:
        """Return whether the memory is the dumped memory."""
        step = len(self._piece.memory)
        return all(
            self._target.read(ADDRESS + at, step) == self._piece.memory
            for at in range(0, self.n_bytes, step)
        )

    def start(self, helper: HelperProcess) -> None:
        """Send the request and return while it is being carried out, or just has been."""
        helper.send(self.request.encode())
        while not self.has_begun():
            os.sched_yield()


@pytest.fixture
def restore(target: Target, tmp_path: Path) -> LongRestore:
    """Return a restore into ``target`` that has not begun."""
    return LongRestore(target, tmp_path)
