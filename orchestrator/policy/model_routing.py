"""Which of several models answers a request that names a route. Pure.

Requests of one session all go to one model, by a hash that every gateway computes alike. Those without a session are
dealt out by smooth weighted round-robin (as nginx does it), by which each model stays within a request of its share.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping


class WeightedArms:
    """Owns how far each model is behind its share.

    Args:
        arms: Share of the requests by model; they need not add up to 1.

    Example:
        >>> arms = WeightedArms({"fast": 3, "thinking": 1})
        >>> [arms.choose() for _ in range(4)]
        ['fast', 'fast', 'thinking', 'fast']
        >>> arms.choose(session="a conversation") == arms.choose(session="a conversation")
        True
    """

    def __init__(self, arms: Mapping[str, float]) -> None:
        self._arms = dict(arms)
        self._total = sum(arms.values())
        self._behind = dict.fromkeys(arms, 0.0)

    def choose(self, session: str = "") -> str:
        """The model for the next request."""
        if session:
            return self._of_session(session)
        for model, share in self._arms.items():
            self._behind[model] += share
        chosen = max(self._behind, key=lambda model: self._behind[model])
        self._behind[chosen] -= self._total
        return chosen

    def _of_session(self, session: str) -> str:
        digest = hashlib.blake2b(session.encode(), digest_size=8).digest()
        place = int.from_bytes(digest, "big") / 2**64 * self._total
        for model, share in self._arms.items():
            place -= share
            if place < 0:
                return model
        return model
