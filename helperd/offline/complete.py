"""Make a directory whole whose pages have come through a page server.

The dumper writes the inventory, and knows nothing of what becomes of the pages; so it says that
they are not compressed. Nothing may be restored before it says what the pagemaps are.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from helperd.images.directory import ImageDirectory
from helperd.images.inventory import INVENTORY_NAME, Schema
from helperd.images.received import ReceivedDirectory
from helperd.images.records import os_failure
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
    """Let the inventory of a directory say what its pagemaps are.

    Raises:
        UsageError: another process is changing the directory.
        ImageError: there is no inventory, a pagemap is broken, or they contradict each other.
        ResourceError, NotPermitted: from the system.
    """
    try:
        with locked(path) as held:
            held.recover()
            directory = ReceivedDirectory(path)
            inventory = require_inventory(directory)
            pagemaps = check_pagemaps(directory)
            schema = directory.schema
            if schema is Schema.NONE or inventory.schema is schema:
                return CompleteReport(path, schema, changed=False)
            region_pages = max(
                (entry.region_pages for it in pagemaps.values() for entry in it.entries), default=0
            )
            with held.replacing() as switch:
                converted = inventory.converted(schema, region_pages=region_pages)
                write_inventory(converted, switch.stage(INVENTORY_NAME))
                switch.commit(backups=False)
            # Read again, as a restore would.
            check_pagemaps(ImageDirectory(path))
            return CompleteReport(path, schema, changed=True)
    except OSError as error:
        where = os.path.join(path, INVENTORY_NAME)
        raise os_failure(error, f"cannot change {where}") from error
