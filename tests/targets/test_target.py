"""What a target says of its memory, by the files that /proc has of it."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
from array import array
from pathlib import Path

import pytest

from helperd.blocks import PAGE_SIZE
from helperd.errors import HelperdError, NotPermitted, ResourceError, TargetGone, TargetNotMapped
from helperd.kernel.pidfd import Pidfd
from helperd.kernel.syscalls import PartialWrite
from helperd.reports.log import Log
from helperd.targets import target as module
from helperd.targets.hold import Hold
from helperd.targets.target import Target
from tests.support.logs import RecordingLog

#: Bits of an entry of pagemap. Source: the kernel's Documentation/admin-guide/mm/pagemap.rst.
SOFT_DIRTY, EXCLUSIVE, WRITE_PROTECTED, FILE, SWAPPED, PRESENT = 55, 56, 57, 61, 62, 63
MAPS = b"00010000-00020000 rw-p 00000000 00:00 0\n00020000-00030000 rw-s 00000000 00:01 9 x\n"
ADDRESS = 0x10000


@pytest.fixture
def log() -> RecordingLog:
    return RecordingLog()


def in_memory(content: bytes) -> int:
    fd = os.memfd_create("proc")
    os.pwrite(fd, content, 0)
    return fd


def target_with(entries: list[int], log: Log) -> Target:
    """Return this process as a target whose pages from ADDRESS on have these pagemap entries."""
    pagemap = b"".join(entry.to_bytes(8, "little") for entry in [0] * (ADDRESS // PAGE_SIZE))
    pagemap += b"".join(entry.to_bytes(8, "little") for entry in entries)
    fds = (in_memory(pagemap), in_memory(MAPS), in_memory(b""))
    return Target(Hold(os.getpid(), Pidfd.open(os.getpid()), fds), log)


@pytest.mark.parametrize("absent", [0, 1 << SOFT_DIRTY])
def test_an_untouched_page_needs_no_zeros(log: RecordingLog, absent: int) -> None:
    """With and without soft-dirty tracking, which sets a bit where there is no page."""
    target = target_with([absent] * 16, log)
    assert target.zeros_to_write(ADDRESS, bytearray(16)) == []
    assert log.warnings == []


@pytest.mark.parametrize("bit", [0, 54, EXCLUSIVE, WRITE_PROTECTED, 58, FILE, SWAPPED, PRESENT])
@pytest.mark.parametrize("tracked", [0, 1 << SOFT_DIRTY])
def test_a_page_of_which_there_is_anything_is_written(
    log: RecordingLog, bit: int, tracked: int
) -> None:
    entries = [tracked] * 16
    entries[3] |= 1 << bit
    entries[4] |= 1 << bit
    entries[9] |= 1 << bit
    target = target_with(entries, log)
    page = ADDRESS + 3 * PAGE_SIZE
    assert target.zeros_to_write(ADDRESS, bytearray(16)) == [
        (page, 2),
        (ADDRESS + 9 * PAGE_SIZE, 1),
    ]
    # Those that are not to be zero are nobody's business here.
    live = bytearray(16)
    live[3] = live[9] = 1
    assert target.zeros_to_write(ADDRESS, live) == [(page + PAGE_SIZE, 1)]


def test_untouched_pages_of_shared_memory_are_written(log: RecordingLog) -> None:
    target = target_with([0] * 32, log)
    shared = ADDRESS + 16 * PAGE_SIZE
    assert target.zeros_to_write(shared, bytearray(4)) == [(shared, 4)]
    across = shared - 2 * PAGE_SIZE
    assert target.zeros_to_write(across, bytearray(4)) == [(shared, 2)]


def test_without_proc_all_zeros_are_written_and_that_is_said_once(log: RecordingLog) -> None:
    target = Target(Hold(os.getpid(), Pidfd.open(os.getpid()), ()), log)
    assert target.zeros_to_write(ADDRESS, bytearray(b"\0\1\0\0")) == [
        (ADDRESS, 1),
        (ADDRESS + 2 * PAGE_SIZE, 2),
    ]
    assert target.zeros_to_write(ADDRESS, bytearray(2)) == [(ADDRESS, 2)]
    assert len(log.warnings) == 1
    assert f"target process {os.getpid()}" in log.warnings[0]


def test_huge_pages_are_wanted_where_they_were_advised(log: RecordingLog) -> None:
    smaps = (
        b"00010000-00020000 rw-p 00000000 00:00 0\nVmFlags: rd wr mr mw me ac hg \n"
        b"00020000-00030000 rw-p 00000000 00:00 0\nVmFlags: rd wr mr mw me ac \n"
    )
    fds = (in_memory(bytes(8)), in_memory(MAPS), in_memory(smaps))
    target = Target(Hold(os.getpid(), Pidfd.open(os.getpid()), fds), log)
    assert target.wants_huge_pages(0x10000, 0x20000)
    assert target.wants_huge_pages(0x11000, 0x12000)
    assert not target.wants_huge_pages(0x10000, 0x21000)
    assert not target.wants_huge_pages(0x20000, 0x21000)
    assert target.advised == [(0x10000, 0x20000)]
    nowhere = Target(Hold(os.getpid(), Pidfd.open(os.getpid()), ()), log)
    assert not nowhere.wants_huge_pages(0x10000, 0x20000)


def test_a_name_is_no_advice(log: RecordingLog) -> None:
    smaps = b"00010000-00020000 rw-p 00000000 00:00 7 /x hg \nVmFlags: rd wr\n"
    fds = (in_memory(bytes(8)), in_memory(MAPS), in_memory(smaps))
    assert Target(Hold(os.getpid(), Pidfd.open(os.getpid()), fds), log).advised == []


def test_a_process_that_has_died_since_it_was_held(log: RecordingLog) -> None:
    process = subprocess.Popen(["sleep", "600"])
    hold = Hold.open(process.pid)
    process.kill()
    process.wait()
    with pytest.raises(TargetGone, match=f"{process.pid} is gone"):
        Target(hold, log)


def test_nothing_is_written_into_another_program(log: RecordingLog) -> None:
    """What /proc shows of the memory that was held ends with it; the process goes on."""
    target = target_with([], log)
    (pagemap, *_) = target._hold.fds[1:]
    memory = (ctypes.c_char * 8)(*b"old, old")
    content = (ctypes.c_char * 8)(*b"new, new")
    local = array("Q", (ctypes.addressof(content), 8))
    remote = array("Q", (ctypes.addressof(memory), 8))
    os.ftruncate(pagemap, 0)
    with pytest.raises(TargetGone, match="has executed another program"):
        target.write(array("Q", local), array("Q", remote), 8)
    with pytest.raises(TargetGone, match="has executed another program"):
        target.touch(ctypes.addressof(memory))
    assert memory.raw == b"old, old"
    os.ftruncate(pagemap, 8)
    target.write(local, remote, 8)
    assert memory.raw == b"new, new"
    assert target.touch(ctypes.addressof(memory))
    assert memory.raw == b"\0ew, new"
    assert not target.touch(0)


def test_why_a_page_cannot_be_written(log: RecordingLog) -> None:
    with_maps = Target(Hold.open(os.getpid()), log)
    without = Target(Hold(os.getpid(), Pidfd.open(os.getpid()), ()), log)
    content = (ctypes.c_char * 8)(*b"new, new")
    # The kernel's own page, which nobody may write.
    (line,) = [it for it in Path("/proc/self/maps").read_text().splitlines() if "[vdso]" in it]
    address = int(line.split("-")[0], 16)
    for target, why in ((with_maps, "its mapping is r-xp"), (without, "is not mapped writable$")):
        local = array("Q", (ctypes.addressof(content), 8))
        with pytest.raises(TargetNotMapped, match=why):
            target.write(local, array("Q", (address, 8)), 8)


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.ESRCH, TargetGone),
        (errno.EPERM, NotPermitted),
        (errno.EFAULT, TargetNotMapped),
        (errno.ENOMEM, ResourceError),
    ],
)
def test_what_the_kernel_says_is_told_as_what_it_is(
    log: RecordingLog, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[HelperdError]
) -> None:
    def refuse(*_: object) -> None:
        raise PartialWrite(number, 4096, 0x5000)

    monkeypatch.setattr(module, "process_vm_writev_all", refuse)
    target = target_with([], log)
    with pytest.raises(HelperdError) as caught:
        target.write(array("Q"), array("Q"), 8192)
    assert type(caught.value) is kind
    assert caught.value.bytes_done == 4096
    assert str(os.getpid()) in str(caught.value)
