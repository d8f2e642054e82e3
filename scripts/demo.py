"""Restore a real checkpoint through helperd, and check every byte of it.

The checkpoint is of a CPython process, dumped by CRIU without compression. It is compressed in
256 KiB regions, then injected into a fresh process that has the checkpoint's address ranges
mapped and nothing in them. What stands in the memory of that process afterwards is compared
with the SHA-256 sums of the process that was dumped.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from target import Target, TargetError, compile_target
from truth import Process, differing_ranges, load_truth, map_ranges

from helperd.errors import HelperdError
from helperd.offline.compress import compress_directory
from helperd.restorer import InjectReport, inject

ARCHIVE = Path(__file__).resolve().parent.parent / "tests" / "data" / "py-heap.tar.xz"
REGION_BYTES = 256 << 10
MIB = 1 << 20


def main() -> int:
    """Run the demo; return 0 only if every range holds what was dumped."""
    with tempfile.TemporaryDirectory(prefix="helperd-demo-") as folder:
        try:
            return demo(Path(folder))
        except (HelperdError, TargetError) as error:
            print(f"demo: {error}", file=sys.stderr)
            return 1


def demo(folder: Path) -> int:
    """Unpack, compress, restore and verify in a scratch folder; return the exit status."""
    say(f"unpacking {ARCHIVE.name}")
    subprocess.run(["tar", "-xf", str(ARCHIVE), "-C", str(folder)], check=True)
    truth = load_truth(folder / "py-heap")
    (process,) = truth.processes

    say(f"compressing it in regions of {REGION_BYTES >> 10} KiB")
    compressed = folder / "compressed"
    compress_directory(str(truth.images), output=str(compressed), region_bytes=REGION_BYTES)

    with Target(compile_target(folder)) as target:
        say(f"mapping its {len(process.ranges)} ranges, empty, in process {target.pid}")
        map_ranges(target, process.ranges)
        already_right = len(process.ranges) - len(differing_ranges(target, process.ranges))
        say("restoring them through a helper")
        report = inject(compressed, target.pid, image_pid=process.pid)
        say("comparing them with the process that was dumped")
        wrong = differing_ranges(target, process.ranges)

    print_report(report, process, already_right, len(wrong))
    for item in wrong:
        print(f"demo: {item.n_pages} pages at {item.address:#x} differ", file=sys.stderr)
    return 1 if wrong else 0


def print_report(report: InjectReport, process: Process, already_right: int, n_wrong: int) -> None:
    """Print what was done as a table."""
    n_ranges = len(process.ranges)
    rows = [
        ("pages", f"{report.pages:,} ({report.memory_bytes / MIB:.1f} MiB)"),
        ("blocks", f"{report.zero_blocks} zero, {report.raw_blocks} raw, {report.lz4_blocks} LZ4"),
        (
            "ratio",
            f"{report.memory_bytes / report.payload_bytes:.2f}"
            f" ({report.payload_bytes / MIB:.1f} MiB in the image)",
        ),
        ("requests", f"{report.requests}"),
        (
            "time",
            f"{report.seconds * 1e3:.0f} ms with the helper's start"
            f" ({report.memory_bytes / report.seconds / 1e9:.2f} GB/s)",
        ),
        ("helper's peak RSS", f"{report.helper_peak_rss_kib / 1024:.1f} MiB"),
        ("ranges right before", f"{already_right} of {n_ranges}"),
        ("ranges right after", f"{n_ranges - n_wrong} of {n_ranges}"),
    ]
    width = max(len(name) for name, _ in rows)
    print()
    for name, value in rows:
        print(f"  {name:<{width}}  {value}")


def say(step: str) -> None:
    """Print a step before it is taken."""
    print(f"- {step}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
