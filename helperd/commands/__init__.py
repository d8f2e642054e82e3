"""The offline commands, one module each: ``add_parser`` says its options, ``run`` does it."""

from __future__ import annotations

import argparse
import gc
import importlib
import os

from helperd.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, NoReturn

COMMANDS = (
    "compress",
    "decompress",
    "check",
    "show",
    "unpack",
    "fleet",
    "dedup",
    "inject",
    "serve",
    "page-server",
    "complete",
    "lazy-pages",
    "stream",
)


#: Objects that are made before garbage is looked for.
_GARBAGE = 100_000
#: Of a terminal that does not say how wide it is; and what argparse leaves free at its edge.
_DEFAULT_COLUMNS, _MARGIN = 80, 2
_STDOUT = 1


class _Formatter(argparse.HelpFormatter):
    """Asks the terminal for its width without importing shutil; one is made with each option."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        if options.get("width") is None:
            options["width"] = _columns() - _MARGIN
        super().__init__(*arguments, **options)


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as the rest of helperd does."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter} | options)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(f"{message}; see {self.prog} --help")


def run(arguments: Sequence[str]) -> int:
    """Run the command that ``arguments`` start with; return its exit code.

    Only that command's module is imported.

    Raises:
        HelperdError: it failed.
    """
    name = arguments[0]
    if name not in COMMANDS:
        raise UsageError(f"no command {name!r}: there are {', '.join(COMMANDS)}; see --help")
    parser = _Parser(prog="helperd")
    command = importlib.import_module(_module(name))
    # With its prog, or argparse would make it from a usage, and import shutil for that.
    command.add_parser(parser.add_subparsers(prog=parser.prog, required=True))
    # Hundreds of thousands of entries are no garbage, nor is there much else that could be.
    gc.set_threshold(_GARBAGE)
    gc.enable()
    words, program = list(arguments), []
    if getattr(command, "RUNS_PROGRAM", False) and "--" in words:
        # argparse would take options of that program for its own.
        end = words.index("--")
        words, program = words[:end], words[end + 1 :]
    parsed = parser.parse_args(words, argparse.Namespace(program=program))
    code: int = command.run(parsed)
    return code


def _columns() -> int:
    columns = os.environ.get("COLUMNS", "")
    if columns.isdecimal() and int(columns):
        return int(columns)
    try:
        return os.get_terminal_size(_STDOUT).columns or _DEFAULT_COLUMNS
    except OSError:
        return _DEFAULT_COLUMNS


def _module(name: str) -> str:
    return f"{__name__}.{name.replace('-', '_')}"


def parsers() -> list[tuple[str, str, argparse.ArgumentParser]]:
    """Return the name of each command, what it does in a few words, and its parser."""
    subparsers = argparse.ArgumentParser(prog="helperd").add_subparsers()
    for name in COMMANDS:
        importlib.import_module(_module(name)).add_parser(subparsers)
    return [
        (choice.dest, choice.help or "", subparsers.choices[choice.dest])
        for choice in subparsers._choices_actions
    ]
