"""Who may be written to: the helper's spawner, its descendants, and who was named."""

from __future__ import annotations

from helperd.errors import NotPermitted, TargetGone
from helperd.kernel import procfs
from helperd.kernel.pidfd import Pidfd
from helperd.targets.hold import Hold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

_INIT = 1


class Spawner:
    """The process that started the helper, pinned when the helper started.

    The real restorer is the helper's parent and its own target. An orphan is adopted by init,
    and everything descends from init; so on the machine itself init is no spawner. Inside a
    container pid 1 is a process like any other, often the one being restored.

    Args:
        pid: the process.
        is_still: asked once it is pinned: whether ``pid`` is the spawner's, still.
    """

    def __init__(self, pid: int, is_still: Callable[[], bool]) -> None:
        self.pid = pid
        self._pidfd: Pidfd | None = None
        if pid == _INIT and procfs.in_initial_pid_namespace():
            return
        try:
            pidfd = Pidfd.open(pid)
        except TargetGone:
            return
        if is_still():
            self._pidfd = pidfd

    def is_alive(self) -> bool:
        """Return whether the spawner is known and lives, so that its pid is its own."""
        return self._pidfd is not None and self._pidfd.is_alive()

    def is_ancestor_of(self, process: Hold) -> bool:
        """Return whether ``process`` is the spawner itself or descends from it."""
        if self._pidfd is None:
            return False
        if process.pid == self.pid:
            return self.is_alive()
        spawner = procfs.pid_in_proc(self._pidfd)
        number = procfs.pid_in_proc(process.pidfd)
        while number is not None and spawner is not None:
            if number == spawner:
                return self.is_alive()
            number = procfs.parent_in_proc(number)
        return False


class Permissions:
    """Pins the processes that may be written to. Lives in the parent, which may open files.

    Args:
        spawner: of the helper.
        named: pids that the caller of the helper allowed explicitly (``--target``); they are
            pinned at once.
        descendants: whether descendants of the spawner may be written to.

    Attributes:
        own_pids: the helper's own processes, which are never written to.

    Raises:
        TargetGone, NotPermitted: a named process cannot be pinned.
    """

    def __init__(
        self, spawner: Spawner, own_pid: int, named: Iterable[int], *, descendants: bool = True
    ) -> None:
        self._spawner = spawner
        self._descendants = descendants
        self.own_pids = {own_pid}
        self._named: dict[int, Hold] = {}
        for pid in named:
            self._refuse_self(pid)
            self._named[pid] = Hold.open(pid)

    def pin(self, pid: int) -> Hold:
        """Return a hold on process ``pid``.

        Raises:
            NotPermitted: ``pid`` is not the helper's to write to.
            TargetGone: there is no such process.
        """
        hold = self._named.get(pid)
        if hold is not None:
            return hold
        self._refuse_self(pid)
        hold = Hold.open(pid)
        # Judged after it was pinned: the verdict is about the process we hold.
        if not self._spawner.is_ancestor_of(hold):
            if procfs.pid_in_proc(hold.pidfd) is None and hold.pidfd.is_alive():
                raise NotPermitted(
                    f"process {pid} is not the spawner of this helper ({self._spawner.pid}), and"
                    " /proc does not show whether it descends from it: allow it with"
                    f" --target {pid}"
                )
            raise NotPermitted(
                f"process {pid} is neither the spawner of this helper ({self._spawner.pid})"
                f" nor a descendant of it: allow it with --target {pid}"
            )
        if not (self._descendants or pid == self._spawner.pid):
            raise NotPermitted(
                f"process {pid} is not the spawner of this helper ({self._spawner.pid}):"
                f" with --sandbox strict it has to be allowed with --target {pid}"
            )
        return hold

    def _refuse_self(self, pid: int) -> None:
        if pid in self.own_pids:
            raise NotPermitted(f"process {pid} is the helper itself")
