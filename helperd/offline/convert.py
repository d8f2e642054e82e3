"""Convert what a path leads to: a directory, or an archive of a container engine."""

from __future__ import annotations

from helperd.errors import UsageError
from helperd.images.archive import is_archive
from helperd.offline.convert_directory import ConvertReport, Planner, Progress, carry_out


def convert(
    path: str,
    planner: Planner,
    *,
    output: str | None = None,
    in_place: bool = False,
    outer: str | None = None,
    threads: int = 0,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> ConvertReport:
    """Convert a directory or an archive.

    Args:
        path: of either.
        planner: says what is to become of an image directory.
        output: where the result is to be; None = in place.
        in_place: without backups.
        outer: how a new archive is compressed, see :mod:`helperd.images.archive`; None = as before.
        threads: that convert, 0 = one for each CPU.
        dry_run: only find out whether it could be done.
        progress: called with (bytes of memory done, in all) now and then.

    Raises:
        HelperdError: see :func:`helperd.offline.convert_directory.carry_out` and
            :func:`helperd.offline.convert_archive.convert_archive`.
    """
    if is_archive(path):
        # Only who has an archive waits for what reads them.
        from helperd.offline.convert_archive import convert_archive

        return convert_archive(
            path,
            planner,
            output=output,
            in_place=in_place,
            outer=outer,
            threads=threads,
            dry_run=dry_run,
            progress=progress,
        )
    if outer is not None:
        raise UsageError(f"{path}: a directory; --outer is for archives")
    return carry_out(
        path,
        planner,
        output=output,
        in_place=in_place,
        threads=threads,
        dry_run=dry_run,
        progress=progress,
    )
