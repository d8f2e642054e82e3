"""Pages compressed many at a time: each block is one page, and no larger than it has to be."""

from __future__ import annotations

import random
from types import SimpleNamespace

import lz4.block
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helperd.blocks import PAGE_SIZE
from helperd.codec import libblosc
from helperd.codec.libblosc import PageCompressor, can_compress
from helperd.kernel.syscalls import HugeBuffer, joined

MAX_PAGES = 16
_source = HugeBuffer(MAX_PAGES * PAGE_SIZE)


def page(kind: str, seed: int) -> bytes:
    """Return a page of zeros, noise, repetition, or half noise and half zeros."""
    noise = random.Random(seed).randbytes(PAGE_SIZE)
    return {
        "zero": bytes(PAGE_SIZE),
        "noise": noise,
        "repeat": noise[:7] * (PAGE_SIZE // 7) + noise[: PAGE_SIZE % 7],
        "half": noise[: PAGE_SIZE // 2].ljust(PAGE_SIZE, b"\0"),
    }[kind]


def compress(compressor: PageCompressor, n_pages: int) -> list[bytes]:
    """Return the block of each page."""
    found = compressor.compress(_source.address, n_pages)
    assert found is not None
    sizes, ranges = found
    assert ranges[1::2].tolist() == sizes.tolist()
    return [bytes(joined(ranges[at : at + 2], ranges[at + 1])) for at in range(0, len(ranges), 2)]


pages = st.builds(page, st.sampled_from(["zero", "noise", "repeat", "half"]), st.integers(0, 99))


@given(st.lists(pages, min_size=1, max_size=MAX_PAGES), st.integers(1, 9))
def test_every_block_is_its_page(content: list[bytes], acceleration: int) -> None:
    _source.view[: len(content) * PAGE_SIZE] = b"".join(content)
    compressor = PageCompressor(acceleration, MAX_PAGES)
    for _ in range(2):  # the buffer of the first time is used again
        stored = compress(compressor, len(content))
        for block, original in zip(stored, content, strict=True):
            if len(block) < PAGE_SIZE:
                decoded = lz4.block.decompress(block, uncompressed_size=PAGE_SIZE)
                assert decoded == original
            else:
                assert original not in (page("zero", 0), page("half", 0)), "can be compressed"


def test_noise_is_left_to_the_caller() -> None:
    noise = [page("noise", seed) for seed in range(MAX_PAGES)]
    _source.view[: MAX_PAGES * PAGE_SIZE] = b"".join(noise)
    stored = compress(PageCompressor(1, MAX_PAGES), MAX_PAGES)
    assert all(len(block) >= PAGE_SIZE for block in stored)


def test_more_acceleration_is_less_compression() -> None:
    text = b"".join(b"%d and %d, " % (n, n * n) for n in range(9000))[: MAX_PAGES * PAGE_SIZE]
    _source.view[: len(text)] = text
    sizes = []
    for level in (1, 9):
        stored = compress(PageCompressor(level, MAX_PAGES), MAX_PAGES)
        sizes.append(sum(map(len, stored)))
    assert 0 < sizes[0] < sizes[1] < len(text)


@pytest.mark.parametrize(("acceleration", "possible"), [(1, True), (9, True), (10, False)])
def test_which_accelerations_it_knows(acceleration: int, possible: bool) -> None:
    assert can_compress(acceleration) is possible


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libblosc, "_library", None)
    assert not can_compress(1)


@pytest.mark.parametrize("answer", [0, -1, 5000])
def test_anything_unexpected_is_left_to_liblz4(
    monkeypatch: pytest.MonkeyPatch, answer: int
) -> None:
    broken = SimpleNamespace(blosc_compress_ctx=lambda *_: answer)
    monkeypatch.setattr(libblosc, "_library", broken)
    assert PageCompressor(1, MAX_PAGES).compress(_source.address, MAX_PAGES) is None
