"""Pages that are in no image: fetched from the page server of ``criu dump --lazy-pages``.

One thread owns the connection. What somebody waits for is asked for at once, between the replies to
what nobody waits for; the server answers in order, so few pages of that kind are under way.
"""

from __future__ import annotations

import collections
import os
import select
import threading
import time

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.errors import HelperdError, ProtocolError, describe_errno
from helperd.kernel.syscalls import HugeBuffer
from helperd.lazy_pages.bring import Pages
from helperd.lazy_pages.counters import FAULT, FILL, Tally
from helperd.lazy_pages.fill import NEVER, NOW
from helperd.lazy_pages.space import Again, Gone
from helperd.wire.page_client import Requester
from helperd.wire.page_messages import Ended, Layout, Reply

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from helperd.lazy_pages.channel import Channel
    from helperd.lazy_pages.counters import Counters
    from helperd.lazy_pages.gate import Gate
    from helperd.lazy_pages.restore import Dump, Restore
    from helperd.lazy_pages.space import AddressSpace
    from helperd.reports.log import Log

#: Pages of one request of the fill, and how many of those are under way.
_REQUEST_PAGES = 128
_UNDER_WAY = 3
#: Pages that are fetched along with one that was asked for, once all mappings are in place.
_WINDOW_PAGES = 64
_AGAIN_SECONDS = 0.0005
_CLOSE_SECONDS = 30


