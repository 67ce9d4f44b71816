"""The straight way out for a token: where its caller keeps up, it goes there from the callback that brought it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from orchestrator.policy.phases import Phase


class DeltaSink(Protocol):
    """Takes text at once, without waking the request's task. Given to `Gateway.generate`, which may use it or not.

    What goes here is not yielded. It stands behind all that was yielded before, and what is yielded after stands behind
    it: the gateway comes here only while the reader of its events waits for the next one.
    """

    @property
    def ready(self) -> bool:
        """Whether a delta may come: the stream has begun, and its reader keeps up."""
        ...

    def take(self, choice: int, phase: Phase, text: str, token_ids: Sequence[int]) -> None:
        """Send a delta. Never raises; of a reader who has gone, the request's task learns by itself."""
        ...
