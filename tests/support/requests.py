"""Requests as bytes, right and wrong ones: an encoder that checks nothing.

Deliberately not helperd.wire.pipe: the layout is written down a second time, from the protocol's
description, so that one mistake cannot hide in both.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from helperd.blocks import PAGE_SIZE

HEADER = struct.Struct("<iqQiiiI")
ANSWER = struct.Struct("<q")

Iovec = tuple[int, int]

#: Where tests map the memory to restore into: nothing else lies near it.
ADDRESS = 0x10_0000_0000


@dataclass(frozen=True)
class RawRequest:
    """A request; counts and sums that are None follow from the tables."""

    remote_pid: int
    offs: int
    sizes: Sequence[int]
    iovs: Sequence[Iovec]
    block_pages: Sequence[int] = ()
    region_pages: int = 0
    total_compressed_size: int | None = None
    n_pages: int | None = None
    nr_iovs: int | None = None
    n_blocks: int | None = None

    def header(self) -> bytes:
        """Return the first 36 bytes."""
        pages = sum(self.block_pages) if self.region_pages else len(self.sizes)
        return HEADER.pack(
            self.remote_pid,
            self.offs,
            _or(self.total_compressed_size, sum(self.sizes)),
            _or(self.n_pages, pages),
            _or(self.nr_iovs, len(self.iovs)),
            _or(self.n_blocks, len(self.sizes)),
            self.region_pages,
        )

    def encode(self) -> bytes:
        """Return the whole request."""
        flat_iovs = [value for iovec in self.iovs for value in iovec]
        return (
            self.header()
            + struct.pack(f"<{len(self.sizes)}I", *self.sizes)
            + struct.pack(f"<{len(self.block_pages)}H", *self.block_pages)
            + struct.pack(f"<{len(flat_iovs)}Q", *flat_iovs)
        )


def scattered(address: int, n_pages: int, *, stride_pages: int) -> list[Iovec]:
    """Return ``n_pages`` iovecs of one page each, ``stride_pages`` pages apart."""
    return [(address + page * stride_pages * PAGE_SIZE, PAGE_SIZE) for page in range(n_pages)]


def _or(value: int | None, derived: int) -> int:
    return derived if value is None else value
