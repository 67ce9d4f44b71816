"""The ``fleet:`` block of a scenario: pools of workers, by stated constants or by model and kind of GPU, and links."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from cluster.errors import ConfigError, PlacementInfeasible
from cluster.hardware.catalogue import gpu as gpu_named
from cluster.hardware.engine_constants import engine_constants
from cluster.model.model_choice import ModelChoice
from cluster.spec.config import Role, TransferSettings
from cluster.spec.settings import Settings
from decode_workers.cost import DecodeCost
from kv_transfer.blocks import kv_bytes_per_token
from kv_transfer.cost import Link, TransferCost
from planner.simulator.cost import AffineCost, AffineTransfer
from planner.simulator.cost import TransferCost as AnyTransferCost
from planner.simulator.fleet import FleetSpec, PoolSpec
from planner.simulator.profile import EngineProfile
from prefill_workers.cost import PrefillCost


class CostBlock(Settings):
    """Constants of an engine step, measured or stated; see `AffineCost`."""

    decode_base_s: float = Field(ge=0)
    decode_request_s: float = Field(0.0, ge=0)
    decode_context_s: float = Field(0.0, ge=0)
    prefill_base_s: float = Field(0.0, ge=0)
    prefill_token_s: float = Field(ge=0)
    prefill_pair_s: float = Field(0.0, ge=0)


class PoolBlock(Settings):
    """Workers of one role: by ``gpu`` (the cost models say how fast, and how much KV fits) or by ``cost``."""

    role: Role
    replicas: int = Field(ge=0)
    start_s: float = Field(60.0, ge=0)
    """Seconds from the decision to start a worker until it serves."""
    standby_replicas: int = Field(0, ge=0)
    """Workers beyond ``replicas``, ready at the start, that get no requests until one that serves dies or the pool
    grows; their GPU-hours count."""
    domain: str = ""
    """NVLink domain."""
    gpu: str | None = None
    """Kind of GPU in ``cluster/hardware/gpus.csv``; takes ``fleet.model``. In place of ``cost``."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs of one worker, with ``gpu``."""
    memory_utilisation: float | None = Field(None, gt=0, le=1)
    """Share of GPU memory for weights, activations and KV, with ``gpu``; left out, the engine's default."""
    gpus: int | None = Field(None, ge=0)
    """GPUs of one worker, for GPU-hours; left out, ``tensor_parallel``."""
    kv_capacity_tokens: int | None = Field(None, ge=1)
    """Tokens whose KV one worker holds; with ``gpu`` it follows from the model unless stated, for a model of windows or
    states at requests of 8,192 tokens."""
    kv_bytes_per_token: float | None = Field(None, gt=0)
    """For transfers; with ``gpu`` it follows from the model unless stated."""
    block_size_tokens: int = Field(16, ge=1)
    max_num_seqs: int = Field(256, ge=1)
    max_num_batched_tokens: int = Field(8192, ge=1)
    overhead_s: float | None = Field(None, ge=0)
    """Seconds outside the engine before a first token; with ``gpu`` the engine's own unless stated, else 0."""
    cost: CostBlock | None = None
    """Stated constants. In place of ``gpu``."""

    @model_validator(mode="after")
    def _check(self) -> PoolBlock:
        if (self.gpu is None) == (self.cost is None):
            raise ValueError("give gpu (with fleet.model) or cost")
        if self.cost is not None and self.kv_capacity_tokens is None:
            raise ValueError("cost needs kv_capacity_tokens")
        return self


class LinkBlock(Settings):
    """One kind of link between workers."""

    bytes_per_s: float = Field(gt=0)
    latency_s: float = Field(0.0, ge=0)


