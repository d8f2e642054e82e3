"""What is taken from this process before it reads what CRIU or a shard sends."""

from __future__ import annotations

import sys

from helperd.kernel import privileges

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
    for what, step in (
        ("no new privileges", privileges.set_no_new_privileges),
        ("reduced capabilities", lambda: privileges.limit_capabilities(CAPABILITIES)),
        ("not dumpable", privileges.set_not_dumpable),
    ):
        try:
            step()
        except OSError as error:
            print(f"helperd: not confined: {what}: {error.strerror}", file=sys.stderr)
