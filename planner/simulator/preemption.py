"""Preemption by recompute in a simulated cluster: `orchestrator.policy` chooses, here it is carried out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from orchestrator.policy.preemption import Running, preempt_for
from orchestrator.policy.readiness import on_its_way
from orchestrator.request import lifecycle as lc
from planner.simulator.driver import LegDriver
from planner.simulator.fleet import Fleet
from planner.simulator.flight import Flight
from planner.simulator.gateway import GatewaySpec
from planner.simulator.leg import LegState


def is_growing(fleet: Fleet) -> bool:
    """Whether a worker on which requests could decode is on its way."""
    return any(
        on_its_way(
            each.role,
            loaded=each.state == "ready",
            standby=each.standby,
            given_up=each.state in ("draining", "gone"),
        )
        for each in fleet.workers.values()
    )


class Preemption:
    """Frees KV for a request that has waited long enough; owns nothing."""

    def __init__(
        self,
        gateway: GatewaySpec,
        fleet: Fleet,
        flights: Mapping[int, Flight],
        driver: LegDriver,
    ) -> None:
        self._gateway = gateway
        self._fleet = fleet
        self._flights = flights
        self._driver = driver

    @property
    def starting(self) -> bool:
        """Whether a worker on which requests could decode is on its way."""
        return is_growing(self._fleet)

    @property
    def growing(self) -> bool:
        """The same: here a worker serves the moment it is ready."""
        return self.starting

    def victim(self, flight: Flight, need_blocks: int) -> Running | None:
        """The request to preempt so that a waiting one comes nearer to so many blocks."""
        spec = self._fleet.spec
        return preempt_for(
            need_blocks,
            flight.priority,
            self._fleet.views(),
            self._running(spec.pools[0].profile.block_size_tokens),
            local_prefill_below_tokens=spec.local_prefill_below_tokens,
        )

    def preempt(self, victim: Running) -> bool:
        """Preempt a request; False if its last token was out, which has freed KV."""
        flight = self._flights[victim.request]
        self._driver.tell_progress(flight)
        if victim.request not in self._flights or flight.lifecycle.state is not lc.State.DECODING:
            return False
        flight.preempted = flight.waits_for_headroom = True
        self._driver.handle(flight, lc.Preempted())
        return True

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
