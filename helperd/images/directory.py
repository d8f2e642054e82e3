"""An image directory: its inventory, the pagemaps in it, and the way to its parent."""

from __future__ import annotations

import functools
import os
import re

from helperd.errors import ImageError, UsageError
from helperd.images.inventory import INVENTORY_NAME, Inventory, Schema, read_inventory
from helperd.images.pagemap import Pagemap, read_pagemap
from helperd.images.pagesfile import PagesFile
from helperd.images.pstree import PSTREE_NAME, left_over
from helperd.images.records import os_failure

#: Name of the symlink that leads to the directory of the pre-dump before.
PARENT_NAME = "parent"
_MOST_DIRECTORIES = 255

_PROCESS_PAGEMAP = re.compile(r"pagemap-(0|[1-9][0-9]*)\.img", re.ASCII)
_SHMEM_PAGEMAP = re.compile(r"pagemap-shmem-(0|[1-9][0-9]*)\.img", re.ASCII)


def pagemap_name(*, pid: int | None = None, shmem_id: int | None = None) -> str:
    """Return the name of the pagemap of a process or of a shared memory object.

    Raises:
        UsageError: not exactly one of the two was given.
    """
    if (pid is None) == (shmem_id is None):
        raise UsageError("a pagemap belongs to either a pid or a shmem_id")
    return f"pagemap-{pid}.img" if shmem_id is None else f"pagemap-shmem-{shmem_id}.img"


def chain_paths(path: str) -> list[str]:
    """Return the real paths of a directory and of all its parents, as far as there are any."""
    found: list[str] = []
    while os.path.isdir(path) and len(found) < _MOST_DIRECTORIES:
        real = os.path.realpath(path)
        if real in found:
            break
        found.append(real)
        path = os.path.join(real, PARENT_NAME)
    return found


class ImageDirectory:
    """One directory of images, as a dump, a pre-dump or a page server wrote it.

    Attributes:
        path: the directory.
        identity: device and inode of the directory, the same for every path to it.
    """

    def __init__(self, path: str) -> None:
        """Look at the directory ``path``.

        Raises:
            ImageError: it does not exist or is not a directory.
        """
        self.path = path
        try:
            names = os.listdir(path)
            status = os.stat(path)
        except OSError as error:
            raise os_failure(error, f"cannot list the image directory {path}") from error
        except ValueError as error:  # a NUL in the name
            raise ImageError(f"cannot list {path!r}: {error}") from error
        self.identity = (status.st_dev, status.st_ino)
        self._names = frozenset(names)
        self._last: tuple[str, Pagemap] | None = None
        self._parent: ImageDirectory | None = None

    def __repr__(self) -> str:
        return f"ImageDirectory({self.path!r})"

    @functools.cached_property
    def inventory(self) -> Inventory | None:
        """The inventory, None where there is none.

        Raises:
            ImageError: it is there but cannot be read.
        """
        if INVENTORY_NAME not in self._names:
            return None
        return read_inventory(self.file(INVENTORY_NAME))

    @property
    def schema(self) -> Schema:
        """What the inventory says of the pagemaps; NONE where there is none.

        The pagemaps' own entries decide how they are read: :attr:`Pagemap.schemas`.

        Raises:
            ImageError: the inventory cannot be read, or is of an unknown kind.
        """
        return Schema.NONE if self.inventory is None else self.inventory.schema

    @property
    def pids(self) -> list[int]:
        """Processes of the dump that have a pagemap here, ascending."""
        return [pid for pid in self._ids(_PROCESS_PAGEMAP) if pid not in self.left_over]

    @functools.cached_property
    def left_over(self) -> frozenset[int]:
        """Processes that have a pagemap here, but are not of the dump: of an earlier one."""
        if PSTREE_NAME not in self._names:
            return frozenset()
        return left_over(self.file(PSTREE_NAME), self._ids(_PROCESS_PAGEMAP))

    @property
    def shmem_ids(self) -> list[int]:
        """Shared memory objects that have a pagemap here, ascending."""
        return self._ids(_SHMEM_PAGEMAP)

    def _ids(self, pattern: re.Pattern[str]) -> list[int]:
        # A name with more digits than any id is not one of CRIU's; int() would refuse the worst.
        found = (pattern.fullmatch(name) for name in self._names if len(name) < 64)
        return sorted(int(match[1]) for match in found if match)

    def file(self, name: str) -> str:
        """Return the path of a file of this directory."""
        return os.path.join(self.path, name)

    def open_pages(self, name: str) -> PagesFile:
        """Open the pages file ``name``.

        Raises:
            ImageError: it is missing or cannot be read.
        """
        return PagesFile(self.file(name))

    @property
    def names(self) -> list[str]:
        """Names of all that is in the directory, sorted."""
        return sorted(self._names)

    @property
    def pagemap_names(self) -> list[str]:
        """Names of all pagemaps: of processes, then of shared memory, each by id."""
        names = [pagemap_name(pid=pid) for pid in self.pids]
        return names + [pagemap_name(shmem_id=shmem_id) for shmem_id in self.shmem_ids]

    def has(self, name: str) -> bool:
        """Return whether anything of this name is here."""
        return name in self._names

    def has_pagemap(self, name: str) -> bool:
        """Return whether a pagemap of this name (see :func:`pagemap_name`) is here."""
        return name in self._names

    def pagemap(self, *, pid: int | None = None, shmem_id: int | None = None) -> Pagemap:
        """Read and check a pagemap.

        Raises:
            ImageError: it is not here, or broken.
        """
        return self.pagemap_by_name(pagemap_name(pid=pid, shmem_id=shmem_id))

    def pagemap_by_name(self, name: str) -> Pagemap:
        """Read and check the pagemap file ``name``; raises like :meth:`pagemap`.

        The last one is kept: most commands come by twice.
        """
        if self._last is None or self._last[0] != name:
            self._last = None
            self._last = name, read_pagemap(self.file(name))
        return self._last[1]

    def parent(self) -> ImageDirectory | None:
        """Return the parent directory by its real path, None when there is no parent link.

        Once found it is kept, with what it has read.

        Raises:
            ImageError: the link leads nowhere.
        """
        if PARENT_NAME not in self._names or self._parent is not None:
            return self._parent
        link = self.file(PARENT_NAME)
        try:
            # The real path: links through links would reach the kernel's limit of 40.
            path = os.path.realpath(link, strict=True)
        except OSError as error:
            raise os_failure(error, f"cannot follow the parent link {link}") from error
        self._parent = ImageDirectory(path)
        return self._parent
