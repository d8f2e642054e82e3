"""The processes of a dump, by pstree.img: whose pagemaps are restored.

CRIU writes into a directory that has images already, and removes none. After a second dump of the
same tree, as of a container that goes on running, a pagemap may be left of a process that has ended
in between. It names a pages file that is another process's now, and no restore looks at it.

Sources: CRIU's pstree.proto; archives of Podman with more than one checkpoint of a container.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from helperd.errors import ImageError
from helperd.images.fields import VARINT, walk_fields
from helperd.images.records import IMG_COMMON_MAGIC, read_records

if TYPE_CHECKING:
    from collections.abc import Iterable

PSTREE_NAME = "pstree.img"
PSTREE_MAGIC = 0x50273030
_PID = 1


def left_over(path: str, pids: Iterable[int]) -> frozenset[int]:
    """Return those of ``pids`` that are no process of the tree in the image ``path``.

    None are if the image cannot be understood, or tells of none of them: then it is about something
    else, and ``helperd check`` says what is wrong with it.
    """
    try:
        tree = {
            value
            for _, record in read_records(path, (IMG_COMMON_MAGIC, PSTREE_MAGIC))
            for number, kind, value, _ in walk_fields(record)
            if number == _PID and kind == VARINT
        }
    except (ImageError, ValueError):
        return frozenset()
    found = frozenset(pids)
    return found - tree if found & tree else frozenset()
