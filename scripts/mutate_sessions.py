#!/usr/bin/env python3
"""Hold mutated sessions with the page server: all pages, or a clean error and nothing left.

Usage: scripts/mutate_sessions.py [N [SEED]]
"""

from __future__ import annotations

import os
import pathlib
import random
import resource
import sys
import tempfile
from collections import Counter

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from helperd.wire.page_messages import Layout
from tests.page_server.mutations import STORAGES, Bench, mutate, session

_WARM = 200


def main() -> int:
    """Run the script; return its exit status."""
    count, seed = (int(text) for text in (*sys.argv[1:], "20000", "1")[:2])
    choose = random.Random(seed).randrange
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        bench = Bench(pathlib.Path(folder))
        peak = fds = 0
        for index in range(count):
            if index == _WARM:
                peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
                fds = len(os.listdir("/proc/self/fd"))
            stream = mutate(session(list(Layout)[choose(2)]), choose)
            outcomes[bench.check(stream, STORAGES[choose(len(STORAGES))])] += 1
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    more = len(os.listdir("/proc/self/fd")) - fds
    print(f"{dict(outcomes)}; {growth} KiB more after the first {_WARM}, {more} descriptors more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
