"""The processes that requests have named: held while they live, and not longer."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from helperd.errors import TargetGone
from helperd.reports.log import Log
from helperd.targets.hold import Hold
from helperd.targets.targets import Targets


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[bytes]]]:
    """Return a list for processes, which are ended."""
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


def start(processes: list[subprocess.Popen[bytes]]) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(["sleep", "600"])
    processes.append(process)
    return process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def n_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_one_that_is_named_again_is_the_one_that_was_held(
    processes: list[subprocess.Popen[bytes]],
) -> None:
    pinned: list[int] = []

    def pin(pid: int) -> Hold:
        pinned.append(pid)
        return Hold.open(pid)

    targets = Targets(pin, Log())
    process = start(processes)
    first = targets.get(process.pid)
    assert targets.get(process.pid) is first
    assert pinned == [process.pid]
    end(process)
    # Not held anew either: another process may have the number by now.
    with pytest.raises(TargetGone, match=f"{process.pid} is gone"):
        targets.get(process.pid).check_alive()
    assert pinned == [process.pid]


def test_the_dead_are_forgotten_sixteen_at_a_time(
    processes: list[subprocess.Popen[bytes]],
) -> None:
    targets = Targets(Hold.open, Log())
    lasting = start(processes)
    held = targets.get(lasting.pid)
    before = n_descriptors()
    # The second so far; the sixteenth and the thirty-second make room for all that come.
    for number in range(2, 34):
        process = start(processes)
        targets.get(process.pid)
        held_now = number - 1 if number < 16 else number - 15 if number < 32 else number - 31
        assert n_descriptors() == before + 4 * held_now, number
        end(process)
    assert targets.get(lasting.pid) is held
