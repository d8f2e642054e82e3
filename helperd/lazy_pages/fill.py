"""The fill: everything that nobody has asked for yet, brought behind the running process."""

from __future__ import annotations

import os
import threading
import time

from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.codec.chunk import CHUNK_PAGES
from helperd.errors import HelperdError
from helperd.kernel.hints import stand_back, stay_on
from helperd.lazy_pages.ahead import Ahead
from helperd.lazy_pages.bring import Bringer, PageReader
from helperd.lazy_pages.counters import FAULT, FILL, PREFETCH, Tally
from helperd.lazy_pages.space import Again, Gone

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from helperd.images.lookup import Lookup, Piece
    from helperd.lazy_pages.counters import Counters
    from helperd.lazy_pages.gate import Gate
    from helperd.lazy_pages.restore import Dump, Restore
    from helperd.lazy_pages.space import AddressSpace

#: When to fill: at once, while no faults come, never.
NOW, IDLE, NEVER = FILL_MODES = ("now", "idle", "never")

#: With IDLE: so long without a fault is idleness.
_IDLE_SECONDS = 0.05
#: Pages that are copied at once where faults come: 128 KiB, some 30 microseconds.
_STEP_PAGES = 32
#: So long after a fault another one may come.
_QUIET_SECONDS = 0.005
#: After a copy that was refused because an event waited to be read.
_AGAIN_SECONDS = 0.0005
#: Who jumps about faults again within microseconds, and would wait for a CPU, the lanes, Python's
#: lock: the next piece is begun when he has paused for so long, but held back no longer than that.
_PAUSE_SECONDS = 0.001
_MOST_HELD_SECONDS = 0.005
#: For so long threads stay where they were put: less than that a busy CPU costs.
_SPREAD_SECONDS = 0.25
#: Pages that are kept decoded until there is memory to put them in, of all tasks: 8 MiB.
_MOST_AHEAD_PAGES = 2048
#: Of threads that fill: what the process itself does comes first, and answering its faults.
_NICENESS = 5


