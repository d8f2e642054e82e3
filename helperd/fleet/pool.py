"""Many checkpoints on this machine: small ones side by side, each large one with all threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from helperd.fleet.find import Checkpoint
from helperd.fleet.jobs import Outcome, Wish, carry_out

#: From here on a checkpoint keeps all threads busy by itself.
LARGE_BYTES = 256 << 20

#: Called with the bytes of checkpoints done, and in all.
Progress = Callable[[int, int], None]


def run_pool(
    checkpoints: Sequence[Checkpoint], wish: Wish, threads: int, progress: Progress
) -> Iterator[Outcome]:
    """Yield what became of each checkpoint, as they end: small ones first.

    Args:
        checkpoints: to work on.
        wish: what is to be done.
        threads: in all.
        progress: is told after each.
    """
    total = sum(checkpoint.n_bytes for checkpoint in checkpoints)
    done = 0
    small = [item for item in checkpoints if item.n_bytes < LARGE_BYTES]
    large = [item for item in checkpoints if item.n_bytes >= LARGE_BYTES]
    with ThreadPoolExecutor(threads) as pool:
        # A few ahead only: what is interrupted has not begun.
        waiting = iter(small)
        begun: dict[Future[Outcome], int] = {}
        while True:
            while len(begun) < 2 * threads and (item := next(waiting, None)) is not None:
                begun[pool.submit(carry_out, item, wish, threads=1)] = item.n_bytes
            if not begun:
                break
            for future in wait(begun, return_when=FIRST_COMPLETED).done:
                done += begun.pop(future)
                progress(done, total)
                yield future.result()
    for item in large:
        outcome = carry_out(item, wish, threads=threads)
        done += item.n_bytes
        progress(done, total)
        yield outcome
