"""What a spawner hands down, wittingly or not, changes nothing about a restore."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import select
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from target import Target

from helperd.errors import EXIT_PERMISSION, EXIT_TARGET, EXIT_USAGE
from tests.faults.conftest import LongRestore
from tests.support import spawners
from tests.support.helper import COMMAND, FrontEnd, HelperProcess, Outcome
from tests.support.image import BlockImage, all_kinds
from tests.support.memory import OwnMemory
from tests.support.processes import DEADLINE_SECONDS, children_of, eventually, sessions_of
from tests.support.requests import ADDRESS
from tests.support.server import ServerProcess

EXIT_STOPPED = 128 + signal.SIGTERM
N_TARGETS = 300

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounts need root")


@pytest.fixture
def image(target: Target) -> BlockImage:
    """Return pages of all kinds, with memory for them mapped in the target."""
    image = all_kinds(64)
    target.map_anonymous(ADDRESS, len(image.memory))
    return image


@pytest.fixture
def pages(image: BlockImage, tmp_path: Path) -> Path:
    """Return the pages image of ``image``."""
    return image.write(tmp_path / "pages-1.img")


@pytest.fixture(params=list(FrontEnd), ids=lambda front_end: front_end.name.lower())
def front_end(request: pytest.FixtureRequest) -> FrontEnd:
    """Run a test once through each way to start a helper."""
    value: FrontEnd = request.param
    return value


def restored(
    target: Target, image: BlockImage, pages: Path, *options: str, **how: object
) -> Outcome:
    """Restore twice, compare, and return how the helper ended."""
    with HelperProcess(pages, *options, **how) as helper:  # type: ignore[arg-type]
        for _ in range(2):
            target.fill(ADDRESS, len(image.memory), 0xAA)
            assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
            assert target.read(ADDRESS, len(image.memory)) == image.memory
        return helper.finish()


HARMLESS = {
    "sigchld-ignored": spawners.SIGCHLD_IGNORED,
    "signals-blocked": spawners.SIGNALS_BLOCKED,
    "a-high-descriptor": spawners.A_HIGH_DESCRIPTOR,
    "hints-refused": spawners.HINTS_REFUSED,
    "no-dev-null": spawners.NO_DEV_NULL,
    "a-file-as-dev-null": spawners.A_FILE_AS_DEV_NULL,
}


@needs_root
@pytest.mark.parametrize("what", HARMLESS)
def test_is_no_matter(
    target: Target, image: BlockImage, pages: Path, what: str, front_end: FrontEnd
) -> None:
    outcome = restored(target, image, pages, wrapper=HARMLESS[what], front_end=front_end)
    assert (outcome.status, outcome.stderr) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_blocked_signal_still_ends_it(
    target: Target, image: BlockImage, pages: Path, number: int
) -> None:
    with HelperProcess(pages, wrapper=spawners.SIGNALS_BLOCKED) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        os.kill(helper.pid, number)
        assert helper.wait().status == 128 + number


def test_a_hangup_that_is_to_be_ignored(target: Target, image: BlockImage, pages: Path) -> None:
    """As nohup has it."""
    with HelperProcess(pages, wrapper=spawners.HANGUP_IGNORED) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        os.kill(helper.pid, signal.SIGHUP)
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        assert helper.finish().status == 0


def test_descriptors_above_a_lowered_limit_are_closed(
    target: Target, image: BlockImage, pages: Path
) -> None:
    with HelperProcess(pages, wrapper=spawners.A_HIGH_DESCRIPTOR) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == image.answer
        for pid in (helper.pid, helper.worker_pid):
            assert str(spawners.HIGH_FD) not in os.listdir(f"/proc/{pid}/fd")
        assert helper.finish().status == 0


@pytest.mark.parametrize("leaked", ["request", "reply"])
def test_other_ends_of_its_own_pipes(pages: Path, leaked: str) -> None:
    """A spawner without O_CLOEXEC: who keeps such an end open waits for himself."""
    pages_fd = os.open(pages, os.O_RDONLY)
    request_read, request_write = os.pipe()
    reply_read, reply_write = os.pipe()
    other_end = request_write if leaked == "request" else reply_read
    process = subprocess.Popen(
        [
            *(*COMMAND, "--pages-fd", str(pages_fd), "--request-fd", str(request_read)),
            *("--reply-fd", str(reply_write)),
        ],
        stdin=subprocess.DEVNULL,
        pass_fds=(pages_fd, request_read, reply_write, other_end),
    )
    for fd in (pages_fd, request_read, reply_write, request_write, reply_read):
        os.close(fd)
    assert process.wait(DEADLINE_SECONDS) == 0


def test_an_image_with_o_direct(target: Target) -> None:
    """As newer CRIUs open it: blocks are not aligned as that wants."""
    image = all_kinds(64)
    target.map_anonymous(ADDRESS, len(image.memory))
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        pages = image.write(Path(folder) / "pages-1.img")
        try:
            os.close(os.open(pages, os.O_RDONLY | os.O_DIRECT))
        except OSError:
            pytest.skip("this file system has no O_DIRECT")
        wrapper = spawners.after(
            "import fcntl\n"
            "fd = next(int(a.split('=')[1]) for a in sys.argv if a.startswith('--pages-fd='))\n"
            "fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_DIRECT)"
        )
        outcome = restored(target, image, pages, wrapper=wrapper, front_end=FrontEnd.FDS)
    assert (outcome.status, outcome.stderr) == (0, "")


def test_one_target_after_the_other(pages: Path, image: BlockImage) -> None:
    """None of the dead is held: three hundred do not fit into 256 descriptors."""
    memory = OwnMemory(len(image.memory))
    few = spawners.after("resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))")
    with HelperProcess(pages, wrapper=few) as helper:
        for _ in range(N_TARGETS):
            ready, told = os.pipe()
            pid = os.fork()
            if pid == 0:
                os.close(told)
                os.read(ready, 1)
                os._exit(0)
            os.close(ready)
            try:
                assert helper.ask(image.request(pid, memory.address)) == image.answer
            finally:
                os.close(told)
                os.waitpid(pid, 0)
        assert helper.finish().status == 0
    memory.map.close()


def test_many_targets_at_once(pages: Path, image: BlockImage) -> None:
    """The soft limit, which is for select(2), is raised to what the helper may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4 * N_TARGETS + 100:
        pytest.skip("no more descriptors are allowed here")
    memory = OwnMemory(len(image.memory))
    few = spawners.after(f"resource.setrlimit(resource.RLIMIT_NOFILE, (256, {hard}))")
    ready, told = os.pipe()
    targets: list[int] = []
    with HelperProcess(pages, wrapper=few) as helper:
        try:
            for _ in range(N_TARGETS):
                pid = os.fork()
                if pid == 0:
                    os.close(told)
                    os.read(ready, 1)
                    os._exit(0)
                targets.append(pid)
                assert helper.ask(image.request(pid, memory.address)) == image.answer
        finally:
            # They have an end of the request pipe, too.
            os.close(told)
            for pid in targets:
                os.waitpid(pid, 0)
            os.close(ready)
        assert helper.finish().status == 0
    memory.map.close()


