"""A process that is being restored on demand, as far as a lazy-pages daemon can tell.

It does what CRIU's restorer does: maps memory, has it watched, sends the userfaultfd over the
daemon's socket, and says when all is over. Then it touches its memory as it is told: one command
in a line on stdin, one answer in a line on stdout.
"""

from __future__ import annotations

import ctypes
import hashlib
import mmap
import os
import socket
import struct
import sys

from helperd.kernel.userfaultfd import Userfaultfd

libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, *(ctypes.c_int,) * 3, ctypes.c_int64)
libc.mremap.restype = ctypes.c_void_p
libc.mremap.argtypes = (
    *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t),
    *(ctypes.c_int, ctypes.c_void_p),
)
libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
libc.mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
MAP_FIXED_NOREPLACE = 0x100000
MREMAP_MAYMOVE_FIXED = 3
FINISHED = struct.pack("<I", 0x52535446)


class Restored:
    """The process, its userfaultfd and its connection to the daemon."""

    def __init__(self) -> None:
        self.uffd = Userfaultfd.open()
        self.daemon: socket.socket | None = None
        self.children: list[tuple[int, int]] = []

    def map(self, address: int, n_bytes: int) -> str:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
        got = libc.mmap(address, n_bytes, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        assert got == address, f"{address:#x} is taken"
        return "ok"

    def watch(self, address: int, n_bytes: int) -> str:
        self.uffd.register(address, n_bytes)
        return "ok"

    def connect(self, path: str) -> str:
        self.daemon = socket.socket(socket.AF_UNIX)
        self.daemon.connect(path)
        return "ok"

    def task(self, pid: int) -> str:
        assert self.daemon is not None
        self.daemon.sendall(struct.pack("<i", pid))
        if pid > 0:
            socket.send_fds(self.daemon, [b"\0"], [self.uffd.fd])
        return "ok"

    def finish(self) -> str:
        """Say that all is over; from here on the daemon alone holds the userfaultfd."""
        assert self.daemon is not None
        self.daemon.sendall(FINISHED)
        return self.leave()

    def leave(self) -> str:
        if self.daemon is not None:
            self.daemon.close()
        self.uffd.close()
        return "ok"

    def touch(self, address: int) -> str:
        return str(ctypes.c_ubyte.from_address(address).value)

    def read(self, address: int, n_bytes: int) -> str:
        return hashlib.sha256(ctypes.string_at(address, n_bytes)).hexdigest()

    def write(self, address: int, n_bytes: int, value: int) -> str:
        ctypes.memset(address, value, n_bytes)
        return "ok"

    def protect(self, address: int, n_bytes: int, protection: int) -> str:
        assert libc.mprotect(address, n_bytes, protection) == 0
        return "ok"

    def unmap(self, address: int, n_bytes: int) -> str:
        assert libc.munmap(address, n_bytes) == 0
        return "ok"

    def dontneed(self, address: int, n_bytes: int) -> str:
        assert libc.madvise(address, n_bytes, mmap.MADV_DONTNEED) == 0
        return "ok"

    def remap(self, address: int, n_bytes: int, to: int) -> str:
        got = libc.mremap(address, n_bytes, n_bytes, MREMAP_MAYMOVE_FIXED, to)
        assert got == to, os.strerror(ctypes.get_errno())
        return "ok"

    def fork(self) -> str:
        """Make a child that serves commands given to ``child``."""
        commands, to_child = os.pipe()
        from_child, answers = os.pipe()
        pid = os.fork()
        if pid == 0:
            self.children.clear()
            os.close(to_child)
            os.close(from_child)
            serve(self, commands, answers)
            os._exit(0)
        os.close(commands)
        os.close(answers)
        self.children.append((to_child, from_child))
        return str(pid)

    def child(self, which: int, *words: str) -> str:
        to_child, from_child = self.children[which]
        os.write(to_child, " ".join(words).encode() + b"\n")
        answer = b""
        while not answer.endswith(b"\n"):
            part = os.read(from_child, 1 << 10)
            if not part:
                return "dead"
            answer += part
        return answer.decode().rstrip()

    def do(self, line: str) -> str:
        name, *words = line.split()
        if name == "child":
            return self.child(int(words[0]), *words[1:])
        if name == "connect":
            return self.connect(words[0])
        arguments = [int(word, 0) for word in words]
        answer: str = getattr(self, name)(*arguments)
        return answer


def serve(process: Restored, commands: int, answers: int) -> None:
    """Carry out commands until there are no more."""
    left = b""
    while part := os.read(commands, 1 << 12):
        left += part
        while b"\n" in left:
            line, _, left = left.partition(b"\n")
            os.write(answers, process.do(line.decode()).encode() + b"\n")


if __name__ == "__main__":
    serve(Restored(), sys.stdin.fileno(), sys.stdout.fileno())
