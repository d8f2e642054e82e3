from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Blocks(_message.Message):
    __slots__ = ("block_sizes", "total_payload_size", "pages_per_block")
    BLOCK_SIZES_FIELD_NUMBER: _ClassVar[int]
    TOTAL_PAYLOAD_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGES_PER_BLOCK_FIELD_NUMBER: _ClassVar[int]
    block_sizes: _containers.RepeatedScalarFieldContainer[int]
    total_payload_size: int
    pages_per_block: int
    def __init__(self, block_sizes: _Optional[_Iterable[int]] = ..., total_payload_size: _Optional[int] = ..., pages_per_block: _Optional[int] = ...) -> None: ...

class Entry(_message.Message):
    __slots__ = ("vaddr", "compat_nr_pages", "in_parent", "flags", "nr_pages", "blocks")
    VADDR_FIELD_NUMBER: _ClassVar[int]
    COMPAT_NR_PAGES_FIELD_NUMBER: _ClassVar[int]
    IN_PARENT_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    NR_PAGES_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    vaddr: int
    compat_nr_pages: int
    in_parent: bool
    flags: int
    nr_pages: int
    blocks: Blocks
    def __init__(self, vaddr: _Optional[int] = ..., compat_nr_pages: _Optional[int] = ..., in_parent: bool = ..., flags: _Optional[int] = ..., nr_pages: _Optional[int] = ..., blocks: _Optional[_Union[Blocks, _Mapping]] = ...) -> None: ...
