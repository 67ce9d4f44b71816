"""What a run asks of the fleet that its legs run on, and of its owner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from baton.internal.v1 import worker_pb2
from kv_transfer.ticket import HandoffTicket
from orchestrator.gateway.pairs import Pairs
from orchestrator.request import lifecycle as lc


class LegFleet(Protocol):
    """What a run asks of its fleet."""

    @property
    def pairs(self) -> Pairs:
        """Where handoffs are counted."""
        ...

    def start_leg(
        self,
        action: lc.StartLeg,
        message: worker_pb2.SubmitLeg,
        handler: Callable[[worker_pb2.LegOutput], None],
        hashes: Sequence[int],
        on_token: Callable[[int], None],
    ) -> None:
        """Send a leg to its worker, with its ticket; raises `ServingError` where that cannot be.

        A single token with nothing else to be said of it comes to ``on_token``, all else to ``handler``.
        """
        ...

    def abort_leg(self, leg_id: str, worker_id: str) -> None:
        """Stop a leg."""
        ...

    def issue_ticket(self, worker_id: str, params_json: str, now_s: float) -> HandoffTicket:
        """Check what prefill returned; raises `TicketRefused`."""
        ...

    def release_ticket(self, worker_id: str, ticket: HandoffTicket) -> None:
        """Have the ticket's blocks freed."""
        ...

    def free(self, request_id: str, worker_id: str) -> None:
        """Take back what was reserved for a request."""
        ...

    def usd_per_request_s(self, worker_id: str) -> float:
        """A worker's price for a second, shared by the legs on it."""
        ...


R = TypeVar("R", contravariant=True)


class RunOwner(Protocol[R]):
    """Takes what a run needs that its fleet cannot give."""

    def needs_workers(self, run: R, avoid: frozenset[str]) -> None:
        """Find workers for it, and call `ChoiceRun.placed`.

        Raises:
            ServingError: it is not admitted.
        """
        ...

    def over(self, run: R) -> None:
        """It has ended."""
        ...
