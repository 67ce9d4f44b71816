"""Preemption by recompute in a simulated cluster: `orchestrator.policy.preemption` chooses, here it is carried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from cluster.spec.config import Role
from orchestrator.policy.preemption import Running, victim
from orchestrator.request import lifecycle as lc
from planner.simulator.driver import LegDriver
from planner.simulator.fleet import Fleet
from planner.simulator.flight import Flight
from planner.simulator.forecast import LengthForecast
from planner.simulator.leg import LegState


def is_growing(fleet: Fleet) -> bool:
    """Whether a worker that could decode is on its way."""
    workers = fleet.workers.values()
    return any(each.state == "starting" and not each.standby and each.role is not Role.PREFILL for each in workers)


class Preemption:
    """Frees KV for a request that has waited long enough, while a decode worker starts."""

    def __init__(
        self, fleet: Fleet, flights: Mapping[int, Flight], driver: LegDriver, forecast: LengthForecast
    ) -> None:
        self._fleet = fleet
        self._flights = flights
        self._driver = driver
        self._forecast = forecast

    def make_room(self, newcomer: Flight) -> bool:
        """Preempt the request that policy chooses for a newcomer; whether there may be room now."""
        if newcomer.waits_for_room or not is_growing(self._fleet):
            return False
        views = [view for view in self._fleet.views() if view.accepting and view.role is not Role.PREFILL]
        headroom = {view.worker_id: view.headroom_blocks for view in views}
        more = self._forecast.osl_tokens(newcomer.tenant, newcomer.isl_tokens, newcomer.generated_tokens)
        block = self._fleet.spec.pools[0].profile.block_size_tokens
        need = -(-(newcomer.isl_tokens + newcomer.generated_tokens + more) // block)
        chosen = victim(need, newcomer.priority, headroom, self._running(block))
        if chosen is None:
            return False
        flight = self._flights[chosen.request]
        self._driver.tell_progress(flight)
        if chosen.request not in self._flights or flight.lifecycle.state is not lc.State.DECODING:
            return True  # its last token was out: that made room as well
        flight.preempted = flight.waits_for_room = True
        self._driver.handle(flight, lc.Preempted())
        return True

    def _running(self, block: int) -> Iterator[Running]:
        for flight in self._flights.values():
            leg, engine, worker = flight.leg, flight.engine, flight.worker
            if leg is None or engine is None or worker is None or leg.state is not LegState.DECODING:
                continue
            context = engine.batch.context_of(leg)
            made = flight.generated_tokens + engine.batch.made_of(leg) - leg.told_tokens
            yield Running(flight.index, worker.worker_id, flight.priority, -(-context // block), made, flight.preempted)
