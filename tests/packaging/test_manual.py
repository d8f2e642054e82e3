"""The man page, the completions and the units are those of the options there are."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import manual
import pytest

from tests.support.helper import run_helper


def test_committed_files_are_current() -> None:
    assert manual.stale() == [], "run scripts/manual.py"


def test_help_names_every_option() -> None:
    helps = {"": run_helper("--help"), "attach": run_helper("attach", "--help")}
    for command in manual.all_commands():
        if command.name in helps:
            text = helps[command.name].stdout.decode()
            for entry in command.entries:
                # -v0 to -v4 are told as a range.
                assert entry.flags[0] in text
                assert entry.help.split()[0] in text


def test_help_names_every_command() -> None:
    text = run_helper("--help").stdout.decode()
    for command in manual.all_commands()[1:]:
        assert f"\n  {command.name} " in text


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man")
def test_man_page_is_right_roff() -> None:
    page = str(manual.PACKAGING / "helperd.1")
    result = subprocess.run(
        ["man", "--warnings", "-l", page], capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    for option in manual.OPTIONS:
        assert option.flag in result.stdout


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd")
def test_systemd_understands_the_units() -> None:
    units = map(str, (manual.PACKAGING / "systemd").iterdir())
    result = subprocess.run(
        ["systemd-analyze", "--man=no", "verify", *units], capture_output=True, text=True
    )
    assert (result.returncode, result.stderr) == (0, "")


def test_units_start_what_there_is() -> None:
    service = Path(manual.PACKAGING / "systemd/helperd.service").read_text()
    socket = Path(manual.PACKAGING / "systemd/helperd.socket").read_text()
    assert "ListenSequentialPacket=" in socket
    (start,) = (line for line in service.splitlines() if line.startswith("ExecStart="))
    words = start.split()
    serve = next(command for command in manual.all_commands() if command.name == "serve")
    flags = {flag for entry in serve.entries for flag in entry.flags}
    assert words[1:3] == ["helperd", "serve"]
    assert {word for word in words if word.startswith("-")} <= flags
