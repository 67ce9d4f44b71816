"""What scaling policies see of a running simulation, and how their actions are carried out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cluster.config import DrainSettings, Role
from orchestrator import lifecycle as lc
from orchestrator.policy.drain import HeldRequest, Hold, next_moves
from orchestrator.policy.router import Placement, Wait
from orchestrator.policy.scaling import (
    Arrival,
    ChangeRole,
    DrainWorker,
    FinishedRequest,
    InFlight,
    MigrateRequest,
    ScalingAction,
    StartWorker,
    WorkerStatus,
)
from orchestrator.simulator.fleet import Worker
from orchestrator.simulator.flight import Flight
from orchestrator.simulator.leg import LegState

if TYPE_CHECKING:
    from orchestrator.simulator.simulation import Simulation

DRAIN_TICK_S = 0.05
"""As `orchestrator.live.drainer` looks again while a worker drains."""
MOVES_AT_ONCE = DrainSettings().moves_at_once


class LiveFleetView:
    """`FleetView` over a running simulation."""

    def __init__(self, simulation: Simulation) -> None:
        self._simulation = simulation

    @property
    def arrived_requests(self) -> int:
        """Requests so far."""
        return self._simulation.arrived_requests

    @property
    def arrived_tokens(self) -> int:
        """Prompt tokens so far."""
        return self._simulation.arrived_tokens

    @property
    def queued_requests(self) -> int:
        """Requests in the gateway's queue."""
        return len(self._simulation.queue)

    @property
    def queued_prompt_tokens(self) -> int:
        """Prompt tokens of those."""
        return self._simulation.queue.prompt_tokens

    def workers(self) -> Sequence[WorkerStatus]:
        """Every worker that is starting, ready or draining."""
        return self._simulation.fleet.status()

    def in_flight(self) -> Iterator[InFlight]:
        """Every request that has not ended."""
        simulation = self._simulation
        for flight in simulation.live.values():
            made = flight.generated_tokens
            leg, engine = flight.leg, flight.engine
            if leg is not None and engine is not None and leg.joined_order >= 0:
                engine.sync()
                made += engine.batch.made_of(leg) - leg.told_tokens
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
        """Requests that came since the last look."""
        came, self._simulation.arrivals = self._simulation.arrivals, []
        return came

    def finished(self) -> Sequence[FinishedRequest]:
        """Requests that finished since the last look."""
        done, self._simulation.finished = self._simulation.finished, []
        return done


def apply_scaling(simulation: Simulation, action: ScalingAction) -> None:
    """Carry out one action.

    Raises:
        ConfigError: it names a role or kind that no pool has.
    """
    fleet = simulation.fleet
    match action:
        case StartWorker():
            pool = fleet.pool_of(action.role, action.kind)
            fleet.launch(pool, action.role, pool.start_s if action.delay_s is None else action.delay_s)
        case DrainWorker():
            worker = fleet.workers[action.worker_id]
            fleet.drain(worker, action.migrate)
            if action.migrate and worker.state == "draining":
                _empty(simulation, worker)
            fleet.settle(worker)
        case ChangeRole():
            worker = fleet.workers[action.worker_id]
            if worker.role is not action.role:
                worker.role = action.role
                simulation.pump()
        case MigrateRequest():
            flight = simulation.live.get(action.request)
            if flight is not None:
                move(simulation, flight, action.target_id)


def _empty(simulation: Simulation, worker: Worker) -> None:
    """Move what decodes on a draining worker, as the gateway would; look again for what could not move yet."""
    if worker.state != "draining" or simulation.fleet.settle(worker):
        return
    flights = {str(flight.index): flight for flight in simulation.live.values() if _concerned(flight, worker)}
    for found in next_moves(
        [_held(simulation, flight, worker) for flight in flights.values()],
        simulation.fleet.views(),
        source_id=worker.worker_id,
        block_size_tokens=worker.pool.profile.block_size_tokens,
        moves_at_once=MOVES_AT_ONCE,
    ):
        _begin(simulation, flights[found.request_id], found.target_id, found.reserve_blocks)
    if not simulation.fleet.settle(worker):
        simulation.timer(simulation.kernel.now_s + DRAIN_TICK_S, lambda _: _empty(simulation, worker))


def _concerned(flight: Flight, worker: Worker) -> bool:
    """Whether the request decodes there, is promised to, or is on its way off it."""
    life = flight.lifecycle
    return worker.worker_id == life.decode_id or (
        worker.worker_id == life.prefill_id and life.moves > 0 and not life.has_output
    )


def _held(simulation: Simulation, flight: Flight, worker: Worker) -> HeldRequest:
    simulation.driver.tell_progress(flight)
    life, leg = flight.lifecycle, flight.leg
    if life.decode_id != worker.worker_id:
        hold = Hold.MOVING
    elif life.state is lc.State.PREFILLING:
        hold = Hold.RESERVED
    else:
        running = leg is not None and leg.state is LegState.DECODING
        hold = Hold.DECODING if running and life.settled else Hold.BUSY
    known = flight.isl_tokens + flight.generated_tokens
    more = simulation.forecast.osl_tokens(flight.tenant, flight.isl_tokens, flight.generated_tokens)
    return HeldRequest(str(flight.index), hold, known, more)


def move(simulation: Simulation, flight: Flight, target_id: str | None) -> bool:
    """Begin a migration with the KV; whether it began. Only a request that decodes and has somewhere to go can."""
    leg, source = flight.leg, flight.worker
    if leg is None or source is None or leg.state is not LegState.DECODING:
        return False
    holders = [Role.DECODE, Role.COLOCATED]
    views = [
        view
        for view in simulation.fleet.views()
        if view.worker_id != source.worker_id and (target_id in (None, view.worker_id) or view.role not in holders)
    ]
    simulation.driver.tell_progress(flight)
    placement: Placement | Wait = simulation.place_flight(flight, views)
    if isinstance(placement, Wait):
        return False
    _begin(simulation, flight, placement.decode_id, placement.reserve_blocks)
    return True


def _begin(simulation: Simulation, flight: Flight, target_id: str, blocks: int) -> None:
    """Let a request go on at the target."""
    target, columns = simulation.fleet.workers[target_id], simulation.records.columns
    if flight.lifecycle.state is lc.State.PREFILLING:
        flight.unreserve()  # the promise alone changes its place
    simulation.reserve(flight, target, blocks)
    columns["decode"][flight.index] = target.number
    simulation.driver.handle(flight, lc.Moved(target_id))
    columns["moves"][flight.index] = flight.lifecycle.moves
