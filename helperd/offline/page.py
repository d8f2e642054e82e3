"""A page for people about a dump: one HTML file that needs nothing else and no network.

It says what :mod:`helperd.offline.summary` found, what other block sizes would make of it, and what
deduplication would free; readable on a phone, and in the dark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from helperd.blocks import pages_to_bytes
from helperd.offline.estimate import Estimate
from helperd.offline.picture import NAMES, format_memory, lay_out, outlines
from helperd.offline.summary import KINDS, LevelSummary, MemorySummary, Summary

_STYLE = """
:root { color-scheme: light dark; --back: #fbfaf7; --card: #fff; --text: #23262b; --soft: #6a6f78;
  --line: #e2ded4; --strip: #efece4; --accent: #2a7f9e; --zero: #b4c5d0; --raw: #d9694c;
  --lz4: #2a7f9e; --uncompressed: #dba63c; }
@media (prefers-color-scheme: dark) { :root { --back: #16181c; --card: #1f2227; --text: #e7e5df;
  --soft: #9ba1ab; --line: #343840; --strip: #2a2e35; --accent: #63b4d1; --zero: #5d6c78;
  --raw: #e8846a; --lz4: #4fa7c6; --uncompressed: #e3b65a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text); line-height: 1.45;
  font: 15px/1.45 system-ui, sans-serif; }
main { max-width: 1080px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 1.35rem; margin: 0 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 1.05rem; margin: 32px 0 8px; }
p { margin: 4px 0; } .soft { color: var(--soft); }
.cards { display: grid; gap: 10px; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr));
  margin: 16px 0; }
.card, .memory { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: 10px 12px; }
.card b { display: block; font-size: 1.2rem; } .card span { color: var(--soft); font-size: .85rem; }
.memory { margin: 12px 0; } .memory h3 { margin: 0 0 2px; font-size: 1rem; }
svg { display: block; width: 100%; margin: 8px 0 2px; }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; font-size: .85rem; color: var(--soft); }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 2px;
  margin-right: 6px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 10px 4px 0; text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; }
th:first-child, td:first-child { text-align: left; }
td { border-top: 1px solid var(--line); }
.bar { display: flex; height: 10px; min-width: 110px; border-radius: 3px; overflow: hidden;
  background: var(--strip); } .bar i { display: block; height: 100%; }
