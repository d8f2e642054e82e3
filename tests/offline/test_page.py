"""The page for people: whole, safe to open, and true."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from helperd import tools
from helperd.blocks import PAGE_SIZE
from helperd.commands import run
from helperd.images.directory import ImageDirectory
from helperd.offline.estimate import BLOCK_PAGES, estimate
from helperd.offline.page import render
from tests.conftest import ImageArchive
from tests.images.checkpoints import Builder, clone, levels_of

_VOID = {"meta", "rect", "path"}


class Parser(HTMLParser):
    """Collects text and elements, and notices what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(page: str) -> Parser:
    parser = Parser()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser


@pytest.mark.parametrize("name", ["py-heap", "incremental", "incremental-dedup", "criu-region256k"])
def test_everything_is_on_it(name: str, image_archive: ImageArchive, tmp_path: Path) -> None:
    folder = levels_of(image_archive(name))[-1]
    page = tmp_path / "page.html"
    assert run(["show", str(folder), "--html", str(page)]) == 0
    content = page.read_text()
    found = parsed(content)
    for memory in tools.show(str(folder)).memories:
        what = f"shmem {memory.shmem_id}" if memory.pid is None else f"process {memory.pid}"
        assert what in found.texts
        assert any(f"{memory.n_pages} pages in" in text for text in found.texts)
    # One file, and no network.
    assert not re.search(r"(?:src|href)=|url\(|@import|<script", content)
    assert "prefers-color-scheme: dark" in content
    assert ("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}) in (
        found.elements
    )


def test_what_dedup_would_free_is_what_it_frees(
    image_archive: ImageArchive, tmp_path: Path
) -> None:
    clone(levels_of(image_archive("incremental"))[-1].parent, tmp_path / "images")
    folder = tmp_path / "images" / "3"
    page = tmp_path / "page.html"
    assert run(["show", str(folder), "--html", str(page)]) == 0
    freed = tools.dedup(str(folder)).freed_bytes
    texts = parsed(page.read_text()).texts
    assert texts[texts.index("helperd dedup would free") - 1] == f"{freed / (1 << 20):.3g} MiB"


def test_names_cannot_be_more_than_text() -> None:
    summary = tools.Summary("<script>alert(1)</script>", ("<b>x", "y&z"), ("none", "sizes"), ())
    found = parsed(render(summary, [], None, {"<i>engine": "<img src=x>"}))
    assert "script" not in {tag for tag, _ in found.elements}
    assert "img" not in {tag for tag, _ in found.elements}
    assert "<script>alert(1)</script>" in found.texts


def test_an_estimate_of_everything_is_what_compress_makes(
    image_archive: ImageArchive, tmp_path: Path
) -> None:
    folder = clone(levels_of(image_archive("py-heap"))[-1], tmp_path / "images")
    found = {item.block_pages: item for item in estimate(ImageDirectory(str(folder)))}
    assert tuple(found) == BLOCK_PAGES
    for pages in (1, 16, 64):
        output = tmp_path / f"compressed-{pages}"
        report = tools.compress(
            str(folder), output=str(output), region_bytes=PAGE_SIZE * pages if pages > 1 else 0
        )
        (file,) = report.files
        # Entries and borders of mappings cut regions that neighbouring pages would fill.
        assert found[pages].payload_bytes == pytest.approx(file.bytes_after, rel=0.03)
        assert found[pages].memory_bytes == file.n_pages * PAGE_SIZE


def test_samples_are_few_and_from_all_over(tmp_path: Path) -> None:
    builder = Builder(tmp_path / "images")
    for number in range(40):
        page = bytes(PAGE_SIZE) if number < 20 else bytes(range(256)) * 16
        builder.add(number * 2000, page * 100)
    folder = ImageDirectory(str(builder.write()))
    (first, *_) = estimate(folder, sample_pages=2100)
    assert first.memory_bytes == 2000 * PAGE_SIZE
    assert 0 < first.payload_bytes < first.memory_bytes / 2


def test_nothing_to_estimate(tmp_path: Path) -> None:
    folder = Builder(tmp_path / "images").write()
    assert estimate(ImageDirectory(str(folder))) == []
