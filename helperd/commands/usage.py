"""The text of --help, from the table of options. Imported only when somebody asks for it."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from helperd.options import ATTACH_OPTIONS, OPTIONS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helperd.options import Option

#: What can be said besides the table's options: (spelling, help).
COMMON = (
    ("-v0 .. -v4", "say nothing, errors, warnings (default), what was done, everything"),
    ("--version", "print the version and exit; with -v, those of the libraries in use, too"),
    ("-h, --help", "print this and exit"),
)

SYNOPSIS = (
    "helperd --stdin-pipes --pages FILE [options]",
    "helperd --pages-fd N --request-fd N --reply-fd N [options]",
    "helperd attach --socket PATH --pages-fd N --request-fd N --reply-fd N [options]",
    "helperd serve [options]",
    "helperd COMMAND ...",
)
DESCRIPTION = (
    "Refill the memory of a process being restored from a compressed pages image: read pipe_hdr"
    " requests, answer each with the bytes written or a negative errno."
)
ATTACH_HELP = "be served by a helperd serve that is warm already"
ATTACH_DESCRIPTION = (
    "The same, in a worker of a helperd serve that is warm already: takes the options of a"
    " directly spawned helper, and ends with its exit status."
)
EXIT_STATUS = (
    ("0", "all requests served"),
    ("2", "usage"),
    ("3", "protocol"),
    ("4", "image"),
    ("5", "target"),
    ("6", "not permitted"),
    ("7", "out of resources"),
    ("141", "nobody reads stdout any more"),
    ("128+N", "worker killed by signal N"),
)

_INDENT = 23
_WIDTH = 100


def helper_usage(commands: Sequence[tuple[str, str]]) -> str:
    """Return ``helperd --help``; ``commands`` are (name, help)."""
    listed = (("attach", ATTACH_HELP), *commands)
    parts = [
        "usage: " + "\n       ".join(SYNOPSIS),
        textwrap.fill(DESCRIPTION, _WIDTH),
        *_groups(OPTIONS),
        "commands (see helperd COMMAND --help):\n" + "".join(_row(*row) for row in listed),
        _exit_status(),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def attach_usage() -> str:
    """Return ``helperd attach --help``."""
    parts = [
        f"usage: {SYNOPSIS[2]}",
        textwrap.fill(ATTACH_DESCRIPTION, _WIDTH),
        *_groups(ATTACH_OPTIONS),
        _exit_status(),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _groups(options: Sequence[Option]) -> list[str]:
    groups: dict[str, str] = {}
    for option in options:
        row = _row(option.spelling, option.help)
        groups[option.group] = groups.get(option.group, "") + row
    groups["options"] += "".join(_row(*row) for row in COMMON)
    return [f"{title}:\n{rows}" for title, rows in groups.items()]


def _row(spelling: str, text: str) -> str:
    first = f"  {spelling}".ljust(_INDENT)
    if len(first) > _INDENT:
        first += "\n" + " " * _INDENT
    body = textwrap.wrap(text, _WIDTH - _INDENT)
    return first + ("\n" + " " * _INDENT).join(body) + "\n"


def _exit_status() -> str:
    text = "exit status: " + ", ".join(f"{code} {meaning}" for code, meaning in EXIT_STATUS)
    return textwrap.fill(text, _WIDTH)
