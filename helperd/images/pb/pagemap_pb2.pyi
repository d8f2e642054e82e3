from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Head(_message.Message):
    __slots__ = ("pages_id", "checksum")
    PAGES_ID_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    pages_id: int
    checksum: int
    def __init__(self, pages_id: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...

class FieldSix(_message.Message):
    __slots__ = ("length_delimited",)
    LENGTH_DELIMITED_FIELD_NUMBER: _ClassVar[int]
    length_delimited: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, length_delimited: _Optional[_Iterable[bytes]] = ...) -> None: ...