def test_a_thread_is_no_target(pages: Path, image: BlockImage) -> None:
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        with HelperProcess(pages) as helper:
            assert helper.ask(image.request(thread.native_id, ADDRESS)) == -errno.ESRCH
            outcome = helper.finish()
    finally:
        end.set()
        thread.join()
    assert outcome.status == EXIT_TARGET
    assert "is not a process" in outcome.error_line


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_standard_pipes_that_are_not_there(pages: Path, closed: str) -> None:
    """What is opened first would be taken for the pipe that has its number."""
    wrapper = ("sh", "-c", f'exec "$@" {closed}', "sh")
    with HelperProcess(pages, wrapper=wrapper) as helper:
        outcome = helper.wait()
    assert outcome.status == EXIT_USAGE
    assert "is not open" in outcome.error_line


# Without /proc.


@needs_root
@pytest.mark.parametrize("sandbox", ["on", "strict"])
def test_without_proc(pages: Path, image: BlockImage, sandbox: str) -> None:
    """The worker is as confined as ever, and nothing else is said."""
    memory = OwnMemory(len(image.memory))
    with HelperProcess(pages, f"--sandbox={sandbox}", "-v3", wrapper=spawners.NO_PROC) as helper:
        assert helper.ask(image.request(os.getpid(), memory.address)) == image.answer
        status = Path(f"/proc/{helper.worker_pid}/status").read_text()
        outcome = helper.finish()
    assert memory.content() == image.memory
    memory.map.close()
    assert outcome.status == 0
    assert "reduced capabilities, not dumpable, seccomp filter" in outcome.stderr
    assert "not fully confined" not in outcome.stderr
    capabilities = next(line for line in status.splitlines() if line.startswith("CapPrm"))
    assert int(capabilities.split()[1], 16) & ~(1 << 19 | 1 << 23) == 0


