"""--auto-dedup frees what offline dedup frees, and only behind pages that are safe."""

from __future__ import annotations

import json
import os
import socket
import threading
from pathlib import Path
from typing import Any

import pytest

from helperd import tools
from helperd.images.inventory import Schema
from helperd.images.ranges import Ranges
from helperd.offline.complete import complete_directory
from helperd.page_server.client import Door
from helperd.page_server.storage import Storage
from tests.conftest import ImageArchive
from tests.images.checkpoints import assert_is_truth, clone, content_of, holes_of, load_dumps
from tests.page_server.sessions import SILENT, Client

HOW: dict[str, dict[str, Any]] = {
    "none": {"schema": Schema.NONE},
    "per page": {},
    "regions": {"region_pages": 16, "schema": Schema.BLOCKS},
}


def serve(stream: bytes, storage: Storage) -> tuple[int, dict[str, int | float]]:
    """Let a door serve a client that sends ``stream``."""
    ours, theirs = socket.socketpair()
    thread = threading.Thread(target=Client(theirs, stream).run)
    thread.start()
    try:
        return Door(storage, None, 0, SILENT).serve(ours)
    finally:
        thread.join()
        theirs.close()


def receive_chain(folder: Path, target: Path, how: str, *, dedup: bool) -> dict[str, int | float]:
    """Receive two pre-dumps and a dump, the last perhaps with dedup; return its numbers."""
    numbers: dict[str, int | float] = {}
    target.mkdir()
    for level in (1, 2, 3):
        path = clone(folder / "dump" / str(level), target / str(level))
        stream = (folder / f"client{level}.bin").read_bytes()
        storage = Storage(str(path), dedup=dedup and level == 3, **HOW[how])
        code, numbers = serve(stream, storage)
        assert code == 0
    return numbers


def data_of(path: Path) -> Ranges:
    """Return the ranges of a file that are no holes."""
    return Ranges(Ranges(holes_of(path)).gaps(0, path.stat().st_size))


@pytest.mark.parametrize("how", HOW)
def test_it_frees_what_offline_dedup_frees(
    image_archive: ImageArchive, tmp_path: Path, how: str
) -> None:
    folder = image_archive("page-server-317")
    numbers = receive_chain(folder, tmp_path / "online", how, dedup=True)
    receive_chain(folder, tmp_path / "offline", how, dedup=False)
    for kind in ("online", "offline"):
        for level in (1, 2, 3):
            complete_directory(str(tmp_path / kind / str(level)))
    report = tools.dedup(str(tmp_path / "offline" / "3"))
    assert numbers["freed_bytes"] == report.freed_bytes > 0
    assert content_of(tmp_path / "online") == content_of(tmp_path / "offline")
    for level in (1, 2):
        found, same = (
            holes_of(tmp_path / kind / str(level) / "pages-65537.img")
            for kind in ("online", "offline")
        )
        assert found == same
    assert not tools.check([str(tmp_path / "online" / "3")]).problems
    assert_is_truth(tmp_path / "online" / "3", load_dumps(folder)[0])


def test_it_frees_all_that_crius_own_server_frees(
    image_archive: ImageArchive, tmp_path: Path
) -> None:
    folder = image_archive("page-server-317")
    receive_chain(folder, tmp_path / "chain", "none", dedup=True)
    known = json.loads((folder / "extents-after.json").read_text())
    for level in (1, 2):
        name = f"{level}/pages-65537.img"
        theirs = Ranges((start, start + size) for start, size in known[name]["data"])
        ours = data_of(tmp_path / "chain" / name)
        assert ours.total <= theirs.total
        for start, end in ours:
            assert list(theirs.within(start, end)) == [(start, end)]


def test_a_dump_that_fails_frees_nothing(image_archive: ImageArchive, tmp_path: Path) -> None:
    folder = image_archive("page-server-317")
    for level in (1, 2, 3):
        path = clone(folder / "dump" / str(level), tmp_path / str(level))
        stream = (folder / f"client{level}.bin").read_bytes()
        if level == 3:
            before = content_of(tmp_path)
            stream = stream[:-1]
        code, _ = serve(stream, Storage(str(path), dedup=True))
        assert (code == 0) == (level < 3)
    assert content_of(tmp_path) == before


def test_what_others_may_need_is_not_freed(image_archive: ImageArchive, tmp_path: Path) -> None:
    """A pages file with several names; the dump is complete all the same."""
    folder = image_archive("page-server-317")
    for level in (1, 2):
        path = clone(folder / "dump" / str(level), tmp_path / str(level))
        if level == 2:
            os.link(tmp_path / "1" / "pages-65537.img", tmp_path / "another")
        stream = (folder / f"client{level}.bin").read_bytes()
        code, numbers = serve(stream, Storage(str(path), dedup=True))
        assert (code, numbers["freed_bytes"]) == (0, 0)
