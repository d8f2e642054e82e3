#!/usr/bin/env python3
"""Break the modules that hold rules, one small change at a time, and see whether a test notices.

Usage: scripts/mutants.py [--sample N] [--seed N] [--part K/N] [--jobs N] [MODULE ...]

A change (a *mutant*) turns one comparison, sum, constant, condition or statement into another. It
is made in a copy of the repository, and the tests that are about its module run there until one of
them fails. A mutant that none notices survives: either a test is missing, or the change changes
nothing; the second kind is listed in scripts/mutants.toml, with the reason. The exit status is 1
when others have survived.

The copies live below the temporary directory; the repository itself is never touched.
"""

from __future__ import annotations

import argparse
import ast
import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import random
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
EXPLAINED = ROOT / "scripts" / "mutants.toml"

#: The tests of each module, the quickest first.
TESTS: dict[str, tuple[str, ...]] = {
    "helperd/blocks.py": ("tests/test_blocks.py", "tests/codec", "tests/engine/test_plan.py"),
    "helperd/wire/pipe.py": ("tests/wire/test_pipe.py",),
    "helperd/engine/plan.py": ("tests/engine/test_plan.py", "tests/end_to_end/test_targets.py"),
    "helperd/codec/frames.py": ("tests/codec/test_frames.py",),
    "helperd/codec/consumed.py": ("tests/codec/test_consumed.py",),
    "helperd/engine/release.py": ("tests/engine/test_release.py",),
    "helperd/targets/targets.py": ("tests/targets", "tests/end_to_end/test_targets.py"),
    "helperd/targets/target.py": (
        "tests/targets",
        "tests/engine/test_rules.py",
        "tests/end_to_end/test_targets.py",
        "tests/end_to_end/test_zero_pages.py",
    ),
    "helperd/helper/answers.py": (
        "tests/helper/test_answers.py",
        "tests/end_to_end/test_lifecycle.py",
        "tests/end_to_end/test_malformed_requests.py",
        "tests/faults/test_pipes.py",
    ),
    "helperd/images/pagemap.py": (
        "tests/images/test_entries.py",
        "tests/images/test_pagemap.py",
        "tests/images/test_sweep.py",
        "tests/images/test_chain.py",
        "tests/images/test_lookup.py",
    ),
    "helperd/images/shapes.py": (
        "tests/images/test_columns.py",
        "tests/images/test_pagemap.py",
        "tests/images/test_sweep.py",
    ),
    "helperd/images/entries.py": (
        "tests/images/test_columns.py",
        "tests/images/test_pagemap.py",
        "tests/images/test_sweep.py",
        "tests/images/test_lookup.py",
    ),
    "helperd/images/lookup.py": ("tests/images/test_lookup.py",),
    "helperd/images/chain.py": ("tests/images/test_chain.py",),
    "helperd/images/ranges.py": ("tests/images/test_ranges.py",),
    "helperd/images/tables.py": ("tests/images/test_columns.py", "tests/images/test_lookup.py"),
    "helperd/images/entry_fields.py": (
        "tests/images/test_columns.py",
        "tests/images/test_entries.py",
        "tests/images/test_pagemap.py",
    ),
    "helperd/lazy_pages/pageset.py": ("tests/lazy_pages/test_sets.py",),
    "helperd/wire/lazy.py": ("tests/wire/test_lazy.py",),
    "helperd/wire/page_server.py": ("tests/wire/test_page_server.py",),
    "helperd/wire/page_messages.py": ("tests/wire/test_page_server.py",),
    "helperd/wire/stream.py": ("tests/wire/test_stream.py",),
    "helperd/offline/check.py": (
        "tests/offline/test_check.py",
        "tests/offline/test_dialects.py",
        "tests/offline/test_borders.py",
        "tests/images/test_pstree.py",
    ),
    "helperd/offline/dedup.py": (
        "tests/offline/test_dedup.py",
        "tests/offline/test_durability.py",
        "tests/offline/test_planted.py",
    ),
    "helperd/offline/switch.py": (
        "tests/offline/test_planted.py",
        "tests/offline/test_durability.py",
        "tests/offline/test_switch.py",
    ),
    "helperd/images/leftovers.py": (
        "tests/images/test_arrivals.py",
        "tests/offline/test_planted.py",
    ),
    "helperd/images/arrivals.py": (
        "tests/images/test_arrivals.py",
        "tests/images/test_writer.py",
        "tests/offline/test_planted.py",
    ),
    "helperd/kernel/sockets.py": ("tests/kernel/test_sockets.py",),
}

