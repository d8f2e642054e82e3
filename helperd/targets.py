"""Who may be written to: the helper's spawner, its descendants, and who was named."""

from __future__ import annotations

import os

from helperd import procfs
from helperd.errors import NotPermitted, TargetGone
from helperd.pidfd import Pidfd
from helperd.target import Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from helperd.log import Log

_INIT = 1


class Spawner:
    """The process that started the helper, pinned when the helper started.

    The real restorer is the helper's parent and its own target. An orphan is adopted by init,
    and everything descends from init; so on the machine itself init is no spawner. Inside a
    container pid 1 is a process like any other, often the one being restored.
    """

    def __init__(self) -> None:
        self.pid = os.getppid()
        self._pidfd: Pidfd | None = None
        if self.pid == _INIT and procfs.in_initial_pid_namespace():
            return
        try:
            pidfd = Pidfd(self.pid)
        except TargetGone:
            return
        if os.getppid() == self.pid:
            self._pidfd = pidfd

    def is_alive(self) -> bool:
        """Return whether the spawner is known and lives, so that its pid is its own."""
        return self._pidfd is not None and self._pidfd.is_alive()

    def is_ancestor_of(self, target: Target) -> bool:
        """Return whether ``target`` is the spawner itself or descends from it."""
        if self._pidfd is None:
            return False
        if target.pid == self.pid:
            return self.is_alive()
        spawner = procfs.pid_in_proc(self._pidfd)
        number = procfs.pid_in_proc(target.pidfd)
        while number is not None and spawner is not None:
            if number == spawner:
                return self.is_alive()
            number = procfs.parent_in_proc(number)
        return False


class Targets:
    """The processes that requests have named so far, each pinned when it was first named.

    Args:
        spawner: of the helper.
        own_pids: the helper's own processes, which are never written to.
        named: pids that the caller of the helper allowed explicitly (``--target``); they are
            pinned at once.
        log: for warnings.
    """

    def __init__(
        self, spawner: Spawner, own_pids: Iterable[int], named: Iterable[int], log: Log
    ) -> None:
        self._spawner = spawner
        self._own_pids = frozenset(own_pids)
        self._log = log
        self._pinned: dict[int, Target] = {}
        for pid in named:
            self._refuse_self(pid)
            self._pinned[pid] = Target(pid, log)

    def get(self, pid: int) -> Target:
        """Return the pinned target of a request.

        Raises:
            NotPermitted: ``pid`` is not the helper's to write to.
            TargetGone: there is no such process, or it is not any more the one that was pinned.
        """
        target = self._pinned.get(pid)
        if target is None:
            self._refuse_self(pid)
            target = Target(pid, self._log)
            # Judged after it was pinned: the verdict is about the process we hold.
            if not self._spawner.is_ancestor_of(target):
                raise NotPermitted(
                    f"process {pid} is neither the spawner of this helper ({self._spawner.pid})"
                    f" nor a descendant of it: allow it with --target {pid}"
                )
            self._pinned[pid] = target
        target.check_alive()
        return target

    def _refuse_self(self, pid: int) -> None:
        if pid in self._own_pids:
            raise NotPermitted(f"process {pid} is the helper itself")
