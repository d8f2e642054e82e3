"""Let the inventory of a directory say what its pagemaps are.

Where pages have come through a page server, the dumper writes the inventory, and knows nothing of
what becomes of the pages; so it says that they are not compressed. CRIU goes by what it says.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

from helperd.blocks import pages_to_bytes
from helperd.images.dialect import (
    blocks_in_parents,
    disagreement,
    found_schema,
    largest_block,
)
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import INVENTORY_NAME, Schema
from helperd.images.records import os_failure
from helperd.offline.check_mappings import check_mappings
from helperd.offline.compress import compress_directory
from helperd.offline.convert_directory import check_pagemaps, require_inventory, write_inventory
from helperd.offline.switch import locked


@dataclass(frozen=True, slots=True)
class CompleteReport:
    """What became of a directory.

    Attributes:
        path: of it.
        schema: of its pagemaps.
        changed: whether anything had to be done.
    """

    path: str
    schema: Schema
    changed: bool


def complete_directory(path: str) -> CompleteReport:
    """Let the inventory of a directory say what its pagemaps are, and cut blocks at mappings.

    Where a mapping ends the dumper's images say; a page server has compressed without them. Blocks
    that no CRIU would restore are compressed again, with all others of the directory.

    Raises:
        UsageError: another process is changing the directory.
        ImageError: there is no inventory, a pagemap is broken, or they contradict each other.
        ResourceError, NotPermitted: from the system.
    """
    report = _correct_inventory(path)
    directory = ImageDirectory(path)
    pagemaps = check_pagemaps(directory)
    if any(check_mappings(directory, name, pagemap) for name, pagemap in pagemaps.items()):
        region_bytes = pages_to_bytes(largest_block(pagemaps.values()))
        compress_directory(
            path, in_place=True, region_bytes=region_bytes, schema=report.schema, force=True
        )
        return replace(report, changed=True)
    return report


def _correct_inventory(path: str) -> CompleteReport:
    try:
        with locked(path) as held:
            held.recover()
            directory = ImageDirectory(path)
            inventory = require_inventory(directory)
            pagemaps = check_pagemaps(directory)
            schema = found_schema(inventory, pagemaps.values())
            above = blocks_in_parents(directory)
            wrong = disagreement(directory, pagemaps.values(), parents_have_blocks=above)
            if wrong is None:
                return CompleteReport(path, schema, changed=False)
            with held.replacing() as switch:
                converted = inventory.converted(
                    schema,
                    region_pages=largest_block(pagemaps.values()),
                    blocks_in_parents=above,
                )
                write_inventory(converted, switch.stage(INVENTORY_NAME))
                switch.commit(backups=False)
            # Read again, as a restore would.
            check_pagemaps(ImageDirectory(path))
            return CompleteReport(path, schema, changed=True)
    except OSError as error:
        where = os.path.join(path, INVENTORY_NAME)
        raise os_failure(error, f"cannot change {where}") from error
