"""Restore the memory of one process of an image directory into a running process."""

from __future__ import annotations

import os
import time
from array import array
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helperd.blocks import MAX_REGION_PAGES, PAGE_SIZE, count_kinds, pages_to_bytes
from helperd.engine.release import Release
from helperd.errors import EXIT_IMAGE, HelperFailed
from helperd.images.directory import ImageDirectory, pagemap_name
from helperd.images.extent import Extent, read_exactly, read_pages
from helperd.images.records import open_image
from helperd.images.sweep import sweep
from helperd.kernel.holes import may_have_holes
from helperd.modes import ANSWERED
from helperd.reports.log import Log
from helperd.restorer.helper import Helper, open_pages
from helperd.restorer.shape import RequestShaper
from helperd.restorer.stretch import Scattered, Stretch, stretches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from helperd.images.sweep import Held
    from helperd.wire.pipe import Request

#: Pages of a request, 64 MiB: often enough to show progress, seldom enough to cost nothing.
REQUEST_PAGES = (64 << 20) // PAGE_SIZE
#: The helpers' option that takes payload in holes for zeros.
HOLES_ARE_ZEROS = "--holes-are-zeros"
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
    parents that holds its last content; the pages images are read one after the other, that of
    the last dump first, and each is served by a helper of its own.

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
    name = pagemap_name(pid=image_pid, shmem_id=shmem_id)
    with job as injection:
        for held in sweep(images, name):
            injection.add(held)
        injection.finish()
    report = injection.report
    report.seconds = time.monotonic() - started
    return report


class _Injection:
    """The state of one injection: the helpers that run, and the report."""

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
        self._max_pages = _DEDUP_REQUEST_PAGES if auto_dedup else REQUEST_PAGES
        self._options = options
        # Payloads (offset, end) of blocks that were decoded here, by pages image.
        self._partial: dict[str, set[tuple[int, int]]] = {}
        self._helper: Helper | None = None
        self._scratch: _Scratch | None = None
        self.report = InjectReport()

    def __enter__(self) -> _Injection:
        return self

    def __exit__(self, *exception: object) -> None:
        with ExitStack() as stack:
            if self._helper is not None:
                stack.callback(self._helper.close)
            if self._scratch is not None:
                stack.callback(self._scratch.close)

    def add(self, held: Held) -> None:
        """Restore all pages that one level holds."""
        if not held.starts:
            return
        path = held.level.pages_path
        helper = self._helper = Helper(
            path, target=self._pid, auto_dedup=self._auto_dedup, options=self._options
        )
        shaper = RequestShaper(self._pid, base=self._base, max_pages=self._max_pages)
        with open_image(path) as stream:
            fd = stream.fileno()
            for part in stretches(held, gather=self._may_gather(fd)):
                if isinstance(part, Scattered):
                    self._add_scattered(part, path, fd)
                elif isinstance(part, Stretch):
                    self._send(helper, shaper.flush())
                    self._add_stretch(helper, part)
                elif part.partial:
                    self._add_partial(part)
                else:
                    self._send(helper, shaper.add(part))
        self._send(helper, shaper.flush())
        self._end(helper)
        self._helper = None

    def _may_gather(self, fd: int) -> bool:
        """Return whether payload of this pages file may go through another file.

        Not if there are holes, which are for the helper to look at.
        """
        return HOLES_ARE_ZEROS in self._options or not may_have_holes(os.fstat(fd))

    def _add_stretch(self, helper: Helper, stretch: Stretch) -> None:
        for request in stretch.requests(self._pid, base=self._base, max_pages=self._max_pages):
            self._send(helper, request)

    def _add_scattered(self, scattered: Scattered, path: str, fd: int) -> None:
        """Restore runs whose payloads would each be a request of its own."""
        scratch = self._open_scratch()
        self._flush_scratch(scratch)
        payloads = [read_exactly(fd, size, offset, path) for offset, size in scattered.spans]
        scratch.fill(b"".join(payloads))
        try:
            self._add_stretch(scratch.helper, scattered.gathered(0))
        except HelperFailed as error:
            if error.status == EXIT_IMAGE:
                # It was told of a place in the scratch; this tells of the one in the image.
                for _ in read_pages(scattered.extents(), holes_are_zeros=True):
                    pass
            raise
        if self._auto_dedup:
            self._punch(path, [(offset, offset + size) for offset, size in scattered.spans])

    def _open_scratch(self) -> _Scratch:
        if self._scratch is None:
            self._scratch = _Scratch(self._pid, self._base, self._options)
        return self._scratch

    def finish(self) -> None:
        """Restore what is left and see that all helpers end well."""
        if self._scratch is not None:
            self._flush_scratch(self._scratch)
            self._end(self._scratch.helper)
        if self._auto_dedup:
            for path, payloads in self._partial.items():
                self._punch(path, payloads)

    def _punch(self, path: str, payloads: Iterable[tuple[int, int]]) -> None:
        """Give back the blocks that no helper knows to be consumed."""
        fd = open_pages(path, writable=True)
        try:
            release = Release(fd, ANSWERED, Log())
            for offset, end in payloads:
                release.answered(offset, end)
            release.finish()
        finally:
            os.close(fd)

    def _add_partial(self, extent: Extent) -> None:
        """Restore a part of a region's block.

        The protocol knows whole blocks only, and the rest of this one was superseded. So it is
        decoded here and its wanted pages go through a helper as raw blocks.
        """
        scratch = self._open_scratch()
        holes_are_zeros = HOLES_ARE_ZEROS in self._options
        (_, content) = next(read_pages([extent], holes_are_zeros=holes_are_zeros))
        payload = (extent.offset, extent.offset + extent.payload_bytes)
        self._partial.setdefault(extent.pages_path, set()).add(payload)
        if not scratch.has_room(extent.n_pages):
            self._flush_scratch(scratch)
        self._send(scratch.helper, scratch.add(extent.vaddr, content))

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
        zero, raw = count_kinds(request.sizes, request.block_pages)
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
    """A small pages image in memory, used over and over.

    For pages that were decoded here, or whose payload was gathered here.
    """

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

    def fill(self, payload: bytes) -> None:
        """Store payload at the start; there must be nothing else."""
        os.pwrite(self._fd, payload, 0)

    def flush(self) -> Request | None:
        """Return the last request; after its answer the room is free again."""
        self._used = 0
        return self._shaper.flush()

    def close(self) -> None:
        """Close the image and the helper."""
        self.helper.close()
        os.close(self._fd)
