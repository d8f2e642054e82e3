"""Framing: what is cut off, lies about its size, or is no file at all."""

from __future__ import annotations

import io
import os
import struct
from pathlib import Path

import pytest

from helperd import errors
from helperd.images import records

MAGICS = records.PAGEMAP_MAGICS
START = struct.pack("<II", *MAGICS)


def read(path: Path) -> list[tuple[int, bytes]]:
    return list(records.read_records(str(path), MAGICS))


def test_records_come_back_with_their_offsets(tmp_path: Path) -> None:
    stream = io.BytesIO()
    records.write_magics(stream, MAGICS)
    for payload in (b"one", b"", b"three"):
        records.write_record(stream, payload)
    path = tmp_path / "image"
    path.write_bytes(stream.getvalue())
    assert read(path) == [(8, b"one"), (15, b""), (19, b"three")]


@pytest.mark.parametrize("start", [b"", START[:4], START[:7], START[::-1]])
def test_wrong_magic_is_refused(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "image"
    path.write_bytes(start)
    with pytest.raises(errors.ImageFormatError, match="not the image its name says"):
        read(path)


def test_a_file_of_magics_only_has_no_records(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(START)
    assert read(path) == []


def test_a_cut_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(START + b"\1\0\0")
    with pytest.raises(errors.ImageFormatError, match="offset 8 is cut off"):
        read(path)


@pytest.mark.parametrize("size", [4, 1 << 20, (1 << 32) - 1])
def test_a_lying_size_is_refused_before_anything_is_read(tmp_path: Path, size: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(START + struct.pack("<I", 2) + b"ok" + struct.pack("<I", size) + b"abc")
    found = records.read_records(str(path), MAGICS)
    assert next(found) == (8, b"ok")
    with pytest.raises(errors.ImageFormatError, match=rf"offset 14 claims {size} bytes, 3 are"):
        next(found)


def test_a_true_but_enormous_size_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(START + struct.pack("<I", records.MAX_RECORD_BYTES + 1))
    os.truncate(path, 2 * records.MAX_RECORD_BYTES)
    with pytest.raises(errors.ImageFormatError, match="are supported"):
        read(path)


def test_a_pipe_under_an_images_name_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "image"
    os.mkfifo(path)
    with pytest.raises(errors.ImageError, match="not a regular file"):
        read(path)


def test_a_missing_file_and_a_directory_are_image_errors(tmp_path: Path) -> None:
    with pytest.raises(errors.ImageError, match="ENOENT"):
        read(tmp_path / "image")
    with pytest.raises(errors.ImageError, match="not a regular file"):
        read(tmp_path)
    with pytest.raises(errors.ImageError):
        list(records.read_records("a\0b", MAGICS))


def test_lack_of_permission_and_space_keep_their_classes() -> None:
    for number, cls in ((13, errors.NotPermitted), (28, errors.ResourceError)):
        assert type(records.os_failure(OSError(number, ""), "cannot")) is cls
    assert type(records.os_failure(OSError(5, ""), "cannot")) is errors.ImageError
