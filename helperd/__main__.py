"""The entry point: the helper itself, or one of the offline commands."""

from __future__ import annotations

import os
import sys

from helperd import __version__
from helperd.errors import EXIT_OK, EXIT_RESOURCES, EXIT_SIGNAL_BASE, HelperdError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

#: Words that want an answer, not a restore.
_ASKED = {"-h", "--help", "--version"}


def main() -> int:
    """Run helperd as ``sys.argv`` says; return the exit code."""
    arguments = sys.argv[1:]
    try:
        if arguments[:1] == ["attach"]:
            return _attach(arguments[1:])
        if arguments and not arguments[0].startswith("-"):
            _find_packages()
            from helperd import commands

            return commands.run(arguments)
        return _run_helper(arguments)
    except HelperdError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        import signal

        return EXIT_SIGNAL_BASE + signal.SIGINT
    except Exception as error:
        _complain(f"internal error: {type(error).__name__}: {error} (a bug: please report it)")
        return EXIT_RESOURCES


def start() -> NoReturn:
    """Run helperd as a program: end the process with the exit code."""
    code = main()
    if _serves(sys.argv[1:]):
        # Nothing is taken down that the kernel takes back anyway: a restore waits for the end.
        os._exit(code)
    sys.exit(code)


def _serves(arguments: list[str]) -> bool:
    """Return whether this is a helper, and not a command that may have something to print."""
    first = arguments[0] if arguments else ""
    return (first == "attach" or first.startswith("-")) and not _ASKED.intersection(arguments)


def _run_helper(arguments: list[str]) -> int:
    from helperd.options import parse_options

    if "-h" in arguments or "--help" in arguments:
        _find_packages()
        from helperd import commands
        from helperd.commands import usage

        described = [(name, words) for name, words, _ in commands.parsers()]
        sys.stdout.write(usage.helper_usage(described))
        return EXIT_OK
    if "--version" in arguments and "-v" in arguments:
        from helperd.commands import versions

        sys.stdout.write(versions.describe())
        return EXIT_OK
    if "--version" in arguments:
        sys.stdout.write(f"helperd {__version__}\n")
        return EXIT_OK
    options = parse_options(arguments)

    from helperd.helper import direct

    return direct.run(options)


def _attach(arguments: list[str]) -> int:
    if "-h" in arguments or "--help" in arguments:
        from helperd.commands import usage

        sys.stdout.write(usage.attach_usage())
        return EXIT_OK
    from helperd.options import parse_options
    from helperd.server import attach

    return attach.run(parse_options(arguments, attach=True))


def _find_packages() -> None:
    """Look for packages in all the usual places, where Python was started without doing so.

    The offline commands need what their libraries may have put anywhere; a helper needs none.
    """
    if sys.flags.no_site:
        import site

        site.main()
        site.addsitedir(os.path.dirname(os.path.dirname(__file__)))


def _complain(message: str) -> None:
    try:
        os.write(2, f"helperd: {' '.join(message.splitlines())}\n".encode())
    except OSError:
        return


if __name__ == "__main__":
    start()
