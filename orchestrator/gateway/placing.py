"""Runs wait for workers here, and are given them: the queue, the router, and reservations of KV.

`orchestrator.policy.router.place` decides; a strategy of placement is a file beside it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from cluster.errors import NoReadyWorker
from cluster.spec.config import TransferSettings
from orchestrator.gateway.forecast import OutputForecast
from orchestrator.gateway.queue import RunQueue
from orchestrator.gateway.run_view import RunView
from orchestrator.policy.preemption import TAKE_BACK_EVERY_S, Running, may_take_back
from orchestrator.policy.router import Placement, RequestView, Wait, WorkerView, is_batch, place

TIMER_SLACK_S = 0.001
RESAMPLE_S = 0.1
"""After no running request was found that may be preempted: a busy gateway has some occasion every millisecond."""


class PlacingFleet(Protocol):
    """What the placer asks of a fleet."""

    def __len__(self) -> int: ...

    def views(self, peak_blocks: Mapping[str, int] | None = None) -> list[WorkerView]:
        """The router's view of all workers."""
        ...

    def cached_tokens(self, hashes: Sequence[int], isl_tokens: int) -> dict[str, int]:
        """Tokens of a prompt that each worker likely has."""
        ...

    def running_requests(self, worker_id: str) -> int:
        """Requests on a worker, those of other gateways included."""
        ...

    def reserve_placement(self, request_id: str, placement: Placement, uncached_tokens: int) -> None:
        """Reserve a placed request its KV."""
        ...


class PlacingPeaks(Protocol):
    """Forecast peaks of KV."""

    def blocks(self) -> dict[str, int]:
        """Most blocks that each decode worker will hold at once."""
        ...

    def add(self, worker_id: str, blocks: int) -> None:
        """A request was placed there."""
        ...


class Preempter(Protocol):
    """Frees KV for a request that has waited long enough."""

    @property
    def growing(self) -> bool:
        """Whether a decode worker is on its way."""
        ...

    @property
    def allowed(self) -> bool:
        """Whether a request may be preempted at present."""
        ...

    def victim(self, priority: int, need_blocks: int) -> Running | None:
        """The request to preempt for one of this priority."""
        ...

    def preempt(self, victim: Running) -> bool:
        """Preempt it; whether it was."""
        ...


