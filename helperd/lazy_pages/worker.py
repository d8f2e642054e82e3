"""The process that brings the pages: answers faults and events, and has the rest filled in."""

from __future__ import annotations

import json
import os
import select
import time

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.confined.confine import take_away
from helperd.confined.seccomp import load_lazy
from helperd.errors import (
    EXIT_IMAGE,
    EXIT_OK,
    EXIT_PROTOCOL,
    EXIT_TARGET,
    HelperdError,
    ImageError,
)
from helperd.kernel.userfaultfd import FEATURE_POISON, FORK, PAGEFAULT, Userfaultfd, features
from helperd.lazy_pages import link
from helperd.lazy_pages.bring import Bringer, PageReader
from helperd.lazy_pages.counters import Counters
from helperd.lazy_pages.fill import Fill
from helperd.lazy_pages.remote import Remote
from helperd.lazy_pages.restore import Dump, Restore, lazy_pages
from helperd.lazy_pages.space import AddressSpace, Again, Gone
from helperd.lazy_pages.workingset import Recorder
from helperd.wire.page_messages import Layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.kernel.userfaultfd import Message
    from helperd.lazy_pages.link import Link
    from helperd.lazy_pages.settings import Settings
    from helperd.lazy_pages.standin import Images
    from helperd.reports.log import Log

#: How often processes are asked whether they live, while nothing is brought to them.
_LOOK_SECONDS = 0.5
#: Faults of pages that single pages are blocks for are answered with so many around them.
_WINDOW_PAGES = 64
_FIRST_CHILD = 1 << 20


