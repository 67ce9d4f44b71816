"""Runs wait for workers here, and are given them: the queue, the router, and reservations of KV.

`orchestrator.policy.placing` decides whose turn it is and what the router is asked, as in the simulator; another rule
of placement is a file beside `orchestrator.policy.router`.
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
from orchestrator.policy.placing import Placing, Routing
from orchestrator.policy.preemption import RESAMPLE_S, TAKE_BACK_EVERY_S, Running, patience_is_over
from orchestrator.policy.router import Placement, RequestView, Wait, WorkerView, is_batch
from orchestrator.request.lifecycle import Displaced

TIMER_SLACK_S = 0.001


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
        patience_s: Seconds for which the head of the queue may find no KV before another request is preempted for
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
        self._routing = Routing(
            local_prefill_below_tokens=transfer.local_prefill_below_tokens,
            local_prefill_after_s=transfer.local_prefill_after_s,
        )
        self._placing: Placing[RunView] = Placing(queue.line, self)
        self._peaks = peaks
        self._patience_s = patience_s
        self._clock = clock
        self._call_later = call_later or (lambda delay_s, call: asyncio.get_running_loop().call_later(delay_s, call))
        self._avoid: dict[int, frozenset[str]] = {}
        self._no_headroom_since_s: dict[int, float] = {}
        self._sample_from_s = 0.0
        self._routed: RequestView | None = None
        """What the router was asked last; `placed` follows on `route`."""

    def enqueue(self, run: RunView, avoid: frozenset[str], *, again: bool) -> None:
        """Place a run at once if nobody waits before it, else let it wait; ``again`` if it was admitted before.

        Raises:
            RequestRejected: the queue is full, or would not place it by its deadline.
            NoReadyWorker: there is no worker at all.
        """
        if not again and not len(self._fleet):
            raise NoReadyWorker("no worker is ready yet; retry in a moment")
        self._avoid[run.number] = avoid
        displaced = self._placing.ask(
            run,
            priority=run.request.priority,
            tenant=run.request.tenant,
            cost_tokens=self._queue.cost_tokens(run),
            deadline_s=run.request.deadline_s,
            now_s=self._clock(),
            again=again,
            waits_for_headroom=run.waits_for_headroom,
        )
        if displaced is not None:
            displaced.post(Displaced(self._queue.line.displaced_error()))

    def place_waiting(self) -> None:
        """Place from the head of the queue what finds KV, or for which a running request is preempted."""
        self._placing.place_waiting(self._clock())

    def prompt_read(self) -> None:
        """A worker has read a prompt: where none is read, a run that was preempted may come back."""
        head = self._queue.line.head
        if head is not None and head.waits_for_headroom:
            self.place_waiting()

    def forget(self, run: RunView) -> None:
        """A run is over."""
        waited = self._queue.discard(run)
        self._avoid.pop(run.number, None)
        self._no_headroom_since_s.pop(run.number, None)
        if waited:
            self.place_waiting()  # it may have been the head that found no KV

    # --- what `Placing` asks ----------------------------------------------------------------------------------

    def route(self, run: RunView) -> Placement | Wait:
        """What the router says of a run as it stands."""
        self._routed = view = self._view(run)
        workers = self._fleet.views(self._peaks.blocks() if self._peaks is not None else None)
        if run.waits_for_headroom:
            workers = [self._with_others(each) for each in workers]
        now_s = self._clock()
        found = self._routing.route(
            view,
            workers,
            avoid=self._avoid.get(run.number, frozenset()),
            comes_back=run.waits_for_headroom,
            growing=self._preemption.growing,
            now_s=now_s,
        )
        lacks_kv = isinstance(found, Wait) and found.reason == "no_blocks" and not run.waits_for_headroom
        if lacks_kv and self._patience_s is not None and run.number not in self._no_headroom_since_s:
            self._no_headroom_since_s[run.number] = now_s
            self._place_again_in(self._patience_s)
        return found

    def placed(self, run: RunView, placement: Placement, charged_tokens: float) -> None:
        """Reserve a run what the router chose, and let it go on."""
        view, self._routed = self._routed, None
        assert view is not None
        self._queue.charged(run, charged_tokens)
        if run.waits_for_headroom:
            self._routing.take_backs.came_back(placement.decode_id, self._clock())
            self._place_again_in(TAKE_BACK_EVERY_S)
        self._no_headroom_since_s.pop(run.number, None)
        reader = placement.prefill_id or placement.decode_id
        self._fleet.reserve_placement(
            run.life.request_id, placement, view.isl_tokens - view.cached_tokens.get(reader, 0)
        )
        if self._peaks is not None:
            self._peaks.add(placement.decode_id, placement.reserve_blocks)
        run.placed(placement.prefill_id, placement.decode_id)

    def make_headroom(self, run: RunView) -> bool:
        """Have a running request preempted for the head of the queue, if that may be; whether one was."""
        now_s, since_s = self._clock(), self._no_headroom_since_s.get(run.number)
        if run.waits_for_headroom or not self._preemption.allowed or now_s < self._sample_from_s:
            return False
        if not patience_is_over(now_s, since_s, self._patience_s):
            return False
        victim = self._preemption.victim(run.request.priority, self._view(run).reserve_blocks)
        if victim is None:
            self._sample_from_s = now_s + RESAMPLE_S
            self._place_again_in(RESAMPLE_S)
            return False
        return self._preemption.preempt(victim)

    # --- pieces -----------------------------------------------------------------------------------------------

    def _view(self, run: RunView) -> RequestView:
        isl_tokens, forecast = run.life.context_tokens, self._forecast
        more = forecast.remaining_tokens(run) if run.waits_for_headroom else forecast.output_tokens(run.request)
        cached = self._fleet.cached_tokens(run.hashes, isl_tokens)
        return RequestView(isl_tokens, more, forecast.block_size_tokens, cached, is_batch(run.request.priority))

    def _with_others(self, view: WorkerView) -> WorkerView:
        """A worker with the requests of other gateways: to itself, a gateway is alone on one that others fill."""
        running = self._fleet.running_requests(view.worker_id)
        return replace(view, running_requests=max(view.running_requests, running))

    def _place_again_in(self, delay_s: float) -> None:
        self._call_later(delay_s + TIMER_SLACK_S, self.place_waiting)
