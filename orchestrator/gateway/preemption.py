"""Preemption by recompute in a gateway: while a decode worker starts and no KV is left, the longest trace waits.

When is decided by `orchestrator.policy.preemption_guard` and which by `preemption` there; here it is carried out. Each
gateway knows its own requests, so one of its own is preempted for the head of its own queue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterator, Mapping
from typing import Protocol

from orchestrator.gateway.forecast import OutputForecast
from orchestrator.gateway.run_view import RunView
from orchestrator.policy.preemption import Running, preempt_for
from orchestrator.policy.router import WorkerView
from orchestrator.request.lifecycle import Lifecycle

log = logging.getLogger("baton.gateway")


class PreemptionFleet(Protocol):
    """What preemption asks of a fleet."""

    def views(self) -> list[WorkerView]:
        """The router's view of all workers."""
        ...

    def awaits_decode(self) -> bool:
        """Whether a decode worker is ready and is yet to report."""
        ...

    def freed_by(self, worker_id: str, request_id: str, held_blocks: int) -> int:
        """Headroom in blocks that a request with so many would leave on its worker."""
        ...

    def expect_leave(self, worker_id: str, leg_id: str, blocks: int) -> Callable[[], None]:
        """A leg is about to be preempted. Returns what to call if it was not after all."""
        ...


class Preemption:
    """Owns how many requests were preempted, and knows whether more KV is on its way.

    Args:
        fleet: The workers.
        runs: All runs, by number; read alone.
        forecast: Blocks that a run holds.
        is_moving: Whether a request is on its way to another worker.
        local_prefill_below_tokens: As in the cluster spec.
        on_preempted: Called for each, to count it.
    """

    def __init__(
        self,
        fleet: PreemptionFleet,
        runs: Mapping[int, RunView],
        forecast: OutputForecast,
        *,
        is_moving: Callable[[Lifecycle], bool],
        local_prefill_below_tokens: int,
        on_preempted: Callable[[], None],
    ) -> None:
        self.starting = False
        """A decode worker is on its way, by the controller's report."""
        self.preempted_requests = 0
        self._fleet = fleet
        self._runs = runs
        self._forecast = forecast
        self._is_moving = is_moving
        self._local_prefill_below_tokens = local_prefill_below_tokens
        self._on_preempted = on_preempted

    @property
    def growing(self) -> bool:
        """Whether a preempted request had better wait for a decode worker: one starts, or is ready and is yet to report
        to this gateway, so that it takes nothing so far."""
        return self.starting or self._fleet.awaits_decode()

    def victim(self, run: RunView, need_blocks: int) -> Running | None:
        """The request to preempt so that a run comes nearer to so many blocks."""
        views = self._fleet.views()
        return preempt_for(
            need_blocks,
            run.request.priority,
            views,
            self._running({view.worker_id for view in views}),
            local_prefill_below_tokens=self._local_prefill_below_tokens,
        )

    def preempt(self, victim: Running) -> bool:
        """Preempt a request; False if its last token was out, which frees KV in a moment."""
        run, worker_id = self._runs[victim.request], victim.worker_id
        leg_id = str(run.life.leg_id)
        # Its blocks count as free from here on, though the worker's load is yet to show it.
        take_back = self._fleet.expect_leave(worker_id, leg_id, self._forecast.held_blocks(run))
        preempted = run.preempt()
        if preempted:
            log.info("request %s is preempted", run.life.request_id)
            self.preempted_requests += 1
            self._on_preempted()
        else:
            take_back()
        return preempted

    def _running(self, worker_ids: Container[str]) -> Iterator[Running]:
        """What decodes on these workers and could go on from its ledger with every token as if it had stayed."""
        for run in self._runs.values():
            life, worker_id = run.life, str(run.life.decode_id)
            if worker_id not in worker_ids or not life.settled or self._is_moving(life) or not run.movable:
                continue
            freed = self._fleet.freed_by(worker_id, life.request_id, self._forecast.held_blocks(run))
            yield Running(run.number, worker_id, run.request.priority, freed, len(life.output_ids), run.preempted)
