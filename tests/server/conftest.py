"""Fixtures of the server's tests."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.image import BlockImage, all_kinds
from tests.support.memory import OwnMemory
from tests.support.server import ServerProcess


@pytest.fixture
def folder() -> Iterator[Path]:
    """Return a folder with a short name, as sockets need it, that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="hd-") as name:
        yield Path(name)


@pytest.fixture
def server(folder: Path) -> Iterator[ServerProcess]:
    """Return a running server, and see that it ends well."""
    with ServerProcess(folder) as process:
        yield process
        assert process.stop() == 0
        process.log()


@pytest.fixture
def image() -> BlockImage:
    """Return eight pages of all kinds."""
    return all_kinds(8)


@pytest.fixture
def pages(image: BlockImage, folder: Path) -> Path:
    """Return the pages image of ``image``, which everybody may read."""
    return image.write(folder / "pages-1.img")


@pytest.fixture
def memory(image: BlockImage) -> Iterator[OwnMemory]:
    """Return memory of this process, as large as ``image``."""
    memory = OwnMemory(len(image.memory))
    yield memory
    memory.map.close()
