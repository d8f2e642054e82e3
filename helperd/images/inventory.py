"""inventory.img: which version of the format a directory has, and how it is compressed."""

from __future__ import annotations

import enum
import io
from dataclasses import dataclass
from typing import Self

from google.protobuf import message as protobuf
from google.protobuf.unknown_fields import UnknownFieldSet

from helperd import blocks, modes
from helperd.errors import ImageFormatError
from helperd.images.pb import inventory_pb2
from helperd.images.records import INVENTORY_MAGICS, read_records, write_magics, write_record

#: Name of the inventory in an image directory.
INVENTORY_NAME = "inventory.img"

#: img_version of compressed images in the blocks schema (CRIU image V1_2).
BLOCKS_VERSION = 3
#: img_version of dumps in the other schemas (V1_1) ...
_DUMP_VERSION = 2
#: ... and of pre-dumps, which do not set it.
_PREDUMP_VERSION = 0
# A dump's inventory has the namespaces of its root task here, a pre-dump's has not (seen).
_ROOT_IDS_FIELD = 3

# Values of the inventory's ``compress`` field in the sizes schema.
_OFF = 0
_PER_PAGE = 1
_REGION = 2


class Schema(enum.Enum):
    """How the pagemap entries of a directory describe compressed pages.

    A reader goes by the entries themselves, see :mod:`helperd.images.entry_fields`.
    """

    #: Not compressed: no entry has a field 6.
    NONE = "none"
    #: CRIU pull request 2895: repeated compressed_size, one by one, or packed as its successor.
    SIZES = modes.SIZES
    #: Merged upstream: a message of block_sizes.
    BLOCKS = modes.BLOCKS


@dataclass(slots=True)
class Inventory:
    """The one record of inventory.img; fields that helperd does not know are kept."""

    path: str
    message: inventory_pb2.Inventory

    @property
    def version(self) -> int:
        """``img_version``: 0 in pre-dumps, 2 in dumps, 3 in the blocks schema."""
        return self.message.img_version

    @property
    def schema(self) -> Schema:
        """The schema of the pagemaps beside this inventory.

        Raises:
            ImageFormatError: a version or a compression that this helperd does not know.
        """
        compress = self.message.compress
        if self.version > BLOCKS_VERSION:
            raise ImageFormatError(
                f"{self.path}: image version {self.version} is newer than this helperd knows"
                f" ({BLOCKS_VERSION})"
            )
        if compress == _OFF:
            return Schema.NONE
        if self.version == BLOCKS_VERSION and compress == _PER_PAGE:
            return Schema.BLOCKS
        if compress in (_PER_PAGE, _REGION):
            return Schema.SIZES
        raise ImageFormatError(
            f"{self.path}: unknown compression {compress} in image version {self.version}"
        )

    def converted(
        self,
        schema: Schema,
        *,
        region_pages: int = 0,
        acceleration: int = 1,
        blocks_in_parents: bool = False,
    ) -> Self:
        """Return a copy that says its pagemaps are in ``schema``.

        Args:
            schema: of the pagemaps.
            region_pages: pages of a region, 0 = per page.
            acceleration: LZ4 acceleration; like CRIU, the default of 1 is not written.
            blocks_in_parents: a parent is compressed in the blocks schema. Then the version is
                that schema's in any case: a CRIU that does not know it must not be let in.
        """
        message = inventory_pb2.Inventory()
        message.CopyFrom(self.message)
        message.ClearField("compress")
        message.ClearField("acceleration_or_block_size")
        message.ClearField("compress_region_size")
        if schema is Schema.BLOCKS:
            message.img_version = BLOCKS_VERSION
            message.compress = _PER_PAGE  # on; the entries say whether per page
            message.acceleration_or_block_size = blocks.pages_to_bytes(region_pages or 1)
        elif blocks_in_parents:
            message.img_version = BLOCKS_VERSION
            message.compress = _OFF
        elif self.version == BLOCKS_VERSION:
            message.img_version = _DUMP_VERSION if self._is_dump else _PREDUMP_VERSION
        if schema is Schema.SIZES:
            message.compress = _REGION if region_pages else _PER_PAGE
            if acceleration != 1:
                message.acceleration_or_block_size = acceleration
            if region_pages:
                message.compress_region_size = blocks.pages_to_bytes(region_pages)
        return type(self)(self.path, message)

    @property
    def _is_dump(self) -> bool:
        unknown = UnknownFieldSet(self.message)
        return any(unknown[i].field_number == _ROOT_IDS_FIELD for i in range(len(unknown)))

    def encode(self) -> bytes:
        """Return the bytes of the whole inventory.img."""
        stream = io.BytesIO()
        write_magics(stream, INVENTORY_MAGICS)
        write_record(stream, self.message.SerializeToString())
        return stream.getvalue()


def read_inventory(path: str) -> Inventory:
    """Read inventory.img.

    Raises:
        ImageFormatError: not an inventory, or not exactly one well-formed record.
        ImageError: the file is missing or cannot be read.
    """
    message: inventory_pb2.Inventory | None = None
    for offset, payload in read_records(path, INVENTORY_MAGICS):
        if message is not None:
            raise ImageFormatError(f"{path}: a second record at offset {offset}")
        message = inventory_pb2.Inventory()
        try:
            message.ParseFromString(payload)
        except protobuf.DecodeError as error:
            raise ImageFormatError(
                f"{path}: record at offset {offset} is not an inventory: {error}"
            ) from error
    if message is None:
        raise ImageFormatError(f"{path}: holds no record")
    if not message.IsInitialized():
        raise ImageFormatError(f"{path}: does not say its img_version")
    return Inventory(path, message)
