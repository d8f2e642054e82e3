"""Start and steer target.c, the process that the tests and the demo restore memory into.

::

    with Target(compile_target(directory)) as target:
        target.map_anonymous(0x10000000, 1 << 20)
        ...
        target.read(0x10000000, 4096)
"""

from __future__ import annotations

import os
import select
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Self

from helperd.blocks import PAGE_SHIFT, PAGE_SIZE

SOURCE = Path(__file__).with_name("target.c")

#: Longest wait for an answer; only a broken target needs it.
ANSWER_SECONDS = 30
LINE_BYTES = 256

# /proc/PID/pagemap: one u64 per page. Fact: Documentation/admin-guide/mm/pagemap.rst.
PAGEMAP_ENTRY = struct.Struct("=Q")
PAGEMAP_PRESENT = 1 << 63
PAGEMAP_SWAPPED = 1 << 62


class TargetError(Exception):
    """The target refused a command, or is gone. ``errno`` is its reason, 0 when it gave none."""

    def __init__(self, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.errno = errno


def compile_target(directory: Path) -> Path:
    """Compile target.c into ``directory`` and return the program's path.

    Raises:
        TargetError: there is no C compiler, or it failed.
    """
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise TargetError("no C compiler found: install gcc, or set CC to a compiler")
    program = directory / "target"
    command = [compiler, "-std=gnu11", "-O2", "-fPIE", "-pie", "-o", str(program), str(SOURCE)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise TargetError(f"cannot compile {SOURCE}: {result.stderr.strip()}")
    return program


class Target:
    """A running target; a context manager that leaves no process behind.

    Addresses and lengths are in bytes. Every command raises TargetError with the errno of the
    system call that failed.
    """

    def __init__(self, program: Path) -> None:
        self._process = subprocess.Popen(
            [str(program)], bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        try:
            self._read_answer("start")
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def map_anonymous(self, address: int, n_bytes: int, *, shared: bool = False) -> None:
        """Map untouched anonymous memory, readable and writable, without reserving swap."""
        self._command(f"map {address:x} {n_bytes:x} {'shared' if shared else 'private'}")

    def map_file(self, address: int, n_bytes: int, path: Path, offset: int = 0) -> None:
        """Map a private, writable view of ``n_bytes`` of a file from ``offset`` on."""
        self._command(f"file {address:x} {n_bytes:x} {offset:x} {path}")

    def fill(self, address: int, n_bytes: int, byte: int) -> None:
        """Set every byte of a mapped, writable range to ``byte``."""
        self._command(f"fill {address:x} {n_bytes:x} {byte:x}")

    def protect(self, address: int, n_bytes: int, protection: str) -> None:
        """Change the protection of a range: letters of ``rwx``, or ``-`` for none."""
        self._command(f"protect {address:x} {n_bytes:x} {protection}")

    def unmap(self, address: int, n_bytes: int) -> None:
        """Remove the mappings of a range."""
        self._command(f"unmap {address:x} {n_bytes:x}")

    def advise(self, address: int, n_bytes: int, *, hugepage: bool) -> None:
        """Ask for or against transparent huge pages in a range."""
        self._command(f"advise {address:x} {n_bytes:x} {'' if hugepage else 'no'}hugepage")

    def fork(self) -> int:
        """Return the pid of a child that has a copy of the memory, waits, and ends with us."""
        return self._command("fork")

    def exec(self) -> None:
        """Run the program anew: the same pid, all its mappings gone."""
        self._command("exec")

    def read(self, address: int, n_bytes: int, *, pid: int | None = None) -> bytes:
        """Return memory as it is, whatever its protection; of the child ``pid`` if given.

        Reading populates: ask present_pages() first.
        """
        with open(f"/proc/{pid or self.pid}/mem", "rb", buffering=0) as memory:
            read = bytearray()
            while len(read) < n_bytes:
                memory.seek(address + len(read))
                try:
                    part = memory.read(n_bytes - len(read))
                except OSError as error:
                    where = f"{address + len(read):#x} of process {pid or self.pid}"
                    raise TargetError(f"cannot read {where}: {error}", error.errno or 0) from error
                read += part
        return bytes(read)

    def present_pages(self, address: int, n_pages: int) -> list[bool]:
        """Return for each page whether it is populated (in memory or in swap)."""
        with open(f"/proc/{self.pid}/pagemap", "rb", buffering=0) as pagemap:
            pagemap.seek((address >> PAGE_SHIFT) * PAGEMAP_ENTRY.size)
            entries = pagemap.read(n_pages * PAGEMAP_ENTRY.size)
        populated = PAGEMAP_PRESENT | PAGEMAP_SWAPPED
        return [bool(bits & populated) for (bits,) in PAGEMAP_ENTRY.iter_unpack(entries)]

    def rss_bytes(self) -> int:
        """Return the target's resident memory in bytes."""
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as statm:
            return int(statm.read().split()[1]) * PAGE_SIZE

    def kill(self) -> None:
        """Kill the target and wait for its end."""
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill the target, wait for its end and close the pipes. Can be called again."""
        self.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _command(self, line: str) -> int:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(line.encode() + b"\n")
        except BrokenPipeError:
            raise TargetError(f"{line}: the target is gone") from None
        return self._read_answer(line)

    def _read_answer(self, command: str) -> int:
        answer = self._read_line(command).split(" ", 2)
        if answer[0] == "ok":
            return int(answer[1]) if len(answer) > 1 else 0
        raise TargetError(f"{command}: {answer[-1]}", int(answer[1]))

    def _read_line(self, command: str) -> str:
        assert self._process.stdout is not None
        line = b""
        while not line.endswith(b"\n"):
            if not select.select([self._process.stdout], [], [], ANSWER_SECONDS)[0]:
                raise TargetError(f"{command}: no answer in {ANSWER_SECONDS} seconds")
            part = self._process.stdout.read(LINE_BYTES)
            if not part:
                raise TargetError(f"{command}: the target is gone")
            line += part
        return line.decode().rstrip("\n")
