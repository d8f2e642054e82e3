"""What a run of the benchmark found; goes to JSON as it is."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Any

from bench.stats import Summary, ratio

#: Changes when older results cannot be read any more.
FORMAT = 1


@dataclass(frozen=True, slots=True)
class Result:
    """What one competitor did on one image.

    Attributes:
        throughput: GB (10^9 bytes) of restored memory a second.
        cpu: CPU seconds for each GB.
        peak_rss_kib: of the helper; None without one.
    """

    throughput: Summary
    cpu: Summary
    peak_rss_kib: int | None


@dataclass(frozen=True, slots=True)
class Case:
    """One image and one size of requests.

    Attributes:
        pattern: what the memory holds.
        mode: how the image is compressed.
        request: the size of requests: "64M", or "whole" for one for everything.
        memory_bytes: that were restored.
        payload_bytes: of the image.
        results: by competitor.
    """

    pattern: str
    mode: str
    request: str
    memory_bytes: int
    payload_bytes: int
    results: dict[str, Result]

    @property
    def name(self) -> str:
        """How the case is called in tables."""
        return f"{self.pattern} {self.mode}"

    def ratio(self, name: str, reference: str) -> float:
        """Return how many times as fast ``name`` was as ``reference``."""
        return ratio(self.results[name].throughput, self.results[reference].throughput)

    def cpu_ratio(self, name: str, reference: str) -> float:
        """Return how many times the CPU time of ``reference`` that of ``name`` was."""
        return ratio(self.results[name].cpu, self.results[reference].cpu)


@dataclass(frozen=True, slots=True)
class Latency:
    """How long a restorer waits for one page, in seconds.

    Attributes:
        first: from before the helper is forked, or the server connected to, to the first answer.
        warm: from a request to its answer after that.
    """

    first: Summary
    warm: Summary


@dataclass(frozen=True, slots=True)
class ColdCase:
    """An image on a disk, in seconds.

    Attributes:
        pattern: what the memory holds.
        mode: how the image is compressed.
        payload_bytes: of the image.
        read: reading the file alone, none of it in the page cache.
        warm: restoring it out of the page cache.
        cold: restoring it, none of it in the page cache.
    """

    pattern: str
    mode: str
    payload_bytes: int
    read: Summary
    warm: Summary
    cold: Summary

    @property
    def name(self) -> str:
        """How the case is called in tables."""
        return f"{self.pattern} {self.mode}"

    @property
    def overhead(self) -> float:
        """How many times the larger of reading and restoring both together took."""
        return self.cold.median / max(self.read.median, self.warm.median)


@dataclass(frozen=True, slots=True)
class PeakCase:
    """One very large request, for the peak of resident memory only."""

    mode: str
    request_bytes: int
    peak_rss_kib: int


@dataclass(frozen=True, slots=True)
class ToolCase:
    """One offline command on the checkpoint of one process.

    Attributes:
        pattern: what the memory holds.
        command: compress or decompress.
        who: does it, and how.
        ratio: memory to payload.
        throughput: GB/s of memory.
    """

    pattern: str
    command: str
    who: str
    ratio: float
    throughput: Summary


@dataclass(frozen=True, slots=True)
class MemorySample:
    """What was in memory at one moment of a restore, in bytes."""

    seconds: float
    image_bytes: int
    target_bytes: int
    helper_bytes: int


@dataclass(frozen=True, slots=True)
class DedupCase:
    """A restore from a tmpfs, with and without --auto-dedup.

    Attributes:
        pattern: what the memory holds.
        mode: how the image is compressed.
        memory_bytes: that were restored.
        payload_bytes: of the image.
        plain: GB/s without,
        dedup: with --auto-dedup.
        plain_timeline: memory over time without,
        dedup_timeline: with it.
    """

    pattern: str
    mode: str
    memory_bytes: int
    payload_bytes: int
    plain: Summary
    dedup: Summary
    plain_timeline: list[MemorySample]
    dedup_timeline: list[MemorySample]

    @property
    def name(self) -> str:
        """How the case is called in tables."""
        return f"{self.pattern} {self.mode}"

    @property
    def excess_bytes(self) -> int:
        """Peak of image and target together, over the larger of the two by itself."""
        return peak_bytes(self.dedup_timeline) - max(self.memory_bytes, self.payload_bytes)


@dataclass(frozen=True, slots=True)
class SandboxCase:
    """Restores by a helper that is confined and by one that is not.

    Attributes:
        pattern: what the memory holds.
        mode: how the image is compressed.
        off: GB/s with --sandbox off,
        on: with --sandbox on.
        ratio: times as fast as off on was, pair by pair.
    """

    pattern: str
    mode: str
    off: Summary
    on: Summary
    ratio: Summary

    @property
    def name(self) -> str:
        """How the case is called in tables."""
        return f"{self.pattern} {self.mode}"


def peak_bytes(timeline: list[MemorySample]) -> int:
    """Return the peak of image and target together."""
    return max(sample.image_bytes + sample.target_bytes for sample in timeline)


@dataclass
class Results:
    """Everything a run found.

    Attributes:
        machine: what it ran on, by name.
        settings: sizes and rounds, by name.
        cases: of the throughput.
        latencies: by helper, or way to one.
        cold: images on a disk.
        peaks: very large requests.
        dedup: restores that consume their image.
        sandbox: restores that are confined.
        tools: offline commands.
    """

    machine: dict[str, str]
    settings: dict[str, str]
    cases: list[Case] = field(default_factory=list)
    latencies: dict[str, Latency] = field(default_factory=dict)
    cold: list[ColdCase] = field(default_factory=list)
    peaks: list[PeakCase] = field(default_factory=list)
    dedup: list[DedupCase] = field(default_factory=list)
    sandbox: list[SandboxCase] = field(default_factory=list)
    tools: list[ToolCase] = field(default_factory=list)

    def to_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Results:
        """Return what :meth:`to_json` wrote.

        Raises:
            ValueError: it is of another format.
        """
        data: dict[str, Any] = json.loads(text)
        if data.get("format") != FORMAT:
            raise ValueError(f"results of format {data.get('format')}, not {FORMAT}")
        return cls(
            machine=data["machine"],
            settings=data["settings"],
            cases=[
                Case(**{**case, "results": {k: _result(v) for k, v in case["results"].items()}})
                for case in data["cases"]
            ],
            latencies={
                name: Latency(Summary(**item["first"]), Summary(**item["warm"]))
                for name, item in data["latencies"].items()
            },
            cold=[
                ColdCase(
                    **{**case, **{key: Summary(**case[key]) for key in ("read", "warm", "cold")}}
                )
                for case in data["cold"]
            ],
            peaks=[PeakCase(**case) for case in data["peaks"]],
            dedup=[_dedup_case(case) for case in data["dedup"]],
            sandbox=[_sandbox_case(case) for case in data.get("sandbox", ())],
            tools=[
                ToolCase(**{**case, "throughput": Summary(**case["throughput"])})
                for case in data["tools"]
            ],
        )


def _dedup_case(data: dict[str, Any]) -> DedupCase:
    summaries = {key: Summary(**data[key]) for key in ("plain", "dedup")}
    timelines = {
        key: [MemorySample(**sample) for sample in data[key]]
        for key in ("plain_timeline", "dedup_timeline")
    }
    return DedupCase(**{**data, **summaries, **timelines})


def _sandbox_case(data: dict[str, Any]) -> SandboxCase:
    summaries = {key: Summary(**data[key]) for key in ("off", "on", "ratio")}
    return SandboxCase(**{**data, **summaries})


def _result(data: dict[str, Any]) -> Result:
    return Result(Summary(**data["throughput"]), Summary(**data["cpu"]), data["peak_rss_kib"])