@needs_root
def test_without_proc_a_descendant_cannot_be_told(
    target: Target, pages: Path, image: BlockImage
) -> None:
    with HelperProcess(pages, wrapper=spawners.NO_PROC) as helper:
        assert helper.ask(image.request(target.pid, ADDRESS)) == -errno.EPERM
        outcome = helper.finish()
    assert outcome.status == EXIT_PERMISSION
    assert "/proc does not show whether it descends" in outcome.error_line
    assert f"--target {target.pid}" in outcome.error_line


@pytest.mark.parametrize("sandbox", ["on", "strict"])
def test_what_cannot_be_verified_is_said_as_that(
    pages: Path, image: BlockImage, sandbox: str
) -> None:
    memory = OwnMemory(len(image.memory))
    no_capget = spawners.refused(125)
    with HelperProcess(pages, f"--sandbox={sandbox}", wrapper=no_capget) as helper:
        answer = helper.ask(image.request(os.getpid(), memory.address))
        outcome = helper.finish()
    memory.map.close()
    assert "reduced capabilities" in outcome.error_line
    assert (outcome.status, answer) == ((0, image.answer) if sandbox == "on" else (7, -errno.EPERM))


# Signals in the middle.


def test_a_whole_process_group_is_told_to_end(restore: LongRestore, target: Target) -> None:
    """The worker hears it twice, from whoever says it and from its parent: that is once."""
    with HelperProcess(restore.pages, wrapper=("setsid",)) as helper:
        restore.start(helper)
        os.killpg(helper.pid, signal.SIGTERM)
        assert helper.receive() == restore.answer
        outcome = helper.wait()
    assert outcome.status == EXIT_STOPPED
    assert restore.is_right()


class _Stuck:
    """Memory of ours that everybody waits at who touches it: nobody handles its faults."""

    _UFFDIO_API, _UFFDIO_REGISTER = 0xC018AA3F, 0xC020AA00

    def __init__(self, n_bytes: int) -> None:
        self.memory = OwnMemory(n_bytes)
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.syscall(323, os.O_CLOEXEC)
        if self._fd < 0:
            pytest.skip("no userfaultfd here")
        api = (ctypes.c_uint64 * 3)(0xAA, 0, 0)
        assert libc.ioctl(self._fd, ctypes.c_ulong(self._UFFDIO_API), api) == 0
        area = (ctypes.c_uint64 * 4)(self.memory.address, n_bytes, 1, 0)
        assert libc.ioctl(self._fd, ctypes.c_ulong(self._UFFDIO_REGISTER), area) == 0

    def close(self) -> None:
        os.close(self._fd)
        self.memory.map.close()


@pytest.fixture
def stuck(image: BlockImage) -> Iterator[_Stuck]:
    """Return memory that a worker waits at."""
    stuck = _Stuck(len(image.memory))
    yield stuck
    stuck.close()


def test_a_worker_that_the_kernel_holds(pages: Path, image: BlockImage, stuck: _Stuck) -> None:
    """It cannot act on the first signal; the second one kills it."""
    with HelperProcess(pages, "--thp=never", "--threads=1") as helper:
        helper.send(image.request(os.getpid(), stuck.memory.address).encode())
        assert eventually(lambda: len(children_of(helper.pid)) == 1)
        worker = helper.worker_pid
        assert eventually(
            lambda: (
                "userfault" in Path(f"/proc/{worker}/wchan").read_text()
                or Path(f"/proc/{worker}/syscall").read_text().startswith("311 ")
            )
        )
        pidfd = os.pidfd_open(worker)
        try:
            while not select.select([pidfd], [], [], 0.1)[0]:
                os.kill(helper.pid, signal.SIGTERM)
            outcome = helper.wait()
        finally:
            os.close(pidfd)
    assert outcome.status == EXIT_STOPPED
    assert "stopped by a second signal" in outcome.error_line


