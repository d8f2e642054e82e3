from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Head(_message.Message):
    __slots__ = ("pages_id", "checksum")
    PAGES_ID_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    pages_id: int
    checksum: int
    def __init__(self, pages_id: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...
