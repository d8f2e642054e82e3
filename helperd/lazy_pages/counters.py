"""What the daemon counts, and how it tells of it."""

from __future__ import annotations

import threading
import time
from array import array

#: Why a page is brought: it is near one that was asked for, it was recorded, it is there.
FAULT, PREFETCH, FILL = "fault", "prefetch", "fill"

#: So many times of faults are kept; beyond, every other one is dropped and half of the rest noted.
_MOST_TIMES = 1 << 14
_MOST_SAMPLES = 512
_QUANTILES = (50, 90, 99, 100)


class Tally:
    """Counts pages as they come, for one reason; a thread counts before anybody sees them there.

    Args:
        counters: of the daemon.
        why: FAULT, PREFETCH or FILL.
    """

    __slots__ = ("_counters", "_why")

    def __init__(self, counters: Counters, why: str) -> None:
        self._counters = counters
        self._why = why

    def add(self, pages: int) -> None:
        """Count pages."""
        if pages:
            self._counters.brought(pages, self._why)


class Counters:
    """Numbers of one daemon.

    Attributes:
        faults: answered.
        by_fault: pages brought because one of them was asked for.
        by_fill: pages brought by the fill.
        by_prefetch: pages brought because they were recorded.
        zero_faults: faults answered with a zero page, as nothing was dumped there.
        unwatched: pages that had nowhere to go any more.
        lost: pages that could not be read and were marked as lost.
    """

    def __init__(self) -> None:
        self.faults = 0
        self.zero_faults = 0
        self.by_fault = 0
        self.by_fill = 0
        self.by_prefetch = 0
        self.unwatched = 0
        self.lost = 0
        self._begun = time.monotonic()
        self._finished_at = 0.0
        self._last_at = 0.0
        self._micros = array("I")
        self._stride = 1
        self._samples: list[tuple[float, int, int]] = []
        self._sample_seconds = 0.002
        self._lock = threading.Lock()

    @property
    def pages(self) -> int:
        """All pages that were brought."""
        return self.by_fault + self.by_fill + self.by_prefetch

    def restore_finished(self) -> None:
        """Note that the process runs."""
        if not self._finished_at:
            self._finished_at = time.monotonic()

    def fault(self, seconds: float, pages: int) -> None:
        """Count a fault that took ``seconds`` from when it was read and brought ``pages``."""
        with self._lock:
            self.faults += 1
            self.by_fault += pages
            if self.faults % self._stride == 0:
                self._micros.append(int(seconds * 1e6))
                if len(self._micros) >= _MOST_TIMES:
                    self._micros = self._micros[::2]
                    self._stride *= 2
            self._sample()

    def brought(self, pages: int, why: str) -> None:
        """Count pages that nobody had to wait for, brought for one of FAULT, PREFETCH, FILL."""
        with self._lock:
            if why == FILL:
                self.by_fill += pages
            elif why == PREFETCH:
                self.by_prefetch += pages
            else:
                self.by_fault += pages
            self._sample()

    def _sample(self) -> None:
        now = self._last_at = time.monotonic()
        samples = self._samples
        if samples and now - samples[-1][0] < self._sample_seconds:
            return
        samples.append((now, self.pages, self.faults))
        if len(samples) >= _MOST_SAMPLES:
            del samples[::2]
            self._sample_seconds *= 2

    def report(self) -> dict[str, object]:
        """Return everything as an object for JSON; times in seconds and microseconds."""
        times = sorted(self._micros)
        quantiles = {
            f"p{q}" if q < 100 else "max": times[min(len(times) * q // 100, len(times) - 1)]
            for q in _QUANTILES
            if times
        }
        start = self._finished_at or self._begun
        samples = [*self._samples, (self._last_at or start, self.pages, self.faults)]
        return {
            "faults": self.faults,
            "zero_faults": self.zero_faults,
            "pages_by_fault": self.by_fault,
            "pages_by_fill": self.by_fill,
            "pages_by_prefetch": self.by_prefetch,
            "pages_unwatched": self.unwatched,
            "pages_lost": self.lost,
            "fault_us": quantiles,
            "seconds_to_last_page": round(max(0.0, self._last_at - start), 6),
            "timeline": [[round(at - start, 6), pages, faults] for at, pages, faults in samples],
        }
