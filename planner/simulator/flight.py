"""One request on its way through the simulated cluster: its lifecycle, and what of it lies on which worker."""

from __future__ import annotations

from dataclasses import dataclass

from kv_transfer.ticket import HandoffTicket
from orchestrator.request.lifecycle import Lifecycle
from planner.simulator.engine import Engine
from planner.simulator.fleet import Worker
from planner.simulator.leg import Leg
from planner.simulator.links import Transfer


@dataclass(slots=True, eq=False)
class Export:
    """KV that a worker keeps for another to read."""

    worker: Worker
    engine: Engine
    leg: Leg
    ticket: HandoffTicket

    def release(self) -> None:
        """Free the blocks, unless the engine is gone and they with it."""
        if self.worker.engine is self.engine:
            self.worker.exports -= 1
            self.engine.release(self.leg)


@dataclass(slots=True, eq=False)
class Flight:
    """A request between arrival and end.

    ``holder`` and ``unclaimed_blocks`` are its reservation while no leg has taken it over; ``export`` is the KV it
    is waiting for or reading. ``preempted``: it was once, and is no more; ``waits_for_headroom``: it has not been
    placed again yet.
    """

    index: int
    lifecycle: Lifecycle
    isl_tokens: int
    osl_tokens: int
    reasoning_tokens: int
    cached_tokens: int
    units: tuple[int, ...]
    tenant: str
    priority: int
    deadline_s: float
    avoid: frozenset[str] = frozenset()
    leg: Leg | None = None
    worker: Worker | None = None
    engine: Engine | None = None
    holder: Engine | None = None
    unclaimed_blocks: int = 0
    export: Export | None = None
    transfer: Transfer | None = None
    last_token_s: float = -1.0
    waits_for_headroom: bool = False
    preempted: bool = False

    @property
    def generated_tokens(self) -> int:
        """Output tokens the gateway has."""
        return len(self.lifecycle.output_ids)

    def unreserve(self) -> None:
        """Give back the reservation, if it is still its own."""
        if self.holder is not None:
            self.holder.unclaimed_blocks -= self.unclaimed_blocks
            self.holder = None

    def drop_export(self) -> None:
        """Free the KV it was waiting for."""
        if self.export is not None:
            export, self.export = self.export, None
            export.release()
