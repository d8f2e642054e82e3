"""Sizes on the command line."""

from __future__ import annotations

import pytest

from helperd.commands.sizes import format_size
from helperd.errors import UsageError
from helperd.options import parse_size


@pytest.mark.parametrize(
    ("text", "n_bytes"),
    [("0", 0), ("4096", 4096), ("4K", 4096), ("256k", 1 << 18), ("4M", 1 << 22), ("2G", 1 << 31)],
)
def test_sizes(text: str, n_bytes: int) -> None:
    assert parse_size(text) == n_bytes


@pytest.mark.parametrize(
    "text", ["", "K", "4KK", "4KM", "-1", "+1", "1.5K", "4 K", "\u0664", "9" * 5000]
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)


def test_reports_round_up_to_kib() -> None:
    assert [format_size(n) for n in (0, 1, 1024, 1025)] == ["0K", "1K", "1K", "2K"]
