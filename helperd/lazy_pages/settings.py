"""How the daemon is to do its work."""

from __future__ import annotations

from helperd.modes import ON


class Settings:
    """What the options say.

    Attributes:
        fill: one of FILL_MODES.
        rate: bytes per second of the fill, 0 = no limit.
        around: pages to be brought with the one that was asked for; 0 = its block.
        threads: of the fill.
        prefetch: what to bring first: pages of a task, as (pid, address, pages).
        sandbox: how the worker is confined, one of SANDBOX_MODES.
        record_fd: where what was asked for is written; -1 = nowhere.
    """

    def __init__(
        self,
        *,
        fill: str = "now",
        rate: int = 0,
        around: int = 0,
        threads: int = 1,
        prefetch: list[tuple[int, int, int]] | None = None,
        record_fd: int = -1,
        sandbox: str = ON,
    ) -> None:
        self.fill = fill
        self.rate = rate
        self.around = around
        self.threads = threads
        self.prefetch = prefetch or []
        self.record_fd = record_fd
        self.sandbox = sandbox

    @property
    def fds(self) -> list[int]:
        """The descriptors among them."""
        return [self.record_fd] if self.record_fd >= 0 else []