#: Bytes of address space that one run may have, and times the unchanged run it may take.
_MEMORY_BYTES = 16 << 30
_PATIENCE = 5
_PATIENCE_SECONDS = 20
#: Seconds of processor time that each process of a run may have beside that of the unchanged run:
#: what goes round and round is noticed however busy the machine is.
_CPU_SECONDS = 5

#: What the tests last said, in the copy.
_OUTPUT = "mutant-output"

_COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
_OPERATIONS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
_NAMES = {"min": "max", "max": "min"}


@dataclasses.dataclass(frozen=True, slots=True)
class Mutant:
    """One change.

    Attributes:
        module: path of the file, from the repository's root.
        line: of it.
        function: qualified name of what it is in, "" for the module itself.
        before: what stands there.
        after: what is put there.
        start: offset of ``before`` in the file, in bytes.
        end: offset of its end.
    """

    module: str
    line: int
    function: str
    before: str
    after: str
    start: int
    end: int

    def applied_to(self, source: bytes) -> bytes:
        """Return the file with the change."""
        return source[: self.start] + self.after.encode() + source[self.end :]

    def __str__(self) -> str:
        where = f"{self.module}:{self.line} {self.function}".rstrip()
        return f"{where}: {_one_line(self.before)} -> {_one_line(self.after)}"


class _Finder:
    """Finds every change that can be made to a module."""

    def __init__(self, module: str, source: bytes) -> None:
        self._module = module
        self._source = source
        self._line_starts = [0]
        for line in source.splitlines(keepends=True):
            self._line_starts.append(self._line_starts[-1] + len(line))
        self.found: list[Mutant] = []
        self._visit_body(ast.parse(source).body, "")

    def _visit_body(self, body: list[ast.stmt], function: str) -> None:
        for index, statement in enumerate(body):
            if index == 0 and _is_text(statement):
                continue
            self._visit_statement(statement, function)

    def _visit_statement(self, statement: ast.stmt, function: str) -> None:
        match statement:
            case ast.FunctionDef() | ast.ClassDef():
                inner = f"{function}.{statement.name}".lstrip(".")
                if isinstance(statement, ast.FunctionDef):
                    for default in (*statement.args.defaults, *statement.args.kw_defaults):
                        if default is not None:
                            self._visit_expression(default, inner)
                self._visit_body(statement.body, inner)
                return
            case ast.Import() | ast.ImportFrom() | ast.Pass():
                return
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                return
            case ast.Assign(targets=[ast.Name(id="__slots__" | "TYPE_CHECKING")]):
                return
            case ast.Raise():
                # What it says is not a rule; that it is raised is one.
                self._add(statement, "pass", function)
                return
            case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Continue() | ast.Break():
                self._add(statement, "pass", function)
            case ast.Return(value=None):
                self._add(statement, "pass", function)
            case ast.If() | ast.While():
                if not isinstance(statement.test, ast.Compare | ast.BoolOp | ast.UnaryOp):
                    self._add(statement.test, f"(not {ast.unparse(statement.test)})", function)
        for child in ast.iter_child_nodes(statement):
            if isinstance(child, ast.stmt):
                self._visit_statement(child, function)
            elif isinstance(child, ast.expr) and child is not getattr(statement, "annotation", 0):
                self._visit_expression(child, function)
            elif isinstance(child, ast.ExceptHandler | ast.match_case):
                self._visit_body(child.body, function)
            elif isinstance(child, ast.withitem):
                self._visit_expression(child.context_expr, function)

    def _visit_expression(self, node: ast.expr, function: str) -> None:
        for changed in _changes(node):
            self._add(node, f"({ast.unparse(changed)})", function)
        if isinstance(node, ast.JoinedStr):
            return
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.expr):
                self._visit_expression(child, function)
            elif isinstance(child, ast.keyword) and child.arg != "strict":
                self._visit_expression(child.value, function)
            elif isinstance(child, ast.comprehension):
                for part in (child.iter, *child.ifs):
                    self._visit_expression(part, function)

    def _add(self, node: ast.stmt | ast.expr, after: str, function: str) -> None:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._line_starts[node.lineno - 1] + node.col_offset
        end = self._line_starts[node.end_lineno - 1] + node.end_col_offset
        before = self._source[start:end].decode()
        self.found.append(Mutant(self._module, node.lineno, function, before, after, start, end))


