"""What is taken from this process before it reads what CRIU or a shard sends."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from helperd.confined import landlock, seccomp
from helperd.confined.confine import take_away
from helperd.kernel import privileges
from helperd.modes import ON
from helperd.reports.log import WARNING, Log

#: To read and write images, whoever they belong to, and to let pipes hold more.
CAPABILITIES = (
    privileges.CAP_DAC_OVERRIDE,
    privileges.CAP_DAC_READ_SEARCH,
    privileges.CAP_FOWNER,
    privileges.CAP_SYS_RESOURCE,
)


def confine(
    writable: Sequence[str],
    readable: Sequence[str] = (),
    *,
    emptied: Sequence[str] = (),
    pids: Sequence[int] = (),
) -> None:
    """Give up what is not needed; to be called once all programs are started, before any thread.

    What the kernel refuses is told on stderr.

    Args:
        writable: directories below which images are written.
        readable: directories below which they are read.
        emptied: directories below which empty directories are removed.
        pids: of what was started, and may have to be ended.
    """
    # Python's own modules may be imported later.
    readable = [*readable, *filter(None, sys.path)]
    take_away(
        ON,
        CAPABILITIES,
        lambda: seccomp.load_stream(os.getpid(), pids),
        Log(WARNING),
        stay_in=lambda: landlock.restrict(writable, readable, emptied=emptied, signals=bool(pids)),
    )
