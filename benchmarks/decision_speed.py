"""Time and memory of one decision of the autoscaler for a large fleet, on one core.

Ten thousand requests in flight on 500 workers, with a tick every five seconds: each has requests that came, went on
and ended. A decision is all of `Autoscaler.decide`: learning from the tick, both forecasts, and what to do. Best,
median and worst of the ticks after a warm-up are printed as CPU milliseconds, since machines are shared::

    python -m benchmarks.decision_speed --ticks 60
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Iterator, Sequence

import numpy as np

from cluster.spec.config import Role
from orchestrator.policy.autoscaler import Autoscaler
from orchestrator.policy.demand import DemandForecaster, horizons_s
from orchestrator.policy.router import WorkerView
from orchestrator.policy.scaling_policy import Arrival, FinishedRequest, InFlight, WorkerStatus
from orchestrator.policy.worker_capacity import WorkerCapacity
from planner.simulator.cost import AffineCost

COST = AffineCost(0.0150, 2.0e-5, 4.9e-8, 0.0150, 5.5e-5, 6.0e-10)
KV_TOKENS = 270_000
TOKENS_PER_S = 40.0


class LargeFleet:
    """A fleet in steady state: as many requests come as end. Fits `FleetView`."""

    def __init__(self, requests: int, workers: int, tenants: int, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._tenants = [f"tenant-{index}" for index in range(tenants)]
        self._next = 0
        self._flights: dict[int, list[int]] = {}
        self._came: list[Arrival] = []
        self._done: list[FinishedRequest] = []
        self._size = requests
        self._flying: list[InFlight] = []
        self._views = [
            WorkerStatus(
                WorkerView(
                    f"{role.value}-{index}", role, KV_TOKENS // 16, int(self._rng.integers(1, KV_TOKENS // 32)), 0, 20
                ),
                "h100", "ready", 0.0, 2,
            )
            for role, count in ((Role.PREFILL, workers // 5), (Role.DECODE, workers - workers // 5))
            for index in range(count)
        ]  # fmt: skip
        self.arrived_requests = self.arrived_tokens = self.queued_requests = self.queued_prompt_tokens = 0
        self._fill(0.0)
        for flight in self._flights.values():
            flight[3] = int(flight[2] * self._rng.random())

    def _fill(self, now_s: float) -> None:
        while len(self._flights) < self._size:
            tenant = int(self._rng.zipf(1.5)) % len(self._tenants)
            isl = int(self._rng.lognormal(6.5, 1.2)) + 1
            self._flights[self._next] = [tenant, isl, int(self._rng.lognormal(7.2, 0.9)) + 1, 0]
            self._came.append(Arrival(now_s, self._tenants[tenant], isl))
            self._next += 1

    def advance(self, now_s: float, seconds: float) -> None:
        """Let requests go on, end and come."""
        for index, flight in list(self._flights.items()):
            flight[3] += int(TOKENS_PER_S * seconds)
            if flight[3] >= flight[2]:
                del self._flights[index]
                self._done.append(
                    FinishedRequest(index, self._tenants[flight[0]], flight[1], 0, flight[2], 0, 0.2, 40.0)
                )
        self._fill(now_s)
        self._flying = [
            InFlight(index, self._tenants[tenant], 0, isl, made, "decode-0", "decoding")
            for index, (tenant, isl, _, made) in self._flights.items()
        ]

    def workers(self) -> Sequence[WorkerStatus]:
        """All of them."""
        return self._views

    def in_flight(self) -> Iterator[InFlight]:
        """Every request, as the live record of requests holds them."""
        return iter(self._flying)

    def arrived(self) -> Sequence[Arrival]:
        """Since the last tick."""
        came, self._came = self._came, []
        return came

    def finished(self) -> Sequence[FinishedRequest]:
        """Since the last tick."""
        done, self._done = self._done, []
        return done


def decision_s(requests: int, workers: int, tenants: int, ticks: int) -> list[float]:
    """CPU seconds of each of the last ``ticks`` decisions, after as many to warm up."""
    fleet = LargeFleet(requests, workers, tenants)
    capacity = WorkerCapacity(KV_TOKENS, COST.step_s, COST.prefill_s, 0.05)
    policy = Autoscaler(DemandForecaster(capacity, ttft_s=2.0, horizons_s=horizons_s(60.0)))
    taken = []
    gc.collect()
    gc.freeze()
    for tick in range(1, 2 * ticks + 1):
        fleet.advance(tick * 5.0, 5.0)
        began_s = time.process_time()
        policy.decide(tick * 5.0, fleet)
        taken.append(time.process_time() - began_s)
    return taken[ticks:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=500)
    parser.add_argument("--tenants", type=int, default=100)
    parser.add_argument("--ticks", type=int, default=60)
    arguments = parser.parse_args()
    taken = decision_s(arguments.requests, arguments.workers, arguments.tenants, arguments.ticks)
    print(
        f"{arguments.requests:,} requests in flight, {arguments.workers} workers, {arguments.tenants} tenants: "
        f"best {1e3 * min(taken):.1f} ms, median {1e3 * statistics.median(taken):.1f} ms, "
        f"worst {1e3 * max(taken):.1f} ms of {len(taken)}"
    )


if __name__ == "__main__":
    main()
