"""Many checkpoints on the workers of a Dask scheduler; which worker does what is its business.

A task is one checkpoint, so a chain stays together. Tasks are repeated where a worker died; what
was done is found to be done, so nothing is done twice. Source of the interface: the documentation
of Dask distributed, "Client" and "Managing Computation".
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit

from helperd.errors import EXIT_RESOURCES, ResourceError, UsageError
from helperd.fleet.find import Checkpoint, find_checkpoints
from helperd.fleet.jobs import FAILED, Outcome, Wish, carry_out

#: How often a task is begun again when its worker was lost.
RETRIES = 3
_CONNECT_SECONDS = 30


@contextlib.contextmanager
def connected(scheduler: str | None, workers: int) -> Iterator[Any]:
    """Give a Dask client: of a scheduler's address, or of a cluster on this machine.

    Args:
        scheduler: its address; None for processes of our own.
        workers: of those.

    Raises:
        UsageError: Dask is not installed.
        ResourceError: nobody answers at that address.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise UsageError("fleet needs Dask: pip install 'helperd[fleet]'") from error
    with contextlib.ExitStack() as stack:
        address: Any = scheduler
        if scheduler is None:
            address = LocalCluster(n_workers=workers, threads_per_worker=1, dashboard_address=None)
            stack.callback(_close, address)
        try:
            client = Client(address, timeout=_CONNECT_SECONDS)
        except OSError as error:
            raise ResourceError(f"no scheduler answers at {scheduler}: {error}") from error
        stack.callback(_close, client)
        yield client


def _close(peer: Any) -> None:
    """Leave a client or a cluster; whoever does not answer any more is not waited for."""
    with contextlib.suppress(OSError, TimeoutError):
        peer.close()


def find_on(client: Any, sources: Sequence[tuple[str | None, str]]) -> list[tuple[str, Checkpoint]]:
    """Return the checkpoints of every source, with the host that they lie on ("" for any).

    Args:
        client: of Dask.
        sources: (host, folder); with no host the folder is the same for all workers.

    Raises:
        HelperdError: a folder cannot be read, or no worker is on that host.
    """
    futures = [
        (host or "", client.submit(find_checkpoints, folder, **_where(client, host), pure=False))
        for host, folder in sources
    ]
    return [(host, item) for host, future in futures for item in future.result()]


def run_on(
    client: Any,
    checkpoints: Sequence[tuple[str, Checkpoint]],
    wish: Wish,
    progress: Callable[[int, int], None],
) -> Iterator[Outcome]:
    """Yield what became of each checkpoint, as they end.

    Args:
        client: of Dask.
        checkpoints: with the host that each lies on, "" for any.
        wish: what is to be done.
        progress: is told after each.
    """
    from distributed import as_completed

    total = sum(item.n_bytes for _, item in checkpoints)
    done = 0
    futures = {
        client.submit(
            carry_out, item, wish, threads=1, retries=RETRIES, pure=False, **_where(client, host)
        ): item
        for host, item in checkpoints
    }
    for future in as_completed(futures):
        item = futures[future]
        try:
            outcome: Outcome = future.result()
        except Exception as error:
            message = f"no worker could do it: {type(error).__name__}: {error}"
            one_line = " ".join(message.splitlines())
            outcome = Outcome(item.path, wish.verb, FAILED, one_line, exit_code=EXIT_RESOURCES)
        done += item.n_bytes
        progress(done, total)
        yield outcome
        future.release()


def _where(client: Any, host: str | None) -> dict[str, Any]:
    """Return the options that keep a task on a host's workers."""
    if not host:
        return {}
    names = {host}
    with contextlib.suppress(OSError):
        names.add(socket.gethostbyname(host))
    workers = [address for address in client.nthreads() if urlsplit(address).hostname in names]
    if not workers:
        raise UsageError(f"no worker is on host {host}")
    return {"workers": workers, "allow_other_workers": False}
