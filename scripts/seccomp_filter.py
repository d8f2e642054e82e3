#!/usr/bin/env python3
"""Generate helperd/confined/*_filter.py: what confined processes may ask of the kernel, as BPF.

Usage: scripts/seccomp_filter.py

libseccomp compiles the filter here, once, and the helper loads the finished program: looking for
and loading libseccomp would take twice as long as all of the helper's start. The tests run the
committed program against ALLOWED, so it cannot be stale.
"""

from __future__ import annotations

import errno
import pathlib
import tempfile

CONFINED = pathlib.Path(__file__).resolve().parent.parent / "helperd/confined"

#: The system calls of a worker that serves requests, by what it needs them for.
ALLOWED = {
    "pipes, the pages image, files of /proc that are open": (
        *("read", "write", "pread64", "preadv", "preadv2", "poll", "ppoll", "lseek", "close"),
        # newfstatat is how glibc does fstat; a path in it tells metadata at most.
        *("fstat", "newfstatat", "fcntl", "fadvise64", "sendfile", "fallocate"),
    ),
    "targets": ("process_vm_readv", "process_vm_writev", "process_madvise"),
    "the socket to the parent, which is open; new ones cannot be made": ("recvmsg",),
    "memory": ("brk", "munmap", "mremap", "madvise"),
    "threads": (
        *("futex", "set_robust_list", "rseq", "sched_getaffinity", "sched_yield"),
        *("gettid", "getpid", "getppid", "exit", "exit_group"),
    ),
    "signals": ("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack"),
    "time and numbers": (
        *("clock_gettime", "clock_nanosleep", "nanosleep", "gettimeofday", "restart_syscall"),
        *("getrandom", "getrusage", "sysinfo"),
    ),
}

CLONE_THREAD = 0x10000
PROT_EXEC = 4
PR_SET_NAME = 15

#: Calls that are allowed with some arguments: (call, argument number, mask, value it must have).
RESTRICTED = (
    ("clone", 0, CLONE_THREAD, CLONE_THREAD),  # Threads, but no processes.
    ("mmap", 2, PROT_EXEC, 0),  # No new code.
    ("mprotect", 2, PROT_EXEC, 0),
    ("prctl", 0, 0xFFFFFFFF, PR_SET_NAME),  # Python names its threads.
    ("sched_setaffinity", 0, 0xFFFFFFFF, 0),  # Of the calling thread only.
    ("sendto", 4, 0xFFFFFFFFFFFFFFFF, 0),  # Without an address: to the parent only.
)

#: The system calls of a worker that restores on demand, which has no pipes and no targets.
LAZY_ALLOWED = {
    "open files, the log, its own wake-up pipe, a page server": (
        *("read", "readv", "write", "pread64", "preadv", "preadv2", "lseek", "close"),
        *("fstat", "newfstatat", "epoll_wait", "epoll_pwait", "epoll_ctl", "poll"),
    ),
    "its own memory, moved together": ("process_vm_readv",),
    "the socket to the guard, which is open; new ones cannot be made": ("recvmsg", "sendmsg"),
    "memory": ("brk", "munmap", "mremap", "madvise"),
    "threads": ALLOWED["threads"],
    "signals": ALLOWED["signals"],
    "time and numbers": ALLOWED["time and numbers"],
}
#: UFFDIO_WAKE, COPY, ZEROPAGE, WRITEPROTECT (asks whether there is a process), POISON; FIONBIO.
LAZY_IOCTLS = (0x8010AA02, 0xC028AA03, 0xC020AA04, 0xC018AA06, 0xC020AA08, 0x5421)
LAZY_RESTRICTED = (
    *(rule for rule in RESTRICTED if rule[0] != "sendto"),
    *(("ioctl", 1, 0xFFFFFFFF, request) for request in LAZY_IOCTLS),
)

#: Calls whose first two arguments have to be 0: of a process or thread, and of the calling one.
LAZY_OF_ITSELF = ("setpriority",)

