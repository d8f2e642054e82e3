"""stdout, for what was asked for: where it cannot go, that is told in one line or not at all."""

from __future__ import annotations

import io
import select
import sys

from helperd.errors import OutputGone, OutputLost, describe_errno

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

_STDOUT = 1


class _Stdout(io.FileIO):
    """The descriptor; after the first failure it takes everything, to be told of it once."""

    def __init__(self) -> None:
        super().__init__(_STDOUT, "w", closefd=False)
        self._lost = False

    def write(self, data: Buffer) -> int:
        """Write, waiting for a reader; raise OutputGone if there is none, or OutputLost."""
        view = memoryview(data).cast("B")
        while not self._lost:
            try:
                done = super().write(view)
            except BrokenPipeError:
                self._lost = True
                raise OutputGone("nobody reads the output any more") from None
            except OSError as error:
                self._lost = True
                raise OutputLost(
                    f"cannot write to stdout: {describe_errno(error.errno or 0)}",
                    errno=error.errno,
                ) from error
            if done is not None:
                return done
            poll = select.poll()
            poll.register(_STDOUT, select.POLLOUT)
            poll.poll()
        return len(view)


def prepare() -> None:
    """Have stdout take names that are not UTF-8, and tell when it cannot be written to."""
    if sys.stdout is sys.__stdout__:
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Stdout()), "utf-8", errors="backslashreplace"
        )


def flush() -> None:
    """See to it that everything has been written.

    Raises:
        OutputGone, OutputLost: it cannot be.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


def note(text: str) -> None:
    """Write to stderr what is good to know; without one, or with one that is full, it is lost."""
    try:
        if sys.stderr is not None:
            sys.stderr.write(text)
            sys.stderr.flush()
    except OSError:
        return