class Fill:
    """Threads that bring what is missing, in the order of the prefetch list, then of addresses.

    Args:
        mode: one of FILL_MODES.
        bytes_per_second: at most; 0 for no limit.
        gate: to copy within lanes of.
        counters: of what was brought.
        space_done: called when an address space needs nothing more.
        failed: called with what went wrong, the dump, the pages that cannot be had, and whether
            somebody has got another page of the same block.
    """

    def __init__(
        self,
        mode: str,
        bytes_per_second: int,
        gate: Gate,
        counters: Counters,
        space_done: Callable[[Dump, AddressSpace, bool], None],
        failed: Callable[[HelperdError, Dump, int, int, bool], None],
    ) -> None:
        self._mode = mode
        self._rate = bytes_per_second
        self._gate = gate
        self._counters = counters
        self._space_done = space_done
        self._failed = failed
        self._restores: list[Restore] = []
        # What is to be decoded, and what has memory to be put in, is before all else.
        self._expected: list[Ahead] = []
        self._ready: list[tuple[Dump, Ahead]] = []
        self._room = _MOST_AHEAD_PAGES
        # The next one last.
        self._wanted: list[tuple[Dump, int, int, str]] = []
        self._condition = threading.Condition()
        self._calm = threading.Event()
        self._calm.set()
        self._last_fault = 0.0
        self._next_at = 0.0
        self._jumped_at = 0.0

    def start(self, n_threads: int) -> None:
        """Start the threads."""
        cpus = sorted(os.sched_getaffinity(0))
        if n_threads > len(cpus):
            cpus = []  # Some would share one, whatever else is idle.
        for number in range(n_threads):
            name = f"fill-{number}"
            filler = _Filler(self._gate, cpus[number : number + 1], cpus)
            threading.Thread(target=self._work, args=(filler,), name=name, daemon=True).start()

    def expect(self, lookup: Lookup, numbers: list[int]) -> Ahead:
        """Decode pages, as many as are kept, of a task whose memory is not in place yet."""
        with self._condition:
            ahead = Ahead(lookup, numbers, self._room)
            self._room -= ahead.n_kept
            self._expected.append(ahead)
            self._condition.notify_all()
        return ahead

    def prefetch(self, ahead: Ahead, wanted: list[tuple[Dump, int, int]]) -> None:
        """Bring pages before the fill, now that their memory is in place; first those ahead."""
        with self._condition:
            ahead.is_ready = True
            if ahead in self._expected:
                self._expected.remove(ahead)
            self._ready.append((wanted[0][0], ahead))
            self._wanted[:0] = [(*pages, PREFETCH) for pages in reversed(wanted)]
            self._condition.notify_all()

    def add(self, restore: Restore) -> None:
        """Fill the spaces of a restore that has finished."""
        with self._condition:
            self._restores.append(restore)
            self._condition.notify_all()

    def remove(self, restore: Restore) -> None:
        """Leave a restore alone from now on."""
        with self._condition:
            if restore in self._restores:
                self._restores.remove(restore)

    def urgent(self, dump: Dump, first: int, end: int) -> None:
        """Bring these pages before all others, but not in the way of who jumps about."""
        self._jumped_at = time.monotonic()
        with self._condition:
            self._wanted.append((dump, first, end, FAULT))
            self._condition.notify()

    def wait_for(self, dump: Dump, space: AddressSpace, number: int, address: int) -> bool:
        """Have a fault woken once its page is there; return False if no thread is bringing it."""
        with self._condition:
            return dump.wait_for(space, number, address)

    def follow(self, dump: Dump, number: int, window: int) -> None:
        """Go on from a page on, where somebody reads page after page; a window of 0: no more."""
        if self._mode != NOW or self._rate:
            return
        with self._condition:
            if window:
                dump.follow(number, window)
            else:
                dump.window = 0

    def more(self) -> None:
        """Say that there may be more to bring, or that the mode has changed."""
        with self._condition:
            self._condition.notify_all()

    def hurry(self) -> None:
        """Fill now and without a limit, whatever was wanted before."""
        self._mode, self._rate = NOW, 0
        self.more()

    def step_aside(self) -> None:
        """Begin nothing new: a fault waits."""
        self._calm.clear()

    def go_on(self) -> None:
        """The fault is answered."""
        self._last_fault = time.monotonic()
        self._calm.set()

    def _work(self, filler: _Filler) -> None:
        stand_back(_NICENESS)
        while True:
            if self._look_ahead(filler):
                continue
            self._calm.wait()
            self._hold_back()
            claim = self._claim(filler)
            if claim is None:
                continue
            filler.choose_cpu()
            dump, first, end, why = claim
            again = False
            at = first
            try:
                while at < end:
                    at, is_refused = self._bring_piece(filler, dump, at, end, why)
                    again |= is_refused
            finally:
                with self._condition:
                    waiting = dump.done(first)
                _wake(filler, dump, waiting)
            with self._condition:
                if again and why == PREFETCH:
                    # Not all mappings are in place; the rest of these pages first, once they are.
                    self._wanted.append((dump, first, end, why))
                self._condition.notify_all()
            if again:
                time.sleep(_AGAIN_SECONDS)

    def _look_ahead(self, filler: _Filler) -> bool:
        """Decode or put in place what is sure to be asked for; return whether there was any."""
        with self._condition:
            found = next((one for one in self._ready if not one[1].n_under_way), None)
            if found is None and self._expected:
                ahead = self._expected[0]
                ahead.n_under_way += 1
            elif found is None:
                return False
        if found is None:
            ahead.decode(filler.reader)
            with self._condition:
                ahead.n_under_way -= 1
                if ahead in self._expected:
                    self._expected.remove(ahead)
                self._condition.notify_all()
        else:
            self._put_ahead(filler, *found)
            with self._condition:
                if found in self._ready:
                    self._ready.remove(found)
                    self._room += found[1].n_kept
        return True

    def _put_ahead(self, filler: _Filler, dump: Dump, ahead: Ahead) -> None:
        """Put in place what can be; what cannot is brought with its block."""
        tally = Tally(self._counters, PREFETCH)
        for pages in ahead.pages(filler.reader):
            for space in list(dump.spaces):
                with filler.lane:
                    if space in dump.spaces:
                        space.put_pages(pages, tally)
        for space in list(dump.spaces):
            if space.is_done:
                self._space_done(dump, space, False)

    def _hold_back(self) -> None:
        """Wait while somebody jumps about, but not for long."""
        end = time.monotonic() + _MOST_HELD_SECONDS
        while time.monotonic() < min(end, self._jumped_at + _PAUSE_SECONDS):
            time.sleep(_PAUSE_SECONDS)

    def _claim(self, filler: _Filler) -> tuple[Dump, int, int, str] | None:
        """Return pages to bring, or None after having waited for there to be any."""
        filler.follows = False
        with self._condition:
            while self._wanted:
                dump, first, end, why = self._wanted.pop()
                run = next(
                    (run for space in dump.spaces for run in space.missing.runs(first, end)), None
                )
                if run is not None and run[0] not in dump.busy:
                    if run[1] < end:
                        self._wanted.append((dump, run[1], end, why))
                    end = self._limit(dump, run[0], run[1])
                    dump.begin(run[0], end)
                    return dump, run[0], end, why
            wait = self._wait_seconds()
            if wait is None or wait > 0:
                self._condition.wait(wait)
                return None
            for restore in list(self._restores):
                for dump in restore.dumps.values():
                    found = dump.next_missing()
                    if found is not None:
                        filler.follows = dump.window > 0
                        end = self._limit(dump, *found)
                        dump.begin(found[0], end)
                        return dump, found[0], end, FILL
            self._condition.wait(None)
            return None

    def _limit(self, dump: Dump, first: int, end: int) -> int:
        """Return where a piece that starts at ``first`` ends, and make the next one wait for it."""
        lookup = dump.lookup
        block_end = lookup.block_around(first, 1)[1]
        end = min(end, max(first + max(CHUNK_PAGES, dump.window), block_end))
        if block_end < end < lookup.n_pages:
            # Not within a block: it would be decoded once for each of the two pieces.
            end = lookup.block_around(end, 1)[0]
        if self._rate:
            now = time.monotonic()
            self._next_at = max(self._next_at, now) + pages_to_bytes(end - first) / self._rate
        return end

    def _wait_seconds(self) -> float | None:
        if self._mode == NEVER:
            return None
        now = time.monotonic()
        wait = self._next_at - now if self._rate else 0.0
        if self._mode == IDLE:
            wait = max(wait, self._last_fault + _IDLE_SECONDS - now)
        return wait

    def _bring_piece(
        self, filler: _Filler, dump: Dump, first: int, end: int, why: str
    ) -> tuple[int, bool]:
        """Bring pages up to where a piece ends; return that, and whether some were refused."""
        first = dump.local_from(first)
        if first >= end:
            return end, False
        try:
            piece = dump.lookup.piece(first, end)
        except HelperdError as error:
            self._failed(error, dump, first, end, False)
            return end, False
        try:
            return piece.end, self._bring(filler, dump, piece, why)
        except HelperdError:
            return piece.end, self._bring_blocks(filler, dump, first, piece.end, why)

    def _bring_blocks(self, filler: _Filler, dump: Dump, first: int, end: int, why: str) -> bool:
        """Bring what can be had of some pages, block by block, and tell of what cannot."""
        again = False
        while first < end:
            stop = min(dump.lookup.block_around(first, 1)[1], end)
            try:
                piece = dump.lookup.piece(first, stop)
                again |= self._bring(filler, dump, piece, why)
            except HelperdError as error:
                tainted = why != FILL and dump.lookup.place(first)[3] > 1
                self._failed(error, dump, first, stop, tainted)
            first = stop
        return again

    def _bring(self, filler: _Filler, dump: Dump, piece: Piece, why: str) -> bool:
        pages = filler.bringer.decode(dump.lookup, piece)
        again = False
        tally = Tally(self._counters, why)
        for space in list(dump.spaces):
            gone = False
            at = piece.first
            while at < piece.end and not gone:
                # In steps, so that a fault that comes meanwhile need not wait for all of them.
                step = piece.end if filler.follows or self._is_quiet() else at + _STEP_PAGES
                stop = min(step, piece.end)
                if not self._calm.is_set():
                    self._calm.wait()
                with filler.lane:
                    if space not in dump.spaces:
                        break
                    try:
                        space.put(pages, at, stop, tally, wake=not filler.follows)
                    except Again:
                        again = True
                    except Gone:
                        gone = True
                at = stop
            if gone or space.is_done:
                self._space_done(dump, space, gone)
        return again

    def _is_quiet(self) -> bool:
        """Return whether there has been no fault for a while."""
        return time.monotonic() - self._last_fault > _QUIET_SECONDS


