"""Holding dumped processes until their images are on disk: a script for CRIU to run."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Iterator

from helperd.streamer.endpoint import HOLD_SOCKET

#: Waits for the one byte that says that the images are on disk.
_HOLD = """
import _socket, sys
client = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
try:
    client.connect(sys.argv[1])
    stored = client.recv(1) == b"\\0"
except OSError as error:
    sys.exit(f"helperd: {sys.argv[1]}: {error.strerror}")
sys.exit(not stored)
"""


@contextlib.contextmanager
def hold_script(directory: str) -> Iterator[str]:
    """Give the path of a script for CRIU to run after a dump, before it ends the processes.

    It does what ``helperd stream wait`` does. The processes are frozen meanwhile, so all that it
    needs is an interpreter and a socket. The script lies in a folder of its own.
    """
    path = os.path.join(os.path.abspath(directory), HOLD_SOCKET)
    wait = shlex.join((sys.executable, "-I", "-S", "-c", _HOLD, path))
    with tempfile.TemporaryDirectory(prefix="helperd-hold.") as folder:
        script = os.path.join(folder, "post-dump")
        fd = os.open(script, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o700)
        with open(fd, "w") as stream:
            stream.write(f'#!/bin/sh\ntest "$CRTOOLS_SCRIPT_ACTION" != post-dump || exec {wait}\n')
        yield script
