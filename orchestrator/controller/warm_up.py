"""First contact of every prefill-decode pair, before either is called ready: no caller pays for the handshake."""

from __future__ import annotations

import random
import secrets
import time

from baton.internal.v1 import registry_pb2
from cluster.internal_rpc import InternalRpc
from workers.legs import Legs

WARM_PROMPT_TOKENS = 40
"""More than one block of 32, so that a full block and a partial one are moved."""


class WarmUp:
    """Links to workers, and the tiny requests that warm them.

    Args:
        members: Workers by id; each is linked to on first use.
        rpc: How the cluster's processes call each other.
    """

    def __init__(self, members: dict[str, registry_pb2.Member], rpc: InternalRpc | None = None) -> None:
        self._legs = Legs(members, rpc)
        # Others may warm the same engine at the same time: prompts may not be alike.
        self._count = secrets.randbelow(1 << 40)

    async def pair(self, prefill_id: str, decode_id: str) -> float:
        """Hand one tiny request over; returns the seconds that decode took, handshake included.

        Raises:
            ServingError: the pair cannot exchange KV; the text says why.
        """
        prompt = self._prompt()
        first = await self._legs.run(prefill_id, prompt, export=True)
        ticket = self._legs.ticket(prefill_id, first)
        started_s = time.monotonic()
        await self._legs.run(decode_id, [*prompt, *first.token_ids], ticket=ticket)
        return time.monotonic() - started_s

    async def alone(self, worker_id: str) -> None:
        """Run one tiny request on a worker that needs no peer."""
        await self._legs.run(worker_id, self._prompt())

    def _prompt(self) -> list[int]:
        """Tokens that no earlier warm-up had, or the prefix cache would spare the transfer."""
        self._count += 1
        draw = random.Random(self._count)
        return [draw.randrange(1, 30) for _ in range(WARM_PROMPT_TOKENS)]

    async def close(self) -> None:
        """Close the links."""
        await self._legs.close()
