"""What a session of the page server may do: it writes below its directories, and no more."""

from __future__ import annotations

import os
import sys
from array import array
from typing import TYPE_CHECKING

from helperd.codec.encode import Encoder
from helperd.confined import landlock, seccomp
from helperd.confined.confine import take_away
from helperd.images.directory import PARENT_NAME, chain_paths
from helperd.kernel import privileges
from helperd.modes import OFF

if TYPE_CHECKING:
    from helperd.page_server.storage import Storage
    from helperd.reports.log import Log

#: To read and write the images, whoever they belong to.
_CAPABILITIES = (
    privileges.CAP_DAC_OVERRIDE,
    privileges.CAP_DAC_READ_SEARCH,
    privileges.CAP_FOWNER,
)


def confine_session(mode: str, storage: Storage, log: Log, *, writes: bool) -> None:
    """Confine this process, which must have one thread only, before it reads what a client sends.

    Args:
        mode: one of SANDBOX_MODES.
        storage: says which directories.
        log: for one line on what is in force.
        writes: whether images are written; or else they are only read.

    Raises:
        ResourceError: with STRICT, something could not be put in force.
    """
    if mode != OFF:
        _load_libraries(storage)
    parents = _parents(storage)
    writable = [storage.path] if writes else []
    if storage.dedup and writes:
        writable += parents
    # Python's own modules may be imported later.
    readable = [storage.path, *parents, *filter(None, sys.path)]
    take_away(
        mode,
        _CAPABILITIES,
        lambda: seccomp.load_door(os.getpid()),
        log,
        stay_in=lambda: landlock.restrict(writable, readable),
    )


def _load_libraries(storage: Storage) -> None:
    """Load what could not be loaded any more: no memory can be made executable."""
    import helperd.offline.complete
    import helperd.page_server.dedup  # noqa: F401

    encoder = Encoder(storage.acceleration, per_page=not storage.region_pages)
    encoder.encode(array("H", [1]))


def _parents(storage: Storage) -> list[str]:
    """Return the directories of all dumps before, as far as there are any."""
    link = os.path.join(storage.path, PARENT_NAME)
    if storage.parent is not None and not os.path.lexists(link):
        link = os.path.join(storage.path, storage.parent)
    return chain_paths(link)
