"""The protocol that an engine reports to."""

from __future__ import annotations

from typing import Protocol

from cluster.errors import ServingError
from planner.simulator.leg import Leg


class EngineOwner(Protocol):
    """Takes an engine's reports on the legs that it was given."""

    def leg_prefilled(self, leg: Leg) -> None:
        """The first token of a locally prefilled leg is out."""
        ...

    def leg_over(self, leg: Leg) -> None:
        """The leg's last token is out; its blocks are freed, or kept if it exports."""
        ...

    def leg_failed(self, leg: Leg, error: ServingError) -> None:
        """The engine cannot serve the leg; its blocks are freed."""
        ...

    def pull(self, leg: Leg, tokens: int) -> None:
        """Blocks are ready: bring the KV of so many tokens here, then call `Engine.loaded`."""
        ...
