"""The cluster spec: one YAML file, checked as a whole before anything starts.

Every key is listed here with its unit, default and reason; an unknown key is an error that names its path.
The Helm chart copies its ``config:`` block into a file of this form, so there is one schema, not two.
"""

from __future__ import annotations

import importlib.resources
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
import yaml
from pydantic import Field, model_validator

from cluster.errors import ConfigError
from cluster.spec.autoscaling_settings import AutoscalingSettings
from cluster.spec.settings import Settings as Settings


class Role(StrEnum):
    """What a worker does with a request."""

    PREFILL = "prefill"
    DECODE = "decode"
    COLOCATED = "colocated"


class Transport(StrEnum):
    """How KV bytes may travel between two workers, best first."""

    NVLINK = "nvlink"
    RDMA = "rdma"
    SHARED_MEMORY = "shared_memory"
    TCP = "tcp"


Effort = Literal["none", "low", "medium", "high"]
"""How hard a caller asks the model to think."""


class ReasoningSettings(Settings):
    """How this model marks its reasoning. Leave the section out for a model that does not think."""

    start: str = Field("<think>", min_length=1)
    """Text that opens the reasoning. The chat template may already end with it."""
    end: str = Field("</think>", min_length=1)
    """Text that closes the reasoning and begins the answer."""
    effort_budgets_tokens: dict[Effort, Annotated[int, Field(ge=0)]] = {  # noqa: RUF012  # pydantic copies it
        "none": 0,
        "low": 512,
        "medium": 4096,
        "high": 32768,
    }
    """Thinking budget in tokens for each effort a caller may name."""
    answer_reserve_tokens: int = Field(64, ge=1)
    """Tokens of ``max_tokens`` kept for the answer: the reasoning is closed before it takes them. At most half of
    ``max_tokens`` is kept."""
    closing_window_tokens: int = Field(16, ge=0)
    """A trace that is to be closed is closed at the end of a line, if one comes when fewer tokens than these are left
    of its budget: behind half a line a model tends to think on. A budget below it holds no line and is none."""
    hard_stop_slack_tokens: int = Field(16, ge=0)
    """Tokens past the budget that may count as reasoning: the markers, and what a model thinks behind a closed marker
    until it closes the reasoning once more. So many tokens of an answer are held back after a trace was closed."""


class ModelSettings(Settings):
    """The model that every worker serves."""

    path: str = Field(min_length=1)
    """Folder with config.json, weights and tokenizer, the same on every node. ``~`` and ``${VAR}`` are expanded."""
    served_name: str = Field(min_length=1)
    """Name that callers ask for."""
    max_model_len_tokens: int = Field(ge=1)
    """Longest prompt plus output, in tokens."""
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16"
    """Type of weights and KV. Engines of different types cannot exchange KV."""
    quantization: Literal["fp8"] | None = None
    """Weight quantisation made at load time; leave out to load what the folder holds."""
    kv_cache_dtype: Literal["auto", "fp8"] = "auto"
    """Type of KV blocks; ``auto`` follows ``dtype``."""
    trust_remote_code: bool = False
    """Let the model folder run code of its own."""
    reasoning: ReasoningSettings | None = None
    """Reasoning markers and budgets, for a model that thinks."""


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
            raise ValueError("standby_replicas needs replicas of at least 1: there is nobody to stand by for")
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


class TransferSettings(Settings):
    """How KV moves."""

    transports: list[Transport] = Field(default_factory=lambda: list(Transport), min_length=1)
    """Transports that may be used; the best one a pair has in common is chosen."""
    lease_s: int = Field(30, ge=6)
    """Seconds that prefill holds blocks nobody has read; decode's heartbeats renew it."""
    ticket_deadline_s: float = Field(20, gt=0)
    """Seconds after which an unused handoff ticket is refused. Below the lease, or the blocks may be gone."""
    retry_budget: int = Field(2, ge=0)
    """New prefills that one request may have after a failed handoff or a lost worker."""
    local_prefill_below_tokens: int = Field(0, ge=0)
    """Uncached prompt tokens up to which decode prefills by itself, because the handoff would cost more. 0: never."""
    local_prefill_after_s: float | None = Field(1.0, ge=0)
    """Expected seconds in a crowded prefill pool past which a decode worker prefills by itself, if it would be done
    in less than four fifths of them. null: never."""

    @model_validator(mode="after")
    def _check(self) -> TransferSettings:
        if self.ticket_deadline_s >= self.lease_s:
            raise ValueError("ticket_deadline_s must be below lease_s, or a ticket outlives the blocks it names")
        return self


