"""Results as a run of the benchmark would have found them."""

from __future__ import annotations

from bench.competitors import ATTACH, CONNECT, DAEMON, HELPERD, HUGE, INPROCESS, ONE_THREAD
from bench.results import (
    Case,
    ColdCase,
    DedupCase,
    Latency,
    MemorySample,
    PeakCase,
    Result,
    Results,
    SandboxCase,
    ToolCase,
)
from bench.stats import Summary
from bench.tools import LOOP, PER_PAGE

MIB_IN_KIB = 1024


def exactly(value: float) -> Summary:
    return Summary(value, value, value, 1)


def result(throughput: float, cpu: float = 1.0, peak_rss_kib: int | None = 20480) -> Result:
    return Result(exactly(throughput), exactly(cpu), peak_rss_kib)


def case(pattern: str = "text", mode: str = "page", request: str = "64M", **speeds: float) -> Case:
    """A case in which everything is met, unless ``speeds`` (by constant name) say otherwise."""
    throughput = {"DAEMON": 1.0, "HELPERD": 2.5, "ONE_THREAD": 1.2, "HUGE": 3.5, "INPROCESS": 2.8}
    throughput |= speeds
    names = {
        "DAEMON": DAEMON,
        "HELPERD": HELPERD,
        "ONE_THREAD": ONE_THREAD,
        "HUGE": HUGE,
        "INPROCESS": INPROCESS,
    }
    results = {names[key]: result(value) for key, value in throughput.items()}
    results[DAEMON] = result(throughput["DAEMON"], peak_rss_kib=900 * MIB_IN_KIB)
    results[INPROCESS] = result(throughput["INPROCESS"], peak_rss_kib=None)
    return Case(pattern, mode, request, 1 << 29, 1 << 28, results)


def dedup_case(excess_mib: int = 20, speed: float = 0.95) -> DedupCase:
    """1 GiB out of an image of 400 MiB; ``speed`` is that with --auto-dedup, 1.0 without."""
    memory, image = 1 << 30, 400 << 20
    kept = [MemorySample(0.0, image, 0, 20 << 20), MemorySample(1.0, image, memory, 20 << 20)]
    shrunk = [
        MemorySample(0.0, image, 0, 20 << 20),
        MemorySample(1.0, excess_mib << 20, memory, 20 << 20),
        MemorySample(1.1, 0, memory, 20 << 20),
    ]
    plain, dedup = exactly(1.0), exactly(speed)
    return DedupCase("text", "page", memory, image, plain, dedup, kept, shrunk)


def sandbox_case(ratio: float = 0.99) -> SandboxCase:
    """Medians say what pairs do not: they are for reading."""
    return SandboxCase("text", "page", exactly(1.5), exactly(1.2), exactly(ratio))


def full_results() -> Results:
    """Results with everything in them, all goals met."""
    return Results(
        machine={"CPUs": "2"},
        settings={"run": "full"},
        cases=[case(), case("elf", "256K"), case("text", "page", "whole"), case("zero", "raw")],
        latencies={
            DAEMON: Latency(exactly(0.004), exactly(80e-6)),
            HELPERD: Latency(exactly(0.070), exactly(79e-6)),
            ATTACH: Latency(exactly(0.035), exactly(79e-6)),
            CONNECT: Latency(exactly(0.009), exactly(90e-6)),
        },
        cold=[ColdCase("text", "page", 1 << 28, exactly(0.4), exactly(0.3), exactly(0.42))],
        peaks=[PeakCase("page", 4 << 30, 40 * MIB_IN_KIB)],
        dedup=[dedup_case()],
        sandbox=[sandbox_case()],
        tools=[
            ToolCase("text", "compress", who, 2.0, exactly(speed))
            for who, speed in ((LOOP, 0.3), (PER_PAGE, 1.3))
        ],
    )
