"""Preemption by recompute in a simulated cluster: `orchestrator.policy.preemption` chooses, here it is carried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cluster.spec.config import Role
from orchestrator.policy.preemption import RESAMPLE_S, Running, patience_is_over, preempt_for
from orchestrator.request import lifecycle as lc
from planner.simulator.driver import LegDriver
from planner.simulator.fleet import Fleet
from planner.simulator.flight import Flight
from planner.simulator.gateway import GatewaySpec
from planner.simulator.kernel import Kernel
from planner.simulator.leg import LegState
from planner.simulator.records import Records


def is_growing(fleet: Fleet) -> bool:
    """Whether a worker that could decode is on its way."""
    workers = fleet.workers.values()
    return any(each.state == "starting" and not each.standby and each.role is not Role.PREFILL for each in workers)


class Preemption:
    """Frees KV for a request that has waited long enough, while a decode worker starts."""

    def __init__(
        self,
        kernel: Kernel,
        records: Records,
        gateway: GatewaySpec,
        fleet: Fleet,
        flights: Mapping[int, Flight],
        driver: LegDriver,
    ) -> None:
        self._kernel = kernel
        self._records = records
        self._gateway = gateway
        self._fleet = fleet
        self._flights = flights
        self._driver = driver
        self._preempting = False
        self.resample_s = 0.0
        """By live rules, when to try again after none could be preempted."""

    def make_headroom(self, incoming: Flight, need_blocks: int) -> bool:
        """Preempt the request that policy chooses for a new request; whether there may be KV now."""
        now_s, gateway, spec = self._kernel.now_s, self._gateway, self._fleet.spec
        if incoming.waits_for_headroom or not patience_is_over(now_s, self._since_s(incoming), gateway.preempt_after_s):
            return False
        if not is_growing(self._fleet) or self._preempting or now_s < self.resample_s:
            return False
        chosen = preempt_for(
            need_blocks,
            incoming.priority,
            self._fleet.views(),
            self._running(spec.pools[0].profile.block_size_tokens),
            local_prefill_below_tokens=spec.local_prefill_below_tokens,
        )
        if chosen is None:
            if gateway.live_rules:
                self.resample_s = now_s + RESAMPLE_S
            return False
        flight = self._flights[chosen.request]
        self._driver.tell_progress(flight)
        if chosen.request not in self._flights or flight.lifecycle.state is not lc.State.DECODING:
            return True  # its last token was out: that freed KV as well
        flight.preempted = flight.waits_for_headroom = True
        self._preempting = gateway.live_rules  # what is freed is given out at once, before the next one is chosen
        self._driver.handle(flight, lc.Preempted())
        self._preempting = False
        return True

    def _since_s(self, incoming: Flight) -> float | None:
        """Since when it has to be patient; with plain rules since it arrived, whichever was before it."""
        if self._gateway.live_rules:
            return incoming.no_headroom_since_s
        return float(self._records.columns["arrival_s"][incoming.index])

    def _running(self, block: int) -> Iterator[Running]:
        for flight in self._flights.values():
            leg, engine, worker = flight.leg, flight.engine, flight.worker
            if leg is None or engine is None or worker is None or leg.state is not LegState.DECODING:
                continue
            context = engine.batch.context_of(leg)
            fresh = engine.batch.made_of(leg)
            blocks = -(-context // block)
            if self._gateway.live_rules:
                if not fresh:
                    continue  # its KV may be on its way yet
                blocks = max(blocks, leg.reserve_blocks)  # its reservation goes with it
            made = flight.generated_tokens + fresh - leg.sent_tokens
            yield Running(flight.index, worker.worker_id, flight.priority, blocks, made, flight.preempted)
