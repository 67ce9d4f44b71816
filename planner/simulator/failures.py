"""What goes wrong in a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.errors import ConfigError
from orchestrator.request import lifecycle as lc
from planner.simulator.driver import LegDriver
from planner.simulator.fleet import Fleet
from planner.simulator.flight import Flight
from planner.simulator.leg import LegState


@dataclass(frozen=True, slots=True)
class FailurePlan:
    """Workers that die, at stated times or at random, and transfers that break.

    Args:
        at: Seconds and worker id.
        mtbf_s: Mean time of a worker between failures, exponential; left out, none at random.
        transfer_share: Share of KV transfers that break at their end.
    """

    at: tuple[tuple[float, str], ...] = ()
    mtbf_s: float | None = None
    transfer_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.transfer_share <= 1 or (self.mtbf_s is not None and self.mtbf_s <= 0):
            raise ConfigError("failures: expected 0 <= transfer_share <= 1 and mtbf_s > 0")


def fail_worker(worker_id: str, fleet: Fleet, flights: Mapping[int, Flight], driver: LegDriver) -> bool:
    """A worker dies with all that is on it; what it had said by then has been heard.

    Returns:
        Whether one on standby serves in its place.

    Raises:
        ConfigError: there is no such worker.
    """
    worker = fleet.workers.get(worker_id)
    if worker is None:
        raise ConfigError(f"failures.at: no worker {worker_id!r}; there are {', '.join(fleet.workers)}")
    if worker.engine is None:
        return False
    hit = [
        flight for flight in flights.values() if worker_id in (flight.lifecycle.prefill_id, flight.lifecycle.decode_id)
    ]
    for flight in hit:
        # All of them: that a request has made tokens is how its lifecycle knows that the KV was read.
        driver.tell_progress(flight)
    driver.tickets.worker_down(worker_id)
    promoted = fleet.fail(worker)
    for flight in hit:
        leg = flight.leg
        if leg is not None and flight.worker is worker:
            if flight.transfer is not None:
                driver.links.cancel(flight.transfer)
                flight.transfer = None
            flight.drop_export()
            driver.collect(leg, flight.index)
            leg.state = LegState.OVER
        elif leg is not None and flight.export is not None and flight.export.worker is worker:
            if flight.transfer is not None:
                driver.links.cancel(flight.transfer)
                flight.transfer = None
            driver.broken((flight, leg))
            continue
        driver.handle(flight, lc.WorkerLost(worker_id))
    return promoted
