"""One address space that is being filled: what it still misses, and how a page gets there.

Whoever brings pages does so within a lane of the :class:`helperd.lazy_pages.gate.Gate`, all of it
from looking at ``missing`` to having noted what was brought; or is the one who reads events.
"""

from __future__ import annotations

import errno
import threading

from helperd.blocks import PAGE_SHIFT, PAGE_SIZE, pages_to_bytes
from helperd.errors import TargetError, describe_errno
from helperd.kernel.userfaultfd import REMAP, REMOVE, UNMAP, Userfaultfd
from helperd.lazy_pages.views import Views

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.images.lookup import Lookup
    from helperd.kernel.userfaultfd import Message
    from helperd.lazy_pages.bring import Pages
    from helperd.lazy_pages.counters import Tally
    from helperd.lazy_pages.pageset import PageSet


class Again(Exception):
    """An event waits to be read, or a mapping is not there yet; nothing is wrong."""


class Gone(Exception):
    """The process has ended, or has become another program."""


class AddressSpace:
    """The memory of one process.

    Attributes:
        ident: number of it, for the guard.
        lookup: of the dump it came from.
        uffd: tells of it and fills it.
        missing: numbers of the dump's pages that are still to be brought.
        lock: guards ``missing``, for as long as looking at it or changing it takes.
        finished: whether all mappings are where they belong, so that what is not watched now
            never will be.
        unwatched: pages that were to be brought, but lie in no watched memory any more.
        lost: pages that could not be brought and were marked as lost.
        is_child: whether it came from a fork while it was filled.
        is_given_up: whether it is left as it is, until its process is dead.
    """

    def __init__(self, ident: int, lookup: Lookup, uffd: Userfaultfd, missing: PageSet) -> None:
        self.ident = ident
        self.lookup = lookup
        self.uffd = uffd
        self.missing = missing
        self.lock = threading.Lock()
        self.finished = False
        self.unwatched = 0
        self.lost = 0
        self.is_child = False
        self.is_given_up = False
        self._views = Views()

    @property
    def is_done(self) -> bool:
        """Whether all is there, and where it belongs."""
        with self.lock:
            return self.finished and not self.missing.count

    def fork(self, ident: int, fd: int) -> AddressSpace:
        """Return the child's address space; nobody may copy meanwhile."""
        child = AddressSpace(ident, self.lookup, Userfaultfd(fd), self.missing.copy())
        child.finished = self.finished
        child.is_child = True
        child._views = self._views.copy()
        return child

    def number_of(self, address: int) -> int:
        """Return the number of the page of the dump that belongs at ``address``, or -1."""
        if not self._views.moved:
            return self.lookup.number_of(address)
        address -= address % PAGE_SIZE
        for start, _ in self._views.dumped(address, address + PAGE_SIZE):
            return self.lookup.number_of(start)
        return -1

    def apply(self, message: Message) -> None:
        """Do what an event other than a fault or a fork says; nobody may copy meanwhile."""
        if message.event == REMAP:
            self._views.move(message.start, message.end, message.length)
        elif message.event in (REMOVE, UNMAP):
            for start, end in self._views.dumped(message.start, message.end):
                first = self.lookup.first_from(start)
                with self.lock:
                    self.missing.discard(first, max(first, self.lookup.first_from(end)))

    def put(self, pages: Pages, first: int, end: int, tally: Tally, *, wake: bool = True) -> None:
        """Bring what is missing of the pages numbered from ``first`` to before ``end``.

        Args:
            pages: of which they are some.
            first: number of the first.
            end: number after the last one.
            tally: of what was brought, also of what was before an exception.
            wake: False where it is enough that who waits is woken later.

        Raises:
            Again: some are still missing, and can be brought later.
            Gone: there is no process any more.
            TargetError: the kernel refuses for a reason that will not pass.
        """
        with self.lock:
            missing = list(self.missing.runs(first, end))
        for start, stop in missing:
            if self._views.moved:
                for low, high, source in pages.runs(start, stop):
                    self._bring(low, high, source, tally)
            else:
                self._put_unmoved(pages, start, stop, tally, wake)

    def _put_unmoved(self, pages: Pages, first: int, end: int, tally: Tally, wake: bool) -> None:
        """Bring pages that are all missing to where they were, with one note of it at the end."""
        copy, zero = self.uffd.copy, self.uffd.zero
        number = first
        for address, n_pages in self.lookup.ranges(first, end):
            lead = address - (number << PAGE_SHIFT)
            for low, high, source in pages.runs(number, number + n_pages):
                n_bytes = (high - low) << PAGE_SHIFT
                to = lead + (low << PAGE_SHIFT)
                if source:
                    done, _ = copy(to, source, n_bytes, wake=wake)
                else:
                    done, _ = zero(to, n_bytes, wake=wake)
                if done != n_bytes:
                    # Something is in the way: page by page, if need be, and noted at once.
                    count = done >> PAGE_SHIFT
                    self._brought(first, low + count, tally)
                    first = high
                    rest = _advance(low, to, high - low, source, count)
                    self._bring_range(*rest, tally)
            number += n_pages
        self._brought(first, end, tally)

    def _brought(self, first: int, end: int, tally: Tally) -> None:
        """Note that pages are there."""
        with self.lock:
            tally.add(self.missing.discard(first, end))

    def put_page(self, number: int, to: int, source: int) -> bool:
        """Bring one missing page to ``to``; return False where only :meth:`put` can tell more."""
        done, _ = self.uffd.copy(to, source, PAGE_SIZE) if source else self.uffd.zero(to, PAGE_SIZE)
        if done:
            with self.lock:
                self.missing.discard(number, number + 1)
        return bool(done)

    def put_pages(self, pages: list[tuple[int, int, int]], tally: Tally) -> None:
        """Bring single pages, as many as can be, where memory is where it was when it was dumped.

        Args:
            pages: each as its number, where it belongs, and where it is: 0 if it is all zero.
            tally: of what was brought.
        """
        copy, zero, missing = self.uffd.copy, self.uffd.zero, self.missing
        if self._views.moved:
            return
        brought = []
        for number, to, source in pages:
            if number in missing:
                done, _ = copy(to, source, PAGE_SIZE) if source else zero(to, PAGE_SIZE)
                if done:
                    brought.append(number)
        with self.lock:
            tally.add(sum(missing.discard(number, number + 1) for number in brought))

    def poison(self, first: int, end: int) -> bool:
        """Mark what is missing of some pages as lost; return False if the kernel cannot.

        Whoever touches such a page gets SIGBUS.
        """
        with self.lock:
            missing = list(self.missing.runs(first, end))
        for start, stop in missing:
            for number, to, n_pages in self._places(start, stop):
                if not self._poison(number, to, n_pages):
                    return False
        return True

    def zero(self, address: int) -> None:
        """Answer a fault where nothing was dumped, or where the page is there by now.

        Raises:
            Again, Gone: as :meth:`put` says.
        """
        address -= address % PAGE_SIZE
        _, number = self.uffd.zero(address, PAGE_SIZE)
        if number in (errno.EEXIST, errno.ENOENT):
            self.uffd.wake(address, PAGE_SIZE)
        elif number:
            _raise(number, address)

    def _places(self, first: int, end: int) -> list[tuple[int, int, int]]:
        """Return where pages are now: (number, address, pages); some may be nowhere."""
        ranges = self.lookup.ranges(first, end)
        if not self._views.moved:
            places = []
            for address, n_pages in ranges:
                places.append((first, address, n_pages))
                first += n_pages
            return places
        places = []
        for start, n_pages in ranges:
            found = list(self._views.now(start, start + pages_to_bytes(n_pages)))
            for dumped, low, high in found:
                number = first + (dumped - start) // PAGE_SIZE
                places.append((number, low, (high - low) // PAGE_SIZE))
            if sum(high - low for _, low, high in found) < pages_to_bytes(n_pages):
                self._forget_what_is_nowhere(first, n_pages, places)
            first += n_pages
        return places

    def _forget_what_is_nowhere(
        self, first: int, n_pages: int, places: list[tuple[int, int, int]]
    ) -> None:
        at = first
        with self.lock:
            for number, _, count in sorted(places):
                if number + count <= first or number >= first + n_pages:
                    continue
                self.missing.discard(at, max(at, number))
                at = number + count
            self.missing.discard(at, max(at, first + n_pages))

    def _bring(self, first: int, end: int, source: int, tally: Tally) -> None:
        for number, to, n_pages in self._places(first, end):
            place = source + pages_to_bytes(number - first) if source else 0
            self._bring_range(number, to, n_pages, place, tally)

    def _bring_range(self, number: int, to: int, n_pages: int, source: int, tally: Tally) -> None:
        """Copy pages to one range of addresses, which may lie in several mappings."""
        while n_pages:
            n_bytes = pages_to_bytes(n_pages)
            if source:
                done, failure = self.uffd.copy(to, source, n_bytes)
            else:
                done, failure = self.uffd.zero(to, n_bytes)
            if done:
                count = done // PAGE_SIZE
            elif failure == errno.EEXIST:
                self.uffd.wake(to, PAGE_SIZE)
                count = 1
            elif failure == errno.ENOENT and n_bytes > PAGE_SIZE:
                # It spans mappings: one half does so no more, in the end.
                half = n_bytes // PAGE_SIZE // 2
                self._bring_range(number, to, half, source, tally)
                count = half
                number, to, n_pages, source = _advance(number, to, n_pages, source, count)
                rest = n_bytes // PAGE_SIZE - half
                self._bring_range(number, to, rest, source, tally)
                number, to, n_pages, source = _advance(number, to, n_pages, source, rest)
                continue
            elif failure == errno.ENOENT and self.finished:
                self.unwatched += 1
                count = 1
            else:
                _raise(failure, to)
            self._brought(number, number + count, tally)
            number, to, n_pages, source = _advance(number, to, n_pages, source, count)

    def _poison(self, number: int, to: int, n_pages: int) -> bool:
        for page in range(n_pages):
            done, failure = self.uffd.poison(to + pages_to_bytes(page), PAGE_SIZE)
            if not done and failure == errno.EAGAIN:
                raise Again
            if not done and failure not in (errno.EEXIST, errno.ENOENT, errno.ESRCH):
                return False
            with self.lock:
                self.missing.discard(number + page, number + page + 1)
            self.lost += bool(done)
        return True


def _advance(
    number: int, to: int, n_pages: int, source: int, count: int
) -> tuple[int, int, int, int]:
    n_bytes = pages_to_bytes(count)
    return number + count, to + n_bytes, n_pages - count, source + n_bytes if source else 0


def _raise(number: int, address: int) -> None:
    if number in (errno.EAGAIN, errno.ENOENT):
        raise Again
    if number in (errno.ESRCH, errno.ENOSPC):
        raise Gone
    raise TargetError(
        f"the kernel refuses a page at {address:#x}: {describe_errno(number)}", errno=number
    )
