"""Encode and decode single blocks, for everything that is not the restore's hot path.

The rules are :mod:`helperd.blocks`', the work is python-lz4's.
"""

from __future__ import annotations

from functools import lru_cache

import lz4.block

from helperd import blocks
from helperd.errors import CorruptBlock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer


def decode_block(stored: Buffer, block_bytes: int) -> bytes:
    """Return the ``block_bytes`` bytes of a block from its stored form.

    Raises:
        CorruptBlock: it does not decode to exactly that many bytes.
    """
    size = memoryview(stored).nbytes
    if size == blocks.ZERO_SIZE:
        return bytes(block_bytes)
    if size == block_bytes:
        return bytes(stored)
    try:
        block: bytes = lz4.block.decompress(stored, uncompressed_size=block_bytes)
    except lz4.block.LZ4BlockError as error:
        raise CorruptBlock(f"an LZ4 block of {size} bytes does not decode: {error}") from error
    if len(block) != block_bytes:
        raise CorruptBlock(
            f"an LZ4 block of {size} bytes decodes to {len(block)} bytes, not {block_bytes}"
        )
    return block


def encode_block(block: Buffer, acceleration: int = 1) -> bytes:
    """Return the stored form of a block of whole pages: nothing, LZ4, or its own bytes.

    Args:
        block: the bytes, a multiple of the page size.
        acceleration: LZ4's: 1 compresses best, larger is faster.
    """
    block_bytes = memoryview(block).nbytes
    if bytes(block) == _zeros(block_bytes):
        return b""
    stored: bytes = lz4.block.compress(
        block, mode="fast", acceleration=acceleration, store_size=False
    )
    return bytes(block) if len(stored) >= blocks.raw_threshold(block_bytes) else stored


@lru_cache(maxsize=4)
def _zeros(n_bytes: int) -> bytes:
    return bytes(n_bytes)
