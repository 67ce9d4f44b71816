"""What the live runner is given: branches that run, and the meters they run by."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from baton.v1 import inference_pb2 as pb
from orchestrator.policy.thinking.budget import Meters


class Branch(Protocol):
    """One branch on the cluster."""

    @property
    def tokens(self) -> int:
        """Output tokens so far, closing included."""
        ...

    @property
    def cost_usd(self) -> float:
        """Its share of the workers' price so far."""
        ...

    def run(self) -> AsyncGenerator[pb.GenerateResponse]:
        """Its events; closing the iterator cancels it. Raises `ServingError` where it fails."""
        ...

    def close(self) -> None:
        """Close its reasoning, so that it answers; nothing where it answers already."""
        ...

    def cut_off(self) -> None:
        """End it as it stands."""
        ...

    def over(self) -> None:
        """Nobody iterates any more, or ever did."""
        ...


class Branches(Protocol):
    """Makes branches of one request."""

    def start(self, branch: int, limit_tokens: int) -> Branch:
        """A branch from the prompt."""
        ...

    def fork(self, branch: int, limit_tokens: int, of: int, answer: str, text: str) -> Branch:
        """A branch that goes on from an ended one's answer, and from a further turn of the user."""
        ...

    def meters(self) -> Meters:
        """What is spent, and at what rate."""
        ...
