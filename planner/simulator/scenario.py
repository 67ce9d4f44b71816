"""A scenario file: fleet, workload, gateway and what goes wrong, as one YAML."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import Field

from cluster.errors import ConfigError
from cluster.spec.config import SloSettings
from cluster.spec.settings import Settings
from orchestrator.policy.scaling_policy import ScalingPolicy
from orchestrator.request.lifecycle import Handoff
from planner.simulator.block import WorkloadBlock
from planner.simulator.failures import FailurePlan
from planner.simulator.fleet_block import FleetBlock
from planner.simulator.forecast import FixedForecast, LengthForecast, LiveForecast, RecentForecast
from planner.simulator.gateway import Rules
from planner.simulator.simulation import ClosedLoop, GatewaySpec, Simulation
from planner.simulator.trace_formats.reading import TraceReading
from planner.simulator.workload import Workload


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
    preempt_after_s: float | None = Field(None, ge=0)
    """Seconds without KV, while a decode worker starts, after which the longest trace is preempted; null: never."""
    rules: Rules = Rules.PLAIN
    """``live``: the queue, its fairness between tenants, reservations, patience and moves of a live gateway; see
    docs/adr/0027-one-decision-core.md for what ``plain`` leaves out."""
    weights: dict[str, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Of tenants, with ``rules: live``; 1 where left out."""


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

    def requests(self, folder: Path = Path(), on_trace: Callable[[TraceReading], None] | None = None) -> Workload:
        """The requests; ``on_trace`` is called with what was read from a trace.

        Raises:
            ConfigError: they cannot be had.
        """
        return self.workload.build(folder, on_trace, timed=self.closed_loop is None)

    def build(
        self, folder: Path = Path(), scaling: ScalingPolicy | None = None, workload: Workload | None = None
    ) -> Simulation:
        """A simulation ready to run, under a scaling policy or with the fleet as it stands.

        Args:
            folder: What relative paths start from.
            scaling: The policy.
            workload: The requests, where they have been read or drawn before.

        Raises:
            ConfigError: the workload cannot be had, or the parts do not fit.
        """
        limits = self.gateway.model_dump(exclude={"forecast_osl_tokens", "forecast_quantile"})
        fleet = self.fleet.build()
        forecast: LengthForecast = FixedForecast(self.gateway.forecast_osl_tokens)
        if self.gateway.rules is Rules.LIVE:
            block_size_tokens = fleet.pools[0].profile.block_size_tokens
            forecast = LiveForecast(self.gateway.forecast_osl_tokens, self.gateway.max_output_tokens, block_size_tokens)
        if self.gateway.forecast_quantile is not None:
            forecast = RecentForecast(self.gateway.forecast_quantile, start_tokens=self.gateway.forecast_osl_tokens)
        return Simulation(
            fleet,
            self.requests(folder) if workload is None else workload,
            GatewaySpec(**limits, slow_gap_s=self.slo.itl_p95_s),
            ClosedLoop(**self.closed_loop.model_dump()) if self.closed_loop is not None else None,
            forecast,
            scaling,
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
