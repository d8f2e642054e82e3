"""Memory of the test process itself."""

from __future__ import annotations

import ctypes
import mmap


class OwnMemory:
    """Memory of this very process to restore into."""

    def __init__(self, n_bytes: int) -> None:
        self.map = mmap.mmap(-1, n_bytes)
        anchor = ctypes.c_char.from_buffer(self.map)
        self.address = ctypes.addressof(anchor)
        del anchor

    def content(self) -> bytes:
        """Return what is in it."""
        return self.map[:]
