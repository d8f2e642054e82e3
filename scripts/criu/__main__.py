"""Sets up real CRIUs and runs commands in the virtual machine: ``python -m criu``."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
from collections.abc import Sequence

from criu.errors import SetupError, WorkloadError
from criu.machine import run_in_vm
from criu.native import CACHE, CHECKOUT, RELEASES
from criu.redis import set_up_redis
from criu.vm import set_up_vm
from criu.workload import compile_workload

#: The tests took 800 s on two processors that were not idle.
_VM_SECONDS = 1500


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(prog="criu", description="Real CRIUs, nothing installed.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("setup", help=f"download and unpack everything into {CACHE}")
    test = commands.add_parser("test", help="run tests/criu here, then in the virtual machine")
    test.add_argument("words", nargs=argparse.REMAINDER, help="go to pytest")
    vm = commands.add_parser("vm", help="run a command in the virtual machine")
    vm.add_argument("--seconds", type=float, default=_VM_SECONDS, help="longest time")
    vm.add_argument("words", nargs=argparse.REMAINDER, help="the command")
    options = parser.parse_args(arguments)
    # What ends us ends the machine with us, in a script's background too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    try:
        _set_up()
        if options.command == "test":
            return _test(options.words)
        if options.command == "vm":
            return run_in_vm(options.words, options.seconds)
    except (SetupError, WorkloadError) as error:
        print(f"criu: {error}", file=sys.stderr)
        return 1
    return 0


def _set_up() -> None:
    for release in RELEASES:
        release.set_up()
    set_up_redis()
    set_up_vm()
    compile_workload()


def _test(words: Sequence[str]) -> int:
    """Run the tests with each CRIU that runs here, and in the guest with the one that does not."""
    pytest = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "tests/criu", "--criu"]
    here = subprocess.run([*pytest, *words], cwd=CHECKOUT, check=False).returncode
    # The command line of a shell, because the guest starts it in another folder.
    command = ["sh", "-c", 'cd "$0" && exec "$@"', str(CHECKOUT), *pytest, *words]
    environment = {"PYTHONDONTWRITEBYTECODE": "1", "HELPERD_IN_VM": "1"}
    if "CRIU_CACHE" in os.environ:
        environment["CRIU_CACHE"] = str(CACHE)
    there = run_in_vm(command, _VM_SECONDS, environment)
    return here or there


if __name__ == "__main__":
    os.environ.setdefault("PYTHONDONTWRITEBYTECODE", "1")
    sys.exit(main())
