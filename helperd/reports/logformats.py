"""The log for programs: JSON objects, and datagrams of journald's native protocol."""

from __future__ import annotations

import json
import os
import socket
import time

from helperd.reports.log import DEBUG, ERROR, INFO, JOURNAL, JSON, LEVEL_NAMES, WARNING, Record

_JOURNAL_SOCKET = "/run/systemd/journal/socket"
#: As syslog numbers them.
_PRIORITIES = {ERROR: 3, WARNING: 4, INFO: 6, DEBUG: 7}


def json_line(record: Record) -> bytes:
    """Return one object, in a line of its own. ``time`` is seconds since 1970."""
    line = {
        "time": round(time.time(), 6),
        "elapsed": round(record.elapsed, 6),
        "level": LEVEL_NAMES[record.level],
        "process": record.process,
        "pid": os.getpid(),
        "event": record.event,
        "message": record.message,
        **record.fields,
    }
    return json.dumps(line).encode() + b"\n"


def journal_datagram(record: Record) -> bytes:
    """Return a datagram with the record's fields; see systemd's JOURNAL_NATIVE_PROTOCOL."""
    fields = {
        "MESSAGE": record.message,
        "PRIORITY": _PRIORITIES[record.level],
        "SYSLOG_IDENTIFIER": record.process,
        "HELPERD_EVENT": record.event,
        **{f"HELPERD_{name.upper()}": value for name, value in record.fields.items()},
    }
    # No value has line ends: then the simple form of the protocol does.
    lines = "".join(f"{name}={' '.join(str(value).split())}\n" for name, value in fields.items())
    return lines.encode("utf-8", "backslashreplace")


def connect_journal() -> int:
    """Return a descriptor that takes journald's datagrams.

    Raises:
        OSError: journald does not run here.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect(_JOURNAL_SOCKET)
        connection.setblocking(False)
        return connection.detach()


LAYOUTS = {JSON: json_line, JOURNAL: journal_datagram}
