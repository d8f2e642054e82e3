"""What a helper gives back of a pages image, and when: on a real file, with real holes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from helperd.blocks import PAGE_SIZE
from helperd.engine import release
from helperd.engine.release import Release
from helperd.errors import ImageError
from helperd.kernel import hints
from helperd.modes import ANSWERED, EARLY, NEVER
from tests.support.logs import RecordingLog

STEP = release._STEP_BYTES
SIZE = 3 * STEP


@pytest.fixture
def log() -> RecordingLog:
    return RecordingLog()


@pytest.fixture
def image(tmp_path: Path) -> Iterator[int]:
    """Return a file without a zero byte, open for reading and writing, on disk."""
    path = tmp_path / "pages-1.img"
    path.write_bytes(b"\xa5" * SIZE)
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    yield fd
    os.close(fd)


def is_whole(fd: int, start: int, end: int) -> bool:
    return os.pread(fd, end - start, start) == b"\xa5" * (end - start)


def is_gone(fd: int, start: int, end: int) -> bool:
    return os.pread(fd, end - start, start) == bytes(end - start)


def test_what_is_not_answered_is_kept(image: int, log: RecordingLog) -> None:
    books = Release(image, ANSWERED, log)
    books.confirmed(0, 2 * STEP)
    assert is_whole(image, 0, SIZE)
    books.answered(0, STEP)
    assert is_gone(image, 0, STEP)
    assert is_whole(image, STEP, SIZE)
    assert books.punched == STEP
    assert log.warnings == []


def test_early_is_in_steps(image: int, log: RecordingLog) -> None:
    books = Release(image, EARLY, log)
    books.confirmed(0, STEP - PAGE_SIZE)
    assert is_whole(image, 0, SIZE), "less than a step is not worth a system call"
    books.confirmed(STEP - PAGE_SIZE, STEP)
    assert is_gone(image, 0, STEP)
    assert is_whole(image, STEP, SIZE)
    books.confirmed(2 * STEP, 2 * STEP + PAGE_SIZE)
    books.answered(0, 0)
    assert is_gone(image, 2 * STEP, 2 * STEP + PAGE_SIZE), "an answer gives back what there is"
    assert is_whole(image, STEP, 2 * STEP)
    assert is_whole(image, 2 * STEP + PAGE_SIZE, SIZE)
    assert books.punched == STEP + PAGE_SIZE


@pytest.mark.parametrize("mode", [ANSWERED, EARLY])
def test_nothing_can_be_asked_for_twice(image: int, log: RecordingLog, mode: str) -> None:
    books = Release(image, mode, log)
    books.check(0, SIZE)
    books.confirmed(PAGE_SIZE, 2 * PAGE_SIZE)
    books.answered(PAGE_SIZE, 2 * PAGE_SIZE)
    books.check(0, PAGE_SIZE)
    books.check(2 * PAGE_SIZE, SIZE)
    for start, end in ((0, PAGE_SIZE + 1), (2 * PAGE_SIZE - 1, SIZE), (0, SIZE)):
        with pytest.raises(ImageError, match=f"at offsets {start} to {end} has been consumed"):
            books.check(start, end)


def test_without_auto_dedup_nothing_is_destroyed(image: int, log: RecordingLog) -> None:
    books = Release(image, NEVER, log)
    books.confirmed(0, SIZE)
    books.answered(0, SIZE)
    books.check(0, SIZE)
    books.finish()
    assert is_whole(image, 0, SIZE)
    assert books.punched == 0


def test_used_pages_leave_the_page_cache(
    image: int, log: RecordingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    dropped: list[tuple[int, int, int]] = []
    monkeypatch.setattr(
        hints.os, "posix_fadvise", lambda fd, at, size, advice: dropped.append((at, size, advice))
    )
    books = Release(image, NEVER, log)
    books.confirmed(10, STEP - 10)
    assert dropped == []
    books.answered(10, STEP - 10)
    inside = (PAGE_SIZE, STEP - 2 * PAGE_SIZE, os.POSIX_FADV_DONTNEED)
    assert dropped == [inside], "whole pages only: the others hold what is still to come"
    books.confirmed(STEP, 2 * STEP)
    assert dropped == [inside, (STEP, STEP, os.POSIX_FADV_DONTNEED)]


def test_at_the_end_the_rest_of_shared_blocks_goes(image: int, log: RecordingLog) -> None:
    books = Release(image, ANSWERED, log)
    os.pwrite(image, bytes(100), 5 * PAGE_SIZE)  # another helper has consumed that
    books.answered(0, 100)
    books.answered(5 * PAGE_SIZE + 100, 7 * PAGE_SIZE)
    books.answered(9 * PAGE_SIZE + 10, 9 * PAGE_SIZE + 20)
    assert is_whole(image, 0, PAGE_SIZE)
    books.finish()
    assert is_gone(image, 0, 100)
    assert is_whole(image, 100, 5 * PAGE_SIZE)
    assert is_gone(image, 5 * PAGE_SIZE, 7 * PAGE_SIZE)
    assert is_whole(image, 7 * PAGE_SIZE, 9 * PAGE_SIZE + 10)
    assert is_whole(image, 9 * PAGE_SIZE + 20, SIZE)
    os.fsync(image)
    block = os.lseek(image, 5 * PAGE_SIZE, os.SEEK_HOLE)
    assert block == 5 * PAGE_SIZE, "a block in which nothing is left takes no room"


def test_an_image_open_for_reading_only(image: int, log: RecordingLog) -> None:
    fd = os.open(f"/proc/self/fd/{image}", os.O_RDONLY)
    try:
        books = Release(fd, ANSWERED, log)
        books.answered(0, STEP)
        books.check(0, SIZE)
        books.finish()
    finally:
        os.close(fd)
    assert is_whole(image, 0, SIZE)
    (warning,) = log.warnings
    assert "it is open for reading only" in warning


@pytest.mark.parametrize(("number", "why"), [(95, "its file system cannot"), (1, "EPERM")])
def test_where_punching_fails_there_is_one_warning(
    image: int, log: RecordingLog, monkeypatch: pytest.MonkeyPatch, number: int, why: str
) -> None:
    monkeypatch.setattr(release, "punch_hole", lambda fd, offset, n_bytes: number)
    books = Release(image, ANSWERED, log)
    books.answered(0, STEP)
    books.answered(STEP, 2 * STEP)
    books.finish()
    books.check(0, SIZE)
    assert books.punched == 0
    (warning,) = log.warnings
    assert why in warning
    assert "the restore goes on" in warning


def test_the_end_of_the_image_ends_its_last_block(image: int, log: RecordingLog) -> None:
    os.ftruncate(image, SIZE - 100)
    books = Release(image, ANSWERED, log)
    books.answered(SIZE - PAGE_SIZE, SIZE - 100)
    assert is_gone(image, SIZE - PAGE_SIZE, SIZE - 100)
    assert is_whole(image, 0, SIZE - PAGE_SIZE)


@pytest.mark.parametrize(("mode", "told"), [(ANSWERED, True), (EARLY, True), (NEVER, False)])
def test_an_image_with_another_name(
    image: int, log: RecordingLog, tmp_path: Path, mode: str, told: bool
) -> None:
    os.link(tmp_path / "pages-1.img", tmp_path / "copy.img")
    books = Release(image, mode, log)
    books.confirmed(0, 2 * STEP)
    books.answered(0, 2 * STEP)
    assert is_whole(image, 0, SIZE)
    assert ["2 hard links" in warning for warning in log.warnings] == [True] * told
