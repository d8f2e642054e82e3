#!/usr/bin/env python3
"""Print pip's constraints for the oldest dependencies that pyproject.toml allows.

Those of helperd and of its extras for users; what only its developers need is not promised.
"""

from __future__ import annotations

import pathlib
import re
import sys
import tomllib
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parent.parent
#: Extras that are for the work on helperd itself.
_OURS = ("bench", "dev", "fuzz")


def oldest(project: dict[str, Any]) -> list[str]:
    """Return a constraint for each requirement of the ``project`` table: its lower bound.

    Raises:
        ValueError: a requirement has none.
    """
    requirements: list[str] = list(project["dependencies"])
    for name, more in project["optional-dependencies"].items():
        if name not in _OURS:
            requirements += more
    constraints = []
    for requirement in requirements:
        bound = re.match(r"([\w.-]+) *>= *([\w.]+)", requirement)
        if bound is None:
            raise ValueError(f"{requirement}: no lower bound")
        constraints.append(f"{bound[1]}=={bound[2]}")
    return constraints


def main() -> int:
    """Run the script; return its exit status."""
    document = tomllib.loads((ROOT / "pyproject.toml").read_text())
    print("\n".join(oldest(document["project"])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
