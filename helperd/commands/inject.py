"""``helperd inject DIR --pid PID``: restore a process's memory from an image directory."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from helperd.blocks import PAGE_SIZE
from helperd.commands import arguments as values
from helperd.commands.output import note
from helperd.commands.progress import ProgressBar
from helperd.errors import EXIT_OK, UsageError
from helperd.reports.log import DEBUG
from helperd.restorer import InjectReport, inject
from helperd.restorer.inject import HOLES_ARE_ZEROS

if TYPE_CHECKING:
    import argparse

#: CRIU writes both as 32-bit numbers, shmids as 64-bit ones.
_MAX_ID = (1 << 32) - 1
_MAX_SHMEM_ID = (1 << 64) - 1


def add_parser(subparsers: Any) -> None:
    """Add the command's options."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "inject",
        help="restore a process's memory from an image directory",
        description="Write the memory that an image directory (and its parents) holds of a"
        " process into a running process that has the same addresses mapped.",
    )
    parser.add_argument("directory", metavar="DIR", help="images of the last dump")
    parser.add_argument("--pid", type=values.pid, required=True, help="process to write to")
    parser.add_argument(
        "--image-pid",
        type=values.number(0, _MAX_ID),
        metavar="N",
        help="its pid in the images (default: PID)",
    )
    parser.add_argument(
        "--shmem-id",
        type=values.number(0, _MAX_SHMEM_ID),
        metavar="N",
        help="restore this shared memory object instead",
    )
    parser.add_argument(
        "--base", type=values.address, metavar="ADDRESS", help="where PID has that object mapped"
    )
    parser.add_argument(
        "--auto-dedup",
        action="store_true",
        help="punch what has been restored out of the images (and parents), destroying them",
    )
    parser.add_argument(
        HOLES_ARE_ZEROS,
        action="store_true",
        help="take pages in holes of the files for zero pages, not for lost ones: for files that"
        " were copied by a tool which leaves zeros out",
    )
    parser.add_argument(
        *("-v", "--verbosity"),
        type=values.number(0, DEBUG),
        metavar="0..4",
        help="of the helpers' log on stderr",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it and print a line about it."""
    if (arguments.shmem_id is None) != (arguments.base is None):
        raise UsageError("--shmem-id and --base go together")
    if arguments.shmem_id is not None and arguments.image_pid is not None:
        raise UsageError("--shmem-id and --image-pid exclude each other")
    options: tuple[str, ...] = ()
    if arguments.verbosity is not None:
        options += (f"-v{arguments.verbosity}",)
    if arguments.holes_are_zeros:
        options += (HOLES_ARE_ZEROS,)
    bar = ProgressBar(f"process {arguments.pid}", PAGE_SIZE)
    try:
        report = inject(
            arguments.directory,
            arguments.pid,
            image_pid=arguments.image_pid,
            shmem_id=arguments.shmem_id,
            base=arguments.base or 0,
            auto_dedup=arguments.auto_dedup,
            progress=bar.update,
            helper_options=options,
        )
    finally:
        bar.finish()
    note(report.warnings)
    print(summary(arguments.pid, report))
    return EXIT_OK


def summary(pid: int, report: InjectReport) -> str:
    """Return one line that says what was done."""
    ratio = report.memory_bytes / report.payload_bytes if report.payload_bytes else 0.0
    speed = report.memory_bytes / report.seconds / 1e9 if report.seconds else 0.0
    return (
        f"process {pid}: {report.pages} pages restored in {report.requests} requests"
        f" ({report.zero_blocks} zero, {report.raw_blocks} raw, {report.lz4_blocks} LZ4 blocks,"
        f" ratio {ratio:.2f}, {speed:.2f} GB/s, peak RSS {report.helper_peak_rss_kib} KiB)"
    )
