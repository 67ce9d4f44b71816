from baton.v1 import inference_pb2 as _inference_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WorkerCommand(_message.Message):
    __slots__ = ("submit", "abort", "release")
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    ABORT_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    submit: SubmitLeg
    abort: AbortLeg
    release: ReleaseTicket
    def __init__(self, submit: _Optional[_Union[SubmitLeg, _Mapping]] = ..., abort: _Optional[_Union[AbortLeg, _Mapping]] = ..., release: _Optional[_Union[ReleaseTicket, _Mapping]] = ...) -> None: ...

class SubmitLeg(_message.Message):
    __slots__ = ("leg_id", "token_ids", "sampling", "max_tokens", "min_tokens", "export", "ticket", "priority", "moves_away", "reasoning_ended", "reasoning_end_ids", "leg_number", "cache_salt")
    LEG_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MIN_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    TICKET_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    MOVES_AWAY_FIELD_NUMBER: _ClassVar[int]
    REASONING_ENDED_FIELD_NUMBER: _ClassVar[int]
    REASONING_END_IDS_FIELD_NUMBER: _ClassVar[int]
    LEG_NUMBER_FIELD_NUMBER: _ClassVar[int]
    CACHE_SALT_FIELD_NUMBER: _ClassVar[int]
    leg_id: str
    token_ids: bytes
    sampling: _inference_pb2.Sampling
    max_tokens: int
    min_tokens: int
    export: bool
    ticket: Ticket
    priority: int
    moves_away: bool
    reasoning_ended: bool
    reasoning_end_ids: _containers.RepeatedScalarFieldContainer[int]
    leg_number: int
    cache_salt: str
    def __init__(self, leg_id: _Optional[str] = ..., token_ids: _Optional[bytes] = ..., sampling: _Optional[_Union[_inference_pb2.Sampling, _Mapping]] = ..., max_tokens: _Optional[int] = ..., min_tokens: _Optional[int] = ..., export: _Optional[bool] = ..., ticket: _Optional[_Union[Ticket, _Mapping]] = ..., priority: _Optional[int] = ..., moves_away: _Optional[bool] = ..., reasoning_ended: _Optional[bool] = ..., reasoning_end_ids: _Optional[_Iterable[int]] = ..., leg_number: _Optional[int] = ..., cache_salt: _Optional[str] = ...) -> None: ...

class Ticket(_message.Message):
    __slots__ = ("ticket_id", "source_id", "incarnation", "num_tokens", "expires_in_s", "params_json")
    TICKET_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    PARAMS_JSON_FIELD_NUMBER: _ClassVar[int]
    ticket_id: str
    source_id: str
    incarnation: str
    num_tokens: int
    expires_in_s: float
    params_json: str
    def __init__(self, ticket_id: _Optional[str] = ..., source_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., num_tokens: _Optional[int] = ..., expires_in_s: _Optional[float] = ..., params_json: _Optional[str] = ...) -> None: ...

class AbortLeg(_message.Message):
    __slots__ = ("leg_id",)
    LEG_ID_FIELD_NUMBER: _ClassVar[int]
    leg_id: str
    def __init__(self, leg_id: _Optional[str] = ...) -> None: ...

class ReleaseTicket(_message.Message):
    __slots__ = ("ticket",)
    TICKET_FIELD_NUMBER: _ClassVar[int]
    ticket: Ticket
    def __init__(self, ticket: _Optional[_Union[Ticket, _Mapping]] = ...) -> None: ...