def _changes(node: ast.expr) -> Iterator[ast.expr]:
    """Yield what an expression could be instead, not looking inside of it."""
    match node:
        case ast.Compare():
            for index, operator in enumerate(node.ops):
                ops = list(node.ops)
                ops[index] = _COMPARISONS[type(operator)]()
                yield ast.Compare(node.left, ops, node.comparators)
        case ast.BinOp() if type(node.op) in _OPERATIONS and not _is_of_text(node):
            yield ast.BinOp(node.left, _OPERATIONS[type(node.op)](), node.right)
        case ast.BoolOp():
            yield ast.BoolOp(ast.Or() if isinstance(node.op, ast.And) else ast.And(), node.values)
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            yield node.operand
        case ast.Constant(value=bool()):
            yield ast.Constant(not node.value)
        case ast.Constant(value=int(number)):
            yield ast.Constant(number + 1)
        case ast.Call(func=ast.Name(id="min" | "max" as name)):
            yield ast.Call(ast.Name(_NAMES[name]), node.args, node.keywords)
        case ast.IfExp():
            yield ast.IfExp(node.test, node.orelse, node.body)


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_of_text(node: ast.BinOp) -> bool:
    return any(
        isinstance(side, ast.JoinedStr)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str | bytes))
        for side in (node.left, node.right)
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def mutants_of(module: str, root: pathlib.Path = ROOT) -> list[Mutant]:
    """Return every mutant of a module, in the order of its lines."""
    return _Finder(module, (root / module).read_bytes()).found


def explained(path: pathlib.Path = EXPLAINED) -> dict[tuple[str, str, str, str], str]:
    """Return why each change of the list changes nothing, by module, function, before, after."""
    if not path.exists():
        return {}
    return {
        (module, entry["in"], entry["before"], entry["after"]): entry["why"]
        for module, entries in tomllib.loads(path.read_text()).items()
        for entry in entries
    }


def _key(mutant: Mutant) -> tuple[str, str, str, str]:
    before, after = _one_line(mutant.before), _one_line(mutant.after)
    return mutant.module, mutant.function, before, after


