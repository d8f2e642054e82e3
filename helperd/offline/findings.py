"""What checking images has found."""

from __future__ import annotations

from dataclasses import dataclass, field

#: The images cannot be restored from, or not to what was dumped.
PROBLEM = "problem"
#: Odd, but no page of the dumps that were checked depends on it.
WARNING = "warning"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is wrong.

    Attributes:
        severity: PROBLEM or WARNING.
        path: the file or directory.
        message: what is wrong, in one line that names the path.
        vaddr: address of the first page concerned, None where it is not about pages.
        n_pages: how many are.
    """

    severity: str
    path: str
    message: str
    vaddr: int | None = None
    n_pages: int = 0


@dataclass(slots=True)
class CheckReport:
    """What :func:`check_directories` found.

    Attributes:
        directories: paths of all that were checked, parents included.
        findings: in the order of the directories.
        n_pagemaps, n_pages, n_blocks: that were read; pages with a payload.
        payload_bytes: read from pages files, holes left out.
        seconds: that it took.
    """

    directories: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    n_pagemaps: int = 0
    n_pages: int = 0
    n_blocks: int = 0
    payload_bytes: int = 0
    seconds: float = 0.0

    @property
    def problems(self) -> list[Finding]:
        """The findings that make a restore impossible or wrong."""
        return [finding for finding in self.findings if finding.severity == PROBLEM]

    @property
    def ok(self) -> bool:
        """Whether there are no problems."""
        return not self.problems
