from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.fakes.live_cluster import Cluster, cluster_of


@pytest.fixture
async def pair() -> AsyncIterator[Cluster]:
    async with cluster_of("prefill-0", "decode-0") as cluster:
        yield cluster
