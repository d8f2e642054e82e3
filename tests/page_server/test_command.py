"""``helperd page-server`` as a process: the ways to start it, many clients, TLS, signals."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
from contextlib import closing, suppress
from pathlib import Path

import pytest

from helperd import tools
from helperd.errors import ProtocolError
from helperd.page_server.connection import Connection
from helperd.page_server.storage import Storage
from tests.conftest import ImageArchive
from tests.images.checkpoints import assert_is_truth, content_of, load_dumps
from tests.page_server.sessions import hold
from tests.support.page_server import PageServerProcess
from tests.support.processes import eventually


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "images"
    path.mkdir()
    return path


@pytest.fixture
def stream(image_archive: ImageArchive) -> bytes:
    return (image_archive("page-server-plain") / "client.bin").read_bytes()


def connect(server: PageServerProcess) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.port))


def send(connection: socket.socket, stream: bytes, n_answers: int = 5) -> bytes:
    """Send a session and return all answers, until the server hangs up."""
    answers = b""
    with connection, suppress(ConnectionError):
        connection.sendall(stream)
        while len(answers) < n_answers:
            answer = connection.recv(100)
            if not answer:
                break
            answers += answer
    return answers


def test_once(images: Path, stream: bytes, tmp_path: Path) -> None:
    stats = tmp_path / "stats"
    with PageServerProcess(images, "--once", "--stats", str(stats)) as server:
        assert send(connect(server), stream) == bytes(5)
        assert server.wait() == 0
    assert sorted(os.listdir(images)) == ["pagemap-27282.img", "pages-65537.img"]
    numbers = json.loads(stats.read_text())
    assert (numbers["objects"], numbers["pages"], numbers["exit_code"]) == (1, 651, 0)
    assert numbers["payload_bytes"] == (images / "pages-65537.img").stat().st_size


def test_the_status_of_a_failed_session_is_its_own(images: Path, stream: bytes) -> None:
    with PageServerProcess(images, "--once") as server:
        with connect(server) as connection:
            connection.sendall(stream[:-9])
        assert server.wait() == 3
        assert server.log().count("Error") == 1
    assert os.listdir(images) == []


def test_an_image_that_is_there_is_replaced_only_for_the_one_client(
    images: Path, stream: bytes
) -> None:
    with PageServerProcess(images) as server:
        assert send(connect(server), stream) == bytes(5)
        before = content_of(images)
        assert send(connect(server), stream) == b""
        assert server.stop() == 0
        assert "pagemap-27282.img already" in server.log()
    assert content_of(images) == before
    with PageServerProcess(images, "--once") as server:
        assert send(connect(server), stream) == bytes(5)
        assert server.wait() == 0
    assert sorted(os.listdir(images)) == ["pagemap-27282.img", "pages-65538.img"]


def renamed(stream: bytes, pid: int) -> bytes:
    """Return the session of page-server-plain as one of another task."""
    old = (27282 << 8 | 1).to_bytes(8, "little")
    return stream.replace(old, (pid << 8 | 1).to_bytes(8, "little"))


def test_several_clients_at_once(images: Path, stream: bytes) -> None:
    pids = range(100, 104)
    with PageServerProcess(images) as server:
        connections = {pid: connect(server) for pid in pids}
        # A bit of each in turns, so that all are under way.
        streams = {pid: renamed(stream, pid) for pid in pids}
        step = len(stream) // 5
        for at in range(0, len(stream), step):
            for pid, connection in connections.items():
                connection.sendall(streams[pid][at : at + step])
        for connection in connections.values():
            assert send(connection, b"") == bytes(5)
        assert server.stop() == 0
    pagemaps = {f"pagemap-{pid}.img" for pid in pids}
    assert set(os.listdir(images)) == pagemaps | {f"pages-{65537 + it}.img" for it in range(4)}
    sizes = {path.stat().st_size for path in images.glob("pages-*")}
    assert len(sizes) == 1


def test_no_more_than_wanted_at_once(images: Path, stream: bytes) -> None:
    with PageServerProcess(images, "--max-sessions", "1") as server:
        first = connect(server)
        first.sendall(stream[:32])
        assert first.recv(1) == b"\0"
        assert send(connect(server), b"") == b""
        first.sendall(stream[32:])
        assert send(first, b"", 4) == bytes(4)
        assert server.stop() == 0


def test_a_signal_lets_sessions_end_and_a_second_ends_them(images: Path, stream: bytes) -> None:
    with PageServerProcess(images) as server:
        first, second = connect(server), connect(server)
        for connection, pid in ((first, 100), (second, 101)):
            connection.sendall(renamed(stream, pid)[:32])
            assert connection.recv(1) == b"\0"
        server.process.send_signal(signal.SIGTERM)
        first.sendall(renamed(stream, 100)[32:])
        assert first.recv(4) == bytes(4)
        first.close()
        server.process.send_signal(signal.SIGTERM)
        assert second.recv(4) == b""
        second.close()
        assert server.wait() == 0
    assert sorted(os.listdir(images)) == ["pagemap-100.img", "pages-65537.img"]


def test_a_client_that_stops_in_the_middle_is_given_up(images: Path, stream: bytes) -> None:
    with PageServerProcess(images, "--once", "--idle-timeout", "1") as server:
        with connect(server) as connection:
            connection.sendall(stream[:1000])
            assert server.wait() == 3
        assert "nothing came from the client for 1 seconds" in server.log()
    assert os.listdir(images) == []


@pytest.mark.parametrize("options", [(), ("--lazy-pages",), ("--once",)])
def test_no_directory_is_told_before_anybody_comes(
    tmp_path: Path, options: tuple[str, ...]
) -> None:
    command = [sys.executable, "-m", "helperd", "page-server", "-D", str(tmp_path / "none")]
    result = subprocess.run(
        [*command, "--port", "0", *options], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 4
    (line,) = result.stderr.splitlines()
    assert "cannot list the image directory" in line
    assert "ENOENT" in line


def test_a_session_takes_no_more_than_it_may(images: Path, stream: bytes) -> None:
    """651 pages; the pagemap counts, too."""
    with PageServerProcess(images, "--max-bytes", "1M", "--compress", "none") as server:
        assert send(connect(server), stream) != bytes(5)
        assert server.stop() == 0
        assert "more than 1048576 bytes (--max-bytes)" in server.log()
    assert os.listdir(images) == []
    with PageServerProcess(images, "--max-bytes", "3M", "--compress", "none") as server:
        assert send(connect(server), stream) == bytes(5)
        assert server.stop() == 0


@pytest.mark.parametrize("room", [-1, 0])
def test_every_byte_counts(images: Path, stream: bytes, room: int) -> None:
    assert hold(stream, Storage(str(images))).received is not None
    n_bytes = sum(path.stat().st_size for path in images.iterdir())
    again = images.with_name("again")
    again.mkdir()
    outcome = hold(stream, Storage(str(again), max_bytes=n_bytes + room))
    assert (outcome.failure is None) == (room == 0)


def test_what_has_to_stay_free_stays_free(images: Path, stream: bytes) -> None:
    with PageServerProcess(images, "--keep-free", "1024T") as server:
        assert send(connect(server), stream) != bytes(5)
        assert server.stop() == 0
        assert "have to stay so (--keep-free)" in server.log()
    assert os.listdir(images) == []
    with PageServerProcess(images, "--keep-free", "1M") as server:
        assert send(connect(server), stream) == bytes(5)
        assert server.stop() == 0


def test_who_says_nothing_from_the_start_is_given_up() -> None:
    ours, theirs = socket.socketpair()
    with theirs, closing(Connection(ours, 0, 1)) as connection:
        with pytest.raises(ProtocolError, match="nothing came from the client for 1 seconds"):
            connection.fill([memoryview(bytearray(24))])
        theirs.sendall(bytes(10))
        with pytest.raises(ProtocolError, match="nothing came"):
            connection.fill([memoryview(bytearray(24))])
        theirs.sendall(bytes(24))
        assert connection.fill([memoryview(bytearray(24))]) == 24
        assert ours.getsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, 16) == bytes(16)


def test_in_the_background(images: Path, stream: bytes, tmp_path: Path) -> None:
    """With the options that CRIU's own test runner gives."""
    ready, told = os.pipe()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "helperd", "page-server", "--no-default-config", "--verbosity=4"),
        *("--log-file", "page-server.log", "--images-dir", str(images), "--port", str(port)),
        *("--pidfile", "ps.pid", "--status-fd", str(told), "--daemon", "--once"),
    ]
    result = subprocess.run(command, pass_fds=[told], capture_output=True, check=False, timeout=60)
    os.close(told)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert os.read(ready, 2) == b"\0"
    # Closed, too.
    assert os.read(ready, 1) == b""
    os.close(ready)
    daemon = os.pidfd_open(int((images / "ps.pid").read_text()))
    assert send(socket.create_connection(("127.0.0.1", port)), stream) == bytes(5)
    os.close(daemon)
    assert "waiting for connections" in (images / "page-server.log").read_text()
    assert (images / "pagemap-27282.img").exists()


