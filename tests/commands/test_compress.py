"""``helperd compress`` on the command line."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from helperd import commands, errors
from helperd.blocks import PAGE_SIZE
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from tests.conftest import ImageArchive
from tests.images.checkpoints import (
    Builder,
    assert_is_truth,
    clone,
    content_of,
    load_dumps,
)

LINE = re.compile(r"(\S+): (\d+) pages \((\d+)K -> (\d+)K, (-?\d+\.\d)% saved\)")


def lines(capsys: pytest.CaptureFixture[str]) -> list[tuple[str, ...]]:
    printed = capsys.readouterr().out.splitlines()
    matches = [LINE.fullmatch(line) for line in printed]
    assert all(matches), printed
    return [match.groups() for match in matches if match]


def test_a_copy(
    image_archive: ImageArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = image_archive("tree")
    output = tmp_path / "out"
    arguments = ["compress", str(archive / "images"), "--output", str(output)]
    assert commands.run([*arguments, "--region", "256k", "--acceleration", "2"]) == 0
    (dump,) = load_dumps(archive)
    assert_is_truth(output, dump)
    inventory = ImageDirectory(str(output)).inventory
    assert inventory is not None
    assert inventory.message.compress_region_size == 256 << 10
    assert inventory.message.acceleration_or_block_size == 2
    *files, total = lines(capsys)
    assert [file[0] for file in files] == [
        "pagemap-12774.img",
        "pagemap-12779.img",
        "pagemap-12780.img",
    ]
    assert total[:3] == ("total", "2404", str(2404 * PAGE_SIZE // 1024))
    assert int(total[3]) < int(total[2])
    assert float(total[4]) == pytest.approx(100 - 100 * int(total[3]) / int(total[2]), abs=0.2)


def test_a_chain_keeps_its_links(
    image_archive: ImageArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = image_archive("incremental")
    levels = [str(archive / "images" / level) + "/" for level in "123"]
    output = tmp_path / "new" / "chain"
    assert commands.run(["compress", *levels, "--output", str(output)]) == 0
    for dump in load_dumps(archive):
        folder = output / Path(dump["dir"]).name
        assert ImageDirectory(str(folder)).schema is Schema.SIZES
        assert_is_truth(folder, dump)
        parent = ImageDirectory(str(folder)).parent()
        assert parent is None or os.path.dirname(parent.path) == os.path.realpath(output)
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.count("\n") == 7
    assert f"{output}/1/pagemap-156.img: " in captured.out


def test_in_place(
    image_archive: ImageArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = image_archive("incremental")
    images = shutil.copytree(archive / "images", tmp_path / "images", symlinks=True)
    levels = [str(images / level) for level in "321"]
    assert commands.run(["compress", *levels, "--in-place"]) == 0
    for dump in load_dumps(archive):
        assert_is_truth(tmp_path / dump["dir"], dump)
    assert len(lines(capsys)) == 7
    assert commands.run(["compress", levels[0], "--in-place"]) == 0
    already, total = capsys.readouterr().out.splitlines()
    assert already == f"Checkpoint in {levels[0]} is already compressed"
    assert total.startswith("total: 0 pages")


def test_a_copy_whose_parent_link_leads_elsewhere_is_pointed_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Builder(tmp_path / "1").add(1, b"x" * PAGE_SIZE).write()
    folder = Builder(tmp_path / "2").refer(1).write(parent="../1")
    (tmp_path / "new").mkdir()
    assert commands.run(["compress", str(folder), "--output", str(tmp_path / "new" / "2")]) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert "new/2/parent -> ../1 does not lead to the parent" in line
    assert commands.run(["compress", str(folder), "--output", str(tmp_path / "3")]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    "options",
    [
        ["--in-place", "--region", "0"],
        ["--in-place", "--region", "5000"],
        ["--in-place", "--region", "8M"],
        ["--in-place", "--region", "many"],
        ["--in-place", "--acceleration", "0"],
    ],
)
def test_options_that_make_no_sense(tmp_path: Path, options: list[str]) -> None:
    folder = Builder(tmp_path / "1").add(1, b"x" * PAGE_SIZE).write()
    with pytest.raises(errors.UsageError):
        commands.run(["compress", str(folder), *options])
    assert ImageDirectory(str(folder)).schema is Schema.NONE


def test_a_copy_is_not_in_place() -> None:
    with pytest.raises(errors.UsageError, match="--output: not allowed with argument --in-place"):
        commands.run(["compress", "DIR", "--in-place", "--output", "x"])


def test_backups_are_kept_and_never_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Builder(tmp_path / "1").add(1, b"x" * PAGE_SIZE).write()
    old = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    assert commands.run(["compress", str(folder)]) == 0
    assert {name: (folder / f"{name}.bak").read_bytes() for name in old} == old
    before = content_of(folder)
    with pytest.raises(errors.UsageError, match=r"inventory\.img\.bak: exists and would"):
        commands.run(["decompress", str(folder)])
    assert content_of(folder) == before
    assert commands.run(["decompress", str(folder), "--in-place"]) == 0
    assert {name: (folder / name).read_bytes() for name in old} == old


def test_the_chain_comes_along(
    image_archive: ImageArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = clone(image_archive("incremental") / "images", tmp_path / "images")
    before = content_of(images)
    assert commands.run(["compress", "--chain", "--in-place", str(images / "3")]) == 0
    for level in "123":
        assert ImageDirectory(str(images / level)).schema is Schema.SIZES
    assert commands.run(["decompress", "--chain", "--in-place", str(images / "3")]) == 0
    assert content_of(images) == before
    assert capsys.readouterr().out.count("total: 2670 pages") == 2


def test_all_directories_are_looked_at_before_the_first_is_changed(tmp_path: Path) -> None:
    good = Builder(tmp_path / "1").add(1, b"x" * PAGE_SIZE).write()
    bad = Builder(tmp_path / "2").add(1, b"x" * PAGE_SIZE).write()
    (bad / "inventory.img").unlink()
    before = content_of(tmp_path)
    with pytest.raises(errors.ImageError, match="no inventory"):
        commands.run(["compress", "--in-place", str(good), str(bad)])
    assert content_of(tmp_path) == before


def test_the_blocks_schema(
    image_archive: ImageArchive, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = image_archive("tree") / "images"
    output = str(tmp_path / "out")
    assert commands.run(["compress", str(images), "--output", output, "--schema", "blocks"]) == 0
    assert ImageDirectory(output).schema is Schema.BLOCKS
    with pytest.raises(errors.UsageError, match="--force compresses it again"):
        commands.run(["compress", output, "--in-place", "--region", "64K"])
    assert commands.run(["compress", output, "--in-place", "--region", "64K", "--force"]) == 0
    assert ImageDirectory(output).schema is Schema.BLOCKS


def test_two_directories_of_one_name_are_refused(tmp_path: Path) -> None:
    for place in ("a", "b"):
        (tmp_path / place).mkdir()
        Builder(tmp_path / place / "1").add(1, b"x" * PAGE_SIZE).write()
    folders = [str(tmp_path / place / "1") for place in ("a", "b")]
    with pytest.raises(errors.UsageError, match="called '1'"):
        commands.run(["compress", *folders, "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_nothing_stored_saves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = Builder(tmp_path / "1").refer(1).write(parent="../0")
    commands.run(["compress", str(folder), "--in-place"])
    assert lines(capsys) == [
        ("pagemap-7.img", "0", "0", "0", "0.0"),
        ("total", "0", "0", "0", "0.0"),
    ]
