"""Trees of checkpoints: each is found once, and a bad one stops nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from helperd import commands, tools
from helperd.blocks import PAGE_SIZE
from helperd.errors import UsageError
from helperd.fleet.find import Checkpoint, find_checkpoints, in_shard
from helperd.fleet.jobs import COMPRESS, DONE, FAILED, NOTHING, Outcome, Wish, carry_out
from helperd.fleet.pool import run_pool
from helperd.fleet.table import Table
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from tests.archives.engines import pack
from tests.conftest import ImageArchive
from tests.images.checkpoints import Builder, clone, levels_of

CONTENT = bytes(range(256)) * (PAGE_SIZE // 256)


def small(folder: Path, n_pages: int = 3) -> Path:
    """Write a checkpoint of one process."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    return Builder(folder).add(16, CONTENT * n_pages).write()


def chain(folder: Path) -> Path:
    """Write a dump with a pre-dump whose only page it supersedes; return the dump."""
    folder.mkdir(parents=True)
    Builder(folder / "1").add(16, CONTENT).write()
    return Builder(folder / "2").add(16, CONTENT[::-1]).write(parent="../1")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Return a tree with two checkpoints, a chain, an archive, and one that is broken."""
    tree = tmp_path / "tree"
    small(tree / "node" / "a")
    small(tree / "node" / "deep" / "er" / "b")
    chain(tree / "chain")
    pack(small(tmp_path / "packed" / "checkpoint").parent, tree / "c.tar")
    broken = small(tree / "x-broken")
    (broken / "pages-1.img").write_bytes(b"short")
    (tree / "elsewhere").mkdir()
    (tree / "elsewhere" / "file.img").write_bytes(b"no checkpoint")
    (tree / "link").symlink_to("node")
    return tree


def schema_of(folder: Path) -> Schema:
    return ImageDirectory(str(folder)).schema


def test_each_is_found_once(tree: Path) -> None:
    found = {os.path.relpath(item.path, tree): item for item in find_checkpoints(str(tree))}
    assert set(found) == {"node/a", "node/deep/er/b", "chain/2", "c.tar", "x-broken"}
    assert [os.path.basename(path) for path in found["chain/2"].levels] == ["1", "2"]
    assert found["c.tar"].levels == ()
    assert all(item.n_bytes > 0 for item in found.values())


def test_compress_all(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["compress", "--recursive", str(tree), "--in-place", "--json"]
    assert commands.run(command) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    verdicts = {os.path.relpath(line["path"], tree): line["verdict"] for line in lines[:-1]}
    good = {"node/a", "node/deep/er/b", "chain/2", "c.tar"}
    assert verdicts == {**dict.fromkeys(good, DONE), "x-broken": FAILED}
    assert lines[-1]["summary"]["checkpoints"] == 5
    for folder in ("node/a", "node/deep/er/b", "chain/1", "chain/2"):
        assert schema_of(tree / folder) is Schema.SIZES
    # What is done is recognised.
    assert commands.run(command) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {line["verdict"] for line in lines[:-1]} == {NOTHING, FAILED}


def test_check_all(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["check", "-r", str(tree)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6
    assert sum("FAILED" in line for line in lines) == 1
    assert lines[-1].startswith("total: 5 checkpoints: 4 done, 0 nothing to do, 1 failed")


def test_dedup_all(tmp_path: Path, image_archive: ImageArchive) -> None:
    clone(levels_of(image_archive("incremental"))[-1].parent, tmp_path / "images")
    outcomes = [carry_out(item, Wish("dedup")) for item in find_checkpoints(str(tmp_path))]
    assert [outcome.verdict for outcome in outcomes] == [DONE]
    assert outcomes[0].bytes_before > 1 << 20
    assert tools.check([str(tmp_path / "images" / "3")]).ok
    (again,) = (carry_out(item, Wish("dedup")) for item in find_checkpoints(str(tmp_path)))
    assert again.verdict == NOTHING


def test_a_chain_that_leads_out_is_not_touched(tmp_path: Path) -> None:
    outside = small(tmp_path / "outside")
    inside = tmp_path / "tree" / "dump"
    inside.parent.mkdir()
    Builder(inside).refer(16, 3).write(parent=str(outside))
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    (found,) = find_checkpoints(str(tmp_path / "tree"))
    assert "outside of" in found.trouble
    for verb in ("check", "compress", "dedup"):
        assert carry_out(found, Wish(verb, in_place=True)).verdict == FAILED
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before


def test_parts_are_all_and_never_two(tree: Path) -> None:
    paths = [item.path for item in find_checkpoints(str(tree))] + [f"/x/{n}" for n in range(200)]
    for count in (1, 3, 7):
        shares = [[path for path in paths if in_shard(path, i, count)] for i in range(count)]
        assert sorted(path for share in shares for path in share) == sorted(paths)
        assert all(shares)


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/2", "1/2/3", "1/0"])
def test_parts_that_make_no_sense(text: str, tree: Path) -> None:
    with pytest.raises(UsageError, match="--shard"):
        commands.run(["check", "-r", str(tree), "--shard", text])


@pytest.mark.parametrize("option", [["--output", "x"], ["--chain"], ["--force"]])
def test_options_of_one_checkpoint_do_not_go_with_many(option: list[str], tree: Path) -> None:
    with pytest.raises(UsageError, match="does not go with --recursive"):
        commands.run(["compress", "-r", str(tree), *option])


def test_large_ones_get_all_threads(
    tree: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: dict[str, int] = {}

    def note(item: Checkpoint, wish: Wish, *, threads: int) -> Outcome:
        seen[item.path] = threads
        return Outcome(item.path, wish.verb, DONE, "")

    monkeypatch.setattr("helperd.fleet.pool.carry_out", note)
    items = [Checkpoint("small", (), 10), Checkpoint("large", (), 1 << 30)]
    progress: list[tuple[int, int]] = []
    list(run_pool(items, Wish("check"), 4, lambda *steps: progress.append(steps)))
    assert seen == {"small": 1, "large": 4}
    assert progress[-1] == (10 + (1 << 30), 10 + (1 << 30))


def test_a_bug_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise KeyError("x")

    monkeypatch.setattr("helperd.fleet.jobs.compress_directory", fail)
    outcome = carry_out(Checkpoint("/x", ("/x",), 0), Wish(COMPRESS))
    assert outcome.verdict == FAILED
    assert "internal error: KeyError" in outcome.message


def test_killed_in_the_middle_and_run_again(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(120):
        small(tree / f"{number:03}", 40)
    command = [sys.executable, "-m", "helperd", "compress", "-r", str(tree), "--in-place", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(10):
            assert json.loads(process.stdout.readline())["verdict"] == DONE
        process.send_signal(signal.SIGKILL)
    result = subprocess.run(command, capture_output=True, text=True)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.returncode == 0, result.stderr
    assert len(lines) == 121
    assert lines[-1]["summary"][NOTHING] >= 10
    for number in range(120):
        folder = tree / f"{number:03}"
        assert schema_of(folder) is Schema.SIZES
        assert not any(name.startswith(".helperd") for name in os.listdir(folder))
    assert tools.check([str(tree / "000"), str(tree / "119")]).ok


def test_the_table_is_gone_on_from(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    items = [Checkpoint(name, (), 1) for name in ("a", "b", "c")]
    with Table(str(path)) as table:
        table.add(Outcome("a", "check", DONE, "whole"))
        table.add(Outcome("b", "check", FAILED, "short"))
        table.add(Outcome("c", "compress", DONE, "packed"))
    with path.open("a") as file:
        file.write('{"path": "c", "verb": "check", "verd')  # A run was killed here.
    with Table(str(path)) as table:
        assert [item.path for item in table.left(items, "check")] == ["b", "c"]
        table.add(Outcome("c", "check", DONE, "whole"))
        assert [item.path for item in table.left(items, "check")] == ["b"]
