"""Making way in a gateway: while a decode worker starts and no KV is left, its longest trace waits for a newcomer.

Who makes way and where it may come back is decided by `orchestrator.policy.preemption`; here that is carried out. Each
gateway knows its own requests, so one of its own makes way for the head of its own queue.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from orchestrator.policy.preemption import TAKE_BACK_EVERY_S, Running, may_take_back, victim
from orchestrator.policy.router import WorkerView, holders_among

if TYPE_CHECKING:
    from orchestrator.gateway.choice_run import ChoiceRun
    from orchestrator.gateway.gateway import Gateway

log = logging.getLogger("baton.gateway")

TIMER_SLACK_S = 0.001
LOOK_AGAIN_S = 0.1
"""After a look at all requests that found none: a busy gateway has some occasion every millisecond."""


class Preemption:
    """Who makes way among a gateway's requests, and who comes back."""

    def __init__(self, gateway: Gateway) -> None:
        self.growing = False
        """A decode worker is on its way, says the controller."""
        settings = gateway.spec.autoscaling
        self._patience_s = settings.preempt_after_s if settings.enabled else None
        self._gateway = gateway
        self._took_back_s: dict[str, float] = {}
        self._making = False
        self._look_from_s = 0.0

    def no_room(self, run: ChoiceRun) -> None:
        """A run found no KV: look again when it has waited long enough."""
        if self._patience_s is not None and not run.waits_for_room and run.no_room_since_s is None:
            run.no_room_since_s = time.monotonic()
            self._look_again_in(self._patience_s)

    def make_room(self, newcomer: ChoiceRun, need_blocks: int) -> bool:
        """Let a running request make way for the head of the queue, if it may; whether one did."""
        since_s = newcomer.no_room_since_s
        if not self.growing or self._patience_s is None or newcomer.waits_for_room or since_s is None or self._making:
            return False
        now_s = time.monotonic()
        if now_s < max(since_s + self._patience_s, self._look_from_s):
            return False
        views = holders_among(self._gateway.fleet.views(), self._gateway.spec.transfer.local_prefill_below_tokens)
        headroom = {view.worker_id: view.headroom_blocks for view in views}
        runs = {run.number: run for run in self._gateway.runs()}
        chosen = victim(need_blocks, newcomer.request.priority, headroom, self._running(headroom))
        if chosen is None:
            self._look_from_s = now_s + LOOK_AGAIN_S
            self._look_again_in(LOOK_AGAIN_S)
            return False
        return self._make_way(runs[chosen.request], chosen.worker_id)

    def _make_way(self, run: ChoiceRun, worker_id: str) -> bool:
        leg_id = str(run.life.leg_id)
        leaving = self._gateway.fleet.workers[worker_id].leaving
        # They count as free from here on, though the worker's load is yet to say so.
        leaving[leg_id] = self._held_blocks(run)
        self._making = True  # what is freed is given out at once, and that must not choose the next one in between
        try:
            made = run.make_way()
        finally:
            self._making = False
        if made:
            log.info("request %s makes way", run.life.request_id)
            self._gateway.count_preempted()
        else:
            leaving.pop(leg_id, None)  # its last token was out: that makes room in a moment
        return made

    def may_take_back(self, views: Sequence[WorkerView], need_blocks: int) -> list[WorkerView]:
        """The workers to which a run that made way may come back at present."""
        workers = self._gateway.fleet.workers
        # To itself, a gateway is alone on a worker that others fill.
        views = [
            replace(view, running_requests=max(view.running_requests, workers[view.worker_id].load.running_requests))
            for view in views
        ]
        rested_s = time.monotonic() - TAKE_BACK_EVERY_S
        resting = {worker_id for worker_id, time_s in self._took_back_s.items() if time_s > rested_s}
        return may_take_back(views, need_blocks, growing=self.growing, resting=resting)

    def took_back(self, worker_id: str) -> None:
        """One came back to a worker."""
        self._took_back_s[worker_id] = time.monotonic()
        self._look_again_in(TAKE_BACK_EVERY_S)

    def _look_again_in(self, delay_s: float) -> None:
        asyncio.get_running_loop().call_later(delay_s + TIMER_SLACK_S, self._gateway.place_waiting)

    def _held_blocks(self, run: ChoiceRun) -> int:
        return math.ceil(run.life.context_tokens / self._gateway.block_size_tokens)

    def _running(self, worker_ids: Container[str]) -> Iterator[Running]:
        """What decodes on these workers and could go on from its ledger with every token as if it had stayed."""
        workers = self._gateway.fleet.workers
        for run in self._gateway.runs():
            life, worker_id = run.life, str(run.life.decode_id)
            if worker_id not in worker_ids or not life.settled or self._gateway.is_moving(run) or not run.movable:
                continue
            freed = workers[worker_id].freed_by(life.request_id, self._held_blocks(run))
            yield Running(run.number, worker_id, run.request.priority, freed, len(life.output_ids), run.preempted)
