"""The options of the helper itself.

Parsed by hand from one table: importing argparse takes longer than everything else that the
helper does before it is ready, and a restore waits for it.
"""

from __future__ import annotations

from helperd.blocks import PAGE_SIZE
from helperd.errors import UsageError
from helperd.log import DEBUG, DEFAULT_LEVEL
from helperd.protocol import DEFAULT_MAX_PAGES
from helperd.release import ANSWERED, NEVER, PUNCH_MODES
from helperd.thp import AUTO, MODES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

USAGE = """\
usage: helperd --stdin-pipes --pages FILE [options]
       helperd --pages-fd N --request-fd N --reply-fd N [options]
       helperd COMMAND ...        (compress, inject; see helperd COMMAND --help)

Refill the memory of a process being restored from a compressed pages image: read pipe_hdr
requests, answer each with the bytes written or a negative errno.

where the requests come from:
  --stdin-pipes        requests on stdin, answers on stdout
  --pages FILE         the pages image, with --stdin-pipes
  --pages-fd N         the pages image, as an open descriptor
  --request-fd N       the pipe to read requests from
  --reply-fd N         the pipe to write answers to

options:
  --target PID         also allow writing to this process; may be repeated. Without it only the
                       process that started helperd and its descendants may be written to
  --max-request SIZE   most memory one request may cover (default 256G)
  --threads N          threads that work on a request (default: the CPUs of this process)
  --thp MODE           huge pages for densely restored memory: auto follows the system's policy
                       (default), always, never
  --auto-dedup[=WHEN]  punch consumed bytes out of the pages image, which is destroyed by it: when
                       their request has been answered ("answered", the default), or already when
                       they are in the target ("early": a large request takes less memory, but
                       cannot be restored again if it fails). The image must be writable
  -v0 .. -v4           say nothing, errors, warnings (default), what was done, everything
  --log-file FILE      append the log to FILE instead of stderr
  --version            print the version and exit
  -h, --help           print this and exit

exit status: 0 all requests served, 2 usage, 3 protocol, 4 image, 5 target, 6 not permitted,
7 out of resources, 128+N worker killed by signal N
"""

#: The standard descriptors belong to the process being restored in --pages-fd mode.
_FIRST_OWN_FD = 3
#: Each has buffers of its own, a few MiB.
_MAX_THREADS = 256
_SUFFIXES = {"K": 10, "M": 20, "G": 30, "T": 40}


class Options:
    """What the command line of the helper says.

    Descriptors are None until they are known; ``threads`` 0 means as many as there are CPUs.
    """

    def __init__(self) -> None:
        self.stdin_pipes = False
        self.pages: str | None = None
        self.pages_fd: int | None = None
        self.request_fd: int | None = None
        self.reply_fd: int | None = None
        self.targets: list[int] = []
        self.max_pages = DEFAULT_MAX_PAGES
        self.threads = 0
        self.thp = AUTO
        self.punch = NEVER
        self.verbosity = DEFAULT_LEVEL
        self.log_file: str | None = None


def parse_options(arguments: Sequence[str]) -> Options:
    """Return the options.

    Raises:
        UsageError: naming the option that is wrong, and how it is meant.
    """
    options = Options()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--stdin-pipes":
            options.stdin_pipes = True
            continue
        if argument == "--auto-dedup":
            options.punch = ANSWERED
            continue
        if argument.startswith("-v") and argument[2:].isdecimal() and int(argument[2:]) <= DEBUG:
            options.verbosity = int(argument[2:])
            continue
        name, equals, value = argument.partition("=")
        setter = _SETTERS.get(name)
        if setter is None:
            raise UsageError(f"unknown option {argument!r}; see helperd --help")
        if not equals:
            if not rest:
                raise UsageError(f"{name} needs a value; see helperd --help")
            value = rest.pop(0)
        setter(options, name, value)
    _check(options)
    return options


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 4096, 256K, 1M or 64G.

    Raises:
        UsageError: it is not a size.
    """
    number, shift = text.strip().upper().removesuffix("B"), 0
    if number[-1:] in _SUFFIXES:
        number, shift = number[:-1], _SUFFIXES[number[-1]]
    if not (number.isascii() and number.isdecimal()):
        raise UsageError(f"{text!r} is not a size: write 4096, 256K, 1M, ...")
    return int(number) << shift


def _number(name: str, value: str) -> int:
    if not (value.isascii() and value.isdecimal()):
        raise UsageError(f"{name} {value!r}: a number is needed")
    return int(value)


def _set_fd(attribute: str) -> Callable[[Options, str, str], None]:
    def set_fd(options: Options, name: str, value: str) -> None:
        fd = _number(name, value)
        if fd < _FIRST_OWN_FD:
            raise UsageError(
                f"{name} {fd}: descriptors 0, 1 and 2 belong to the process being restored;"
                " pass another one, or use --stdin-pipes"
            )
        setattr(options, attribute, fd)

    return set_fd


def _set_text(attribute: str) -> Callable[[Options, str, str], None]:
    return lambda options, _name, value: setattr(options, attribute, value)


def _add_target(options: Options, name: str, value: str) -> None:
    options.targets.append(_number(name, value))


def _set_max_request(options: Options, name: str, value: str) -> None:
    options.max_pages = parse_size(value) // PAGE_SIZE
    if not options.max_pages:
        raise UsageError(f"{name} {value}: less than a page")


def _set_threads(options: Options, name: str, value: str) -> None:
    options.threads = _number(name, value)
    if not 1 <= options.threads <= _MAX_THREADS:
        raise UsageError(f"{name} {value}: from 1 to {_MAX_THREADS}")


def _set_thp(options: Options, name: str, value: str) -> None:
    if value not in MODES:
        raise UsageError(f"{name} {value!r}: one of {', '.join(MODES)}")
    options.thp = value


def _set_punch(options: Options, name: str, value: str) -> None:
    if value not in PUNCH_MODES:
        raise UsageError(f"{name}={value}: one of {', '.join(PUNCH_MODES)}")
    options.punch = value


_SETTERS: dict[str, Callable[[Options, str, str], None]] = {
    "--pages": _set_text("pages"),
    "--pages-fd": _set_fd("pages_fd"),
    "--request-fd": _set_fd("request_fd"),
    "--reply-fd": _set_fd("reply_fd"),
    "--target": _add_target,
    "--max-request": _set_max_request,
    "--threads": _set_threads,
    "--thp": _set_thp,
    "--auto-dedup": _set_punch,
    "--log-file": _set_text("log_file"),
}


def _check(options: Options) -> None:
    fds = (options.pages_fd, options.request_fd, options.reply_fd)
    if options.stdin_pipes:
        if options.pages is None or fds != (None, None, None):
            raise UsageError("--stdin-pipes goes with --pages FILE and no descriptors")
    elif options.pages is not None:
        raise UsageError("--pages goes with --stdin-pipes; an open image is passed by --pages-fd")
    elif None in fds:
        raise UsageError(
            "nothing to serve: give --pages-fd, --request-fd and --reply-fd,"
            " or --stdin-pipes with --pages FILE; see helperd --help"
        )
    elif len(set(fds)) != len(fds):
        raise UsageError("--pages-fd, --request-fd and --reply-fd must be three descriptors")