class Placer:
    """Owns the asking for workers: workers that a run avoids, since when no KV was found, when to ask again.

    Args:
        queue: Runs that wait.
        fleet: The workers.
        forecast: Output still to come.
        preemption: The last resort where no KV is left.
        transfer: When decode prefills by itself.
        peaks: Ranks decode workers where the cluster is scaled; else none.
        patience_s: Seconds for which the head of the queue may finds no KV before another request is preempted for
            it; None: for ever.
        clock: Monotonic seconds.
        call_later: Calls a function after a delay; the running loop's, unless given.
    """

    def __init__(
        self,
        queue: RunQueue,
        fleet: PlacingFleet,
        forecast: OutputForecast,
        preemption: Preempter,
        transfer: TransferSettings,
        *,
        peaks: PlacingPeaks | None = None,
        patience_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._queue = queue
        self._fleet = fleet
        self._forecast = forecast
        self._preemption = preemption
        self._transfer = transfer
        self._peaks = peaks
        self._patience_s = patience_s
        self._clock = clock
        self._call_later = call_later or (lambda delay_s, call: asyncio.get_running_loop().call_later(delay_s, call))
        self._avoid: dict[int, frozenset[str]] = {}
        self._no_headroom_since_s: dict[int, float] = {}
        self._took_back_s: dict[str, float] = {}
        self._sample_from_s = 0.0

    def enqueue(self, run: RunView, avoid: frozenset[str], *, again: bool) -> None:
        """Place a run at once if nobody waits before it, else let it wait; ``again`` if it was admitted before.

        Raises:
            RequestRejected: the queue is full.
            NoReadyWorker: the cluster has no worker at all that could ever take it.
        """
        if not again and not len(self._fleet):
            raise NoReadyWorker("no worker is ready yet; retry in a moment")
        self._avoid[run.number] = avoid
        if self._queue.goes_first(run) and not isinstance(self._place(run), Wait):
            if not again:
                self._queue.charge(run)
        else:
            self._queue.push(run, again=again, now_s=self._clock())
        if again:
            self.place_waiting()  # it went to the head, and nothing else may happen that would try it

    def place_waiting(self) -> None:
        """Place from the head of the queue what finds KV, or for which a running request is preempted."""
        while (run := self._queue.head) is not None:
            found = self._place(run)
            if isinstance(found, Wait):
                if found.reason == "no_blocks" and self._make_headroom(run):
                    continue
                return  # in order: a small request does not overtake a large one for ever
            self._queue.take(run, now_s=self._clock())

    def prompt_read(self) -> None:
        """A worker has read a prompt: where none is read, a run that was preempted may come back."""
        head = self._queue.head
        if head is not None and head.waits_for_headroom:
            self.place_waiting()

    def forget(self, run: RunView) -> None:
        """A run is over."""
        waited = self._queue.discard(run)
        self._avoid.pop(run.number, None)
        self._no_headroom_since_s.pop(run.number, None)
        if waited:
            self.place_waiting()  # it may have been the head that found no KV

    def _view(self, run: RunView) -> RequestView:
        isl_tokens, forecast = run.life.context_tokens, self._forecast
        more = forecast.remaining_tokens(run) if run.waits_for_headroom else forecast.output_tokens(run.request)
        cached = self._fleet.cached_tokens(run.hashes, isl_tokens)
        return RequestView(isl_tokens, more, forecast.block_size_tokens, cached, is_batch(run.request.priority))

    def _place(self, run: RunView) -> Placement | Wait:
        """Ask the router for this run as it stands, and carry out its answer."""
        view = self._view(run)
        workers = self._fleet.views(self._peaks.blocks() if self._peaks is not None else None)
        local_prefill_below_tokens = self._transfer.local_prefill_below_tokens
        if run.waits_for_headroom:
            workers = self._may_take_back(workers, view.reserve_blocks)
            # It is prefilled where it decodes, out of the way of others' first tokens.
            local_prefill_below_tokens = view.isl_tokens
        chosen = place(
            view,
            workers,
            local_prefill_below_tokens=local_prefill_below_tokens,
            local_prefill_after_s=self._transfer.local_prefill_after_s,
            avoid=self._avoid.get(run.number, frozenset()),
        )
        if isinstance(chosen, Placement):
            self._placed(run, view, chosen)
        elif chosen.reason == "no_blocks":
            self._no_headroom(run)
        return chosen

    def _placed(self, run: RunView, view: RequestView, chosen: Placement) -> None:
        if run.waits_for_headroom:
            self._took_back_s[chosen.decode_id] = self._clock()
            self._place_again_in(TAKE_BACK_EVERY_S)
        self._no_headroom_since_s.pop(run.number, None)
        reader = chosen.prefill_id or chosen.decode_id
        self._fleet.reserve_placement(run.life.request_id, chosen, view.isl_tokens - view.cached_tokens.get(reader, 0))
        if self._peaks is not None:
            self._peaks.add(chosen.decode_id, chosen.reserve_blocks)
        run.placed(chosen.prefill_id, chosen.decode_id)

    # --- where there is no KV ---------------------------------------------------------------------------------

    def _no_headroom(self, run: RunView) -> None:
        """No worker has the KV: ask again when the run has waited long enough."""
        if self._patience_s is not None and not run.waits_for_headroom and run.number not in self._no_headroom_since_s:
            self._no_headroom_since_s[run.number] = self._clock()
            self._place_again_in(self._patience_s)

    def _make_headroom(self, run: RunView) -> bool:
        """Have a running request preempted for the head of the queue, if that may be; whether one was."""
        since_s = self._no_headroom_since_s.get(run.number)
        if self._patience_s is None or since_s is None or run.waits_for_headroom or not self._preemption.allowed:
            return False
        now_s = self._clock()
        if now_s < max(since_s + self._patience_s, self._sample_from_s):
            return False
        victim = self._preemption.victim(run.request.priority, self._view(run).reserve_blocks)
        if victim is None:
            self._sample_from_s = now_s + RESAMPLE_S
            self._place_again_in(RESAMPLE_S)
            return False
        return self._preemption.preempt(victim)

    def _may_take_back(self, views: Sequence[WorkerView], need_blocks: int) -> list[WorkerView]:
        """The workers to which a preempted run may come back at present."""
        # To itself, a gateway is alone on a worker that others fill.
        views = [
            replace(each, running_requests=max(each.running_requests, self._fleet.running_requests(each.worker_id)))
            for each in views
        ]
        rested_s = self._clock() - TAKE_BACK_EVERY_S
        resting = {worker_id for worker_id, time_s in self._took_back_s.items() if time_s > rested_s}
        return may_take_back(views, need_blocks, growing=self._preemption.growing, resting=resting)

    def _place_again_in(self, delay_s: float) -> None:
        self._call_later(delay_s + TIMER_SLACK_S, self.place_waiting)
