"""Restores that are disturbed in the middle: right bytes or a clean error, and nothing left."""

from __future__ import annotations

import errno
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from target import Target

from helperd.errors import (
    EXIT_IMAGE,
    EXIT_OK,
    EXIT_PERMISSION,
    EXIT_RESOURCES,
    EXIT_SIGNAL_BASE,
    EXIT_TARGET,
)
from tests.faults.conftest import LongRestore
from tests.support.helper import HelperProcess
from tests.support.processes import children_of, ends, peak_rss_bytes
from tests.support.requests import ADDRESS, RawRequest

BUDGET_BYTES = 64 << 20


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail a test that leaves a process or a descriptor behind."""
    children, fds = children_of(os.getpid()), len(os.listdir("/proc/self/fd"))
    yield
    assert children_of(os.getpid()) == children
    assert len(os.listdir("/proc/self/fd")) <= fds


def outcome_of(helper: HelperProcess, restore: LongRestore) -> tuple[int | None, int]:
    """Return the answer (None: none came) and the exit status; check that they belong together."""
    answer = helper.receive()
    outcome = helper.finish()
    if answer == restore.answer:
        assert (outcome.status, outcome.stderr) == (EXIT_OK, "")
    else:
        assert answer is None or answer < 0
        assert outcome.status not in (EXIT_OK, 1)
        assert outcome.error_line
    return answer, outcome.status


# The target.


def test_target_is_killed(target: Target, restore: LongRestore) -> None:
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        target.kill()
        answer, status = outcome_of(helper, restore)
    if answer != restore.answer:
        assert (answer, status) == (-errno.ESRCH, EXIT_TARGET)


def test_target_is_stopped(target: Target, restore: LongRestore) -> None:
    """A stopped process is written to as any other: CRIU's own targets are."""
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        os.kill(target.pid, signal.SIGSTOP)
        answer, _ = outcome_of(helper, restore)
        os.kill(target.pid, signal.SIGCONT)
    assert answer == restore.answer
    assert restore.is_right()


def test_target_executes_another_program(target: Target, restore: LongRestore) -> None:
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        target.exec()
        answer, status = outcome_of(helper, restore)
    if answer != restore.answer:
        assert (status, answer) == (EXIT_TARGET, answer)
        assert answer in (-errno.ESRCH, -errno.EFAULT)


