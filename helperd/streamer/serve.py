"""Serving an image to ``criu restore --stream``."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from helperd.errors import HelperdError, ImageError, InternalError, MalformedStream, PeerGone
from helperd.streamer.endpoint import Connection, enlarge
from helperd.streamer.flat import FlatImage, Pages
from helperd.streamer.pages import send_pages
from helperd.wire.stream import Request

#: Bytes that a pipe to CRIU is made to hold, if the system allows it.
PIPE_BYTES = 1 << 20
#: Makes CRIU fail when a file had to be cut off: a record that is larger than all memory.
_POISON = b"\xff\xff\xff\xff"


class Serving:
    """One restore: everything that is sent over one connection.

    Args:
        image: what to send.
        connection: to CRIU.
        threads: that decode.
    """

    def __init__(self, image: FlatImage, connection: Connection, threads: int) -> None:
        self._image = image
        self._connection = connection
        self._asked: set[str] = set()
        self._content: int | Pages | None = None
        # What CRIU has asked for last, and whether it has closed that pipe before it had all.
        self._last = ""
        self._early = False
        self._files: dict[int, _FileFeed] = {}
        self._pool = ThreadPoolExecutor(threads)
        self._feeds: set[_PagesFeed] = set()
        self._stop = threading.Event()
        self._wake_r, self._wake_w = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Serve until CRIU has closed the connection and taken everything that it asked for.

        Raises:
            ProtocolError: CRIU leaves early, or does what it never does.
            ImageError: the image is broken.
        """
        done = False
        try:
            self._loop()
            done = True
        finally:
            self._close(failed=not done)

    def _loop(self) -> None:
        poll = select.poll()
        poll.register(self._connection, select.POLLIN)
        poll.register(self._wake_r, select.POLLIN)
        while not self._connection.ended or self._files or self._feeds:
            for fd, _ in poll.poll():
                if fd == self._wake_r:
                    self._reap()
                elif fd == self._connection.fileno():
                    self._connection.receive()
                    if self._connection.ended:
                        poll.unregister(fd)
                    while (event := self._connection.next_request()) is not None:
                        if isinstance(event, Request):
                            self._answer(event.name)
                        else:
                            pipe = self._begin(*event)
                            if pipe is not None:
                                poll.register(pipe, select.POLLOUT)
                elif self._send(fd):
                    poll.unregister(fd)
                    self._files.pop(fd).close()
        if self._early:
            raise PeerGone(f"CRIU has left before it had all of {self._last}")

    def _closed(self, name: str) -> None:
        """Note that CRIU has closed a pipe before it had all of a file.

        It does not want all of everything: not the pages of private mappings of huge-page files,
        for one. If nothing else is asked for since, it has died.
        """
        self._early |= name == self._last

    def _send(self, pipe: int) -> bool:
        """Send of a file what goes; return whether nothing more is to be sent."""
        file = self._files[pipe]
        try:
            return file.send()
        except BrokenPipeError:
            self._closed(file.name)
            return True

    def _answer(self, name: str) -> None:
        self._last, self._early = name, False
        if name in self._asked:
            raise MalformedStream(
                f"CRIU asks for {name} for a second time, as it does where private mappings of huge"
                " pages are: those cannot be streamed; decompress the images and restore from them"
            )
        self._content = self._image.open(name)
        if self._content is not None:
            self._asked.add(name)
        self._connection.reply(exists=self._content is not None)

    def _begin(self, name: str, pipe: int) -> int | None:
        """Begin to send what was asked for last; return the pipe if the loop has to do it."""
        content, self._content = self._content, None
        pipe_bytes = enlarge(pipe, PIPE_BYTES)
        if isinstance(content, Pages):

            def send() -> None:
                with contextlib.closing(content):
                    send_pages(
                        content, pipe, pipe_bytes, self._pool, self._stop, lambda: len(self._feeds)
                    )

            self._feeds.add(_PagesFeed(name, send, pipe, self._wake_w))
            return None
        assert content is not None
        self._files[pipe] = _FileFeed(name, content, pipe)
        return pipe

    def _reap(self) -> None:
        """Take leave of the pages that are sent."""
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_r, 4096)
        for feed in [feed for feed in self._feeds if feed.finished]:
            self._feeds.discard(feed)
            feed.join()
            if isinstance(feed.error, PeerGone):
                self._closed(feed.name)
            elif feed.error is not None:
                raise feed.error

    def _close(self, *, failed: bool) -> None:
        self._stop.set()
        for file in self._files.values():
            file.poison()
        for feed in self._feeds:
            feed.abort()
        self._connection.close()
        for feed in self._feeds:
            feed.join()
        self._pool.shutdown()
        os.close(self._wake_r)
        os.close(self._wake_w)
        if isinstance(self._content, Pages):
            self._content.close()
        elif self._content is not None:
            os.close(self._content)


class _FileFeed:
    """A file that is sent as it is, as far as its pipe takes it.

    Attributes:
        name: of the file.
    """

    def __init__(self, name: str, content: int, pipe: int) -> None:
        self.name = name
        self._content = content
        self._pipe = pipe
        self._offset = 0
        self._size = os.fstat(content).st_size

    def send(self) -> bool:
        """Send what goes without waiting; return whether that was all.

        Raises:
            BrokenPipeError: CRIU wants no more of it.
        """
        while self._offset < self._size:
            try:
                sent = os.splice(
                    self._content,
                    self._pipe,
                    min(self._size - self._offset, PIPE_BYTES),
                    offset_src=self._offset,
                    flags=os.SPLICE_F_NONBLOCK,
                )
            except BlockingIOError:
                return False
            if not sent:
                raise ImageError(f"{self.name} shrank while it was sent")
            self._offset += sent
        return True

    def poison(self) -> None:
        """Give up; CRIU must not take what it has for the whole file."""
        with contextlib.suppress(OSError):
            os.set_blocking(self._pipe, False)
            os.write(self._pipe, _POISON)
        self.close()

    def close(self) -> None:
        """Close the pipe, which tells CRIU that this is the end."""
        os.close(self._content)
        os.close(self._pipe)


class _PagesFeed:
    """A thread that sends pages and closes their pipe.

    Attributes:
        name: of the pages file.
        finished: whether nothing more comes.
        error: why it has failed, None if it has not.
    """

    def __init__(self, name: str, send: Callable[[], None], pipe: int, wake: int) -> None:
        self.name = name
        self._send = send
        self._pipe = pipe
        self._wake = wake
        self.finished = False
        self.error: HelperdError | None = None
        self._thread = threading.Thread(target=self._run, name="pages")
        self._thread.start()

    def _run(self) -> None:
        try:
            self._send()
        except HelperdError as error:
            self.error = error
        except Exception as error:
            self.error = InternalError(f"sending pages: {type(error).__name__}: {error}")
        finally:
            # Pages are counted by CRIU: what is missing is an error there.
            os.close(self._pipe)
            self.finished = True
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake, b"x")

    def abort(self) -> None:
        """Let a thread that waits for its pipe go on."""
        with contextlib.suppress(OSError):
            os.set_blocking(self._pipe, False)

    def join(self) -> None:
        """Wait for the thread's end."""
        self._thread.join()
