"""A picture of a dump: its address space against the level of the chain and the kind of block.

Each process has a strip of its pages in address order; what is not mapped between them is left
out but for a gap. A page stands in the lane of the level that holds its last content, in the
colour of how it is stored there. Below, a bar for each level compares what it stores with what the
dump still takes from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from html import escape
from typing import NamedTuple

from helperd import blocks
from helperd.offline.summary import (
    KINDS,
    LZ4,
    RAW,
    UNCOMPRESSED,
    ZERO,
    MemorySummary,
    Stretch,
    Summary,
)

#: Colours and names of KINDS.
COLORS = {ZERO: "#c9d6df", RAW: "#e07a5f", LZ4: "#2a7f9e", UNCOMPRESSED: "#e9b44c"}
NAMES = {ZERO: "zero", RAW: "raw", LZ4: "LZ4", UNCOMPRESSED: "uncompressed"}

_WIDTH = 1200
_LEFT = 150
_RIGHT = 210
_LANE = 26
_LANE_GAP = 4
_GAP = 7.0
_STRIP = _WIDTH - _LEFT - _RIGHT
# Runs closer together than this many pages are drawn as one piece of address space.
_NEAR_PAGES = 512
# The share of the strip that gaps may take.
_GAP_SHARE = 0.25


class Piece(NamedTuple):
    """A piece of address space on a strip: its addresses, and where it is drawn."""

    start: int
    end: int
    x: float
    width: float


def draw(summary: Summary) -> str:
    """Return the picture as a self-contained SVG document."""
    shapes: list[str] = []
    y = _header(shapes, summary)
    for memory in summary.memories:
        y = _draw_memory(shapes, memory, y)
    height = y + 20
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}"'
            f' width="{_WIDTH}" height="{height}" font-family="system-ui, sans-serif"'
            ' font-size="12">',
            f"<title>Memory of {escape(summary.path)}</title>",
            f'<rect width="{_WIDTH}" height="{height}" fill="#fbfaf7"/>',
            *shapes,
            "</svg>",
            "",
        ]
    )


def _header(shapes: list[str], summary: Summary) -> int:
    n_pages = sum(memory.n_pages for memory in summary.memories)
    shapes.append(_text(20, 34, summary.path, size=18, weight=600))
    subtitle = (
        f"{format_memory(n_pages)} in {len(summary.memories)} address spaces,"
        f" {summary.chain_depth} level{'s' if summary.chain_depth > 1 else ''}"
    )
    shapes.append(_text(20, 54, subtitle, color="#666"))
    x = _WIDTH - 420
    for kind in KINDS:
        shapes.append(_rect(x, 24, 12, 12, COLORS[kind], rounded=2))
        shapes.append(_text(x + 18, 34, NAMES[kind]))
        x += 40 + 9 * len(NAMES[kind])
    return 84


def _draw_memory(shapes: list[str], memory: MemorySummary, y: int) -> int:
    """Draw one address space from ``y`` on; return where it ends."""
    title = f"process {memory.pid}" if memory.pid is not None else f"shmem {memory.shmem_id}"
    shapes.append(_text(20, y + 14, title, size=14, weight=600))
    details = f"{memory.n_pages} pages in {len(memory.ranges)} ranges"
    shapes.append(_text(_LEFT, y + 14, details, color="#666"))
    y += 24
    places = lay_out(memory.ranges)
    for depth, level in enumerate(memory.levels):
        top = y + depth * (_LANE + _LANE_GAP)
        name = level.path.rstrip("/").rsplit("/", 1)[-1]
        label = name if depth == 0 else f"{name} (parent)" if depth == 1 else name
        shapes.append(_text(_LEFT - 10, top + 17, _shortened(label), anchor="end"))
        for place in places:
            shapes.append(_rect(place.x, top, place.width, _LANE, "#efece4"))
        _draw_usage(shapes, level.used_pages, level.stored_pages, top)
    for kind in KINDS:
        path = "".join(outlines(places, memory.stretches, kind, y, _LANE, _LANE_GAP))
        if path:
            shapes.append(f'<path fill="{COLORS[kind]}" d="{path}"/>')
    bottom = y + len(memory.levels) * (_LANE + _LANE_GAP)
    end = 0.0
    for place in places:
        if place.x >= end:
            shapes.append(_text(place.x, bottom + 10, f"{place.start:x}", size=9, color="#999"))
            end = place.x + 72
    return bottom + 34


def _draw_usage(shapes: list[str], used: int, stored: int, top: int) -> None:
    """Draw how much of what a level stores the dump takes from there."""
    x = _WIDTH - _RIGHT + 14
    width = 60
    if stored:
        shapes.append(_rect(x, top + 9, width, 8, "#ddd8cc", rounded=4))
        shapes.append(_rect(x, top + 9, width * used / stored, 8, "#555", rounded=4))
    text = f"uses {used} of {stored}" if stored else "nothing stored"
    shapes.append(_text(x + (width + 8 if stored else 0), top + 17, text, color="#666", size=11))


def lay_out(
    ranges: Iterable[tuple[int, int]], left: float = _LEFT, width: float = _STRIP
) -> list[Piece]:
    """Lay address space out on a strip: to scale, but for the gaps between its pieces.

    Args:
        ranges: (address, pages), ascending.
        left: where the strip begins.
        width: of the strip.
    """
    pieces: list[tuple[int, int]] = []
    for start, n_pages in ranges:
        end = start + blocks.pages_to_bytes(n_pages)
        if pieces and start - pieces[-1][1] <= blocks.pages_to_bytes(_NEAR_PAGES):
            pieces[-1] = (pieces[-1][0], end)
        else:
            pieces.append((start, end))
    if not pieces:
        return []
    gap = min(_GAP, width * _GAP_SHARE / len(pieces))
    total = sum(end - start for start, end in pieces)
    scale = (width - gap * (len(pieces) - 1)) / total
    places = []
    x = float(left)
    for start, end in pieces:
        places.append(Piece(start, end, x, (end - start) * scale))
        x += (end - start) * scale + gap
    return places


def outlines(
    places: list[Piece], stretches: Iterable[Stretch], kind: str, y: int, lane: int, gap: int
) -> Iterator[str]:
    """Yield the SVG outline of each stretch of one kind, in the lane of its level.

    Args:
        places: of the address space.
        stretches: ascending by address.
        kind: one of KINDS.
        y: where the first lane begins.
        lane: the height of a lane.
        gap: between two lanes.
    """
    index = 0
    for stretch in stretches:
        while stretch.vaddr >= places[index].end:
            index += 1
        if stretch.kind != kind:
            continue
        place = places[index]
        scale = place.width / (place.end - place.start)
        x = place.x + (stretch.vaddr - place.start) * scale
        # Thin things stay visible.
        width = max(blocks.pages_to_bytes(stretch.n_pages) * scale, 0.4)
        top = y + stretch.depth * (lane + gap)
        yield f"M{x:.2f} {top}h{width:.2f}v{lane}h-{width:.2f}z"


def _rect(x: float, y: float, width: float, height: float, color: str, *, rounded: int = 0) -> str:
    corner = f' rx="{rounded}"' if rounded else ""
    return (
        f'<rect x="{x:.2f}" y="{y}" width="{width:.2f}" height="{height}"{corner} fill="{color}"/>'
    )


def _text(
    x: float,
    y: float,
    text: str,
    *,
    size: int = 12,
    color: str = "#222",
    weight: int = 400,
    anchor: str = "start",
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{color}"'
        f' text-anchor="{anchor}">{escape(text)}</text>'
    )


def _shortened(label: str) -> str:
    return label if len(label) <= 20 else f"{label[:19]}\N{HORIZONTAL ELLIPSIS}"


def format_memory(n_pages: int) -> str:
    """Return the bytes of so many pages, for people."""
    n_bytes = blocks.pages_to_bytes(n_pages)
    return (
        f"{n_bytes / (1 << 20):.1f} MiB" if n_bytes < 1 << 30 else f"{n_bytes / (1 << 30):.2f} GiB"
    )
