"""The autoscaler's decisions: written down for `baton decisions`, and the latest for `baton top`."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path

from baton.v1 import cluster_pb2
from cluster.spec.config import Role
from orchestrator.controller.scaling_view import SCALED
from orchestrator.policy.decision_log import entry_line
from orchestrator.policy.demand import Demand
from orchestrator.policy.scaling_decision import Decision, DecisionSettings, Memory, WorkerRow
from orchestrator.policy.scaling_policy import ScalingAction, WorkerStatus

log = logging.getLogger("baton.autoscaler")

SHOWN_DECISIONS = 12
MAX_LOG_BYTES = 64 << 20
"""Of the decision log; then it begins again and the old one is kept beside it."""


class DecisionHistory:
    """Owns the decision log, and what was forecast and decided last.

    Args:
        path: File that every decision is added to.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._shown: deque[tuple[float, str]] = deque(maxlen=SHOWN_DECISIONS)
        self._last_actions: tuple[ScalingAction, ...] = ()
        self.demand: Demand | None = None
        """The last forecast."""
        self._reason = ""

    def postpone(self, demand: Demand, reason: str) -> None:
        """There is a forecast, and ``reason`` to decide nothing by it."""
        self.demand, self._reason = demand, reason

    def take(
        self,
        settings: DecisionSettings,
        memory: Memory,
        demand: Demand,
        workers: Sequence[WorkerRow],
        decision: Decision,
    ) -> None:
        """Write a decision down before it is carried out."""
        self.demand, self._reason = demand, decision.reason
        if decision.actions and decision.actions != self._last_actions:  # one that cannot be carried out comes again
            self._shown.append((demand.now_s, decision.reason))
            log.info("%s", decision.reason)
        self._last_actions = decision.actions
        self._path.parent.mkdir(parents=True, exist_ok=True)
        if self._path.is_file() and self._path.stat().st_size > MAX_LOG_BYTES:
            self._path.replace(self._path.with_suffix(".old.jsonl"))
        with self._path.open("a") as out:
            out.write(entry_line(settings, memory, demand, workers, decision) + "\n")

    def scaling(
        self,
        now_s: float,
        settings: DecisionSettings,
        statuses: Sequence[WorkerStatus],
        *,
        thinking_severity: float,
    ) -> cluster_pb2.Scaling:
        """What `baton top` shows."""
        states = Counter((row.view.role, row.state) for row in statuses)
        bounds = {
            Role.PREFILL: (settings.min_prefill, settings.max_prefill),
            Role.DECODE: (settings.min_decode, settings.max_decode),
        }
        scaling = cluster_pb2.Scaling(
            pools=[
                cluster_pb2.PoolScaling(
                    role=f"ROLE_{role.upper()}",
                    starting=states[role, "starting"],
                    ready=states[role, "ready"],
                    draining=states[role, "draining"],
                    min_replicas=bounds[role][0],
                    max_replicas=bounds[role][1],
                )
                for role in SCALED
            ],
            decisions=[cluster_pb2.ScalingDecision(age_s=now_s - time_s, reason=why) for time_s, why in self._shown],
            reason=self._reason,
            thinking_severity=thinking_severity,
        )
        if self.demand is not None:
            scaling.demand.CopyFrom(_forecast(self.demand))
        return scaling


def _forecast(demand: Demand) -> cluster_pb2.DemandForecast:
    return cluster_pb2.DemandForecast(
        kv_tokens=demand.kv_tokens,
        kv_high_tokens=demand.kv_high_tokens[-1],
        start_s=demand.horizons_s[-1],
        worker_kv_tokens=demand.worker_kv_tokens,
        band_low_tokens=demand.band_low_tokens,
        band_mean_tokens=demand.band_mean_tokens,
        band_high_tokens=demand.band_high_tokens,
        prefill_workers=demand.prefill_workers_recent,
        arrivals_per_s=demand.arrivals_per_s,
        prompt_tokens_per_s=demand.prompt_tokens_per_s,
        in_flight_requests=demand.in_flight_requests,
        queued_requests=demand.queued_requests,
        request_tokens_per_s=demand.request_tokens_per_s,
        pace=demand.pace,
    )
