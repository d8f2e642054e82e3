"""What reads the bytes of strangers has given up what it does not need."""

from __future__ import annotations

import functools
import os
import signal
import socket
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from helperd.codec.encode import Encoder
from helperd.errors import EXIT_SIGNAL_BASE, HelperdError, ImageError
from helperd.streamer.child import in_child as in_a_child
from helperd.streamer.confinement import CAPABILITIES, confine
from helperd.streamer.spool import Spool
from tests.images.checkpoints import levels_of
from tests.page_server.test_confinement import in_child, needs_landlock
from tests.streamer.criu import SECONDS, streamer


def _status(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text()
    return dict(line.split(":\t", 1) for line in text.splitlines() if ":\t" in line)


def _assert_confined(pid: int) -> None:
    status = _status(pid)
    kept = sum(1 << capability for capability in CAPABILITIES)
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    for name in ("CapEff", "CapPrm", "CapInh"):
        assert int(status[name], 16) & ~kept == 0


def test_a_capture_is_confined(tmp_path):
    with streamer("-D", tmp_path / "sock", "--to", tmp_path, "capture") as running:
        running.until("socket-init")
        _assert_confined(running.process.pid)


def test_what_serves_is_confined(image_archive, tmp_path):
    source = levels_of(image_archive("py-heap"))[-1]
    with streamer("-D", tmp_path / "sock", "--from", source, "serve") as running:
        running.until("socket-init")
        _assert_confined(running.process.pid)


@pytest.mark.parametrize("operation", ["extract", "serve"])
def test_who_reads_shards_is_confined(tmp_path: Path, operation: str) -> None:
    """To serve them a program may have to be started behind it, so a child reads them."""
    read, write = os.pipe()
    with streamer("-D", tmp_path / "images", operation, stdin=read) as running:
        os.close(read)
        pid = running.process.pid
        # It reads what is sent, and does nothing else before.
        os.write(write, b"\x10\0\0\0")
        for _ in _until_empty(write):
            pass
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        assert len(children) == (operation == "serve")
        _assert_confined(int(children[0]) if children else pid)
        os.close(write)
        assert running.end()[0] == 3


def _until_empty(pipe: int) -> Iterator[None]:
    import fcntl
    import termios

    left = array("i", [1])
    while left[0]:
        fcntl.ioctl(pipe, termios.FIONREAD, left)
        yield


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has what is given up")
def test_the_program_is_not(tmp_path):
    words = ("sh", "-c", "cat /proc/self/status > $0/status", tmp_path)
    with streamer("-D", tmp_path / "sock", "capture", "--", *words) as running:
        running.end()
    lines = (tmp_path / "status").read_text().splitlines()
    assert "NoNewPrivs:\t0" in lines
    assert f"Seccomp:\t{_status(os.getpid())['Seccomp']}" in lines
    assert f"CapEff:\t{_status(os.getpid())['CapEff']}" in lines


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    for name in ("images", "source", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"as it was")
    return tmp_path


def confined(folders: Path, work: Callable[[], object], *, pids: tuple[int, ...] = ()) -> str:
    """Do something in a confined process; return what it raises, or nothing."""

    def run() -> None:
        confine(
            [str(folders / "images")],
            [str(folders / "source")],
            emptied=[str(folders / "elsewhere")],
            pids=pids,
        )
        work()

    return in_child(run)


@needs_landlock
def test_what_a_stream_does(folders: Path) -> None:
    images = folders / "images"

    def work() -> None:
        (images / "new").mkdir()
        (images / "new" / "a").write_bytes(b"pages")
        os.rename(images / "new" / "a", images / "a")
        (images / "new").rmdir()
        assert (folders / "source" / "file").read_bytes() == b"as it was"
        spool = Spool(str(images), "what waits")
        spool.write(b"pages")
        assert Path(spool.path).read_bytes() == b"pages"
        os.close(os.memfd_create("made up"))
        os.pipe()
        os.sched_setaffinity(0, os.sched_getaffinity(0))
        Encoder(1, per_page=True).encode(array("H", [1]))

    assert confined(folders, work) == ""
    assert (images / "a").read_bytes() == b"pages"


@needs_landlock
def test_folders_that_are_empty_can_be_removed_where_that_is_wanted(folders: Path) -> None:
    (folders / "elsewhere" / "empty").mkdir()
    (folders / "source" / "empty").mkdir()
    assert confined(folders, (folders / "elsewhere" / "empty").rmdir) == ""
    assert confined(folders, (folders / "source" / "empty").rmdir) == "PermissionError"
    assert confined(folders, (folders / "elsewhere" / "file").unlink) == "PermissionError"


FORBIDDEN: dict[str, Callable[[Path], object]] = {
    "read elsewhere": lambda path: (path / "elsewhere" / "file").read_bytes(),
    "write elsewhere": lambda path: (path / "elsewhere" / "new").touch(),
    "write to what is served": lambda path: os.open(path / "source" / "file", os.O_RDWR),
    "another program": lambda _path: os.execv(sys.executable, [sys.executable, "-c", ""]),
    "another process": lambda _path: os.fork(),
    "a connection": lambda _path: socket.socket(),
    "a signal": lambda _path: os.kill(os.getppid(), signal.SIGURG),
    "a device": lambda path: os.mknod(path / "images" / "device", 0o20600, os.makedev(1, 3)),
}


@needs_landlock
@pytest.mark.parametrize("what", FORBIDDEN)
def test_what_a_stream_cannot_do(folders: Path, what: str) -> None:
    assert confined(folders, lambda: FORBIDDEN[what](folders)) == "PermissionError"
    assert (folders / "elsewhere" / "file").read_bytes() == b"as it was"


def test_only_what_was_started_can_be_ended(folders: Path) -> None:
    ours, other = (subprocess.Popen(["sleep", str(SECONDS)]) for _ in range(2))
    try:
        for process, raised in ((other, "PermissionError"), (ours, "")):
            work = functools.partial(os.kill, process.pid, signal.SIGTERM)
            assert confined(folders, work, pids=(ours.pid,)) == raised
        assert ours.wait(SECONDS) == -signal.SIGTERM
        assert other.poll() is None
    finally:
        for process in (ours, other):
            process.kill()
            process.wait()


def test_the_script_that_holds_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its folder is not below the images: /tmp can run scripts more often than /dev/shm."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    words = ("sh", "-c", 'for w; do last=$w; done; test -x "$last"', "sh", "dump", "--stream")
    with streamer("-D", tmp_path / "sock", "capture", "--", *words) as running:
        _, said = running.end()
    assert "without connecting" in said
    assert not list((tmp_path / "tmp").iterdir())


def test_what_a_child_could_not_do() -> None:
    def fail() -> None:
        raise ImageError("no such thing")

    in_a_child(lambda: None, "do nothing")
    with pytest.raises(HelperdError, match="no such thing") as caught:
        in_a_child(fail, "do it")
    assert caught.value.exit_code == ImageError.exit_code
    with pytest.raises(HelperdError, match="cannot do it: ENOENT"):
        in_a_child(lambda: os.close(os.open("/nowhere", 0)), "do it")
    with pytest.raises(HelperdError, match="cannot do it: KeyError: 'NO SUCH'"):
        in_a_child(lambda: print(os.environ["NO SUCH"]), "do it")
    with pytest.raises(HelperdError, match="was killed") as caught:
        in_a_child(lambda: os.kill(os.getpid(), signal.SIGKILL), "do it")
    assert caught.value.exit_code == EXIT_SIGNAL_BASE + signal.SIGKILL
