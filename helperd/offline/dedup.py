"""Free what a chain of dumps keeps and no longer needs.

The last dump says which pages there are, and the chain which level holds each. All else that the
parents have stored is superseded, by whatever level, or belongs to memory that is gone. It is
punched out of their pages files; sizes and pagemaps stay. Of a compressed entry only blocks can
go of which no page is needed.

The levels above the first can no longer be restored by themselves afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from helperd import blocks
from helperd.errors import ImageError, UsageError, describe_errno
from helperd.images.chain import ancestors
from helperd.images.directory import ImageDirectory
from helperd.images.pagemap import PE_PAYLOAD_ALIGNED, PE_PRESENT, Pagemap, PagemapEntry
from helperd.images.pagesfile import PagesFile
from helperd.images.ranges import Ranges
from helperd.images.records import os_failure
from helperd.images.sweep import sweep
from helperd.kernel.hints import set_times
from helperd.kernel.syscalls import punch_hole
from helperd.offline.check import check_directories
from helperd.offline.findings import CheckReport
from helperd.offline.switch import locked

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class DedupedFile:
    """What became of one pages file of a parent.

    Attributes:
        path: the pages file.
        pagemap: name of the pagemap that it belongs to.
        n_pages: pages with a payload in it.
        n_superseded: those that the dump does not need.
        freed_bytes: of the file that were punched, or would be; not those that were holes before.
    """

    path: str
    pagemap: str
    n_pages: int
    n_superseded: int
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class DedupReport:
    """What :func:`dedup_directory` did.

    Attributes:
        path: the directory of the last dump.
        files: one for each pages file of a parent, from the nearest parent to the first.
        dry_run: whether nothing was changed.
    """

    path: str
    files: tuple[DedupedFile, ...]
    dry_run: bool

    @property
    def freed_bytes(self) -> int:
        """Of all files."""
        return sum(file.freed_bytes for file in self.files)


def dedup_directory(
    path: str,
    *,
    dry_run: bool = False,
    holes_are_zeros: bool = False,
    threads: int = 0,
    progress: Progress | None = None,
) -> DedupReport:
    """Punch everything out of the parents of a dump that its restore does not need.

    The whole chain is checked before, and again afterwards. Interrupted at any moment, it can
    be restored as before; nothing but holes is ever written.

    Args:
        path: the directory of the last dump.
        dry_run: only say what would be freed.
        holes_are_zeros: take needed pages in holes for zero pages, not for lost ones.
        threads: that check blocks, 0 = one for each CPU.
        progress: called with (done, in all) now and then.

    Raises:
        ImageError: the chain is broken, or its files cannot be punched; nothing was changed.
        UsageError: there is no parent, or another process is changing a directory of the chain.
        NotPermitted, ResourceError: from the system.
    """

    def check() -> None:
        _require_ok(
            check_directories(
                [path], holes_are_zeros=holes_are_zeros, threads=threads, progress=progress
            )
        )

    try:
        with contextlib.ExitStack() as stack:
            directories = list(ancestors(ImageDirectory(path)))
            if not directories[0].pids:
                # With no process everything in the parents would look superseded.
                raise ImageError(f"{path}: has no pagemap of a process")
            if len(directories) == 1:
                raise UsageError(f"{path}: has no parent, so there is nothing to free")
            if not dry_run:
                for directory in directories:
                    stack.enter_context(locked(directory.path)).recover()
                directories = list(ancestors(ImageDirectory(path)))
            check()
            plans = list(plan_files(directories))
            if not dry_run:
                for _ in punch_files(plans, os.stat(path).st_uid):
                    pass
                check()
            return DedupReport(path, tuple(plan.file for plan in plans), dry_run)
    except OSError as error:
        raise os_failure(error, f"cannot deduplicate {path}") from error


def _require_ok(report: CheckReport) -> None:
    if report.problems:
        first, *others = report.problems
        more = f" (and {len(others)} more problems; see helperd check)" if others else ""
        raise ImageError(f"{first.message}{more}")


@dataclass(frozen=True, slots=True)
class FilePlan:
    """What can be punched out of a pages file.

    Attributes:
        file: the report on it.
        ranges: whole blocks of the file system.
        identity: device and inode of the file that was looked at.
    """

    file: DedupedFile
    ranges: tuple[tuple[int, int], ...]
    identity: tuple[int, int]


def plan_files(
    directories: Sequence[ImageDirectory], names: Collection[str] | None = None
) -> Iterator[FilePlan]:
    """Yield what can be punched out of each pages file of the parents.

    Args:
        directories: the dump's, and all its parents'.
        names: of the pagemaps that are looked at; None for all. Of the parents' pagemaps that the
            dump does not have nothing is needed, so all must be known.

    Raises:
        ImageError: the chain is broken.
    """
    top, *parents = directories
    needs: dict[tuple[int, str], Ranges] = {}
    for name in top.pagemap_names if names is None else names:
        for held in sweep(top, name):
            needs[held.level.depth, name] = Ranges.of(held.starts, held.ends)
    for depth, directory in enumerate(parents, start=1):
        for name in directory.pagemap_names:
            if names is not None and name not in names:
                continue
            plan = _plan(directory, name, needs.get((depth, name), Ranges()))
            if plan is not None:
                yield plan


def _plan(directory: ImageDirectory, name: str, needed: Ranges) -> FilePlan | None:
    pagemap = directory.pagemap_by_name(name)
    if not pagemap.payload_end:
        return None
    with directory.open_pages(pagemap.pages_name) as file:
        status = os.fstat(file.fd)
        block_bytes = os.fstatvfs(file.fd).f_bsize
        superseded = Ranges()
        n_superseded = 0
        aligned = any(flags & PE_PAYLOAD_ALIGNED for flags in set(pagemap.columns.flags))
        end = 0
        for entry in _present(pagemap) if aligned else _not_needed(pagemap, needed):
            if aligned:
                # Between the payloads of aligned entries nothing is stored.
                superseded.append(end, entry.offset)
                end = entry.offset + entry.payload_bytes
            for first, stop in needed.gaps(entry.vaddr, entry.end):
                n_superseded += (stop - first) >> blocks.PAGE_SHIFT
                superseded.append(*_payload(entry, first, stop))
        ranges = list(_whole_blocks(superseded, block_bytes, file.size))
        return FilePlan(
            DedupedFile(
                path=file.path,
                pagemap=name,
                n_pages=pagemap.n_pages,
                n_superseded=n_superseded,
                freed_bytes=sum(_data_bytes(file, start, stop) for start, stop in ranges),
            ),
            tuple(ranges),
            (status.st_dev, status.st_ino),
        )


def _present(pagemap: Pagemap) -> Iterator[PagemapEntry]:
    return (entry for entry in pagemap.entries if entry.present)


def _not_needed(pagemap: Pagemap, needed: Ranges) -> Iterator[PagemapEntry]:
    """Yield the present entries that are not needed as a whole."""
    columns = pagemap.columns
    ends = [
        start + blocks.pages_to_bytes(n_pages)
        for start, n_pages in zip(columns.vaddr, columns.nr_pages, strict=True)
    ]
    for row, covered in enumerate(needed.covers(columns.vaddr, ends)):
        if not covered and columns.flags[row] & PE_PRESENT:
            yield pagemap.entry(row)


def _whole_blocks(ranges: Ranges, block_bytes: int, file_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield the whole blocks of the file system in ranges of a file; its last one may be short."""
    for start, end in ranges:
        first = -(-start // block_bytes)
        last = -(-end // block_bytes) if end >= file_bytes else end // block_bytes
        if first < last:
            yield first * block_bytes, last * block_bytes


def _payload(entry: PagemapEntry, first: int, end: int) -> tuple[int, int]:
    """Return where the payload of all blocks lies whose pages are all from ``first`` to ``end``."""
    first_page = (first - entry.vaddr) >> blocks.PAGE_SHIFT
    end_page = (end - entry.vaddr) >> blocks.PAGE_SHIFT
    if entry.sizes is None:
        return (
            entry.offset + blocks.pages_to_bytes(first_page),
            entry.offset + blocks.pages_to_bytes(end_page),
        )
    first_block = -(-first_page // entry.block_pages)
    # The last block of an entry may be shorter than the others.
    last = entry.n_blocks if end_page == entry.nr_pages else end_page // entry.block_pages
    if first_block >= last:
        return entry.offset, entry.offset
    start = entry.offset + sum(entry.sizes[:first_block])
    return start, start + sum(entry.sizes[first_block:last])


def _data_bytes(file: PagesFile, start: int, end: int) -> int:
    stop = min(end, file.size)
    if not len(file.holes):
        return stop - start
    return stop - start - sum(e - s for s, e in file.holes.within(start, stop))


def punch_files(plans: Iterable[FilePlan], owner: int) -> Iterator[FilePlan]:
    """Punch out what is planned, and yield each plan when that is on disk.

    All files are opened and looked at before the first is changed: they must be whole files by
    themselves, of one name each, so that nobody else can need what goes.

    Args:
        plans: for the files.
        owner: the user that the dump belongs to, whose parents the files are to be.

    Raises:
        ImageError: a file is a link or has several, is not the one that was looked at, or is
            somebody else's; nothing was changed. Or it cannot be punched, and is whole.
        NotPermitted: a file cannot be written; likewise.
        OSError: from the system calls.
    """
    with contextlib.ExitStack() as stack:
        opened = []
        for plan in plans:
            if plan.ranges:
                fd = _open_punchable(plan, owner)
                stack.callback(os.close, fd)
                opened.append((plan, fd))
        for plan, fd in opened:
            _punch(plan, fd)
            yield plan


def _open_punchable(plan: FilePlan, owner: int) -> int:
    path = plan.file.path
    try:
        fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise ImageError(
                f"{path}: a symbolic link, so what would be punched out is another image's; copy"
                " it first"
            ) from error
        raise os_failure(error, f"cannot write {path}") from error
    try:
        _check_punchable(plan, os.fstat(fd), owner)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _check_punchable(plan: FilePlan, status: os.stat_result, owner: int) -> None:
    path = plan.file.path
    if not stat.S_ISREG(status.st_mode) or (status.st_dev, status.st_ino) != plan.identity:
        raise ImageError(f"{path}: is not the file any more that was looked at")
    if status.st_nlink > 1:
        raise ImageError(
            f"{path}: has {status.st_nlink} hard links, so other images may need what would"
            " be punched out; copy it first"
        )
    # Whoever makes a dump chooses where its parent link leads.
    if owner not in (os.geteuid(), status.st_uid):
        raise ImageError(
            f"{path}: belongs to user {status.st_uid}, the dump above it to user {owner}: nothing"
            " is punched out of somebody else's images"
        )


def _punch(plan: FilePlan, fd: int) -> None:
    before = os.fstat(fd)
    for start, end in plan.ranges:
        number = punch_hole(fd, start, end - start)
        if number:
            raise ImageError(
                f"{plan.file.path}: cannot punch holes ({describe_errno(number)}); the images are"
                " still whole. Move them to a file system that can (ext4, XFS, Btrfs, tmpfs)",
                errno=number,
            )
    os.fsync(fd)
    set_times(fd, before.st_atime_ns, before.st_mtime_ns)
