"""What the directory of the dump before has, to answer the client and to check what it sends."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from helperd.errors import MalformedRequest
from helperd.images.directory import pagemap_name
from helperd.images.entries import Entries
from helperd.images.level import read_image
from helperd.images.ranges import Ranges
from helperd.wire.page_messages import Kind

if TYPE_CHECKING:
    from helperd.wire.page_messages import ObjectId


def name_of(target: ObjectId) -> str:
    """Return the name of an object's pagemap."""
    if target.kind is Kind.TASK:
        return pagemap_name(pid=target.id)
    return pagemap_name(shmem_id=target.id)


class Parents:
    """The parent of the directory that is written; one object is looked at at a time.

    Args:
        path: the parent directory; None if there is none.
    """

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._object: ObjectId | None = None
        self._covered = Ranges()

    def have(self, target: ObjectId) -> bool:
        """Return whether the parent has a pagemap of an object."""
        return self._path is not None and os.path.exists(os.path.join(self._path, name_of(target)))

    def check(self, target: ObjectId, vaddr: int, end: int) -> None:
        """Hold a range that is said to be in the parent against the parent's pagemap.

        Raises:
            MalformedRequest: pages of it are not there.
            ImageError: the pagemap cannot be read.
        """
        if target != self._object:
            self._covered = Ranges()
            if self._path is not None and self.have(target):
                pagemap = os.path.join(self._path, name_of(target))
                # In any schema: whether an inventory says which is not known yet.
                entries = Entries(pagemap, read_image(pagemap))
                for index, start in enumerate(entries.vaddr):
                    self._covered.append(start, entries.end(index))
            self._object = target
        missing = next(self._covered.gaps(vaddr, end), None)
        if missing is not None:
            raise MalformedRequest(
                f"{target.kind.value} {target.id}: page {missing[0]:#x} is said to be in the"
                " parent, which does not have it"
            )
