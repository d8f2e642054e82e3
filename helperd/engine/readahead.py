"""Reads an image that is not in memory ahead, so that its disk is busy while the cores decode.

A thread of its own sends the payload to /dev/null. That fills the page cache in the kernel's own
large steps, and nothing is copied; asked for with FADV_WILLNEED the same took a third longer. As
long as everything is found in memory no thread is started.
"""

from __future__ import annotations

# Not threading and queue: they take longer to import, and at each fork, than what is used of them.
import _thread
import posix as os

from helperd.kernel.descriptors import open_null

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

#: How far ahead of the decoding the image is read, and in which steps. It does not stop at the end
#: of a request: the next one mostly begins there.
_AHEAD_BYTES = 32 << 20
_STEP_BYTES = 1 << 20
#: What a target takes: its pidfd and three files of /proc.
_SPARE_FDS = 4


class ReadAhead:
    """Keeps the pages image of one session in memory some way ahead.

    Args:
        fd: the pages image.
        n_bytes: of the image.
    """

    def __init__(self, fd: int, n_bytes: int) -> None:
        self._fd = fd
        self._end = n_bytes
        # What has been seen to: from the first of the requests that follow each other, to here.
        self._first = self._asked = 0
        self._reached = 0
        # How far it may go: to the end of a request that came out of order, else to the image's.
        self._limit = 0
        self._ask: Callable[[int], object] = self._look
        self._steps = _Steps()
        self._sink = -1
        try:
            self._sink = _open_sink()
        except OSError:
            self._ask = self._advise

    def reached(self, offset: int, end: int) -> None:
        """Say that the payload at ``offset`` is about to be read; one thread at a time.

        Args:
            offset: in the image.
            end: of the payload of the request that it belongs to.
        """
        if not self._first <= offset <= max(self._asked, self._limit):
            self._first = self._asked = offset
            self._limit = end
        elif end > self._limit:
            self._limit = max(end, self._end)
        self._reached = offset
        self._asked = max(self._asked, offset)
        wanted = min(offset + _AHEAD_BYTES, self._limit)
        while self._asked + _STEP_BYTES <= wanted:
            self._ask(self._asked)
            self._asked += _STEP_BYTES

    def close(self) -> None:
        """Close what this opened; nothing may be read any more."""
        if self._sink >= 0:
            os.close(self._sink)

    def _look(self, start: int) -> None:
        """See whether a step is in memory; from the first one on that is not, read them all."""
        try:
            # Of several bytes the kernel would begin to read the last, out of order.
            os.preadv(self._fd, [bytearray(1)], start, os.RWF_NOWAIT)
        except BlockingIOError:
            self._ask = self._steps.put if self._start_reading() else self._advise
        except OSError:
            # A tmpfs, which has everything in memory, or a file that cannot tell.
            self._ask = self._advise
        else:
            return
        self._ask(start)

    def _advise(self, start: int) -> None:
        try:
            os.posix_fadvise(self._fd, start, _STEP_BYTES, os.POSIX_FADV_WILLNEED)
        except OSError:
            return  # Whoever needs these bytes will meet it, too.

    def _start_reading(self) -> bool:
        try:
            _thread.start_new_thread(self._read, ())
        except RuntimeError:  # What Python says for EAGAIN: the limit of processes.
            return False
        return True

    def _read(self) -> None:
        try:
            while True:
                start = self._steps.get()
                # Unless the decoding has overtaken it, or requests have gone elsewhere.
                if self._first <= start < self._asked and start + _STEP_BYTES > self._reached:
                    os.sendfile(self._sink, self._fd, start, _STEP_BYTES)
        except OSError:
            # Whoever needs these bytes will meet the error, and can say what it means. A file that
            # cannot be sent anywhere is asked for in the other way.
            self._ask = self._advise


class _Steps:
    """A queue of offsets for one thread that takes them; any number may put them."""

    def __init__(self) -> None:
        self._offsets: list[int] = []
        self._mutex, self._filled = _thread.allocate_lock(), _thread.allocate_lock()
        self._filled.acquire()

    def put(self, offset: int) -> None:
        with self._mutex:
            self._offsets.append(offset)
            if self._filled.locked():
                self._filled.release()

    def get(self) -> int:
        """Return the first, when there is one."""
        while not self._offsets:
            self._filled.acquire()
        return self._offsets.pop(0)

    def qsize(self) -> int:
        return len(self._offsets)


def _open_sink() -> int:
    """Open /dev/null before the worker is confined, if that leaves enough for a target."""
    sink = open_null(os.O_WRONLY)
    spare: list[int] = []
    try:
        spare.extend(os.dup(sink) for _ in range(_SPARE_FDS))
    except OSError:
        os.close(sink)
        raise
    finally:
        for fd in spare:
            os.close(fd)
    return sink
