"""check, show, dedup and decompress on the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import xml.etree.ElementTree
from pathlib import Path

import pytest

from helperd import commands, errors
from helperd.blocks import PAGE_SIZE
from tests.conftest import ImageArchive
from tests.images.checkpoints import Builder, clone, content_of, levels_of


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run helperd as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "helperd", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
    )


def test_check(image_archive: ImageArchive, tmp_path: Path) -> None:
    archive = clone(image_archive("tree"), tmp_path / "tree")
    done = run("check", archive / "images")
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    assert line.startswith("whole: 1 directories, 5 pagemaps, 2608 pages in 2608 blocks")
    os.truncate(archive / "images" / "pages-3.img", 1)
    done = run("check", archive / "images")
    assert (done.returncode, done.stderr) == (errors.EXIT_IMAGE, "")
    problem, verdict = done.stdout.splitlines()
    assert problem.startswith("problem: ")
    assert "pages-3.img" in problem
    assert verdict.startswith("1 problem: ")


def test_check_as_json(image_archive: ImageArchive, capsys: pytest.CaptureFixture[str]) -> None:
    levels = levels_of(image_archive("incremental-dedup"))
    assert commands.run(["check", "--json", str(levels[2])]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert report["findings"] == []
    assert commands.run(["check", "--json", str(levels[0])]) == errors.EXIT_IMAGE
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert report["findings"][0]["severity"] == "problem"
    assert report["findings"][0]["vaddr"] > 0
    assert commands.run(["check", "--holes-are-zeros", str(levels[0])]) == 0


def test_what_is_no_image_directory(tmp_path: Path) -> None:
    for command in ("compress", "decompress", "check", "show", "dedup"):
        done = run(command, tmp_path)
        assert done.returncode == errors.EXIT_IMAGE
        lines = (done.stdout + done.stderr).splitlines()
        assert str(tmp_path) in lines[0]
        assert "Traceback" not in done.stderr
        assert os.listdir(tmp_path) == []


def test_show(
    image_archive: ImageArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = image_archive("incremental") / "images" / "3"
    svg = tmp_path / "picture.svg"
    assert commands.run(["show", str(images), "--ranges", "--svg", str(svg)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{images}: 3 levels: ")
    assert lines[2].startswith("process 156: 1022 pages in ")
    assert "328 of 328 stored pages used" in lines[3]
    assert "  0x" in lines[6]
    xml.etree.ElementTree.parse(svg)
    assert commands.run(["show", str(images), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert [memory["pid"] for memory in summary["memories"]] == [156, 158, None]
    with pytest.raises(errors.HelperdError, match="cannot write"):
        commands.run(["show", str(images), "--svg", str(tmp_path / "gone" / "x")])


def test_dedup(
    image_archive: ImageArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = clone(image_archive("incremental"), tmp_path / "incremental")
    top = str(archive / "images" / "3")
    assert commands.run(["dedup", "--dry-run", top]) == 0
    planned = capsys.readouterr().out
    assert planned.splitlines()[-1] == "total: 2792K would be freed"
    assert content_of(archive) == content_of(image_archive("incremental"))
    assert commands.run(["dedup", top]) == 0
    assert capsys.readouterr().out == planned.replace("would be freed", "freed")
    with pytest.raises(errors.UsageError, match="has no parent"):
        commands.run(["dedup", str(archive / "images" / "1")])


def test_decompress(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Builder(tmp_path / "1").add(1, b"x" * 8 * PAGE_SIZE).write()
    before = content_of(folder)
    commands.run(["compress", str(folder), "--in-place"])
    capsys.readouterr()
    assert commands.run(["decompress", str(folder), "--in-place", "--threads", "2"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "pagemap-7.img: 8 pages (1K -> 32K)",
        "total: 8 pages (1K -> 32K)",
    ]
    assert content_of(folder) == before
    assert commands.run(["decompress", str(folder), "--in-place"]) == 0
    assert f"Checkpoint in {folder} is not compressed" in capsys.readouterr().out


def test_no_bar_in_a_pipe(image_archive: ImageArchive, tmp_path: Path) -> None:
    done = run("compress", image_archive("tree") / "images", "--output", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
