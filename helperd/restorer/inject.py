"""Restore the memory of one process of an image directory into a running process."""

from __future__ import annotations

import os
import time
from array import array
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helperd.blocks import MAX_REGION_PAGES, PAGE_SIZE, ZERO_SIZE, pages_to_bytes
from helperd.engine.release import Release
from helperd.images.chain import resolve
from helperd.images.directory import ImageDirectory
from helperd.images.extent import Extent, read_pages
from helperd.modes import ANSWERED
from helperd.reports.log import Log
from helperd.restorer.helper import Helper, open_pages
from helperd.restorer.shape import RequestShaper

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from helperd.wire.pipe import Request

#: Pages of a request, 64 MiB: often enough to show progress, seldom enough to cost nothing.
REQUEST_PAGES = (64 << 20) // PAGE_SIZE
#: The helpers' option that takes payload in holes for zeros.
HOLES_ARE_ZEROS = "--holes-are-zeros"
#: Helpers running at the same time; a chain needs one for each level.
_MAX_HELPERS = 8
#: With auto-dedup the image lives until the answer, so a request adds its size to the peak.
_DEDUP_REQUEST_PAGES = (16 << 20) // PAGE_SIZE


@dataclass
class InjectReport:
    """What an injection did.

    Attributes:
        pages: pages restored, ``memory_bytes`` of them.
        zero_blocks, raw_blocks, lz4_blocks: blocks sent, by how they are stored.
        payload_bytes: their bytes in the pages images.
        answered_bytes: bytes of the pages that were not all zero.
        requests: requests sent.
        seconds: of wall time, the start of the helpers included.
        helper_peak_rss_kib: the largest resident memory of any helper process.
        warnings: lines that the helpers had to say.
    """

    pages: int = 0
    zero_blocks: int = 0
    raw_blocks: int = 0
    lz4_blocks: int = 0
    payload_bytes: int = 0
    answered_bytes: int = 0
    requests: int = 0
    seconds: float = 0.0
    helper_peak_rss_kib: int = 0
    warnings: str = ""

    @property
    def memory_bytes(self) -> int:
        """Bytes of the restored pages."""
        return pages_to_bytes(self.pages)


def inject(
    directory: str | os.PathLike[str],
    pid: int,
    *,
    image_pid: int | None = None,
    shmem_id: int | None = None,
    base: int = 0,
    auto_dedup: bool = False,
    progress: Callable[[int, int], None] | None = None,
    helper_options: Sequence[str] = (),
) -> InjectReport:
    """Write the memory that an image directory holds of a process into process ``pid``.

    The addresses must be mapped there already. Every page comes from the level of the chain of
    parents that holds its last content; each pages image is served by a helper of its own.

    Args:
        directory: the images of the last dump.
        pid: the process to write to.
        image_pid: the process in the images, if it had another pid.
        shmem_id: restore this shared memory object instead of a process's memory ...
        base: ... which is mapped at this address in ``pid``.
        auto_dedup: punch what has been restored out of the images, parents included. They are
            destroyed by it, and memory in tmpfs does not hold everything twice.
        progress: called with (pages done, pages in all) now and then.
        helper_options: further options for the helpers.

    Raises:
        ImageError: the images are missing, broken or incomplete.
        HelperFailed: a helper refused or failed; its exit code says why.
    """
    images = ImageDirectory(os.fspath(directory))
    if shmem_id is None and image_pid is None:
        image_pid = pid
    total = sum(images.pagemap(pid=image_pid, shmem_id=shmem_id).columns.nr_pages)
    started = time.monotonic()
    job = _Injection(pid, base, total, progress, auto_dedup, helper_options)
    with job as injection:
        for extent in resolve(images, pid=image_pid, shmem_id=shmem_id):
            injection.add(extent)
        injection.finish()
    report = injection.report
    report.seconds = time.monotonic() - started
    return report


class _Source:
    """A pages image with its helper and the request that is being shaped for it."""

    def __init__(self, helper: Helper, shaper: RequestShaper) -> None:
        self.helper = helper
        self.shaper = shaper