def test_target_unmaps_its_memory(target: Target, restore: LongRestore) -> None:
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        target.unmap(ADDRESS + restore.n_bytes // 2, restore.n_bytes // 2)
        answer, status = outcome_of(helper, restore)
    if answer != restore.answer:
        assert (answer, status) == (-errno.EFAULT, EXIT_TARGET)


def test_target_protects_its_memory(target: Target, restore: LongRestore) -> None:
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        target.protect(ADDRESS, restore.n_bytes, "r")
        answer, status = outcome_of(helper, restore)
    if answer == restore.answer:
        assert restore.is_right()
    else:
        assert (answer, status) == (-errno.EFAULT, EXIT_TARGET)


# The helper.


def test_worker_is_killed(restore: LongRestore) -> None:
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        os.kill(helper.worker_pid, signal.SIGKILL)
        helper.receive()
        outcome = helper.wait()
    assert outcome.status == EXIT_SIGNAL_BASE + signal.SIGKILL
    assert outcome.error_line


def test_parent_is_killed(restore: LongRestore) -> None:
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        worker = os.pidfd_open(helper.worker_pid)
        os.kill(helper.pid, signal.SIGKILL)
        assert ends(worker)
        os.close(worker)
        assert helper.receive() in (None, restore.answer)


def test_terminated_in_the_middle(restore: LongRestore) -> None:
    """The request is carried out; the session ends all the same."""
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        os.kill(helper.pid, signal.SIGTERM)
        assert helper.receive() == restore.answer
        outcome = helper.wait()
    assert outcome.status == EXIT_SIGNAL_BASE + signal.SIGTERM
    assert "stopped by SIGTERM after 1 requests" in outcome.error_line
    assert restore.is_right()


def test_terminated_twice(restore: LongRestore) -> None:
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        worker = helper.worker_pid
        os.kill(worker, signal.SIGTERM)
        os.kill(worker, signal.SIGTERM)
        assert helper.receive() in (None, restore.answer)
        assert helper.wait().status == EXIT_SIGNAL_BASE + signal.SIGTERM


def test_signals_in_the_middle(restore: LongRestore) -> None:
    with HelperProcess(restore.pages, "-v1") as helper:
        restore.start(helper)
        for number in (signal.SIGUSR1, signal.SIGSTOP, signal.SIGCONT, signal.SIGWINCH) * 20:
            os.kill(helper.worker_pid, number)
        os.kill(helper.worker_pid, signal.SIGCONT)
        assert helper.receive() == restore.answer
        assert helper.finish().status == EXIT_OK
    assert restore.is_right()


# The image.


def test_image_is_truncated(restore: LongRestore) -> None:
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        os.truncate(restore.pages, 12345)
        answer, status = outcome_of(helper, restore)
    if answer == restore.answer:
        assert restore.is_right()
    else:
        assert (answer, status) == (-errno.EIO, EXIT_IMAGE)


def test_image_is_replaced(restore: LongRestore) -> None:
    """By rename, as everybody should: the helper goes on with the file that it was given."""
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        other = restore.pages.with_suffix(".new")
        other.write_bytes(bytes(1 << 20))
        other.rename(restore.pages)
        answer, _ = outcome_of(helper, restore)
    assert answer == restore.answer
    assert restore.is_right()


def test_image_is_overwritten(restore: LongRestore) -> None:
    """With what is no LZ4 block: it is noticed, unless everything had been read."""
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        with restore.pages.open("r+b") as file:
            file.write(b"\xff" * restore.pages.stat().st_size)
        answer, status = outcome_of(helper, restore)
    if answer != restore.answer:
        assert (answer, status) == (-errno.EBADMSG, EXIT_IMAGE)


def test_image_grows(restore: LongRestore) -> None:
    with HelperProcess(restore.pages) as helper:
        restore.start(helper)
        with restore.pages.open("ab") as file:
            file.write(bytes(1 << 20))
        answer, _ = outcome_of(helper, restore)
    assert answer == restore.answer
    assert restore.is_right()


# Limits.


def test_no_memory_left(target: Target, restore: LongRestore) -> None:
    """The worker may not map another byte when the large request comes."""
    with HelperProcess(restore.pages, "--threads", "2") as helper:
        assert helper.ask(RawRequest(target.pid, 0, (0,), [(ADDRESS, 4096)])) == 0
        statm = Path(f"/proc/{helper.worker_pid}/statm").read_text()
        mapped = int(statm.split()[0]) * 4096
        resource.prlimit(helper.worker_pid, resource.RLIMIT_AS, (mapped, mapped))
        answer = helper.ask(restore.request)
        outcome = helper.finish()
    assert "a bug" not in outcome.stderr
    assert (answer, outcome.status) in (
        (restore.answer, EXIT_OK),
        (-errno.ENOMEM, EXIT_RESOURCES),
    )


@pytest.mark.parametrize("room", [0, 1, 2, 3])
def test_no_descriptors_left(target: Target, restore: LongRestore, room: int) -> None:
    """No room for what a new target needs."""
    with HelperProcess(restore.pages) as helper:
        helper.send(restore.request.encode()[:36])
        worker = wait_for_worker(helper)
        used = max(map(int, os.listdir(f"/proc/{worker}/fd"))) + 1
        limit = used + room
        resource.prlimit(worker, resource.RLIMIT_NOFILE, (limit, limit))
        helper.send(restore.request.encode()[36:])
        answer = helper.receive()
        outcome = helper.finish()
    assert (answer, outcome.status) == (-errno.EMFILE, EXIT_RESOURCES)
    assert "RLIMIT_NOFILE" in outcome.error_line
    assert not restore.has_begun()


def wait_for_worker(helper: HelperProcess) -> int:
    """Return the worker's pid once it waits for the rest of a request."""
    while True:
        children = Path(f"/proc/{helper.pid}/task/{helper.pid}/children").read_text().split()
        for child in children:
            if "helperd-worker" in Path(f"/proc/{child}/comm").read_text() and (
                "Seccomp:\t2" in Path(f"/proc/{child}/status").read_text()
            ):
                return int(child)
        os.sched_yield()


@pytest.mark.parametrize("limit", [8, 10, 12, 16, 24])
def test_few_descriptors_from_the_start(restore: LongRestore, limit: int) -> None:
    starter = (
        "import os, resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({limit}, {limit}))\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    with HelperProcess(restore.pages, wrapper=(sys.executable, "-c", starter)) as helper:
        answer = helper.ask(restore.request)
        outcome = helper.finish()
    assert "Traceback" not in outcome.stderr
    if answer == restore.answer:
        assert outcome.status == EXIT_OK
        assert restore.is_right()
    else:
        # Without a descriptor to look at /proc with, nobody is known to be a descendant.
        assert outcome.status in (EXIT_RESOURCES, EXIT_PERMISSION)
        assert outcome.error_line


@pytest.mark.parametrize("mib", [48, 64, 96, 128, 192, 256, 384])
def test_little_memory_from_the_start(restore: LongRestore, mib: int) -> None:
    """Python itself may not start; what helperd says is one line, what it writes is right."""
    starter = (
        "import os, resource, sys\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({mib << 20}, {mib << 20}))\n"
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    with HelperProcess(restore.pages, wrapper=(sys.executable, "-c", starter)) as helper:
        answer = helper.ask(restore.request)
        outcome = helper.finish()
    if answer == restore.answer:
        assert outcome.status == EXIT_OK
        assert restore.is_right()
    else:
        assert answer in (None, -errno.ENOMEM)
        assert outcome.status != EXIT_OK


def test_memory_is_bounded(restore: LongRestore) -> None:
    with HelperProcess(restore.pages) as helper:
        assert helper.ask(restore.request) == restore.answer
        assert peak_rss_bytes(helper.worker_pid) < BUDGET_BYTES
        assert helper.finish().status == EXIT_OK