class GatewaySettings(Settings):
    """What callers reach, and its limits."""

    host: str = "127.0.0.1"
    """Address to listen on; `::` is every address of both IP families."""
    grpc_port: int = Field(50051, ge=0, le=65535)
    """gRPC port; 0 takes a free one."""
    http_port: int = Field(8000, ge=0, le=65535)
    """OpenAI HTTP port; 0 takes a free one."""
    metrics_port: int = Field(9090, ge=0, le=65535)
    """Prometheus port; 0 takes a free one."""
    replicas: int = Field(1, ge=1, le=64)
    """Gateways that serve at once. On one machine each takes the ports after the last one's; 0 stays 0."""
    max_queued_requests: int = Field(256, ge=0)
    """Requests that may wait for workers before new ones are refused."""
    max_streams: int = Field(4096, ge=1)
    """Requests that one gateway holds at once, running and waiting, before new ones are refused."""
    max_request_bytes: int = Field(4 << 20, ge=1024)
    """Largest gRPC message or HTTP body."""
    max_header_bytes: int = Field(16 << 10, ge=1024)
    """Most gRPC metadata of a call; and the longest HTTP header line."""
    max_streams_per_connection: int = Field(4096, ge=1)
    """gRPC streams that one connection may have open."""
    body_timeout_s: float = Field(30, gt=0)
    """Seconds in which an HTTP body must have come, and an idle HTTP connection must send its next request."""
    slow_reader_timeout_s: float = Field(60, gt=0)
    """Seconds that a reply may wait for its reader to take the next piece before the request is ended."""
    max_choices: int = Field(16, ge=1)
    """Largest ``n``."""
    max_logprobs: int = Field(20, ge=0)
    """Most alternatives per token."""
    default_deadline_s: float = Field(3600, gt=0)
    """Deadline of a request that names none."""
    default_max_tokens: int | None = Field(None, ge=1)
    """Output limit of a request that names none; left out, what fits the model's length."""
    forecast_osl_tokens: int = Field(512, ge=1)
    """Output length assumed before any request has finished, for reserving KV."""


class TenantSettings(Settings):
    """What one tenant may have. Limits are of the cluster: each gateway holds its share of them."""

    weight: float = Field(1.0, gt=0, le=1e6)
    """Share of the tokens while several tenants wait: twice the weight, twice the tokens."""
    max_in_flight: int | None = Field(None, ge=1)
    """Most requests at once; left out, no limit."""
    tokens_per_s: float | None = Field(None, gt=0)
    """Most prompt and output tokens a second over time; left out, no limit."""
    burst_tokens: float | None = Field(None, gt=0)
    """Tokens that may come at once before the rate holds; left out, ten seconds of the rate."""
    max_priority: int = Field(1000, ge=-1000, le=1000)
    """Highest priority that the tenant's requests may claim; a higher one counts as this."""


class ListenerTls(Settings):
    """TLS of the gateway's listeners. Files, so that Kubernetes mounts them from a Secret; read at start."""

    certificate_file: str = Field(min_length=1)
    """PEM certificate chain that callers are shown."""
    private_key_file: str = Field(min_length=1)
    """PEM private key of the certificate, without a passphrase."""
    client_ca_file: str | None = None
    """PEM certificates that a caller's certificate must be signed by (mTLS); left out, callers need none."""


class InternalTls(Settings):
    """Mutual TLS between gateways, workers and the controller. The files must be on every node."""

    ca_file: str = Field(min_length=1)
    """PEM certificates that every peer's certificate must be signed by; an authority for this cluster alone."""
    certificate_file: str = Field(min_length=1)
    """PEM certificate chain of this side, for both client and server use."""
    private_key_file: str = Field(min_length=1)
    """PEM private key of the certificate, without a passphrase."""
    server_name: str = Field("baton.internal", min_length=1)
    """Name that all certificates carry as a DNS subject alternative name: workers are called by address."""


class JwtSettings(Settings):
    """Bearer tokens signed by an identity provider, as an alternative to keys."""

    algorithm: Literal["RS256", "ES256", "EdDSA", "HS256"]
    """The one algorithm accepted; a token's own header is not asked."""
    key_file: str = Field(min_length=1)
    """PEM public key, or for HS256 a secret of at least 32 bytes."""
    issuer: str = Field(min_length=1)
    """``iss`` that tokens must have."""
    audience: str = Field(min_length=1)
    """``aud`` that tokens must have."""
    tenant_claim: str = Field("tenant", min_length=1)
    """Claim that names the tenant. A token without it is refused."""


