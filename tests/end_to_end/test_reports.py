"""What a helper tells: statistics, the log in its formats, its confinement."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from target import Target

from helperd.blocks import PAGE_SIZE
from helperd.errors import EXIT_PERMISSION, EXIT_PROTOCOL, EXIT_SIGNAL_BASE, EXIT_USAGE
from helperd.reports.log import DEBUG, ERROR, JSON, Log, Record
from helperd.reports.logformats import journal_datagram
from helperd.reports.openlog import log_to
from tests.support.helper import HelperProcess, run_helper
from tests.support.image import BlockImage, noise, text
from tests.support.requests import ADDRESS


@pytest.fixture
def image(target: Target) -> BlockImage:
    """Return four pages of all kinds, with memory for them mapped in the target."""
    image = BlockImage()
    image.add_zero()
    image.add_raw(noise(1))
    image.add_lz4(text(1))
    image.add_lz4(text(1, seed=1))
    target.map_anonymous(ADDRESS, len(image.memory))
    return image


@pytest.fixture
def pages(image: BlockImage, tmp_path: Path) -> Path:
    """Return the pages image of ``image``."""
    return image.write(tmp_path / "pages-1.img")


# Statistics.


def test_statistics(target: Target, image: BlockImage, pages: Path, tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    with HelperProcess(pages, "--stats", str(stats), "--threads", "3") as helper:
        for _ in range(2):
            assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert helper.finish().status == 0
    document = json.loads(stats.read_text())
    exact = {
        "requests": 2,
        "pages": 8,
        "zero_blocks": 2,
        "raw_blocks": 2,
        "lz4_blocks": 4,
        "bytes_in": 2 * len(image.payload),
        "bytes_out": 6 * PAGE_SIZE,
        "thp_collapses": 0,
        "punched_bytes": 0,
        "threads": 3,
        "exit_code": 0,
        "exit_reason": "all requests served",
    }
    assert {name: document[name] for name in exact} == exact
    assert document["serving_seconds"] > 0
    assert document["peak_rss_kib"] > 1000


def test_statistics_of_a_failure(
    target: Target, image: BlockImage, pages: Path, tmp_path: Path
) -> None:
    stats = tmp_path / "stats.json"
    with HelperProcess(pages, "--stats", str(stats)) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert helper.ask(image.request(target.pid, ADDRESS + 1)) == -errno.EPROTO
        assert helper.finish().status == EXIT_PROTOCOL
    document = json.loads(stats.read_text())
    assert (document["requests"], document["exit_code"]) == (1, EXIT_PROTOCOL)
    assert document["exit_reason"].startswith("request 2: ")


def test_statistics_of_a_killed_worker(
    target: Target, image: BlockImage, pages: Path, tmp_path: Path
) -> None:
    stats = tmp_path / "stats.json"
    with HelperProcess(pages, "--stats", str(stats)) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        os.kill(helper.worker_pid, signal.SIGKILL)
        assert helper.wait().status == EXIT_SIGNAL_BASE + signal.SIGKILL
    document = json.loads(stats.read_text())
    assert "killed" in document["exit_reason"]
    assert document["peak_rss_kib"] > 1000


def test_statistics_without_an_image(tmp_path: Path) -> None:
    stats = tmp_path / "stats.json"
    with HelperProcess(tmp_path / "missing.img", "--stats", str(stats)) as helper:
        assert helper.receive() == -errno.ENOENT
        helper.wait()
    assert "missing.img" in json.loads(stats.read_text())["exit_reason"]


def test_statistics_that_cannot_be_written(pages: Path) -> None:
    outcome = run_helper("--stdin-pipes", "--pages", str(pages), "--stats", "/nowhere/stats")
    assert outcome.status == EXIT_USAGE
    assert "/nowhere/stats" in outcome.error_line


def test_statistics_on_request(target: Target, image: BlockImage, pages: Path) -> None:
    """SIGUSR1, to the pid that the spawner knows, at the default verbosity."""
    with HelperProcess(pages) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        os.kill(helper.pid, signal.SIGUSR1)
        os.kill(helper.pid, signal.SIGUSR1)
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        # The helper goes on; the lines are there before it ends.
        outcome = helper.finish()
    assert outcome.status == 0
    lines = outcome.stderr.splitlines()
    assert lines
    assert all("requests 1, pages 4" in line or "requests 2, pages 8" in line for line in lines)


# The log.


def test_json(target: Target, image: BlockImage, pages: Path) -> None:
    with HelperProcess(pages, "--log-json", "-v4") as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert helper.ask(image.request(target.pid, ADDRESS + 1)) == -errno.EPROTO
        outcome = helper.finish()
    lines = [json.loads(line) for line in outcome.stderr.splitlines()]
    events = [line["event"] for line in lines]
    assert events == ["confined", "request", "answer", "failed", "session-end"]
    failed = lines[3]
    assert (failed["level"], failed["process"]) == ("error", "helperd-worker")
    assert failed["errno"] == errno.EPROTO
    assert "iovec" in failed["message"]
    assert lines[4]["exit_code"] == EXIT_PROTOCOL


def test_json_is_one_line_whatever_it_says(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "log", os.O_WRONLY | os.O_CREAT)
    log = log_to(DEBUG, fd, JSON)
    log.warning('a "quoted"\nline \udcff', event="odd", path="x\ny")
    os.close(fd)
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert json.loads(line)["path"] == "x\ny"


def test_journal() -> None:
    record = Record(ERROR, "helperd-worker", 1.5, "failed", "it broke", {"errno": 5})
    assert journal_datagram(record).decode().splitlines() == [
        "MESSAGE=it broke",
        "PRIORITY=3",
        "SYSLOG_IDENTIFIER=helperd-worker",
        "HELPERD_EVENT=failed",
        "HELPERD_ERRNO=5",
    ]


def test_journal_fields_cannot_be_forged(tmp_path: Path) -> None:
    record = Record(ERROR, "helperd", 0.0, "x", "a\nPRIORITY=0", {"path": "b\nMESSAGE=forged"})
    names = [line.partition("=")[0] for line in journal_datagram(record).decode().splitlines()]
    assert names == [
        *("MESSAGE", "PRIORITY", "SYSLOG_IDENTIFIER", "HELPERD_EVENT", "HELPERD_PATH"),
    ]


@pytest.mark.skipif(Path("/run/systemd/journal/socket").exists(), reason="journald runs here")
def test_no_journal(pages: Path) -> None:
    outcome = run_helper("--stdin-pipes", "--pages", str(pages), "--journal")
    assert outcome.status == EXIT_USAGE
    assert "journal" in outcome.error_line


def test_journal_and_file_exclude_each_other(pages: Path) -> None:
    options = ("--stdin-pipes", "--pages", str(pages), "--journal", "--log-file", "x")
    assert run_helper(*options).status == EXIT_USAGE


def test_a_log_that_nobody_reads_stops_nothing(
    target: Target, image: BlockImage, pages: Path
) -> None:
    """A full disk, for instance: the restore is worth more than its log."""
    with HelperProcess(pages, "-v4", "--log-file", "/dev/full") as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert helper.finish().status == 0
    Log(DEBUG, None).error("to nobody")


# Confinement.


def status_of(pid: int) -> dict[str, str]:
    """Return /proc/PID/status."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@pytest.mark.parametrize(("mode", "seccomp"), [("off", "0"), ("on", "2"), ("strict", "2")])
