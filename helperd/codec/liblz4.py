"""The functions of liblz4, for decoding and encoding straight into a buffer at a known address.

The lz4 package's own functions allocate the output and copy it; the library inside its wheel does
not have to. A wheel that hides its symbols is no obstacle: then the system's liblz4 serves, see
:mod:`helperd.codec.libraries`.
"""

from __future__ import annotations

from helperd.codec import libraries
from helperd.kernel import native

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_NEEDED = (
    "LZ4_versionString",
    "LZ4_compress_fast",
    "LZ4_decompress_safe",
    "LZ4_decompress_safe_partial",
    "LZ4F_createDecompressionContext",
    "LZ4F_decompress",
    "LZ4F_freeDecompressionContext",
    "LZ4F_resetDecompressionContext",
)

_library = libraries.lz4(_NEEDED)

_address, _pointer, _size = native.c_void_p, native.c_void_p, native.c_size_t

#: ``decompress_safe(source, destination, size, capacity)`` -> decoded bytes, or negative.
decompress_safe: Any = _library.LZ4_decompress_safe
decompress_safe.argtypes = (_address, _address, native.c_int, native.c_int)
decompress_safe.restype = native.c_int

#: ``decompress_partly(source, destination, size, wanted, capacity)`` -> decoded bytes, at least
#: ``wanted`` of a good block that has so many, or negative. What is behind them is not looked at.
decompress_partly: Any = _library.LZ4_decompress_safe_partial
decompress_partly.argtypes = (_address, _address, native.c_int, native.c_int, native.c_int)
decompress_partly.restype = native.c_int

#: ``compress_fast(source, destination, size, capacity, acceleration)`` -> bytes, or 0: no room.
compress_fast: Any = _library.LZ4_compress_fast
compress_fast.argtypes = (_address, _address, native.c_int, native.c_int, native.c_int)
compress_fast.restype = native.c_int

#: ``frame_create(context pointer's address, FRAME_VERSION)`` -> 0, or an error.
frame_create: Any = _library.LZ4F_createDecompressionContext
FRAME_VERSION = 100
#: ``frame_decompress(context, destination, capacity's address, source, size's address, options)``
#: -> bytes that it wants next, or an error; tells by the two sizes how much it has done.
frame_decompress: Any = _library.LZ4F_decompress
frame_decompress.argtypes = (_pointer, _address, _pointer, _address, _pointer, _pointer)
frame_decompress.restype = _size
#: ``frame_reset(context)`` makes it ready for another frame.
frame_reset: Any = _library.LZ4F_resetDecompressionContext
frame_reset.argtypes = (_pointer,)
#: ``frame_free(context)`` gives its memory back.
frame_free: Any = _library.LZ4F_freeDecompressionContext
frame_free.argtypes = (_pointer,)


def in_use() -> tuple[str, str]:
    """Return the version of the liblz4 in use, and where it was found."""
    version = _library.LZ4_versionString
    version.restype = native.c_char_p
    return version().decode(), _library.name or ""
