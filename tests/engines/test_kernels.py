"""What the engines of the shared cluster compute with, whichever processor this is."""

from __future__ import annotations

import json

import pytest

from tests.support.live_cluster import LiveCluster

pytestmark = [pytest.mark.engine, pytest.mark.ray]


def test_each_worker_names_its_attention_kernel_and_none_is_amx(
    cluster: LiveCluster, capsys: pytest.CaptureFixture[str]
) -> None:
    workers = json.loads(cluster.baton("status", "--json").stdout)["workers"]
    kernels = {worker["worker_id"]: tuple(worker["attention_kernels"]) for worker in workers}
    with capsys.disabled():
        print(f" [{', '.join(sorted({name for names in kernels.values() for name in names}))}]", end=" ")
    assert kernels
    assert all(kernels.values()), kernels
    assert not [names for names in kernels.values() if any("amx" in name.lower() for name in names)]
    # KV has the layout of its kernel: workers of two kernels could not exchange it.
    assert len(set(kernels.values())) == 1