class FleetBlock(Settings):
    """The workers and what lies between them."""

    model: ModelChoice | None = None
    """What the pools with ``gpu`` serve."""
    engine: str = "vllm"
    """Row of ``cluster/hardware/engine_constants.csv``, for pools with ``gpu``."""
    expert_parallel: bool = False
    """Experts placed whole, for pools with ``gpu``."""
    pools: list[PoolBlock] = Field(min_length=1)
    link: LinkBlock | Link = LinkBlock(bytes_per_s=49.5e9, latency_s=0.00038)
    """Rate and latency, or a kind (``nvlink``, ``rdma``, ``tcp``, ``shared_memory``, ``infinite``) of the first pool's
    GPU. Left out: one 400 Gb/s NIC as NIXL was measured on it."""
    domain_link: LinkBlock | Link | None = None
    """Same, within one NVLink domain."""
    local_prefill_below_tokens: int = Field(0, ge=0)
    """As ``transfer.local_prefill_below_tokens`` of the cluster spec."""
    local_prefill_after_s: float | None = Field(TransferSettings().local_prefill_after_s, ge=0)
    """As ``transfer.local_prefill_after_s`` of the cluster spec, with its default."""

    @model_validator(mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("model"), str):
            return value | {"model": {"name": value["model"]}}
        return value

    @model_validator(mode="after")
    def _check(self) -> FleetBlock:
        if self.model is None and any(pool.gpu is not None for pool in self.pools):
            raise ValueError("pools with gpu need fleet.model, such as `model: Qwen3-32B`")
        return self

    def build(self) -> FleetSpec:
        """The fleet.

        Raises:
            ConfigError: unknown model, GPU or engine, or a model that does not fit the pool's GPUs.
        """
        made: dict[tuple[object, ...], EngineProfile] = {}
        pools = []
        for at, pool in enumerate(self.pools):
            # One cost model for equal workers, so that they share a table of step times.
            key = tuple(sorted((name, repr(value)) for name, value in pool if name not in _NOT_OF_THE_ENGINE))
            if key not in made:
                made[key] = self._stated(pool) if pool.cost is not None else self._modelled(pool, at)
            pools.append(
                PoolSpec(pool.role, made[key], pool.replicas, pool.start_s, pool.domain, pool.standby_replicas)
            )
        near = self.domain_link
        return FleetSpec(
            pools,
            self._transfer(self.link),
            self._transfer(near) if near is not None else None,
            self.local_prefill_below_tokens,
            self.local_prefill_after_s,
        )

    def _stated(self, pool: PoolBlock) -> EngineProfile:
        assert pool.cost is not None and pool.kv_capacity_tokens is not None
        cost = AffineCost(**pool.cost.model_dump())
        return EngineProfile(
            decode=cost,
            prefill=cost,
            mixed=cost,
            total_blocks=max(1, pool.kv_capacity_tokens // pool.block_size_tokens),
            block_size_tokens=pool.block_size_tokens,
            max_num_seqs=pool.max_num_seqs,
            max_num_batched_tokens=pool.max_num_batched_tokens,
            kv_bytes_per_token=pool.kv_bytes_per_token or 131072.0,
            overhead_s=pool.overhead_s or 0.0,
            gpus=pool.tensor_parallel if pool.gpus is None else pool.gpus,
            name=pool.role.value,
        )

    def _modelled(self, pool: PoolBlock, at: int) -> EngineProfile:
        assert pool.gpu is not None and self.model is not None
        model, engine, gpu = self.model.geometry(), engine_constants(self.engine), gpu_named(pool.gpu)
        width = self.model.kv_dtype_bytes or model.kv_dtype_bytes
        decode = DecodeCost(
            model,
            gpu,
            engine,
            pool.tensor_parallel,
            kv_dtype_bytes=width,
            expert_parallel=self.expert_parallel,
            memory_utilisation=pool.memory_utilisation,
        )
        prefill = PrefillCost(
            model,
            gpu,
            engine,
            pool.tensor_parallel,
            kv_dtype_bytes=width,
            expert_parallel=self.expert_parallel,
            chunk_tokens=pool.max_num_batched_tokens,
        )
        try:
            capacity = pool.kv_capacity_tokens or decode.kv_capacity_tokens()
        except PlacementInfeasible as error:
            raise ConfigError(f"fleet.pools.{at}: {error.message}; raise tensor_parallel") from error
        return EngineProfile(
            decode=decode,
            prefill=prefill,
            mixed=decode,
            total_blocks=max(1, capacity // pool.block_size_tokens),
            block_size_tokens=pool.block_size_tokens,
            max_num_seqs=pool.max_num_seqs,
            max_num_batched_tokens=pool.max_num_batched_tokens,
            kv_bytes_per_token=pool.kv_bytes_per_token or kv_bytes_per_token(model, width),
            overhead_s=engine.first_token_s if pool.overhead_s is None else pool.overhead_s,
            gpus=pool.tensor_parallel if pool.gpus is None else pool.gpus,
            name=pool.gpu,
            prefill_first=engine.prefill_first,
        )

    def _transfer(self, link: LinkBlock | Link) -> AnyTransferCost:
        if isinstance(link, LinkBlock):
            return AffineTransfer(link.bytes_per_s, link.latency_s)
        first = next((pool for pool in self.pools if pool.gpu is not None), None)
        if first is None or first.gpu is None:
            raise ConfigError(f"fleet.link={link.value}: a kind of link needs a pool with gpu; else give bytes_per_s")
        return TransferCost.over(link, gpu_named(first.gpu), first.tensor_parallel)


_NOT_OF_THE_ENGINE = ("role", "replicas", "standby_replicas", "start_s", "domain")
