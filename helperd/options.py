"""The options of the helper itself, in one table.

--help, the man page and the shells' completions are made from it as well. It is parsed by hand:
importing argparse takes longer than everything else that the helper does before it is ready, and
a restore waits for it.
"""

from __future__ import annotations

from helperd.blocks import DEFAULT_MAX_PAGES, PAGE_SIZE
from helperd.errors import UsageError
from helperd.modes import ANSWERED, AUTO, NEVER, ON, PUNCH_MODES, SANDBOX_MODES, THP_MODES
from helperd.reports.log import DEBUG, DEFAULT_LEVEL, JOURNAL, JSON, TEXT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

#: The standard descriptors belong to the process being restored in --pages-fd mode.
_FIRST_OWN_FD = 3
#: Each has buffers of its own, a few MiB.
MAX_THREADS = 256
#: The kernel's PID_MAX_LIMIT.
MAX_PID = 1 << 22
#: poll(2) takes milliseconds in an int.
MAX_IDLE_SECONDS = 2_000_000
#: A request counts its pages in an int.
MAX_REQUEST = "8T"
_MAX_FD = (1 << 31) - 1
#: More than any number that can be meant, less than int() refuses.
_MAX_DIGITS = 20
_SUFFIXES = {"K": 10, "M": 20, "G": 30, "T": 40}


class Options:
    """What the command line of the helper says.

    Descriptors are None until they are known; ``threads`` 0 means as many as there are CPUs;
    ``idle_seconds`` 0 means that a restorer may think for as long as it likes.
    """

    def __init__(self) -> None:
        self.socket: str | None = None
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
        self.holes_are_zeros = False
        self.sandbox = ON
        self.idle_seconds = 0
        self.verbosity = DEFAULT_LEVEL
        self.log_file: str | None = None
        self.log_layout = TEXT
        self.stats: str | None = None

    @property
    def punches(self) -> bool:
        """Whether the pages image is to be destroyed behind what was restored."""
        return self.punch != NEVER


class Option:
    """One option.

    Attributes:
        flag: ``--name``.
        metavar: what its value is; empty when it has none.
        choices: the values there are, if only few.
        optional_value: whether the value may be left out.
        group: the heading that it is listed under.
        help: what it does, in a sentence.
        apply: sets it: called with the options, its name, its value ("" for none).
    """

    __slots__ = ("apply", "choices", "flag", "group", "help", "metavar", "optional_value")

    def __init__(
        self,
        flag: str,
        metavar: str,
        help: str,
        apply: Callable[[Options, str, str], None],
        *,
        choices: Sequence[str] = (),
        optional_value: bool = False,
        group: str = "options",
    ) -> None:
        self.flag = flag
        self.metavar = metavar
        self.help = help
        self.apply = apply
        self.choices = choices
        self.optional_value = optional_value
        self.group = group

    @property
    def spelling(self) -> str:
        """How it is written, with its value."""
        if self.optional_value:
            return f"{self.flag}[={self.metavar}]"
        return f"{self.flag} {self.metavar}".rstrip()


def parse_options(arguments: Sequence[str], *, attach: bool = False) -> Options:
    """Return the options of the helper, or those of ``helperd attach``.

    Raises:
        UsageError: naming the option that is wrong, and how it is meant.
    """
    known = {option.flag: option for option in (ATTACH_OPTIONS if attach else OPTIONS)}
    options = Options()
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument.startswith("-v") and argument[2:].isdecimal() and int(argument[2:]) <= DEBUG:
            options.verbosity = int(argument[2:])
            continue
        name, equals, value = argument.partition("=")
        option = known.get(name)
        if option is None or (equals and not option.metavar):
            raise UsageError(f"unknown option {argument!r}; see helperd --help")
        if option.metavar and not equals and not option.optional_value:
            if not rest:
                raise UsageError(f"{name} needs a value; see helperd --help")
            value = rest.pop(0)
        option.apply(options, name, value)
    _check(options)
    if attach and options.socket is None:
        raise UsageError("helperd attach needs --socket PATH, where a helperd serve listens")
    return options


def parse_size(text: str) -> int:
    """Return the bytes of a size such as 4096, 256K, 1M or 64G.

    Raises:
        UsageError: it is not a size.
    """
    number, shift = text.strip().upper().removesuffix("B"), 0
    if number[-1:] in _SUFFIXES:
        number, shift = number[:-1], _SUFFIXES[number[-1]]
    if not _is_number(number):
        raise UsageError(f"{text[:_MAX_DIGITS]!r} is not a size: write 4096, 256K, 1M, ...")
    return int(number) << shift


def read_size(name: str, text: str, first: str, last: str) -> int:
    """Return the bytes of a size that the option ``name`` has, from ``first`` to ``last``.

    Raises:
        UsageError: it is not a size, or out of that range; with the option's name.
    """
    try:
        n_bytes = parse_size(text)
    except UsageError as error:
        raise UsageError(f"{name} {error}") from error
    if not parse_size(first) <= n_bytes <= parse_size(last):
        raise UsageError(f"{name} {text}: from {first} to {last}")
    return n_bytes


def parse_number(text: str) -> int | None:
    """Return a decimal number, or a hexadecimal one after 0x; None if it is neither."""
    if _is_number(text):
        return int(text)
    digits = text[2:] if text[:2] in ("0x", "0X") else ""
    if digits and len(digits) <= _MAX_DIGITS and not digits.strip("0123456789abcdefABCDEF"):
        return int(digits, 16)
    return None


