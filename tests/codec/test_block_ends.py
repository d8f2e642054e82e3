"""One verdict for one LZ4 block: LZ4_decompress_safe's, however many blocks are decoded at once."""

from __future__ import annotations

import os
from array import array
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from helperd.blocks import PAGE_SIZE, max_stored_size
from helperd.codec.block import decode_block
from helperd.codec.chunk import Chunk
from helperd.codec.decoders import Decoders
from helperd.errors import CorruptBlock
from tests.support.image import compress, text


def length(base: int, rest: int) -> bytes:
    """Return the bytes that extend a length in a token."""
    rest -= base
    return b"" if rest < 0 else b"\xff" * (rest // 255) + bytes([rest % 255])


def sequence(literals: bytes, offset: int = 0, match: int = 0) -> bytes:
    """Return an LZ4 sequence: literals, then a match unless it is the last one."""
    low = min(match - 4, 15) if match else 0
    stored = bytes([min(len(literals), 15) << 4 | low]) + length(15, len(literals)) + literals
    if match:
        stored += offset.to_bytes(2, "little") + length(15, match - 4)
    return stored


def page_block(n_literals: int, match: int, last: int, offset: int, seed: int = 0) -> bytes:
    """Return a block of a page that ends with ``match`` bytes copied and ``last`` literals.

    Args:
        n_literals: before the last match.
        match: its length.
        last: literals behind it.
        offset: of the last match.
        seed: of the literals.
    """
    words = text(2, seed)
    first = PAGE_SIZE - match - last - n_literals
    head = sequence(words[:64], 64, first - 64)
    body = sequence(words[64 : 64 + n_literals], offset, match)
    return head + body + sequence(words[200 : 200 + last])


def accepts(stored: bytes) -> bool:
    """Return the verdict of the reference decoder."""
    try:
        decode_block(stored, PAGE_SIZE)
    except CorruptBlock:
        return False
    return True


def decode_many(path: Path, blocks: list[bytes]) -> bool:
    """Return whether a chunk of these blocks decodes."""
    path.write_bytes(b"".join(blocks))
    sizes = array("I", map(len, blocks))
    n = len(blocks)
    chunk = Chunk(0, 0, n, sizes, array("H"), 0, [(0x10000, n)])
    fd = os.open(path, os.O_RDONLY)
    try:
        Decoders().decode(fd, chunk)
    except CorruptBlock as error:
        failure = str(error)
    else:
        return True
    finally:
        os.close(fd)
    assert "block 7 " in failure
    return False


def surrounded(stored: bytes) -> list[bytes]:
    """Return a chunk's blocks, ``stored`` being number 7 among ordinary ones."""
    blocks = [compress(text(1, seed)) for seed in range(20)]
    blocks[3], blocks[11] = bytes(range(256)) * 16, b""
    blocks[7] = stored
    return blocks


@settings(max_examples=250, deadline=None)
@given(
    n_literals=st.integers(0, 40),
    match=st.one_of(st.integers(4, 30), st.integers(250, 1200)),
    last=st.integers(0, 20),
    offset=st.integers(1, 300),
    seed=st.integers(0, 5),
)
@example(n_literals=0, match=4, last=5, offset=64, seed=0)
@example(n_literals=10, match=250, last=3, offset=1, seed=0)
@example(n_literals=14, match=10, last=0, offset=1, seed=0)
@example(n_literals=14, match=10, last=4, offset=1, seed=0)
@example(n_literals=0, match=6, last=5, offset=64, seed=0)
@example(n_literals=20, match=5, last=6, offset=64, seed=0)
@example(n_literals=20, match=4, last=7, offset=64, seed=0)
@example(n_literals=20, match=19, last=4, offset=64, seed=0)
@example(n_literals=20, match=400, last=3, offset=64, seed=0)
@example(n_literals=20, match=600, last=2, offset=64, seed=0)
@example(n_literals=20, match=900, last=1, offset=64, seed=0)
@example(n_literals=20, match=1100, last=0, offset=64, seed=0)
def test_blocks_that_end_in_any_way(
    tmp_path_factory: pytest.TempPathFactory,
    n_literals: int,
    match: int,
    last: int,
    offset: int,
    seed: int,
) -> None:
    stored = page_block(n_literals, match, last, offset, seed)
    if len(stored) in (0, PAGE_SIZE) or len(stored) > max_stored_size(PAGE_SIZE):
        return
    path = tmp_path_factory.getbasetemp() / "pages.img"
    assert decode_many(path, surrounded(stored)) == accepts(stored)


@pytest.mark.parametrize(
    ("match", "last"), [(4, 5), (6, 5), (5, 6), (4, 7), (19, 4), (400, 3), (1100, 0)]
)
def test_ends_against_the_rules_are_refused(tmp_path: Path, match: int, last: int) -> None:
    stored = page_block(20, match, last, 64)
    assert not accepts(stored)
    assert not decode_many(tmp_path / "pages.img", surrounded(stored))


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_changed_blocks_get_the_same_verdict(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    stored = bytearray(page_block(data.draw(st.integers(0, 30)), 40, 6, 64))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(max(0, len(stored) - 40), len(stored) - 1))
        stored[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "pages.img"
    assert decode_many(path, surrounded(bytes(stored))) == accepts(bytes(stored))
