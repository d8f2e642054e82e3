"""The man page and the completions are those of the options there are."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import manual
import pytest

from tests.support.helper import run_helper

COMPLETIONS = manual.PACKAGING / "completions"


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


def complete(*words: str) -> set[str]:
    """Return what bash offers for the last word."""
    script = f"""
    source {COMPLETIONS / "helperd.bash"}
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
    _helperd; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    result = subprocess.run(
        ["bash", "-c", script, "bash", *words], capture_output=True, text=True, check=True, cwd="/"
    )
    return set(result.stdout.split())


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("helperd", "--pag"), {"--pages", "--pages-fd"}),
        (("helperd", "com"), {"compress"}),
        (("helperd", "serve", "--max-s"), {"--max-sessions"}),
        (("helperd", "attach", "--so"), {"--socket"}),
        (("helperd", "--sandbox", ""), {"off", "on", "strict"}),
        (("helperd", "--sandbox", "s"), {"strict"}),
        (("helperd", "-v"), {"-v0", "-v1", "-v2", "-v3", "-v4"}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_bash_completes(words: tuple[str, ...], offered: set[str]) -> None:
    assert complete(*words) == offered


@pytest.mark.parametrize(("shell", "file"), [("zsh", "_helperd"), ("fish", "helperd.fish")])
def test_other_shells_can_read_theirs(shell: str, file: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    subprocess.run([shell, "-n", str(COMPLETIONS / file)], check=True)


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
