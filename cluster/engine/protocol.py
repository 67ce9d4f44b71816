"""What a worker needs of an engine: `vllm_engine.py` is the real one, tests have a fake under one contract."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from baton.v1.inference_pb2 import Sampling

HANDOFFS = "baton_handoffs"
"""Key of vLLM's connector statistics: rows of engine request id, bytes, seconds, unix start time, descriptors."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a started engine is. ``incarnation`` is new for every start; engines of two ``version`` share no KV.

    ``attention_kernels`` are the names of those that its layers use; empty where the engine does not say.
    """

    incarnation: str
    total_blocks: int
    block_size_tokens: int
    max_model_len_tokens: int
    vocab_size: int
    version: str = ""
    attention_kernels: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class EngineLoad:
    """What an engine does at one time. ``steps`` grows with every step: progress, not only life.

    ``preemptions`` counts the times that a request lost its blocks to others and was computed again.
    ``timed_steps`` are those that began with a request running, and ``timed_s`` the seconds from one to the next; both
    are 0 for an engine that does not time its steps.
    """

    running_requests: int = 0
    waiting_requests: int = 0
    used_blocks: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    prefill_tokens_per_s: float = 0.0
    preemptions: int = 0
    timed_steps: int = 0
    timed_s: float = 0.0


@dataclass(frozen=True, slots=True)
class EngineLeg:
    """One piece of work. ``transfer_params`` None: a plain local request.

    Legs of two ``cache_salt`` share no cached KV.
    """

    leg_id: str
    token_ids: list[int]
    sampling: Sampling
    max_tokens: int
    min_tokens: int = 0
    reasoning_ended: bool | None = None
    """Where the sampling has a grammar and the model reasons: whether the grammar begins with the first token (True) or
    after the next ``reasoning_end_ids`` (False); None for a model that does not reason."""
    reasoning_end_ids: list[int] = field(default_factory=list)
    transfer_params: dict[str, Any] | None = None
    priority: int = 0
    cache_salt: str = ""


@dataclass(frozen=True, slots=True)
class WeightSums:
    """Checksums of pieces ``first`` and following of an engine's weights, as its kernels read them.

    ``layout`` is equal where two engines cut the same weights into the same ``pieces``, so that sums may be compared.
    ``duration_s`` is how long the engine could do nothing else.
    """

    layout: str
    pieces: int
    first: int
    sums: list[str]
    duration_s: float


@dataclass(frozen=True, slots=True)
class TransferFigures:
    """Movement of one request's KV as NIXL measured it."""

    kv_bytes: int
    duration_s: float
    start_unix_s: float
    descriptors: int


@dataclass(frozen=True, slots=True)
class TokenAlternatives:
    """Log-probabilities of one output token: (token id, log-probability, rank), the chosen one first."""

    rows: list[tuple[int, float, int]]


@dataclass(frozen=True, slots=True)
class PromptScores:
    """Log-probabilities of a leg's prompt tokens but the first, which has none: a row for each.

    In a row the prompt's own token comes first, then the alternatives, the likeliest first; ``ranks`` has one number a
    row, the rank of the prompt's own token.
    """

    token_ids: NDArray[np.uint32]
    logprobs: NDArray[np.float32]
    ranks: NDArray[np.uint32]


@dataclass(slots=True)
class EngineOutput:
    """New tokens of a leg. ``finish_reason`` is empty while it goes on; else stop, length or abort."""

    leg_id: str
    token_ids: list[int]
    finish_reason: str = ""
    stop_reason: str = ""
    cached_tokens: int = 0
    logprobs: list[TokenAlternatives] = field(default_factory=list)
    transfer_params: dict[str, Any] | None = None
    transfer: TransferFigures | None = None
    prompt_scores: PromptScores | None = None
    """With the first token, where the sampling has ``prompt_logprobs``; nothing cached is used then."""


class Engine(Protocol):
    """One engine replica."""

    async def start(self) -> EngineInfo:
        """Load the model and be ready to generate.

        Raises:
            EngineFailed: the engine could not start; the text says why.
        """
        ...

    def generate(self, leg: EngineLeg) -> AsyncIterator[EngineOutput]:
        """Run a leg. After `abort` its last output has the finish reason ``abort``.

        Raises:
            InvalidRequest: the engine refused the sampling settings.
            EngineFailed: the engine broke.
            TransferBroken: the KV could not be read.
        """
        ...

    async def abort(self, leg_id: str) -> None:
        """Stop a leg and free its blocks; unknown and finished legs are ignored."""
        ...

    async def release(self, transfer_params: dict[str, Any]) -> None:
        """Notify the source of the parameters that its blocks will not be read."""
        ...

    async def read_weights(self, first: int, budget_s: float) -> WeightSums:
        """Checksums of some of the weights, from piece ``first`` (modulo their number) on: as many
        as fit the time, at least one.

        The engine makes no step meanwhile.

        Raises:
            EngineFailed: it cannot read them.
        """
        ...

    async def forget_kv(self) -> None:
        """Drop all cached KV; running requests compute theirs again from their tokens."""
        ...

    def load(self) -> EngineLoad:
        """What the engine does at present; cheap."""
        ...

    async def check_health(self) -> None:
        """Ask the engine whether it lives.

        Raises:
            WorkerDied: it does not.
        """
        ...

    async def stop(self) -> None:
        """End the engine and free everything it holds."""
        ...
