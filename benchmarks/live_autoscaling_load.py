"""What `benchmarks/live_autoscaling.py` runs on: gateways of its own, a watch on the pools, and a steady load."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from benchmarks.autoscaling import most_within
from benchmarks.fault_cluster import FaultCluster
from benchmarks.fault_load import Question, Trace, follow
from cluster.spec.config import Role
from interface.client.client import AsyncClient

LONGER = 5
SAMPLE_S = 0.5
WINDOW_S = 600.0
"""For changes per ten minutes."""


class OwnGateways:
    """Clients of the gateways that `baton up` started; they alone report to the autoscaler."""

    def __init__(self, cluster: FaultCluster, name: str) -> None:
        state = json.loads((cluster.folder / "clusters" / name / "state.json").read_text())
        self.each = [AsyncClient(f"127.0.0.1:{ports['grpc_port']}") for ports in state["gateways"]]
        self._next = 0

    def client(self) -> AsyncClient:
        """One after the other."""
        self._next += 1
        return self.each[self._next % len(self.each)]

    async def close(self) -> None:
        """Close the connections."""
        for client in self.each:
            await client.close()


@dataclass(slots=True)
class Pools:
    """Ready workers by pool over time, as the controller reports them. Times are seconds since the load began."""

    cluster: FaultCluster
    began_s: float = field(default_factory=time.monotonic)
    changes: list[tuple[float, int, int]] = field(default_factory=list)
    """Time, prefill workers, decode workers: when one number became another."""

    @property
    def now_s(self) -> float:
        return time.monotonic() - self.began_s

    def ready(self, role: Role) -> int:
        """Workers that serve."""
        members = self.cluster.members.values()
        return sum(each.role == role.value and each.state == "ready" for each in members)

    def known(self, role: Role) -> int:
        """Workers that serve, start or drain."""
        return sum(each.role == role.value for each in self.cluster.members.values())

    async def watch(self) -> None:
        """Sample until cancelled."""
        while True:
            sizes = (self.ready(Role.PREFILL), self.ready(Role.DECODE))
            if not self.changes or self.changes[-1][1:] != sizes:
                self.changes.append((round(self.now_s, 1), *sizes))
                print(f"[{self.now_s:6.1f} s] prefill {sizes[0]}, decode {sizes[1]}", flush=True)
            await asyncio.sleep(SAMPLE_S)

    async def until(self, condition: Callable[[], bool], timeout_s: float) -> bool:
        """Wait for a size; whether it came."""
        deadline_s = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline_s:
                return False
            await asyncio.sleep(SAMPLE_S)
        return True

    def most_changes(self, column: int, since_s: float, until_s: float) -> int:
        """Most changes of a pool within any ten minutes of a stretch; 1 is prefill, 2 decode."""
        times = [
            after[0]
            for before, after in zip(self.changes, self.changes[1:], strict=False)
            if before[column] != after[column] and since_s <= after[0] <= until_s
        ]
        return most_within(times, WINDOW_S)


class SteadyLoad:
    """Requests at even distances, each a question cut short or not; all streams are kept until they are compared."""

    def __init__(self, gateways: OwnGateways, questions: Sequence[Question], rate_per_s: float) -> None:
        self._gateways = gateways
        self._questions = questions
        self.rate_per_s = rate_per_s
        self.long = False
        self.traces: list[Trace] = []
        self.most_in_flight = 0
        self._tasks: list[asyncio.Task[Trace]] = []
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        due_s = time.monotonic()
        while True:
            asked = self._questions[len(self._tasks) % len(self._questions)]
            question = asked if self.long else shortened(asked)
            trace = Trace(question)
            self.traces.append(trace)
            self._tasks.append(asyncio.create_task(follow(self._gateways.client(), question, trace=trace)))
            self.most_in_flight = max(self.most_in_flight, sum(not task.done() for task in self._tasks[-200:]))
            due_s += 1 / self.rate_per_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))

    async def stop(self) -> None:
        """Send no more, and wait for all answers."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        await asyncio.gather(*self._tasks)


def shortened(question: Question) -> Question:
    """The question with a fifth of its answer."""
    return dataclasses.replace(question, max_tokens=question.max_tokens // LONGER)
