"""What is measured: the full run, and the quick one."""

from __future__ import annotations

from dataclasses import dataclass

from bench.images import MODES
from bench.patterns import MIB, PATTERNS


@dataclass(frozen=True)
class Matrix:
    """The cases of a run.

    Attributes:
        size: bytes of restored memory.
        rounds: restores that count, of each competitor in each case.
        patterns, modes: every one with every other, with requests of 64 MiB.
        whole: (pattern, mode) that are also restored by one request.
        cold: (pattern, mode) that are also restored from a disk.
        spawns: how often each helper is started, or connected to, for its latency.
        requests: one-page requests to each of those.
        peak_bytes: the size of the very large request, 0 for none.
        dedup: (pattern, mode) that are also restored with --auto-dedup,
        dedup_bytes: of so much memory.
        sandbox: (pattern, mode) that are also restored confined and not,
        sandbox_bytes: of so much memory,
        sandbox_starts: of each helper,
        sandbox_rounds: by each that was started.
        tools: patterns that are compressed and decompressed.
        warm_bytes: of the machine's memory that are touched before everything else.
    """

    size: int
    rounds: int
    patterns: tuple[str, ...]
    modes: tuple[str, ...]
    whole: tuple[tuple[str, str], ...]
    cold: tuple[tuple[str, str], ...]
    spawns: int
    requests: int
    peak_bytes: int
    dedup: tuple[tuple[str, str], ...]
    dedup_bytes: int
    sandbox: tuple[tuple[str, str], ...]
    sandbox_bytes: int
    sandbox_starts: int
    sandbox_rounds: int
    tools: tuple[str, ...]
    warm_bytes: int


_MAIN = (("text", "page"), ("text", "256K"), ("elf", "page"), ("elf", "256K"))

FULL = Matrix(
    size=512 * MIB,
    rounds=5,
    patterns=PATTERNS,
    modes=tuple(MODES),
    whole=_MAIN,
    cold=(("text", "page"), ("elf", "256K"), ("random", "256K")),
    spawns=30,
    requests=1000,
    peak_bytes=4096 * MIB,
    dedup=(("text", "page"), ("random", "256K")),
    dedup_bytes=1024 * MIB,
    sandbox=(("text", "page"),),
    sandbox_bytes=128 * MIB,
    sandbox_starts=12,
    sandbox_rounds=16,
    tools=("text", "elf", "mixed"),
    warm_bytes=12288 * MIB,
)

QUICK = Matrix(
    size=128 * MIB,
    rounds=3,
    patterns=("text", "elf"),
    modes=("page", "256K"),
    whole=_MAIN,
    cold=(("text", "256K"),),
    spawns=5,
    requests=300,
    peak_bytes=0,
    dedup=(("text", "page"),),
    dedup_bytes=256 * MIB,
    sandbox=(("text", "page"),),
    sandbox_bytes=128 * MIB,
    sandbox_starts=3,
    sandbox_rounds=8,
    tools=("text",),
    warm_bytes=3072 * MIB,
)
