"""What is taken from this process before it reads what CRIU or a shard sends."""

from __future__ import annotations

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


def confine() -> None:
    """Give up what is not needed; to be called once all programs are started, before any thread.

    What the kernel refuses is told on stderr.
    """
    take_away(ON, CAPABILITIES, None, Log(WARNING))
