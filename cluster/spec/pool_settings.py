"""The spec's ``pools`` section: workers by role, and the engine that each runs."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, model_validator

from cluster.spec.settings import Settings


class Role(StrEnum):
    """What a worker does with a request."""

    PREFILL = "prefill"
    DECODE = "decode"
    COLOCATED = "colocated"


class SpeculativeSettings(Settings):
    """N-gram speculative decoding on decode workers: drafts come from the request's own text."""

    num_tokens: int = Field(3, ge=1, le=16)
    """Draft tokens per step."""
    prompt_lookup_max_tokens: int = Field(4, ge=1)
    """Longest n-gram looked up."""


class EngineSettings(Settings):
    """Settings of one vLLM engine. What is left out takes the pool's profile."""

    block_size_tokens: int = Field(32, ge=1)
    """Tokens per KV block. A multiple of 32 on CPU; equal in all pools."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    """Share of GPU memory for weights, activations and KV."""
    cpu_kv_cache_gib: int = Field(1, ge=1)
    """KV cache of a CPU engine, whole GiB (vLLM takes an integer)."""
    kv_blocks: int | None = Field(None, ge=1)
    """KV cache in blocks, in place of what the memory holds: to try what a full cache does."""
    max_num_seqs: int | None = Field(None, ge=1)
    """Most requests in one step."""
    max_num_batched_tokens: int | None = Field(None, ge=32)
    """Most tokens in one step."""
    enforce_eager: bool | None = None
    """Skip graph capture. Always on for CPU."""
    speculative: SpeculativeSettings | None = None
    """N-gram speculation; decode and colocated pools only."""


class PoolSettings(Settings):
    """Workers of one role."""

    replicas: int = Field(ge=0)
    """Workers that serve from the start."""
    standby_replicas: int = Field(0, ge=0)
    """Workers beyond them that are started, loaded and paired, but get no requests: where a worker dies or the pool
    grows, one serves at once, and what is started meanwhile waits in its place. They cost what others do.
    ``max_replicas`` does not count them, ``autoscaling.max_gpus`` does."""
    role: Role | None = None
    """Role of the workers; by default the pool's own name."""
    accelerators_per_worker: int = Field(0, ge=0)
    """GPUs of each worker. 0 runs the engine on CPU."""
    cpus_per_worker: float = Field(1, gt=0)
    """CPU cores of each worker."""
    memory_gib_per_worker: float | None = Field(None, gt=0)
    """Memory reserved of Ray for each worker; left out, none is."""
    tensor_parallel_size: int = Field(1, ge=1)
    """GPUs that share each layer."""
    expert_parallel: bool = False
    """Shard a mixture-of-experts model by expert in place of within experts."""
    omp_threads: int = Field(1, ge=1)
    """OpenMP threads of a CPU engine."""
    accelerator_type: str | None = None
    """GPU kind, as Ray labels nodes (``H100``); left out, any."""
    node_resource: str | None = None
    """Custom Ray resource that ties the pool to its nodes; left out, workers go anywhere."""
    spread: bool = True
    """Prefer different nodes for the workers of the pool."""
    min_replicas: int = Field(1, ge=0)
    """Fewest workers the autoscaler may leave."""
    max_replicas: int | None = Field(None, ge=0)
    """Most workers the autoscaler may have; left out, ``replicas``."""
    engine: EngineSettings = EngineSettings()
    """Engine settings."""

    @model_validator(mode="after")
    def _check(self) -> PoolSettings:
        if self.accelerators_per_worker == 0 and self.tensor_parallel_size > 1:
            raise ValueError("tensor_parallel_size above 1 needs accelerators_per_worker; CPU engines use 1")
        if self.accelerators_per_worker and self.accelerators_per_worker % self.tensor_parallel_size:
            raise ValueError("accelerators_per_worker must be a multiple of tensor_parallel_size")
        if self.accelerators_per_worker == 0 and self.engine.block_size_tokens % 32:
            raise ValueError(
                "engine.block_size_tokens must be a multiple of 32 on CPU (a limit of vLLM's CPU attention)"
            )
        if self.max_replicas is not None and self.max_replicas < self.replicas:
            raise ValueError("max_replicas must be at least replicas")
        if self.standby_replicas and not self.replicas:
            raise ValueError(
                "standby_replicas needs replicas of at least 1: there is no serving worker to stand by for"
            )
        return self

    @property
    def started_replicas(self) -> int:
        """Workers to start: those that serve and those on standby."""
        return self.replicas + self.standby_replicas

    @property
    def most_replicas(self) -> int:
        """Workers that may serve at most."""
        return self.replicas if self.max_replicas is None else self.max_replicas

    @property
    def gpus_per_worker(self) -> int:
        """What a worker counts against ``autoscaling.max_gpus``: a CPU worker counts as one."""
        return self.accelerators_per_worker or 1


class PoolsSettings(Settings):
    """The three pools. A cluster has prefill and decode, or colocated, or all."""

    prefill: PoolSettings | None = None
    """Compute-bound workers."""
    decode: PoolSettings | None = None
    """Memory-bound workers."""
    colocated: PoolSettings | None = None
    """Workers that do both and hand nothing over."""

    def items(self) -> list[tuple[Role, PoolSettings]]:
        """Pools that are present, with the role of their workers."""
        return [
            (pool.role or role, pool)
            for role, pool in (
                (Role.PREFILL, self.prefill),
                (Role.DECODE, self.decode),
                (Role.COLOCATED, self.colocated),
            )
            if pool is not None
        ]