class Copy:
    """A copy of the repository in which one mutant after the other is tried.

    Its interpreter finds helperd in the copy, everything else where this one does.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._root = folder
        names = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in names.split("\0"):
            if not (ROOT / name).is_file():
                continue
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)
        venv = folder / ".venv"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
        (site,) = venv.glob("lib/python*/site-packages")
        others = [path for path in sys.path if path.endswith("-packages")]
        (site / "mutants.pth").write_text("\n".join([str(folder), *others]) + "\n")
        self._clock = int(time.time()) - (1 << 24)
        #: What the last run has taken.
        self.cpu_seconds = 0.0
        self._worker = subprocess.Popen(
            [str(venv / "bin" / "python"), str(folder / "scripts/mutants.py"), "--worker"],
            cwd=folder,
            # With CI set hypothesis takes the same examples each time.
            env={**os.environ, "CI": "true", "HELPERD_MUTANTS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, module: str, source: bytes, seconds: float, cpu_seconds: int) -> bool:
        """Return whether the tests of a module pass with that source, within so many seconds."""
        path = self._root / module
        before = path.read_bytes()
        self._write(path, source)
        try:
            assert self._worker.stdin is not None
            assert self._worker.stdout is not None
            tests = [name for name in TESTS[module] if (self._root / name).exists()]
            self._worker.stdin.write(json.dumps([seconds, cpu_seconds, tests]) + "\n")
            self._worker.stdin.flush()
            passed: bool
            passed, self.cpu_seconds = json.loads(self._worker.stdout.readline())
            return passed
        finally:
            self._write(path, before)

    def output(self) -> str:
        """Return what the tests have said."""
        return (self._root / _OUTPUT).read_text(errors="replace")

    def _write(self, path: pathlib.Path, source: bytes) -> None:
        path.write_bytes(source)
        # Compiled modules are told apart by the second: no two changes have the same.
        self._clock += 1
        os.utime(path, (self._clock, self._clock))

    def close(self) -> None:
        """End the worker."""
        self._worker.communicate()


def work() -> int:
    """Run tests as told on stdin, each time in a fork: what is imported here need not be again."""
    import pytest

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    for line in sys.stdin:
        seconds, cpu_seconds, tests = json.loads(line)
        child = os.fork()
        if child == 0:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds))
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            output = os.open(_OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(output, 1)
            os.dup2(output, 2)
            os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
        ended = select.poll()
        ended.register(os.pidfd_open(child), select.POLLIN)
        ended.poll(seconds * 1000)
        # Also what the tests have left behind.
        _kill(child)
        _, status, usage = os.wait4(child, 0)
        print(json.dumps([status == 0, usage.ru_utime + usage.ru_stime]), flush=True)
    return 0


def _kill(session: int) -> None:
    try:
        os.killpg(session, signal.SIGKILL)
    except ProcessLookupError:
        return


def _part(text: str) -> slice:
    """Return which of the mutants are part K of N, every N-th of them."""
    first, of = map(int, text.split("/"))
    if not 1 <= first <= of:
        raise ValueError
    return slice(first - 1, None, of)


def try_out(modules: list[str], *, sample: int, seed: int, part: slice, jobs: int) -> int:
    """Try the mutants of the modules; print what survives and the figures; return the status."""
    reasons = explained()
    unexplained = 0
    table: dict[str, list[int]] = {}
    with tempfile.TemporaryDirectory(prefix="helperd-mutants-") as scratch:
        copies = [Copy(pathlib.Path(scratch) / str(number)) for number in range(jobs)]
        free = list(copies)
        lock = threading.Lock()

        def survives_in(mutant: Mutant, *, seconds: float, cpu_seconds: int) -> bool:
            with lock:
                copy = free.pop()
            source = (ROOT / mutant.module).read_bytes()
            passed = copy.run(mutant.module, mutant.applied_to(source), seconds, cpu_seconds)
            with lock:
                free.append(copy)
            return passed

        for module in modules:
            source = (ROOT / module).read_bytes()
            row = table[module] = [0, 0, 0]
            begun = time.monotonic()
            if not copies[0].run(module, source, 600, 600):
                print(copies[0].output(), file=sys.stderr)
                raise SystemExit(f"mutants: the tests of {module} fail without any change")
            lasted = time.monotonic() - begun
            survives = functools.partial(
                survives_in,
                seconds=_PATIENCE * lasted + _PATIENCE_SECONDS,
                cpu_seconds=int(2 * copies[0].cpu_seconds) + _CPU_SECONDS,
            )
            chosen = mutants_of(module)
            if sample and len(chosen) > sample:
                chosen = random.Random(seed).sample(chosen, sample)
                chosen.sort(key=lambda mutant: mutant.start)
            chosen = chosen[part]
            with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
                verdicts = pool.map(survives, chosen)
                for mutant, survived in zip(chosen, verdicts, strict=True):
                    row[0] += 1
                    row[1] += not survived
                    if survived and _key(mutant) in reasons:
                        row[2] += 1
                    elif survived:
                        unexplained += 1
                        print(f"survived: {mutant}", flush=True)
            _print_row(module, row, time.monotonic() - begun)
        for copy in copies:
            copy.close()
    _print_row("all", [sum(column) for column in zip(*table.values(), strict=True)], 0)
    print(f"{unexplained} survived without an explanation in {EXPLAINED.name}")
    return 1 if unexplained else 0


def _print_row(name: str, row: list[int], seconds: float) -> None:
    tried, noticed, known = row
    took = f", {seconds:.0f} s" if seconds else ""
    print(f"{name}: {tried} tried, {noticed} noticed, {known} explained{took}", flush=True)


def main() -> int:
    """Run the script; return its exit status."""
    if sys.argv[1:] == ["--worker"]:
        return work()
    parser = argparse.ArgumentParser(description="See whether tests notice broken rules.")
    parser.add_argument("--sample", type=int, default=0, help="mutants of each module (0: all)")
    parser.add_argument("--seed", type=int, default=1, help="which ones are chosen")
    parser.add_argument("--part", type=_part, default=slice(None), metavar="K/N", help="of them")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="at once")
    parser.add_argument("--list", action="store_true", help="print the mutants, try none")
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(TESTS)}")
    options = parser.parse_args()
    modules = options.modules or list(TESTS)
    for module in modules:
        if module not in TESTS:
            parser.error(f"no tests are known for {module}")
    if options.list:
        for module in modules:
            for mutant in mutants_of(module):
                print(mutant)
        return 0
    return try_out(
        modules, sample=options.sample, seed=options.seed, part=options.part, jobs=options.jobs
    )


if __name__ == "__main__":
    sys.exit(main())
