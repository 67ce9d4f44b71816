"""Legs that the controller itself sends to workers: warm-ups and canaries. The same RPC as a gateway's."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Mapping, Sequence

import numpy as np

from baton.internal.v1 import registry_pb2, worker_pb2
from baton.v1.inference_pb2 import Sampling
from cluster.errors import ServingError, TransferTimeout
from cluster.internal_rpc import InternalRpc
from kv_transfer import ticket as tickets
from workers.worker_link import WorkerLink, leg_error, ticket_message

LEG_TIMEOUT_S = 60.0


class Legs:
    """Runs legs on workers by id. Owns the links to them, made on first use.

    Args:
        members: Workers by id.
        rpc: How the cluster's processes call each other.
        name: Beginning of the legs' ids; an engine's log shows whose they are by it.
    """

    def __init__(
        self, members: Mapping[str, registry_pb2.Member], rpc: InternalRpc | None = None, *, name: str = "warm"
    ) -> None:
        self.members = members
        self._rpc = rpc
        self._name = name
        self._links: dict[str, WorkerLink] = {}
        # Others may run legs on the same engine at the same time.
        self._tag, self._count = secrets.token_hex(5), 0

    async def run(
        self,
        worker_id: str,
        token_ids: Sequence[int],
        *,
        max_tokens: int = 1,
        logprobs: int | None = None,
        export: bool = False,
        ticket: tickets.HandoffTicket | None = None,
        cache_salt: str = "",
    ) -> worker_pb2.LegOutput:
        """Run a greedy leg to its end; returns all its outputs as one.

        Raises:
            ServingError: it failed; the text says why.
        """
        link = self._links.get(worker_id)
        if link is None:
            link = WorkerLink(
                worker_id,
                self.members[worker_id].address,
                on_lost=lambda _: None,
                on_load=lambda _: None,
                rpc=self._rpc,
            )
            self._links[worker_id] = link
        self._count += 1
        message = worker_pb2.SubmitLeg(
            leg_id=f"{self._name}-{worker_id}-{self._tag}{self._count:x}",
            token_ids=np.asarray(token_ids, dtype="<u4").tobytes(),
            sampling=Sampling(temperature=0.0, ignore_eos=True, logprobs=logprobs),
            max_tokens=max_tokens,
            export=export,
            cache_salt=cache_salt,
        )
        if ticket is not None:
            message.ticket.CopyFrom(ticket_message(ticket, time.monotonic()))
        done: asyncio.Future[worker_pb2.LegOutput] = asyncio.get_running_loop().create_future()
        whole = worker_pb2.LegOutput()

        def on_output(output: worker_pb2.LegOutput) -> None:
            whole.MergeFrom(output)
            if output.finish_reason and not done.done():
                done.set_result(whole)

        link.submit(message, on_output)
        try:
            async with asyncio.timeout(LEG_TIMEOUT_S):
                output = await done
        except TimeoutError as error:
            link.abort(message.leg_id)
            raise TransferTimeout(
                f"no answer to a {self._name} leg within {LEG_TIMEOUT_S:g} s", worker_id=worker_id
            ) from error
        if output.finish_reason == "error":
            failure: ServingError = leg_error(output, worker_id)
            raise failure
        return output

    def ticket(self, source_id: str, output: worker_pb2.LegOutput) -> tickets.HandoffTicket:
        """The ticket for what a leg with ``export`` kept.

        Raises:
            TicketRefused: the worker returned none, or a wrong one.
        """
        source = self.members[source_id]
        return tickets.issue(
            json.loads(output.transfer_params_json) if output.transfer_params_json else None,
            source_id=source_id,
            incarnation=source.incarnation,
            block_size_tokens=source.block_size_tokens,
            deadline_s=time.monotonic() + LEG_TIMEOUT_S,
        )

    async def close(self) -> None:
        """Close the links."""
        for link in self._links.values():
            await link.close()
