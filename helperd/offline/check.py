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
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from helperd import blocks
from helperd.codec.chunk import Chunk
from helperd.errors import CorruptBlock, ImageError, ImageFormatError
from helperd.images.archive import is_archive
from helperd.images.chain import ancestors, walk
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from helperd.images.pagemap import Pagemap, PagemapEntry, check_pages_size
from helperd.images.pagesfile import Block, PagesFile, blocks_of, plan_payload, zero_lz4_blocks
from helperd.images.ranges import Ranges
from helperd.images.records import IMG_COMMON_MAGIC, read_records
from helperd.offline.archived import ArchivedCheckpoints
from helperd.offline.parallel import n_threads, ordered
from helperd.offline.switch import is_interrupted

#: The images cannot be restored from, or not to what was dumped.
PROBLEM = "problem"
#: Odd, but no page of the dumps that were checked depends on it.
WARNING = "warning"

#: Second magic of images of other kinds, by the start of their name; all seen in real dumps.
_OTHER_MAGICS = {
    "core-": 0x55053847,
    "fdinfo-": 0x56213732,
    "files.img": 0x56303138,
    "fs-": 0x51403912,
    "ids-": 0x54432030,
    "memfd.img": 0x48453499,
    "mm-": 0x57492820,
    "pstree.img": 0x50273030,
    "seccomp.img": 0x64413049,
    "timens-": 0x43114433,
}
_MM = re.compile(r"mm-([1-9][0-9]{0,18})\.img", re.ASCII)
_PAGES = re.compile(r"pages-[0-9]+\.img", re.ASCII)

# Pages of one file in the same trouble are told in so many lines at most.
_MAX_LINES = 20

