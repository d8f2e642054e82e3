"""Decompress a checkpoint: the inverse of compressing it."""

from __future__ import annotations

from helperd.images.directory import ImageDirectory, pagemap_name
from helperd.images.inventory import Schema
from helperd.offline.convert import convert
from helperd.offline.convert_directory import (
    ConvertReport,
    Plan,
    Progress,
    check_pagemaps,
    has_tables,
    require_inventory,
)
from helperd.offline.convert_pagemap import Mode


def decompress_directory(
    path: str,
    *,
    output: str | None = None,
    in_place: bool = False,
    outer: str | None = None,
    threads: int = 0,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Decompress all memory of a checkpoint: in its directory, or into a copy.

    The pages files hold what they held before compressing, byte by byte; holes are holes again.
    A checkpoint that is not compressed is not changed.

    Args:
        path: the image directory, or an archive.
        output: a complete copy; must not exist, or be an empty directory.
        in_place: keep no backups; without, the old files are kept as NAME.bak.
        outer: how a new archive is compressed: none, gz or zst; None = as the old one.
        threads: that decompress, 0 = one for each CPU.
        dry_run: only find out whether it could be done.
        progress: called with (bytes of memory done, in all) now and then.

    Raises:
        UsageError: the arguments contradict each other, or another process is changing the
            checkpoint; nothing was changed.
        ImageError: the checkpoint is broken; nothing was changed, and no copy is left.
        ResourceError, NotPermitted: from the system; likewise.
    """
    return convert(
        path,
        plan_decompressed,
        output=output,
        in_place=in_place,
        outer=outer,
        threads=threads,
        dry_run=dry_run,
        progress=progress,
    )


def plan_decompressed(directory: ImageDirectory) -> Plan | None:
    """Return what becomes of a directory; None when nothing in it is compressed."""
    inventory = require_inventory(directory)
    pagemaps = check_pagemaps(directory)
    if directory.schema is Schema.NONE:
        return None
    processes = {pagemap_name(pid=pid) for pid in directory.pids}
    names = [name for name in pagemaps if name in processes or has_tables(pagemaps[name])]
    modes = dict.fromkeys(names, Mode(Schema.NONE))
    return Plan(inventory.converted(Schema.NONE), modes, pagemaps)