class SecuritySettings(Settings):
    """Who may call, and who is believed. Secrets are in files; none is ever in the spec. See docs/security.md."""

    tls: ListenerTls | None = None
    """TLS of gRPC and HTTP; left out, plaintext."""
    internal_tls: InternalTls | None = None
    """Mutual TLS of gateway to worker and gateway to registry; left out, plaintext."""
    cluster_secret_file: str | None = Field(None, min_length=1)
    """File with the secret that gateways show to workers and to the registry; at least 32 characters, the same on
    every node. Left out, none is asked for."""
    api_keys_file: str | None = Field(None, min_length=1)
    """YAML file with hashes of keys, made by `baton keys`; read again when it changes. With it or ``jwt``, nothing but
    health answers without a valid key."""
    jwt: JwtSettings | None = None
    """Signed tokens accepted beside keys."""
    open_metrics: bool = False
    """Serve metrics without key and TLS even where both are on, for a scraper in an isolated network."""
    log_text: bool = False
    """Log prompts and answers. Off: no log has a word of either."""


class DrainSettings(Settings):
    """How a worker is emptied before it is stopped."""

    timeout_s: float = Field(60.0, gt=0)
    """Seconds until a draining worker is stopped with what it still has. A pod's grace period must be longer."""
    moves_at_once: int = Field(4, ge=1)
    """Requests that one gateway moves off a worker at a time. Its stream pauses while it moves; the others run."""


class CanarySettings(Settings):
    """Fixed prompts that every worker answers, alone and behind a handoff, so that a worker that computes wrongly is
    taken out of service."""

    enabled: bool = True
    """Ask workers before they serve, and from time to time after."""
    interval_s: float = Field(300.0, gt=0)
    """Seconds after which each worker, and each pair, is asked again; longer where ``max_share`` is reached."""
    max_share: float = Field(0.001, gt=0, le=1)
    """Most of a worker's time in service that this may take."""


class HealthSettings(Settings):
    """When a worker counts as lost. Judged by its progress, not only by its process."""

    interval_s: float = Field(2.0, gt=0)
    """Seconds between the controller's questions."""
    silence_timeout_s: float = Field(15.0, gt=0)
    """Seconds without a word from a worker, which otherwise reports at least once a second."""
    stall_timeout_s: float = Field(30.0, gt=0)
    """Seconds in which an engine that has work makes no step. Above the longest step, a prefill of the whole batch."""
    canary: CanarySettings = CanarySettings()
    """Judging workers by their answers."""


class SloSettings(Settings):
    """Service level objectives, for goodput and for the planner."""

    ttft_p95_s: float = Field(2.0, gt=0)
    """95th percentile of time to first token."""
    itl_p95_s: float = Field(0.05, gt=0)
    """95th percentile of the gap between tokens."""
    ttfat_p95_s: float | None = Field(None, gt=0)
    """95th percentile of time to first answer token."""
    e2e_p95_s: float | None = Field(None, gt=0)
    """95th percentile of the whole request."""


class CostSettings(Settings):
    """Prices, so that a reply can say what it cost. Dated by who writes the spec; never truth."""

    usd_per_accelerator_hour: float = Field(0, ge=0)
    """Price of one GPU for an hour."""
    usd_per_cpu_hour: float = Field(0, ge=0)
    """Price of one CPU core for an hour."""


