"""Which schema a directory is compressed in: what its pagemaps are, and what its inventory says.

The pagemaps decide how they are read. The inventory is for CRIU: it refuses by it what it could
not restore, so it has to be right, across the whole chain. A CRIU that knows no compression takes
version 2, and never ends when it comes to a parent that is compressed; version 3 it refuses, even
if nothing is compressed at all.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from itertools import islice

from helperd import blocks
from helperd.errors import ImageError, ImageFormatError
from helperd.images.chain import ancestors
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import BLOCKS_VERSION, Inventory, Schema
from helperd.images.mappings import Mappings, mappings_of
from helperd.images.pagemap import Pagemap
from helperd.images.received import ReceivedDirectory


def found_schema(inventory: Inventory | None, pagemaps: Iterable[Pagemap]) -> Schema:
    """Return the schema of a directory's pagemaps, NONE where nothing is compressed.

    Args:
        inventory: tells the schema where all blocks are raw and so have no tables.
        pagemaps: of the directory.

    Raises:
        ImageFormatError: there are entries of both schemas, or the inventory is of unknown kind.
    """
    found: set[Schema] = set()
    raw = False
    path = ""
    for pagemap in pagemaps:
        path = pagemap.path
        found |= pagemap.schemas
        raw = raw or pagemap.has_raw
    if len(found) > 1:
        raise ImageFormatError(
            f"{path}: it, or another pagemap beside it, has tables of both schemas; no CRIU reads"
            " both; compress it again with --force"
        )
    if found:
        return found.pop()
    return inventory.schema if raw and inventory is not None else Schema.NONE


def compressed_parents(directory: ImageDirectory) -> Iterator[tuple[ImageDirectory, Schema]]:
    """Yield the parents of a directory that are compressed, the nearest first.

    A parent that is missing ends the search without an error: it is somebody else's matter.
    """
    try:
        for parent in islice(ancestors(directory), 1, None):
            schema = parent.schema
            if parent.inventory is None:
                schema = ReceivedDirectory(parent.path).schema
            if schema is not Schema.NONE:
                yield parent, schema
    except ImageError:
        return


def blocks_in_parents(directory: ImageDirectory) -> bool:
    """Return whether a parent is compressed in the blocks schema."""
    return any(schema is Schema.BLOCKS for _, schema in compressed_parents(directory))


def largest_block(pagemaps: Iterable[Pagemap]) -> int:
    """Return the pages of the largest blocks, 0 = all are single pages."""
    return max((it.largest_region for it in pagemaps), default=0)


def disagreement(
    directory: ImageDirectory, pagemaps: Collection[Pagemap], *, parents_have_blocks: bool
) -> str | None:
    """Return what an inventory says that is not so, in one line; None if it is right.

    Args:
        directory: that has the inventory.
        pagemaps: all of it.
        parents_have_blocks: a parent is compressed in the blocks schema.

    Raises:
        ImageFormatError: it is of an unknown kind, or there are entries of both schemas.
    """
    inventory = directory.inventory
    assert inventory is not None
    found, declared = found_schema(inventory, pagemaps), inventory.schema
    version = inventory.version
    if found is not declared and (
        found is not Schema.NONE
        or any(it.is_process and is_left(it, mappings_of(directory, it.name)) for it in pagemaps)
    ):
        return f"says {_described(declared)}, but the pagemaps are {_described(found)}"
    if declared is Schema.BLOCKS:
        said = inventory.message.acceleration_or_block_size
        block_bytes = blocks.pages_to_bytes(largest_block(pagemaps))
        if not said or block_bytes > said:
            return f"says that blocks have {said} bytes; the largest has {block_bytes}"
    elif declared is Schema.NONE and parents_have_blocks and version < BLOCKS_VERSION:
        return (
            f"has img_version {version}, but a parent is compressed: a CRIU that cannot decompress"
            " takes it, and never ends"
        )
    elif declared is Schema.NONE and not parents_have_blocks and version == BLOCKS_VERSION:
        return (
            f"has img_version {version}, but nothing in its chain is compressed: a CRIU that cannot"
            " decompress refuses it"
        )
    return None


def is_left(pagemap: Pagemap, mappings: Mappings | None) -> bool:
    """Return whether anything in a pagemap can still be compressed."""
    return any(
        mappings is None or any(mappings.raw.gaps(entry.vaddr, entry.end))
        for entry in pagemap.uncompressed()
    )


def _described(schema: Schema) -> str:
    return "not compressed" if schema is Schema.NONE else f"compressed ({schema.value} schema)"
