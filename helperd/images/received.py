"""Image directories as a page server leaves them: their inventory does not say what they are."""

from __future__ import annotations

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from helperd.errors import ImageFormatError
from helperd.images import records
from helperd.images.directory import ImageDirectory
from helperd.images.inventory import Schema
from helperd.images.pagemap import Pagemap, read_pagemap
from helperd.images.pb import pagemap_pb2

_TABLE_FIELD = 6


class ReceivedDirectory(ImageDirectory):
    """A directory whose pagemaps themselves say which schema they have, and so its parents."""

    @property
    def schema(self) -> Schema:
        """The schema of its pagemaps; NONE where no entry has a table.

        Raises:
            ImageFormatError: two pagemaps have different ones.
        """
        found = {schema_of(self.file(name)) for name in self.pagemap_names} - {Schema.NONE}
        if len(found) > 1:
            raise ImageFormatError(f"{self.path}: has pagemaps of both schemas")
        return found.pop() if found else Schema.NONE

    def pagemap_by_name(self, name: str) -> Pagemap:
        """Read and check the pagemap file ``name``."""
        return read_pagemap(self.file(name), schema_of(self.file(name)))

    def parent(self) -> ReceivedDirectory | None:
        """Return the parent directory, None when there is no parent link."""
        parent = super().parent()
        return None if parent is None else ReceivedDirectory(parent.path)


def schema_of(path: str) -> Schema:
    """Return the schema of a pagemap by its entries; NONE where none has a table.

    Raises:
        ImageFormatError: it cannot be read as a pagemap.
    """
    for at, payload in records.read_records(path, records.PAGEMAP_MAGICS):
        seen = pagemap_pb2.FieldSix()
        try:
            seen.ParseFromString(payload)
        except DecodeError as error:
            raise ImageFormatError(f"{path}: record at offset {at} is broken: {error}") from error
        if seen.length_delimited:
            return Schema.BLOCKS
        unknown = UnknownFieldSet(seen)
        if any(unknown[index].field_number == _TABLE_FIELD for index in range(len(unknown))):
            return Schema.SIZES
    return Schema.NONE
