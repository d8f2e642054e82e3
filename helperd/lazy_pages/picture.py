"""A picture of a restore on demand: over time, the memory that is there and the faults answered."""

from __future__ import annotations

from html import escape
from typing import Any

from helperd.blocks import pages_to_bytes

_WIDTH, _HEIGHT = 900, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 90, 90, 70, 60
_TICKS = 5
_MEMORY, _FAULTS, _INK, _PAPER = "#2a7f9e", "#e07a5f", "#333333", "#fbfaf7"


def draw(report: dict[str, Any], name: str) -> str:
    """Return the picture as a self-contained SVG document.

    Args:
        report: of :meth:`helperd.lazy_pages.counters.Counters.report`.
        name: of what was restored.
    """
    timeline: list[tuple[float, int, int]] = [
        (max(0.0, at), pages, faults) for at, pages, faults in report["timeline"]
    ]
    end = max((at for at, _, _ in timeline), default=0.0) or 1.0
    pages = max((row[1] for row in timeline), default=0)
    faults = max((row[2] for row in timeline), default=0)
    n_bytes = pages_to_bytes(pages)
    shapes = [
        _text(_LEFT, 30, f"Restore of {name}", size=18),
        _text(
            _LEFT,
            52,
            f"{_size(n_bytes)} in {end:.3f} s after it ran; {faults} faults,"
            f" half of them within {report['fault_us'].get('p50', 0)} microseconds",
        ),
    ]
    bottom = _HEIGHT - _BOTTOM
    for tick in range(_TICKS + 1):
        share = tick / _TICKS
        x, y = _x(share), _y(share)
        shapes += [
            f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"'
            ' stroke="#dddddd"/>',
            _text(x, bottom + 20, f"{share * end:.3f} s", anchor="middle"),
            _text(_LEFT - 8, y + 4, _size(int(share * n_bytes)), anchor="end", fill=_MEMORY),
            _text(_WIDTH - _RIGHT + 8, y + 4, f"{share * faults:.0f}", fill=_FAULTS),
        ]
    memory = [(_x(at / end), _y(there / (pages or 1))) for at, there, _ in timeline]
    asked = [(_x(at / end), _y(count / (faults or 1))) for at, _, count in timeline]
    area = [(_x(0), _y(0)), *memory, (memory[-1][0] if memory else _x(1), _y(0))]
    shapes += [
        f'<polygon points="{_points(area)}" fill="{_MEMORY}" fill-opacity="0.15"/>',
        f'<polyline points="{_points(memory)}" fill="none" stroke="{_MEMORY}" stroke-width="2"/>',
        f'<polyline points="{_points(asked)}" fill="none" stroke="{_FAULTS}" stroke-width="2"/>',
        _text(_LEFT, _HEIGHT - 12, "memory there", fill=_MEMORY),
        _text(_LEFT + 120, _HEIGHT - 12, "faults answered", fill=_FAULTS),
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
            f' width="{_WIDTH}" height="{_HEIGHT}" font-family="system-ui, sans-serif"'
            ' font-size="12">',
            f"<title>Restore of {escape(name)}</title>",
            f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="{_PAPER}"/>',
            *shapes,
            "</svg>",
            "",
        ]
    )


def _size(n_bytes: int) -> str:
    return f"{n_bytes / (1 << 20):.1f} MiB"


def _x(share: float) -> float:
    return _LEFT + share * (_WIDTH - _LEFT - _RIGHT)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _points(places: list[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _text(
    x: float, y: float, text: str, *, size: int = 12, anchor: str = "start", fill: str = _INK
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}"'
        f' fill="{fill}">{escape(text)}</text>'
    )
