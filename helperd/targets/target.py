"""A process that is written to: pinned by a pidfd, so that nobody else can take its place."""

from __future__ import annotations

import errno
import posix as os
from array import array

from helperd.blocks import MAX_REGION_PAGES, PAGE_SHIFT, runs
from helperd.errors import HelperdError, NotPermitted, TargetGone, TargetNotMapped, from_errno
from helperd.kernel import procfs
from helperd.kernel.syscalls import PartialWrite, has_first_word, process_vm_writev_all
from helperd.kernel.zeros import zero_range
from helperd.targets.mappings import Mappings, why_not_written

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.reports.log import Log
    from helperd.targets.hold import Hold

_PAGEMAP_ENTRY = 8
#: Set in a pagemap entry of a page that nothing was ever put at, on kernels with soft-dirty
#: tracking; every other bit says that there is something. Source: the kernel's pagemap.rst.
_SOFT_DIRTY = (1 << 55).to_bytes(_PAGEMAP_ENTRY, "little")
_ABSENT = bytes(_PAGEMAP_ENTRY) * MAX_REGION_PAGES
_ABSENT_SOFT_DIRTY = _SOFT_DIRTY * MAX_REGION_PAGES


class Target:
    """One pinned process.

    The kernel writes by pid, not by pidfd. So the pidfd is looked at before each write and
    after the last: a process that is alive then was alive all the time, and its pid was no one
    else's. /proc/PID/pagemap stays bound to the memory that the process had when it was pinned,
    and ends when that memory does; that is how an exec is noticed.

    Args:
        hold: on the process.
        log: gets one warning when /proc cannot be used.

    Raises:
        TargetGone: the process is gone.
    """

    def __init__(self, hold: Hold, log: Log) -> None:
        self._hold = hold
        self.pid = hold.pid
        self.pidfd = hold.pidfd
        self._mappings: Mappings | None = None
        self._pagemap, self._maps = hold.pagemap, hold.maps
        self._log = log
        self._warned = False
        self._advised: list[tuple[int, int]] | None = None
        self.check_alive()

    def check_alive(self) -> None:
        """Raise TargetGone unless the process lives and still has the memory it was pinned with."""
        if not self.pidfd.is_alive():
            raise TargetGone(f"target process {self.pid} is gone")
        if self._pagemap is not None and not has_first_word(self._pagemap):
            raise TargetGone(f"target process {self.pid} has executed another program")

    def begin_request(self) -> None:
        """Forget what was known of the address space: the target may have changed it."""
        self._mappings = None

    def write(self, local: array[int], remote: array[int], n_bytes: int) -> None:
        """Write ``n_bytes`` from our ranges ``local`` to the target's ranges ``remote``.

        Both are ``array('Q')`` of address, length and are consumed.

        Raises:
            TargetGone, NotPermitted: as the kernel says.
            TargetNotMapped: naming the first page that could not be written; its ``done``
                attribute, as that of the others, says how many bytes had been.
        """
        self.check_alive()
        try:
            process_vm_writev_all(self.pid, local, remote, n_bytes)
        except PartialWrite as error:
            raise self._explain(error) from error

    def touch(self, address: int) -> bool:
        """Make the page at ``address``, which is about to be written, exist; say if that worked.

        Raises:
            TargetGone: it is not the process any more that was pinned.
        """
        self.check_alive()
        try:
            process_vm_writev_all(self.pid, array("Q", zero_range(1)), array("Q", (address, 1)), 1)
        except PartialWrite:
            return False
        return True

    @property
    def advised(self) -> list[tuple[int, int]]:
        """The ranges (start, end) that the target has advised huge pages for.

        They are looked up once, when they are first asked for: they are a hint.
        """
        if self._advised is None:
            smaps = self._hold.smaps
            self._advised = [] if smaps is None else procfs.advised_ranges(smaps)
        return self._advised

    def wants_huge_pages(self, address: int, end: int) -> bool:
        """Return whether the target has advised huge pages for all of the range."""
        return any(first <= address and end <= last for first, last in self.advised)

    def zeros_to_write(self, address: int, live: bytearray) -> list[tuple[int, int]]:
        """Return which zero pages need writing, because something else may be there now.

        Args:
            address: of a destination range of at most MAX_REGION_PAGES pages.
            live: one byte for each page of it: 0 when the page is to be zero.

        Returns:
            Ranges (address, pages) to be written. All others are untouched private anonymous
            memory, which reads as zero and costs nothing.
        """
        if self._pagemap is None:
            self._warn_once()
            return [(address + (first << PAGE_SHIFT), count) for first, count in runs(live, 0)]
        where = (address >> PAGE_SHIFT) * _PAGEMAP_ENTRY
        entries = os.pread(self._pagemap, len(live) * _PAGEMAP_ENTRY, where)
        if _all_absent(entries, len(live)) and self._is_private_anonymous(address, len(live)):
            return []
        writes = []
        for first, count in runs(live, 0):
            start = address + (first << PAGE_SHIFT)
            part = entries[first * _PAGEMAP_ENTRY : (first + count) * _PAGEMAP_ENTRY]
            if not (_all_absent(part, count) and self._is_private_anonymous(start, count)):
                writes.extend(self._present_parts(start, count, part))
        return writes

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            self._log.warning(
                f"/proc does not show the memory of target process {self.pid}:"
                " all its zero pages are written, a sparse process will grow"
            )

    def _present_parts(self, address: int, n_pages: int, entries: bytes) -> list[tuple[int, int]]:
        """Return the parts of a run of zero pages that must be written."""
        parts: list[tuple[int, int]] = []
        for page in range(n_pages):
            at = address + (page << PAGE_SHIFT)
            entry = entries[page * _PAGEMAP_ENTRY : (page + 1) * _PAGEMAP_ENTRY]
            if _all_absent(entry, 1) and self._is_private_anonymous(at, 1):
                continue
            if parts and parts[-1][0] + (parts[-1][1] << PAGE_SHIFT) == at:
                parts[-1] = (parts[-1][0], parts[-1][1] + 1)
            else:
                parts.append((at, 1))
        return parts

    def _is_private_anonymous(self, address: int, n_pages: int) -> bool:
        if self._mappings is None:
            assert self._maps is not None
            self._mappings = Mappings(procfs.read_lines(self._maps))
        return self._mappings.is_private_anonymous(address, address + (n_pages << PAGE_SHIFT))

    def _why_not_written(self, address: int) -> str:
        try:
            if self._maps is not None:
                return why_not_written(procfs.read_lines(self._maps), address)
        except OSError:
            pass
        return "is not mapped writable"

    def _explain(self, error: PartialWrite) -> HelperdError:
        number = error.errno
        if number == errno.EFAULT:
            explained: HelperdError = TargetNotMapped(
                f"page {error.address:#x} of target process {self.pid}"
                f" {self._why_not_written(error.address)}"
            )
        elif number == errno.ESRCH:
            explained = TargetGone(f"target process {self.pid} is gone")
        elif number == errno.EPERM:
            explained = NotPermitted(
                f"the kernel does not permit writing to process {self.pid}: it is another user's or"
                " not dumpable and we lack CAP_SYS_PTRACE there, or Yama's ptrace_scope, another"
                " security module, or a seccomp policy against process_vm_writev forbids it"
            )
        else:
            assert number is not None
            explained = from_errno(number, f"process_vm_writev to process {self.pid}")
        explained.bytes_done = error.done
        return explained


def _all_absent(entries: bytes, n_pages: int) -> bool:
    """Return whether ``n_pages`` pagemap entries all say that nothing is there."""
    size = n_pages * _PAGEMAP_ENTRY
    return entries in (_ABSENT[:size], _ABSENT_SOFT_DIRTY[:size])
