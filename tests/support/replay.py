"""Recorded sessions between CRIU's restorer and a helper."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from tests.support.requests import ANSWER


@dataclass(frozen=True)
class Recording:
    """One recorded restore: what the restorer sent, and what the helper has to answer."""

    pages: Path
    requests: tuple[bytes, ...]
    answers: tuple[int, ...]


def load_recording(archive: Path, remote_pid: int) -> Recording:
    """Read an archive's recording; every request names ``remote_pid`` instead of the dead one."""
    sent = (archive / "requests.bin").read_bytes()
    pieces = json.loads((archive / "requests.json").read_text())["requests"]
    requests = tuple(
        struct.pack("<i", remote_pid) + sent[piece["offset"] + 4 :][: piece["length"] - 4]
        for piece in pieces
    )
    assert sum(map(len, requests)) == len(sent)
    answers = ANSWER.iter_unpack((archive / "replies.bin").read_bytes())
    (pages,) = archive.glob("images/pages-*.img")
    return Recording(pages, requests, tuple(answer for (answer,) in answers))
