"""Options that CRIU's own daemons have, with CRIU's names and meanings, and what they stand for."""

from __future__ import annotations

import argparse
import os

from helperd.commands import arguments as values
from helperd.errors import UsageError
from helperd.reports.log import DEBUG, DEFAULT_LEVEL, JOURNAL, JSON, TEXT
from helperd.reports.openlog import open_log

TYPE_CHECKING = False
if TYPE_CHECKING:
    # Imported where they are needed: a restore on demand waits for this module.
    import socket
    import ssl
    from collections.abc import Sequence
    from typing import Any

    from helperd.reports.log import Log

_LOOPBACK = "127.0.0.1"
_BACKLOG = 128
#: Where CRIU looks for the files of TLS.
_CA_CERT, _CA_CRL = "/etc/pki/CA/cacert.pem", "/etc/pki/CA/cacrl.pem"
_CERT, _KEY = "/etc/pki/criu/cert.pem", "/etc/pki/criu/private/key.pem"


class _Verbosity(argparse.Action):
    """``-v4``, ``--verbosity=4``, or one more for each ``v``."""

    def __call__(
        self,
        _parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option: str | None = None,
    ) -> None:
        """Take one occurrence."""
        text = str(values or "")
        if text.isdecimal() and len(text) < 4:
            level = int(text)
        elif not text.strip("v"):
            level = (namespace.verbosity or DEFAULT_LEVEL) + 1 + len(text)
        else:
            raise argparse.ArgumentError(self, f"{text!r}: 0 to {DEBUG}")
        namespace.verbosity = min(level, DEBUG)


def add_daemon_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of where a daemon works, what it says, and how it starts."""
    parser.add_argument(
        *("-D", "--images-dir"), metavar="DIR", default=".", help="image directory (default .)"
    )
    parser.add_argument(
        *("-W", "--work-dir"),
        metavar="DIR",
        help="where the log and the pid file are (default: the image directory)",
    )
    parser.add_argument(
        *("-o", "--log-file"), metavar="FILE", help="log to FILE, relative to the work directory"
    )
    parser.add_argument(
        *("-v", "--verbosity"),
        metavar="0..4",
        nargs="?",
        action=_Verbosity,
        help="of the log: -v4, or one more for each v (default 2: warnings)",
    )
    parser.add_argument("--log-json", action="store_true", help="log JSON objects, one in a line")
    parser.add_argument("--journal", action="store_true", help="log to journald")
    parser.add_argument(
        *("-d", "--daemon"), action="store_true", help="go to the background once it listens"
    )
    parser.add_argument(
        "--pidfile", metavar="FILE", help="write the pid to FILE, relative to the work directory"
    )
    parser.add_argument(
        "--status-fd",
        metavar="FD",
        type=values.descriptor,
        help="write a zero byte to this descriptor once it listens",
    )
    parser.add_argument(
        "--no-default-config",
        action="store_true",
        help="as criu has it; helperd reads no configuration in any case",
    )


def add_address_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of the network: an address, and TLS."""
    parser.add_argument(
        "--address", metavar="ADDRESS", default=_LOOPBACK, help=f"default {_LOOPBACK}"
    )
    parser.add_argument(
        "--port",
        metavar="PORT",
        type=values.number(0, 65535),
        help="0: one that is free, see the log",
    )
    parser.add_argument(
        "--tls", action="store_true", help="speak TLS, with certificates on both sides"
    )
    for name, default, what in (
        ("cacert", _CA_CERT, "of the authority that has signed the other side's"),
        ("cacrl", _CA_CRL, "certificates of it that are not valid any more"),
        ("cert", _CERT, "our own certificate"),
        ("key", _KEY, "its key"),
    ):
        parser.add_argument(f"--tls-{name}", metavar="FILE", help=f"{what} (default {default})")
    parser.add_argument(
        "--tls-no-cn-verify",
        action="store_true",
        help="do not compare the name in the other side's certificate with its address",
    )


def work_path(arguments: argparse.Namespace, name: str) -> str:
    """Return a path that is relative to the work directory."""
    return os.path.abspath(os.path.join(arguments.work_dir or arguments.images_dir, name))


def open_daemon_log(arguments: argparse.Namespace) -> Log:
    """Return the log that the options ask for.

    Raises:
        UsageError: it cannot be opened.
    """
    if arguments.journal and arguments.log_file:
        raise UsageError("--journal and --log-file exclude each other")
    layout = JOURNAL if arguments.journal else JSON if arguments.log_json else TEXT
    level = DEFAULT_LEVEL if arguments.verbosity is None else arguments.verbosity
    path = work_path(arguments, arguments.log_file) if arguments.log_file else None
    return open_log(level, path, layout)


def listen(arguments: argparse.Namespace) -> socket.socket:
    """Return a socket that listens where the options say.

    Raises:
        UsageError: it cannot.
    """
    import socket

    address, port = arguments.address, arguments.port
    if not 0 <= port <= 0xFFFF:
        raise UsageError(f"--port {port}: 0 to 65535")
    listener = None
    try:
        found = socket.getaddrinfo(
            address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE | socket.AI_NUMERICHOST
        )
        family, kind, protocol, _, where = found[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(where)
        listener.listen(_BACKLOG)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise UsageError(f"cannot listen at {address} port {port}: {error.strerror}") from error
    return listener


def server_tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    """Return the TLS of the side that is connected to; None without --tls.

    Raises:
        UsageError: a certificate or a key cannot be used.
    """
    if not arguments.tls:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    _load_files(context, arguments)
    return context


def client_tls(arguments: argparse.Namespace) -> ssl.SSLContext | None:
    """Return the TLS of the side that connects; None without --tls.

    Raises:
        UsageError: a certificate or a key cannot be used.
    """
    if not arguments.tls:
        return None
    import ssl

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = not arguments.tls_no_cn_verify
    _load_files(context, arguments)
    return context


def _load_files(context: ssl.SSLContext, arguments: argparse.Namespace) -> None:
    import ssl

    revoked = arguments.tls_cacrl or (_CA_CRL if os.path.exists(_CA_CRL) else None)
    try:
        context.load_verify_locations(arguments.tls_cacert or _CA_CERT)
        context.load_cert_chain(arguments.tls_cert or _CERT, arguments.tls_key or _KEY)
        if revoked is not None:
            context.load_verify_locations(revoked)
            context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--tls: cannot use a certificate or a key: {error}") from error
