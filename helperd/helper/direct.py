"""The directly spawned helper: takes what its command line names, and has a worker serve it."""

from __future__ import annotations

import os

import prctl

from helperd.errors import HelperdError
from helperd.helper.answers import answer_failure
from helperd.helper.descriptors import open_pages, pipe_fds
from helperd.helper.session import run_session
from helperd.reports.openlog import open_log
from helperd.reports.stats import End
from helperd.reports.statsfile import open_stats, write_stats
from helperd.targets.targets import Spawner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.options import Options


def run(options: Options) -> int:
    """Serve as ``options`` say, in a worker process; return the exit code.

    When this returns, no process of the helper but the caller is left.
    """
    pid = os.getppid()
    spawner = Spawner(pid, lambda: os.getppid() == pid)
    log = open_log(options.verbosity, options.log_file, options.log_layout)
    stats_fd = open_stats(options.stats)
    prctl.set_name("helperd")
    request_fd, reply_fd = pipe_fds(options)
    try:
        pages_fd = open_pages(options)
    except HelperdError as error:
        log.error(str(error), event="failed", errno=error.errno)
        # Whatever the restorer has begun to write is not read: it may be in the middle of it.
        answer_failure(request_fd, reply_fd, error, mid_request=True)
        end = End(error.exit_code, str(error), {})
    else:
        end = run_session(pages_fd, request_fd, reply_fd, spawner=spawner, options=options, log=log)
    if stats_fd is not None:
        write_stats(stats_fd, end.to_json())
    return end.exit_code
