"""The same code on a Ray cluster of several nodes: prefill and decode workers on nodes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from interface.client.client import Client
from tests.support.ending import ended
from tests.support.live_cluster import marked_processes, start_cluster

pytestmark = [pytest.mark.engine, pytest.mark.ray]

SPEC = """
name: multi-node
model: {{path: {model}, served_name: m, max_model_len_tokens: 1024}}
pools:
  prefill: {{replicas: 1, node_resource: prefill}}
  decode: {{replicas: 1, node_resource: decode}}
gateway: {{grpc_port: 0, http_port: 0, metrics_port: 0}}
"""

# In a process of its own, so that the nodes die with it whatever the test does.
NODES = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
cluster.add_node(num_cpus=2, resources={"prefill": 1}, labels={"baton.io/nvlink-domain": "rack-1"})
cluster.add_node(num_cpus=2, resources={"decode": 1}, labels={"baton.io/nvlink-domain": "rack-1"})
cluster.wait_for_nodes()
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture(autouse=True)
def nothing_stays(tmp_path: Path) -> Iterator[None]:
    with ended(tmp_path):
        yield


def test_pools_live_on_their_own_nodes(tmp_path: Path, test_model: Path) -> None:
    log = tmp_path / "nodes.log"
    with log.open("w") as out:
        nodes = subprocess.Popen(
            [sys.executable, "-c", NODES],
            env=os.environ | {"BATON_CACHE": str(tmp_path), "RAY_worker_niceness": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=out,
            text=True,
        )
    assert nodes.stdout is not None
    assert nodes.stdin is not None
    try:
        address = nodes.stdout.readline().strip()
        assert address, log.read_text()
        live = start_cluster(tmp_path, SPEC.format(model=test_model), "--address", address)
        try:
            with Client(live.grpc) as client:
                status = client.get_status()
                on = {worker.worker_id: worker.node for worker in status.workers}
                assert len(set(on.values())) == 2, on
                completion = client.complete(prompt_token_ids=list(range(10, 60)), max_tokens=8, temperature=0.0)
                assert completion.workers.prefill == "prefill-0"
                assert completion.workers.decode == "decode-0"
                assert completion.handoff.bytes > 0
        finally:
            result = live.baton("down")
            assert result.returncode == 0, result.stderr
    finally:
        nodes.stdin.close()
        try:
            nodes.wait(30)
        except subprocess.TimeoutExpired:
            nodes.kill()
    assert not marked_processes(tmp_path, wait_s=20)
