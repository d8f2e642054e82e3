"""The rules of pages and compressed blocks: sizes, sentinels, bounds. The only copy of them.

A *page* is PAGE_SIZE bytes. A *block* is what was compressed at once: one page in per-page mode,
up to MAX_REGION_PAGES pages in region mode. Its stored size says how it is stored:

=====================  ============================================
stored size            meaning
=====================  ============================================
ZERO_SIZE (0)          every byte is zero; nothing is stored
the block's own bytes  raw: stored as it is
anything else          a plain LZ4 block of that many bytes
=====================  ============================================

Facts: CRIU pull request 2895; the same sentinels hold on the wire and in both image schemas.
"""

from __future__ import annotations

import posix as os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from array import array
    from collections.abc import Iterator

PAGE_SIZE: int = os.sysconf("SC_PAGE_SIZE")
PAGE_SHIFT: int = PAGE_SIZE.bit_length() - 1
ZERO_SIZE = 0
MAX_REGION_PAGES = 1024
ZERO_PAGE = bytes(PAGE_SIZE)

#: What a helper accepts in one request unless told otherwise: 256 GiB of memory.
DEFAULT_MAX_PAGES = (256 << 30) // PAGE_SIZE

#: Numerator and denominator of the share of a block from which on it is stored raw.
RAW_FROM = (7, 8)

_COUNTED_ONE_BY_ONE, _COUNTED_AT_ONCE = 16, 1 << 14
_ZERO_BYTES = bytes(value == 0 for value in range(256))
_RAW_HIGH_BYTES = bytes(value == PAGE_SIZE >> 8 for value in range(256))


def max_stored_size(block_bytes: int) -> int:
    """Return the largest valid stored size of a block of ``block_bytes`` bytes.

    LZ4's own worst case: 4128 for a page of 4096.
    """
    return block_bytes + block_bytes // 255 + 16


def raw_threshold(block_bytes: int) -> int:
    """Return the compressed size from which on a writer stores the block raw (7/8 of it)."""
    return block_bytes * RAW_FROM[0] // RAW_FROM[1]


def count_sentinels(sizes: array[int]) -> tuple[int, int]:
    """Return how many pages of a per-page ``array('I')`` are zero, and how many are stored raw.

    The sizes must be valid ones, so they fit into two bytes. These are looked at by themselves, all
    in one go: counting numbers takes eight times as long, and would be felt in a restore. A few
    are counted sooner.
    """
    if len(sizes) <= _COUNTED_ONE_BY_ONE:
        return sizes.count(ZERO_SIZE), sizes.count(PAGE_SIZE)
    n_zero = n_raw = 0
    # In parts, so that it takes no memory that grows with a request.
    for first in range(0, len(sizes), _COUNTED_AT_ONCE):
        octets = sizes[first : first + _COUNTED_AT_ONCE].tobytes()
        low_zero = _mark(octets[0::4], _ZERO_BYTES)
        high = octets[1::4]
        n_zero += (low_zero & _mark(high, _ZERO_BYTES)).bit_count()
        n_raw += (low_zero & _mark(high, _RAW_HIGH_BYTES)).bit_count()
    return n_zero, n_raw


def count_kinds(sizes: array[int], block_pages: array[int]) -> tuple[int, int]:
    """Return how many blocks are zero, and how many are stored raw.

    Args:
        sizes: ``array('I')``, the stored size of each; valid ones.
        block_pages: ``array('H')``, the pages of each; empty = one each.
    """
    if not block_pages:
        return count_sentinels(sizes)
    whole = (pages << PAGE_SHIFT for pages in block_pages)
    return sizes.count(ZERO_SIZE), sum(map(int.__eq__, sizes, whole))


def _mark(octets: bytes, marks: bytes) -> int:
    return int.from_bytes(octets.translate(marks), "little")


def pages_to_bytes(n_pages: int) -> int:
    """Return the bytes of ``n_pages`` pages."""
    return n_pages << PAGE_SHIFT


def split_into_regions(n_pages: int, region_pages: int) -> list[int]:
    """Return the pages of each block of an entry of ``n_pages``; the last one may be shorter."""
    whole, rest = divmod(n_pages, region_pages)
    return [region_pages] * whole + ([rest] if rest else [])


def runs(pages: bytes | bytearray, value: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of pages whose byte is ``value``, as (first page, number of pages).

    Args:
        pages: one byte for each page, 0 or 1.
        value: 0 or 1.
    """
    first = pages.find(value)
    while first >= 0:
        end = pages.find(1 - value, first)
        if end < 0:
            end = len(pages)
        yield first, end - first
        first = pages.find(value, end)
