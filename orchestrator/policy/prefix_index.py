"""Which prompt prefixes each worker likely has in its cache. An estimate: engines evict without notice. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence


def block_hashes(token_ids: Sequence[int], block_size_tokens: int) -> list[int]:
    """Chained hash of each full block: equal hashes mean equal prefixes up to there.

    Example:
        >>> a, b = block_hashes([1, 2, 3, 4], 2), block_hashes([1, 2, 9, 4], 2)
        >>> a[0] == b[0], a[1] == b[1]
        (True, False)
    """
    hashes: list[int] = []
    previous = 0
    for start in range(0, len(token_ids) - block_size_tokens + 1, block_size_tokens):
        previous = hash((previous, tuple(token_ids[start : start + block_size_tokens])))
        hashes.append(previous)
    return hashes


class PrefixIndex:
    """Blocks seen by each worker, least recently used forgotten first."""

    def __init__(self, block_size_tokens: int) -> None:
        self._block_size_tokens = block_size_tokens
        self._blocks: dict[str, OrderedDict[int, None]] = {}
        self._capacity: dict[str, int] = {}

    def add_worker(self, worker_id: str, total_blocks: int) -> None:
        """A worker with an empty cache of this size."""
        self._blocks[worker_id] = OrderedDict()
        self._capacity[worker_id] = total_blocks

    def remove_worker(self, worker_id: str) -> None:
        """The worker and its cache are gone."""
        self._blocks.pop(worker_id, None)

    def record(self, worker_id: str, hashes: Sequence[int]) -> None:
        """The worker computed or received these blocks."""
        blocks = self._blocks.get(worker_id)
        if blocks is None:
            return
        for block in hashes:
            blocks[block] = None
            blocks.move_to_end(block)
        while len(blocks) > self._capacity[worker_id]:
            blocks.popitem(last=False)

    def cached_tokens(self, hashes: Sequence[int], isl_tokens: int) -> dict[str, int]:
        """Tokens of the prompt each worker likely has; the last token is always computed."""
        result: dict[str, int] = {}
        for worker_id, blocks in self._blocks.items():
            count = 0
            for block in hashes:
                if block not in blocks:
                    break
                count += 1
            if count:
                result[worker_id] = min(count * self._block_size_tokens, isl_tokens - 1)
        return result
