"""What somebody waits for: a page, and what lies around it."""

from __future__ import annotations

import time

from helperd.blocks import PAGE_SIZE
from helperd.errors import HelperdError, ImageError
from helperd.lazy_pages.bring import Bringer, PageReader
from helperd.lazy_pages.counters import FAULT, Tally
from helperd.lazy_pages.space import Again
from helperd.lazy_pages.workingset import Recorder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from helperd.lazy_pages.counters import Counters
    from helperd.lazy_pages.fill import Fill
    from helperd.lazy_pages.remote import Remote
    from helperd.lazy_pages.restore import Dump
    from helperd.lazy_pages.settings import Settings
    from helperd.lazy_pages.space import AddressSpace


#: Faults of pages that single pages are blocks for are answered with so many around them.
_WINDOW_PAGES = 64
#: Who reads on and on has the fill go on before him, in pieces of so many pages, then more.
_FIRST_AHEAD, _MOST_AHEAD = 256, 1024


class Faults:
    """Answers faults, one after the other, in the thread that reads them.

    Args:
        settings: how many pages are brought with one, and where they are noted.
        counters: of what was brought.
        fill: whose threads bring the rest.
        remote: where pages come from that are in no image, if anywhere.
        failed: called with pages that cannot be had, as :class:`Fill` does.

    Attributes:
        recorder: of what was asked for.
    """

    def __init__(
        self,
        settings: Settings,
        counters: Counters,
        fill: Fill,
        remote: Remote | None,
        failed: Callable[[HelperdError, Dump, int, int, bool], None],
    ) -> None:
        self.recorder = Recorder(settings.record_fd)
        self._pages_around = settings.around
        self._counters = counters
        self._fill = fill
        self._remote = remote
        self._failed = failed
        self._bringer = Bringer()
        self._reader = PageReader()
        self._last_fault = (-1, 0, 0)
        self._last_page = (-1, 0)
        self._ahead = 0

    def answer(self, dump: Dump, space: AddressSpace, address: int, begun: float) -> None:
        """Answer a fault at ``address`` that was read at ``begun``.

        Raises:
            Gone: there is no process any more.
        """
        number = space.number_of(address)
        if number < 0 or number not in space.missing:
            try:
                space.zero(address)
            except Again:
                # An event came in between. Whoever waits faults again, after it was read.
                space.uffd.wake(address - address % PAGE_SIZE, PAGE_SIZE)
            self._counters.zero_faults += 1
            return
        if dump.remote.count and number in dump.remote:
            self._ask(dump, space, number)
            return
        first, end = self._around(dump, number)
        if self.recorder.is_on:
            address_of = dump.lookup.address_of
            self.recorder.note(dump.pid, address_of(first), end - first, address_of(number))
        reads_on = self._reads_on(dump, space, number)
        if reads_on or dump.window:
            self._fill.follow(dump, end, self._ahead)
        is_alone = self._is_alone(dump, first, end) and not reads_on
        if is_alone and self._answer_page(space, number, address):
            # Even if it is in a piece that is under way: one page is decoded sooner than that.
            # Whoever waited goes on; the threads of the fill bring the rest before all else.
            self._fill.urgent(dump, first, end)
            self._counters.fault(time.monotonic() - begun, 1)
            return
        if self._fill.wait_for(dump, space, number, address):
            # A thread of the fill is bringing it, and wakes who waits: nothing is decoded twice.
            self._counters.fault(time.monotonic() - begun, 0)
            return
        tally = Tally(self._counters, FAULT)
        try:
            try:
                self._put(dump, space, first, end, tally)
            except HelperdError:
                self._put_blocks(dump, space, first, end, tally)
        except Again:
            space.uffd.wake(address - address % PAGE_SIZE, PAGE_SIZE)
        self._counters.fault(time.monotonic() - begun, 0)

    def put_first(self, dump: Dump, space: AddressSpace, number: int) -> bool:
        """Bring a page that nobody waits for; return False if its memory is not in place yet."""
        if number in dump.remote or number not in space.missing:
            return True
        return self._answer_page(space, number, dump.lookup.address_of(number))

    def _ask(self, dump: Dump, space: AddressSpace, number: int) -> None:
        """Have a page fetched that is in no image; whoever waits for it goes on when it comes."""
        asked = dump.lookup.address_of(number)
        self.recorder.note(dump.pid, asked, 1, asked)
        if self._remote is not None and self._remote.is_up:
            self._remote.urgent(dump, number)
            return
        error = ImageError("they are in no image, and no page server has them (--page-server)")
        self._failed(error, dump, number, number + 1, False)

    def _reads_on(self, dump: Dump, space: AddressSpace, number: int) -> bool:
        """Return whether all pages between the fault before and this one are there.

        Who jumps about does not happen to hit the first one that is not.
        """
        (pid, last), self._last_page = self._last_page, (dump.pid, number)
        if pid == dump.pid and last < number == space.missing.first_from(last):
            self._ahead = min(2 * self._ahead, _MOST_AHEAD) or _FIRST_AHEAD
        else:
            self._ahead = 0
        return self._ahead > 0

    def _is_alone(self, dump: Dump, first: int, end: int) -> bool:
        """Return whether a fault is not one of a row, each of a block next to the one before.

        Who walks through memory wants the next page at once and waits for all of the block, so
        that there are few faults; who jumps about wants this page only, soonest.
        """
        (pid, low, high), self._last_fault = self._last_fault, (dump.pid, first, end)
        in_a_row = pid == dump.pid and (first in (high, low) or end == low)
        return end - first > 1 and not in_a_row

    def _answer_page(self, space: AddressSpace, number: int, address: int) -> bool:
        try:
            is_data = self._reader.read(space.lookup, number)
        except HelperdError:
            return False
        source = self._reader.address if is_data else 0
        return space.put_page(number, address - address % PAGE_SIZE, source)

    def _put(self, dump: Dump, space: AddressSpace, first: int, end: int, tally: Tally) -> None:
        while (first := dump.local_from(first)) < end:
            piece = dump.lookup.piece(first, end)
            pages = self._bringer.decode(dump.lookup, piece)
            space.put(pages, piece.first, piece.end, tally)
            first = piece.end

    def _put_blocks(
        self, dump: Dump, space: AddressSpace, first: int, end: int, tally: Tally
    ) -> None:
        """Bring what can be had of some pages, block by block, and tell of what cannot."""
        while first < end:
            stop = min(dump.lookup.block_around(first, 1)[1], end)
            try:
                self._put(dump, space, first, stop, tally)
            except HelperdError as error:
                self._failed(error, dump, first, stop, False)
            first = stop

    def _around(self, dump: Dump, number: int) -> tuple[int, int]:
        around = self._pages_around
        if around == 0:
            return dump.lookup.block_around(number, _WINDOW_PAGES)
        first = number - number % around
        return first, min(first + around, dump.lookup.n_pages)
