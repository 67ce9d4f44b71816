"""Whether an engine's weights are still what was loaded, and what others loaded. Pure: checksums, no tolerance."""

from __future__ import annotations

from collections import Counter

from cluster.engine.protocol import WeightSums


class WeightRecord:
    """Checksums of each worker's weights by piece, as they were first read.

    Example:
        >>> weights = WeightRecord()
        >>> weights.read("d0", WeightSums("x", 2, 0, ["a", "b"], 0.1))
        >>> weights.read("d0", WeightSums("x", 2, 0, ["a", "c"], 0.1))
        >>> weights.damage("d0")
        'piece 1 of 2 is not what it was when it was loaded'
    """

    def __init__(self) -> None:
        self._first: dict[str, dict[int, str]] = {}
        self._layout: dict[str, str] = {}
        self._pieces: dict[str, int] = {}
        self._changed: dict[str, int] = {}
        self._next: dict[str, int] = {}

    def forget(self, worker_id: str) -> None:
        """The engine is another one."""
        for each in (self._first, self._layout, self._pieces, self._changed, self._next):
            each.pop(worker_id, None)

    def next_piece(self, worker_id: str) -> int:
        """Where to read on."""
        return self._next.get(worker_id, 0)

    def complete(self, worker_id: str) -> bool:
        """Whether every piece was read at least once."""
        return worker_id in self._pieces and len(self._first[worker_id]) >= self._pieces[worker_id]

    def read(self, worker_id: str, sums: WeightSums) -> None:
        """Take what was read."""
        if self._layout.get(worker_id) != sums.layout:
            self.forget(worker_id)
            self._layout[worker_id], self._pieces[worker_id] = sums.layout, sums.pieces
        known = self._first.setdefault(worker_id, {})
        for index, value in enumerate(sums.sums, sums.first):
            if known.setdefault(index, value) != value:
                self._changed[worker_id] = index
        self._next[worker_id] = (sums.first + len(sums.sums)) % sums.pieces

    def damage(self, worker_id: str) -> str:
        """What is wrong with a worker's weights, in words; empty where nothing is known to be.

        What it loaded counts as wrong where a majority of those that cut their weights alike agrees on another.
        """
        of = self._pieces.get(worker_id, 0)
        if worker_id in self._changed:
            return f"piece {self._changed[worker_id]} of {of} is not what it was when it was loaded"
        alike = [key for key, layout in self._layout.items() if layout == self._layout.get(worker_id)]
        for index, value in self._first.get(worker_id, {}).items():
            votes = Counter(known[index] for key in alike if index in (known := self._first[key]))
            winner, count = votes.most_common(1)[0]
            if winner != value and 2 * count > votes.total():
                return f"piece {index} of {of} is not what {count} other workers loaded"
        return ""
