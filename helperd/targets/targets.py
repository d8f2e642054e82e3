"""The processes that requests have named."""

from __future__ import annotations

from helperd.targets.target import Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from helperd.reports.log import Log
    from helperd.targets.hold import Hold

#: After so many new targets those that are dead are forgotten: each has four descriptors.
_NEW_TARGETS = 16


class Targets:
    """The processes that requests have named so far, each pinned when it was first named.

    The dead are forgotten, a few at a time: a restorer may restore one process after the other.

    Args:
        pin: returns a hold on a process that may be written to, or raises TargetGone or
            NotPermitted.
        log: for warnings.
    """

    def __init__(self, pin: Callable[[int], Hold], log: Log) -> None:
        self._pin = pin
        self._log = log
        self._pinned: dict[int, Target] = {}
        self._n_new = 0

    def get(self, pid: int) -> Target:
        """Return the pinned target of a request, which looks whether it lives before each write.

        Raises:
            NotPermitted: ``pid`` is not the helper's to write to.
            TargetGone: there is no such process.
        """
        target = self._pinned.get(pid)
        if target is None:
            self._make_room()
            target = self._pinned[pid] = Target(self._pin(pid), self._log)
        return target

    def _make_room(self) -> None:
        self._n_new += 1
        if self._n_new % _NEW_TARGETS == 0:
            self._pinned = {
                pid: target for pid, target in self._pinned.items() if target.pidfd.is_alive()
            }
