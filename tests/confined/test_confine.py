"""What a confined process can still do: tried out, not only asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.support.processes import DEADLINE_SECONDS

#: Confines itself as a worker does, then tries; each line of output is one thing and how it went.
PROGRAM = """
import ctypes, mmap, os, subprocess, sys, threading, _socket
from helperd.reports.log import Log
from helperd.confined.confine import confine

libc = ctypes.CDLL(None, use_errno=True)
descriptor = os.open("/proc/self/status", os.O_RDONLY)
log = Log(4, 1)
log.role = "-test"
confine(sys.argv[1], [os.getppid()], log)

def write_to(pid):
    word = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(word), 8)
    if libc.process_vm_writev(pid, vector, 1, vector, 1, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

def read_from(pid):
    word = ctypes.create_string_buffer(8)
    vector = (ctypes.c_void_p * 2)(ctypes.addressof(word), 8)
    if libc.process_vm_readv(pid, vector, 1, vector, 1, 0) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

def raw(*numbers):
    if libc.syscall(*numbers) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))

def thread():
    ran = []
    one = threading.Thread(target=ran.append, args=(1,))
    one.start()
    one.join()
    assert ran

ATTEMPTS = {
    "open": lambda: open("/etc/passwd"),
    "create": lambda: open("/tmp/helperd-was-here", "w"),
    "open-by-number": lambda: raw(2, b"/etc/passwd", 0),
    "openat2": lambda: raw(437, -100, b"/etc/passwd", bytes(24), 24),
    "list": lambda: os.listdir("/"),
    "unlink": lambda: os.unlink("/nowhere"),
    "socket": lambda: _socket.socket(_socket.AF_INET, _socket.SOCK_STREAM),
    "unix-socket": lambda: _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM),
    "fork": os.fork,
    "execute": lambda: os.execv("/bin/true", ["true"]),
    "subprocess": lambda: subprocess.run(["/bin/true"]),
    "memfd": lambda: os.memfd_create("x"),
    "kill": lambda: os.kill(os.getppid(), 0),
    "ptrace": lambda: raw(101, 16, os.getppid(), 0, 0),
    "code": lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC),
    "read-parent": lambda: read_from(os.getppid()),
    "write-init": lambda: write_to(1),
    "io_uring": lambda: raw(425, 1, bytes(120)),
    "bpf": lambda: raw(321, 0, bytes(120), 120),
    "root": lambda: os.setuid(0),
    "read": lambda: os.pread(descriptor, 10, 0),
    "thread": thread,
    "memory": lambda: mmap.mmap(-1, 1 << 20),
}
for name, attempt in ATTEMPTS.items():
    try:
        attempt()
        print(name, "works", flush=True)
    except OSError as error:
        print(name, error.strerror, flush=True)
print(os.pread(descriptor, 1 << 16, 0).decode())
"""

#: An execve that works would end the program.
WITHOUT_EXEC = """for name in ("fork", "execute", "create", "unlink", "ptrace"):
    del ATTEMPTS[name]
for name, attempt in ATTEMPTS.items():"""

HARMLESS = {"read", "thread", "memory"}


def attempts(mode: str) -> tuple[str, dict[str, str]]:
    """Return the log, and what became of each attempt."""
    result = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, mode],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    log, _, rest = result.stdout.partition("\n")
    pairs = (line.replace(":", " ", 1).split(None, 1) for line in rest.splitlines() if line.strip())
    return log, {pair[0]: pair[1].strip() for pair in pairs if len(pair) == 2}


@pytest.mark.parametrize("mode", ["on", "strict"])
def test_confined(mode: str) -> None:
    log, outcome = attempts(mode)
    assert "confined: no new privileges, reduced capabilities, not dumpable, seccomp filter" in log
    refused = {name for name, how in outcome.items() if how == "Operation not permitted"}
    for name in HARMLESS:
        assert outcome[name] == "works"
    expected = {
        *("open", "create", "open-by-number", "openat2", "list", "unlink", "socket"),
        *("unix-socket", "fork", "execute", "subprocess", "memfd", "kill", "ptrace", "code"),
        *("read-parent", "io_uring", "bpf", "root"),
    }
    assert refused - {"write-init"} == expected
    if mode == "strict":
        assert "write-init" in refused
    assert outcome["NoNewPrivs"] == "1"
    assert outcome["Seccomp"] == "2"
    kept = 1 << 19 | 1 << 23
    assert int(outcome["CapPrm"], 16) & ~kept == 0
    assert int(outcome["CapEff"], 16) & ~kept == 0
    assert int(outcome["CapInh"], 16) == 0


def test_not_confined() -> None:
    """The attempts fail for the sandbox, not for their own mistakes."""
    result = subprocess.run(
        [
            *(sys.executable, "-I", "-c"),
            PROGRAM.replace("for name, attempt in ATTEMPTS.items():", WITHOUT_EXEC),
            "off",
        ],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    assert "not confined" in result.stdout.splitlines()[0]
    for name in ("open", "list", "socket", "unix-socket", "subprocess", "memfd", "kill", "code"):
        assert f"{name} works" in result.stdout


def test_landlock_would_forbid_the_job() -> None:
    """Why it is not used. If this ever fails, the kernel has changed its mind: use it."""
    program = """
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
word = ctypes.create_string_buffer(8)
vector = (ctypes.c_void_p * 2)(ctypes.addressof(word), 8)
stays, held = os.pipe()
child = os.fork()
if child == 0:
    os.close(held)
    os.read(stays, 1)
    os._exit(0)
fd = libc.syscall(444, struct.pack("<Q", 1), 8, 0)
if fd < 0:
    print("no landlock")
    sys.exit()
libc.prctl(38, 1, 0, 0, 0)
before = libc.process_vm_writev(child, vector, 1, vector, 1, 0)
assert libc.syscall(446, fd, 0) == 0
after = libc.process_vm_writev(child, vector, 1, vector, 1, 0)
print(before, after)
"""
    result = subprocess.run(
        [sys.executable, "-I", "-c", program],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=True,
    )
    if result.stdout.strip() == "no landlock":
        pytest.skip("this kernel has no Landlock")
    assert result.stdout.split() == ["8", "-1"]