class Remote:
    """The connection to a page server.

    Args:
        channel: the connection.
        layout: of what is said.
        fill: one of FILL_MODES.
        gate: to copy within a lane of.
        counters: of what was brought.
        space_done: called when an address space needs nothing more.
        failed: called with pages of a dump that cannot be had, as :class:`Fill` does.
        log: for all that happens.
    """

    def __init__(
        self,
        channel: Channel,
        layout: Layout,
        fill: str,
        gate: Gate,
        counters: Counters,
        space_done: Callable[[Dump, AddressSpace, bool], None],
        failed: Callable[[HelperdError, Dump, int, int, bool], None],
        log: Log,
    ) -> None:
        self._channel = channel
        self._fd = channel.fd
        self._fill = fill
        self._lane = gate.lane()
        self._counters = counters
        self._space_done = space_done
        self._failed = failed
        self._log = log
        self._requester = Requester(layout)
        self._lock = threading.Lock()
        self._restores: list[Restore] = []
        self._dumps: set[Dump] = set()
        self._urgent: collections.deque[tuple[Dump, int, int]] = collections.deque()
        self._asked: collections.deque[tuple[Dump, int, int, str]] = collections.deque()
        self._buffer = HugeBuffer(pages_to_bytes(_REQUEST_PAGES), huge=False)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._broken: HelperdError = ProtocolError("the page server has ended the session")
        self._closing = False
        self._status = -1
        self._thread = threading.Thread(target=self._work, name="remote", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def add(self, restore: Restore) -> None:
        """Fill the spaces of a restore that has finished."""
        with self._lock:
            self._restores.append(restore)
        if self._status > 0:
            self._lose(restore.dumps.values(), self._broken)
        self._wake()

    def remove(self, restore: Restore) -> None:
        """Leave a restore alone from now on."""
        with self._lock:
            if restore in self._restores:
                self._restores.remove(restore)

    def hurry(self) -> None:
        """Fill now, whatever was wanted before."""
        self._fill = NOW
        self._wake()

    @property
    def is_up(self) -> bool:
        """Whether anything can be fetched."""
        return self._status < 0

    def urgent(self, dump: Dump, number: int) -> None:
        """Fetch a page that somebody waits for; with its neighbours if those can be put."""
        with self._lock:
            self._dumps.add(dump)
            self._urgent.append((dump, number, number + 1))
            if all(space.finished for space in dump.spaces):
                first = number - number % _WINDOW_PAGES
                end = min(first + _WINDOW_PAGES, dump.lookup.n_pages)
                self._urgent.append((dump, number + 1, end))
                self._urgent.append((dump, first, number))
        self._wake()

    def close(self) -> bool:
        """Tell the server that all is there; return whether it agrees."""
        self._closing = True
        self._wake()
        self._thread.join(_CLOSE_SECONDS)
        if self._status:
            self._log.error("the page server has not confirmed the end", event="page-server")
        return self._status == 0

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return

    def _work(self) -> None:
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        poll.register(self._fd, select.POLLIN)
        try:
            while self._status < 0:
                self._send()
                ready = {fd for fd, _ in poll.poll()}
                if self._wake_read in ready:
                    os.read(self._wake_read, 1 << 10)
                if self._fd in ready:
                    self._receive()
                    while self._channel.pending and self._status < 0:
                        self._receive()
        except (HelperdError, OSError) as error:
            if isinstance(error, OSError):
                what = describe_errno(error.errno or 0)
                error = ProtocolError(f"the connection to the page server: {what}")
            self._give_up(error)

    def _send(self) -> None:
        """Ask for what somebody waits for, then for more while there is room."""
        while (request := self._next()) is not None:
            dump, first, end, _ = request
            self._asked.append(request)
            address = dump.lookup.address_of(first)
            self._channel.write(self._requester.get(dump.pid, address, end - first))
        if self._closing and not self._asked and self._status < 0:
            self._channel.write(self._requester.close())
            self._closing = False

    def _next(self) -> tuple[Dump, int, int, str] | None:
        with self._lock:
            while self._urgent:
                dump, first, end = self._urgent.popleft()
                part = self._wanted(dump, first, end)
                if part is not None:
                    if part[1] < end:
                        self._urgent.appendleft((dump, part[1], end))
                    dump.begin(*part)
                    return (dump, *part, FAULT)
            if self._fill == NEVER or len(self._asked) >= _UNDER_WAY:
                return None
            for restore in self._restores:
                for dump in restore.dumps.values():
                    found = dump.next_missing(remote=True)
                    if found is not None:
                        end = min(found[1], found[0] + _REQUEST_PAGES)
                        dump.begin(found[0], end)
                        self._dumps.add(dump)
                        return dump, found[0], end, FILL
        return None

    def _wanted(self, dump: Dump, first: int, end: int) -> tuple[int, int] | None:
        """Return the first of some pages that are missing, remote, and not under way already."""
        for space in list(dump.spaces):
            for low, high in space.missing.runs(first, end):
                for start, stop in dump.remote.runs(low, high):
                    if any(one <= start < other for one, other in list(dump.busy.items())):
                        continue
                    # Up to what is under way, and within one range of addresses.
                    limits = [one for one in list(dump.busy) if one > start]
                    run_end = dump.lookup.numbers[dump.lookup.run_of(start) + 1]
                    return start, min(stop, run_end, start + _REQUEST_PAGES, *limits)
        return None

    def _receive(self) -> None:
        """Take one reply, all of it."""
        while True:
            data = self._channel.read(self._requester.header_left)
            if not data:
                self._requester.finish()
                raise ProtocolError("the page server has gone")
            for event in self._requester.receive(data):
                if isinstance(event, Ended):
                    self._status = event.status & 0xFF or int(event.status != 0)
                    return
                assert isinstance(event, Reply)
                self._read_pages(event.nr_pages)
                self._bring(event.nr_pages)
                return

    def _read_pages(self, n_pages: int) -> None:
        view = self._buffer.view[: pages_to_bytes(n_pages)]
        while view:
            got = self._channel.read_into(view)
            if not got:
                self._requester.finish()
            self._requester.payload_received(got)
            view = view[got:]

    def _bring(self, n_pages: int) -> None:
        dump, first, end, why = self._asked.popleft()
        live = bytearray(
            self._buffer.view[at : at + PAGE_SIZE] != _ZERO
            for at in range(0, pages_to_bytes(n_pages), PAGE_SIZE)
        )
        stop = min(first + n_pages, end)
        pages = Pages(first, stop, 0, live, self._buffer.address, packed=False)
        for space in list(dump.spaces):
            self._bring_to(dump, space, pages, why)
        with self._lock:
            dump.done(first)
            if stop < end and why == FAULT:
                self._urgent.appendleft((dump, stop, end))

    def _bring_to(self, dump: Dump, space: AddressSpace, pages: Pages, why: str) -> None:
        """Bring pages, once an event has been read if one waits: they are not asked for twice."""
        tally = Tally(self._counters, why)
        while True:
            gone = again = False
            with self._lane:
                if space not in dump.spaces:
                    return
                try:
                    space.put(pages, pages.first, pages.end, tally)
                except Again:
                    again = True
                except Gone:
                    gone = True
            if gone or space.is_done:
                self._space_done(dump, space, gone)
                return
            if not again:
                return
            time.sleep(_AGAIN_SECONDS)

    def _give_up(self, error: HelperdError) -> None:
        """The source is gone: all that is still there and nowhere else is lost."""
        self._broken, self._status = error, 1
        with self._lock:
            dumps = {dump for restore in self._restores for dump in restore.dumps.values()}
            for dump, first, _, _ in self._asked:
                dump.done(first)
        self._lose(dumps | self._dumps, error)

    def _lose(self, dumps: Iterable[Dump], error: HelperdError) -> None:
        for dump in dumps:
            while (found := dump.next_missing(remote=True)) is not None:
                dump.begin(*found)
                self._failed(error, dump, *found, False)


_ZERO = bytes(PAGE_SIZE)