Progress = Callable[[int, int], None]
Identity = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes:
        severity: PROBLEM or WARNING.
        path: the file or directory.
        message: what is wrong, in one line that names the path.
        vaddr: address of the first page concerned, None where it is not about pages.
        n_pages: how many are.
    """

    severity: str
    path: str
    message: str
    vaddr: int | None = None
    n_pages: int = 0


@dataclass(slots=True)
class CheckReport:
    """What :func:`check_directories` found.

    Attributes:
        directories: paths of all that were checked, parents included.
        findings: in the order of the directories.
        n_pagemaps, n_pages, n_blocks: that were read; pages with a payload.
        payload_bytes: read from pages files, holes left out.
        seconds: that it took.
    """

    directories: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    n_pagemaps: int = 0
    n_pages: int = 0
    n_blocks: int = 0
    payload_bytes: int = 0
    seconds: float = 0.0

    @property
    def problems(self) -> list[Finding]:
        """The findings that make a restore impossible or wrong."""
        return [finding for finding in self.findings if finding.severity == PROBLEM]

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems


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
            schema = directory.schema
        except ImageError as error:
            self._problem(directory.path, str(error))
            return False
        if directory.inventory is None:
            if not directory.pids and not directory.shmem_ids:
                self._problem(directory.path, f"{directory.path}: not an image directory")
                return False
            self._warning(
                directory.path,
                f"{directory.path}: has no inventory.img; taken as {_described(schema)}",
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
        runs: dict[tuple[Identity, str], list[tuple[int, int]]] = defaultdict(list)
        for top in tops:
            for name in top.pagemap_names:
                try:
                    for run in walk(top, name):
                        runs[run.level.directory.identity, name].append((run.first, run.end))
                except ImageError as error:
                    self._problem(top.file(name), str(error))
        return {key: Ranges(sorted(pairs)) for key, pairs in runs.items()}

    def _pagemaps(
        self, directory: ImageDirectory, needs: dict[tuple[Identity, str], Ranges]
    ) -> None:
        owners: dict[str, str] = {}
        all_read = True
        for name in directory.pagemap_names:
            try:
                pagemap = directory.pagemap_by_name(name)
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
        for name in directory.names if all_read else ():
            if _PAGES.fullmatch(name) and name not in owners:
                path = directory.file(name)
                self._warning(path, f"{path}: no pagemap names it")

    def _pages(self, pagemap: Pagemap, file: PagesFile, needed: Ranges) -> None:
        check_pages_size(pagemap, file.path, file.size, exact=True)
        troubles = _Troubles(file, needed, self._lost)
        entries = list(_data_parts(pagemap.entries, file, troubles))
        self.report.n_pages += pagemap.n_pages
        self.report.n_blocks += sum(entry.n_blocks for entry in pagemap.entries if entry.present)

        def look(chunk: Chunk) -> tuple[Chunk, list[_Trouble]]:
            return chunk, list(_look(chunk, troubles))

        for chunk, found in ordered(look, plan_payload(entries), self._threads):
            for trouble in found:
                troubles.add(trouble)
            self.report.payload_bytes += chunk.payload
            self._done_bytes += chunk.payload
            if self._progress is not None:
                self._progress(min(self._done_bytes, self._all_bytes), self._all_bytes)
        self.report.findings += [
            replace(found, path=self._told(found.path), message=self._told(found.message))
            for found in troubles.findings()
        ]


@dataclass(slots=True)
class _Trouble:
    """Neighbouring pages that have the same fault."""

    severity: str
    what: str
    vaddr: int
    n_pages: int
    detail: str = ""


class _Troubles:
    """The troubles of a pages file; neighbours become one."""

    def __init__(self, file: PagesFile, needed: Ranges, lost: str) -> None:
        self._path = file.path
        self.file = file
        self.needed = needed
        self._lost = lost
        self._found: list[_Trouble] = []
        self._n_more = 0

    def lost(self, block: Block) -> Iterator[_Trouble]:
        """Yield the pages of a block in a hole that are needed."""
        end = block.vaddr + blocks.pages_to_bytes(block.n_pages)
        for start, stop in self.needed.within(block.vaddr, end):
            yield _Trouble(self._lost, _IN_HOLE, start, (stop - start) >> blocks.PAGE_SHIFT)

    def add(self, trouble: _Trouble) -> None:
        last = self._found[-1] if self._found else None
        if (
            last is not None
            and (last.severity, last.what) == (trouble.severity, trouble.what)
            and last.vaddr + blocks.pages_to_bytes(last.n_pages) == trouble.vaddr
        ):
            last.n_pages += trouble.n_pages
        elif len(self._found) < _MAX_LINES or (
            # Rather a problem more than a problem hidden behind warnings.
            trouble.severity == PROBLEM and not any(t.severity == PROBLEM for t in self._found)
        ):
            self._found.append(trouble)
        else:
            self._n_more += trouble.n_pages

    def findings(self) -> Iterator[Finding]:
        severity = PROBLEM if any(t.severity == PROBLEM for t in self._found) else WARNING
        for trouble in self._found:
            detail = f"; the first: {trouble.detail}" if trouble.detail else ""
            message = (
                f"{self._path}: {trouble.n_pages} pages from {trouble.vaddr:#x} on"
                f" {trouble.what}{detail}"
            )
            yield Finding(trouble.severity, self._path, message, trouble.vaddr, trouble.n_pages)
        if self._n_more:
            message = f"{self._path}: {self._n_more} more pages are like these"
            yield Finding(severity, self._path, message)


_IN_HOLE = (
    "are needed but lie in holes of the file: punched out and lost, or zero pages that a copying"
    " tool left out (then see --holes-are-zeros)"
)
_CORRUPT = "do not decode"
_CORRUPT_UNUSED = "do not decode, but are superseded"


def _look(chunk: Chunk, troubles: _Troubles) -> Iterator[_Trouble]:
    """Read and decode a chunk; yield what is wrong with it. In any thread."""
    file = troubles.file
    try:
        decoded = file.decode(chunk)
    except CorruptBlock:
        yield from _look_closely(chunk, troubles)
        return
    were_holes = {page for page, _ in zero_lz4_blocks(chunk, decoded.live)}
    if not were_holes and not file.in_hole(chunk.offset, chunk.payload):
        return
    for block in blocks_of(chunk):
        if block.page in were_holes or file.in_hole(block.offset, block.size):
            yield from troubles.lost(block)


def _look_closely(chunk: Chunk, troubles: _Troubles) -> Iterator[_Trouble]:
    for block, content in troubles.file.decode_blocks(chunk):
        in_hole = troubles.file.in_hole(block.offset, block.size)
        if isinstance(content, CorruptBlock):
            end = block.vaddr + blocks.pages_to_bytes(block.n_pages)
            is_needed = troubles.needed.overlaps(block.vaddr, end)
            if in_hole and not is_needed:
                continue  # punched out, as it should be
            yield _Trouble(
                PROBLEM if is_needed else WARNING,
                _CORRUPT if is_needed else _CORRUPT_UNUSED,
                block.vaddr,
                block.n_pages,
                str(content),
            )
        elif in_hole:
            yield from troubles.lost(block)


def _data_parts(
    entries: Iterable[PagemapEntry], file: PagesFile, troubles: _Troubles
) -> Iterator[PagemapEntry]:
    """Yield the entries, uncompressed ones without their pages in holes, which need no reading."""
    for entry in entries:
        if not entry.present or entry.sizes is not None or not len(file.holes):
            yield entry
            continue
        holes = Ranges(
            (start >> blocks.PAGE_SHIFT, -(-end >> blocks.PAGE_SHIFT))
            for start, end in (
                (start - entry.offset, end - entry.offset)
                for start, end in file.holes.within(
                    entry.offset, entry.offset + entry.payload_bytes
                )
            )
        )
        for first, end in holes:
            lost = Block(0, entry.page_address(first), end - first, 0, 0)
            for trouble in troubles.lost(lost):
                troubles.add(trouble)
        for first, end in holes.gaps(0, entry.nr_pages):
            yield entry.part(first, end)


def _described(schema: Schema) -> str:
    return "not compressed" if schema is Schema.NONE else f"compressed ({schema.value} schema)"


def _pages_bytes(directory: ImageDirectory) -> int:
    total = 0
    for name in directory.names:
        if _PAGES.fullmatch(name):
            try:
                total += os.stat(directory.file(name)).st_size
            except OSError:
                continue  # whoever opens it will say so
    return total
