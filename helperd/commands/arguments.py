"""Values of options: each with its range, looked at before anything is done."""

from __future__ import annotations

import argparse

from helperd.errors import UsageError
from helperd.options import MAX_PID, MAX_THREADS, parse_number, parse_size

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_ADDRESS = (1 << 64) - 1
_MAX_MODE, _MODE_DIGITS = 0o777, 4


def number(first: int, last: int) -> Callable[[str], int]:
    """Return what reads a number from ``first`` to ``last``, decimal or 0x..., for argparse."""

    def read(text: str) -> int:
        value = parse_number(text)
        if value is None or not first <= value <= last:
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: a number from {first} to {last}")
        return value

    return read


def size(first: str, last: str) -> Callable[[str], int]:
    """Return what reads a size such as 256K within two others, for argparse."""
    lowest, highest = parse_size(first), parse_size(last)

    def read(text: str) -> int:
        try:
            value = parse_size(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        if not lowest <= value <= highest:
            raise argparse.ArgumentTypeError(f"{text[:40]!r}: a size from {first} to {last}")
        return value

    return read


def mode(text: str) -> int:
    """Read file permissions as they are mostly written, for argparse."""
    if not 1 <= len(text) <= _MODE_DIGITS or text.strip("01234567") or int(text, 8) > _MAX_MODE:
        raise argparse.ArgumentTypeError(f"{text[:40]!r}: permissions such as 600 or 666")
    return int(text, 8)


pid = number(1, MAX_PID)
address = number(0, _MAX_ADDRESS)
descriptor = number(0, (1 << 31) - 1)
threads = number(0, MAX_THREADS)


def add_threads(parser: argparse.ArgumentParser) -> None:
    """Add --threads."""
    parser.add_argument(
        "--threads",
        metavar="N",
        type=threads,
        default=0,
        help="threads (default: one for each CPU)",
    )
