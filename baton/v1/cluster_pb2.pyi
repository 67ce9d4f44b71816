from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Role(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROLE_UNSPECIFIED: _ClassVar[Role]
    ROLE_PREFILL: _ClassVar[Role]
    ROLE_DECODE: _ClassVar[Role]
    ROLE_COLOCATED: _ClassVar[Role]

class WorkerState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WORKER_STATE_UNSPECIFIED: _ClassVar[WorkerState]
    WORKER_STATE_STARTING: _ClassVar[WorkerState]
    WORKER_STATE_READY: _ClassVar[WorkerState]
    WORKER_STATE_DRAINING: _ClassVar[WorkerState]
    WORKER_STATE_LOST: _ClassVar[WorkerState]
    WORKER_STATE_STANDBY: _ClassVar[WorkerState]
ROLE_UNSPECIFIED: Role
ROLE_PREFILL: Role
ROLE_DECODE: Role
ROLE_COLOCATED: Role
WORKER_STATE_UNSPECIFIED: WorkerState
WORKER_STATE_STARTING: WorkerState
WORKER_STATE_READY: WorkerState
WORKER_STATE_DRAINING: WorkerState
WORKER_STATE_LOST: WorkerState
WORKER_STATE_STANDBY: WorkerState

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: Status
    def __init__(self, status: _Optional[_Union[Status, _Mapping]] = ...) -> None: ...

class WatchStatusRequest(_message.Message):
    __slots__ = ("interval_s",)
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    interval_s: float
    def __init__(self, interval_s: _Optional[float] = ...) -> None: ...

class WatchStatusResponse(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: Status
    def __init__(self, status: _Optional[_Union[Status, _Mapping]] = ...) -> None: ...

class Status(_message.Message):
    __slots__ = ("cluster", "model", "version", "uptime_s", "workers", "requests", "pairs", "scaling", "lengths", "canary", "models")
    CLUSTER_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    CANARY_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    cluster: str
    model: str
    version: str
    uptime_s: float
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    requests: RequestCounts
    pairs: _containers.RepeatedCompositeFieldContainer[PairStatus]
    scaling: Scaling
    lengths: _containers.RepeatedCompositeFieldContainer[PhaseLength]
    canary: CanaryReport
    models: _containers.RepeatedCompositeFieldContainer[ModelStatus]
    def __init__(self, cluster: _Optional[str] = ..., model: _Optional[str] = ..., version: _Optional[str] = ..., uptime_s: _Optional[float] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., requests: _Optional[_Union[RequestCounts, _Mapping]] = ..., pairs: _Optional[_Iterable[_Union[PairStatus, _Mapping]]] = ..., scaling: _Optional[_Union[Scaling, _Mapping]] = ..., lengths: _Optional[_Iterable[_Union[PhaseLength, _Mapping]]] = ..., canary: _Optional[_Union[CanaryReport, _Mapping]] = ..., models: _Optional[_Iterable[_Union[ModelStatus, _Mapping]]] = ...) -> None: ...

class ModelStatus(_message.Message):
    __slots__ = ("name", "requests", "scaling", "lengths")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    name: str
    requests: RequestCounts
    scaling: Scaling
    lengths: _containers.RepeatedCompositeFieldContainer[PhaseLength]
    def __init__(self, name: _Optional[str] = ..., requests: _Optional[_Union[RequestCounts, _Mapping]] = ..., scaling: _Optional[_Union[Scaling, _Mapping]] = ..., lengths: _Optional[_Iterable[_Union[PhaseLength, _Mapping]]] = ...) -> None: ...

class CanaryReport(_message.Message):
    __slots__ = ("workers", "findings", "has_reference", "tolerance_nat")
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    HAS_REFERENCE_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_NAT_FIELD_NUMBER: _ClassVar[int]
    workers: _containers.RepeatedCompositeFieldContainer[CanaryStatus]
    findings: _containers.RepeatedCompositeFieldContainer[CanaryFinding]
    has_reference: bool
    tolerance_nat: float
    def __init__(self, workers: _Optional[_Iterable[_Union[CanaryStatus, _Mapping]]] = ..., findings: _Optional[_Iterable[_Union[CanaryFinding, _Mapping]]] = ..., has_reference: _Optional[bool] = ..., tolerance_nat: _Optional[float] = ...) -> None: ...

class CanaryStatus(_message.Message):
    __slots__ = ("worker_id", "runs", "failures", "cost_ratio", "last_ok_unix_s", "deviation_nat", "largest_right_nat")
    class FailuresEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    FAILURES_FIELD_NUMBER: _ClassVar[int]
    COST_RATIO_FIELD_NUMBER: _ClassVar[int]
    LAST_OK_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    DEVIATION_NAT_FIELD_NUMBER: _ClassVar[int]
    LARGEST_RIGHT_NAT_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    runs: int
    failures: _containers.ScalarMap[str, int]
    cost_ratio: float
    last_ok_unix_s: float
    deviation_nat: float
    largest_right_nat: float
    def __init__(self, worker_id: _Optional[str] = ..., runs: _Optional[int] = ..., failures: _Optional[_Mapping[str, int]] = ..., cost_ratio: _Optional[float] = ..., last_ok_unix_s: _Optional[float] = ..., deviation_nat: _Optional[float] = ..., largest_right_nat: _Optional[float] = ...) -> None: ...

class CanaryFinding(_message.Message):
    __slots__ = ("unix_s", "worker_id", "sentence")
    UNIX_S_FIELD_NUMBER: _ClassVar[int]
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    SENTENCE_FIELD_NUMBER: _ClassVar[int]
    unix_s: float
    worker_id: str
    sentence: str
    def __init__(self, unix_s: _Optional[float] = ..., worker_id: _Optional[str] = ..., sentence: _Optional[str] = ...) -> None: ...

class PhaseLength(_message.Message):
    __slots__ = ("phase", "requests", "p50_tokens", "p90_tokens", "p99_tokens")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    P50_TOKENS_FIELD_NUMBER: _ClassVar[int]
    P90_TOKENS_FIELD_NUMBER: _ClassVar[int]
    P99_TOKENS_FIELD_NUMBER: _ClassVar[int]
    phase: str
    requests: int
    p50_tokens: int
    p90_tokens: int
    p99_tokens: int
    def __init__(self, phase: _Optional[str] = ..., requests: _Optional[int] = ..., p50_tokens: _Optional[int] = ..., p90_tokens: _Optional[int] = ..., p99_tokens: _Optional[int] = ...) -> None: ...

class Scaling(_message.Message):
    __slots__ = ("pools", "demand", "decisions", "reason", "thinking_severity")
    POOLS_FIELD_NUMBER: _ClassVar[int]
    DEMAND_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    THINKING_SEVERITY_FIELD_NUMBER: _ClassVar[int]
    pools: _containers.RepeatedCompositeFieldContainer[PoolScaling]
    demand: DemandForecast
    decisions: _containers.RepeatedCompositeFieldContainer[ScalingDecision]
    reason: str
    thinking_severity: float
    def __init__(self, pools: _Optional[_Iterable[_Union[PoolScaling, _Mapping]]] = ..., demand: _Optional[_Union[DemandForecast, _Mapping]] = ..., decisions: _Optional[_Iterable[_Union[ScalingDecision, _Mapping]]] = ..., reason: _Optional[str] = ..., thinking_severity: _Optional[float] = ...) -> None: ...

class PoolScaling(_message.Message):
    __slots__ = ("role", "starting", "ready", "draining", "min_replicas", "max_replicas")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STARTING_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    MIN_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    MAX_REPLICAS_FIELD_NUMBER: _ClassVar[int]
    role: Role
    starting: int
    ready: int
    draining: int
    min_replicas: int
    max_replicas: int
    def __init__(self, role: _Optional[_Union[Role, str]] = ..., starting: _Optional[int] = ..., ready: _Optional[int] = ..., draining: _Optional[int] = ..., min_replicas: _Optional[int] = ..., max_replicas: _Optional[int] = ...) -> None: ...

class DemandForecast(_message.Message):
    __slots__ = ("kv_tokens", "kv_high_tokens", "start_s", "worker_kv_tokens", "band_low_tokens", "band_mean_tokens", "band_high_tokens", "prefill_workers", "arrivals_per_s", "prompt_tokens_per_s", "in_flight_requests", "queued_requests", "request_tokens_per_s", "pace")
    KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_HIGH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    START_S_FIELD_NUMBER: _ClassVar[int]
    WORKER_KV_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BAND_LOW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BAND_MEAN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    BAND_HIGH_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_WORKERS_FIELD_NUMBER: _ClassVar[int]
    ARRIVALS_PER_S_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    QUEUED_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    PACE_FIELD_NUMBER: _ClassVar[int]
    kv_tokens: float
    kv_high_tokens: float
    start_s: float
    worker_kv_tokens: float
    band_low_tokens: float
    band_mean_tokens: float
    band_high_tokens: float
    prefill_workers: float
    arrivals_per_s: float
    prompt_tokens_per_s: float
    in_flight_requests: int
    queued_requests: int
    request_tokens_per_s: float
    pace: float
    def __init__(self, kv_tokens: _Optional[float] = ..., kv_high_tokens: _Optional[float] = ..., start_s: _Optional[float] = ..., worker_kv_tokens: _Optional[float] = ..., band_low_tokens: _Optional[float] = ..., band_mean_tokens: _Optional[float] = ..., band_high_tokens: _Optional[float] = ..., prefill_workers: _Optional[float] = ..., arrivals_per_s: _Optional[float] = ..., prompt_tokens_per_s: _Optional[float] = ..., in_flight_requests: _Optional[int] = ..., queued_requests: _Optional[int] = ..., request_tokens_per_s: _Optional[float] = ..., pace: _Optional[float] = ...) -> None: ...

class ScalingDecision(_message.Message):
    __slots__ = ("age_s", "reason")
    AGE_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    age_s: float
    reason: str
    def __init__(self, age_s: _Optional[float] = ..., reason: _Optional[str] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("worker_id", "role", "state", "address", "metrics_address", "incarnation", "node", "accelerator", "running_requests", "waiting_requests", "total_blocks", "used_blocks", "reserved_blocks", "block_size_tokens", "prompt_tokens", "output_tokens", "pid", "preemptions", "spot", "attention_kernels", "model")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    METRICS_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    RESERVED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    BLOCK_SIZE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    SPOT_FIELD_NUMBER: _ClassVar[int]
    ATTENTION_KERNELS_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    role: Role
    state: WorkerState
    address: str
    metrics_address: str
    incarnation: str
    node: str
    accelerator: str
    running_requests: int
    waiting_requests: int
    total_blocks: int
    used_blocks: int
    reserved_blocks: int
    block_size_tokens: int
    prompt_tokens: int
    output_tokens: int
    pid: int
    preemptions: int
    spot: bool
    attention_kernels: _containers.RepeatedScalarFieldContainer[str]
    model: str
    def __init__(self, worker_id: _Optional[str] = ..., role: _Optional[_Union[Role, str]] = ..., state: _Optional[_Union[WorkerState, str]] = ..., address: _Optional[str] = ..., metrics_address: _Optional[str] = ..., incarnation: _Optional[str] = ..., node: _Optional[str] = ..., accelerator: _Optional[str] = ..., running_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., total_blocks: _Optional[int] = ..., used_blocks: _Optional[int] = ..., reserved_blocks: _Optional[int] = ..., block_size_tokens: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., pid: _Optional[int] = ..., preemptions: _Optional[int] = ..., spot: _Optional[bool] = ..., attention_kernels: _Optional[_Iterable[str]] = ..., model: _Optional[str] = ...) -> None: ...

class RequestCounts(_message.Message):
    __slots__ = ("queued", "prefilling", "decoding", "finished", "failed", "rejected", "preempted")
    QUEUED_FIELD_NUMBER: _ClassVar[int]
    PREFILLING_FIELD_NUMBER: _ClassVar[int]
    DECODING_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    REJECTED_FIELD_NUMBER: _ClassVar[int]
    PREEMPTED_FIELD_NUMBER: _ClassVar[int]
    queued: int
    prefilling: int
    decoding: int
    finished: int
    failed: int
    rejected: int
    preempted: int
    def __init__(self, queued: _Optional[int] = ..., prefilling: _Optional[int] = ..., decoding: _Optional[int] = ..., finished: _Optional[int] = ..., failed: _Optional[int] = ..., rejected: _Optional[int] = ..., preempted: _Optional[int] = ...) -> None: ...

class PairStatus(_message.Message):
    __slots__ = ("prefill", "decode", "transport", "handoffs", "bytes", "transfer_s", "handshake_s", "refused")
    PREFILL_FIELD_NUMBER: _ClassVar[int]
    DECODE_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    HANDOFFS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_S_FIELD_NUMBER: _ClassVar[int]
    HANDSHAKE_S_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    prefill: str
    decode: str
    transport: str
    handoffs: int
    bytes: int
    transfer_s: float
    handshake_s: float
    refused: bool
    def __init__(self, prefill: _Optional[str] = ..., decode: _Optional[str] = ..., transport: _Optional[str] = ..., handoffs: _Optional[int] = ..., bytes: _Optional[int] = ..., transfer_s: _Optional[float] = ..., handshake_s: _Optional[float] = ..., refused: _Optional[bool] = ...) -> None: ...
