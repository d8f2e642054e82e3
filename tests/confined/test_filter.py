"""The committed seccomp program does what scripts/seccomp_filter.py says, whatever compiled it."""

from __future__ import annotations

import errno
import struct

import pytest
import seccomp_filter
from seccomp_filter import (
    ALLOWED,
    FIOCLEX,
    FIONREAD,
    LAZY_ALLOWED,
    LAZY_IOCTLS,
    LAZY_OF_ITSELF,
    LAZY_RESTRICTED,
    NOT_IMPLEMENTED,
    PROT_EXEC,
    RESTRICTED,
    STREAM_ALLOWED,
    STREAM_RESTRICTED,
)

from helperd.confined import seccomp
from helperd.confined.lazy_filter import PROGRAM as LAZY_PROGRAM
from helperd.confined.stream_filter import PROGRAM as STREAM_PROGRAM
from helperd.confined.worker_filter import PROGRAM

X86_64, I386 = 0xC000003E, 0x40000003
ALLOW = 0x7FFF0000
REFUSE = 0x00050000 | errno.EPERM
NO_SUCH_CALL = 0x00050000 | errno.ENOSYS

#: Of x86-64; only those that are talked about here.
NUMBERS = {
    name: int(number)
    for name, number in (
        word.split("=")
        for word in """
    read=0 write=1 open=2 close=3 stat=4 fstat=5 poll=7 lseek=8 mmap=9 mprotect=10 munmap=11
    brk=12 rt_sigaction=13 rt_sigprocmask=14 rt_sigreturn=15 ioctl=16 pread64=17 pwrite64=18
    sched_yield=24 mremap=25 madvise=28 nanosleep=35 getpid=39 sendfile=40 socket=41
    connect=42 accept=43 sendto=44 sendmsg=46 recvmsg=47 bind=49 listen=50 socketpair=53
    clone=56 fork=57 vfork=58 execve=59 exit=60 kill=62 fcntl=72 truncate=76 ftruncate=77
    rename=82 mkdir=83 unlink=87 chmod=90 gettimeofday=96 getrusage=98 sysinfo=99 ptrace=101
    setuid=105 getppid=110 capset=126 sigaltstack=131 prctl=157 chroot=161 mount=165
    gettid=186 readahead=187 tkill=200 futex=202 sched_setaffinity=203 sched_getaffinity=204
    restart_syscall=219
    fadvise64=221 clock_gettime=228 clock_nanosleep=230 exit_group=231 tgkill=234 openat=257
    newfstatat=262 ppoll=271 unshare=272 set_robust_list=273 splice=275 vmsplice=278
    fallocate=285 preadv=295 setns=308 process_vm_readv=310 process_vm_writev=311
    seccomp=317 getrandom=318 memfd_create=319 bpf=321 execveat=322 userfaultfd=323
    preadv2=327 rseq=334 pidfd_send_signal=424 io_uring_setup=425 pidfd_open=434 clone3=435
    openat2=437 pidfd_getfd=438 process_madvise=440 landlock_restrict_self=446
    """.split()  # noqa: SIM905 - one line for many of them
    )
}
ALLOWED_NAMES = {name for names in ALLOWED.values() for name in names}
RESTRICTED_NAMES = {name for name, *_ in RESTRICTED}


def verdict(program: bytes, number: int, *arguments: int, arch: int = X86_64) -> int:
    """Run a filter as the kernel would, and return its verdict.

    The few classic BPF instructions that filters are made of. Source: linux/bpf_common.h.
    """
    data = struct.pack("<IIQ6Q", number, arch, 0, *(*arguments, *[0] * 6)[:6])
    at = accumulator = 0
    while True:
        code, if_true, if_false, k = struct.unpack_from("<HBBI", program, at * 8)
        at += 1
        if code == 0x06:  # return
            return int(k)
        if code == 0x20:  # load a word
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif code == 0x54:  # and
            accumulator &= k
        elif code == 0x05:  # jump
            at += k
        else:
            tests = {0x15: accumulator == k, 0x25: accumulator > k, 0x35: accumulator >= k}
            tests[0x45] = bool(accumulator & k)
            at += if_true if tests[code] else if_false


@pytest.mark.parametrize("name", sorted(ALLOWED_NAMES))
def test_allowed(name: str) -> None:
    assert verdict(PROGRAM, NUMBERS[name]) == ALLOW


@pytest.mark.parametrize("name", NUMBERS.keys() - ALLOWED_NAMES - RESTRICTED_NAMES)
def test_refused(name: str) -> None:
    expected = NO_SUCH_CALL if name in NOT_IMPLEMENTED else REFUSE
    assert verdict(PROGRAM, NUMBERS[name]) == expected


def test_nothing_else_is_allowed() -> None:
    """Every number there is, and many that there are not yet."""
    known = {NUMBERS[name] for name in ALLOWED_NAMES}
    with_any_argument = {
        number for number in range(2048) if verdict(PROGRAM, number, *[0] * 6) == ALLOW
    }
    # These need an argument that is not zero.
    free = {NUMBERS[name] for name, _, _, value in RESTRICTED if value == 0}
    assert with_any_argument == known | free


