"""The helper's command line."""

from __future__ import annotations

import pytest

from helperd.errors import UsageError
from helperd.options import parse_options, parse_size

FDS = ["--pages-fd", "3", "--request-fd", "4", "--reply-fd", "5"]


def test_descriptors() -> None:
    options = parse_options([*FDS, "--target", "7", "--target=8", "-v4", "--max-request", "1M"])
    assert (options.pages_fd, options.request_fd, options.reply_fd) == (3, 4, 5)
    assert (options.targets, options.verbosity, options.max_pages) == ([7, 8], 4, 256)


def test_standard_pipes() -> None:
    options = parse_options(["--pages=a=b.img", "--stdin-pipes", "--log-file", "log"])
    assert (options.stdin_pipes, options.pages, options.log_file) == (True, "a=b.img", "log")
    assert options.max_pages == 1 << 26


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ([], "nothing to serve"),
        (["--stdin-pipes"], "goes with --pages"),
        (["--pages", "x"], "goes with --stdin-pipes"),
        (["--stdin-pipes", "--pages", "x", "--reply-fd", "3"], "no descriptors"),
        ([*FDS, "--pages", "x"], "passed by --pages-fd"),
        (FDS[:4], "nothing to serve"),
        (["--pages-fd", "3", "--request-fd", "3", "--reply-fd", "4"], "three descriptors"),
        (["--pages-fd", "2"], "belong to the process being restored"),
        (["--request-fd", "-1"], "a number is needed"),
        (["--reply-fd", "٣"], "a number is needed"),
        (["--target", "me"], "a number is needed"),
        (["--target"], "needs a value"),
        (["-v5"], "unknown option '-v5'"),
        (["--frobnicate"], "unknown option"),
        (["--max-request", "12Q"], "not a size"),
        (["--max-request", "100"], "--max-request 100: from 4096 to 8T"),
        (["--max-request", "9" * 5000], "not a size"),
        (["--threads", "9" * 5000], "a number is needed"),
        (["--threads", "0"], "--threads 0: from 1 to 256"),
        (["--threads", "257"], "--threads 257: from 1 to 256"),
        (["--target", "0"], "--target 0: from 1 to 4194304"),
        (["--target", str(2**32 + 7)], f"--target {2**32 + 7}: from 1 to 4194304"),
        (["--pages-fd", str(2**31)], f"--pages-fd {2**31}: from 0 to {2**31 - 1}"),
        (["--request-fd", str(2**64)], "--request-fd .*: from 0 to"),
        (["--idle-timeout", "2000001"], "--idle-timeout 2000001: from 0 to 2000000"),
        (["--max-request", "0"], "--max-request 0: from 4096 to 8T"),
        (["--max-request", "9T"], "--max-request 9T: from 4096 to 8T"),
        (["--max-request", "99999999999999999999T"], "--max-request .*: from 4096 to 8T"),
    ],
)
def test_what_makes_no_sense(arguments: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_options(arguments)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("4096", 4096), ("256K", 262144), ("1m", 1 << 20), ("2G", 2 << 30), ("1T", 1 << 40)],
)
def test_sizes(text: str, expected: int) -> None:
    assert parse_size(text) == expected


@pytest.mark.parametrize("text", ["", "K", "-1", "1.5M", "1e3", "٤", "1KK"])
def test_no_sizes(text: str) -> None:
    with pytest.raises(UsageError, match="is not a size"):
        parse_size(text)
