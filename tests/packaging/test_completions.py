"""What the shells offer for a line that has been begun."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import manual
import pytest

COMPLETIONS = manual.PACKAGING / "completions"

Complete = Callable[[list[str], Path], set[str]]


def complete_in_bash(words: list[str], _folder: Path) -> set[str]:
    script = f"""
    source {COMPLETIONS / "helperd.bash"}
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
    _helperd; printf '%s\\n' "${{COMPREPLY[@]}}"
    """
    return set(run("bash", "-c", script, "bash", *words).split())


def complete_in_fish(words: list[str], _folder: Path) -> set[str]:
    script = f"source {COMPLETIONS / 'helperd.fish'}; complete -C '{' '.join(words)}'"
    lines = run("fish", "--no-config", "-c", script).splitlines()
    offered = {line.partition("\t")[0] for line in lines}
    # Since 4.0 it also tells what only has the letters in it, and shows that if there is nothing
    # better; and it thinks that -v may be followed by -h in the same word.
    return {word for word in offered if word.startswith(words[-1])} - {"-vh"}


def run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd="/").stdout


#: Completes $LINE as soon as there is a line to edit, and writes what is offered to $OFFERED.
ZSHRC = r"""
fpath=($COMPLETIONS $fpath)
autoload -Uz compinit && compinit -u -D
compadd() {
  local -a found
  # With -O, -A and -D it only selects, nothing is offered.
  if [[ ${@[1,(i)(-|--)]} != *-[OAD]\ * ]]; then
    builtin compadd -A found "$@"
    print -rl -- $found >>$OFFERED
  fi
  builtin compadd "$@"
}
zle-line-init() { BUFFER=$LINE CURSOR=$#LINE; zle complete-word; exit 0 }
zle -N zle-line-init
"""


def complete_in_zsh(words: list[str], folder: Path) -> set[str]:
    """Its completion works in a line editor only, and that on a terminal only."""
    (folder / ".zshrc").write_text(ZSHRC)
    offered = folder / "offered"
    environment = {
        "COMPLETIONS": str(COMPLETIONS),
        "LINE": " ".join(words),
        "OFFERED": str(offered),
        "PATH": os.environ["PATH"],
        "TERM": "dumb",
        "ZDOTDIR": str(folder),
    }
    terminal, end = os.openpty()
    try:
        subprocess.run(
            ["zsh", "--no-global-rcs", "--interactive"],
            check=True,
            cwd="/",
            env=environment,
            stdin=end,
            stdout=end,
            stderr=end,
            start_new_session=True,
        )
    finally:
        os.close(terminal)
        os.close(end)
    return set(offered.read_text().split())


SHELLS: dict[str, Complete] = {
    "bash": complete_in_bash,
    "fish": complete_in_fish,
    "zsh": complete_in_zsh,
}


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("helperd --pag", {"--pages", "--pages-fd"}),
        ("helperd com", {"complete", "compress"}),
        ("helperd serve --max-s", {"--max-sessions"}),
        ("helperd attach --so", {"--socket"}),
        ("helperd --sandbox ", {"off", "on", "strict"}),
        ("helperd --sandbox s", {"strict"}),
        ("helperd compress --schema ", {"blocks", "sizes"}),
        ("helperd -v", {"-v0", "-v1", "-v2", "-v3", "-v4"}),
    ],
)
@pytest.mark.parametrize("shell", SHELLS)
def test_offered(shell: str, line: str, offered: set[str], tmp_path: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    assert SHELLS[shell](line.split(" "), tmp_path) == offered
