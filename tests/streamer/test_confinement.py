"""What reads the bytes of strangers has given up what it does not need."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from helperd.streamer.confinement import CAPABILITIES
from tests.images.checkpoints import levels_of
from tests.streamer.criu import Streamer, streamer


def _status(running: Streamer) -> dict[str, str]:
    text = Path(f"/proc/{running.process.pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def _assert_confined(running: Streamer) -> None:
    status = _status(running)
    kept = sum(1 << capability for capability in CAPABILITIES)
    assert status["NoNewPrivs"] == "1"
    for name in ("CapEff", "CapPrm", "CapInh"):
        assert int(status[name], 16) & ~kept == 0


def test_a_capture_is_confined(tmp_path):
    with streamer("-D", tmp_path / "sock", "--to", tmp_path, "capture") as running:
        running.until("socket-init")
        _assert_confined(running)


def test_what_serves_is_confined(image_archive, tmp_path):
    source = levels_of(image_archive("py-heap"))[-1]
    with streamer("-D", tmp_path / "sock", "--from", source, "serve") as running:
        running.until("socket-init")
        _assert_confined(running)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has what is given up")
def test_the_program_is_not(tmp_path):
    words = ("sh", "-c", "cat /proc/self/status > $0/status", tmp_path)
    with streamer("-D", tmp_path / "sock", "capture", "--", *words) as running:
        running.end()
    lines = (tmp_path / "status").read_text().splitlines()
    assert "NoNewPrivs:\t0" in lines
    assert f"CapEff:\t{_capabilities()}" in lines


def _capabilities() -> str:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:\t"):
            return line.removeprefix("CapEff:\t")
    raise AssertionError("no CapEff")
