"""Prefill legs: read a prompt, sample its first token, keep its KV for another worker."""

from __future__ import annotations

from baton.internal.v1 import worker_pb2
from kv_transfer.ticket import export_params
from workers.leg_run import LegRun
from workers.messages import aborted_message, engine_leg, output_message


class PrefillLegs:
    """Runs prefill legs. Owns nothing: the engine holds the KV until it is read or its lease ends."""

    def takes(self, submit: worker_pb2.SubmitLeg) -> bool:
        """A leg that exports what it computes here, and is no part of moving a request away."""
        return submit.export and not submit.HasField("ticket") and not submit.moves_away

    async def run(self, leg: LegRun) -> None:
        """Compute the prompt. The last output has the transfer parameters that the gateway makes a ticket of.

        Raises:
            WorkerDraining: the worker takes no new work.
            ServingError: the engine failed or refused the leg.
        """
        leg.admit()
        request = engine_leg(leg.submit, export_params())
        if leg.aborted:  # before the engine learned of it
            leg.put(aborted_message(request.leg_id))
            return
        async for output in leg.generate(request):
            leg.put(output_message(output))

    async def release(self, ticket: worker_pb2.Ticket) -> None:
        """Nothing to do: the decode side gives a ticket back."""