""" + "".join(f".{kind} {{ fill: var(--{kind}); background: var(--{kind}); }}\n" for kind in KINDS)

_WIDTH, _LANE, _LANE_GAP = 1000, 18, 3
_UNITS = ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def render(
    summary: Summary,
    estimates: Sequence[Estimate],
    freed_bytes: int | None,
    origin: Mapping[str, str],
) -> str:
    """Return the page.

    Args:
        summary: of the dump and its chain.
        estimates: for each block size.
        freed_bytes: that ``helperd dedup`` would free; None without a parent.
        origin: who made the checkpoint and when, in words by name; empty if nobody knows.
    """
    body = [
        f"<h1>{escape(summary.path)}</h1>",
        f'<p class="soft">{escape(_chain(summary))}</p>',
        _cards(summary, freed_bytes),
        _origin(origin),
        "<h2>Address space</h2>",
        _legend(),
        *map(_memory, summary.memories),
        _estimates(estimates),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(summary.path)}: checkpointed memory</title>",
            f"<style>{_STYLE}</style></head><body><main>",
            *filter(None, body),
            "</main></body></html>",
            "",
        ]
    )


def _chain(summary: Summary) -> str:
    levels = [
        path.rstrip("/").rsplit("/", 1)[-1] + ("" if schema == "none" else f" ({schema})")
        for path, schema in zip(summary.levels, summary.schemas, strict=True)
    ]
    if len(levels) == 1:
        return f"no parent; compression: {summary.schemas[0]}"
    return f"{len(levels)} levels, the last dump first: {', '.join(levels)}"


def _cards(summary: Summary, freed_bytes: int | None) -> str:
    n_pages = sum(memory.n_pages for memory in summary.memories)
    levels = [level for memory in summary.memories for level in memory.levels]
    stored = sum(level.payload_bytes - level.hole_bytes for level in levels)
    ratio = sum(pages_to_bytes(level.stored_pages) for level in levels) / max(stored, 1)
    n_processes = sum(memory.pid is not None for memory in summary.memories)
    cards = [
        (format_memory(n_pages), "of memory"),
        (_size(stored), "stored, all levels"),
        (f"{ratio:.2f}", "compression ratio"),
        (str(n_processes), "process" if n_processes == 1 else "processes"),
    ]
    if freed_bytes is not None:
        cards.append((_size(freed_bytes), "helperd dedup would free"))
    items = "".join(
        f'<div class="card"><b>{escape(value)}</b><span>{escape(what)}</span></div>'
        for value, what in cards
    )
    return f'<div class="cards">{items}</div>'


def _origin(origin: Mapping[str, str]) -> str:
    if not origin:
        return ""
    rows = [(escape(name), escape(value)) for name, value in origin.items() if value]
    return "<h2>Made by</h2>" + _table(("", ""), rows)


def _legend() -> str:
    items = "".join(f'<span><i class="{kind}"></i>{NAMES[kind]}</span>' for kind in KINDS)
    return f'<div class="legend">{items}</div>'


def _memory(memory: MemorySummary) -> str:
    title = f"process {memory.pid}" if memory.pid is not None else f"shmem {memory.shmem_id}"
    details = f"{format_memory(memory.n_pages)}, {memory.n_pages} pages in {len(memory.ranges)}"
    rows = [_level(level) for level in memory.levels]
    header = ("level", "pages used", "of stored", "payload", "ratio", "blocks of", "kinds")
    return (
        f'<section class="memory"><h3>{title}</h3><p class="soft">{details} ranges</p>'
        f"{_strip(memory)}{_table(header, rows)}</section>"
    )


def _strip(memory: MemorySummary) -> str:
    """Return the address space, a lane for each level, as wide as the page."""
    places = lay_out(memory.ranges, 0, _WIDTH)
    height = len(memory.levels) * (_LANE + _LANE_GAP)
    shapes = [
        f'<rect x="{place.x:.2f}" y="{depth * (_LANE + _LANE_GAP)}" width="{place.width:.2f}"'
        f' height="{_LANE}" fill="var(--strip)"/>'
        for depth in range(len(memory.levels))
        for place in places
    ]
    for kind in KINDS:
        path = "".join(outlines(places, memory.stretches, kind, 0, _LANE, _LANE_GAP))
        if path:
            shapes.append(f'<path class="{kind}" d="{path}"/>')
    label = "address space from low to high, a lane for each level"
    return (
        f'<svg role="img" aria-label="{label}" viewBox="0 0 {_WIDTH} {height}" height="{height}"'
        f' preserveAspectRatio="none">{"".join(shapes)}</svg>'
    )


def _level(level: LevelSummary) -> tuple[str, ...]:
    name = escape(level.path.rstrip("/").rsplit("/", 1)[-1])
    if not level.stored_pages:
        return (name, "0", "0", "", "", "", "")
    block = _size(pages_to_bytes(level.block_pages)) if level.block_pages else ""
    counts = (level.n_zero, level.n_raw, level.n_lz4, level.n_uncompressed)
    return (
        name,
        str(level.used_pages),
        str(level.stored_pages),
        _size(level.payload_bytes - level.hole_bytes),
        f"{level.ratio:.2f}",
        block,
        _bar(dict(zip(KINDS, counts, strict=True))),
    )


def _bar(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    words = ", ".join(f"{count} {NAMES[kind]}" for kind, count in counts.items() if count)
    parts = "".join(
        f'<i class="{kind}" style="width:{count / total:.2%}"></i>'
        for kind, count in counts.items()
        if count
    )
    return f'<div class="bar" role="img" aria-label="{words}" title="{words}">{parts}</div>'


def _estimates(estimates: Sequence[Estimate]) -> str:
    if not estimates:
        return ""
    best = max(estimate.ratio for estimate in estimates)
    rows = [
        (
            "single pages" if estimate.block_pages == 1 else _region(estimate.block_pages),
            f"{estimate.ratio:.2f}",
            f'<div class="bar"><i class="lz4" style="width:{estimate.ratio / best:.2%}"></i></div>',
        )
        for estimate in estimates
    ]
    looked_at = _size(estimates[0].memory_bytes)
    return (
        f'<h2>What other block sizes would make of it</h2><p class="soft">From {looked_at} of'
        " samples: bytes of memory for each byte stored.</p>"
        + _table(("blocks", "ratio", ""), rows)
    )


def _region(block_pages: int) -> str:
    return f"regions of {_size(pages_to_bytes(block_pages))}"


def _table(header: Iterable[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{name}</th>" for name in header)
    body = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><tr>{head}</tr>{body}</table></div>'


def _size(n_bytes: int) -> str:
    for unit, name in _UNITS:
        if n_bytes >= unit:
            return f"{n_bytes / unit:.3g} {name}"
    return f"{n_bytes} bytes"
