"""Decode legs: redeem the ticket, read the KV it names, generate to the end; or move a request away.

The decode loop is `DecodeLegs.run`; the engine pulls the KV inside it (`kv_transfer.connector`).
"""

from __future__ import annotations

import logging
from typing import Any

from baton.internal.v1 import worker_pb2
from cluster.engine.protocol import Engine
from cluster.errors import InvalidRequest, WorkerDraining
from decode_workers.redeemed_tickets import RedeemedTickets
from kv_transfer.ticket import export_params
from workers.leg_run import LegRun
from workers.messages import aborted_message, engine_leg, output_message

log = logging.getLogger("baton.worker")

IMPORT_GRACE_S = 30.0
"""A leg that waits for its KV need not make the engine step; after this long it should have failed or begun."""


class DecodeLegs:
    """Runs decode legs on one engine. Owns the tickets redeemed on it."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._tickets = RedeemedTickets()

    def takes(self, submit: worker_pb2.SubmitLeg) -> bool:
        """Any leg: without a ticket its tokens are prefilled here first, as colocated workers do and after a loss."""
        return True

    async def run(self, leg: LegRun) -> None:
        """Generate, after reading what the ticket names; with ``export``, keep the KV for the worker it moves to.

        Raises:
            TicketRefused: the ticket was used, or is past its deadline.
            WorkerDraining: the worker takes no new work.
            ServingError: the engine failed or refused the leg.
        """
        submit = leg.submit
        imported = self._tickets.redeem(submit.ticket) if submit.HasField("ticket") else None
        try:
            if not submit.moves_away:
                leg.admit()
            request = engine_leg(submit, export_params(imported) if submit.export else imported)
            if leg.aborted:  # before the engine learned of it
                await self._give_back(imported)
                leg.put(aborted_message(request.leg_id))
                return
            async for output in leg.generate(request, may_wait_s=IMPORT_GRACE_S if imported else 0.0):
                leg.put(output_message(output))
        except (InvalidRequest, WorkerDraining):  # refused before any KV was read
            await self._give_back(imported)
            raise

    async def release(self, ticket: worker_pb2.Ticket) -> None:
        """Use the ticket up without reading: its source frees the blocks."""
        await self._engine.release(self._tickets.redeem(ticket))

    async def _give_back(self, imported: dict[str, Any] | None) -> None:
        """The source keeps the blocks of a redeemed ticket until its lease ends, unless they are released."""
        if imported is None:
            return
        try:
            await self._engine.release(imported)
        except Exception:
            log.exception("ticket not released")