def test_a_client_at_a_descriptor(images: Path, stream: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours:
        number = theirs.fileno()
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "helperd", "page-server", "-D", str(images)),
                *("--ps-socket", str(number)),
            ],
            pass_fds=[number],
        )
        theirs.close()
        ours.sendall(stream)
        assert ours.recv(1) == b"\0"
        assert ours.recv(4) == bytes(4)
    assert process.wait() == 0


AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def test_at_the_socket_that_systemd_passes(images: Path, stream: bytes, tmp_path: Path) -> None:
    metrics = tmp_path / "metrics"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        words = ("-m", "helperd", "page-server", "-D", str(images), "--metrics", str(metrics))
        process = subprocess.Popen(
            [sys.executable, "-c", AS_SYSTEMD, str(listener.fileno()), *words],
            pass_fds=[listener.fileno()],
        )
        assert send(socket.create_connection(listener.getsockname()), stream) == bytes(5)
        assert eventually(lambda: "pages_total 651" in metrics.read_text())
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    assert 'helperd_page_server_sessions_total{exit_code="0"} 1' in metrics.read_text()
    assert (images / "pagemap-27282.img").exists()


CLIENT = """
    import argparse, pathlib, shutil, socket, sys
    parser = argparse.ArgumentParser()
    parser.add_argument("archive", type=pathlib.Path)
    parser.add_argument("images", type=pathlib.Path)
    parser.add_argument("code", type=int)
    parser.add_argument("--page-server", action="store_true")
    parser.add_argument("--ps-socket", type=int)
    arguments = parser.parse_args()
    connection = socket.socket(fileno=arguments.ps_socket)
    connection.sendall((arguments.archive / "client.bin").read_bytes())
    assert connection.recv(1) == b"\\0"
    assert connection.recv(4) == bytes(4)
    connection.close()
    for file in (arguments.archive / "dump").iterdir():
        shutil.copy(file, arguments.images)
    sys.exit(arguments.code)
"""


