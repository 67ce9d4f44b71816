"""The choices of one request among each other: which workers hold their prompt's KV, and when the next one may ask.

A choice that finds no worker with the prompt brings it to one, and those behind it wait until it is there; one that is
placed beside a sibling lets the next one go at once. Where they are placed is decided by
`orchestrator.policy.siblings`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestrator.policy.siblings import shared_blocks


class PrefixSharing:
    """Owns whether the engines of a model find a prompt that another request of theirs has in use, by the last try.

    Some do not: hybrid models may lack the state at a prompt's end. Then one choice tries alone, and the others follow
    it or go their own way.

    Args:
        on_tried: Called with ``shared`` or ``missed`` for each choice that was placed beside a sibling.
    """

    def __init__(self, on_tried: Callable[[str], None] = lambda _: None) -> None:
        self.works = True
        self._on_tried = on_tried

    def tried(self, found: bool) -> None:
        """A choice that was placed beside a sibling found the prompt, or computed it once more."""
        self.works = found
        self._on_tried("shared" if found else "missed")


class SharedPrompt:
    """Owns where the KV of a request's prompt is in use.

    Args:
        name: Of its reservations; unique among them.
        isl_tokens: Length.
        block_size_tokens: Tokens per KV block.
        sharing: Whether the engines find it.
    """

    def __init__(self, name: str, isl_tokens: int, block_size_tokens: int, sharing: PrefixSharing) -> None:
        self.name = name
        self.blocks = shared_blocks(isl_tokens, block_size_tokens)
        self.tokens = self.blocks * block_size_tokens
        self.apart = False
        """The choices go their own ways: the engine does not find the prompt, or the first one ended at prefill."""
        self.sharing = sharing
        self._held_on: frozenset[str] = frozenset()

    @property
    def held_on(self) -> frozenset[str]:
        """Workers beside whose requests a choice may be placed."""
        return frozenset() if self.apart else self._held_on

    def add(self, worker_id: str) -> None:
        """It is in use there."""
        self._held_on |= {worker_id}

    def forget(self, worker_ids: frozenset[str]) -> None:
        """Workers failed."""
        self._held_on -= worker_ids


class Sibling:
    """One choice as the others see it.

    Args:
        prompt: What they share.
    """

    def __init__(self, prompt: SharedPrompt) -> None:
        self.prompt = prompt
        self.settled = asyncio.Event()
        """The next choice need not wait for this one."""
        self.awaits_token = False
        """A decode leg has started and made no token so far."""
        self._beside = False

    def placed(self, prefill_id: str | None, decode_id: str) -> None:
        """Workers were found."""
        prompt = self.prompt
        self._beside = prefill_id is None and decode_id in prompt.held_on
        if prompt.apart or (self._beside and (prompt.sharing.works or not prompt.blocks)):
            self.settled.set()

    def decodes(self, worker_id: str, cached_tokens: int) -> None:
        """A decode leg made its first token there, having found so many tokens of what it was given."""
        prompt, self.awaits_token = self.prompt, False
        if self._beside and prompt.blocks:
            found = cached_tokens >= prompt.tokens
            prompt.sharing.tried(found)
            prompt.apart |= not found
        self._beside = False
        prompt.add(worker_id)
        self.settled.set()

    def failed_on(self, worker_ids: frozenset[str]) -> None:
        """Workers failed the choice."""
        self._beside = False
        self.prompt.forget(worker_ids)

    def over(self, *, finished: bool) -> None:
        """The choice has ended. One that finished without a decode worker leaves nothing to follow."""
        self.prompt.apart |= finished and not self.settled.is_set()
        self.settled.set()