class ClusterSpec(Settings):
    """One cluster."""

    name: str = Field("local", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Name of the cluster; state files and Ray actors carry it."""
    model: ModelSettings
    """The model served."""
    pools: PoolsSettings
    """The workers."""
    transfer: TransferSettings = TransferSettings()
    """KV handoff."""
    gateway: GatewaySettings = GatewaySettings()
    """Listeners and limits."""
    tenants: dict[Annotated[str, Field(max_length=256)], TenantSettings] = {}  # noqa: RUF012
    """Weights and limits by tenant; the entry ``default`` holds for every tenant that has none of its own."""
    security: SecuritySettings = SecuritySettings()
    """TLS, keys and the cluster's own credential."""
    drain: DrainSettings = DrainSettings()
    """Emptying workers."""
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    """Growing and shrinking the pools."""
    health: HealthSettings = HealthSettings()
    """Judging workers."""
    slo: SloSettings = SloSettings()
    """Objectives."""
    cost: CostSettings = CostSettings()
    """Prices."""

    @model_validator(mode="after")
    def _check(self) -> ClusterSpec:
        roles = {role: pool for role, pool in self.pools.items() if pool.replicas}
        if not roles:
            raise ValueError("pools: no worker at all; set replicas of prefill and decode, or of colocated")
        if (Role.PREFILL in roles) != (Role.DECODE in roles):
            raise ValueError("pools: prefill and decode need each other; give both replicas >= 1, or use colocated")
        sizes = {pool.engine.block_size_tokens for pool in roles.values()}
        if len(sizes) > 1:
            raise ValueError(f"pools: engine.block_size_tokens differs between pools ({sorted(sizes)}); make it equal")
        devices = {pool.accelerators_per_worker > 0 for pool in roles.values()}
        if len(devices) > 1:
            raise ValueError(
                "pools: CPU and GPU workers cannot exchange KV; set accelerators_per_worker in all or none"
            )
        self._check_types(on_cpu=devices == {False})
        if self.autoscaling.enabled:
            self._check_autoscaling(roles)
        if Role.PREFILL in roles and roles[Role.PREFILL].engine.speculative:
            raise ValueError("pools.prefill.engine.speculative: prefill makes one token; put it in decode or colocated")
        return self

    def _check_types(self, *, on_cpu: bool) -> None:
        """What vLLM's CPU engine computes on some processors only, no CPU cluster may ask for."""
        if on_cpu and self.model.kv_cache_dtype == "fp8":
            raise ValueError("model.kv_cache_dtype=fp8: on CPU vLLM has it for AVX-512 alone; use auto, or GPU workers")
        if on_cpu and self.model.quantization == "fp8":
            raise ValueError(
                "model.quantization=fp8: on CPU vLLM has it for AMX alone; leave it out, or use GPU workers"
            )

    def _check_autoscaling(self, roles: dict[Role, PoolSettings]) -> None:
        if Role.PREFILL not in roles:
            raise ValueError("autoscaling: needs a prefill and a decode pool; colocated workers are not scaled")
        for role in (Role.PREFILL, Role.DECODE):
            pool = roles[role]
            if not 1 <= pool.min_replicas <= pool.replicas:
                raise ValueError(f"pools.{role}.min_replicas must be from 1 to replicas ({pool.replicas})")
        gpus = sum(pool.gpus_per_worker * pool.started_replicas for pool in roles.values())
        if self.autoscaling.max_gpus is not None and self.autoscaling.max_gpus < gpus:
            raise ValueError(
                f"autoscaling.max_gpus must be at least {gpus}, what the pools' replicas and standby_replicas take"
            )

    @property
    def changes_roles(self) -> bool:
        """Whether workers of one pool may take the other's role: the autoscaler may, and their engines are alike."""
        pools = dict(self.pools.items())
        prefill, decode = pools.get(Role.PREFILL), pools.get(Role.DECODE)
        if prefill is None or decode is None or not (self.autoscaling.enabled and self.autoscaling.change_roles):
            return False
        shape = ("accelerators_per_worker", "tensor_parallel_size", "expert_parallel", "accelerator_type")
        return all(getattr(prefill, name) == getattr(decode, name) for name in shape)

    def tenant(self, name: str) -> TenantSettings:
        """What a tenant may have."""
        return self.tenants.get(name) or self.tenants.get("default") or TenantSettings()


def load(path: Path | None = None) -> ClusterSpec:
    """Read and check a spec; without a path, the embedded ``local.yaml``.

    Raises:
        ConfigError: the file is missing or not YAML, or a key is unknown or out of range; the text names the key.
    """
    if path is None:
        return parse(importlib.resources.files("cluster.spec").joinpath("local.yaml").read_text(), source="local.yaml")
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the spec {path}: {error}") from error
    return parse(text, source=str(path))


def parse(text: str, *, source: str = "spec") -> ClusterSpec:
    """Check a spec given as YAML text.

    Raises:
        ConfigError: as for `load`.

    Example:
        >>> parse("model: {path: m, served_name: m, max_model_len_tokens: 64, colour: red}")
        Traceback (most recent call last):
            ...
        cluster.errors.ConfigError: spec: model.colour: unknown key; pools: missing
    """
    try:
        tree: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected keys such as `model:` and `pools:`, got {type(tree).__name__}")
    try:
        return ClusterSpec.model_validate(tree)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(_problem(item) for item in error.errors())}") from error


def _problem(item: Any) -> str:
    path = ".".join(str(part) for part in item["loc"])
    prefix = f"{path}: " if path else ""
    match item["type"]:
        case "missing":
            return f"{prefix}missing"
        case "extra_forbidden":
            return f"{prefix}unknown key"
        case "value_error":
            return f"{prefix}{item['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{path}={item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