@pytest.mark.parametrize("options", [(), ("--schema", "blocks", "--region", "64K")])
def test_with_the_command(
    image_archive: ImageArchive, images: Path, options: tuple[str, ...]
) -> None:
    """A dumper that is none: it holds a recorded session, and brings the other images."""
    archive = image_archive("page-server-plain")
    result = run_command(archive, images, 0, *options)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert not tools.check([str(images)]).problems
    assert_is_truth(images, load_dumps(archive)[0])


def test_with_a_command_that_fails(image_archive: ImageArchive, images: Path) -> None:
    archive = image_archive("page-server-plain")
    result = run_command(archive, images, 5)
    assert (result.returncode, result.stderr) == (5, "")
    assert content_of(images) == content_of(archive / "dump")


def run_command(
    archive: Path, images: Path, code: int, *options: str
) -> subprocess.CompletedProcess[str]:
    client = [sys.executable, "-c", textwrap.dedent(CLIENT), str(archive), str(images), str(code)]
    return subprocess.run(
        [
            *(sys.executable, "-m", "helperd", "page-server", "-D", str(images), *options, "--"),
            *client,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def make_certificates(folder: Path) -> None:
    """Make an authority, and two certificates signed by it."""

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    new = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl(*new, "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.pem")
    openssl(*new, "-subj", "/CN=stranger", "-keyout", "stranger.key", "-out", "stranger.pem")
    for name in ("server", "client"):
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-subj", f"/CN={name}")
        openssl(*new, *signed, "-keyout", f"{name}.key", "-out", f"{name}.pem")


@pytest.mark.parametrize("name", ["client", "stranger"])
def test_tls_with_certificates_on_both_sides(
    images: Path, stream: bytes, tmp_path: Path, name: str
) -> None:
    make_certificates(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    tls.load_verify_locations(tmp_path / "ca.pem")
    tls.load_cert_chain(tmp_path / f"{name}.pem", tmp_path / f"{name}.key")
    tls.check_hostname = False
    options = (
        *("--tls", "--tls-cacert", str(tmp_path / "ca.pem")),
        *("--tls-cert", str(tmp_path / "server.pem"), "--tls-key", str(tmp_path / "server.key")),
    )
    with PageServerProcess(images, "--once", *options) as server:
        if name == "stranger":
            with (
                connect(server) as connection,
                pytest.raises((ssl.SSLError, ConnectionError)),
                tls.wrap_socket(connection) as wrapped,
            ):
                # Only when it reads the client learns that it is not wanted.
                wrapped.recv(1)
            assert server.wait() == 3
            assert "TLS with the client has failed" in server.log()
            assert os.listdir(images) == []
            return
        assert send(tls.wrap_socket(connect(server)), stream) == bytes(5)
        assert server.wait() == 0
    assert (images / "pagemap-27282.img").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "give one of"),
        (("--port", "1", "--ps-socket", "3"), "give one of"),
        (("--ps-socket", "77"), "--ps-socket 77"),
        (("--port", "70000"), "'70000'"),
        (("--port", "0", "--address", "192.0.2.1"), "cannot listen at 192.0.2.1"),
        (("--port", "0", "--region", "5K"), "region"),
        (("--port", "0", "--region", "64K", "--compress", "none"), "exclude each other"),
        (("--port", "0", "--acceleration", "0"), "acceleration"),
        (("--port", "0", "--tls", "--tls-cacert", "/dev/null"), "--tls"),
        (("--lazy-pages", "--", "true"), "exclude each other"),
    ],
)
def test_options_that_make_no_sense(images: Path, options: tuple[str, ...], message: str) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "helperd", "page-server", "-D", str(images), *options],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
