"""The tools for directories of images, by the names of their commands.

For example::

    from helperd import tools

    tools.compress("images/", region_bytes=256 << 10)
    assert tools.check(["images/"]).ok
"""

from __future__ import annotations

from helperd.images.check import CheckReport, Finding
from helperd.images.check import check_directories as check
from helperd.images.compress import compress_directory as compress
from helperd.images.conversion import ConvertReport
from helperd.images.decompress import decompress_directory as decompress
from helperd.images.dedup import DedupReport
from helperd.images.dedup import dedup_directory as dedup
from helperd.images.inventory import Schema
from helperd.images.show import Summary
from helperd.images.show import show_directory as show

__all__ = [
    "CheckReport",
    "ConvertReport",
    "DedupReport",
    "Finding",
    "Schema",
    "Summary",
    "check",
    "compress",
    "decompress",
    "dedup",
    "show",
]
