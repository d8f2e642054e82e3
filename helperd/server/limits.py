"""What sessions may take; what a client asks for can only make it less."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

from helperd.blocks import DEFAULT_MAX_PAGES
from helperd.errors import MalformedRequest, UsageError
from helperd.modes import AUTO, NEVER, ON, PUNCH_MODES, SANDBOX_MODES, THP_MODES
from helperd.options import MAX_IDLE_SECONDS, MAX_THREADS, Options
from helperd.reports.log import DEBUG, FORMATS, TEXT

if TYPE_CHECKING:
    from collections.abc import Sequence

    from helperd.server.pb.session_pb2 import SessionRequest

#: What a client may send of its own in targets; each is pinned, which takes descriptors.
MAX_TARGETS = 64

#: Descriptors of the server: for itself, and for each session.
_OWN_FDS, _SESSION_FDS = 32, 3


@dataclass(frozen=True)
class Limits:
    """The limits of a server.

    Attributes:
        sessions: at once.
        memory_bytes: of each process of a session (RLIMIT_DATA).
        max_pages: of one request.
        threads: of one session; 0 for as many as there are CPUs.
        idle_seconds: without a byte of a request; 0 for no limit.
        sandbox: the least confinement.
    """

    sessions: int = 128
    memory_bytes: int = 1 << 30
    max_pages: int = DEFAULT_MAX_PAGES
    threads: int = 0
    idle_seconds: int = 300
    sandbox: str = ON

    def make_room(self) -> None:
        """See to it that the server can have the descriptors of so many sessions.

        Raises:
            UsageError: it may not.
        """
        needed = _OWN_FDS + _SESSION_FDS * self.sessions
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        if resource.RLIM_INFINITY != hard < needed:
            raise UsageError(
                f"--max-sessions {self.sessions} takes {needed} descriptors, {hard} are allowed:"
                " raise the limit (LimitNOFILE= of the unit, ulimit -n)"
            )
        if resource.RLIM_INFINITY != soft < needed:
            resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))

    def restrain(self) -> None:
        """Apply what the kernel enforces to this process and those it forks."""
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        if most == resource.RLIM_INFINITY or most > self.memory_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (self.memory_bytes, self.memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def grant(self, request: SessionRequest) -> Options:
        """Return the options of a session: what is asked for, within these limits.

        Raises:
            MalformedRequest: it makes no sense.
        """
        options = Options()
        options.targets = list(request.targets)
        if len(options.targets) > MAX_TARGETS:
            raise MalformedRequest(f"{len(options.targets)} targets, at most {MAX_TARGETS}")
        options.max_pages = _least(request.max_pages, self.max_pages)
        options.threads = _least(request.threads, self.threads)
        if options.threads > MAX_THREADS:
            raise MalformedRequest(f"{options.threads} threads, at most {MAX_THREADS}")
        options.idle_seconds = _least(request.idle_seconds, self.idle_seconds)
        if options.idle_seconds > MAX_IDLE_SECONDS:
            raise MalformedRequest(
                f"idle_seconds {options.idle_seconds}, at most {MAX_IDLE_SECONDS}"
            )
        options.thp = _choice("thp", request.thp, THP_MODES, AUTO)
        options.punch = _choice("punch", request.punch, PUNCH_MODES, NEVER)
        sandbox = _choice("sandbox", request.sandbox, SANDBOX_MODES, self.sandbox)
        options.sandbox = max(sandbox, self.sandbox, key=SANDBOX_MODES.index)
        options.log_layout = _choice("log_layout", request.log_layout, FORMATS, TEXT)
        options.holes_are_zeros = request.holes_are_zeros
        options.verbosity = min(request.verbosity, DEBUG)
        return options


def _least(asked: int, limit: int) -> int:
    """Return the smaller of two limits, of which 0 is none."""
    return min(asked, limit) if asked and limit else asked or limit


def _choice(name: str, asked: str, choices: Sequence[str], default: str) -> str:
    if asked and asked not in choices:
        raise MalformedRequest(f"{name} {asked!r}: one of {', '.join(choices)}")
    return asked or default
