"""Who may copy pages into processes, and when: many threads at once, but for short moments none.

The kernel promises that no copy succeeds while an event waits to be read. The time between reading
an event and having acted on it is ours to guard: a copy that began then would bring back what
madvise has just thrown away. So whoever copies is in a lane of his own, and whoever reads events,
or closes a userfaultfd, waits until all lanes are empty and lets nobody in meanwhile.
"""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class Gate:
    """A context manager: within it nobody is in a lane. Not to be entered from within a lane."""

    def __init__(self) -> None:
        self._lanes: list[threading.Lock] = []

    def lane(self) -> threading.Lock:
        """Return a new lane, to be held while copying; for one thread, before any copies."""
        lane = threading.Lock()
        self._lanes.append(lane)
        return lane

    def __enter__(self) -> Self:
        for lane in self._lanes:
            lane.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        for lane in self._lanes:
            lane.release()