def _is_number(text: str) -> bool:
    return len(text) <= _MAX_DIGITS and text.isascii() and text.isdecimal()


def _number(name: str, value: str, first: int, last: int) -> int:
    if not _is_number(value):
        raise UsageError(f"{name} {value[:_MAX_DIGITS]!r}: a number is needed")
    if not first <= int(value) <= last:
        raise UsageError(f"{name} {value}: from {first} to {last}")
    return int(value)


def _set(attribute: str, to: object) -> Callable[[Options, str, str], None]:
    return lambda options, _name, _value: setattr(options, attribute, to)


def _set_text(attribute: str) -> Callable[[Options, str, str], None]:
    return lambda options, _name, value: setattr(options, attribute, value)


def _set_fd(attribute: str) -> Callable[[Options, str, str], None]:
    def set_fd(options: Options, name: str, value: str) -> None:
        fd = _number(name, value, 0, _MAX_FD)
        if fd < _FIRST_OWN_FD:
            raise UsageError(
                f"{name} {fd}: descriptors 0, 1 and 2 belong to the process being restored;"
                " pass another one, or use --stdin-pipes"
            )
        setattr(options, attribute, fd)

    return set_fd


def _set_choice(
    attribute: str, choices: Sequence[str], default: str = ""
) -> Callable[[Options, str, str], None]:
    def set_choice(options: Options, name: str, value: str) -> None:
        value = value or default
        if value not in choices:
            raise UsageError(f"{name} {value!r}: one of {', '.join(choices)}")
        setattr(options, attribute, value)

    return set_choice


def _add_target(options: Options, name: str, value: str) -> None:
    options.targets.append(_number(name, value, 1, MAX_PID))


def _set_max_request(options: Options, name: str, value: str) -> None:
    options.max_pages = read_size(name, value, str(PAGE_SIZE), MAX_REQUEST) // PAGE_SIZE


def _set_threads(options: Options, name: str, value: str) -> None:
    options.threads = _number(name, value, 1, MAX_THREADS)


def _set_idle(options: Options, name: str, value: str) -> None:
    options.idle_seconds = _number(name, value, 0, MAX_IDLE_SECONDS)


_SOURCES = "where the requests come from"

OPTIONS = (
    Option(
        "--stdin-pipes",
        "",
        "requests on stdin, answers on stdout",
        _set("stdin_pipes", True),
        group=_SOURCES,
    ),
    Option(
        "--pages", "FILE", "the pages image, with --stdin-pipes", _set_text("pages"), group=_SOURCES
    ),
    Option(
        "--pages-fd",
        "N",
        "the pages image, as an open descriptor",
        _set_fd("pages_fd"),
        group=_SOURCES,
    ),
    Option(
        "--request-fd", "N", "the pipe to read requests from", _set_fd("request_fd"), group=_SOURCES
    ),
    Option("--reply-fd", "N", "the pipe to write answers to", _set_fd("reply_fd"), group=_SOURCES),
    Option(
        "--target",
        "PID",
        "also allow writing to this process; may be repeated. Without it only the process that"
        " started helperd and its descendants may be written to",
        _add_target,
    ),
    Option(
        "--max-request",
        "SIZE",
        "most memory one request may cover (default 256G)",
        _set_max_request,
    ),
    Option(
        "--threads",
        "N",
        "threads that work on a request (default: the CPUs of this process)",
        _set_threads,
    ),
    Option(
        "--thp",
        "MODE",
        "huge pages for densely restored memory: auto follows the system's policy (default),"
        " always, never",
        _set_choice("thp", THP_MODES),
        choices=THP_MODES,
    ),
    Option(
        "--auto-dedup",
        "WHEN",
        "punch consumed bytes out of the pages image, which is destroyed by it: when their request"
        ' has been answered ("answered", the default), or already when they are in the target'
        ' ("early": a large request takes less memory, but cannot be restored again if it fails).'
        " The image must be writable",
        _set_choice("punch", PUNCH_MODES, ANSWERED),
        choices=PUNCH_MODES,
        optional_value=True,
    ),
    Option(
        "--holes-are-zeros",
        "",
        "take what lies in holes of the pages image for zeros; without it that is an error, since"
        " CRIU leaves none: for files that were copied by a tool which leaves zeros out",
        _set("holes_are_zeros", True),
    ),
    Option(
        "--sandbox",
        "MODE",
        "confine the process that reads requests and images: off, on (as far as the kernel can,"
        " the default), or strict (fully, or exit; and then descendants that are written to must"
        " be named with --target)",
        _set_choice("sandbox", SANDBOX_MODES),
        choices=SANDBOX_MODES,
    ),
    Option(
        "--idle-timeout",
        "SECONDS",
        "end when no byte of a request comes for so long (default 0: wait forever)",
        _set_idle,
    ),
    Option("--log-file", "FILE", "append the log to FILE instead of stderr", _set_text("log_file")),
    Option("--log-json", "", "log JSON objects, one in a line", _set("log_layout", JSON)),
    Option("--journal", "", "log to journald instead of stderr", _set("log_layout", JOURNAL)),
    Option(
        "--stats",
        "FILE",
        "at the end write to FILE what was done, as JSON; SIGUSR1 logs it at any time",
        _set_text("stats"),
    ),
)

ATTACH_OPTIONS = (
    Option(
        "--socket",
        "PATH",
        "where helperd serve listens",
        _set_text("socket"),
        group=_SOURCES,
    ),
    *OPTIONS,
)


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
    if options.log_layout == JOURNAL and options.log_file is not None:
        raise UsageError("--journal and --log-file exclude each other")
