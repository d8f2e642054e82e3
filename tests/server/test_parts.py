"""The parts of the server that need no server."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helperd.errors import MalformedRequest, ProtocolError, UsageError
from helperd.helper.statistics import COUNTERS
from helperd.modes import OFF, ON, STRICT
from helperd.options import Options
from helperd.reports.end import pack, unpack
from helperd.reports.log import Log
from helperd.server import systemd
from helperd.server.limits import Limits
from helperd.server.metrics import Metrics
from helperd.server.pb.session_pb2 import SessionReply, SessionRequest
from helperd.wire import protobuf

# The wire format.


@given(
    st.integers(0, (1 << 32) - 1),
    st.booleans(),
    st.lists(st.integers(-(1 << 31), (1 << 31) - 1)),
    st.integers(0, (1 << 64) - 1),
    st.text(),
)
def test_encoded_as_the_library_does(
    version: int, for_parent: bool, targets: list[int], max_pages: int, thp: str
) -> None:
    message = protobuf.encode({1: version, 2: int(for_parent), 3: targets, 4: max_pages, 6: thp})
    assert SessionRequest.FromString(message) == SessionRequest(
        version=version, for_parent=for_parent, targets=targets, max_pages=max_pages, thp=thp
    )


@given(st.integers(0, (1 << 31) - 1), st.text(max_size=300))
def test_decoded_as_the_library_does(number: int, reason: str) -> None:
    reply = SessionReply()
    reply.ended.errno = number
    reply.ended.reason = reason
    fields = protobuf.decode(reply.SerializeToString())
    assert set(fields) == {2}
    ended = fields[2]
    assert isinstance(ended, bytes)
    inner = protobuf.decode(ended)
    assert inner.get(2, 0) == number
    assert inner.get(3, b"") == reason.encode()


@given(st.binary(max_size=40))
def test_garbage_is_refused_or_read(message: bytes) -> None:
    try:
        protobuf.decode(message)
    except ProtocolError:
        return


def test_cut_messages_are_refused() -> None:
    reply = SessionReply()
    reply.started.worker_pid = 300
    message = reply.SerializeToString()
    for length in range(1, len(message)):
        with pytest.raises(ProtocolError):
            protobuf.decode(message[:length])


# Limits.


def test_a_client_gets_what_it_asks_for_within_the_limits() -> None:
    limits = Limits(max_pages=100, threads=4, idle_seconds=60)
    options = limits.grant(
        SessionRequest(max_pages=50, threads=8, idle_seconds=600, thp="always", punch="early")
    )
    assert (options.max_pages, options.threads, options.idle_seconds) == (50, 4, 60)
    assert (options.thp, options.punch) == ("always", "early")


def test_a_client_that_asks_for_nothing_gets_the_servers_settings() -> None:
    options = Limits(max_pages=100, threads=4, idle_seconds=60).grant(SessionRequest())
    assert (options.max_pages, options.threads, options.idle_seconds) == (100, 4, 60)
    assert options.thp == Options().thp
    unlimited = Limits(threads=0, idle_seconds=0).grant(SessionRequest(threads=3, idle_seconds=9))
    assert (unlimited.threads, unlimited.idle_seconds) == (3, 9)


@pytest.mark.parametrize(
    ("least", "asked", "granted"),
    [(OFF, "", OFF), (OFF, ON, ON), (ON, OFF, ON), (ON, STRICT, STRICT), (STRICT, OFF, STRICT)],
)
def test_a_client_is_never_confined_less(least: str, asked: str, granted: str) -> None:
    assert Limits(sandbox=least).grant(SessionRequest(sandbox=asked)).sandbox == granted


def test_nonsense_is_refused() -> None:
    for request in (
        SessionRequest(punch="now"),
        SessionRequest(log_layout="xml"),
        SessionRequest(targets=range(2, 1000)),
    ):
        with pytest.raises(MalformedRequest):
            Limits().grant(request)


def test_sessions_need_descriptors() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        pytest.skip("descriptors are not limited here")
    with pytest.raises(UsageError, match="--max-sessions"):
        Limits(sessions=hard).make_room()


# Metrics and statistics.


def test_metrics(tmp_path: Path) -> None:
    path = tmp_path / "helperd.prom"
    metrics = Metrics(str(path), Log(0))
    for _ in range(3):
        metrics.started()
    metrics.ended(0, {"pages": 7, "serving_seconds": 0.5, "unheard_of": 3})
    metrics.ended(5, {"pages": 1, "bytes_in": -4})
    metrics.refused()
    samples = dict(line.rsplit(" ", 1) for line in path.read_text().splitlines() if line[0] != "#")
    assert samples['helperd_sessions_total{exit_code="0"}'] == "1"
    assert samples['helperd_sessions_total{exit_code="5"}'] == "1"
    assert samples["helperd_sessions_active"] == "1"
    assert samples["helperd_refused_total"] == "1"
    assert samples["helperd_pages_total"] == "8"
    assert samples["helperd_bytes_in_total"] == "0"
    assert samples["helperd_serving_seconds_total"] == "0.5"
    assert os.listdir(tmp_path) == [path.name]


def test_metrics_are_in_prometheus_format() -> None:
    metrics = Metrics(None, Log(0))
    metrics.started()
    metrics.ended(0, dict.fromkeys(COUNTERS, 1))
    described = set()
    for line in metrics.to_text().splitlines():
        if line.startswith("#"):
            _, kind, name, text = line.split(" ", 3)
            assert kind in ("HELP", "TYPE")
            assert text
            described.add(name)
            continue
        sample = re.fullmatch(r'([a-z0-9_]+)(\{[a-z_]+="[^"]*"\})? ([0-9.]+)', line)
        assert sample is not None
        assert sample[1] in described


def test_a_metrics_file_that_cannot_be_written_stops_nothing() -> None:
    Metrics("/nowhere/at/all", Log(0)).started()


def test_last_words() -> None:
    numbers = {"requests": 3, "serving_seconds": 0.25, "zero": 0, "tiny": 0.000021}
    assert unpack(pack(numbers, "all requests served")) == (numbers, "all requests served")
    assert unpack("") == ({}, "")
    assert unpack("requests many\nreason a reason  of words\nx") == ({}, "a reason  of words")
    assert json.dumps(unpack("a 1e999\nb nan")[0]) == "{}"


# systemd.


def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "n"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "n"))
        systemd.notify("READY=1", "STATUS=well")
        assert manager.recv(100) == b"READY=1\nSTATUS=well"
    systemd.notify("STOPPING=1")  # Nobody is there any more.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0helperd-test-{os.getpid()}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@helperd-test-{os.getpid()}")
        systemd.notify("READY=1")
        assert manager.recv(100) == b"READY=1"


def test_sockets_for_others_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert systemd.listening_socket() is None
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    assert systemd.listening_socket() is None
    assert "LISTEN_FDS" not in os.environ


def test_one_socket_is_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "2")
    with pytest.raises(ValueError, match="2 sockets"):
        systemd.listening_socket()
