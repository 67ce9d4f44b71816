"""How others scale, behind the same interface, to compare with. Pure.

Each sizes prefill and decode apart, which is more than a single replica count could do, and each waits before it
shrinks, as the originals do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from cluster.spec.config import Role
from orchestrator.policy.scaling_policy import DrainWorker, FleetView, ScalingAction, StartWorker, WorkerStatus
from orchestrator.policy.worker_capacity import WorkerCapacity

POOLS = (Role.PREFILL, Role.DECODE)


@dataclass(slots=True)
class Stabiliser:
    """Turns wanted sizes into actions: grow after a delay, shrink to the most that was wanted within a window.

    Args:
        grow_after_s: Seconds for which more must have been wanted.
        shrink_window_s: Seconds over which the most wanted counts.
    """

    grow_after_s: float = 0.0
    shrink_window_s: float = 300.0
    _wanted: dict[Role, deque[tuple[float, int]]] = field(default_factory=lambda: {role: deque() for role in POOLS})

    def actions(self, now_s: float, workers: Sequence[WorkerStatus], wanted: dict[Role, int]) -> list[ScalingAction]:
        """What brings the pools nearer to the wanted sizes, at least one worker each."""
        found: list[ScalingAction] = []
        for role, want in wanted.items():
            past = self._wanted[role]
            past.append((now_s, max(1, want)))
            while past[0][0] < now_s - max(self.shrink_window_s, self.grow_after_s):
                past.popleft()
            rows = [each for each in workers if each.view.role is role and each.state != "draining"]
            least = min(size for time_s, size in past if time_s >= now_s - self.grow_after_s)
            most = max(size for time_s, size in past if time_s >= now_s - self.shrink_window_s)
            if least > len(rows):
                found += [StartWorker(role) for _ in range(least - len(rows))]
            elif most < len(rows):
                rows.sort(key=lambda each: (each.state == "ready", each.view.running_requests, each.view.worker_id))
                found += [DrainWorker(each.view.worker_id) for each in rows[: len(rows) - most]]
        return found


class RequestsPerReplica:
    """So many requests on each worker, as Ray Serve's autoscaler: ongoing over target, rounded up.

    Ongoing requests are averaged over ``look_back_s``. Ray Serve's defaults wait 30 s to grow and 600 s to shrink.
    Source: Ray Serve ``AutoscalingConfig``.

    Args:
        targets: Requests per worker of each pool; queued ones count for prefill.
    """

    def __init__(
        self,
        targets: dict[Role, float],
        *,
        interval_s: float = 10.0,
        look_back_s: float = 30.0,
        grow_after_s: float = 30.0,
        shrink_after_s: float = 600.0,
    ) -> None:
        self.interval_s = interval_s
        self._targets = targets
        self._samples: deque[tuple[float, dict[Role, int]]] = deque()
        self._look_back_s = look_back_s
        self._stabiliser = Stabiliser(grow_after_s, shrink_after_s)

    def decide(self, now_s: float, fleet: FleetView) -> Sequence[ScalingAction]:
        """Compare what runs with the target."""
        workers = fleet.workers()
        fleet.arrived(), fleet.finished()
        ongoing = {
            role: sum(each.view.running_requests for each in workers if each.view.role is role) for role in POOLS
        }
        ongoing[Role.PREFILL] += fleet.queued_requests
        self._samples.append((now_s, ongoing))
        while self._samples[0][0] < now_s - self._look_back_s:
            self._samples.popleft()
        wanted = {}
        for role in POOLS:
            mean = sum(sample[role] for _, sample in self._samples) / len(self._samples)
            wanted[role] = math.ceil(mean / self._targets[role])
        return self._stabiliser.actions(now_s, workers, wanted)


class MeanLengths:
    """Mean lengths and a predicted rate over a worker's throughput, as the usual planner for disaggregated pools.

    Every interval: requests and their mean ISL (of those that came) and OSL (of those that finished); the next
    interval's rate by Holt's linear trend; prefill workers for the prompt tokens, decode workers for the output
    tokens at the throughput a worker has within the ITL objective.
    Source: the load planner of NVIDIA Dynamo, in outline.

    Args:
        capacity: Of one worker.
        headroom: Factor on the predicted rate.
        interval_s: Between adjustments.
    """

    def __init__(self, capacity: WorkerCapacity, *, headroom: float = 1.0, interval_s: float = 60.0) -> None:
        self.interval_s = interval_s
        self._capacity = capacity
        self._headroom = headroom
        self._level: float | None = None
        self._trend = 0.0
        self._osl = 0.0
        self._stabiliser = Stabiliser(0.0, 2 * interval_s)

    def decide(self, now_s: float, fleet: FleetView) -> Sequence[ScalingAction]:
        """Predict the next interval and size for it."""
        came, done, workers = fleet.arrived(), fleet.finished(), fleet.workers()
        if not came:
            return []
        rate = len(came) / self.interval_s
        if self._level is None:
            self._level = rate
        before = self._level
        self._level = 0.5 * rate + 0.5 * (self._level + self._trend)
        self._trend = 0.3 * (self._level - before) + 0.7 * self._trend
        predicted = max(0.0, self._level + self._trend) * self._headroom
        isl = sum(each.isl_tokens for each in came) / len(came)
        if done:
            self._osl = sum(each.reasoning_tokens + each.answer_tokens for each in done) / len(done)
        if not self._osl:
            return []
        context = isl + self._osl / 2
        held = self._capacity.fill * self._capacity.kv_tokens(context)
        tokens_per_s = self._capacity.tokens_per_s(context) * held / context
        wanted = {
            Role.PREFILL: math.ceil(predicted * self._capacity.prefill_s(round(isl))),
            Role.DECODE: math.ceil(predicted * self._osl / tokens_per_s),
        }
        return self._stabiliser.actions(now_s, workers, wanted)


class KvThreshold:
    """Hold a share of KV in decode and a queue length in prefill, as Kubernetes' horizontal autoscaler would.

    Wanted is ``ceil(workers * value / target)``, left alone within 10 %; shrinking to the most wanted in five minutes.

    Args:
        kv_share: Target share of KV used or reserved in decode.
        queued_tokens: Target prompt tokens waiting per prefill worker.
        gateway_queue: Whether what waits in the gateway, for decode's KV perhaps, counts as waiting for prefill.
    """

    def __init__(
        self,
        *,
        kv_share: float = 0.7,
        queued_tokens: float = 8192.0,
        gateway_queue: bool = True,
        interval_s: float = 15.0,
    ) -> None:
        self.interval_s = interval_s
        self._kv_share = kv_share
        self._queued_tokens = queued_tokens
        self._gateway_queue = gateway_queue
        self._stabiliser = Stabiliser(0.0, 300.0)

    def decide(self, now_s: float, fleet: FleetView) -> Sequence[ScalingAction]:
        """Compare the present values with their targets."""
        workers = fleet.workers()
        fleet.arrived(), fleet.finished()
        ready = {role: [e.view for e in workers if e.view.role is role and e.state == "ready"] for role in POOLS}
        wanted = {role: sum(e.view.role is role and e.state != "draining" for e in workers) for role in POOLS}
        holders, prefills = ready[Role.DECODE], ready[Role.PREFILL]
        if holders:
            used = sum(1 - max(0, view.headroom_blocks) / max(1, view.total_blocks) for view in holders)
            wanted[Role.DECODE] = self._by_ratio(len(holders), used / len(holders) / self._kv_share)
        if prefills:
            waiting = sum(view.queued_tokens for view in prefills)
            waiting += fleet.queued_prompt_tokens if self._gateway_queue else 0
            wanted[Role.PREFILL] = self._by_ratio(len(prefills), waiting / len(prefills) / self._queued_tokens)
        return self._stabiliser.actions(now_s, workers, wanted)

    @staticmethod
    def _by_ratio(workers: int, ratio: float) -> int:
        return workers if abs(ratio - 1.0) <= 0.1 else math.ceil(workers * ratio - 1e-9)
