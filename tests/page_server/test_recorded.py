"""Sessions that real dumps have held are held again; what is left is held against CRIU's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from helperd.images.inventory import Schema
from helperd.offline.check import check_directories
from helperd.offline.complete import complete_directory
from helperd.offline.compress import compress_directory
from helperd.page_server.storage import Storage
from tests.conftest import ImageArchive
from tests.images.checkpoints import assert_is_truth, clone, content_of, load_dumps
from tests.page_server.sessions import hold, make_whole

ANSWERS = b"\0" + bytes(4)
STORAGES: dict[str, dict[str, Any]] = {
    "per page": {},
    "blocks": {"schema": Schema.BLOCKS},
    "regions": {"region_pages": 64},
    "regions of a page": {"region_pages": 1},
    "large regions": {"region_pages": 1024, "schema": Schema.BLOCKS},
    "fast": {"acceleration": 50},
    "one thread": {"threads": 1},
}


@pytest.mark.parametrize(
    ("archive", "sent"),
    [
        ("page-server-plain", "page-server-plain"),
        # What comes compressed is decoded.
        ("page-server-plain", "page-server-compressed"),
    ],
)
def test_uncompressed_the_files_are_crius_own(
    image_archive: ImageArchive, tmp_path: Path, archive: str, sent: str
) -> None:
    stream = (image_archive(sent) / "client.bin").read_bytes()
    outcome = hold(stream, Storage(str(tmp_path), Schema.NONE))
    assert outcome.failure is None
    assert outcome.answers == ANSWERS
    expected = content_of(image_archive(archive) / "images")
    found = content_of(tmp_path)
    if archive == sent:
        assert found == expected
    else:
        assert found["pages-65537.img"] == expected["pages-65537.img"]


def test_a_chain_of_the_short_layout_is_crius_own(
    image_archive: ImageArchive, tmp_path: Path
) -> None:
    """Two pre-dumps and a dump by CRIU 3.17.1."""
    folder = image_archive("page-server-317")
    for level in (1, 2, 3):
        path = tmp_path / str(level)
        path.mkdir()
        parent = f"../{level - 1}" if level > 1 else None
        stream = (folder / f"client{level}.bin").read_bytes()
        outcome = hold(stream, Storage(str(path), Schema.NONE, parent=parent))
        assert outcome.failure is None
        assert outcome.answers == (folder / f"server{level}.bin").read_bytes()
        assert content_of(path) == content_of(folder / "server" / str(level))


def test_compressed_pages_are_stored_as_they_come(
    image_archive: ImageArchive, tmp_path: Path
) -> None:
    folder = image_archive("page-server-compressed")
    outcome = hold((folder / "client.bin").read_bytes(), Storage(str(tmp_path)))
    assert outcome.failure is None
    own = (folder / "images" / "pages-65537.img").read_bytes()
    assert (tmp_path / "pages-65537.img").read_bytes() == own


@pytest.mark.parametrize("how", STORAGES)
@pytest.mark.parametrize("archive", ["page-server-plain", "page-server-compressed"])
def test_the_values_come_back(
    image_archive: ImageArchive, tmp_path: Path, archive: str, how: str
) -> None:
    folder = image_archive(archive)
    received = tmp_path / "received"
    received.mkdir()
    outcome = hold((folder / "client.bin").read_bytes(), Storage(str(received), **STORAGES[how]))
    assert outcome.failure is None
    assert outcome.answers == ANSWERS
    whole = make_whole(received, folder / "dump", tmp_path / "whole")
    problems = check_directories([str(whole)]).problems
    # Where mappings end is not told to a page server.
    assert all("the borders of mappings" in problem.message for problem in problems)
    assert not problems or "region_pages" in STORAGES[how]
    assert_is_truth(whole, load_dumps(folder)[0])
    if problems:
        compress_directory(str(whole), in_place=True, force=True)
        assert not check_directories([str(whole)]).problems


@pytest.mark.parametrize("how", STORAGES)
def test_the_values_of_a_chain_come_back(
    image_archive: ImageArchive, tmp_path: Path, how: str
) -> None:
    """Received where the dumper has its images, which brings the links to the parents along."""
    folder = image_archive("page-server-317")
    for level in (1, 2, 3):
        path = clone(folder / "dump" / str(level), tmp_path / str(level))
        stream = (folder / f"client{level}.bin").read_bytes()
        outcome = hold(stream, Storage(str(path), **STORAGES[how]))
        assert outcome.failure is None
        assert outcome.answers == (folder / f"server{level}.bin").read_bytes()
    for level in (1, 2, 3):
        complete_directory(str(tmp_path / str(level)))
    report = check_directories([str(tmp_path / "3")])
    assert not report.problems
    assert_is_truth(tmp_path / "3", load_dumps(folder)[0])
