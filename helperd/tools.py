"""The tools for directories of images, by the names of their commands.

For example::

    from helperd import tools

    tools.compress("images/", region_bytes=256 << 10)
    assert tools.check(["images/"]).ok
"""

from __future__ import annotations

from helperd.images.inventory import Schema
from helperd.offline.check import check_directories as check
from helperd.offline.compress import compress_directory as compress
from helperd.offline.convert_directory import ConvertReport
from helperd.offline.decompress import decompress_directory as decompress
from helperd.offline.dedup import DedupReport
from helperd.offline.dedup import dedup_directory as dedup
from helperd.offline.findings import CheckReport, Finding
from helperd.offline.summary import Summary
from helperd.offline.summary import show_directory as show

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
