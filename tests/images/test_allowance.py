"""What may be written: so many bytes of one's own, and until the disk is as full as it may be."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from helperd.errors import HelperdError, ResourceError
from helperd.images.allowance import Allowance

MIB = 1 << 20


class Disk:
    """A disk that others write to as well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.free = free
        self.asked = 0
        self._real = os.statvfs(".")
        monkeypatch.setattr(os, "statvfs", self._statvfs)

    def _statvfs(self, _path: str) -> os.statvfs_result:
        self.asked += 1
        fields = list(self._real)
        fields[1], fields[3], fields[4] = 4096, (self.free + MIB) // 4096, self.free // 4096
        return os.statvfs_result(fields)


def test_own_bytes() -> None:
    allowance = Allowance(".", 10)
    allowance.take(4)
    allowance.take(6)
    with pytest.raises(ResourceError, match="more than 10 bytes") as caught:
        allowance.take(1)
    assert caught.value.errno == errno.EDQUOT


def test_what_stays_free(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 8 * MIB)
    allowance = Allowance(".", None, 5 * MIB)
    allowance.take(3 * MIB)
    disk.free = 5 * MIB
    with pytest.raises(ResourceError, match="--keep-free") as caught:
        allowance.take(MIB)
    assert caught.value.errno == errno.ENOSPC


def test_others_fill_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch, 8 * MIB)
    allowance = Allowance(".", None, 5 * MIB)
    allowance.take(1)
    disk.free = 5 * MIB - 1
    # It is looked at again after a MiB, not for each few bytes.
    for _ in range(255):
        allowance.take(4096)
    assert disk.asked == 1
    with pytest.raises(ResourceError):
        allowance.take(4096)


def test_a_disk_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(HelperdError, match="cannot ask how much is free"):
        Allowance(str(tmp_path / "gone"), None, MIB).take(1)
