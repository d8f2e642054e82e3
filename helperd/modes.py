"""The words of the options that choose how pages are written and what becomes of the image.

A module of their own: the options must not import what carries them out, a restore waits for them.
"""

from __future__ import annotations

#: Huge pages for the target: as the system's policy has it, wherever possible, not at all.
AUTO, ALWAYS, NEVER = THP_MODES = ("auto", "always", "never")

#: When to punch: not at all, behind answers, behind chunks whose pages are in the target.
ANSWERED, EARLY = "answered", "early"
PUNCH_MODES = (NEVER, ANSWERED, EARLY)
