"""Checksums of an engine's weights: what the ranks of one engine report, made one. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from cluster.engine.protocol import WeightSums


def combine(ranks: Sequence[Mapping[str, Any]]) -> WeightSums:
    """What all tensor-parallel ranks read, as far as all came: each had the same time, not the same luck.

    Example:
        >>> rank = {"layout": "x", "pieces": 3, "first": 1, "sums": ["a", "b"], "duration_s": 0.1}
        >>> combine([rank]).sums
        ['a', 'b']
        >>> combine([rank, {**rank, "sums": ["c"], "duration_s": 0.2}])
        WeightSums(layout='x+x', pieces=3, first=1, sums=['a+c'], duration_s=0.2)
    """
    first = ranks[0]
    common = min(len(rank["sums"]) for rank in ranks)
    layout = "+".join(rank["layout"] for rank in ranks)
    return WeightSums(
        layout=layout if len(layout) <= 64 else hashlib.sha256(layout.encode()).hexdigest(),
        pieces=min(rank["pieces"] for rank in ranks),
        first=first["first"],
        sums=["+".join(rank["sums"][index] for rank in ranks) for index in range(common)],
        duration_s=max(rank["duration_s"] for rank in ranks),
    )
