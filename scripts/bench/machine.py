"""What the benchmark ran on."""

from __future__ import annotations

import ctypes
import datetime
import os
import platform
from pathlib import Path

import lz4

from bench.programs import compiler_version


def describe_machine() -> dict[str, str]:
    """Return what the figures depend on, by name."""
    return {
        "date": datetime.date.today().isoformat(),
        "processor": _field("/proc/cpuinfo", "model name"),
        "CPUs": str(len(os.sched_getaffinity(0))),
        "memory": f"{int(_field('/proc/meminfo', 'MemTotal').split()[0]) >> 20} GiB",
        "kernel": platform.release(),
        "huge pages": _selected("/sys/kernel/mm/transparent_hugepage/enabled"),
        "Python": platform.python_version(),
        "liblz4 of helperd": lz4.library_version_string(),
        "liblz4 of the C programs": _system_liblz4(),
        "compiler": compiler_version(),
    }


def _field(path: str, name: str) -> str:
    for line in Path(path).read_text().splitlines():
        key, _, value = line.partition(":")
        if key.strip() == name:
            return value.strip()
    return "unknown"


def _selected(path: str) -> str:
    """Return the bracketed word of a setting of the kernel."""
    try:
        text = Path(path).read_text()
    except OSError:
        return "none"
    return text.partition("[")[2].partition("]")[0]


def _system_liblz4() -> str:
    version = ctypes.CDLL("liblz4.so.1").LZ4_versionString
    version.restype = ctypes.c_char_p
    text: bytes = version()
    return text.decode()
