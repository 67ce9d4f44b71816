"""The KV blocks of one engine: in use, kept for reuse, or empty. Counts, not ids."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


class BlockPool:
    """A fixed number of blocks. What a request leaves behind stays readable until the space is needed.

    Prompts are known by the hashes of their leading units of ``unit_blocks`` blocks each; equal prompts share the
    blocks of the units they have in common. Blocks nobody uses are given up least recently used first, the tail
    of a prompt before its head (the order vLLM frees them in).

    ``private + shared + kept + empty == total`` holds always; `validate` checks it.
    """

    def __init__(self, total_blocks: int, unit_blocks: int = 1) -> None:
        self.total = total_blocks
        self.unit_blocks = unit_blocks
        self.private = 0
        self.shared = 0
        self.kept = 0
        self.evicted = 0
        self._users: dict[int, int] = {}
        self._kept: OrderedDict[int | str, int] = OrderedDict()

    @property
    def used(self) -> int:
        """Blocks that requests hold."""
        return self.private + self.shared

    @property
    def free(self) -> int:
        """Blocks that can be taken, those kept for reuse included."""
        return self.total - self.private - self.shared

    def take(self, blocks: int) -> None:
        """Take blocks for one request alone; the caller has checked that they are free."""
        assert blocks <= self.free, f"{blocks} blocks wanted, {self.free} free"
        self.private += blocks
        while self.private + self.shared + self.kept > self.total:
            _, size = self._kept.popitem(last=False)
            self.kept -= size
            self.evicted += size

    def give(self, blocks: int) -> None:
        """Give back blocks of one request, and with them what was in them."""
        assert 0 <= blocks <= self.private
        self.private -= blocks

    def matched_units(self, hashes: Sequence[int]) -> int:
        """Leading units of a prompt that are here."""
        users, kept = self._users, self._kept
        for index, key in enumerate(hashes):
            if key not in users and key not in kept:
                return index
        return len(hashes)

    def pin(self, hashes: Sequence[int]) -> None:
        """Use units that are here. Raises KeyError where one is not."""
        for key in hashes:
            users = self._users.get(key)
            if users is None:
                size = self._kept.pop(key)
                self.kept -= size
                self.shared += size
                self._users[key] = 1
            else:
                self._users[key] = users + 1

    def publish(self, hashes: Sequence[int]) -> list[int]:
        """Make units that a request has computed usable by others; returns those that became shared.

        A unit somebody else published meanwhile stays a private copy, as in the engine.
        """
        fresh = [key for key in hashes if key not in self._users and key not in self._kept]
        for key in fresh:
            self._users[key] = 1
        moved = len(fresh) * self.unit_blocks
        assert moved <= self.private
        self.private -= moved
        self.shared += moved
        return fresh

    def unpin(self, hashes: Sequence[int]) -> None:
        """Stop using units; those nobody uses are kept for reuse."""
        for key in reversed(hashes):
            users = self._users[key] - 1
            if users:
                self._users[key] = users
                continue
            del self._users[key]
            self._kept[key] = self.unit_blocks
            self.shared -= self.unit_blocks
            self.kept += self.unit_blocks

    def keep(self, key: str, blocks: int) -> None:
        """Give back a request's own blocks but remember them under its name, so that it can come back to them."""
        self.give(blocks)
        self.kept += blocks - self._kept.pop(key, 0)
        if blocks:
            self._kept[key] = blocks

    def recall(self, key: str) -> int:
        """Forget what was kept under a name; returns how many blocks were still there (they are empty blocks now)."""
        blocks = self._kept.pop(key, 0)
        self.kept -= blocks
        return blocks

    def validate(self) -> None:
        """Check the invariants.

        Raises:
            AssertionError: one is broken.
        """
        assert min(self.private, self.shared, self.kept) >= 0
        assert self.private + self.shared + self.kept <= self.total
        assert self.shared == len(self._users) * self.unit_blocks
        assert self.kept == sum(self._kept.values())
        assert all(users > 0 for users in self._users.values())
        assert not self._users.keys() & self._kept.keys()
