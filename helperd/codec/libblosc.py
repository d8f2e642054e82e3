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
from itertools import pairwise

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

    def compress(self, source: int, n_pages: int) -> list[memoryview] | None:
        """Return the block of each page at address ``source``, valid until the next call.

        A block of PAGE_SIZE bytes or more is of no use: LZ4 does not make the page smaller. None
        if libblosc has not done what was asked for: fails, copies all, or takes other blocks.
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
        # One thread has compressed them, so they lie in their order.
        starts = array("i", table.tobytes())
        starts.append(n_bytes)
        return [chunk.view[start + _LENGTH_BYTES : end] for start, end in pairwise(starts)]
