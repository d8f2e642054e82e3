"""``helperd show``: what a directory of images and its chain hold."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable
from dataclasses import asdict

from helperd import blocks
from helperd.commands.sizes import format_size
from helperd.errors import EXIT_OK, UsageError, from_errno
from helperd.images.archive import is_archive
from helperd.images.chain import ancestors
from helperd.images.directory import ImageDirectory
from helperd.kernel.hints import empty_file
from helperd.offline.dedup import plan_files
from helperd.offline.estimate import estimate
from helperd.offline.page import render
from helperd.offline.picture import draw
from helperd.offline.summary import (
    LevelSummary,
    MemorySummary,
    Summary,
    show_archive,
    show_directory,
)

#: Stands for a list until it is put there; no path has a NUL in it.
_ROWS = "\0"
_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    parser = subparsers.add_parser(
        "show",
        help="say what a checkpoint and its chain hold",
        description="Say what a checkpoint holds of each process and shared memory object, how it"
        " is stored, and what each level of its chain contributes.",
    )
    parser.add_argument("directory", metavar="DIR", help="image directory, or checkpoint archive")
    parser.add_argument("--json", action="store_true", help="print the summary as JSON")
    parser.add_argument(
        "--ranges", action="store_true", help="list every range of addresses as well"
    )
    parser.add_argument(
        "--svg", metavar="FILE", help="draw address space against level and kind of block"
    )
    parser.add_argument(
        "--html", metavar="FILE", help="write all of it, drawn, as one page for a browser"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the summary; return the exit status.

    Raises:
        HelperdError: the images are broken, or FILE cannot be written.
    """
    path: str = arguments.directory
    origin: dict[str, str] = {}
    if is_archive(path):
        summaries, origin = show_archive(path)
    else:
        summaries = [show_directory(path)]
    if arguments.json:
        print(_as_json(summaries, origin))
    else:
        for name, word in origin.items():
            print(f"{name}: {word}")
        print("\n\n".join(_as_text(summary, ranges=arguments.ranges) for summary in summaries))
    if len(summaries) > 1 and (arguments.svg or arguments.html):
        raise UsageError(f"{path}: holds {len(summaries)} checkpoints; unpack it to draw one")
    files = [path] if is_archive(path) else _files_of(summaries[0])
    if arguments.svg is not None:
        _write(arguments.svg, draw(summaries[0]), files)
    if arguments.html is not None:
        _write(arguments.html, _page(summaries[0], origin, archived=is_archive(path)), files)
    return EXIT_OK


def _files_of(summary: Summary) -> list[str]:
    """Return the paths of all files of a checkpoint and its parents."""
    files: list[str] = []
    for level in summary.levels:
        with os.scandir(level) as found:
            files += [entry.path for entry in found if entry.is_file()]
    return files


def _write(path: str, content: str, images: list[str]) -> None:
    try:
        # Not emptied before it is known that it is none of the images.
        with open(os.open(path, _FLAGS, 0o666), "w", encoding="utf-8", errors="replace") as stream:
            if any(os.path.samefile(path, image) for image in images):
                raise UsageError(f"{path} is one of the images: name another file")
            empty_file(stream.fileno())
            stream.write(content)
    except OSError as error:
        raise from_errno(error.errno or 0, f"cannot write {path}") from error


def _page(summary: Summary, origin: dict[str, str], *, archived: bool) -> str:
    if archived:
        # Its pages go by once, in their order: there is no taking samples.
        return render(summary, [], None, origin)
    directories = list(ancestors(ImageDirectory(summary.path)))
    freed = None
    if len(directories) > 1:
        freed = sum(plan.file.freed_bytes for plan in plan_files(directories))
    return render(summary, estimate(directories[0]), freed, origin)


def _as_json(summaries: list[Summary], origin: dict[str, str]) -> str:
    checkpoints = [_as_document(summary) for summary in summaries]
    alone = not origin and len(summaries) == 1
    text = json.dumps(
        checkpoints[0] if alone else {"origin": origin, "checkpoints": checkpoints}, indent=2
    )
    # There may be very many of these, and an encoder takes its time for each.
    memories = [memory for summary in summaries for memory in summary.memories]
    pieces = text.split(json.dumps(_ROWS))
    rows = [_rows_of(memory, 6 if alone else 10) for memory in memories]
    lists = [piece for pair in rows for piece in pair]
    return "".join(piece for pair in zip(pieces, (*lists, ""), strict=True) for piece in pair)


def _as_document(summary: Summary) -> dict[str, object]:
    """Return a summary for JSON, but for its long lists."""
    memories = [
        {
            "name": memory.name,
            "pid": memory.pid,
            "shmem_id": memory.shmem_id,
            "n_pages": memory.n_pages,
            "ranges": _ROWS,
            "levels": [asdict(level) for level in memory.levels],
            "stretches": _ROWS,
        }
        for memory in summary.memories
    ]
    return {
        "path": summary.path,
        "levels": summary.levels,
        "schemas": summary.schemas,
        "memories": memories,
    }


def _rows_of(memory: MemorySummary, indent: int) -> tuple[str, str]:
    """Return the ranges and the stretches of a memory as JSON, indented as their names are."""
    end = "\n" + " " * indent
    item = f"{end}  "
    field = f"{item}  "
    as_range = f"{item}[{field}%d,{field}%d{item}]"
    names = ("vaddr", "n_pages", "depth")
    numbers = "".join(f'{field}"{name}": %d,' for name in names)
    as_stretch = f'{item}{{{numbers}{field}"kind": "%s"{item}}}'
    return (
        _json_list(map(as_range.__mod__, memory.ranges), end),
        _json_list(map(as_stretch.__mod__, memory.stretches), end),
    )


def _json_list(items: Iterable[str], end: str) -> str:
    content = ",".join(items)
    return f"[{content}{end}]" if content else "[]"


def _as_text(summary: Summary, *, ranges: bool) -> str:
    lines = [f"{summary.path}: {_chain(summary)}"]
    for memory in summary.memories:
        lines.append("")
        lines.append(f"{_title(memory)}: {memory.n_pages} pages in {len(memory.ranges)} ranges")
        lines += map(_level_line, memory.levels)
        if ranges:
            lines += [f"    {start:#014x}  {n_pages} pages" for start, n_pages in memory.ranges]
    return "\n".join(lines)


def _chain(summary: Summary) -> str:
    names = [
        f"{path} ({schema})" if schema != "none" else path
        for path, schema in zip(summary.levels, summary.schemas, strict=True)
    ]
    if len(names) == 1:
        return f"no parent; compression: {summary.schemas[0]}"
    return f"{len(names)} levels: {' <- '.join(names)}"


def _title(memory: MemorySummary) -> str:
    return f"shmem {memory.shmem_id}" if memory.pid is None else f"process {memory.pid}"


def _level_line(level: LevelSummary) -> str:
    if not level.stored_pages:
        return f"  {level.path}: stores nothing of it"
    parts = []
    if level.block_pages:
        size = format_size(blocks.pages_to_bytes(level.block_pages))
        parts.append(f"{level.n_zero} zero, {level.n_raw} raw, {level.n_lz4} LZ4 blocks of {size}")
    if level.n_uncompressed:
        parts.append(f"{level.n_uncompressed} pages uncompressed")
    if level.hole_bytes:
        parts.append(f"{format_size(level.hole_bytes)} in holes")
    return (
        f"  {level.path}: {level.used_pages} of {level.stored_pages} stored pages used,"
        f" {format_size(level.payload_bytes)} (ratio {level.ratio:.2f}); {', '.join(parts)}"
    )
