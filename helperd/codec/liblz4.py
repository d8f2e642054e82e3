"""liblz4 through ctypes, for decoding and encoding straight into a buffer at a known address.

The lz4 package's own functions allocate the output and copy it; the library inside its wheel does
not have to. A wheel that hides its symbols is no obstacle: then the system's liblz4 serves, see
:mod:`helperd.codec.libraries`.
"""

from __future__ import annotations

from helperd.codec import libraries
from helperd.errors import ResourceError
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
    "LZ4F_isError",
    "LZ4F_resetDecompressionContext",
)
_LZ4F_VERSION = 100


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

_frame_decompress = _library.LZ4F_decompress
_frame_decompress.argtypes = (_pointer, _address, _pointer, _address, _pointer, _pointer)
_frame_decompress.restype = _size
_library.LZ4F_isError.argtypes = (_size,)
_library.LZ4F_resetDecompressionContext.argtypes = (_pointer,)


def in_use() -> tuple[str, str]:
    """Return the version of the liblz4 in use, and where it was found."""
    version = _library.LZ4_versionString
    version.restype = native.c_char_p
    return version().decode(), _library.name or ""


class FrameContext:
    """An LZ4F decompression context, to be used by one thread at a time."""

    def __init__(self) -> None:
        self._context = native.c_void_p()
        if _library.LZ4F_createDecompressionContext(native.byref(self._context), _LZ4F_VERSION):
            raise ResourceError("no memory for an LZ4 frame context")
        self._produced = native.c_size_t()
        self._consumed = native.c_size_t()
        self._produced_at = native.addressof(self._produced)
        self._consumed_at = native.addressof(self._consumed)

    def decompress(self, source: int, size: int, destination: int, capacity: int) -> int:
        """Decode one whole frame of ``size`` bytes at ``source`` to ``destination``.

        Returns:
            The decoded bytes, or -1 when the frame is corrupt, incomplete, or larger than
            ``capacity``. The context is ready for the next frame either way.
        """
        self._produced.value = capacity
        self._consumed.value = size
        hint: int = _frame_decompress(
            self._context, destination, self._produced_at, source, self._consumed_at, None
        )
        if hint != 0 or self._consumed.value != size:
            _library.LZ4F_resetDecompressionContext(self._context)
            return -1
        produced: int = self._produced.value
        return produced
