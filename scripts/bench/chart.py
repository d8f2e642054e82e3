"""The results at a glance: docs/performance.svg."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl

from bench.competitors import DAEMON, HELPERD, HUGE, INPROCESS
from bench.results import Case, DedupCase, MemorySample, Results

mpl.use("svg")

from matplotlib import pyplot as plt

#: Bars and their colours, which can be told apart without seeing red or green.
_COLOURS = {DAEMON: "#9aa0a6", HELPERD: "#0072b2", HUGE: "#56b4e9", INPROCESS: "#e69f00"}
_LABELS = {
    DAEMON: "C helper, one thread",
    HELPERD: "helperd",
    HUGE: "helperd --thp always",
    INPROCESS: "in-process, no helper",
}
#: Memory of zeros is not written at all: its bars would dwarf the others.
_LEFT_OUT = ("zero",)
_MODES = {"page": "compressed page by page", "256K": "compressed in 256 KiB regions"}

#: The same results give the same file: nothing random in its ids.
_STYLE = {"svg.hashsalt": "helperd", "svg.fonttype": "none", "font.size": 10}
_MIB = 1 << 20


def draw(results: Results, path: Path) -> None:
    """Draw the throughput of 64 MiB requests as bars into an SVG file."""
    panels = {
        mode: [
            case
            for case in results.cases
            if case.request == "64M" and case.mode == mode and case.pattern not in _LEFT_OUT
        ]
        for mode in _MODES
    }
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(
            len(panels), 1, figsize=(9, 6.4), sharey=True, layout="constrained"
        )
        for axis, (mode, cases) in zip(axes, panels.items(), strict=True):
            _draw_panel(axis, cases)
            axis.set_title(_MODES[mode], loc="left")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(_COLOURS))
        figure.suptitle("Restored memory, GB/s (more is better)", x=0.01, ha="left", weight="bold")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _draw_panel(axis: plt.Axes, cases: list[Case]) -> None:
    width = 0.8 / len(_COLOURS)
    for index, (name, colour) in enumerate(_COLOURS.items()):
        places, heights, spreads = [], [], []
        for place, case in enumerate(cases):
            if name in case.results:
                value = case.results[name].throughput
                places.append(place + (index - (len(_COLOURS) - 1) / 2) * width)
                heights.append(value.median)
                spreads.append((value.median - value.low, value.high - value.median))
        if not places:
            continue
        bars = axis.bar(
            places,
            heights,
            width * 0.94,
            color=colour,
            label=_LABELS[name],
            yerr=list(zip(*spreads, strict=True)),
            error_kw={"elinewidth": 0.8, "ecolor": "#444444"},
        )
        axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=7.5)
    axis.set_xticks(range(len(cases)), [case.pattern for case in cases])
    axis.set_ylabel("GB/s")
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", linewidth=0.5, alpha=0.5)
    axis.set_axisbelow(True)


def draw_dedup(case: DedupCase, path: Path) -> None:
    """Draw memory over time, without and with --auto-dedup, into an SVG file."""
    panels = {
        "without --auto-dedup": case.plain_timeline,
        "with --auto-dedup": case.dedup_timeline,
    }
    with mpl.rc_context(_STYLE):
        figure, axes = plt.subplots(1, 2, figsize=(9, 4), sharey=True, layout="constrained")
        for axis, (title, timeline) in zip(axes, panels.items(), strict=True):
            _draw_timeline(axis, timeline)
            limit = max(case.memory_bytes, case.payload_bytes) / _MIB
            axis.axhline(limit, color="#444444", linewidth=1, linestyle="--")
            axis.annotate(
                "the larger of image and memory",
                (axis.get_xlim()[1], limit),
                xytext=(-4, 4),
                textcoords="offset points",
                ha="right",
                fontsize=8,
            )
            axis.set_title(title, loc="left")
        axes[0].set_ylabel("MiB of RAM")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
        size = f"{case.memory_bytes >> 20} MiB ({case.name})"
        figure.suptitle(f"Restoring {size} from a tmpfs", x=0.01, ha="left", weight="bold")
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)


def _draw_timeline(axis: plt.Axes, timeline: list[MemorySample]) -> None:
    axis.stackplot(
        [sample.seconds for sample in timeline],
        [sample.target_bytes / _MIB for sample in timeline],
        [sample.image_bytes / _MIB for sample in timeline],
        [sample.helper_bytes / _MIB for sample in timeline],
        labels=("restored process", "image in tmpfs", "helper"),
        colors=("#0072b2", "#e69f00", "#d55e00"),
    )
    axis.set_xlabel("seconds")
    axis.set_xlim(0, timeline[-1].seconds)
    axis.margins(y=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(axis="y", linewidth=0.5, alpha=0.5)
    axis.set_axisbelow(True)
