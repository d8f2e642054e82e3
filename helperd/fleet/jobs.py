"""One checkpoint of many: whatever becomes of it is an outcome, never an exception."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from helperd.errors import EXIT_IMAGE, EXIT_OK, EXIT_RESOURCES, HelperdError, describe_bug
from helperd.fleet.find import Checkpoint
from helperd.images.inventory import Schema
from helperd.offline.check import check_directories
from helperd.offline.compress import compress_directory
from helperd.offline.dedup import dedup_directory

CHECK, COMPRESS, DEDUP = VERBS = ("check", "compress", "dedup")

#: What became of a checkpoint: done now, nothing to do, or not done.
DONE, NOTHING, FAILED = "done", "nothing to do", "failed"


@dataclass(frozen=True, slots=True)
class Wish:
    """What is to be done with every checkpoint.

    Attributes:
        verb: one of VERBS.
        region_bytes: see :func:`helperd.offline.compress.compress_directory`, as the next two.
        acceleration: LZ4's.
        schema: of the pagemaps, by its name; None = what the checkpoint has.
        in_place: keep no backups of what is compressed.
        holes_are_zeros: a needed page in a hole is a zero page.
    """

    verb: str
    region_bytes: int | None = None
    acceleration: int = 1
    schema: str | None = None
    in_place: bool = False
    holes_are_zeros: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one checkpoint.

    Attributes:
        path: of it.
        verb: what was to be done.
        verdict: DONE, NOTHING or FAILED.
        message: in one line.
        exit_code: that the command for it alone would have ended with.
        bytes_before: of the files that were changed, or of the payload that was read.
        bytes_after: of the files that were changed.
        seconds: that it took.
        host: that did it.
        details: problems that ``check`` has found, a line each.
    """

    path: str
    verb: str
    verdict: str
    message: str
    exit_code: int = EXIT_OK
    bytes_before: int = 0
    bytes_after: int = 0
    seconds: float = 0.0
    host: str = field(default_factory=lambda: os.uname().nodename)
    details: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether all is well."""
        return self.verdict != FAILED

    def to_json(self) -> dict[str, Any]:
        """Return it as a JSON object."""
        return asdict(self)


def carry_out(checkpoint: Checkpoint, wish: Wish, *, threads: int = 0) -> Outcome:
    """Do with a checkpoint what is wished; whatever happens is in the outcome.

    Args:
        checkpoint: as it was found.
        wish: what is to be done.
        threads: that work on it, 0 = one for each CPU.
    """
    started = time.monotonic()
    try:
        if checkpoint.trouble:
            outcome = _failed(checkpoint, wish, checkpoint.trouble, EXIT_IMAGE)
        else:
            outcome = _WORK[wish.verb](checkpoint, wish, threads)
    except HelperdError as error:
        outcome = _failed(checkpoint, wish, str(error), error.exit_code)
    except Exception as error:  # One of many must not stop the others, not even by a bug.
        message = describe_bug(error)
        outcome = _failed(checkpoint, wish, message, EXIT_RESOURCES)
    values = {**asdict(outcome), "seconds": round(time.monotonic() - started, 3)}
    return Outcome(**values)


def _failed(checkpoint: Checkpoint, wish: Wish, message: str, code: int) -> Outcome:
    one_line = " ".join(message.splitlines())
    return Outcome(checkpoint.path, wish.verb, FAILED, one_line, exit_code=code)


def _check(checkpoint: Checkpoint, wish: Wish, threads: int) -> Outcome:
    report = check_directories(
        [checkpoint.path], holes_are_zeros=wish.holes_are_zeros, threads=threads
    )
    problems = tuple(" ".join(problem.message.splitlines()) for problem in report.problems)
    message = f"whole: {report.n_pages} pages in {report.n_blocks} blocks"
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        message = f"{problems[0]}{more}"
    return Outcome(
        checkpoint.path,
        wish.verb,
        DONE if report.ok else FAILED,
        message,
        exit_code=EXIT_OK if report.ok else EXIT_IMAGE,
        bytes_before=report.payload_bytes,
        details=problems,
    )


def _compress(checkpoint: Checkpoint, wish: Wish, threads: int) -> Outcome:
    before = after = 0
    changed = False
    for path in checkpoint.levels or (checkpoint.path,):
        report = compress_directory(
            path,
            in_place=wish.in_place,
            region_bytes=wish.region_bytes,
            acceleration=wish.acceleration,
            schema=None if wish.schema is None else Schema(wish.schema),
            threads=threads,
        )
        changed |= report.changed
        before += sum(file.bytes_before for file in report.files)
        after += sum(file.bytes_after for file in report.files)
    message = f"{before} bytes of pages -> {after}" if changed else "already compressed"
    verdict = DONE if changed else NOTHING
    return Outcome(
        checkpoint.path, wish.verb, verdict, message, bytes_before=before, bytes_after=after
    )


def _dedup(checkpoint: Checkpoint, wish: Wish, threads: int) -> Outcome:
    if len(checkpoint.levels) < 2:
        return Outcome(checkpoint.path, wish.verb, NOTHING, "has no parent")
    report = dedup_directory(checkpoint.path, holes_are_zeros=wish.holes_are_zeros, threads=threads)
    freed = report.freed_bytes
    verdict = DONE if freed else NOTHING
    return Outcome(checkpoint.path, wish.verb, verdict, f"{freed} bytes freed", bytes_before=freed)


_WORK = {CHECK: _check, COMPRESS: _compress, DEDUP: _dedup}
