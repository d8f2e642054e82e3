"""The words of options that more than one module understands.

A module of their own: the options must not import what carries them out, a restore waits for them.
"""

from __future__ import annotations

#: Huge pages for the target: as the system's policy has it, wherever possible, not at all.
AUTO, ALWAYS, NEVER = THP_MODES = ("auto", "always", "never")

#: When to punch: not at all, behind answers, behind chunks whose pages are in the target.
ANSWERED, EARLY = "answered", "early"
PUNCH_MODES = (NEVER, ANSWERED, EARLY)

#: The worker is not confined; confined as far as the kernel can; all of it, or no service.
OFF, ON, STRICT = SANDBOX_MODES = ("off", "on", "strict")

#: How pagemaps describe blocks: as CRIU's pull request 2895 does, and as merged CRIU.
SIZES, BLOCKS = "sizes", "blocks"

#: LZ4 takes no more for its acceleration (LZ4_ACCELERATION_MAX in lz4.c); 1 compresses best.
MAX_ACCELERATION = 65537
