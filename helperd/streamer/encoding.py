"""Pages compressed as they come, each by itself, by all cores."""

from __future__ import annotations

import os
import threading
from array import array
from concurrent.futures import ThreadPoolExecutor

from helperd.blocks import PAGE_SIZE
from helperd.codec.encode import PIECE_PAGES, Encoder
from helperd.errors import HelperdError, ImageFormatError, InternalError
from helperd.streamer.sinks import SinkFile

_PIECE_BYTES = PIECE_PAGES * PAGE_SIZE


class Encoders:
    """Threads that compress, and the buffers that they do it in."""

    def __init__(self, threads: int, acceleration: int) -> None:
        self._acceleration = acceleration
        self.pool = ThreadPoolExecutor(threads)
        self._free: list[Encoder] = []
        self._room = threading.Semaphore(threads + 1)

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

    def close(self) -> None:
        """End the threads."""
        self.pool.shutdown(cancel_futures=True)


class PagesReceiver:
    """Compresses pages as they come, each by itself, and writes them in order."""

    def __init__(self, name: str, file: SinkFile, encoders: Encoders) -> None:
        self._name = name
        self._file = file
        self._encoders = encoders
        self._encoder: Encoder | None = None
        self._filled = 0
        self._sizes: list[array[int]] = []
        self._done = threading.Condition()
        self._written = 0
        self._error: HelperdError | None = None

    def move(self, source: int, n_bytes: int) -> int:
        """Take up to ``n_bytes`` from a descriptor; return how many, 0 at its end."""
        if self._error is not None:
            raise self._error
        encoder = self._encoder = self._encoder or self._encoders.take()
        n_bytes = min(n_bytes, _PIECE_BYTES - self._filled)
        got = os.readv(source, [encoder.pages[self._filled : self._filled + n_bytes]])
        self._filled += got
        if self._filled == _PIECE_BYTES:
            self._submit()
        return got

    def _submit(self) -> None:
        encoder, self._encoder = self._encoder, None
        assert encoder is not None
        n_pages, self._filled = self._filled // PAGE_SIZE, 0
        self._sizes.append(array("I"))
        self._encoders.pool.submit(self._encode, len(self._sizes) - 1, encoder, n_pages)

    def _encode(self, index: int, encoder: Encoder, n_pages: int) -> None:
        try:
            encoded = encoder.encode(array("H", (1,)) * n_pages)
            self._sizes[index] = encoded.sizes
            self._write(index, encoded.payload)
        except HelperdError as error:
            self._error = error
        except Exception as error:
            self._error = InternalError(f"compressing {self._name}: {error}")
        finally:
            self._encoders.give_back(encoder)
            with self._done:
                self._done.notify_all()

    def _write(self, index: int, payload: bytes) -> None:
        """Write a piece when its turn has come: what waits is never more than the threads hold."""
        with self._done:
            self._done.wait_for(lambda: self._error or self._written == index)
            if self._error is not None:
                return
        self._file.write(payload)
        with self._done:
            self._written += 1
            self._done.notify_all()

    def close(self) -> None:
        """Say that the file is complete."""
        if self._filled % PAGE_SIZE:
            raise ImageFormatError(f"{self._name} ends inside a page")
        if self._filled:
            self._submit()
        elif self._encoder is not None:
            self._encoders.give_back(self._encoder)
            self._encoder = None

    def finish(self) -> array[int]:
        """Wait until all is written; return the stored size of each page."""
        with self._done:
            self._done.wait_for(lambda: self._error or self._written == len(self._sizes))
        if self._error is not None:
            raise self._error
        self._file.close()
        sizes = array("I")
        for part in self._sizes:
            sizes += part
        self._sizes.clear()
        return sizes
