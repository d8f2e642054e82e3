"""How the daemon is to do its work."""

from __future__ import annotations

from helperd.modes import ON

TYPE_CHECKING = False
if TYPE_CHECKING:
    from helperd.lazy_pages.channel import Channel


class Settings:
    """What the options say.

    Attributes:
        fill: one of FILL_MODES.
        rate: bytes per second of the fill, 0 = no limit.
        around: pages to be brought with the one that was asked for; 0 = its block.
        threads: of the fill.
        prefetch: what to bring first: pages of a task, as (pid, address, pages, address of the one
            that was asked for or -1).
        progress: whether the guard is told how much is there.
        sandbox: how the worker is confined, one of SANDBOX_MODES.
        page_server: connected to who has the pages that are in no image; None = nobody.
        header_bytes: of what is said there, 24 or 32; 0 = as the images tell.
        record_fd: where what was asked for is written; -1 = nowhere.
    """

    def __init__(
        self,
        *,
        fill: str = "now",
        rate: int = 0,
        around: int = 0,
        threads: int = 1,
        prefetch: list[tuple[int, int, int, int]] | None = None,
        record_fd: int = -1,
        sandbox: str = ON,
        progress: bool = False,
        page_server: Channel | None = None,
        header_bytes: int = 0,
    ) -> None:
        self.fill = fill
        self.rate = rate
        self.around = around
        self.threads = threads
        self.prefetch = prefetch or []
        self.record_fd = record_fd
        self.sandbox = sandbox
        self.progress = progress
        self.page_server = page_server
        self.header_bytes = header_bytes

    @property
    def fds(self) -> list[int]:
        """The descriptors among them."""
        fds = [self.record_fd] if self.record_fd >= 0 else []
        return fds if self.page_server is None else [*fds, self.page_server.fd]
