"""A dump and its page server in one: starts the command, serves it, and makes the images whole."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from typing import TYPE_CHECKING

from helperd.errors import EXIT_OK, UsageError, shell_status
from helperd.images.inventory import INVENTORY_NAME
from helperd.images.pagemap import pages_name, read_head
from helperd.offline.complete import complete_directory

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helperd.page_server.client import Door, Numbers
    from helperd.page_server.session import Received


def run(door: Door, command: Sequence[str]) -> tuple[int, Numbers]:
    """Run a command such as ``criu dump -t PID -D images/`` with this server as its page server.

    Returns:
        The command's exit code, or the server's where only that has failed; and what was done.

    Raises:
        UsageError: the command cannot be started.
        ImageError: the dump is complete, but the images could not be made whole.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        options = ["--page-server", "--ps-socket", str(theirs.fileno())]
        try:
            process = subprocess.Popen([*command, *options], pass_fds=[theirs.fileno()])
        except OSError as error:
            ours.close()
            raise UsageError(f"cannot start {command[0]}: {error.strerror}") from error
    # What the terminal sends goes to the command as well, and it knows best what to do.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        code, received, numbers = door.attend(ours)
        status = process.wait()
    finally:
        signal.signal(signal.SIGINT, before)
    if status:
        if received is not None:
            discard(door.storage.path, received)
        return shell_status(status), numbers
    if received is not None:
        door.free_superseded(received, numbers)
    if code == EXIT_OK and os.path.exists(os.path.join(door.storage.path, INVENTORY_NAME)):
        complete_directory(door.storage.path)
    return code, numbers


def discard(path: str, received: Received) -> None:
    """Remove what a dump has left that has failed after its pages were safe."""
    for name in received.names:
        pagemap = os.path.join(path, name)
        for file in (os.path.join(path, pages_name(read_head(pagemap).pages_id)), pagemap):
            os.unlink(file)
