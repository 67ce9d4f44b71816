"""Which KV blocks a leg holds in an engine: private ones, and shared ones that it pins."""

from __future__ import annotations

from planner.simulator.blocks import BlockPool
from planner.simulator.leg import Leg


class LegBlocks:
    """Takes blocks for legs, publishes prompts for others to find, and gives blocks back.

    Args:
        pool: The engine's blocks.
        block_tokens: Tokens to a block.
        unit_tokens: Prompt tokens to one of a leg's `hashes`.
    """

    def __init__(self, pool: BlockPool, block_tokens: int, unit_tokens: int) -> None:
        self._pool = pool
        self._block = block_tokens
        self._unit_tokens = unit_tokens
        self.found_tokens = 0

    def take(self, leg: Leg, target: int, need: int) -> bool:
        """Take blocks for ``target`` tokens beside the ``need`` of the running; fills in what was found cached."""
        units = self._pool.matched_units(leg.hashes)
        # The last token is always computed: its logits are what the step is for.
        if units and not leg.remote and units * self._unit_tokens >= target:
            units -= 1
        pinned = list(leg.hashes[:units])
        self._pool.pin(pinned)
        private = -(-target // self._block) - units * self._pool.unit_blocks
        if private > self._pool.free - need:
            self._pool.unpin(pinned)
            return False
        found = units * self._unit_tokens
        if units == len(leg.hashes):
            found += self._pool.recall(_name(leg)) * self._block
        self._pool.take(private)
        found = min(max(found, leg.cached_tokens if not leg.remote else 0), target - (not leg.remote))
        leg.pinned, leg.private_blocks, leg.computed_tokens, leg.hit_tokens = pinned, private, found, found
        self.found_tokens += found
        return True

    def publish(self, leg: Leg) -> None:
        """Let others use the prompt units whose KV is there."""
        if not leg.hashes:
            return
        there = min(len(leg.hashes), leg.computed_tokens // self._unit_tokens)
        fresh = self._pool.publish(leg.hashes[len(leg.pinned) : there])
        leg.pinned.extend(fresh)
        leg.private_blocks -= len(fresh) * self._pool.unit_blocks

    def held(self, leg: Leg) -> int:
        """Blocks of a leg, private and pinned."""
        return leg.private_blocks + len(leg.pinned) * self._pool.unit_blocks

    def give_back(self, leg: Leg, private_blocks: int) -> None:
        """Return so many private blocks, and unpin the shared ones."""
        self._pool.give(private_blocks)
        self._pool.unpin(leg.pinned)
        leg.pinned, leg.private_blocks = [], 0

    def keep(self, leg: Leg, blocks: int) -> None:
        """Leave blocks readable for the same request until the space is needed."""
        self._pool.keep(_name(leg), blocks)


def _name(leg: Leg) -> str:
    return f"request/{leg.request}"
