"""Frees in the images of earlier dumps what new ones supersede, when these are safe."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from helperd.errors import HelperdError
from helperd.images.chain import ancestors
from helperd.images.received import ReceivedDirectory
from helperd.images.records import os_failure
from helperd.offline.dedup import plan_files, punch_files
from helperd.offline.switch import locked

if TYPE_CHECKING:
    from collections.abc import Collection

    from helperd.reports.log import Log


def free_superseded(path: str, names: Collection[str], log: Log) -> int:
    """Punch out of the parents what they need not keep for the pagemaps that have been received.

    It is the rule of ``helperd dedup``, for these pagemaps only: whether others belong to tasks
    that are gone cannot be known while sessions come and go. Nothing is lost if it fails, so that
    is a warning.

    Args:
        path: the directory that was received, in effect and on disk.
        names: of the pagemaps.
        log: says what was freed, or why not.

    Returns:
        The bytes that were freed.
    """
    freed = 0
    try:
        directories = list(ancestors(ReceivedDirectory(path)))
        with contextlib.ExitStack() as stack:
            for directory in directories[1:]:
                stack.enter_context(locked(directory.path))
            plans = list(plan_files(directories, names))
            for plan in punch_files(plans, os.stat(path).st_uid):
                freed += plan.file.freed_bytes
    except (HelperdError, OSError) as error:
        failure = os_failure(error, path) if isinstance(error, OSError) else error
        log.warning(f"nothing more is freed in the parents: {failure}", event="no-dedup")
    else:
        log.info(f"{freed} bytes freed in {len(directories) - 1} parents", event="dedup")
    return freed
