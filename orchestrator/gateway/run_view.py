"""What a gateway's parts know of a run that is not theirs: its figures to read, and three requests to make of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.gateway.siblings import Sibling
from orchestrator.request.lifecycle import Event, Lifecycle
from orchestrator.request.prepare import PreparedRequest


class RunView(Protocol):
    """A run of one choice, as queue, placer, preemption and moves see it. Its lifecycle is read alone."""

    def __hash__(self) -> int: ...

    @property
    def number(self) -> int:
        """Unique among the runs of a gateway."""
        ...

    @property
    def index(self) -> int:
        """Which choice of its request this is."""
        ...

    @property
    def request(self) -> PreparedRequest:
        """The checked request."""
        ...

    @property
    def life(self) -> Lifecycle:
        """Its state and ledger."""
        ...

    @property
    def hashes(self) -> Sequence[int]:
        """Of the prompt's full blocks."""
        ...

    @property
    def sibling(self) -> Sibling:
        """What it has in common with the other choices of its request."""
        ...

    @property
    def waits_for_headroom(self) -> bool:
        """Whether it was preempted and is yet to come back."""
        ...

    @property
    def preempted(self) -> bool:
        """Whether it was preempted before."""
        ...

    @property
    def movable(self) -> bool:
        """Whether it could decode elsewhere from here on with the same meaning."""
        ...

    @property
    def answer_tokens(self) -> int:
        """Output tokens that are not reasoning."""
        ...

    def post(self, event: Event) -> None:
        """Hand in an event."""
        ...

    def placed(self, prefill_id: str | None, decode_id: str) -> None:
        """Workers were found, and the KV is reserved."""
        ...

    def preempt(self) -> bool:
        """Give up its blocks and wait for KV; False if it is at its end."""
        ...
