"""The threads of a session: each takes part in a request, with decoders of its own."""

from __future__ import annotations

# Not threading and queue: they take longer to import, and at each fork, than what is used of them.
import _thread
import posix as os

from helperd.codec import decoders as ready
from helperd.codec.chunk import CHUNK_PAGES
from helperd.kernel.hints import cpu_for_each, stay_on
from helperd.kernel.syscalls import current_cpu, move_to

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from helperd.codec.decoders import Decoders

    class Work(Protocol):
        """What threads share."""

        @property
        def n_pages(self) -> int:
            """So many pages there are in it."""

        def run(self, decoders: Decoders) -> None:
            """Do as much of it as there is left to do."""


#: A request of fewer pages is done at once: waking a thread would take longer than it helps.
_SHARED_PAGES = 2 * CHUNK_PAGES
#: So many pages have to come, in one request or in all, before there are threads to wake whose
#: buffers are not ready: to start one, and to fault them in, takes as long as some MiB do.
_THREADS_PAGES = 8 * CHUNK_PAGES


class _Member:
    """A thread as its crew sees it.

    Attributes:
        order: released when there is work for it.
        done: released when it has done what it could.
        work: what it is to take part in.
    """

    __slots__ = ("done", "order", "work")

    def __init__(self) -> None:
        self.order, self.done = _thread.allocate_lock(), _thread.allocate_lock()
        self.order.acquire()
        self.done.acquire()
        self.work: Work | None = None

    def serve(self, decoders: Decoders, cpu: int) -> None:
        """Be this thread, on that CPU if any, for as long as the process lasts."""
        if cpu >= 0:
            move_to(cpu)
        while True:
            self.order.acquire()
            work, self.work = self.work, None
            try:
                if work is not None:
                    work.run(decoders)
            finally:
                self.done.release()


class Crew:
    """Threads that wait for work, started when they pay.

    Args:
        threads: how many there may be, the calling one included.

    Attributes:
        decoders: those of the calling thread.
    """

    def __init__(self, threads: int) -> None:
        self._size = threads
        self.decoders = ready.take()
        self._members: list[_Member] = []
        self._cpus = cpu_for_each(threads)
        self._pages = 0

    def do(self, work: Work) -> None:
        """Carry out ``work``; the calling thread takes part."""
        self._pages += work.n_pages
        wanted = 0
        if work.n_pages >= _SHARED_PAGES:
            wanted = min(self._size, work.n_pages // CHUNK_PAGES) - 1
            pays = self._pages >= _THREADS_PAGES
            self._start(wanted if pays else min(wanted, len(self._members) + ready.n_kept()))
        members = self._members[:wanted]
        for member in members:
            member.work = work
            member.order.release()
        if members and self._cpus:
            stay_on(self._cpus[:1])
        work.run(self.decoders)
        for member in members:
            member.done.acquire()
        if members and self._cpus:
            stay_on(self._cpus)

    def close(self) -> None:
        """Leave the calling thread's decoders to the next crew of this process."""
        ready.keep(self.decoders)

    def _start(self, wanted: int) -> None:
        """Have ``wanted`` threads waiting, or as many as the system gives."""
        if len(self._members) >= wanted:
            return
        if not self._members and (here := current_cpu()) in self._cpus:
            # The calling thread is to stay where it is: a new one may be anywhere else already.
            self._cpus.remove(here)
            self._cpus.insert(0, here)
        try:
            while len(self._members) < wanted:
                member = _Member()
                cpu = self._cpus[len(self._members) + 1] if self._cpus else -1
                _thread.start_new_thread(member.serve, (ready.take(), cpu))
                self._members.append(member)
                # It may be born on this CPU, and has to run to leave for its own; it would wait
                # until this thread has had its turn, which is milliseconds.
                os.sched_yield()
        except (RuntimeError, MemoryError, OSError):
            # Python makes a RuntimeError of EAGAIN, the limit of processes.
            self._size = len(self._members) + 1
