"""Image directories as a page server leaves them: their inventory does not say what they are."""

from __future__ import annotations

from helperd.errors import ImageFormatError
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from helperd.images.pagemap import read_entries


class ReceivedDirectory(ImageDirectory):
    """A directory whose pagemaps themselves say which schema they have, and so its parents."""

    @property
    def schema(self) -> Schema:
        """The schema of its pagemaps; NONE where no entry has a table.

        Raises:
            ImageFormatError: two pagemaps have different ones.
        """
        found: set[str] = set()
        for name in self.pagemap_names:
            found |= read_entries(self.file(name)).schemas
        if len(found) > 1:
            raise ImageFormatError(f"{self.path}: has pagemaps of both schemas")
        return Schema(found.pop()) if found else Schema.NONE

    def parent(self) -> ReceivedDirectory | None:
        """Return the parent directory, None when there is no parent link."""
        parent = super().parent()
        return None if parent is None else ReceivedDirectory(parent.path)
