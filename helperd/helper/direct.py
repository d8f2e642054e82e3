"""The directly spawned helper: takes what its command line names, and has a worker serve it."""

from __future__ import annotations

import posix as os

from helperd.errors import HelperdError
from helperd.helper.descriptors import check_outputs, open_pages, pipe_fds, prepare_pages
from helperd.helper.session import run_session
from helperd.kernel.descriptors import close_all_but
from helperd.reports.openlog import open_log
from helperd.reports.statsfile import empty_stats, open_stats, write_stats

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.options import Options


def run(options: Options) -> int:
    """Serve as ``options`` say, in a worker process; return the exit code.

    When this returns, no process of the helper but the caller is left.
    """
    spawner = os.getppid()
    log = open_log(options.verbosity, options.log_file, options.log_layout)
    stats_fd = open_stats(options.stats)
    request_fd, reply_fd = pipe_fds(options)
    try:
        pages_fd = open_pages(options)
        prepare_pages(pages_fd, "that was given")
    except HelperdError as error:
        from helperd.helper.answers import fail

        end = fail(request_fd, reply_fd, error, log)
    else:
        check_outputs(pages_fd, (("--stats", stats_fd), ("the log", log.fd)))
        empty_stats(stats_fd)
        stats_fds = [] if stats_fd is None else [stats_fd]
        # What a spawner has let slip through, the other ends of our pipes perhaps, is not ours.
        close_all_but((pages_fd, request_fd, reply_fd, *log.fds, *stats_fds))
        end = run_session(
            pages_fd,
            request_fd,
            reply_fd,
            spawner=spawner,
            is_spawner=lambda: os.getppid() == spawner,
            name="helperd",
            options=options,
            log=log,
        )
    if stats_fd is not None:
        write_stats(stats_fd, end.to_json())
    return end.exit_code
