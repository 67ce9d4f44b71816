"""A scenario file: fleet, workload, gateway and what goes wrong, as one YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pydantic
import yaml
from pydantic import Field

from cluster.config import Role, Settings, SloSettings
from cluster.errors import ConfigError
from orchestrator.lifecycle import Handoff
from orchestrator.simulator.block import WorkloadBlock
from orchestrator.simulator.cost import AffineCost, AffineTransfer
from orchestrator.simulator.engine import EngineProfile
from orchestrator.simulator.failures import FailurePlan
from orchestrator.simulator.fleet import FleetSpec, PoolSpec
from orchestrator.simulator.forecast import FixedForecast, LengthForecast, RecentForecast
from orchestrator.simulator.simulation import ClosedLoop, GatewaySpec, Simulation


class CostBlock(Settings):
    """Constants of an engine step, measured or stated; see `AffineCost`."""

    decode_base_s: float = Field(ge=0)
    decode_request_s: float = Field(0.0, ge=0)
    decode_context_s: float = Field(0.0, ge=0)
    prefill_base_s: float = Field(0.0, ge=0)
    prefill_token_s: float = Field(ge=0)
    prefill_pair_s: float = Field(0.0, ge=0)


class PoolBlock(Settings):
    """Workers of one role."""

    role: Role
    replicas: int = Field(ge=0)
    start_s: float = Field(60.0, ge=0)
    """Seconds from the decision to start a worker until it serves."""
    domain: str = ""
    """NVLink domain."""
    gpus: int = Field(1, ge=0)
    kv_capacity_tokens: int = Field(ge=1)
    """Tokens whose KV one worker holds."""
    kv_bytes_per_token: float = Field(131072.0, gt=0)
    block_size_tokens: int = Field(16, ge=1)
    max_num_seqs: int = Field(256, ge=1)
    max_num_batched_tokens: int = Field(8192, ge=1)
    overhead_s: float = Field(0.0, ge=0)
    cost: CostBlock

    def build(self) -> PoolSpec:
        """The pool."""
        cost = AffineCost(**self.cost.model_dump())
        profile = EngineProfile(
            cost,
            cost,
            max(1, self.kv_capacity_tokens // self.block_size_tokens),
            self.block_size_tokens,
            cost,
            self.max_num_seqs,
            self.max_num_batched_tokens,
            self.kv_bytes_per_token,
            self.overhead_s,
            self.gpus,
            self.role.value,
        )
        return PoolSpec(self.role, profile, self.replicas, self.start_s, self.domain)


class LinkBlock(Settings):
    """One kind of link between workers."""

    bytes_per_s: float = Field(gt=0)
    latency_s: float = Field(0.0, ge=0)


class FleetBlock(Settings):
    """The workers and what lies between them."""

    pools: list[PoolBlock] = Field(min_length=1)
    link: LinkBlock = LinkBlock(bytes_per_s=49.5e9, latency_s=0.00038)
    """One 400 Gb/s NIC as NIXL was measured on it."""
    domain_link: LinkBlock | None = None
    local_prefill_below_tokens: int = Field(0, ge=0)

    def build(self) -> FleetSpec:
        """The fleet."""
        near = self.domain_link
        return FleetSpec(
            [pool.build() for pool in self.pools],
            AffineTransfer(self.link.bytes_per_s, self.link.latency_s),
            AffineTransfer(near.bytes_per_s, near.latency_s) if near is not None else None,
            self.local_prefill_below_tokens,
        )


class GatewayBlock(Settings):
    """Limits of the gateway; see `GatewaySpec`."""

    max_queued_requests: int = Field(256, ge=0)
    deadline_s: float | None = Field(None, gt=0)
    max_output_tokens: int = Field(1 << 20, ge=1)
    handoff: Handoff = Handoff.FIRST_TOKEN
    retry_budget: int = Field(2, ge=0)
    ticket_deadline_s: float = Field(20.0, gt=0)
    forecast_osl_tokens: int = Field(512, ge=1)
    """Output length assumed when KV is reserved."""
    forecast_quantile: float | None = Field(None, gt=0, lt=1)
    """Reserve by this quantile of what the tenant's last requests still made, in place of a fixed length."""


class ClosedLoopBlock(Settings):
    """Clients that wait for their answers; see `ClosedLoop`."""

    clients: int = Field(ge=1)
    stagger_s: float = Field(0.0, ge=0)
    think_s: float = Field(0.0, ge=0)


class FailureBlock(Settings):
    """What goes wrong; see `FailurePlan`."""

    at: list[tuple[float, str]] = Field(default_factory=list)
    mtbf_s: float | None = Field(None, gt=0)
    transfer_share: float = Field(0.0, ge=0, le=1)


class Scenario(Settings):
    """One simulated cluster and what comes to it."""

    fleet: FleetBlock
    workload: WorkloadBlock
    closed_loop: ClosedLoopBlock | None = None
    gateway: GatewayBlock = GatewayBlock()
    failures: FailureBlock = FailureBlock()
    slo: SloSettings = SloSettings()
    sample_s: float = Field(10.0, gt=0)
    seed: int = 0

    def build(self, folder: Path = Path()) -> Simulation:
        """A simulation ready to run.

        Raises:
            ConfigError: the workload cannot be had, or the parts do not fit.
        """
        limits = self.gateway.model_dump(exclude={"forecast_osl_tokens", "forecast_quantile"})
        forecast: LengthForecast = FixedForecast(self.gateway.forecast_osl_tokens)
        if self.gateway.forecast_quantile is not None:
            forecast = RecentForecast(self.gateway.forecast_quantile, start_tokens=self.gateway.forecast_osl_tokens)
        return Simulation(
            self.fleet.build(),
            self.workload.build(folder),
            GatewaySpec(**limits, slow_gap_s=self.slo.itl_p95_s),
            ClosedLoop(**self.closed_loop.model_dump()) if self.closed_loop is not None else None,
            forecast,
            failures=FailurePlan(tuple(self.failures.at), self.failures.mtbf_s, self.failures.transfer_share),
            sample_s=self.sample_s,
            seed=self.seed,
        )


def load(path: Path) -> Scenario:
    """Read and check a scenario.

    Raises:
        ConfigError: the file is missing or not YAML, or a key is unknown or out of range; the text names the key.
    """
    try:
        tree: Any = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the scenario {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML: {' '.join(str(error).split())}") from error
    try:
        return Scenario.model_validate(tree)
    except pydantic.ValidationError as error:
        problems = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise ConfigError(f"{path}: {'; '.join(problems)}") from error
