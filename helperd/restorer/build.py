"""Requests built of blocks and destinations; the sums in them are derived."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING

from helperd.blocks import DEFAULT_MAX_PAGES
from helperd.errors import MalformedRequest
from helperd.wire.pipe import Request

if TYPE_CHECKING:
    from collections.abc import Iterable


def build_request(
    *,
    remote_pid: int,
    offs: int,
    region_pages: int,
    sizes: Iterable[int],
    block_pages: Iterable[int] = (),
    iovs: Iterable[int],
    max_pages: int = DEFAULT_MAX_PAGES,
) -> Request:
    """Build a valid request; the sums are derived.

    Args:
        remote_pid: the process to write into.
        offs: file offset of the first payload byte.
        region_pages: 0 for per-page mode.
        sizes: stored size of each block.
        block_pages: pages of each block, in region mode.
        iovs: base, length, base, length, ... in page order.
        max_pages: the limit to check against.

    Raises:
        MalformedRequest, RequestTooLarge: the fields break a rule; the caller is at fault.
    """
    try:
        stored = array("I", sizes)
        pages = array("H", block_pages)
        ranges = array("Q", iovs)
    except OverflowError as error:
        raise MalformedRequest(f"a value does not fit its field: {error}") from error
    request = Request(
        remote_pid=remote_pid,
        offs=offs,
        total_compressed_size=sum(stored),
        n_pages=sum(pages) if region_pages else len(stored),
        region_pages=region_pages,
        sizes=stored,
        block_pages=pages,
        iovs=ranges,
    )
    request.validate(max_pages)
    return request
