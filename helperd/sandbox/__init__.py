"""Confines the worker: capabilities, privileges, system calls. See SECURITY.md."""

from __future__ import annotations

#: Not confined; confined as far as the kernel can; all of it, or no service.
OFF, ON, STRICT = SANDBOX_MODES = ("off", "on", "strict")
