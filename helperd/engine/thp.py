"""Huge pages for the target: collapse dense windows before they are written.

Where the kernel faults and zeroes 512 small pages for a window, it can fault one huge page, and
writing into that is several times as fast. MADV_COLLAPSE asks for it explicitly, whatever the
system's policy is; whether we ask is ours.
"""

from __future__ import annotations

import errno
import posix as os
from array import array

from helperd.engine.plan import WINDOW_BYTES
from helperd.kernel.syscalls import process_madvise_collapse
from helperd.modes import AUTO, NEVER

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.targets.target import Target

_ENABLED = "/sys/kernel/mm/transparent_hugepage/enabled"
_MAX_POLICY = 100
#: These say that it will not work for any window; all others concern one window only.
_HOPELESS = (errno.ENOSYS, errno.EPERM)


class Collapser:
    """Collapses windows of targets as the mode says.

    ``auto`` does what the kernel's own policy is for the memory in question: everywhere with
    "always", where the mapping asked for it with "madvise", nowhere with "never". Whatever the
    kernel refuses is left as it is, silently: the pages are written either way.

    Attributes:
        collapsed: windows collapsed so far.
    """

    def __init__(self, mode: str) -> None:
        policy = _system_policy() if mode == AUTO else mode
        self._active = policy != NEVER
        self._only_advised = policy == "madvise"
        self.collapsed = 0

    def looks_at(self, target: Target) -> bool:
        """Return whether it makes sense to look for windows of ``target`` at all."""
        return self._active and (not self._only_advised or bool(target.advised))

    def collapse(self, target: Target, window: int) -> None:
        """Make the window at address ``window`` a huge page, if that is wanted and possible."""
        if not self._active:
            return
        if self._only_advised and not target.wants_huge_pages(window, window + WINDOW_BYTES):
            return
        if not target.touch(window):
            return
        error = process_madvise_collapse(target.pidfd.fd, array("Q", (window, WINDOW_BYTES)))
        if not error:
            self.collapsed += 1
        elif error in _HOPELESS:
            self._active = False


def _system_policy() -> str:
    """Return always, madvise or never: the bracketed word of the kernel's setting."""
    try:
        fd = os.open(_ENABLED, os.O_RDONLY | os.O_CLOEXEC)
        try:
            words = os.read(fd, _MAX_POLICY).decode()
        finally:
            os.close(fd)
    except OSError:
        return NEVER
    return words.partition("[")[2].partition("]")[0] or NEVER
