"""Sizes on the command line: ``4096``, ``256K``, ``4M``, ``2G``."""

from __future__ import annotations

from helperd.errors import UsageError

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MAX_DIGITS = 15


def parse_size(text: str) -> int:
    """Return the bytes that ``text`` says: digits, then nothing, K, M, G or T (powers of 1024).

    Raises:
        UsageError: it says no size.
    """
    digits = text.rstrip("KMGTkmgt")
    unit = text[len(digits) :].upper()
    if (
        unit not in _UNITS
        or not (digits.isascii() and digits.isdecimal())
        or len(digits) > _MAX_DIGITS
    ):
        raise UsageError(f"{text!r} is not a size: write for example 4096, 256K or 4M")
    return int(digits) * _UNITS[unit]


def format_size(n_bytes: int) -> str:
    """Return a size in KiB, as the reports print it: ``8952K``."""
    return f"{-(-n_bytes // 1024)}K"
