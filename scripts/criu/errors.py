"""What goes wrong with a real CRIU."""

from __future__ import annotations


class SetupError(Exception):
    """A CRIU, or the virtual machine, cannot be had; the message is one line."""


class CriuError(Exception):
    """A dump or restore failed; the message ends with what its log said last."""


class WorkloadError(Exception):
    """A process that was dumped or restored does not answer, or its memory is wrong."""
