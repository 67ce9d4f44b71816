"""What scaling policies see of a running simulation, and how their actions are carried out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cluster.config import Role
from orchestrator import lifecycle as lc
from orchestrator.policy.router import Placement, Wait
from orchestrator.simulator.fleet import Worker
from orchestrator.simulator.flight import Flight
from orchestrator.simulator.leg import LegState
from orchestrator.simulator.scaling import (
    ChangeRole,
    DrainWorker,
    FinishedRequest,
    InFlight,
    MigrateRequest,
    ScalingAction,
    StartWorker,
    WorkerStatus,
)

if TYPE_CHECKING:
    from orchestrator.simulator.simulation import Simulation

MOVE_RETRY_S = 1.0
"""Pause before a request that found no room elsewhere is tried again."""


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
        """Every request that holds a place."""
        simulation = self._simulation
        for flight in simulation.live.values():
            if flight.lifecycle.state is lc.State.QUEUED:
                continue
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
            )

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
    """Move what decodes on a draining worker; look again for what could not move yet."""
    if worker.state != "draining" or simulation.fleet.settle(worker):
        return
    for flight in list(simulation.live.values()):
        if flight.worker is worker:
            move(simulation, flight, None)
    if not simulation.fleet.settle(worker):
        simulation.timer(simulation.kernel.now_s + MOVE_RETRY_S, lambda _: _empty(simulation, worker))


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
    simulation.reserve(flight, simulation.fleet.workers[placement.decode_id], placement.reserve_blocks)
    simulation.records.columns["moves"][flight.index] += 1
    simulation.records.columns["decode"][flight.index] = simulation.fleet.workers[placement.decode_id].number
    simulation.driver.handle(flight, lc.Moved(placement.decode_id))
    return True
