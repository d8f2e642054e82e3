"""Pages compressed as they come, each by itself, by all cores.

Every thread does all of it: it reads what it will compress, so that the pages are in the caches of
its own CPU, and while it compresses the next one reads.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
from array import array
from collections.abc import Callable

from helperd.blocks import PAGE_SIZE
from helperd.codec.encode import PIECE_PAGES, Encoder, Placed
from helperd.errors import HelperdError, ImageFormatError, InternalError, ResourceError
from helperd.images.records import os_failure
from helperd.kernel.hints import cpu_for_each, stay_on
from helperd.streamer.sinks import SinkFile

_PIECE_BYTES = PIECE_PAGES * PAGE_SIZE
_ONES = array("H", (1,)) * PIECE_PAGES
#: For each file. They compress as much as CRIU sends, and with their buffers less than 64 MiB are
#: resident.
_MOST_THREADS = 4
#: Buffers beyond one for each thread: for pieces that wait until the one in front of them is
#: written.
_WAITING = 2


class Encoders:
    """The buffers that pages are compressed in, and the threads that do it.

    Args:
        threads: for each file, if not more than make sense.
        acceleration: LZ4's.

    Attributes:
        threads: for each file.
        stopping: whether all is to end early.
    """

    def __init__(self, threads: int, acceleration: int) -> None:
        self.threads = threads = min(threads, _MOST_THREADS)
        self._acceleration = acceleration
        self._free: list[Encoder] = []
        self._room = threading.Semaphore(threads + _WAITING)
        self._cpus = cpu_for_each(threads)
        self._lock = threading.Lock()
        self._running: list[threading.Thread] = []
        self.stopping = False
        self._stopped, self._stop = os.pipe2(os.O_CLOEXEC)

    def take(self) -> Encoder:
        """Return a buffer; waits until one is free."""
        self._room.acquire()
        if self._free:
            return self._free.pop()
        return Encoder(self._acceleration, per_page=True)

    def give_back(self, encoder: Encoder) -> None:
        """Take back a buffer that ``take`` has given."""
        self._free.append(encoder)
        self._room.release()

    def start(self, work: Callable[[], None], number: int) -> None:
        """Do some work in a thread of its own, the one of this number of its file.

        Raises:
            ResourceError: the system gives no more threads.
        """

        def run() -> None:
            # A signal may have come before it was known that this thread runs: nobody waits for it.
            if self.stopping:
                return
            if self._cpus:
                stay_on((self._cpus[number],))
            work()

        thread = threading.Thread(target=run, name="encoder")
        with self._lock:
            self._running = [other for other in self._running if other.is_alive()]
            # Before it is started, for a signal may come in between.
            self._running.append(thread)
            try:
                thread.start()
            except RuntimeError as error:
                self._running.remove(thread)
                raise ResourceError(f"cannot start a thread: {error}") from error

    def wait_readable(self, fd: int) -> None:
        """Wait until something can be read, or all is to end early."""
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        poll.register(self._stopped)
        poll.poll()

    def close(self) -> None:
        """End the threads; can be called again."""
        if self.stopping:
            return
        self.stopping = True
        os.close(self._stop)
        while True:
            with self._lock:
                if not self._running:
                    break
                thread = self._running.pop()
            if thread.ident is not None:
                thread.join()
        os.close(self._stopped)


class PagesReceiver:
    """Compresses the pages of a file, each by itself, and writes them in order.

    Attributes:
        ended: whether nothing more is read: all has come, or something has failed.
        n_bytes: that have come.
        pipe: that it has been given, -1 for none; it closes it.
    """

    def __init__(self, name: str, file: SinkFile, encoders: Encoders) -> None:
        self._name = name
        self._file = file
        self._encoders = encoders
        self.ended = False
        self.n_bytes = 0
        self.pipe = -1
        self._wake: Callable[[], None] = lambda: None
        self._reading = threading.Lock()
        self._n_threads = 0
        self._sizes: list[array[int]] = []
        # What follows is changed under this lock.
        self._changed = threading.Condition()
        self._waiting: dict[int, tuple[Encoder, Placed]] = {}
        self._is_writing = False
        self._written = 0
        self._error: HelperdError | None = None

    def drain(self, pipe: int, wake: Callable[[], None]) -> None:
        """Take all that comes through a pipe, in threads.

        Args:
            pipe: non-blocking; it is closed at its end, or when something fails.
            wake: called by some thread once nothing more is read.

        Raises:
            ResourceError: the system gives no thread.
        """
        self.pipe, self._wake = pipe, wake
        try:
            self._start_thread()
        except ResourceError:
            self.pipe = -1
            raise

    def check(self) -> None:
        """Raise what has gone wrong, if something has."""
        if self._error is not None:
            raise self._error

    def finish(self) -> array[int]:
        """Wait until all is written; return the stored size of each page."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or (self.ended and self._written == len(self._sizes))
            )
        self.check()
        self._file.close()
        sizes = array("I")
        for part in self._sizes:
            sizes += part
        self._sizes.clear()
        return sizes

    def _start_thread(self) -> None:
        number, self._n_threads = self._n_threads, self._n_threads + 1
        self._encoders.start(self._run, number)

    def _run(self) -> None:
        try:
            while self._take_piece():
                pass
        except HelperdError as error:
            self._fail(error)
        except Exception as error:
            self._fail(InternalError(f"compressing {self._name}: {type(error).__name__}: {error}"))

    def _fail(self, error: HelperdError) -> None:
        with self._changed:
            self._error = self._error or error
            self._drop_waiting()
            self._changed.notify_all()
        self._wake()
        with self._reading:
            self._end()

    def _take_piece(self) -> bool:
        """Read, compress and write pages; return whether there may be more."""
        with self._reading:
            if self.ended or self._error is not None:
                return False
            encoder = self._encoders.take()
            try:
                filled = self._read(encoder)
            except BaseException:
                self._encoders.give_back(encoder)
                raise
            index = len(self._sizes)
            if filled:
                self._sizes.append(array("I"))
            if filled < _PIECE_BYTES:
                self._end()
            elif self._n_threads < self._encoders.threads:
                # Fewer threads do it, too.
                with contextlib.suppress(ResourceError):
                    self._start_thread()
        if not filled:
            self._encoders.give_back(encoder)
            return False
        try:
            placed = encoder.place(_ONES[: filled // PAGE_SIZE])
        except BaseException:
            self._encoders.give_back(encoder)
            raise
        self._sizes[index] = placed.sizes
        self._write(index, encoder, placed)
        return True

    def _read(self, encoder: Encoder) -> int:
        """Fill the buffer; return the bytes, fewer than it takes only at the end."""
        filled = 0
        while filled < _PIECE_BYTES:
            if self._encoders.stopping or self._error is not None:
                raise InternalError(f"{self._name}: stopped early")
            try:
                got = os.readv(self.pipe, [encoder.pages[filled:_PIECE_BYTES]])
            except BlockingIOError:
                self._encoders.wait_readable(self.pipe)
                continue
            except OSError as error:
                raise os_failure(error, f"cannot read {self._name}") from error
            if not got:
                break
            filled += got
        self.n_bytes += filled
        if filled % PAGE_SIZE:
            raise ImageFormatError(f"{self._name} ends inside a page")
        return filled

    def _end(self) -> None:
        """Read nothing more; ``_reading`` is held."""
        if self.ended:
            return
        with self._changed:
            self.ended = True
            self._changed.notify_all()
        os.close(self.pipe)
        self._wake()

    def _write(self, index: int, encoder: Encoder, placed: Placed) -> None:
        """Write what has its turn now, this piece or leave it to the thread that is writing."""
        with self._changed:
            self._waiting[index] = (encoder, placed)
            if self._error is not None:
                self._drop_waiting()
            if self._is_writing:
                return
            self._is_writing = True
        while True:
            with self._changed:
                turn = self._waiting.pop(self._written, None)
                if turn is None:
                    self._is_writing = False
                    return
            encoder, placed = turn
            try:
                self._file.write_ranges(placed.ranges, placed.n_bytes)
            finally:
                self._encoders.give_back(encoder)
            with self._changed:
                self._written += 1
                self._changed.notify_all()

    def _drop_waiting(self) -> None:
        """Give back what is not to be written any more; ``_changed`` is held."""
        while self._waiting:
            self._encoders.give_back(self._waiting.popitem()[1][0])
