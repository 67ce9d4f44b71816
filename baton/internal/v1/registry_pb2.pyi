from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchMembersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchMembersResponse(_message.Message):
    __slots__ = ("members", "pairs")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[Member]
    pairs: _containers.RepeatedCompositeFieldContainer[Pair]
    def __init__(self, members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., pairs: _Optional[_Iterable[_Union[Pair, _Mapping]]] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("worker_id", "role", "state", "address", "metrics_address", "incarnation", "node", "domain", "accelerator", "total_blocks", "block_size_tokens", "pid", "accelerators", "cpus")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    DOMAIN_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    ACCELERATORS_FIELD_NUMBER: _ClassVar[int]
    CPUS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    role: str
    state: str
    address: str
    metrics_address: str
    incarnation: str
    node: str
    domain: str
    accelerator: str
    total_blocks: int
    block_size_tokens: int
    pid: int
    accelerators: int
    cpus: float
    def __init__(self, worker_id: _Optional[str] = ..., role: _Optional[str] = ..., state: _Optional[str] = ..., address: _Optional[str] = ..., metrics_address: _Optional[str] = ..., incarnation: _Optional[str] = ..., node: _Optional[str] = ..., domain: _Optional[str] = ..., accelerator: _Optional[str] = ..., total_blocks: _Optional[int] = ..., block_size_tokens: _Optional[int] = ..., pid: _Optional[int] = ..., accelerators: _Optional[int] = ..., cpus: _Optional[float] = ...) -> None: ...

class Pair(_message.Message):
    __slots__ = ("prefill", "decode", "transport", "handshake_s")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    HANDSHAKE_S_FIELD_NUMBER: _ClassVar[int]
    prefill: str
    decode: str
    transport: str
    handshake_s: float
    def __init__(self, prefill: _Optional[str] = ..., decode: _Optional[str] = ..., transport: _Optional[str] = ..., handshake_s: _Optional[float] = ...) -> None: ...
