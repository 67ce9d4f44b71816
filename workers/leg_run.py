"""One leg on a worker, and what a role adds to a worker: a kind of leg."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from baton.internal.v1 import worker_pb2
from cluster.engine.protocol import Engine, EngineLeg, EngineOutput
from workers.engine_health import EngineHealth


class LegRun:
    """A leg from its submission to its last output. Owns its abort mark.

    Args:
        submit: What the gateway asked for.
        engine: The worker's engine.
        health: Learns from when on the leg must make the engine step.
        put: Sends an output to the gateway.
        admit: Raises `WorkerDraining` where the worker takes no new work.
    """

    def __init__(
        self,
        submit: worker_pb2.SubmitLeg,
        engine: Engine,
        health: EngineHealth,
        *,
        put: Callable[[worker_pb2.LegOutput], None],
        admit: Callable[[], None],
    ) -> None:
        self.submit = submit
        self.put = put
        self.admit = admit
        self.aborted = False
        self._engine = engine
        self._health = health

    async def abort(self) -> None:
        """Stop the leg; its last output says so. An engine that has not learned of it is stopped by the mark."""
        self.aborted = True
        await self._engine.abort(self.submit.leg_id)

    async def generate(self, leg: EngineLeg, *, may_wait_s: float = 0.0) -> AsyncIterator[EngineOutput]:
        """The engine's outputs for the leg.

        ``may_wait_s`` is how long it may be in the engine before it must make it step, unless it does so sooner.
        """
        began_s = time.monotonic()
        self._health.must_step(leg.leg_id, began_s + may_wait_s)
        async for output in self._engine.generate(leg):
            self._health.must_step(leg.leg_id, began_s)
            yield output
            if not output.finish_reason and self.aborted:
                # The first abort came while the engine was taking the leg in, and found nothing.
                await self._engine.abort(leg.leg_id)


class LegKind(Protocol):
    """How one kind of leg is run: `prefill_workers` and `decode_workers` have one each.

    A worker has both whatever its role: roles change, and a decode worker that is drained exports as prefill does.
    """

    def takes(self, submit: worker_pb2.SubmitLeg) -> bool:
        """Whether the leg is of this kind. A worker asks its kinds in order."""
        ...

    async def run(self, leg: LegRun) -> None:
        """Run the leg and put its outputs, the last one with a finish reason.

        Raises:
            ServingError: it failed; the service then puts the error as its last output.
        """
        ...

    async def release(self, ticket: worker_pb2.Ticket) -> None:
        """A ticket will not be used: have its source free the blocks, if this kind redeems tickets.

        Raises:
            TicketRefused: it was used, or is past its deadline.
        """
        ...


LegKinds = Callable[[Engine], Sequence[LegKind]]
"""Makes a worker's kinds of legs, in its process, for its engine."""
