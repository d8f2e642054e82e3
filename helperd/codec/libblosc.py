"""libblosc through ctypes, for compressing many pages, each by itself, in one call.

A Python-level call of liblz4 for each page costs a good part of the compressing itself, and keeps
other threads waiting in between. libblosc cuts its input into blocks and has LZ4 compress each by
itself: with blocks of a page that is what pages images hold, but for zero pages. What it makes is

====================  ==========================================================================
header                16 bytes, see _HEADER
starts                i32 for each page: where its block starts, from the header on
blocks                each an i32 length and as many bytes of LZ4, or a page as it is
====================  ==========================================================================

Source: c-blosc's README_CHUNK_FORMAT. The blosc package is an extra: without a libblosc liblz4 does
it all, page by page.
"""

from __future__ import annotations

import struct
from array import array

from helperd.blocks import PAGE_SIZE, max_stored_size
from helperd.codec import libraries
from helperd.kernel import native
from helperd.kernel.syscalls import HugeBuffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NEEDED = ("blosc_compress_ctx", "blosc_get_version_string")
#: Versions of the format and of the codec's, flags, bytes of an element; bytes that went in, bytes
#: of a block, bytes that came out.
_HEADER = struct.Struct("<BBBBIII")
_LENGTH_BYTES = 4
#: Nothing filtered, nothing copied, blocks in one piece (0x10), codec 1 (from 0x20 on).
_LZ4_NOT_SPLIT = 0x30
#: Of a number in a row of them.
_LANE_BITS = 32
_HALF = (1 << _LANE_BITS) - 1
#: libblosc gives a block that much at the most.
_MOST_STORED = max_stored_size(PAGE_SIZE)
#: Level 9 is LZ4's acceleration 1, level 1 its 9.
_LEVELS = 10
#: Of more than 16 bytes: blocks of smaller elements would be split into streams.
_ELEMENT_BYTES = 32


def _load() -> Any:
    library = libraries.first_with(_NEEDED, libraries.blosc_candidates())
    if library is None:
        return None
    function = library.blosc_compress_ctx
    function.argtypes = (
        *(native.c_int, native.c_int, native.c_size_t),  # level, filter, bytes of an element
        *(native.c_size_t, native.c_void_p, native.c_void_p, native.c_size_t),
        *(native.c_char_p, native.c_size_t, native.c_int),  # codec, bytes of a block, threads
    )
    return library


_library = _load()


def in_use() -> tuple[str, str] | None:
    """Return the version of the libblosc in use and where it was found, or None without one."""
    if _library is None:
        return None
    version = _library.blosc_get_version_string
    version.restype = native.c_char_p
    return version().decode(), _library.name or ""


def can_compress(acceleration: int) -> bool:
    """Return whether there is a libblosc, and it knows that acceleration of LZ4's."""
    return _library is not None and 1 <= acceleration < _LEVELS


class PageCompressor:
    """Compresses up to ``max_pages`` pages at once; for one thread at a time."""

    def __init__(self, acceleration: int, max_pages: int) -> None:
        self._level = _LEVELS - acceleration
        page_bytes = _LENGTH_BYTES + _LENGTH_BYTES + max_stored_size(PAGE_SIZE)
        self._chunk = HugeBuffer(_HEADER.size + max_pages * page_bytes)
        # The buffer is aligned to more than it is long: only the lower halves of its addresses
        # differ.
        low, high = self._chunk.address & _HALF, self._chunk.address >> _LANE_BITS
        self._ranges = array("I", (0, high, 0, 0)) * max_pages
        self._lengths = _row(array("I", (_LENGTH_BYTES,)) * max_pages)
        self._begins = _row(array("I", (low + _LENGTH_BYTES,)) * max_pages)

    def compress(self, source: int, n_pages: int) -> tuple[array[int], array[int]] | None:
        """Compress the pages at address ``source``.

        Returns:
            ``array('I')`` with the bytes of each block, ``array('Q')`` with the address and bytes
            of each: (address, bytes, ...), valid until the next call. A block of PAGE_SIZE bytes or
            more is of no use: LZ4 does not make the page smaller. None if libblosc has not done
            what was asked for: fails, copies all, or takes other blocks.
        """
        chunk = self._chunk
        n_bytes: int = _library.blosc_compress_ctx(
            *(self._level, 0, _ELEMENT_BYTES, n_pages * PAGE_SIZE, source),
            *(chunk.address, len(chunk.view), b"lz4", PAGE_SIZE, 1),
        )
        _, _, flags, _, *sizes = _HEADER.unpack_from(chunk.view)
        if flags != _LZ4_NOT_SPLIT or sizes != [n_pages * PAGE_SIZE, PAGE_SIZE, n_bytes]:
            return None
        table = chunk.view[_HEADER.size : _HEADER.size + n_pages * _LENGTH_BYTES]
        # One thread has compressed them, so they lie in their order, each to where the next starts.
        # All of them are added up at once, as one long number; no sum overflows its place.
        mask = (1 << _LANE_BITS * n_pages) - 1
        starts = int.from_bytes(table, "little")
        ends = (starts >> _LANE_BITS) | (n_bytes << _LANE_BITS * (n_pages - 1))
        if ends < starts:
            return None
        stored = _numbers((ends - starts - (self._lengths & mask)) & mask, n_pages)
        if max(stored) > _MOST_STORED:
            return None  # They do not.
        ranges = self._ranges[: 4 * n_pages]
        ranges[0::4] = _numbers(starts + (self._begins & mask), n_pages)
        ranges[2::4] = stored
        return stored, array("Q", ranges.tobytes())


def _row(numbers: array[int]) -> int:
    return int.from_bytes(numbers.tobytes(), "little")


def _numbers(row: int, count: int) -> array[int]:
    return array("I", row.to_bytes(4 * count, "little"))
