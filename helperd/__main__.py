"""The entry point: the helper itself, or one of the offline commands."""

from __future__ import annotations

import posix as os
import sys

from helperd import __version__
from helperd.errors import (
    EXIT_OK,
    EXIT_RESOURCES,
    EXIT_SIGNAL_BASE,
    HelperdError,
    OutputGone,
    describe_bug,
)
from helperd.kernel.descriptors import fill_standard
from helperd.kernel.signals import start_afresh

_STDERR = 2
#: For a reader of a pipe that is full; one that never reads must not keep us.
_STDERR_SECONDS = 1.0

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: Words that want an answer, not a restore.
_ASKED = {"-h", "--help", "--version"}
#: Dask ends what it has started when the interpreter ends.
_WITH_DASK = "fleet"


def main() -> int:
    """Run helperd as ``sys.argv`` says; return the exit code."""
    fill_standard()
    start_afresh()
    try:
        return _run(sys.argv[1:])
    except OutputGone as error:
        return error.exit_code
    except HelperdError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        import signal

        return EXIT_SIGNAL_BASE + signal.SIGINT
    except ImportError as error:
        _complain(f"this installation of helperd is not complete: {error}")
        return EXIT_RESOURCES
    except Exception as error:
        _complain(describe_bug(error))
        return EXIT_RESOURCES


def start() -> NoReturn:
    """Run helperd as a program: end the process with the exit code."""
    code = main()
    arguments = sys.argv[1:]
    if not serves(arguments):
        if arguments[:1] == [_WITH_DASK] or _ASKED.intersection(arguments[:1]):
            sys.exit(code)
        _flush()
    # Nothing is taken down that the kernel takes back anyway: somebody waits for the end.
    os._exit(code)


def serves(arguments: list[str]) -> bool:
    """Return whether this is a helper, and not a command that may have something to print."""
    first = arguments[0] if arguments else ""
    return (first == "attach" or first.startswith("-")) and not _ASKED.intersection(arguments)


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["attach"]:
        return _attach(arguments[1:])
    if not arguments or arguments[0].startswith("-"):
        return _run_helper(arguments)
    _find_packages()
    from helperd import commands
    from helperd.commands import output

    output.prepare()
    try:
        code = commands.run(arguments)
    except SystemExit as end:  # argparse has said what there is to say.
        code = int(end.code or 0)
    output.flush()
    return code


def _run_helper(arguments: list[str]) -> int:
    from helperd.options import parse_options

    if "-h" in arguments or "--help" in arguments:
        _find_packages()
        from helperd import commands
        from helperd.commands import usage

        described = [(name, words) for name, words, _ in commands.parsers()]
        return _print(usage.helper_usage(described))
    if "--version" in arguments and "-v" in arguments:
        from helperd.commands import versions

        return _print(versions.describe())
    if "--version" in arguments:
        return _print(f"helperd {__version__}\n")
    options = parse_options(arguments)
    from helperd.helper import direct

    return direct.run(options)


def _attach(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        from helperd.commands import usage

        return _print(usage.attach_usage())
    from helperd.options import parse_options
    from helperd.server import attach

    return attach.run(parse_options(arguments, attach=True))


def _find_packages() -> None:
    """Look for packages in all the usual places, where Python was started without doing so.

    The offline commands need what their libraries may have put anywhere; a helper needs none.
    """
    if sys.flags.no_site:
        import site
        from os.path import dirname

        site.main()
        site.addsitedir(dirname(dirname(__file__)))


def _print(text: str) -> int:
    from helperd.commands import output

    output.prepare()
    sys.stdout.write(text)
    output.flush()
    return EXIT_OK


def _flush() -> None:
    """Write what a command that has failed had to say before."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (HelperdError, OSError, ValueError):
            continue


def _complain(message: str) -> None:
    from helperd.kernel.pipes import write_soon

    line = f"helperd: {' '.join(message.splitlines())}\n"
    try:
        write_soon(_STDERR, line.encode("utf-8", "backslashreplace"), _STDERR_SECONDS)
    except OSError:
        return


if __name__ == "__main__":
    start()