class _Injection:
    """The state of one injection: a source for each pages image in use, and the report."""

    def __init__(
        self,
        pid: int,
        base: int,
        total: int,
        progress: Callable[[int, int], None] | None,
        auto_dedup: bool,
        options: Sequence[str],
    ) -> None:
        self._pid = pid
        self._base = base
        self._total = total
        self._progress = progress
        self._auto_dedup = auto_dedup
        self._options = options
        # Payloads (offset, end) of blocks that were decoded here, by pages image.
        self._partial: dict[str, set[tuple[int, int]]] = {}
        self._sources: dict[str, _Source] = {}
        self._scratch: _Scratch | None = None
        self.report = InjectReport()

    def __enter__(self) -> _Injection:
        return self

    def __exit__(self, *exception: object) -> None:
        with ExitStack() as stack:
            for source in self._sources.values():
                stack.callback(source.helper.close)
            if self._scratch is not None:
                stack.callback(self._scratch.close)

    def add(self, extent: Extent) -> None:
        """Restore an extent, now or with those that follow it."""
        if extent.partial:
            self._add_partial(extent)
            return
        source = self._source(extent.pages_path)
        self._send(source.helper, source.shaper.add(extent))

    def finish(self) -> None:
        """Restore what is left and see that all helpers end well."""
        while self._sources:
            self._retire(next(iter(self._sources)))
        if self._scratch is not None:
            self._flush_scratch(self._scratch)
            self._end(self._scratch.helper)
        if self._auto_dedup:
            for path, payloads in self._partial.items():
                self._punch(path, payloads)

    def _punch(self, path: str, payloads: set[tuple[int, int]]) -> None:
        """Give back the blocks that no helper knows to be consumed."""
        fd = open_pages(path, writable=True)
        try:
            release = Release(fd, ANSWERED, Log())
            for offset, end in payloads:
                release.answered(offset, end)
            release.finish()
        finally:
            os.close(fd)

    def _source(self, path: str) -> _Source:
        # Popped and put back: the first of the dictionary is the one unused for longest.
        source = self._sources.pop(path, None)
        if source is None:
            if len(self._sources) == _MAX_HELPERS:
                self._retire(next(iter(self._sources)))
            helper = Helper(
                path, target=self._pid, auto_dedup=self._auto_dedup, options=self._options
            )
            max_pages = _DEDUP_REQUEST_PAGES if self._auto_dedup else REQUEST_PAGES
            shaper = RequestShaper(self._pid, base=self._base, max_pages=max_pages)
            source = _Source(helper, shaper)
        self._sources[path] = source
        return source

    def _retire(self, path: str) -> None:
        source = self._sources[path]
        self._send(source.helper, source.shaper.flush())
        self._end(source.helper)
        del self._sources[path]

    def _add_partial(self, extent: Extent) -> None:
        """Restore a part of a region's block.

        The protocol knows whole blocks only, and the rest of this one was superseded. So it is
        decoded here and its wanted pages go through a helper as raw blocks.
        """
        if self._scratch is None:
            self._scratch = _Scratch(self._pid, self._base, self._options)
        holes_are_zeros = HOLES_ARE_ZEROS in self._options
        (_, content) = next(read_pages([extent], holes_are_zeros=holes_are_zeros))
        payload = (extent.offset, extent.offset + extent.payload_bytes)
        self._partial.setdefault(extent.pages_path, set()).add(payload)
        if not self._scratch.has_room(extent.n_pages):
            self._flush_scratch(self._scratch)
        self._send(self._scratch.helper, self._scratch.add(extent.vaddr, content))

    def _flush_scratch(self, scratch: _Scratch) -> None:
        self._send(scratch.helper, scratch.flush())

    def _send(self, helper: Helper, request: Request | None) -> None:
        if request is None:
            return
        self.report.answered_bytes += helper.request(request)
        self._count(request)
        if self._progress is not None:
            self._progress(self.report.pages, self._total)

    def _count(self, request: Request) -> None:
        report = self.report
        report.requests += 1
        report.pages += request.n_pages
        report.payload_bytes += request.total_compressed_size
        pages = request.block_pages or (1,) * request.n_blocks
        zero = request.sizes.count(ZERO_SIZE)
        raw = sum(s == pages_to_bytes(n) for s, n in zip(request.sizes, pages, strict=True))
        report.zero_blocks += zero
        report.raw_blocks += raw
        report.lz4_blocks += request.n_blocks - zero - raw

    def _end(self, helper: Helper) -> None:
        report = self.report
        report.helper_peak_rss_kib = max(report.helper_peak_rss_kib, helper.peak_rss_kib())
        with helper:
            pass  # Leaving the context checks how it ended.
        report.warnings += helper.log


class _Scratch:
    """A small pages image in memory for pages that were decoded here, used over and over."""

    _PAGES = 4 * MAX_REGION_PAGES

    def __init__(self, pid: int, base: int, options: Sequence[str]) -> None:
        self._fd = os.memfd_create("helperd-scratch")
        self._used = 0
        self._shaper = RequestShaper(pid, base=base)
        self.helper = Helper(self._fd, target=pid, options=options)

    def has_room(self, n_pages: int) -> bool:
        """Return whether ``n_pages`` pages fit before a flush."""
        return self._used + n_pages <= self._PAGES

    def add(self, vaddr: int, content: bytes) -> Request | None:
        """Store pages; return a request that is complete (and whose pages stay stored)."""
        n_pages = len(content) // PAGE_SIZE
        offset = pages_to_bytes(self._used)
        os.pwrite(self._fd, content, offset)
        self._used += n_pages
        return self._shaper.add(
            Extent(
                vaddr=vaddr,
                n_pages=n_pages,
                pages_path="",
                offset=offset,
                region_pages=0,
                sizes=array("I", [PAGE_SIZE]) * n_pages,
                block_pages=None,
            )
        )

    def flush(self) -> Request | None:
        """Return the last request; after its answer the room is free again."""
        self._used = 0
        return self._shaper.flush()

    def close(self) -> None:
        """Close the image and the helper."""
        self.helper.close()
        os.close(self._fd)