class Worker:
    """Serves restores of one dump, each over the userfaultfds that the guard passes.

    Args:
        images: the dump.
        guard: the other end of which is the guard's.
        settings: how.
        log: for all that happens.
    """

    def __init__(self, images: Images, guard: Link, settings: Settings, log: Log) -> None:
        self._images = images
        self._guard = guard
        self._settings = settings
        self._log = log
        self._restores: dict[int, Restore] = {}
        self._by_fd: dict[int, tuple[Restore, Dump, AddressSpace]] = {}
        self._counters = Counters()
        self._bringer = Bringer()
        self._reader = PageReader()
        self._last_fault = (-1, 0, 0)
        self._fill = Fill(
            settings.fill, settings.rate, self._counters, self._space_done, self._failed
        )
        self._remote: Remote | None = None
        if settings.page_server is not None:
            self._remote = Remote(
                settings.page_server,
                Layout(settings.header_bytes or (32 if images.are_new else 24)),
                settings.fill,
                self._counters,
                self._space_done,
                self._failed,
                log,
            )
        self._epoll = select.epoll()
        self._epoll.register(guard.fd, select.EPOLLIN)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._can_poison = bool(features() & FEATURE_POISON)
        self._next_child = _FIRST_CHILD
        self._look_at = 0.0
        self._code = EXIT_OK
        self._ended = False
        self._orphaned = False
        self._recorder = Recorder(settings.record_fd)

    def serve(self) -> int:
        """Serve until the guard says that no restore will come any more; return the exit code."""
        for lookup in self._images.lookups.values():
            lookup.load_tables()
        take_away(self._settings.sandbox, (), lambda: load_lazy(os.getpid()), self._log)
        self._fill.start(self._settings.threads)
        if self._remote is not None:
            self._remote.start()
        while not self._ended or self._restores:
            for fd, _ in self._epoll.poll(_LOOK_SECONDS if self._restores else None):
                if fd == self._guard.fd:
                    self._hear()
                elif fd == self._wake_read:
                    os.read(fd, 1 << 10)
                elif (who := self._by_fd.get(fd)) is not None:
                    self._attend(*who)
            self._look()
        if self._remote is not None and not self._remote.close():
            self._code = self._code or EXIT_PROTOCOL
        return self._code

    def _hear(self) -> None:
        """Act on what the guard says."""
        message = self._guard.receive()
        if message is None:
            # The guard is gone. What runs still needs its pages, so this goes on to the end.
            self._epoll.unregister(self._guard.fd)
            self._ended = self._orphaned = True
            return
        kind, ident, value, fd = message
        if kind == link.TASK:
            restore = self._restores.setdefault(ident, Restore(ident))
            self._add_task(restore, value, fd)
        elif kind == link.FINISHED:
            self._finish(self._restores.setdefault(ident, Restore(ident)))
        elif kind == link.ABORTED:
            self._drop(ident)
        elif kind == link.HURRY:
            self._fill.hurry()
            if self._remote is not None:
                self._remote.hurry()
        elif kind == link.NO_MORE:
            self._ended = True

    def _add_task(self, restore: Restore, pid: int, fd: int) -> None:
        lookup = self._images.lookups[pid]
        lazy = lazy_pages(lookup, self._images.lazy[pid])
        dump = Dump(pid, lookup, lazy)
        space = AddressSpace(
            link.space_of(restore.ident, pid), lookup, Userfaultfd(fd), lazy.copy()
        )
        with restore.lock:
            restore.dumps[pid] = dump
            dump.spaces.append(space)
        self._watch(restore, dump, space)
        self._log.debug(f"task {pid}: {lazy.count} pages to bring", event="task", pid=pid)

    def _watch(self, restore: Restore, dump: Dump, space: AddressSpace) -> None:
        os.set_blocking(space.uffd.fd, False)
        self._by_fd[space.uffd.fd] = (restore, dump, space)
        self._epoll.register(space.uffd.fd, select.EPOLLIN)

    def _finish(self, restore: Restore) -> None:
        self._counters.restore_finished()
        restore.finished = True
        self._log.info(
            f"restore {restore.ident}: its tasks run, {restore.missing} pages are to be brought",
            event="running",
            pages=restore.missing,
        )
        for dump in restore.dumps.values():
            for space in list(dump.spaces):
                with space.lock:
                    space.finished = True
                    done = not space.missing.count
                if done:
                    self._space_done(dump, space, False)
        wanted = []
        for pid, address, n_pages in self._settings.prefetch:
            if pid in restore.dumps:
                lookup = restore.dumps[pid].lookup
                first = lookup.first_from(address)
                end = lookup.first_from(address + pages_to_bytes(n_pages))
                wanted.append((restore.dumps[pid], first, end))
        self._fill.add(restore, wanted)
        if self._remote is not None:
            self._remote.add(restore)

    def _attend(self, restore: Restore, dump: Dump, space: AddressSpace) -> None:
        """Read what a process has to say, and answer its faults."""
        self._fill.step_aside()
        begun = time.monotonic()
        try:
            with space.lock:
                if space not in dump.spaces:
                    return
                for message in space.uffd.read():
                    if message.event == PAGEFAULT:
                        self._answer(dump, space, message.start, begun)
                    elif message.event == FORK:
                        self._fork(restore, dump, space, message)
                    else:
                        space.apply(message)
                done = space.finished and not space.missing.count
        except Gone:
            self._space_done(dump, space, True)
            return
        finally:
            self._fill.go_on()
        if done:
            self._space_done(dump, space, False)

    def _answer(self, dump: Dump, space: AddressSpace, address: int, begun: float) -> None:
        number = space.number_of(address)
        if number < 0 or number not in space.missing:
            try:
                space.zero(address)
            except Again:
                # An event came in between. Whoever waits faults again, after it was read.
                space.uffd.wake(address - address % PAGE_SIZE, PAGE_SIZE)
            self._counters.zero_faults += 1
            return
        if number in dump.remote:
            self._ask(dump, space, number)
            return
        first, end = self._around(dump, number)
        self._recorder.note(dump.pid, dump.lookup.address_of(first), end - first)
        before = space.missing.count
        if self._is_alone(dump, first, end) and self._answer_page(space, number, address):
            # Whoever waited goes on; the threads of the fill bring the rest before all else.
            self._fill.urgent(dump, first, end)
            self._counters.fault(time.monotonic() - begun, 1)
            return
        try:
            try:
                self._put(dump, space, first, end)
            except HelperdError:
                self._put_blocks(dump, space, first, end)
        except Again:
            space.uffd.wake(address - address % PAGE_SIZE, PAGE_SIZE)
        count = before - space.missing.count
        self._counters.fault(time.monotonic() - begun, count)

    def _ask(self, dump: Dump, space: AddressSpace, number: int) -> None:
        """Have a page fetched that is in no image; whoever waits for it goes on when it comes."""
        self._recorder.note(dump.pid, dump.lookup.address_of(number), 1)
        if self._remote is not None and self._remote.is_up:
            self._remote.urgent(dump, number)
            return
        error = ImageError("they are in no image, and no page server has them (--page-server)")
        self._failed(error, dump, number, number + 1, locked=space)

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

    def _put(self, dump: Dump, space: AddressSpace, first: int, end: int) -> None:
        while (first := dump.local_from(first)) < end:
            piece = dump.lookup.piece(first, end)
            pages = self._bringer.decode(dump.lookup, piece)
            space.put(pages, piece.first, piece.end)
            first = piece.end

    def _put_blocks(self, dump: Dump, space: AddressSpace, first: int, end: int) -> None:
        """Bring what can be had of some pages, block by block, and tell of what cannot."""
        while first < end:
            stop = min(dump.lookup.block_around(first, 1)[1], end)
            try:
                self._put(dump, space, first, stop)
            except HelperdError as error:
                self._failed(error, dump, first, stop, locked=space)
            first = stop

    def _around(self, dump: Dump, number: int) -> tuple[int, int]:
        around = self._settings.around
        if around == 0:
            return dump.lookup.block_around(number, _WINDOW_PAGES)
        first = number - number % around
        return first, min(first + around, dump.lookup.n_pages)

    def _fork(self, restore: Restore, dump: Dump, space: AddressSpace, message: Message) -> None:
        ident, self._next_child = self._next_child, self._next_child + 1
        child = space.fork(ident, message.fd)
        self._guard.send(link.CHILD, restore.ident, ident, child.uffd.fd)
        with restore.lock:
            dump.spaces.append(child)
        self._watch(restore, dump, child)
        self._fill.more()
        self._log.debug(f"task {dump.pid} has forked", event="fork", pid=dump.pid)

    def _space_done(self, dump: Dump, space: AddressSpace, gone: bool) -> None:
        """Let go of an address space that needs nothing more. Any thread may call this."""
        with space.lock:
            fd = space.uffd.fd
            if fd < 0:
                return
            restore = self._by_fd.pop(fd)[0]
            if space in dump.spaces:
                self._epoll.unregister(fd)
                with restore.lock:
                    dump.spaces.remove(space)
            self._counters.unwatched += 0 if gone else space.unwatched
            self._counters.lost += space.lost
            if space.unwatched and not gone and not space.is_child:
                self._log.warning(
                    f"task {dump.pid}: {space.unwatched} pages lie in memory that CRIU does not"
                    " have watched; they were not brought",
                    event="unwatched",
                )
                self._code = self._code or EXIT_TARGET
            # The guard's copy goes first, so that the last one is closed where nothing is missing.
            self._guard.send(link.DONE, restore.ident, space.ident)
            space.uffd.close()
        what = "has ended" if gone else "has all its pages"
        self._log.debug(f"task {dump.pid} {what}", event="done", pid=dump.pid)
        self._wake()

    def _failed(
        self,
        error: HelperdError,
        dump: Dump,
        first: int,
        end: int,
        tainted: bool = False,
        locked: AddressSpace | None = None,
    ) -> None:
        """See to it that nobody reads zeros for pages that cannot be had. Any thread.

        With ``tainted`` somebody has already got a page of that block, which may be as wrong as
        the rest of it: then the processes do not go on.
        """
        self._code = error.exit_code or EXIT_IMAGE
        self._log.error(
            f"task {dump.pid}: pages {dump.lookup.address_of(first):#x} and on cannot be brought:"
            f" {error}",
            event="lost",
            errno=error.errno,
        )
        for space in list(dump.spaces):
            if space is locked:
                self._give_up(dump, space, first, end, kill=tainted)
                continue
            with space.lock:
                self._give_up(dump, space, first, end, kill=tainted)
                done = space.finished and not space.missing.count
            if done:
                self._space_done(dump, space, False)

    def _give_up(
        self, dump: Dump, space: AddressSpace, first: int, end: int, *, kill: bool
    ) -> None:
        if space not in dump.spaces:
            return
        if self._can_poison and not kill:
            try:
                if space.poison(first, end):
                    return
            except Again:
                return  # The event first; then this comes again, by the next fault or the fill.
        # Left as it is until it is dead: closed now, its missing pages would read as zeros.
        self._epoll.unregister(space.uffd.fd)
        with self._by_fd[space.uffd.fd][0].lock:
            dump.spaces.remove(space)
        self._guard.send(link.KILL, 0, space.ident)
        self._log.error(f"task {dump.pid} is killed for that", event="killed", pid=dump.pid)

    def _look(self) -> None:
        """Forget who has ended, and restores that are over."""
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_SECONDS
            for _, dump, space in list(self._by_fd.values()):
                if not space.uffd.is_alive():
                    self._space_done(dump, space, True)
        for restore in list(self._restores.values()):
            # Without the guard nobody can say that a restore is over; its processes' end can.
            if restore.is_empty and (restore.finished or self._orphaned):
                self._drop(restore.ident)
                self._tell(restore)

    def _drop(self, ident: int) -> None:
        restore = self._restores.pop(ident, None)
        if restore is None:
            return
        self._fill.remove(restore)
        if self._remote is not None:
            self._remote.remove(restore)
        for dump in restore.dumps.values():
            for space in list(dump.spaces):
                self._space_done(dump, space, True)

    def _tell(self, restore: Restore) -> None:
        report = self._counters.report()
        self._guard.send_text(link.REPORT, restore.ident, json.dumps(report))
        self._recorder.write()
        self._log.info(
            f"restore {restore.ident}: all there, {self._counters.pages} pages,"
            f" {self._counters.faults} faults",
            event="complete",
        )

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"\0")
        except BlockingIOError:
            return
