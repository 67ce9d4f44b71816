"""First contact of every prefill-decode pair, before either is called ready: no caller pays for the handshake."""

from __future__ import annotations

import asyncio
import json
import random
import secrets
import time

import numpy as np

from baton.internal.v1 import registry_pb2, worker_pb2
from baton.v1.inference_pb2 import Sampling
from cluster.errors import ServingError, TransferTimeout
from cluster.internal_rpc import InternalRpc
from kv_transfer import ticket as tickets
from orchestrator.live.worker_link import WorkerLink, leg_error, ticket_message

WARM_TIMEOUT_S = 60.0
WARM_PROMPT_TOKENS = 40
"""More than one block of 32, so that a full block and a partial one are moved."""


class WarmUp:
    """Links to workers, and the tiny requests that warm them.

    Args:
        members: Workers by id; each is linked to on first use.
        rpc: How the cluster's processes call each other.
    """

    def __init__(self, members: dict[str, registry_pb2.Member], rpc: InternalRpc | None = None) -> None:
        self._members = members
        self._rpc = rpc
        self._links: dict[str, WorkerLink] = {}
        # Others may warm the same engine at the same time: neither ids nor prompts may be alike.
        self._count = secrets.randbelow(1 << 40)

    async def pair(self, prefill_id: str, decode_id: str) -> float:
        """Hand one tiny request over; returns the seconds that decode took, handshake included.

        Raises:
            ServingError: the pair cannot exchange KV; the text says why.
        """
        prompt = self._prompt()
        prefill = self._members[prefill_id]
        first = await self._leg(prefill_id, prompt, export=True)
        ticket = tickets.issue(
            json.loads(first.transfer_params_json) if first.transfer_params_json else None,
            source_id=prefill_id,
            incarnation=prefill.incarnation,
            block_size_tokens=prefill.block_size_tokens,
            deadline_s=time.monotonic() + WARM_TIMEOUT_S,
        )
        started_s = time.monotonic()
        await self._leg(decode_id, [*prompt, *first.token_ids], ticket=ticket)
        return time.monotonic() - started_s

    async def alone(self, worker_id: str) -> None:
        """Run one tiny request on a worker that needs no peer."""
        await self._leg(worker_id, self._prompt())

    def _prompt(self) -> list[int]:
        """Tokens that no earlier warm-up had, or the prefix cache would spare the transfer."""
        self._count += 1
        draw = random.Random(self._count)
        return [draw.randrange(1, 30) for _ in range(WARM_PROMPT_TOKENS)]

    async def _leg(
        self, worker_id: str, token_ids: list[int], *, export: bool = False, ticket: tickets.HandoffTicket | None = None
    ) -> worker_pb2.LegOutput:
        link = self._links.get(worker_id)
        if link is None:
            link = WorkerLink(
                worker_id,
                self._members[worker_id].address,
                on_lost=lambda _: None,
                on_load=lambda _: None,
                rpc=self._rpc,
            )
            self._links[worker_id] = link
        self._count += 1
        message = worker_pb2.SubmitLeg(
            leg_id=f"warm-{worker_id}-{self._count:x}",
            token_ids=np.asarray(token_ids, dtype="<u4").tobytes(),
            sampling=Sampling(temperature=0.0, ignore_eos=True),
            max_tokens=1,
            export=export,
        )
        if ticket is not None:
            message.ticket.CopyFrom(ticket_message(ticket, time.monotonic()))
        done: asyncio.Future[worker_pb2.LegOutput] = asyncio.get_running_loop().create_future()

        def on_output(output: worker_pb2.LegOutput) -> None:
            if output.finish_reason and not done.done():
                done.set_result(output)

        link.submit(message, on_output)
        try:
            async with asyncio.timeout(WARM_TIMEOUT_S):
                output = await done
        except TimeoutError as error:
            raise TransferTimeout(f"no answer to a warm-up within {WARM_TIMEOUT_S:g} s", worker_id=worker_id) from error
        if output.finish_reason == "error":
            failure: ServingError = leg_error(output, worker_id)
            raise failure
        return output

    async def close(self) -> None:
        """Close the links."""
        for link in self._links.values():
            await link.close()
