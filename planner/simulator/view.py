"""What scaling policies see of a running simulation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from orchestrator.policy.scaling_policy import Arrival, FinishedRequest, InFlight, WorkerStatus
from planner.simulator.fleet import Fleet
from planner.simulator.flight import Flight
from planner.simulator.placer import Placer
from planner.simulator.traffic import Traffic


class LiveFleetView:
    """`FleetView` over a running simulation."""

    def __init__(self, fleet: Fleet, placer: Placer, flights: Mapping[int, Flight], traffic: Traffic) -> None:
        self._fleet = fleet
        self._placer = placer
        self._flights = flights
        self._traffic = traffic

    @property
    def arrived_requests(self) -> int:
        """Requests so far."""
        return self._traffic.arrived_requests

    @property
    def arrived_tokens(self) -> int:
        """Prompt tokens so far."""
        return self._traffic.arrived_tokens

    @property
    def queued_requests(self) -> int:
        """Requests in the gateway's queue."""
        return len(self._placer)

    @property
    def queued_prompt_tokens(self) -> int:
        """Prompt tokens of those."""
        return sum(flight.isl_tokens for flight in self._placer)

    def workers(self) -> Sequence[WorkerStatus]:
        """Every worker that is starting, ready or draining."""
        return self._fleet.status()

    def in_flight(self) -> Iterator[InFlight]:
        """Every request that has not ended."""
        for flight in self._flights.values():
            made = flight.generated_tokens
            leg, engine = flight.leg, flight.engine
            if leg is not None and engine is not None and leg.joined_order >= 0:
                engine.sync()
                made += engine.batch.made_of(leg) - leg.sent_tokens
            yield InFlight(
                flight.index,
                flight.tenant,
                flight.priority,
                flight.isl_tokens,
                made,
                flight.lifecycle.decode_id,
                flight.lifecycle.state.value,
                max(0, made - flight.reasoning_tokens),
            )

    def arrived(self) -> Sequence[Arrival]:
        """Requests that came since this was last asked."""
        return self._traffic.take_arrivals()

    def finished(self) -> Sequence[FinishedRequest]:
        """Requests that finished since this was last asked."""
        return self._traffic.take_finished()