#: The system calls of a process that receives pages, or gives them: Landlock says which files.
DOOR_ALLOWED = {
    "files": (
        *(
            "read",
            "write",
            "pread64",
            "pwrite64",
            "preadv",
            "preadv2",
            "pwritev",
            "pwritev2",
            "lseek",
            "close",
            "dup",
        ),
        *("fstat", "newfstatat", "stat", "lstat", "statx", "fstatfs", "statfs", "access"),
        *("openat", "open", "faccessat", "faccessat2", "getdents64", "readlink", "readlinkat"),
        *("mkdir", "mkdirat", "rmdir", "unlink", "unlinkat", "rename", "renameat", "renameat2"),
        *("link", "linkat", "symlink", "symlinkat", "fsync", "fdatasync", "ftruncate", "flock"),
        *("fallocate", "fadvise64", "fcntl", "chmod", "fchmod", "fchmodat", "chown", "fchown"),
        *("lchown", "fchownat", "utimensat", "llistxattr", "lsetxattr", "lgetxattr", "getcwd"),
        *(
            "listxattr",
            "setxattr",
            "getxattr",
            "flistxattr",
            "fsetxattr",
            "fgetxattr",
            "umask",
            "getuid",
            "geteuid",
            "getgid",
            "getegid",
        ),
    ),
    "the client, which is connected; new connections cannot be made": (
        *("recvfrom", "recvmsg", "sendmsg", "shutdown", "getsockopt", "setsockopt"),
        *("getsockname", "getpeername", "poll", "ppoll", "select"),
    ),
    "its own memory, moved together": ("process_vm_readv",),
    "the command that it has started": ("wait4", "waitid"),
    "memory": ("brk", "munmap", "mremap", "madvise"),
    "threads": ALLOWED["threads"],
    "signals": ALLOWED["signals"],
    "time and numbers": ALLOWED["time and numbers"],
}
FIONBIO = 0x5421
DOOR_RESTRICTED = (
    *(rule for rule in RESTRICTED if rule[0] != "sched_setaffinity"),
    ("ioctl", 1, 0xFFFFFFFF, FIONBIO),
)

#: The system calls of a stream's end, which has pipes, and programs that it has started.
STREAM_ALLOWED = {
    **DOOR_ALLOWED,
    "pipes": ("pipe2", "readv", "writev", "splice", "vmsplice"),
    "CRIU, which comes to a socket that listens": ("accept4",),
    "files that are made up": ("memfd_create",),
    "what it has started; a rule of its own says which processes": ("kill",),
}
FIONREAD, FIOCLEX = 0x541B, 0x5451
STREAM_RESTRICTED = (
    *DOOR_RESTRICTED,
    ("sched_setaffinity", 0, 0xFFFFFFFF, 0),  # Of the calling thread only.
    *(("ioctl", 1, 0xFFFFFFFF, request) for request in (FIONREAD, FIOCLEX)),
)

#: The C library falls back to clone, whose flags are not behind a pointer.
NOT_IMPLEMENTED = ("clone3",)

_HEADER = '''\
"""The BPF program of a {what}'s seccomp filter; scripts/seccomp_filter.py generates this file.

A ``struct sock_filter`` in each line: u16 code, u8 jt, u8 jf, u32 k, little-endian.
"""

PROGRAM = bytes.fromhex(
    """
'''
_INSTRUCTION_BYTES = 8


def compile_filter(
    allowed: dict[str, tuple[str, ...]] = ALLOWED,
    restricted: tuple[tuple[str, int, int, int], ...] = RESTRICTED,
    of_itself: tuple[str, ...] = (),
) -> bytes:
    """Return the filter as the kernel takes it: everything that is not listed gets EPERM."""
    import pyseccomp

    if pyseccomp.system_arch() != pyseccomp.Arch.X86_64:
        raise SystemExit("seccomp_filter.py: run it on x86-64, which the filter is for")
    seccomp = pyseccomp.SyscallFilter(pyseccomp.ERRNO(errno.EPERM))
    for names in allowed.values():
        for name in names:
            seccomp.add_rule_exactly(pyseccomp.ALLOW, name)
    for name, number, mask, value in restricted:
        argument = pyseccomp.Arg(number, pyseccomp.MASKED_EQ, mask, value)
        seccomp.add_rule_exactly(pyseccomp.ALLOW, name, argument)
    for name in of_itself:
        own = (pyseccomp.Arg(number, pyseccomp.MASKED_EQ, 0xFFFFFFFF, 0) for number in (0, 1))
        seccomp.add_rule_exactly(pyseccomp.ALLOW, name, *own)
    for name in NOT_IMPLEMENTED:
        seccomp.add_rule_exactly(pyseccomp.ERRNO(errno.ENOSYS), name)
    with tempfile.TemporaryFile() as file:
        seccomp.export_bpf(file)
        file.seek(0)
        return file.read()


def main() -> None:
    """Write the modules."""
    _write("worker_filter.py", "worker", compile_filter())
    lazy = compile_filter(LAZY_ALLOWED, LAZY_RESTRICTED, LAZY_OF_ITSELF)
    _write("lazy_filter.py", "lazy worker", lazy)
    door = compile_filter(DOOR_ALLOWED, DOOR_RESTRICTED)
    _write("door_filter.py", "door", door)
    stream = compile_filter(STREAM_ALLOWED, STREAM_RESTRICTED)
    _write("stream_filter.py", "stream", stream)


def _write(name: str, what: str, program: bytes) -> None:
    rows = (
        program[at : at + _INSTRUCTION_BYTES] for at in range(0, len(program), _INSTRUCTION_BYTES)
    )
    lines = "".join(f"    {row.hex()}\n" for row in rows)
    (CONFINED / name).write_text(f'{_HEADER.format(what=what)}{lines}    """\n)\n')


if __name__ == "__main__":
    main()
