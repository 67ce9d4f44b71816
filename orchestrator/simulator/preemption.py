"""Preemption by recompute in a simulated cluster: `orchestrator.policy.preemption` chooses, here it is carried out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from cluster.config import Role
from orchestrator import lifecycle as lc
from orchestrator.policy.preemption import Running, victim
from orchestrator.simulator.flight import Flight
from orchestrator.simulator.leg import LegState

if TYPE_CHECKING:
    from orchestrator.simulator.simulation import Simulation


def preempt_for(simulation: Simulation, newcomer: Flight) -> bool:
    """Let a running request make way, if the newcomer has waited long enough and a decode worker is on its way."""
    patience_s = simulation.gateway.preempt_after_s
    if patience_s is None or newcomer.waits_for_room:
        return False
    arrived_s = simulation.records.columns["arrival_s"][newcomer.index]
    if simulation.kernel.now_s < arrived_s + patience_s - 1e-9:
        return False
    if not is_growing(simulation):
        return False
    views = [view for view in simulation.fleet.views() if view.accepting and view.role is not Role.PREFILL]
    headroom = {view.worker_id: view.headroom_blocks for view in views}
    more = simulation.forecast.osl_tokens(newcomer.tenant, newcomer.isl_tokens, newcomer.generated_tokens)
    block = simulation.fleet_spec.pools[0].profile.block_size_tokens
    need = -(-(newcomer.isl_tokens + newcomer.generated_tokens + more) // block)
    chosen = victim(need, newcomer.priority, headroom, _running(simulation, block))
    if chosen is None:
        return False
    flight = simulation.live[chosen.request]
    simulation.driver.tell_progress(flight)
    if chosen.request not in simulation.live or flight.lifecycle.state is not lc.State.DECODING:
        return True  # its last token was out: that made room as well
    flight.preempted = flight.waits_for_room = True
    simulation.driver.handle(flight, lc.Preempted())
    return True


def is_growing(simulation: Simulation) -> bool:
    """Whether a worker that could decode is on its way."""
    workers = simulation.fleet.workers.values()
    return any(each.state == "starting" and not each.standby and each.role is not Role.PREFILL for each in workers)


def _running(simulation: Simulation, block: int) -> Iterator[Running]:
    for flight in simulation.live.values():
        leg, engine, worker = flight.leg, flight.engine, flight.worker
        if leg is None or engine is None or worker is None or leg.state is not LegState.DECODING:
            continue
        context = engine.batch.context_of(leg)
        made = flight.generated_tokens + engine.batch.made_of(leg) - leg.told_tokens
        yield Running(flight.index, worker.worker_id, flight.priority, -(-context // block), made, flight.preempted)
