from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SessionRequest(_message.Message):
    __slots__ = ("version", "for_parent", "targets", "max_pages", "threads", "thp", "punch", "sandbox", "idle_seconds", "verbosity", "log_layout", "holes_are_zeros")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    FOR_PARENT_FIELD_NUMBER: _ClassVar[int]
    TARGETS_FIELD_NUMBER: _ClassVar[int]
    MAX_PAGES_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    THP_FIELD_NUMBER: _ClassVar[int]
    PUNCH_FIELD_NUMBER: _ClassVar[int]
    SANDBOX_FIELD_NUMBER: _ClassVar[int]
    IDLE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    VERBOSITY_FIELD_NUMBER: _ClassVar[int]
    LOG_LAYOUT_FIELD_NUMBER: _ClassVar[int]
    HOLES_ARE_ZEROS_FIELD_NUMBER: _ClassVar[int]
    version: int
    for_parent: bool
    targets: _containers.RepeatedScalarFieldContainer[int]
    max_pages: int
    threads: int
    thp: str
    punch: str
    sandbox: str
    idle_seconds: int
    verbosity: int
    log_layout: str
    holes_are_zeros: bool
    def __init__(self, version: _Optional[int] = ..., for_parent: bool = ..., targets: _Optional[_Iterable[int]] = ..., max_pages: _Optional[int] = ..., threads: _Optional[int] = ..., thp: _Optional[str] = ..., punch: _Optional[str] = ..., sandbox: _Optional[str] = ..., idle_seconds: _Optional[int] = ..., verbosity: _Optional[int] = ..., log_layout: _Optional[str] = ..., holes_are_zeros: bool = ...) -> None: ...

class SessionReply(_message.Message):
    __slots__ = ("started", "ended")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    started: SessionStarted
    ended: SessionEnd
    def __init__(self, started: _Optional[_Union[SessionStarted, _Mapping]] = ..., ended: _Optional[_Union[SessionEnd, _Mapping]] = ...) -> None: ...

class SessionStarted(_message.Message):
    __slots__ = ("worker_pid",)
    WORKER_PID_FIELD_NUMBER: _ClassVar[int]
    worker_pid: int
    def __init__(self, worker_pid: _Optional[int] = ...) -> None: ...

class SessionEnd(_message.Message):
    __slots__ = ("exit_code", "errno", "reason", "stats")
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    ERRNO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    STATS_FIELD_NUMBER: _ClassVar[int]
    exit_code: int
    errno: int
    reason: str
    stats: str
    def __init__(self, exit_code: _Optional[int] = ..., errno: _Optional[int] = ..., reason: _Optional[str] = ..., stats: _Optional[str] = ...) -> None: ...
