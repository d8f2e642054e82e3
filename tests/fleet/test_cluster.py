"""Checkpoints on the workers of a real Dask scheduler, on this machine."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from helperd import commands
from helperd.errors import ResourceError, UsageError
from helperd.fleet.cluster import connected, find_on, run_on
from helperd.fleet.jobs import DONE, FAILED, NOTHING, Wish
from tests.fleet.test_collections import small

pytest.importorskip("distributed", reason="needs the extra helperd[fleet]")
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connected(None, 2) as client:
        yield client


def test_every_checkpoint_once(client: Any, tmp_path: Path) -> None:
    for number in range(12):
        small(tmp_path / "tree" / str(number))
    found = find_on(client, [(None, str(tmp_path / "tree"))])
    progress: list[tuple[int, int]] = []
    wish = Wish("compress", in_place=True)
    outcomes = list(run_on(client, found, wish, lambda *steps: progress.append(steps)))
    assert sorted(outcome.path for outcome in outcomes) == sorted(item.path for _, item in found)
    assert {outcome.verdict for outcome in outcomes} == {DONE}
    assert progress[-1][0] == progress[-1][1] > 0
    again = run_on(client, found, wish, lambda *_: None)
    assert {outcome.verdict for outcome in again} == {NOTHING}


def test_a_worker_that_is_killed(client: Any, tmp_path: Path) -> None:
    for number in range(40):
        small(tmp_path / "tree" / str(number), 200)
    found = find_on(client, [(None, str(tmp_path / "tree"))])
    pids = client.run(os.getpid)
    outcomes = []
    for outcome in run_on(client, found, Wish("compress", in_place=True), lambda *_: None):
        outcomes.append(outcome)
        if len(outcomes) == 5:
            os.kill(next(iter(pids.values())), signal.SIGKILL)
    assert len(outcomes) == 40
    assert {outcome.verdict for outcome in outcomes} <= {DONE, NOTHING}
    done = run_on(client, found, Wish("check"), lambda *_: None)
    assert {outcome.verdict for outcome in done} == {DONE}


def test_what_lies_on_a_host_is_done_there(client: Any, tmp_path: Path) -> None:
    small(tmp_path / "tree" / "a")
    (host, *_) = {urlsplit(address).hostname for address in client.nthreads()}
    assert host is not None
    found = find_on(client, [(host, str(tmp_path / "tree"))])
    assert [where for where, _ in found] == [host]
    (outcome,) = run_on(client, found, Wish("check"), lambda *_: None)
    assert outcome.verdict == DONE
    with pytest.raises(UsageError, match="no worker is on host"):
        find_on(client, [("nowhere", str(tmp_path))])


def test_the_command_and_its_rerun(
    client: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(3):
        small(tmp_path / "tree" / str(number))
    (tmp_path / "tree" / "1" / "pages-1.img").write_bytes(b"")
    results = tmp_path / "results.jsonl"
    command = ["fleet", "check", str(tmp_path / "tree"), "--results", str(results), "--json"]
    command += ["--scheduler", client.scheduler.address]
    # Its event loop must not be that of this thread's client.
    codes: list[int] = []

    def run() -> None:
        codes.append(commands.run(command))

    for _ in range(2):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert codes == [1, 1]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["summary"]["checkpoints"] for line in lines if "summary" in line] == [3, 1]
    written = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["verdict"] for line in written].count(FAILED) == 2
    assert len(written) == 4


def test_nobody_at_the_address(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("helperd.fleet.cluster._CONNECT_SECONDS", 1)
    nobody = connected("tcp://127.0.0.1:9", 1)
    with pytest.raises(ResourceError, match="no scheduler answers"):
        nobody.__enter__()
