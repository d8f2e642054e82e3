"""The process that brings the pages: answers faults and events, and has the rest filled in."""

from __future__ import annotations

import collections
import json
import os
import select
import threading
import time

from helperd.blocks import pages_to_bytes
from helperd.confined.confine import take_away
from helperd.confined.seccomp import load_lazy
from helperd.errors import (
    EXIT_IMAGE,
    EXIT_OK,
    EXIT_PROTOCOL,
    EXIT_TARGET,
    HelperdError,
)
from helperd.images.lookup import ELSEWHERE
from helperd.kernel.userfaultfd import FEATURE_POISON, FORK, PAGEFAULT, Userfaultfd, features
from helperd.lazy_pages import link
from helperd.lazy_pages.counters import Counters
from helperd.lazy_pages.faults import Faults
from helperd.lazy_pages.fill import Fill
from helperd.lazy_pages.gate import Gate
from helperd.lazy_pages.restore import Dump, Restore, lazy_pages
from helperd.lazy_pages.space import AddressSpace, Again, Gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.kernel.userfaultfd import Message
    from helperd.lazy_pages.ahead import Ahead
    from helperd.lazy_pages.link import Link
    from helperd.lazy_pages.remote import Remote
    from helperd.lazy_pages.settings import Settings
    from helperd.lazy_pages.standin import Images
    from helperd.reports.log import Log

