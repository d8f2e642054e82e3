"""Say before a restore whether images are whole.

Everything is read: the framing of the files, every pagemap entry, every block of every pages
file, and for every page of the last dump which level of its chain holds it. What cannot be found
out: bytes of a block that changed and still decode, for LZ4 blocks have no checksum.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from helperd.errors import ImageError, ImageFormatError
from helperd.images.archive import is_archive
from helperd.images.chain import ancestors
from helperd.images.dialect import blocks_in_parents, disagreement
from helperd.images.directory import ImageDirectory
from helperd.images.pagemap import Pagemap
from helperd.images.pagesfile import PagesFile
from helperd.images.pstree import PSTREE_MAGIC, PSTREE_NAME
from helperd.images.ranges import Ranges
from helperd.images.records import IMG_COMMON_MAGIC, read_records
from helperd.images.sweep import sweep
from helperd.offline.archived import ArchivedCheckpoints
from helperd.offline.check_mappings import check_mappings
from helperd.offline.check_pages import check_pages
from helperd.offline.findings import PROBLEM, WARNING, CheckReport, Finding
from helperd.offline.parallel import n_threads
from helperd.offline.switch import is_interrupted

#: Second magic of images of other kinds, by the start of their name; all seen in real dumps.
_OTHER_MAGICS = {
    "core-": 0x55053847,
    "fdinfo-": 0x56213732,
    "files.img": 0x56303138,
    "fs-": 0x51403912,
    "ids-": 0x54432030,
    "memfd.img": 0x48453499,
    "mm-": 0x57492820,
    PSTREE_NAME: PSTREE_MAGIC,
    "seccomp.img": 0x64413049,
    "timens-": 0x43114433,
}
_MM = re.compile(r"mm-([1-9][0-9]{0,18})\.img", re.ASCII)
_PAGES = re.compile(r"pages-[0-9]+\.img", re.ASCII)

Progress = Callable[[int, int], None]
Identity = tuple[int, int]


def check_directories(
    paths: Sequence[str],
    *,
    holes_are_zeros: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> CheckReport:
    """Check image directories with all their parents, each once.

    Directories that are not a parent of another one given are dumps to be restored: all their
    pages must be there, in whatever level. What parents hold besides may be deduplicated.

    Broken images are findings, not errors.

    Args:
        paths: the directories.
        holes_are_zeros: a needed page in a hole is a warning only. CRIU stores zero pages as data,
            so a hole means that a page was punched out; but some ways of copying files turn
            zero pages into holes.
        threads: that decode blocks, 0 = one for each CPU.
        progress: called with (payload bytes done, in all) now and then.

    Raises:
        UsageError: a number of threads that makes no sense.
        NotPermitted, ResourceError: the images could not be read for a reason of the system.
    """
    check = _Check(n_threads(threads), WARNING if holes_are_zeros else PROBLEM, progress)
    with contextlib.ExitStack() as stack:
        check.run(paths, stack)
    return check.report


class _Check:
    def __init__(self, threads: int, lost: str, progress: Progress | None) -> None:
        self._threads = threads
        self._lost = lost
        self._progress = progress
        self._done_bytes = self._all_bytes = 0
        self._broken: set[str] = set()
        self._archives: list[ArchivedCheckpoints] = []
        self.report = CheckReport()

    def run(self, paths: Sequence[str], stack: contextlib.ExitStack) -> None:
        started = time.monotonic()
        directories: dict[Identity, ImageDirectory] = {}
        tops: dict[Identity, ImageDirectory] = {}
        parents: set[Identity] = set()
        for path in paths:
            try:
                for top in self._tops(path, stack):
                    for level, directory in enumerate(ancestors(top)):
                        known = directories.setdefault(directory.identity, directory)
                        if level:
                            parents.add(known.identity)
                        else:
                            tops[known.identity] = known
            except ImageError as error:
                self._problem(path, str(error))
        tops = {key: top for key, top in tops.items() if key not in parents}
        self._all_bytes = sum(map(_pages_bytes, directories.values()))
        sound = {key: self._files(directory) for key, directory in directories.items()}
        needs = self._needs(top for key, top in tops.items() if sound[key])
        for key, directory in directories.items():
            self.report.directories.append(self._told(directory.path))
            if sound[key]:
                self._pagemaps(directory, needs)
        self.report.seconds = time.monotonic() - started

    def _tops(self, path: str, stack: contextlib.ExitStack) -> Iterable[ImageDirectory]:
        """Return the directory that ``path`` is, or those that are in it."""
        if not is_archive(path):
            return [ImageDirectory(path)]
        archived = stack.enter_context(ArchivedCheckpoints(path))
        self._archives.append(archived)
        return archived.tops()

    def _told(self, text: str) -> str:
        for archived in self._archives:
            text = archived.told(text)
        return text

    def _problem(self, path: str, message: str) -> None:
        path, message = self._told(path), self._told(message)
        # A broken pagemap is met by whoever comes by: once is enough.
        if message not in self._broken:
            self._broken.add(message)
            self.report.findings.append(Finding(PROBLEM, path, message))

    def _warning(self, path: str, message: str) -> None:
        self.report.findings.append(Finding(WARNING, self._told(path), self._told(message)))

    def _files(self, directory: ImageDirectory) -> bool:
        """Check all but the pagemaps; return whether those can be looked at."""
        if is_interrupted(directory.path):
            self._warning(
                directory.path,
                f"{directory.path}: a conversion was interrupted here, or is under way; the images"
                " are as they were before it or after it; run it again to clean up",
            )
        for pid in sorted(directory.left_over):
            self._warning(
                directory.path,
                f"{directory.path}: pagemap-{pid}.img was left by an earlier dump into this"
                " directory, as pstree.img has no such process; nobody restores it",
            )
        names = directory.names
        for name in names:
            self._other_image(directory.file(name), name)
            found = _MM.fullmatch(name)
            if found and not directory.has_pagemap(f"pagemap-{found[1]}.img"):
                self._problem(
                    directory.path,
                    f"{directory.path}: has {name} but no pagemap-{found[1]}.img; if a page server"
                    " was used, its files are missing here",
                )
        try:
            _ = directory.schema
        except ImageError as error:
            self._problem(directory.path, str(error))
            return False
        if directory.inventory is None:
            if not directory.pids and not directory.shmem_ids:
                self._problem(directory.path, f"{directory.path}: not an image directory")
                return False
            self._warning(
                directory.path,
                f"{directory.path}: has no inventory.img; taken as its pagemaps are",
            )
        return True

    def _other_image(self, path: str, name: str) -> None:
        for start, magic in _OTHER_MAGICS.items():
            if name == start or (start.endswith("-") and name.startswith(start)):
                if not name.endswith(".img"):
                    return
                try:
                    for _ in read_records(path, (IMG_COMMON_MAGIC, magic)):
                        pass
                except ImageError as error:
                    self._problem(path, str(error))

    def _needs(self, tops: Iterable[ImageDirectory]) -> dict[tuple[Identity, str], Ranges]:
        """Return the addresses that the dumps need, for each directory and pagemap."""
        found: dict[tuple[Identity, str], Ranges] = {}
        for top in tops:
            for name in top.pagemap_names:
                try:
                    for held in sweep(top, name):
                        key = held.level.directory.identity, name
                        needs = Ranges.of(held.starts, held.ends)
                        known = found.get(key)
                        found[key] = needs if known is None else Ranges(sorted((*known, *needs)))
                except ImageError as error:
                    self._problem(top.file(name), str(error))
        return found

    def _pagemaps(
        self, directory: ImageDirectory, needs: dict[tuple[Identity, str], Ranges]
    ) -> None:
        owners: dict[str, str] = {}
        all_read = True
        pagemaps = []
        for name in directory.pagemap_names:
            try:
                pagemap = directory.pagemap_by_name(name)
                pagemaps.append(pagemap)
                self._add(check_mappings(directory, name, pagemap))
                pages_name = pagemap.pages_name
                owner = owners.setdefault(pages_name, name)
                if owner != name:
                    raise ImageFormatError(
                        f"{directory.path}: {owner} and {name} both name {pages_name}"
                    )
                self.report.n_pagemaps += 1
                if pagemap.payload_end or directory.has(pages_name):
                    needed = needs.get((directory.identity, name), Ranges())
                    with directory.open_pages(pages_name) as file:
                        self._pages(pagemap, file, needed)
            except ImageError as error:
                all_read = False
                self._problem(directory.file(name), str(error))
        if all_read:
            self._inventory(directory, pagemaps)
        for name in directory.names if all_read else ():
            if _PAGES.fullmatch(name) and name not in owners:
                path = directory.file(name)
                self._warning(path, f"{path}: no pagemap names it")

    def _inventory(self, directory: ImageDirectory, pagemaps: list[Pagemap]) -> None:
        inventory = directory.inventory
        if inventory is None:
            if any(pagemap.schemas for pagemap in pagemaps):
                self._problem(
                    directory.path,
                    f"{directory.path}: has no inventory.img that says its pages are compressed;"
                    " put the dumper's images beside, then helperd complete lets it say so",
                )
            return
        try:
            wrong = disagreement(
                directory, pagemaps, parents_have_blocks=blocks_in_parents(directory)
            )
        except ImageError as error:
            self._problem(directory.path, str(error))
            return
        if wrong is not None:
            self._problem(
                inventory.path, f"{inventory.path}: {wrong}; helperd complete sets it right"
            )

    def _pages(self, pagemap: Pagemap, file: PagesFile, needed: Ranges) -> None:
        report = self.report
        report.n_pages += pagemap.n_pages
        report.n_blocks += pagemap.n_blocks

        def advance(payload: int) -> None:
            report.payload_bytes += payload
            self._done_bytes += payload
            if self._progress is not None:
                self._progress(min(self._done_bytes, self._all_bytes), self._all_bytes)

        self._add(
            check_pages(
                pagemap, file, needed, lost=self._lost, threads=self._threads, advance=advance
            )
        )

    def _add(self, findings: Iterable[Finding]) -> None:
        self.report.findings += [
            replace(found, path=self._told(found.path), message=self._told(found.message))
            for found in findings
        ]


def _pages_bytes(directory: ImageDirectory) -> int:
    total = 0
    for name in directory.names:
        if _PAGES.fullmatch(name):
            try:
                total += os.stat(directory.file(name)).st_size
            except OSError:
                continue  # whoever opens it will say so
    return total
