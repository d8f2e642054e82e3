"""Runs commands in the virtual machine of vm.py."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from criu.debian import loader
from criu.errors import SetupError
from criu.native import CHECKOUT
from criu.processes import wait_for
from criu.vm import FOLDER, INITRAMFS, KERNEL, ROOT, kernel_version

#: Where the guest sees the folder that is shared with it.
SHARE = "/tmp/share"
_CONSOLE_LINES = 20


class Machine:
    """A virtual machine that runs one command and powers off; a context manager.

    Its root is the host's, read-only, so that programs and the virtual environment have the same
    paths; /tmp, /run and /dev/shm are its own.

    Args:
        command: to run as root in the folder ``SHARE``.
        share: a folder that is written to from both sides.
        output: gets the command's output, as it comes.
        disk: an image of a disk, /dev/vda in the guest.
        environment: variables for the command.
        memory_mib: the guest's memory.
        cpus: the guest's processors.

    Raises:
        SetupError: it does not start.
    """

    def __init__(
        self,
        command: Sequence[str],
        share: Path,
        output: IO[bytes] | int | None = None,
        *,
        disk: Path | None = None,
        environment: Mapping[str, str] | None = None,
        memory_mib: int = 2048,
        cpus: int = 2,
    ) -> None:
        if os.geteuid():
            raise SetupError("the virtual machine shares the host's files, which only root can")
        self._share = share
        self._stack = contextlib.ExitStack()
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="vm-")))
        self._console = self._folder / "console"
        variables = "".join(
            f"export {name}={shlex.quote(value)}\n" for name, value in (environment or {}).items()
        )
        (share / "job").write_text(f"{variables}exec {shlex.join(command)}\n")
        (share / "status").unlink(missing_ok=True)
        try:
            self._share_folder("host", Path("/"))
            self._share_folder("share", share)
            self._qemu = subprocess.Popen(
                self._qemu_command(disk, memory_mib, cpus),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=(self._folder / "qemu.log").open("wb"),
                env={**os.environ, "QEMU_MODULE_DIR": str(ROOT / "usr/lib/x86_64-linux-gnu/qemu")},
            )
            self._stack.callback(self.cut)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def wait(self, seconds: float) -> int:
        """Wait until the machine has powered off; return the command's exit status.

        Raises:
            SetupError: it takes longer, or the machine ended before the command did.
        """
        try:
            self._qemu.wait(seconds)
        except subprocess.TimeoutExpired as error:
            self.cut()
            raise SetupError(
                f"the machine is not done after {seconds} s: {self._said()}"
            ) from error
        try:
            return int((self._share / "status").read_text())
        except (FileNotFoundError, ValueError) as error:
            raise SetupError(f"the machine has ended too early: {self._said()}") from error

    def cut(self) -> None:
        """Take the machine's power away."""
        if self._qemu.poll() is None:
            self._qemu.send_signal(signal.SIGKILL)
        self._qemu.wait()

    @contextlib.contextmanager
    def stopped(self) -> Iterator[None]:
        """Stop the whole machine for the block, between two instructions."""
        self._qemu.send_signal(signal.SIGSTOP)
        try:
            wait_for(self._is_stopped, "QEMU to stop")
            yield
        finally:
            self._qemu.send_signal(signal.SIGCONT)

    def _is_stopped(self) -> bool:
        tasks = Path(f"/proc/{self._qemu.pid}/task").iterdir()
        return all(task.joinpath("stat").read_text().rpartition(")")[2][1] == "T" for task in tasks)

    def _said(self) -> str:
        lines = []
        for name in ("qemu.log", "console"):
            path = self._folder / name
            if path.exists():
                lines += path.read_text(errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-_CONSOLE_LINES:] if line.strip())

    def _share_folder(self, tag: str, source: Path) -> None:
        socket = self._folder / tag
        server = subprocess.Popen(
            [
                *loader(ROOT),
                str(ROOT / "usr/lib/qemu/virtiofsd"),
                f"--socket-path={socket}",
                "--thread-pool-size=2",
                *("-o", "sandbox=chroot", "-o", "cache=auto", "-o", f"source={source}"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=(self._folder / f"{tag}.log").open("wb"),
        )

        def end() -> None:
            server.terminate()
            server.wait()

        self._stack.callback(end)
        wait_for(lambda: socket.exists() or server.poll() is not None, "virtiofsd")
        if server.poll() is not None:
            log = (self._folder / f"{tag}.log").read_text(errors="replace")
            raise SetupError(f"virtiofsd does not start: {log.strip()}")

    def _qemu_command(self, disk: Path | None, memory_mib: int, cpus: int) -> list[str]:
        command = [
            *loader(ROOT),
            str(ROOT / "usr/bin/qemu-system-x86_64"),
            *("-L", str(ROOT / "usr/share/qemu"), "-L", str(ROOT / "usr/share/seabios")),
            # Five-level page tables cost an emulated CPU time and win nothing.
            *("-accel", "tcg,thread=multi", "-cpu", "max,la57=off"),
            *("-machine", "q35,memory-backend=memory", "-m", str(memory_mib), "-smp", str(cpus)),
            *("-object", f"memory-backend-memfd,id=memory,size={memory_mib}M,share=on"),
            *("-display", "none", "-monitor", "none", "-nodefaults", "-no-user-config"),
            *("-no-reboot", "-serial", f"file:{self._console}", "-serial", "stdio"),
            *("-kernel", str(KERNEL / f"boot/vmlinuz-{kernel_version()}")),
            *("-initrd", str(INITRAMFS)),
            "-append",
            f"console=ttyS0 quiet panic=-1 cache={FOLDER} checkout={CHECKOUT}",
            *("-device", "virtio-rng-pci"),
        ]
        for tag in ("host", "share"):
            command += ["-chardev", f"socket,id={tag},path={self._folder / tag}"]
            command += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag}"]
        if disk is not None:
            command += ["-drive", f"file={disk},format=raw,if=virtio,cache=writeback"]
        return command


def run_in_vm(
    command: Sequence[str], seconds: float, environment: Mapping[str, str] | None = None
) -> int:
    """Run a command in a machine of its own, its output on ours; return its exit status.

    Raises:
        SetupError: the machine does not start, or the command takes longer.
    """
    sys.stdout.flush()
    with (
        tempfile.TemporaryDirectory(prefix="vm-share-") as share,
        Machine(command, Path(share), environment=environment) as machine,
    ):
        return machine.wait(seconds)
