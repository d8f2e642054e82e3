"""Pages images that are missing, short or corrupt."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest
from target import Target
from truth import load_truth, map_ranges

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.errors import EXIT_IMAGE
from tests.conftest import ImageArchive
from tests.support.helper import HelperProcess, Outcome, run_helper
from tests.support.image import BlockImage, compress, noise, text
from tests.support.replay import load_recording
from tests.support.requests import ADDRESS


def restore(target: Target, image: BlockImage, pages: Path, *, region_pages: int = 0) -> str:
    """Restore an image that is broken; return the answer's errno name and check the end."""
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(pages) as helper:
        answer = helper.ask(image.request(target.pid, ADDRESS, region_pages=region_pages))
        outcome = helper.finish()
    assert_image_error(outcome)
    assert answer is not None
    return errno.errorcode[-answer]


def assert_image_error(outcome: Outcome) -> None:
    assert outcome.status == EXIT_IMAGE
    assert outcome.error_line


@pytest.mark.parametrize("missing", [1, 100, PAGE_SIZE, 5 * PAGE_SIZE, None])
@pytest.mark.parametrize("region_pages", [0, 16], ids=["perpage", "region"])
def test_truncated_image(
    target: Target, tmp_path: Path, missing: int | None, region_pages: int
) -> None:
    image = BlockImage()
    for seed in range(800 // (region_pages or 1)):  # more than is read at once
        image.add_raw(noise(region_pages or 1, seed))
    pages = image.write(tmp_path / "pages.img")
    os.truncate(pages, 0 if missing is None else len(image.payload) - missing)
    assert restore(target, image, pages, region_pages=region_pages) == "EIO"
    assert not any(target.present_pages(ADDRESS, image.n_pages)), "something was written"


def test_image_is_truncated_between_requests(
    image_archive: ImageArchive, target: Target, tmp_path: Path
) -> None:
    (process,) = load_truth(image_archive("criu-fragmented")).processes
    map_ranges(target, process.ranges)
    recording = load_recording(image_archive("criu-fragmented"), target.pid)
    pages = tmp_path / "pages-1.img"
    pages.write_bytes(recording.pages.read_bytes())
    with HelperProcess(pages) as helper:
        assert helper.ask(recording.requests[0]) == recording.answers[0]
        os.truncate(pages, pages.stat().st_size // 2)
        assert helper.ask(recording.requests[1]) == -errno.EIO
        assert_image_error(helper.finish())


# A block must decode to exactly its pages.

#: LZ4 sequences: a token (literals << 4 | match length - 4), literals, a little-endian distance.
MATCH_BEFORE_THE_START = b"\x10A\xff\xff\x00"
ONLY_A_TOKEN = b"\xf0"

CORRUPT = {
    "garbage": b"\xff" * 100,
    "one byte": b"\xff",
    "decodes to nothing": b"\x00",
    "a byte too few": compress(text(1)[:-1]),
    "a byte too many": compress(text(1) + b"x"),
    "two pages": compress(text(2)),
    "half a block": compress(text(1))[:50],
    "match before the start": MATCH_BEFORE_THE_START,
    "only a token": ONLY_A_TOKEN,
    "a block and more": compress(text(1)) + b"\x00" * 8,
}


@pytest.mark.parametrize("stored", list(CORRUPT.values()), ids=list(CORRUPT))
@pytest.mark.parametrize("place", ["first", "between", "last"])
@pytest.mark.parametrize("region_pages", [0, 1], ids=["perpage", "region"])
def test_corrupt_block(
    target: Target, tmp_path: Path, stored: bytes, place: str, region_pages: int
) -> None:
    image = BlockImage()
    for page in range(8 if place != "first" else 0):
        image.add_lz4(text(1, seed=page))
    image.add_stored(stored, bytes(PAGE_SIZE))
    for page in range(8 if place != "last" else 0):
        image.add_lz4(text(1, seed=page))
    pages = image.write(tmp_path / "pages.img")
    assert restore(target, image, pages, region_pages=region_pages) == "EBADMSG"


@pytest.mark.parametrize(
    ("first", "second"), [(8192, 0), (0, 8192), (4095, 4097), (4097, 4095), (1, 8191)]
)
def test_two_blocks_whose_sum_is_right(
    target: Target, tmp_path: Path, first: int, second: int
) -> None:
    """Decoded into one buffer one after the other, they would fill it exactly."""
    data = text(2)
    image = BlockImage()
    image.add_stored(compress(data[:first]), bytes(PAGE_SIZE))
    image.add_stored(compress(data[:second]), bytes(PAGE_SIZE))
    assert restore(target, image, image.write(tmp_path / "pages.img")) == "EBADMSG"


@pytest.mark.parametrize("n_bytes", [0, PAGE_SIZE, 64 * PAGE_SIZE - 1, 64 * PAGE_SIZE + 1])
def test_corrupt_region(target: Target, tmp_path: Path, n_bytes: int) -> None:
    image = BlockImage()
    image.add_lz4(text(64, seed=1))
    image.add_stored(compress(text(65, seed=2)[:n_bytes]), bytes(64 * PAGE_SIZE))
    image.add_lz4(text(64, seed=3))
    pages = image.write(tmp_path / "pages.img")
    assert restore(target, image, pages, region_pages=64) == "EBADMSG"


def test_the_log_names_the_block(target: Target, tmp_path: Path) -> None:
    image = BlockImage()
    image.add_lz4(text(1))
    offset = len(image.payload)
    image.add_stored(b"\xff" * 100, bytes(PAGE_SIZE))
    target.map_anonymous(ADDRESS, len(image.memory))
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == -errno.EBADMSG
        line = helper.finish().error_line
    assert str(offset) in line or f"{offset:#x}" in line


@pytest.mark.parametrize("seed", range(20))
def test_damaged_payload_writes_nothing_wrong_elsewhere(
    target: Target, tmp_path: Path, seed: int
) -> None:
    """Any damage ends in EBADMSG or in other bytes for its own block; the rest stays right."""
    dice = random.Random(seed)
    image = BlockImage()
    for block in range(4):
        image.add_lz4(text(8, seed=block))
    damaged = dice.randrange(4)
    start = sum(image.sizes[:damaged])
    for _ in range(dice.randrange(1, 5)):
        image.payload[start + dice.randrange(image.sizes[damaged])] ^= dice.randrange(1, 256)
    margin = pages_to_bytes(16)
    target.map_anonymous(ADDRESS - margin, len(image.memory) + 2 * margin)
    with HelperProcess(image.write(tmp_path / "pages.img")) as helper:
        answer = helper.ask(image.request(target.pid, ADDRESS, region_pages=8))
        outcome = helper.finish()
    if answer == -errno.EBADMSG:
        assert_image_error(outcome)
    else:
        assert (outcome.status, outcome.stderr) == (0, "")
        restored = target.read(ADDRESS, len(image.memory))
        block_bytes = pages_to_bytes(8)
        for block in {0, 1, 2, 3} - {damaged}:
            own = slice(block * block_bytes, (block + 1) * block_bytes)
            assert restored[own] == image.memory[own]
    assert not any(target.present_pages(ADDRESS - margin, 16))
    assert not any(target.present_pages(ADDRESS + len(image.memory), 16))


# Images that cannot be opened.


def test_missing_pages_file(tmp_path: Path) -> None:
    path = tmp_path / "pages-7.img"
    outcome = run_helper("--stdin-pipes", "--pages", str(path))
    assert_image_error(outcome)
    assert str(path) in outcome.error_line


def test_pages_file_is_a_directory(tmp_path: Path) -> None:
    assert_image_error(run_helper("--stdin-pipes", "--pages", str(tmp_path)))


def test_pages_fd_is_a_pipe(tmp_path: Path) -> None:
    fds = (*os.pipe(), *os.pipe(), *os.pipe())
    try:
        pages, _, requests, _, _, answers = fds
        outcome = run_helper(
            f"--pages-fd={pages}",
            f"--request-fd={requests}",
            f"--reply-fd={answers}",
            pass_fds=(pages, requests, answers),
        )
    finally:
        for fd in fds:
            os.close(fd)
    assert_image_error(outcome)
    assert outcome.stdout == b""
