"""The messages between a server and its clients, by the numbers of their fields.

The one place besides protos/helperd/server/pb/session.proto, which says what they mean, that
knows them; a client reads and writes them with :mod:`helperd.wire.protobuf`, since the protobuf
library takes longer to import than a restore may wait.
"""

from __future__ import annotations

#: Of the protocol; both sides must speak the same.
VERSION = 1

#: Descriptors that go with a request: the pages image, the request pipe, the reply pipe, and maybe
#: a log.
N_FDS, MAX_FDS = 3, 4

#: Bytes of the longest request and of the longest reply.
MAX_REQUEST, MAX_REPLY = 1 << 12, 1 << 14

#: Fields of SessionRequest, in the order of their numbers.
(
    REQUEST_VERSION,
    REQUEST_FOR_PARENT,
    REQUEST_TARGETS,
    REQUEST_MAX_PAGES,
    REQUEST_THREADS,
    REQUEST_THP,
    REQUEST_PUNCH,
    REQUEST_SANDBOX,
    REQUEST_IDLE_SECONDS,
    REQUEST_VERBOSITY,
    REQUEST_LOG_LAYOUT,
    REQUEST_HOLES_ARE_ZEROS,
) = range(1, 13)

#: Fields of SessionReply.
REPLY_STARTED, REPLY_ENDED = 1, 2
#: Fields of SessionStarted.
STARTED_WORKER_PID = 1
#: Fields of SessionEnd.
ENDED_EXIT_CODE, ENDED_ERRNO, ENDED_REASON, ENDED_STATS = 1, 2, 3, 4
