"""Runs wait for workers here, and are given them: what the queue decides is carried out, and KV is reserved.

`orchestrator.policy.placement_queue` decides whose turn it is and what the router is asked, as in the simulator;
another rule of placement is a file beside `orchestrator.policy.router`.
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
from orchestrator.gateway.run_view import RunView
from orchestrator.policy.placement_queue import PlacementQueue, Routing
from orchestrator.policy.preemption_guard import PreemptionOwner
from orchestrator.policy.router import Placement, RequestView, WorkerView, is_batch
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

    def reserve_placement(
        self, request_id: str, placement: Placement, uncached_tokens: int, shared: tuple[str, int] | None = None
    ) -> None:
        """Reserve a placed request its KV; ``shared`` names blocks that it has in common with siblings."""
        ...


class PlacingPeaks(Protocol):
    """Forecast peaks of KV."""

    def blocks(self) -> dict[str, int]:
        """Most blocks that each decode worker will hold at once."""
        ...

    def add(self, worker_id: str, blocks: int) -> None:
        """A request was placed there."""
        ...


class Placer:
    """Owns the runs that wait for workers, and the workers that each run avoids.

    Args:
        fleet: The workers.
        forecast: Output still to come.
        preemption: The last resort where no KV is left.
        transfer: When decode prefills by itself.
        max_queued: Most requests that wait; those placed before do not count.
        weight_of: Weight of a tenant.
        peaks: Ranks decode workers where the cluster is scaled; else none.
        patience_s: Seconds for which the head of the queue may find no KV before another request is preempted for
            it; None: for ever.
        clock: Monotonic seconds.
        call_later: Calls a function after a delay; the running loop's, unless given.
    """

    def __init__(
        self,
        fleet: PlacingFleet,
        forecast: OutputForecast,
        preemption: PreemptionOwner[RunView],
        transfer: TransferSettings,
        max_queued: int,
        weight_of: Callable[[str], float],
        *,
        peaks: PlacingPeaks | None = None,
        patience_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        call_later: Callable[[float, Callable[[], None]], object] | None = None,
    ) -> None:
        self._fleet = fleet
        self._forecast = forecast
        routing = Routing(
            local_prefill_below_tokens=transfer.local_prefill_below_tokens,
            local_prefill_after_s=transfer.local_prefill_after_s,
        )
        self._queue: PlacementQueue[RunView] = PlacementQueue(
            self, preemption, routing, max_queued, weight_of=weight_of, patience_s=patience_s
        )
        self._peaks = peaks
        self._clock = clock
        self._call_later = call_later or (lambda delay_s, call: asyncio.get_running_loop().call_later(delay_s, call))
        self._avoid: dict[int, frozenset[str]] = {}

    @property
    def waiting(self) -> int:
        """Runs that wait."""
        return len(self._queue)

    def enqueue(self, run: RunView, avoid: frozenset[str], *, again: bool) -> None:
        """Place a run at once if nobody waits before it, else let it wait; ``again`` if it was admitted before.

        Raises:
            RequestRejected: the queue is full, or would not place it by its deadline.
            NoReadyWorker: there is no worker at all.
        """
        if not again and not len(self._fleet):
            raise NoReadyWorker("no worker is ready yet; retry in a moment")
        self._avoid[run.number] = avoid
        displaced = self._queue.ask(
            run,
            priority=run.request.priority,
            tenant=run.request.tenant,
            cost_tokens=self.cost_tokens(run),
            deadline_s=run.request.deadline_s,
            now_s=self._clock(),
            again=again,
        )
        if displaced is not None:
            displaced.post(Displaced(self._queue.displaced_error()))

    def place_waiting(self) -> None:
        """Place from the head of the queue what finds KV, or for which a running request is preempted."""
        self._queue.place_waiting(self._clock())

    def prompt_read(self) -> None:
        """A worker has read a prompt."""
        self._queue.prompt_read(self._clock())

    def forget(self, run: RunView) -> None:
        """A run is over."""
        waited = self._queue.leave(run)
        self._avoid.pop(run.number, None)
        if waited:
            self.place_waiting()  # it may have been the head that found no KV

    # --- what tenants are charged -----------------------------------------------------------------------------

    def cost_tokens(self, run: RunView) -> int:
        """What a request is expected to take; its further choices cost nothing more."""
        request = run.request
        if run.index:
            return 0
        return len(request.prompt_ids) + request.choices * self._forecast.output_tokens(request)

    def settle(self, run: RunView, output_tokens: int) -> int:
        """A request is over, of which this is the first run: charge what all its choices took instead of the forecast.

        Returns:
            Prompt and output tokens; the prompt counts only if it was placed.
        """
        request = run.request
        used_tokens = self._queue.settle(
            run,
            tenant=request.tenant,
            priority=request.priority,
            isl_tokens=len(request.prompt_ids),
            output_tokens=output_tokens,
        )
        self.place_waiting()  # its tenant took less or more than expected: another may be the head
        return used_tokens

    # --- what the queue asks (`PlacementOwner`) ---------------------------------------------------------------

    def workers(self, run: RunView) -> list[WorkerView]:
        """All workers. To itself, a gateway is alone on one that others fill: one that comes back sees those, too."""
        workers = self._fleet.views(self._peaks.blocks() if self._peaks is not None else None)
        return [self._with_others(each) for each in workers] if run.waits_for_headroom else workers

    def request_view(self, run: RunView, workers: Sequence[WorkerView]) -> RequestView:
        """A run as it stands."""
        isl_tokens, forecast = run.life.context_tokens, self._forecast
        more = forecast.remaining_tokens(run) if run.waits_for_headroom else forecast.output_tokens(run.request)
        # The engine reads nothing from its cache for a prompt that is scored.
        cached = {} if run.request.scores_prompt else self._fleet.cached_tokens(run.hashes, isl_tokens)
        view = RequestView(isl_tokens, more, forecast.block_size_tokens, cached, is_batch(run.request.priority))
        begins = not run.life.output_ids and not run.life.retries
        prompt = run.sibling.prompt
        return replace(view, held_on=prompt.held_on, shared_blocks=prompt.blocks) if begins else view

    def avoided(self, run: RunView) -> frozenset[str]:
        """Workers that failed it before."""
        return self._avoid.get(run.number, frozenset())

    def placed(self, run: RunView, view: RequestView, placement: Placement) -> None:
        """Reserve a run what the router chose, and let it go on."""
        reader = placement.prefill_id or placement.decode_id
        uncached_tokens = view.isl_tokens - view.cached_tokens.get(reader, 0)
        shared = (run.sibling.prompt.name, view.shared_blocks) if view.shared_blocks else None
        self._fleet.reserve_placement(run.life.request_id, placement, uncached_tokens, shared)
        if self._peaks is not None:
            self._peaks.add(placement.decode_id, placement.reserve_blocks)
        run.placed(placement.prefill_id, placement.decode_id)

    def try_again_in(self, delay_s: float) -> None:
        """Try the head of the queue again after so many seconds."""
        self._call_later(delay_s + TIMER_SLACK_S, self.place_waiting)

    def _with_others(self, view: WorkerView) -> WorkerView:
        running = self._fleet.running_requests(view.worker_id)
        return replace(view, running_requests=max(view.running_requests, running))