def test_a_servers_worker_that_the_kernel_holds(
    pages: Path, image: BlockImage, stuck: _Stuck
) -> None:
    """The second signal to attach kills it, too; the session ends and the server goes on."""
    with (
        tempfile.TemporaryDirectory(prefix="hd-") as name,
        ServerProcess(Path(name)) as server,
        HelperProcess(pages, "--thp=never", "--threads=1", command=server.attach) as client,
    ):
        client.send(image.request(os.getpid(), stuck.memory.address).encode())

        def workers() -> list[int]:
            return [worker for one in sessions_of(server.pid) for worker in children_of(one)]

        assert eventually(lambda: bool(workers()))
        (worker,) = workers()
        assert eventually(lambda: Path(f"/proc/{worker}/syscall").read_text().startswith("311 "))
        pidfd = os.pidfd_open(client.pid)
        try:
            while not select.select([pidfd], [], [], 0.1)[0]:
                os.kill(client.pid, signal.SIGTERM)
        finally:
            os.close(pidfd)
        assert client.wait().status == EXIT_STOPPED
        assert eventually(lambda: not sessions_of(server.pid))
        assert server.stop() == 0


# The log.


def _full_pipe() -> tuple[int, int]:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, bytes(1 << 16))
    except BlockingIOError:
        pass
    os.set_blocking(writing, True)
    return reading, writing


def _restore_with_log(
    pages: Path, image: BlockImage, stderr: int, options: Sequence[str], wrapper: Sequence[str]
) -> int:
    """Restore into our own memory; return the exit status."""
    memory = OwnMemory(len(image.memory))
    request_read, request_write = os.pipe()
    reply_read, reply_write = os.pipe()
    process = subprocess.Popen(
        [*wrapper, *COMMAND, "--stdin-pipes", "--pages", str(pages), *options],
        stdin=request_read,
        stdout=reply_write,
        stderr=stderr,
    )
    os.close(request_read)
    os.close(reply_write)
    os.write(request_write, image.request(os.getpid(), memory.address).encode())
    answer = os.read(reply_read, 8)
    os.close(request_write)
    os.close(reply_read)
    status = process.wait(DEADLINE_SECONDS)
    assert int.from_bytes(answer, "little", signed=True) == image.answer
    assert memory.content() == image.memory
    memory.map.close()
    return status


@needs_root
@pytest.mark.parametrize("wrapper", [(), spawners.NO_PROC], ids=["opened-again", "polled"])
def test_a_full_stderr_that_nobody_reads(
    pages: Path, image: BlockImage, wrapper: Sequence[str]
) -> None:
    reading, writing = _full_pipe()
    assert _restore_with_log(pages, image, writing, ["-v4"], wrapper) == 0
    os.close(reading)
    os.close(writing)


def test_lines_that_found_no_room_are_counted(pages: Path, image: BlockImage) -> None:
    reading, writing = _full_pipe()
    memory = OwnMemory(len(image.memory))
    with HelperProcess(pages, "-v4", "--log-file", f"/proc/{os.getpid()}/fd/{writing}") as helper:
        request = image.request(os.getpid(), memory.address)
        assert helper.ask(request) == image.answer
        os.set_blocking(reading, False)
        log = ""
        with suppress(BlockingIOError):
            while True:
                # The helper may find room, and say what is missing, while this goes on.
                log += os.read(reading, 1 << 16).decode(errors="replace")
        assert helper.ask(request) == image.answer
        assert helper.finish().status == 0
    log += os.read(reading, 1 << 16).decode()
    assert "lines are missing here: nobody read this log" in log
    assert "request 2: answered" in log
    os.close(reading)
    os.close(writing)
    memory.map.close()


def test_a_fifo_without_a_reader(pages: Path, image: BlockImage, tmp_path: Path) -> None:
    fifo = tmp_path / "log"
    os.mkfifo(fifo)
    options = ["-v4", "--log-file", str(fifo)]
    assert _restore_with_log(pages, image, subprocess.DEVNULL, options, ()) == 0


def test_an_error_for_a_full_stderr(tmp_path: Path) -> None:
    """The last word waits a moment for a reader, and no longer."""
    reading, writing = _full_pipe()
    process = subprocess.Popen([*COMMAND, "--bogus"], stderr=writing)
    assert process.wait(DEADLINE_SECONDS) == EXIT_USAGE
    os.close(reading)
    os.close(writing)
