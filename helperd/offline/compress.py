"""Compress a checkpoint, as ``criu dump --compress`` would have written it.

Shared memory stays as it is, like CRIU leaves it; an entry without a table is uncompressed by
definition, so the mix is a valid image.
"""

from __future__ import annotations

from dataclasses import dataclass

from helperd import blocks
from helperd.errors import ImageFormatError, UsageError
from helperd.images.dialect import compressed_parents, disagreement, found_schema, is_left
from helperd.images.directory import ImageDirectory, pagemap_name
from helperd.images.inventory import INVENTORY_NAME, Schema
from helperd.images.mappings import mappings_of
from helperd.images.pagemap import Pagemap
from helperd.modes import MAX_ACCELERATION
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


def compress_directory(
    path: str,
    *,
    output: str | None = None,
    in_place: bool = False,
    region_bytes: int | None = None,
    acceleration: int = 1,
    schema: Schema | None = None,
    force: bool = False,
    outer: str | None = None,
    with_parents: bool = False,
    threads: int = 0,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Compress the process memory of a checkpoint: in its directory, or into a copy.

    In the directory all files change at once, and the old ones are kept as NAME.bak unless
    ``in_place``. Entries that are compressed already stay as they are; a checkpoint with nothing
    left to compress is not changed.

    A page in a hole of its pages file, which was deduplicated, stays distinguishable from a zero
    page that was dumped: see :mod:`helperd.offline.convert_pagemap`.

    Args:
        path: the image directory, or an archive.
        output: a complete copy; must not exist, or be an empty directory.
        in_place: keep no backups.
        outer: how a new archive is compressed: none, gz or zst; None = as the old one.
        region_bytes: bytes compressed at once, a multiple of the page size up to MAX_REGION_PAGES
            pages; 0 = each page by itself, and so is None, where nothing is compressed yet.
        acceleration: LZ4's, 1..MAX_ACCELERATION; 1 compresses best.
        schema: SIZES (CRIU pull request 2895) or BLOCKS (merged CRIU); None = what the checkpoint
            has, or else its parents, SIZES where all have none.
        force: compress again what is compressed already.
        with_parents: the caller compresses the parents as well, so they can be as they want.
        threads: that compress, 0 = one for each CPU.
        dry_run: only find out whether it could be done.
        progress: called with (bytes of memory done, in all) now and then.

    Raises:
        UsageError: the arguments make no sense together, the checkpoint is compressed in another
            way than asked for, or another process is changing it; nothing was changed.
        ImageError: the checkpoint is broken; nothing was changed, and no copy is left.
        ResourceError, NotPermitted: from the system; likewise.
    """
    if schema is Schema.NONE:
        raise UsageError("the schema of compressed images is sizes or blocks")
    wish = _Wish(
        region_pages_of(region_bytes),
        checked_acceleration(acceleration),
        schema,
        force,
        with_parents,
    )
    return convert(
        path,
        wish.plan,
        output=output,
        in_place=in_place,
        outer=outer,
        threads=threads,
        dry_run=dry_run,
        progress=progress,
    )


def region_pages_of(region_bytes: int | None) -> int | None:
    """Return the pages of a region, 0 = each page by itself; None for None.

    Raises:
        UsageError: there can be no such region.
    """
    if region_bytes is None:
        return None
    region_pages, rest = divmod(region_bytes, blocks.PAGE_SIZE)
    if rest or not 0 <= region_pages <= blocks.MAX_REGION_PAGES:
        raise UsageError(
            f"a region of {region_bytes} bytes is not possible: it has to be a multiple of"
            f" {blocks.PAGE_SIZE}, up to {blocks.pages_to_bytes(blocks.MAX_REGION_PAGES)}"
        )
    # A region of one page is the per-page mode by another name, except in the tables' headers.
    return region_pages


def checked_acceleration(acceleration: int) -> int:
    """Return an acceleration that LZ4 has.

    Raises:
        UsageError: it has no such.
    """
    if not 1 <= acceleration <= MAX_ACCELERATION:
        raise UsageError(
            f"an acceleration of {acceleration} is not possible: 1 to {MAX_ACCELERATION}"
        )
    return acceleration


@dataclass(frozen=True, slots=True)
class _Wish:
    """What was asked for."""

    region_pages: int | None
    acceleration: int
    schema: Schema | None
    force: bool
    with_parents: bool

    def plan(self, directory: ImageDirectory) -> Plan | None:
        inventory = require_inventory(directory)
        pagemaps = check_pagemaps(directory)
        processes = [pagemap_name(pid=pid) for pid in directory.pids]
        current = Schema.NONE
        mixed = len({schema for it in pagemaps.values() for schema in it.schemas}) > 1
        if not mixed:
            current = found_schema(inventory, pagemaps.values())
        is_compressed = mixed or current is not Schema.NONE
        parents = {} if self.with_parents else dict(compressed_parents(directory))
        schema = self.schema or current
        if schema is Schema.NONE:
            schema = next(iter(parents.values()), Schema.SIZES)
        mappings = {name: mappings_of(directory, name) for name in processes}
        again = self.force and is_compressed
        left = any(is_left(pagemaps[name], mappings[name]) for name in processes)
        if not is_compressed and not left and any(pagemaps[name].n_pages for name in processes):
            return None  # nothing but pages that are stored raw in any case
        if is_compressed and not again:
            other = schema is not current or (
                not left and any(self._differs(pagemaps[name]) for name in processes)
            )
            if other:
                raise UsageError(
                    f"Checkpoint in {directory.path} is already compressed, in another way than"
                    " asked for; --force compresses it again"
                )
            if not left:
                _require_right_inventory(directory, pagemaps)
                return None
        for parent, other_schema in parents.items():
            if other_schema is not schema:
                raise UsageError(
                    f"{directory.path}: its parent {parent.path} is compressed in the"
                    f" {other_schema.value} schema, and no CRIU restores a chain of both; take"
                    f" --schema {other_schema.value}, or convert all with --chain --force"
                )
        mode = Mode(schema, self.region_pages or 0, self.acceleration, again)
        modes = dict.fromkeys(processes, mode)
        if schema is not current:
            # Where shared memory is in the other schema's tables, it is put back into none.
            others = [name for name in pagemaps if name not in modes and has_tables(pagemaps[name])]
            modes |= dict.fromkeys(others, Mode(Schema.NONE))
        converted = inventory.converted(
            schema, region_pages=mode.region_pages, acceleration=mode.acceleration
        )
        return Plan(converted, modes, pagemaps, mappings)

    def _differs(self, pagemap: Pagemap) -> bool:
        return self.region_pages is not None and any(
            block_pages != (self.region_pages or 1) for block_pages in pagemap.kinds_of_blocks
        )


def _require_right_inventory(directory: ImageDirectory, pagemaps: dict[str, Pagemap]) -> None:
    wrong = disagreement(directory, pagemaps.values(), parents_have_blocks=False)
    if wrong is not None:
        raise ImageFormatError(
            f"{directory.file(INVENTORY_NAME)}: {wrong}; helperd complete sets it right"
        )
