"""Zeros that can be written from without taking any memory."""

from __future__ import annotations

from helperd.blocks import MAX_REGION_PAGES, PAGE_SIZE
from helperd.kernel.syscalls import HugeBuffer

#: Never written to, so all of it is one page of the kernel's.
_zeros = HugeBuffer(MAX_REGION_PAGES * PAGE_SIZE)


def zero_range(n_bytes: int) -> tuple[int, int]:
    """Return a range (address, length) of ``n_bytes`` zero bytes of this process.

    Args:
        n_bytes: the length, at most MAX_REGION_PAGES pages.
    """
    return _zeros.address, n_bytes
