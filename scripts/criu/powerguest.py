"""Changes checkpoints on a disk, again and again, in the virtual machine: see powercuts.py.

Says on stdout what it begins, when what is new is about to come into effect, and what is done.
Each turn works on copies of its own; those of the turn before stay, so that whoever looks at the
disk can see whether what was said holds.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

from helperd import tools
from helperd.images.writer import ImageWriter
from helperd.offline import dedup
from helperd.offline.switch import Switch
from helperd.page_server.connection import Connection
from helperd.page_server.session import receive as hold
from helperd.page_server.storage import Storage
from helperd.reports.log import Log

_MOUNT = Path("/tmp/disk")
_KEPT_TURNS = 3
_ANSWERS = 5

_P = ParamSpec("_P")
_R = TypeVar("_R")


class _Guest:
    """Says what goes on."""

    def __init__(self) -> None:
        self._what = ""
        # The last moment at which all is old.
        Switch.commit = self._told(Switch.commit)  # type: ignore[method-assign]
        ImageWriter.finish = self._told(ImageWriter.finish)  # type: ignore[method-assign]
        dedup.punch_files = self._told(dedup.punch_files)

    def begin(self, turn: int, job: str) -> None:
        """Say that a job begins."""
        self._what = f"{turn} {job}"
        print(f"begin {self._what}", flush=True)

    def done(self) -> None:
        """Say that it is done."""
        print(f"done {self._what}", flush=True)

    def _told(self, function: Callable[_P, _R]) -> Callable[_P, _R]:
        @functools.wraps(function)
        def tell(*arguments: _P.args, **named: _P.kwargs) -> _R:
            print(f"switch {self._what}", flush=True)
            return function(*arguments, **named)

        return tell


def main() -> None:
    """Mount the disk and go on until the power goes."""
    busybox, modprobe, stream, *forget = sys.argv[1:]
    sync = os.sync
    if forget:  # to see that it is noticed
        os.fsync = os.fdatasync = lambda fd: None
    for module in ("virtio_blk", "ext4"):
        subprocess.run([modprobe, module], check=True)
    _MOUNT.mkdir()
    # Without auto_da_alloc, ext4 makes up for no fsync that was forgotten before a rename.
    mount = [busybox, "mount", "-t", "ext4", "-o", "noauto_da_alloc", "/dev/vda", str(_MOUNT)]
    subprocess.run(mount, check=True)
    guest, sent, turn = _Guest(), Path(stream).read_bytes(), 0
    while True:
        turn += 1
        shutil.rmtree(_MOUNT / f"{turn - _KEPT_TURNS}", ignore_errors=True)
        for job in ("compress", "decompress", "dedup", "receive"):
            folder = _MOUNT / f"{turn}" / job
            shutil.copytree(_MOUNT / job, folder, symlinks=True)
            sync()
            guest.begin(turn, job)
            if job == "compress":
                tools.compress(str(folder), in_place=True, threads=1)
            elif job == "decompress":
                tools.decompress(str(folder), in_place=True, threads=1)
            elif job == "dedup":
                tools.dedup(str(folder / "3"), threads=1)
            else:
                receive(folder, sent)
            guest.done()


def receive(folder: Path, sent: bytes) -> None:
    """Send a dump's pages to a page server; return when that has said that they are safe."""
    ours, theirs = socket.socketpair()
    storage = Storage(str(folder), threads=1)
    server = threading.Thread(target=hold, args=(Connection(theirs), storage, Log(0, None)))
    server.start()
    ours.sendall(sent)
    answers = b""
    # To the question what it knows of compression, and to the end of the session.
    while len(answers) < _ANSWERS and (answer := ours.recv(1 << 10)):
        answers += answer
    if answers != bytes(_ANSWERS):
        raise OSError(f"the page server has answered {answers!r}")
    ours.close()
    server.join()
    theirs.close()


if __name__ == "__main__":
    main()
