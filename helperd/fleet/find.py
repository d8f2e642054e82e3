"""The checkpoints below a folder: each chain of dumps is one, so is each archive."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from helperd.errors import HelperdError, ImageError
from helperd.images.chain import ancestors
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import INVENTORY_NAME
from helperd.images.records import os_failure

#: What an archive's name ends with.
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A dump with its parents, or an archive.

    Attributes:
        path: of the last dump, or of the archive.
        levels: the directories of the chain, the first pre-dump first; none for an archive.
        n_bytes: of all its files.
        trouble: why nothing can be done with it; empty if something can.
    """

    path: str
    levels: tuple[str, ...]
    n_bytes: int
    trouble: str = ""


def find_checkpoints(folder: str) -> list[Checkpoint]:
    """Return the checkpoints below a folder, by path. Links to other folders are not followed.

    A chain that leads out of the folder is listed with its trouble: what is not below the folder
    was not asked for.

    Raises:
        ImageError: the folder cannot be read.
    """
    root = os.path.realpath(folder)
    directories: dict[tuple[int, int], ImageDirectory] = {}
    found: list[Checkpoint] = []
    for path, names in _walk(folder):
        if INVENTORY_NAME in names or any(name.startswith("pagemap-") for name in names):
            try:
                directory = ImageDirectory(path)
            except HelperdError as error:
                found.append(Checkpoint(path, (), 0, str(error)))
                continue
            directories[directory.identity] = directory
        for name in names:
            file = os.path.join(path, name)
            if name.endswith(ARCHIVE_SUFFIXES) and not name.startswith("."):
                status = os.lstat(file)
                if stat.S_ISREG(status.st_mode):
                    found.append(Checkpoint(file, (), status.st_size))
    parents: set[tuple[int, int]] = set()
    chains: list[tuple[ImageDirectory, tuple[str, ...], str]] = []
    for directory in directories.values():
        levels, trouble = _chain(directory, root)
        parents.update(identity for identity, _ in levels[1:])
        chains.append((directory, tuple(path for _, path in reversed(levels)), trouble))
    for directory, paths, trouble in chains:
        if directory.identity not in parents:
            n_bytes = sum(map(_bytes_of, paths))
            found.append(Checkpoint(directory.path, paths, n_bytes, trouble))
    return sorted(found, key=lambda checkpoint: checkpoint.path)


def in_shard(path: str, index: int, count: int) -> bool:
    """Return whether a checkpoint belongs to part ``index`` (from 0 on) of ``count``.

    That depends on the path alone: every machine comes to the same answer.
    """
    return zlib.crc32(os.fsencode(path)) % count == index


def _walk(folder: str) -> Iterator[tuple[str, list[str]]]:
    def fail(error: OSError) -> None:
        if error.filename == folder:
            raise os_failure(error, f"cannot list {folder}") from error

    if not os.path.isdir(folder):
        raise ImageError(f"{folder}: not a folder")
    for path, folders, names in os.walk(folder, onerror=fail):
        # What an interrupted run has left is no checkpoint.
        folders[:] = sorted(name for name in folders if not name.startswith(".helperd"))
        yield path, sorted(names)


def _chain(directory: ImageDirectory, root: str) -> tuple[list[tuple[tuple[int, int], str]], str]:
    """Return (identity, path) of a directory and its parents, and what is wrong with them."""
    levels: list[tuple[tuple[int, int], str]] = []
    try:
        for level in ancestors(directory):
            path = os.path.realpath(level.path)
            if os.path.commonpath((path, root)) != root:
                return levels, f"{directory.path}: its parent {path} lies outside of {root}"
            levels.append((level.identity, level.path))
    except HelperdError as error:
        return levels or [(directory.identity, directory.path)], str(error)
    return levels, ""


def _bytes_of(path: str) -> int:
    try:
        with os.scandir(path) as entries:
            return sum(entry.stat(follow_symlinks=False).st_size for entry in entries)
    except OSError:
        return 0
