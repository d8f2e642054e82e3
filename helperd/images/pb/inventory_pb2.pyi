from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Inventory(_message.Message):
    __slots__ = ("img_version", "compress", "acceleration_or_block_size", "compress_region_size")
    IMG_VERSION_FIELD_NUMBER: _ClassVar[int]
    COMPRESS_FIELD_NUMBER: _ClassVar[int]
    ACCELERATION_OR_BLOCK_SIZE_FIELD_NUMBER: _ClassVar[int]
    COMPRESS_REGION_SIZE_FIELD_NUMBER: _ClassVar[int]
    img_version: int
    compress: int
    acceleration_or_block_size: int
    compress_region_size: int
    def __init__(self, img_version: _Optional[int] = ..., compress: _Optional[int] = ..., acceleration_or_block_size: _Optional[int] = ..., compress_region_size: _Optional[int] = ...) -> None: ...
