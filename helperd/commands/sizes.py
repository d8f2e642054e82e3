"""Sizes in reports."""

from __future__ import annotations


def format_size(n_bytes: int) -> str:
    """Return a size in KiB, as the reports print it: ``8952K``."""
    return f"{-(-n_bytes // 1024)}K"