def test_a_worker_is_confined(
    target: Target, image: BlockImage, pages: Path, mode: str, seccomp: str
) -> None:
    options = ("--sandbox", mode, "-v3", "--target", str(target.pid))
    with HelperProcess(pages, *options) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert status_of(helper.worker_pid)["Seccomp"] == seccomp
        outcome = helper.finish()
    assert outcome.status == 0
    assert ("not confined" in outcome.stderr) == (mode == "off")
    assert target.read(ADDRESS, len(image.memory)) == image.memory


def test_a_worker_holds_its_own_descriptors_only(
    target: Target, image: BlockImage, pages: Path, tmp_path: Path
) -> None:
    """What a spawner leaves open by mistake does not reach the process that decodes."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    wrapper = ("sh", "-c", f'exec 9<{secret}; exec "$@"', "sh")
    with HelperProcess(pages, wrapper=wrapper) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        folder = f"/proc/{helper.worker_pid}/fd"
        files = [os.readlink(f"{folder}/{fd}") for fd in os.listdir(folder)]
        assert str(secret) not in files
        assert str(pages) in files
        assert helper.finish().status == 0


def test_strict_wants_descendants_to_be_named(
    target: Target, image: BlockImage, pages: Path
) -> None:
    with HelperProcess(pages, "--sandbox", "strict") as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == -errno.EPERM
        outcome = helper.finish()
    assert outcome.status == EXIT_PERMISSION
    assert f"--target {target.pid}" in outcome.error_line
    assert not any(target.present_pages(ADDRESS, image.n_pages))


#: Loads a seccomp filter that refuses seccomp(2), as a container may, then runs the helper.
WITHOUT_SECCOMP = """
import ctypes, os, struct, sys
rules = ((0x20, 0, 0, 0), (0x15, 0, 1, 317), (0x06, 0, 0, 0x50001), (0x06, 0, 0, 0x7FFF0000))
program = b"".join(struct.pack("<HBBI", *rule) for rule in rules)
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))
libc = ctypes.CDLL(None, use_errno=True)
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.syscall(317, 1, 0, ctypes.byref(Program(4, program))) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.parametrize("mode", ["on", "strict"])
def test_a_kernel_that_refuses(target: Target, image: BlockImage, pages: Path, mode: str) -> None:
    wrapper = (sys.executable, "-c", WITHOUT_SECCOMP)
    options = ("--sandbox", mode, "--target", str(target.pid))
    with HelperProcess(pages, *options, wrapper=wrapper) as helper:
        answer = helper.ask(image.request(target.pid, ADDRESS))
        outcome = helper.finish()
    assert "seccomp filter (Operation not permitted)" in outcome.error_line
    if mode == "on":
        assert (answer, outcome.status) == (image.answer, 0)
    else:
        assert (answer, outcome.status) == (-errno.EPERM, 7)
        assert not any(target.present_pages(ADDRESS, image.n_pages))
