"""What show says agrees with what was recorded of the images."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from pathlib import Path

import pytest

from helperd import errors, tools
from helperd.blocks import PAGE_SIZE, pages_to_bytes
from helperd.offline.picture import draw
from helperd.offline.summary import KINDS
from tests.conftest import ImageArchive
from tests.images.checkpoints import ARCHIVES, Builder, levels_of, load_dumps

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", [*ARCHIVES, "incremental-dedup"])
def test_real_images(image_archive: ImageArchive, name: str) -> None:
    archive = image_archive(name)
    (dump, *_) = load_dumps(archive)
    summary = tools.show(str(archive / dump["dir"]))
    assert summary.chain_depth == len(levels_of(archive))
    known = [(p["pid"], None, p["ranges"]) for p in dump["processes"]]
    known += [(None, s["shmid"], s["ranges"]) for s in dump["shmem"]]
    assert [(m.pid, m.shmem_id) for m in summary.memories] == [k[:2] for k in known]
    for memory, (_, _, ranges) in zip(summary.memories, known, strict=True):
        assert memory.n_pages == sum(item["nr_pages"] for item in ranges)
        assert memory.n_pages == sum(n_pages for _, n_pages in memory.ranges)
        assert memory.n_pages == sum(stretch.n_pages for stretch in memory.stretches)
        assert memory.n_pages == sum(level.used_pages for level in memory.levels)
        assert memory.ranges[0][0] == int(ranges[0]["vaddr"], 16)
        assert {stretch.kind for stretch in memory.stretches} <= set(KINDS)
        for depth, level in enumerate(memory.levels):
            assert level.used_pages <= level.stored_pages
            assert level.used_pages == sum(
                stretch.n_pages for stretch in memory.stretches if stretch.depth == depth
            )
            assert (level.hole_bytes > 0) <= (name == "incremental-dedup" and depth > 0)
    assert_is_drawn(draw(summary), summary)


def assert_is_drawn(svg: str, summary: tools.Summary) -> None:
    """Check that the picture is well-formed and has a mark for each stretch."""
    root = xml.etree.ElementTree.fromstring(svg)
    width, height = float(root.get("width", 0)), float(root.get("height", 0))
    paths = [path.get("d", "") for path in root.iter(f"{SVG}path")]
    n_marks = sum(path.count("M") for path in paths)
    assert n_marks == sum(len(memory.stretches) for memory in summary.memories)
    for rect in root.iter(f"{SVG}rect"):
        right = float(rect.get("x", 0)) + float(rect.get("width", 0))
        bottom = float(rect.get("y", 0)) + float(rect.get("height", 0))
        assert right <= width + 0.01
        assert bottom <= height
    for path in paths:
        for mark in path.split("M")[1:]:
            x, rest = mark.split(" ", 1)
            assert 0 <= float(x) <= width
            assert float(rest.split("h")[0]) <= height


@pytest.mark.parametrize("name", ["criu-perpage", "criu-region256k"])
def test_kinds_are_those_of_the_recorded_restore(image_archive: ImageArchive, name: str) -> None:
    archive = image_archive(name)
    (request,) = json.loads((archive / "requests.json").read_text())["requests"]
    (memory,) = tools.show(str(archive / "images")).memories
    (level,) = memory.levels
    assert (level.n_zero, level.n_raw, level.n_lz4) == (
        *(request["blocks"][kind] for kind in ("zero", "raw", "lz4")),
    )
    assert level.payload_bytes == request["total_compressed_size"]
    assert level.block_pages == (request["region_pages"] or 1)
    assert level.ratio == pages_to_bytes(request["n_pages"]) / request["total_compressed_size"]


def test_stretches_of_a_chain(tmp_path: Path) -> None:
    noise = bytes((i * i * 31 >> 3) % 256 for i in range(PAGE_SIZE))
    parent = Builder(tmp_path / "1", schema=tools.Schema.SIZES)
    parent.add(1, bytes(4 * PAGE_SIZE) + b"x" * 5 * PAGE_SIZE, region=4).write()
    top = Builder(tmp_path / "2").add(1, noise).refer(2, 5).write(parent="../1")
    (memory,) = tools.show(str(top)).memories
    assert [(s.vaddr // PAGE_SIZE, s.n_pages, s.depth, s.kind) for s in memory.stretches] == [
        (1, 1, 0, "uncompressed"),
        (2, 3, 1, "zero"),
        (5, 2, 1, "lz4"),
    ]
    assert memory.ranges == [(PAGE_SIZE, 6)]
    assert [(level.stored_pages, level.used_pages) for level in memory.levels] == [(1, 1), (9, 5)]


def test_names_are_quoted(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "<&>").add(1, b"x" * PAGE_SIZE).write()
    summary = tools.show(str(folder))
    assert_is_drawn(draw(summary), summary)


def test_broken_images_are_an_error(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "1").refer(1).write()
    with pytest.raises(errors.ImageError, match="no parent link"):
        tools.show(str(folder))
