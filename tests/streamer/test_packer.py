"""What the files of a stream may be, whoever sends them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helperd.errors import ImageError, ImageFormatError
from helperd.streamer import packer
from helperd.streamer.packer import Packer
from helperd.streamer.sinks import DirectorySink


def test_too_many_files_make_no_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty ones take memory, too, and an inode each."""
    monkeypatch.setattr(packer, "MAX_FILES", 3)
    sink = DirectorySink(str(tmp_path))
    try:
        pack = Packer(sink, None, str(tmp_path), 1, in_order=True)
        for number in range(3):
            pack.receive(f"core-{number}.img").close()
        with pytest.raises(ImageFormatError, match="more than 3 files"):
            pack.receive("core-3.img")
    finally:
        sink.abandon()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["parent", ".hidden", "a/b", ""])
def test_names_that_no_image_has(tmp_path: Path, name: str) -> None:
    """``parent`` is the link to the dump before; a file of that name would break every chain."""
    sink = DirectorySink(str(tmp_path))
    try:
        with pytest.raises(ImageError, match="is no name for an image"):
            sink.create(name)
    finally:
        sink.abandon()
    assert os.listdir(tmp_path) == []
