"""Pairs of workers between which KV goes: how the controller rates them, and what went over them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from baton.internal.v1 import registry_pb2
from baton.v1 import cluster_pb2
from baton.v1 import inference_pb2 as pb


class Pairs:
    """Owns the pairs of one fleet, and the sums of their handoffs, which outlive a pair."""

    def __init__(self) -> None:
        self._pairs: dict[tuple[str, str], registry_pb2.Pair] = {}
        self._sums: dict[tuple[str, str], cluster_pb2.PairStatus] = {}

    def __contains__(self, pair: tuple[str, str]) -> bool:
        return pair in self._pairs

    def update(self, pairs: Iterable[registry_pb2.Pair]) -> None:
        """Take what the registry has now."""
        self._pairs = {(pair.prefill, pair.decode): pair for pair in pairs}

    def transport(self, prefill_id: str, decode_id: str) -> str:
        """Transport of a pair; empty where it is not known."""
        pair = self._pairs.get((prefill_id, decode_id))
        return pair.transport if pair else ""

    def refused(self) -> dict[str, frozenset[str]]:
        """Prefill workers whose KV arrives wrong, by decode worker."""
        refused: dict[str, frozenset[str]] = {}
        for (prefill_id, decode_id), pair in self._pairs.items():
            if pair.refused:
                refused[decode_id] = refused.get(decode_id, frozenset()) | {prefill_id}
        return refused

    def count_handoff(self, prefill_id: str, decode_id: str, handoff: pb.HandoffFigures) -> None:
        """Add a handoff to its pair."""
        row = self._sum(prefill_id, decode_id)
        row.handoffs += 1
        row.bytes += handoff.bytes
        row.transfer_s += handoff.transfer_s

    def transports(self) -> Counter[str]:
        """Pairs by transport."""
        return Counter(pair.transport for pair in self._pairs.values())

    def rows(self) -> list[cluster_pb2.PairStatus]:
        """The present pairs with their sums, in order."""
        rows = []
        for (prefill_id, decode_id), pair in sorted(self._pairs.items()):
            row = cluster_pb2.PairStatus()
            row.CopyFrom(self._sum(prefill_id, decode_id))
            row.transport, row.handshake_s, row.refused = pair.transport, pair.handshake_s, pair.refused
            rows.append(row)
        return rows

    def _sum(self, prefill_id: str, decode_id: str) -> cluster_pb2.PairStatus:
        key = (prefill_id, decode_id)
        return self._sums.setdefault(key, cluster_pb2.PairStatus(prefill=prefill_id, decode=decode_id))
