"""What a session gives up before it reads a byte of its client."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from tests.support.helper import COMMAND
from tests.support.processes import DEADLINE_SECONDS, eventually

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER = 1, 2, 3


def status_of(pid: int) -> dict[str, str]:
    """Return what /proc/PID/status says."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_privileges_are_given_up(tmp_path: Path) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        process = subprocess.Popen(
            [*COMMAND, "page-server", "-D", str(tmp_path), "--ps-socket", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stderr=subprocess.PIPE,
        )
        theirs.close()
        try:
            assert eventually(lambda: status_of(process.pid)["NoNewPrivs"] == "1")
            kept = 1 << CAP_DAC_OVERRIDE | 1 << CAP_DAC_READ_SEARCH | 1 << CAP_FOWNER
            assert eventually(lambda: not int(status_of(process.pid)["CapPrm"], 16) & ~kept)
            assert int(status_of(process.pid)["CapEff"], 16) & ~kept == 0
        finally:
            ours.close()
            assert process.stderr is not None
            said = process.stderr.read()
            process.stderr.close()
            process.wait(DEADLINE_SECONDS)
    assert b"refuses" not in said
