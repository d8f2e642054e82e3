"""The house: the map in docs/design.md is the tree, and imports only go down."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HOUSE = ROOT / "helperd"
#: As much as a reader takes in; a file that needs more has two jobs.
MAX_LINES = 400


def floors() -> dict[str, int]:
    """Return the floor of each room, as docs/design.md has it."""
    text = (ROOT / "docs" / "design.md").read_text()
    table = text.partition("## The house")[2].partition("Where to find")[0]
    found: dict[str, int] = {}
    for floor, rooms in re.findall(r"^\| (\d+) \| ([^|]+) \|", table, re.MULTILINE):
        for room in re.findall(r"`(\w+)/?`", rooms):
            found[room] = int(floor)
    return found


def modules() -> Iterator[Path]:
    return (path for path in HOUSE.rglob("*.py") if "pb" not in path.parts)


def room_of(path: Path) -> str:
    return path.relative_to(HOUSE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """Yield the rooms that a module imports from, wherever in it that stands."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0:
            first, *rest = (node.module or "").split(".")
            if first == "helperd":
                yield from rest[:1] or [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            for alias in node.names:
                first, *rest = alias.name.split(".")
                if first == "helperd" and rest:
                    yield rest[0]


def test_the_map_is_the_tree() -> None:
    rooms = {room_of(path) for path in modules()} - {"__init__"}
    assert set(floors()) == rooms


def test_imports_only_go_down() -> None:
    level = floors()
    up = set()
    for path in modules():
        room = room_of(path)
        for other in imports(path):
            if other == room or other not in level or room == "__init__":
                continue
            if level[other] > level[room] or (level[other] == level[room] > 0):
                up.add(f"{path.relative_to(ROOT)} imports {other}")
    assert sorted(up) == []


def test_no_circles() -> None:
    """Between modules, imports for types alone as well: a reader has to follow those, too."""
    graph = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts): set(_imported(path))
        for path in modules()
    }
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in graph.get(name, ()):
                visit(other, (*way, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def _imported(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("helperd"):
            assert node.module is not None
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize("path", sorted(modules()), ids=lambda path: str(path.relative_to(HOUSE)))
def test_a_file_has_one_job(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


def test_every_question_of_the_map_has_its_file() -> None:
    text = (ROOT / "docs" / "design.md").read_text()
    table = text.partition("| question | file |")[2].partition("\n\n")[0]
    files = [
        found
        for row in re.findall(r"\| (`[^|]+) \|$", table, re.MULTILINE)
        for found in re.findall(r"`([\w/]+\.py)`", row)
    ]
    assert len(files) >= 10
    for name in files:
        assert (HOUSE / name).is_file() or (ROOT / name).is_file(), name