class WorkerEvents(_message.Message):
    __slots__ = ("outputs", "load", "step")
    OUTPUTS_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    outputs: _containers.RepeatedCompositeFieldContainer[LegOutput]
    load: WorkerLoad
    step: Step
    def __init__(self, outputs: _Optional[_Iterable[_Union[LegOutput, _Mapping]]] = ..., load: _Optional[_Union[WorkerLoad, _Mapping]] = ..., step: _Optional[_Union[Step, _Mapping]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("leg_numbers", "token_ids")
    LEG_NUMBERS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    leg_numbers: _containers.RepeatedScalarFieldContainer[int]
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, leg_numbers: _Optional[_Iterable[int]] = ..., token_ids: _Optional[_Iterable[int]] = ...) -> None: ...

class LegOutput(_message.Message):
    __slots__ = ("leg_id", "token_ids", "finish_reason", "stop_reason", "cached_tokens", "logprobs", "transfer_params_json", "transfer", "error", "error_kind", "prompt_scores")
    LEG_ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    FINISH_REASON_FIELD_NUMBER: _ClassVar[int]
    STOP_REASON_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_PARAMS_JSON_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    ERROR_KIND_FIELD_NUMBER: _ClassVar[int]
    PROMPT_SCORES_FIELD_NUMBER: _ClassVar[int]
    leg_id: str
    token_ids: _containers.RepeatedScalarFieldContainer[int]
    finish_reason: str
    stop_reason: str
    cached_tokens: int
    logprobs: _containers.RepeatedCompositeFieldContainer[_inference_pb2.TokenLogprobs]
    transfer_params_json: str
    transfer: Transfer
    error: str
    error_kind: str
    prompt_scores: PromptScores
    def __init__(self, leg_id: _Optional[str] = ..., token_ids: _Optional[_Iterable[int]] = ..., finish_reason: _Optional[str] = ..., stop_reason: _Optional[str] = ..., cached_tokens: _Optional[int] = ..., logprobs: _Optional[_Iterable[_Union[_inference_pb2.TokenLogprobs, _Mapping]]] = ..., transfer_params_json: _Optional[str] = ..., transfer: _Optional[_Union[Transfer, _Mapping]] = ..., error: _Optional[str] = ..., error_kind: _Optional[str] = ..., prompt_scores: _Optional[_Union[PromptScores, _Mapping]] = ...) -> None: ...

class PromptScores(_message.Message):
    __slots__ = ("token_ids", "logprobs", "ranks")
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    token_ids: bytes
    logprobs: bytes
    ranks: bytes
    def __init__(self, token_ids: _Optional[bytes] = ..., logprobs: _Optional[bytes] = ..., ranks: _Optional[bytes] = ...) -> None: ...

class Transfer(_message.Message):
    __slots__ = ("bytes", "duration_s", "start_unix_s", "descriptors")
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DURATION_S_FIELD_NUMBER: _ClassVar[int]
    START_UNIX_S_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTORS_FIELD_NUMBER: _ClassVar[int]
    bytes: int
    duration_s: float
    start_unix_s: float
    descriptors: int
    def __init__(self, bytes: _Optional[int] = ..., duration_s: _Optional[float] = ..., start_unix_s: _Optional[float] = ..., descriptors: _Optional[int] = ...) -> None: ...

class WorkerLoad(_message.Message):
    __slots__ = ("worker_id", "incarnation", "running_requests", "waiting_requests", "used_blocks", "total_blocks", "steps", "prompt_tokens", "output_tokens", "prefill_tokens_per_s", "draining", "hung", "preemptions")
    WORKER_ID_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    RUNNING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    WAITING_REQUESTS_FIELD_NUMBER: _ClassVar[int]
    USED_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BLOCKS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    DRAINING_FIELD_NUMBER: _ClassVar[int]
    HUNG_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    worker_id: str
    incarnation: str
    running_requests: int
    waiting_requests: int
    used_blocks: int
    total_blocks: int
    steps: int
    prompt_tokens: int
    output_tokens: int
    prefill_tokens_per_s: float
    draining: bool
    hung: bool
    preemptions: int
    def __init__(self, worker_id: _Optional[str] = ..., incarnation: _Optional[str] = ..., running_requests: _Optional[int] = ..., waiting_requests: _Optional[int] = ..., used_blocks: _Optional[int] = ..., total_blocks: _Optional[int] = ..., steps: _Optional[int] = ..., prompt_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., prefill_tokens_per_s: _Optional[float] = ..., draining: _Optional[bool] = ..., hung: _Optional[bool] = ..., preemptions: _Optional[int] = ...) -> None: ...
