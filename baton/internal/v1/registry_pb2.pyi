from baton.v1 import cluster_pb2 as _cluster_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DrainStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DRAIN_STAGE_UNSPECIFIED: _ClassVar[DrainStage]
    DRAIN_STAGE_DRAINING: _ClassVar[DrainStage]
    DRAIN_STAGE_DRAINED: _ClassVar[DrainStage]
    DRAIN_STAGE_TIMED_OUT: _ClassVar[DrainStage]
    DRAIN_STAGE_LOST: _ClassVar[DrainStage]
DRAIN_STAGE_UNSPECIFIED: DrainStage
DRAIN_STAGE_DRAINING: DrainStage
DRAIN_STAGE_DRAINED: DrainStage
DRAIN_STAGE_TIMED_OUT: DrainStage
DRAIN_STAGE_LOST: DrainStage

class AddModelRequest(_message.Message):
    __slots__ = ("name", "entry_yaml")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENTRY_YAML_FIELD_NUMBER: _ClassVar[int]
    name: str
    entry_yaml: str
    def __init__(self, name: _Optional[str] = ..., entry_yaml: _Optional[str] = ...) -> None: ...

class AddModelResponse(_message.Message):
    __slots__ = ("elapsed_s", "served_name", "worker_ids")
    ELAPSED_S_FIELD_NUMBER: _ClassVar[int]
    SERVED_NAME_FIELD_NUMBER: _ClassVar[int]
    WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    elapsed_s: float
    served_name: str
    worker_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, elapsed_s: _Optional[float] = ..., served_name: _Optional[str] = ..., worker_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class RemoveModelRequest(_message.Message):
    __slots__ = ("served_name", "timeout_s")
    SERVED_NAME_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    served_name: str
    timeout_s: float
    def __init__(self, served_name: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class ModelEntry(_message.Message):
    __slots__ = ("served_name", "spec_json", "worker_prefix", "leaving")
    SERVED_NAME_FIELD_NUMBER: _ClassVar[int]
    SPEC_JSON_FIELD_NUMBER: _ClassVar[int]
    WORKER_PREFIX_FIELD_NUMBER: _ClassVar[int]
    LEAVING_FIELD_NUMBER: _ClassVar[int]
    served_name: str
    spec_json: str
    worker_prefix: str
    leaving: bool
    def __init__(self, served_name: _Optional[str] = ..., spec_json: _Optional[str] = ..., worker_prefix: _Optional[str] = ..., leaving: _Optional[bool] = ...) -> None: ...

class CheckAnswersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CheckAnswersResponse(_message.Message):
    __slots__ = ("worker_id", "prefill_id", "right", "deviation_nat", "prompt", "against", "duration_s", "sentence")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    PREFILL_ID_FIELD_NUMBER: _ClassVar[int]
    RIGHT_FIELD_NUMBER: _ClassVar[int]
    DEVIATION_NAT_FIELD_NUMBER: _ClassVar[int]
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    prefill_id: str
    right: bool
    deviation_nat: float
    prompt: str
    against: str
    duration_s: float
    sentence: str
    def __init__(self, worker_id: _Optional[str] = ..., prefill_id: _Optional[str] = ..., right: _Optional[bool] = ..., deviation_nat: _Optional[float] = ..., prompt: _Optional[str] = ..., against: _Optional[str] = ..., duration_s: _Optional[float] = ..., sentence: _Optional[str] = ...) -> None: ...

class ChangeRoleRequest(_message.Message):
    __slots__ = ("worker_id", "role")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    role: str
    def __init__(self, worker_id: _Optional[str] = ..., role: _Optional[str] = ...) -> None: ...

class ChangeRoleResponse(_message.Message):
    __slots__ = ("elapsed_s", "pid")
    ELAPSED_S_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    elapsed_s: float
    pid: int
    def __init__(self, elapsed_s: _Optional[float] = ..., pid: _Optional[int] = ...) -> None: ...

class ReportRequestsRequest(_message.Message):
    __slots__ = ("gateway", "sequence", "arrived", "finished", "in_flight", "model")
    GATEWAY_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    gateway: str
    sequence: int
    arrived: _containers.RepeatedCompositeFieldContainer[RequestArrival]
    finished: _containers.RepeatedCompositeFieldContainer[RequestEnd]
    in_flight: _containers.RepeatedCompositeFieldContainer[RequestFlight]
    model: str
    def __init__(self, gateway: _Optional[str] = ..., sequence: _Optional[int] = ..., arrived: _Optional[_Iterable[_Union[RequestArrival, _Mapping]]] = ..., finished: _Optional[_Iterable[_Union[RequestEnd, _Mapping]]] = ..., in_flight: _Optional[_Iterable[_Union[RequestFlight, _Mapping]]] = ..., model: _Optional[str] = ...) -> None: ...

class RequestArrival(_message.Message):
    __slots__ = ("age_s", "request_class", "isl_tokens")
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    REQUEST_CLASS_FIELD_NUMBER: _ClassVar[int]
    ISL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    age_s: float
    request_class: str
    isl_tokens: int
    def __init__(self, age_s: _Optional[float] = ..., request_class: _Optional[str] = ..., isl_tokens: _Optional[int] = ...) -> None: ...

class RequestFlight(_message.Message):
    __slots__ = ("request", "request_class", "priority", "isl_tokens", "generated_tokens", "answer_tokens", "decode_id", "phase")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_CLASS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    ISL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DECODE_ID_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    request: int
    request_class: str
    priority: int
    isl_tokens: int
    generated_tokens: int
    answer_tokens: int
    decode_id: str
    phase: str
    def __init__(self, request: _Optional[int] = ..., request_class: _Optional[str] = ..., priority: _Optional[int] = ..., isl_tokens: _Optional[int] = ..., generated_tokens: _Optional[int] = ..., answer_tokens: _Optional[int] = ..., decode_id: _Optional[str] = ..., phase: _Optional[str] = ...) -> None: ...

class RequestEnd(_message.Message):
    __slots__ = ("request", "request_class", "isl_tokens", "cached_tokens", "reasoning_tokens", "answer_tokens", "ttft_s", "e2e_s")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    REQUEST_CLASS_FIELD_NUMBER: _ClassVar[int]
    ISL_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    REASONING_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ANSWER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TTFT_S_FIELD_NUMBER: _ClassVar[int]
    E2E_S_FIELD_NUMBER: _ClassVar[int]
    request: int
    request_class: str
    isl_tokens: int
    cached_tokens: int
    reasoning_tokens: int
    answer_tokens: int
    ttft_s: float
    e2e_s: float
    def __init__(self, request: _Optional[int] = ..., request_class: _Optional[str] = ..., isl_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., reasoning_tokens: _Optional[int] = ..., answer_tokens: _Optional[int] = ..., ttft_s: _Optional[float] = ..., e2e_s: _Optional[float] = ...) -> None: ...

class ReportRequestsResponse(_message.Message):
    __slots__ = ("scaling",)
    SCALING_FIELD_NUMBER: _ClassVar[int]
    scaling: _cluster_pb2.Scaling
    def __init__(self, scaling: _Optional[_Union[_cluster_pb2.Scaling, _Mapping]] = ...) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("worker_ids", "timeout_s", "replace", "node_leaves")
    WORKER_IDS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    NODE_LEAVES_FIELD_NUMBER: _ClassVar[int]
    worker_ids: _containers.RepeatedScalarFieldContainer[str]
    timeout_s: float
    replace: bool
    node_leaves: bool
    def __init__(self, worker_ids: _Optional[_Iterable[str]] = ..., timeout_s: _Optional[float] = ..., replace: _Optional[bool] = ..., node_leaves: _Optional[bool] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("workers", "elapsed_s", "timeout_s")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    ELAPSED_S_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerDrain]
    elapsed_s: float
    timeout_s: float
    def __init__(self, workers: _Optional[_Iterable[_Union[WorkerDrain, _Mapping]]] = ..., elapsed_s: _Optional[float] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class WorkerDrain(_message.Message):
    __slots__ = ("worker_id", "stage", "requests_at_start", "requests", "used_blocks")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_AT_START_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    stage: DrainStage
    requests_at_start: int
    requests: int
    used_blocks: int
    def __init__(self, worker_id: _Optional[str] = ..., stage: _Optional[_Union[DrainStage, str]] = ..., requests_at_start: _Optional[int] = ..., requests: _Optional[int] = ..., used_blocks: _Optional[int] = ...) -> None: ...

class WatchMembersRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class WatchMembersResponse(_message.Message):
    __slots__ = ("members", "pairs", "starting_decode_workers", "canary", "starting_by_model", "models")
    class StartingByModelEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    STARTING_DECODE_WORKERS_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    STARTING_BY_MODEL_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[Member]
    pairs: _containers.RepeatedCompositeFieldContainer[Pair]
    starting_decode_workers: int
    canary: _cluster_pb2.CanaryReport
    starting_by_model: _containers.ScalarMap[str, int]
    models: _containers.RepeatedCompositeFieldContainer[ModelEntry]
    def __init__(self, members: _Optional[_Iterable[_Union[Member, _Mapping]]] = ..., pairs: _Optional[_Iterable[_Union[Pair, _Mapping]]] = ..., starting_decode_workers: _Optional[int] = ..., canary: _Optional[_Union[_cluster_pb2.CanaryReport, _Mapping]] = ..., starting_by_model: _Optional[_Mapping[str, int]] = ..., models: _Optional[_Iterable[_Union[ModelEntry, _Mapping]]] = ...) -> None: ...

class Member(_message.Message):
    __slots__ = ("worker_id", "role", "state", "address", "metrics_address", "incarnation", "node", "domain", "accelerator", "total_blocks", "block_size_tokens", "pid", "accelerators", "cpus", "revision", "spot", "attention_kernels", "vocab_size", "max_model_len_tokens", "model")
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
    REVISION_FIELD_NUMBER: _ClassVar[int]
    SPOT_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_KERNELS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_MODEL_LEN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
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
    revision: str
    spot: bool
    attention_kernels: _containers.RepeatedScalarFieldContainer[str]
    vocab_size: int
    max_model_len_tokens: int
    model: str
    def __init__(self, worker_id: _Optional[str] = ..., role: _Optional[str] = ..., state: _Optional[str] = ..., address: _Optional[str] = ..., metrics_address: _Optional[str] = ..., incarnation: _Optional[str] = ..., node: _Optional[str] = ..., domain: _Optional[str] = ..., accelerator: _Optional[str] = ..., total_blocks: _Optional[int] = ..., block_size_tokens: _Optional[int] = ..., pid: _Optional[int] = ..., accelerators: _Optional[int] = ..., cpus: _Optional[float] = ..., revision: _Optional[str] = ..., spot: _Optional[bool] = ..., attention_kernels: _Optional[_Iterable[str]] = ..., vocab_size: _Optional[int] = ..., max_model_len_tokens: _Optional[int] = ..., model: _Optional[str] = ...) -> None: ...

class Pair(_message.Message):
    __slots__ = ("prefill", "decode", "transport", "handshake_s", "refused")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    HANDSHAKE_S_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    prefill: str
    decode: str
    transport: str
    handshake_s: float
    refused: bool
    def __init__(self, prefill: _Optional[str] = ..., decode: _Optional[str] = ..., transport: _Optional[str] = ..., handshake_s: _Optional[float] = ..., refused: _Optional[bool] = ...) -> None: ...