def _wake(filler: _Filler, dump: Dump, waiting: list[tuple[AddressSpace, int]]) -> None:
    """Wake who waited for a piece; who still misses a page faults again, and is answered then."""
    with filler.lane:
        for space, address in waiting:
            if space in dump.spaces:
                space.uffd.wake(address - address % PAGE_SIZE, PAGE_SIZE)


class _Filler:
    """What each thread has for itself.

    Attributes:
        bringer: decodes.
        reader: decodes single pages.
        lane: to copy within.
        follows: whether somebody reads on and on through what it is bringing. Then he is woken
            when all of a piece is there, and not at each step, to fault at the next one.
    """

    def __init__(self, gate: Gate, own_cpu: list[int], cpus: list[int]) -> None:
        self.bringer = Bringer()
        self.reader = PageReader()
        self.lane = gate.lane()
        self.follows = False
        self._own_cpu = own_cpu
        self._cpus = cpus
        self._spreads_until = 0.0

    def choose_cpu(self) -> None:
        """Stay on the thread's own CPU at first; what takes longer, the kernel spreads better."""
        if not self._cpus:
            return
        if not self._spreads_until:
            self._spreads_until = time.monotonic() + _SPREAD_SECONDS
            stay_on(self._own_cpu)
        elif time.monotonic() > self._spreads_until:
            stay_on(self._cpus)
            self._cpus = []