#: How often processes are asked whether they live, while nothing is brought to them.
_LOOK_SECONDS = 0.5
#: ... and how often it is told how much is there, if anybody wants to know.
_PROGRESS_SECONDS = 0.1
#: How often to look whether memory is in place that something is to be prefetched to.
_EXPECT_SECONDS = 0.0005
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
        self._expected: list[tuple[AddressSpace, Ahead, list[tuple[Dump, int, int]]]] = []
        self._ahead: dict[int, Ahead] = {}
        self._by_fd: dict[int, tuple[Restore, Dump, AddressSpace]] = {}
        self._counters = Counters()
        self._gate = Gate()
        self._fill = Fill(
            settings.fill, settings.rate, self._gate, self._counters, self._space_done, self._failed
        )
        self._remote: Remote | None = None
        if settings.page_server is not None:
            from helperd.lazy_pages.remote import Remote  # It takes a third of all imports' time.
            from helperd.wire.page_messages import Layout

            self._remote = Remote(
                settings.page_server,
                Layout(settings.header_bytes or (32 if images.are_new else 24)),
                settings.fill,
                self._gate,
                self._counters,
                self._space_done,
                self._failed,
                log,
            )
        self._faults = Faults(settings, self._counters, self._fill, self._remote, self._failed)
        self._thread = threading.get_ident()
        # Guards which spaces are in use, and which are over.
        self._lock = threading.Lock()
        self._over: collections.deque[tuple[Dump, AddressSpace, bool]] = collections.deque()
        # For whoever finds that pages cannot be had.
        self._failing = self._gate.lane()
        self._epoll = select.epoll()
        self._epoll.register(guard.fd, select.EPOLLIN)
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._can_poison = bool(features() & FEATURE_POISON)
        self._next_child = _FIRST_CHILD
        self._look_at = 0.0
        self._pause = _PROGRESS_SECONDS if settings.progress else _LOOK_SECONDS
        self._code = EXIT_OK
        self._ended = False
        self._orphaned = False

    def serve(self) -> int:
        """Serve until the guard says that no restore will come any more; return the exit code."""
        for lookup in self._images.lookups.values():
            lookup.load_tables()
        take_away(self._settings.sandbox, (), lambda: load_lazy(os.getpid()), self._log)
        self._fill.start(self._settings.threads)
        for pid in {pid for pid, *_ in self._settings.prefetch} & set(self._images.lookups):
            # The first restore's, long before its memory is there; of others once they are known.
            self._ahead[pid] = self._decode_ahead(pid)
        if self._remote is not None:
            self._remote.start()
        while not self._ended or self._restores:
            for fd, _ in self._epoll.poll(self._timeout):
                if fd == self._guard.fd:
                    self._hear()
                elif fd == self._wake_read:
                    os.read(fd, 1 << 10)
                elif (who := self._by_fd.get(fd)) is not None:
                    self._attend(*who)
            self._close_spaces()
            if self._expected:
                self._begin_prefetch()
            self._look()
        if self._remote is not None and not self._remote.close():
            self._code = self._code or EXIT_PROTOCOL
        return self._code

    @property
    def _timeout(self) -> float | None:
        """How long to wait for something to happen."""
        if self._expected:
            return _EXPECT_SECONDS
        return self._pause if self._restores else None

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
        restore.dumps[pid] = dump
        dump.spaces.append(space)
        self._watch(restore, dump, space)
        self._expect(dump, space)
        self._log.debug(f"task {pid}: {lazy.count} pages to bring", event="task", pid=pid)

    def _decode_ahead(self, pid: int) -> Ahead:
        """Have decoded what a task asked for when that was recorded."""
        lookup, lazy = self._images.lookups[pid], self._images.lazy[pid]
        numbers = []
        for recorded, _, _, asked in self._settings.prefetch:
            number = lookup.number_of(asked) if recorded == pid else -1
            run = lookup.run_of(number) if number >= 0 else -1
            if run >= 0 and lazy[run] and lookup.level_of[run] != ELSEWHERE:
                numbers.append(number)
        return self._fill.expect(lookup, list(dict.fromkeys(numbers)))

    def _expect(self, dump: Dump, space: AddressSpace) -> None:
        """Prepare to bring what was recorded, as soon as the task's memory is in place."""
        wanted = []
        for pid, address, n_pages, _ in self._settings.prefetch:
            if pid == dump.pid:
                first = dump.lookup.first_from(address)
                end = dump.lookup.first_from(address + pages_to_bytes(n_pages))
                wanted.append((dump, first, end))
        if wanted:
            ahead = self._ahead.pop(dump.pid, None) or self._decode_ahead(dump.pid)
            self._expected.append((space, ahead, wanted))

    def _begin_prefetch(self) -> None:
        """Begin where memory is in place: before the process runs into it, if that can be."""
        for expected in list(self._expected):
            space, ahead, wanted = expected
            dump, first, end = wanted[0]
            is_over = space not in dump.spaces or first >= end
            ready = space.finished or is_over or self._faults.put_first(dump, space, first)
            if ready:
                self._expected.remove(expected)
                self._fill.prefetch(ahead, wanted)

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
                space.finished = True
                if space.is_done:
                    self._space_done(dump, space, False)
        self._fill.add(restore)
        if self._remote is not None:
            self._remote.add(restore)

    def _attend(self, restore: Restore, dump: Dump, space: AddressSpace) -> None:
        """Read what a process has to say, and answer its faults."""
        self._fill.step_aside()
        begun = time.monotonic()
        try:
            if space not in dump.spaces:
                return
            with self._gate:
                messages = space.uffd.read()
                # Events first, whatever came first: once an event was read, a copy that does not
                # know of it would succeed, and bring back what was thrown away.
                for message in messages:
                    if message.event == FORK:
                        self._fork(restore, dump, space, message)
                    elif message.event != PAGEFAULT:
                        space.apply(message)
            for message in messages:
                if message.event == PAGEFAULT:
                    self._faults.answer(dump, space, message.start, begun)
        except Gone:
            self._space_done(dump, space, True)
            return
        finally:
            self._fill.go_on()
        if space.is_done:
            self._space_done(dump, space, False)

    def _fork(self, restore: Restore, dump: Dump, space: AddressSpace, message: Message) -> None:
        ident, self._next_child = self._next_child, self._next_child + 1
        child = space.fork(ident, message.fd)
        self._guard.send(link.CHILD, restore.ident, ident, child.uffd.fd)
        dump.spaces.append(child)
        self._watch(restore, dump, child)
        self._fill.more()
        self._log.debug(f"task {dump.pid} has forked", event="fork", pid=dump.pid)

    def _space_done(self, dump: Dump, space: AddressSpace, gone: bool) -> None:
        """Let go of an address space that needs nothing more. Any thread may call this."""
        with self._lock:
            if space in dump.spaces:
                dump.spaces.remove(space)
            elif not space.is_given_up:
                return
        self._over.append((dump, space, gone))
        if threading.get_ident() == self._thread:
            self._close_spaces()
        else:
            self._wake()

    def _close_spaces(self) -> None:
        """Close what needs nothing more, which nobody may be using then: the main thread does."""
        while self._over:
            dump, space, gone = self._over.popleft()
            fd = space.uffd.fd
            if fd < 0:
                continue
            restore = self._by_fd.pop(fd)[0]
            if not space.is_given_up:
                self._epoll.unregister(fd)
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
            with self._gate:
                space.uffd.close()
            what = "has ended" if gone else "has all its pages"
            self._log.debug(f"task {dump.pid} {what}", event="done", pid=dump.pid)

    def _failed(
        self,
        error: HelperdError,
        dump: Dump,
        first: int,
        end: int,
        tainted: bool,
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
            with self._failing:
                self._give_up(dump, space, first, end, kill=tainted)
            if space.is_done and not space.is_given_up:
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
        with self._lock:
            if space not in dump.spaces:
                return
            dump.spaces.remove(space)
            space.is_given_up = True
        self._epoll.unregister(space.uffd.fd)
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
        if self._settings.progress:
            left = sum(restore.missing for restore in self._restores.values())
            done = self._counters.pages
            self._guard.send(link.PROGRESS, 0, done << 32 | min(done + left, 0xFFFFFFFF))
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
        self._faults.recorder.write()
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
