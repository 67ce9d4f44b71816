"""A cluster on hosts apart, as network namespaces: a cut cable costs no token, and leaves nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.host_cluster import HEAD, apart
from benchmarks.host_namespaces import why_not
from benchmarks.partitions import partitions

pytestmark = [
    pytest.mark.engine,
    pytest.mark.ray,
    pytest.mark.skipif(bool(reason := why_not()), reason=reason),
]


async def test_cut_cables_cost_no_token(test_model: Path) -> None:
    names = ["decode-4s", "pair-4s"]
    async with apart(test_model, prefill=1) as cluster:
        assert {cluster.host_of(worker_id) for worker_id in cluster.members} == {"prefill-0", "decode-0", "decode-1"}
        # The gateway listens on all addresses; reported is the one that callers can reach.
        assert cluster.grpc_address.startswith(f"{cluster.net.address(HEAD)}:")
        rows = await partitions(cluster, names=names, early=4, late=2, osl=250)
    for name in names:
        row = rows[name]
        assert row["completed"] == row["requests"] == 6, row
        assert row["wrong_answers"] == row["leaked_blocks"] == row["leaked_sockets"] == 0, row
        assert row["half_open"] == row["stray_processes"] == [], row
