"""The results at a glance: pictures for docs/performance.md."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import matplotlib as mpl

from bench import whole
from bench.competitors import ATTACH, CONNECT, DAEMON, HELPERD, HUGE, INPROCESS
from bench.rows import GB_PER_S, MemorySample, Results

mpl.use("svg")

from matplotlib import pyplot as plt

#: Bars and their colours, which can be told apart without seeing red or green.
_COLOURS = {DAEMON: "#9aa0a6", HELPERD: "#0072b2", HUGE: "#56b4e9", INPROCESS: "#e69f00"}
_LINES = {DAEMON: "#9aa0a6", HELPERD: "#0072b2", ATTACH: "#e69f00", CONNECT: "#009e73"}
#: Memory of zeros is not written at all: its bars would dwarf the others.
_PATTERNS = ("text", "elf", "py-heap", "mixed", "random")
_MODES = {"page": "compressed page by page", "256K": "compressed in 256 KiB regions"}
#: The same results give the same file: nothing random in its ids.
_STYLE = {"svg.hashsalt": "helperd", "svg.fonttype": "none", "font.size": 10}
_MIB = 1 << 20
_POINTS = 100


def draw_throughput(results: Results, path: Path) -> None:
    """Draw the throughput of 64 MiB requests as bars into an SVG file."""
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(2, 1, figsize=(9, 6.4), sharey=True, layout="constrained")
        for axis, (mode, title) in zip(axes, _MODES.items(), strict=True):
            width = 0.8 / len(_COLOURS)
            for index, (who, colour) in enumerate(_COLOURS.items()):
                offset = (index - (len(_COLOURS) - 1) / 2) * width
                speeds = [
                    results.value("throughput", f"{pattern} {mode}, 64M", who, GB_PER_S) or 0.0
                    for pattern in _PATTERNS
                ]
                places = [place + offset for place in range(len(speeds))]
                bars = axis.bar(places, speeds, width * 0.94, color=colour, label=who)
                axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=7.5)
            axis.set_xticks(range(len(_PATTERNS)), _PATTERNS)
            axis.set_title(title, loc="left")
            axis.set_ylabel("GB/s")
            _bare(axis)
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(_COLOURS))
        figure.suptitle("Restored memory, GB/s (more is better)", x=0.01, ha="left", weight="bold")
        _save(figure, path)


def draw_memory(
    title: str, limit: int, timelines: Mapping[str, Sequence[MemorySample]], path: Path
) -> None:
    """Draw memory over time into an SVG file.

    Args:
        title: of the picture.
        limit: bytes that it should not exceed by much, drawn as a line.
        timelines: samples, by the title of their panel.
        path: of the file.
    """
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
        for axis, (name, timeline) in zip(axes, timelines.items(), strict=True):
            samples = timeline[:: max(1, len(timeline) // _POINTS)]
            axis.stackplot(
                [sample.seconds for sample in samples],
                [sample.target_bytes / _MIB for sample in samples],
                [sample.image_bytes / _MIB for sample in samples],
                [sample.helper_bytes / _MIB for sample in samples],
                labels=("restored process", "image in tmpfs", "helper"),
                colors=("#0072b2", "#e69f00", "#d55e00"),
            )
            axis.axhline(limit / _MIB, color="#444444", linewidth=1, linestyle="--")
            axis.set_title(f"{name} (dashed: the larger of both)", loc="left", fontsize=9)
            axis.set_xlabel("seconds")
            axis.margins(x=0, y=0.15)
            _bare(axis)
        axes[0].set_ylabel("MiB of RAM")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        _save(figure, path)


def draw_whole(results: Results, path: Path) -> None:
    """Draw how long whole restores take by the size of the process, into an SVG file.

    A dot marks from where on a way is as quick as the C helper.
    """
    with mpl.rc_context(_STYLE):
        figure, axis = plt.subplots(figsize=(9, 4.4), layout="constrained")
        for who in whole.WAYS:
            sizes, seconds = whole.curve(results, who)
            milliseconds = [value * 1e3 for value in seconds]
            axis.plot(sizes, milliseconds, color=_LINES[who], marker=".", label=who)
            size = whole.crossing(results, who) if who != DAEMON else None
            if size is not None:
                logs = [math.log(value) for value in milliseconds]
                height = math.exp(_between(math.log(size), [*map(math.log, sizes)], logs))
                axis.plot([size], [height], "o", color=_LINES[who], markersize=9)
                axis.annotate(
                    f"{size:.0f} MiB", (size, height), (6, -12), textcoords="offset points"
                )
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.set_xticks(sizes, [f"{size} MiB" for size in sizes])
        axis.set_ylabel("ms")
        axis.legend(frameon=False)
        _bare(axis)
        title = "A whole restore, fork of the helper to its exit status (less is better)"
        figure.suptitle(title, x=0.01, ha="left", weight="bold")
        _save(figure, path)


def _between(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return what lies above ``x`` on the line through points in ascending order."""
    for (left, low), (right, high) in pairwise(zip(xs, ys, strict=True)):
        if x <= right:
            return low + (high - low) * (x - left) / (right - left)
    return ys[-1]


def _bare(axis: plt.Axes) -> None:
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", linewidth=0.5, alpha=0.5)
    axis.set_axisbelow(True)


def _save(figure: plt.Figure, path: Path) -> None:
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
