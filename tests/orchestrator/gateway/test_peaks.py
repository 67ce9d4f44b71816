"""Requests go where the forecast peak of KV is lowest, on a cluster that scales."""

from __future__ import annotations

import pytest

from orchestrator.gateway.peaks import Peaks
from tests.fakes.live_cluster import ask, cluster_of, run

FULL = {"decode-0": 60, "decode-1": 60}


@pytest.mark.parametrize("low", ["decode-0", "decode-1"])
@pytest.mark.parametrize("scales", [True, False])
async def test_the_lowest_peak_decides_where_the_autoscaler_is_on(
    low: str, scales: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Peaks, "blocks", lambda _: FULL | {low: 0})
    more = "autoscaling: {enabled: true}\n" if scales else ""
    async with cluster_of("prefill-0", "decode-0", "decode-1", more=more) as cluster:
        reply = await run(cluster, ask([65, 66, 67], 4))
    assert reply.summary.workers.decode == (low if scales else "decode-0")
