"""Decompress a checkpoint: the inverse of compressing it."""

from __future__ import annotations

import functools

from helperd.images.dialect import compressed_parents
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
    with_parents: bool = False,
    threads: int = 0,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Decompress all memory of a checkpoint: in its directory, or into a copy.

    The pages files hold what they held before compressing, byte by byte; holes are holes again.
    A checkpoint that is not compressed is not changed, but for an inventory that does not say so.
    While a parent is compressed in the blocks schema, the version stays the one that keeps out a
    CRIU which could not restore it; the report notes that.

    Args:
        path: the image directory, or an archive.
        output: a complete copy; must not exist, or be an empty directory.
        in_place: keep no backups; without, the old files are kept as NAME.bak.
        outer: how a new archive is compressed: none, gz or zst; None = as the old one.
        with_parents: the caller decompresses the parents as well.
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
        functools.partial(plan_decompressed, with_parents=with_parents),
        output=output,
        in_place=in_place,
        outer=outer,
        threads=threads,
        dry_run=dry_run,
        progress=progress,
    )


def plan_decompressed(directory: ImageDirectory, *, with_parents: bool = False) -> Plan | None:
    """Return what becomes of a directory; None when there is nothing to be done.

    Args:
        directory: of the images.
        with_parents: count its parents as decompressed already.

    Raises:
        ImageError: it is broken.
    """
    inventory = require_inventory(directory)
    pagemaps = check_pagemaps(directory)
    processes = {pagemap_name(pid=pid) for pid in directory.pids}
    parents = () if with_parents else tuple(compressed_parents(directory))
    converted = inventory.converted(
        Schema.NONE, blocks_in_parents=any(schema is Schema.BLOCKS for _, schema in parents)
    )
    notes = tuple(_note(directory, *parent, converted.version) for parent in parents[:1])
    if any(map(has_tables, pagemaps.values())):
        names = [name for name in pagemaps if name in processes or has_tables(pagemaps[name])]
        modes = dict.fromkeys(names, Mode(Schema.NONE))
        return Plan(converted, modes, pagemaps, notes=notes)
    if (converted.version, Schema.NONE) == (inventory.version, inventory.schema):
        return None
    return Plan(converted, {}, pagemaps, notes=notes)


def _note(directory: ImageDirectory, parent: ImageDirectory, schema: Schema, version: int) -> str:
    which = "merged CRIU" if schema is Schema.BLOCKS else "the CRIU of pull request 2895"
    return (
        f"{directory.path}: img_version is {version}, and only {which} can restore it, as its"
        f" parent {parent.path} is compressed; --chain takes parents along"
    )
