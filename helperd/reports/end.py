"""How a session ended, and the last words in which its worker tells so."""

from __future__ import annotations

#: More than any count has.
_DIGITS = 25


def pack(numbers: dict[str, int | float], reason: str) -> str:
    """Return statistics and the reason of the end as the last words of a worker.

    Lines of a name and a value; not JSON, which would have to be imported before the worker is
    confined, and that takes long.
    """
    lines = [
        f"{name} {value:.6f}" if isinstance(value, float) else f"{name} {value}"
        for name, value in numbers.items()
    ]
    return "\n".join([*lines, f"reason {reason}"])


def unpack(last_words: str) -> tuple[dict[str, int | float], str]:
    """Return what :func:`pack` was given; what is not understood is left out."""
    numbers: dict[str, int | float] = {}
    reason = ""
    for line in last_words.splitlines():
        name, _, value = line.partition(" ")
        if name == "reason":
            reason = value
            continue
        if value.isascii() and value.replace(".", "", 1).isdecimal() and len(value) <= _DIGITS:
            numbers[name] = float(value) if "." in value else int(value)
    return numbers, reason


class End:
    """How a session ended.

    Attributes:
        exit_code: see :mod:`helperd.errors`.
        reason: in one line.
        numbers: what was done, as far as that is known.
    """

    def __init__(self, exit_code: int, reason: str, numbers: dict[str, int | float]) -> None:
        self.exit_code = exit_code
        self.reason = reason
        self.numbers = numbers

    def to_json(self) -> str:
        """Return the document of --stats."""
        import json  # Not needed before the restore is over.

        document = {**self.numbers, "exit_code": self.exit_code, "exit_reason": self.reason}
        return json.dumps(document, indent=2) + "\n"
