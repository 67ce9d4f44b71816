"""How the autoscaling benchmark counts changes; the runs themselves are its own affair."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import cast

from benchmarks.autoscaling import Counted, most_within
from cluster.spec.config import Role
from orchestrator.policy.scaling_policy import ChangeRole, DrainWorker, FleetView, ScalingAction, StartWorker


class Script:
    """Decides what it was given, look by look."""

    interval_s = 5.0

    def __init__(self, looks: list[list[ScalingAction]]) -> None:
        self.looks = looks

    def decide(self, now_s: float, fleet: FleetView) -> Sequence[ScalingAction]:
        return self.looks.pop(0)


def fleet() -> FleetView:
    views = [SimpleNamespace(worker_id="p", role=Role.PREFILL), SimpleNamespace(worker_id="d", role=Role.DECODE)]
    return cast(FleetView, SimpleNamespace(workers=lambda: [SimpleNamespace(view=view) for view in views]))


def test_changes_are_counted_by_pool_and_decision() -> None:
    start = StartWorker(Role.DECODE)
    counted = Counted(Script([[start, start], [], [DrainWorker("p")], [ChangeRole("p", Role.DECODE)], [start]]))
    for look in range(5):
        counted.decide(5.0 * look, fleet())
    assert counted.until(15.0) == {"prefill": [10.0, 15.0], "decode": [0.0, 15.0]}
    assert counted.changes_s["decode"][-1] == 20.0


def test_most_changes_within_a_span() -> None:
    assert most_within([], 600.0) == 0
    assert most_within([0.0, 600.0, 1200.0], 600.0) == 1
    assert most_within([0.0, 500.0, 1000.0, 1050.0, 1099.0], 600.0) == 4
