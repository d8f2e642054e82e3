"""What is printed, and where it cannot go: one line, and an exit code that is documented."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from helperd.errors import EXIT_IMAGE, EXIT_OUTPUT_GONE, EXIT_RESOURCES, EXIT_USAGE
from tests.images.checkpoints import Builder, content_of
from tests.support.helper import COMMAND
from tests.support.processes import DEADLINE_SECONDS

ODD_NAME = os.fsdecode(b"caf\xe9")


def words(value: object) -> str:
    """Return the id of a command line, and of nothing else."""
    return " ".join(map(str, value))[:50] if isinstance(value, list) else ""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Return a checkpoint whose ranges take more than a pipe holds to be listed."""
    builder = Builder(tmp_path / "images", pid=7)
    for index in range(5000):
        builder.add(1 + 2 * index, bytes(range(1, 129)) * 32)
    return builder.write()


def run(*arguments: object, wrapper: Sequence[str] = ()) -> subprocess.CompletedProcess[bytes]:
    """Run helperd as a user does."""
    return subprocess.run(
        [*wrapper, *COMMAND, *(os.fsencode(str(argument)) for argument in arguments)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )


def only_line(stderr: bytes) -> str:
    """Return the line that was said; fails unless it is one."""
    assert b"Traceback" not in stderr
    assert b"a bug" not in stderr
    (line,) = stderr.decode().splitlines()
    return line


def redirected(how: str) -> tuple[str, ...]:
    """Return a command line that executes the rest of it with a redirection."""
    return ("sh", "-c", f'exec "$@" {how}', "sh")


@pytest.mark.parametrize(
    "arguments",
    [
        ["show", "{}", "--ranges"],
        ["check", "{}"],
        ["compress", "{}", "--in-place"],
        ["--help"],
        ["--version"],
        ["attach", "--help"],
        ["compress", "--help"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(("how", "errno"), [(">/dev/full", "ENOSPC"), (">&-", "EBADF")])
def test_a_stdout_that_takes_nothing(
    images: Path, arguments: list[str], how: str, errno: str
) -> None:
    before = content_of(images)
    done = run(*(word.format(images) for word in arguments), wrapper=redirected(how))
    assert done.returncode == EXIT_RESOURCES
    assert f"cannot write to stdout: {errno}" in only_line(done.stderr)
    assert arguments[0] == "compress" or content_of(images) == before


def test_a_reader_that_has_seen_enough(images: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "show", str(images), "--ranges"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    process.stderr.close()
    assert (process.wait(DEADLINE_SECONDS), said) == (EXIT_OUTPUT_GONE, b"")


def test_a_stdout_that_does_not_block(images: Path) -> None:
    """As a terminal's or an event loop's: what does not fit now fits later."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    process = subprocess.Popen([*COMMAND, "show", str(images), "--ranges"], stdout=writing)
    os.close(writing)
    with open(reading, "rb") as stream:
        lines = stream.read().splitlines()
    assert process.wait(DEADLINE_SECONDS) == 0
    assert len(lines) > 5000


def test_an_error_is_not_written_into_what_took_the_place_of_stderr(images: Path) -> None:
    before = content_of(images)
    for arguments in (["dedup", images], ["compress", images, "--region", "5000"], ["--bogus"]):
        done = run(*arguments, wrapper=redirected("<&- >&- 2>&-"))
        assert done.returncode in (EXIT_USAGE, EXIT_IMAGE)
        assert content_of(images) == before


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["dedup", "{odd}"], EXIT_IMAGE),
        (["check", "{odd}"], EXIT_IMAGE),
        (["show", "{odd}"], EXIT_IMAGE),
        (["compress", "{odd}"], EXIT_IMAGE),
        (["decompress", "{odd}"], EXIT_IMAGE),
        (["inject", "{odd}", "--pid", "1"], EXIT_IMAGE),
        (["serve", "--socket", "{odd}/s"], EXIT_USAGE),
        (["serve", "--socket", "/nowhere/s", "--metrics", "{odd}/m"], EXIT_USAGE),
        (["attach", "--socket", "{odd}/s", "--stdin-pipes", "--pages", "{odd}"], None),
        (["--stdin-pipes", "--pages", "{odd}/p"], None),
        (["--stdin-pipes", "--pages", "x", "--stats", "{odd}/s"], EXIT_USAGE),
        (["--stdin-pipes", "--pages", "x", "--log-file", "{odd}/l"], EXIT_USAGE),
        (["{odd}"], EXIT_USAGE),
        (["--{odd}"], EXIT_USAGE),
    ],
    ids=words,
)
def test_names_that_are_not_utf8(tmp_path: Path, arguments: list[str], status: int | None) -> None:
    odd = f"{tmp_path}/{ODD_NAME}"
    done = run(*(word.replace("{odd}", odd) for word in arguments))
    assert done.returncode == (status or EXIT_IMAGE)
    said = done.stderr or done.stdout.splitlines(keepends=True)[0]
    assert "caf\\udce9" in only_line(said)


def test_reports_on_names_that_are_not_utf8(images: Path, tmp_path: Path) -> None:
    odd = tmp_path / ODD_NAME
    images.rename(odd)
    for command, *options in (["show"], ["show", "--json"], ["check"], ["check", "--json"]):
        done = run(command, odd, *options)
        assert (done.returncode, done.stderr) == (0, b"")
        done.stdout.decode()
    for option, name in (("--svg", "drawn"), ("--html", "page")):
        assert run("show", odd, option, tmp_path / name).returncode == 0
        (tmp_path / name).read_text("utf-8")
    assert run("compress", odd, "--in-place").returncode == 0


@pytest.mark.parametrize("option", ["--svg", "--html"])
@pytest.mark.parametrize("how", ["itself", "link", "hard-link"])
def test_an_image_is_not_drawn_over(images: Path, tmp_path: Path, option: str, how: str) -> None:
    file = images / "pages-1.img"
    name = file
    if how != "itself":
        name = tmp_path / "picture"
        (os.symlink if how == "link" else os.link)(file, name)
    before = content_of(images)
    done = run("show", images, option, name)
    assert done.returncode == EXIT_USAGE
    assert "is one of the images" in only_line(done.stderr)
    assert content_of(images) == before


# Numbers.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["check", "DIR", "--threads", "257"], "--threads: '257': a number from 0 to 256"),
        (["check", "DIR", "--threads", "-1"], "--threads: '-1': a number from 0 to 256"),
        (["compress", "DIR", "--threads", "many"], "--threads: 'many': a number from"),
        (["compress", "DIR", "--acceleration", "65538"], "--acceleration: '65538'"),
        (["compress", "DIR", "--region", "5M"], "--region: '5M': a size from 4K to 4M"),
        (["dedup", "DIR", "--threads", "9" * 5000], "--threads: '999"),
        (["inject", "DIR", "--pid", str(2**32 + 1)], "--pid: '4294967297': a number from 1 to"),
        (["inject", "DIR", "--pid", "0"], "--pid: '0': a number from 1 to"),
        (["inject", "DIR", "--pid", "1", "-v", "5"], "-v/--verbosity: '5': a number from 0 to 4"),
        (
            ["inject", "DIR", "--pid", "1", "--shmem-id", "1", "--base", str(2**64)],
            "--base: '18446744073709551616': a number from 0 to",
        ),
        (["serve", "--max-sessions", "0"], "--max-sessions: '0': a number from 1 to"),
        (["serve", "--max-memory", "1K"], "--max-memory: '1K': a size from 32M to"),
        (["serve", "--max-memory", "99999999T"], "--max-memory: '99999999T': a size from"),
        (["serve", "--max-request", "1"], "--max-request: '1': a size from 4096 to 8T"),
        (["serve", "--idle-timeout", "-5"], "--idle-timeout: '-5': a number from 0 to"),
        (["serve", "--idle-timeout", "3000000"], "--idle-timeout: '3000000': a number from 0"),
        (["serve", "--socket-mode", "0o7"], "--socket-mode: '0o7': permissions such as"),
        (["serve", "--socket-mode", "1777"], "--socket-mode: '1777': permissions such as"),
        (["page-server", "--port", "65536"], "--port: '65536': a number from 0 to 65535"),
        (["page-server", "--acceleration", "0"], "--acceleration: '0': a number from 1"),
        (["page-server", "--region", "1"], "--region: '1': a size from 4K to 4M"),
        (["page-server", "--ps-socket", "-1"], "--ps-socket: '-1': a number from 0"),
        (["page-server", "--max-sessions", "0"], "--max-sessions: '0': a number from 1"),
        (["page-server", "--idle-timeout", "-1"], "--idle-timeout: '-1': a number from 0"),
        (["stream", "-D", "x", "--clients", "-1"], "--clients: '-1': a number from 0"),
        (["stream", "-D", "x", "--threads", "999"], "--threads: '999': a number from 0"),
        (["stream", "-D", "x", "--acceleration", "0"], "--acceleration: '0': a number"),
        (["stream", "-D", "x", "--region", "9M"], "--region: '9M': a size from 4K to 4M"),
        (["stream", "-D", "x", "-p", str(2**64)], "-p/--progress-fd: '18446744073709551616'"),
        (["unpack", "a", "b", "--threads", "999"], "--threads: '999': a number from 0"),
        (["lazy-pages", "--rate", "1"], "--rate: '1': a size from 4K"),
        (["lazy-pages", "--threads", "300"], "--threads: '300': a number from 0 to 256"),
    ],
    ids=words,
)
def test_numbers_out_of_range(arguments: list[str], told: str) -> None:
    done = run(*arguments)
    assert done.returncode == EXIT_USAGE
    assert told in only_line(done.stderr)


def test_what_was_said_before_a_failure_is_not_lost() -> None:
    """The interpreter is not taken down, so nobody else flushes."""
    code = "from helperd import __main__ as it; it.main = lambda: print('said') or 3; it.start()"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, timeout=DEADLINE_SECONDS, check=False
    )
    assert (result.returncode, result.stdout, result.stderr) == (3, b"said\n", b"")