@pytest.mark.parametrize(("name", "number", "mask", "value"), RESTRICTED)
def test_restricted(name: str, number: int, mask: int, value: int) -> None:
    arguments = [0] * 6
    arguments[number] = value
    assert verdict(PROGRAM, NUMBERS[name], *arguments) == ALLOW
    arguments[number] = value ^ (mask & -mask)
    assert verdict(PROGRAM, NUMBERS[name], *arguments) == REFUSE


def test_no_code_can_be_mapped() -> None:
    for protection in range(8):
        expected = REFUSE if protection & PROT_EXEC else ALLOW
        assert verdict(PROGRAM, NUMBERS["mmap"], 0, 4096, protection) == expected
        assert verdict(PROGRAM, NUMBERS["mprotect"], 0, 4096, protection) == expected


def test_other_machines_calls_are_not_ours() -> None:
    """Number 5 is fstat here and open on i386; x32 has its calls from 2^30 on."""
    for number in range(512):
        assert verdict(PROGRAM, number, arch=I386) not in (ALLOW, REFUSE)
        assert verdict(PROGRAM, number | 1 << 30) != ALLOW


def test_pids() -> None:
    number = NUMBERS["process_vm_writev"]
    rules = seccomp._only(number, [100, 200]) + struct.pack("<HBBI", 6, 0, 0, ALLOW)
    for pid in (100, 200):
        assert verdict(rules, number, pid) == ALLOW
    for pid in (0, 1, 101, 0xFFFFFFFF):
        assert verdict(rules, number, pid) == REFUSE
    assert verdict(rules, NUMBERS["read"], 7) == ALLOW


def test_many_pids() -> None:
    number = NUMBERS["process_vm_writev"]
    pids = range(10, 1010)
    rules = seccomp._only(number, pids) + struct.pack("<HBBI", 6, 0, 0, ALLOW)
    assert all(verdict(rules, number, pid) == ALLOW for pid in pids)
    assert verdict(rules, number, 9) == REFUSE
    assert verdict(rules, NUMBERS["read"]) == ALLOW


def test_program_is_what_libseccomp_compiles() -> None:
    """Not byte by byte, which differs between versions: by every verdict."""
    pytest.importorskip("pyseccomp", reason="needs libseccomp", exc_type=ImportError)
    fresh = seccomp_filter.compile_filter()
    for number in range(512):
        for argument in (0, 1, 4, 15, 0x10000):
            arguments = [argument] * 6
            assert verdict(fresh, number, *arguments) == verdict(PROGRAM, number, *arguments)


def test_the_lazy_program_is_what_libseccomp_compiles() -> None:
    pytest.importorskip("pyseccomp", reason="needs libseccomp", exc_type=ImportError)
    fresh = seccomp_filter.compile_filter(LAZY_ALLOWED, LAZY_RESTRICTED, LAZY_OF_ITSELF)
    for number in range(512):
        for argument in (0, 1, 4, 15, 0x10000, *LAZY_IOCTLS):
            arguments = [argument] * 6
            assert verdict(fresh, number, *arguments) == verdict(LAZY_PROGRAM, number, *arguments)


def test_the_streams_program_is_what_libseccomp_compiles() -> None:
    pytest.importorskip("pyseccomp", reason="needs libseccomp", exc_type=ImportError)
    fresh = seccomp_filter.compile_filter(STREAM_ALLOWED, STREAM_RESTRICTED)
    for number in range(512):
        for argument in (0, 1, 4, 15, 0x10000, FIONREAD, FIOCLEX):
            arguments = [argument] * 6
            assert verdict(fresh, number, *arguments) == verdict(STREAM_PROGRAM, number, *arguments)


@pytest.mark.parametrize("name", ["socket", "execve", "connect", "process_vm_writev", "ptrace"])
def test_a_streams_end_connects_to_nothing_and_starts_nothing(name: str) -> None:
    assert verdict(STREAM_PROGRAM, NUMBERS[name]) == REFUSE


@pytest.mark.parametrize("name", ["openat", "socket", "execve", "connect", "process_vm_writev"])
def test_a_lazy_worker_opens_and_starts_nothing(name: str) -> None:
    assert verdict(LAZY_PROGRAM, NUMBERS[name]) == REFUSE


def test_a_lazy_worker_has_the_calls_of_a_userfaultfd_only() -> None:
    ioctl = 16
    for request in LAZY_IOCTLS:
        assert verdict(LAZY_PROGRAM, ioctl, 5, request) == ALLOW
    for request in (0x5412, 0xC020AA00, 0x8010AA01, 0xC018AA3F):  # TIOCSTI, REGISTER, ...
        assert verdict(LAZY_PROGRAM, ioctl, 5, request) == REFUSE


def test_a_lazy_worker_lets_only_its_own_threads_stand_back() -> None:
    setpriority, sched_setaffinity = 141, 203
    assert verdict(LAZY_PROGRAM, setpriority, 0, 0, 5) == ALLOW
    for which, who in ((0, 1), (1, 0), (2, 0)):  # Another one, a group, all of a user.
        assert verdict(LAZY_PROGRAM, setpriority, which, who, 5) == REFUSE
    assert verdict(LAZY_PROGRAM, sched_setaffinity, 0, 8, 1) == ALLOW
    assert verdict(LAZY_PROGRAM, sched_setaffinity, 7, 8, 1) == REFUSE
