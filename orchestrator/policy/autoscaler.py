"""The autoscaler as a scaling policy: forecast, decide, keep the log. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cluster.spec.config import Role
from orchestrator.policy.demand import Demand, DemandForecaster
from orchestrator.policy.scaling_decision import Decision, DecisionSettings, Memory, WorkerRow, decide
from orchestrator.policy.scaling_policy import FleetView, ScalingAction, WorkerStatus

Log = Callable[[DecisionSettings, Memory, Demand, Sequence[WorkerRow], Decision], None]
"""Called with all that a decision rests on, and the decision."""


class Autoscaler:
    """Baton's policy; see `orchestrator.policy.scaling_decision` for how it decides."""

    def __init__(
        self,
        forecaster: DemandForecaster,
        settings: DecisionSettings | None = None,
        *,
        interval_s: float = 5.0,
        log: Log | None = None,
    ) -> None:
        self.interval_s = interval_s
        self.forecaster = forecaster
        self.settings = settings or DecisionSettings()
        self._memory = Memory()
        self.log = log

    def decide(self, now_s: float, fleet: FleetView) -> Sequence[ScalingAction]:
        """Look at the fleet, forecast, decide."""
        workers = [row(status) for status in fleet.workers()]
        holders = sum(each.role is not Role.PREFILL and each.state != "starting" for each in workers)
        readers = sum(each.role is Role.PREFILL and each.state != "starting" for each in workers)
        demand = self.forecaster.observe(now_s, fleet.in_flight(), fleet.arrived(), fleet.finished(), holders, readers)
        decision = decide(self.settings, self._memory, demand, workers)
        if self.log is not None:
            self.log(self.settings, self._memory, demand, workers, decision)
        self._memory = decision.memory
        return decision.actions


def row(status: WorkerStatus) -> WorkerRow:
    """What a decision needs of a worker."""
    view = status.view
    return WorkerRow(
        view.worker_id,
        view.role,
        status.kind,
        status.state,
        status.since_s,
        status.gpus,
        view.total_blocks - view.free_blocks,
    )
