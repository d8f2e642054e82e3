"""Sizes on the command line and in reports."""

from __future__ import annotations

from helperd import options
from helperd.errors import UsageError

_MAX_LENGTH = 20


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` says: 4096, 256K, 4M, ...

    Raises:
        UsageError: it says no size, or one beyond anything that can be meant.
    """
    if len(text) > _MAX_LENGTH:
        raise UsageError(f"{text[:_MAX_LENGTH]!r}... is not a size: write 4096, 256K, 1M, ...")
    return options.parse_size(text)


def format_size(n_bytes: int) -> str:
    """Return a size in KiB, as the reports print it: ``8952K``."""
    return f"{-(-n_bytes // 1024)}K"
