"""Ray places a worker as it is planned. GPUs are numbers that a node states: none is needed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ray

# In a process of its own, so that Ray dies with it whatever the test does.
SCRIPT = """
import asyncio, json
import ray
from ray.cluster_utils import Cluster
from cluster.spec.config import PoolSettings, Role
from cluster.placement import assign, worker_plan
from cluster.ray_runtime import RayRuntime

class Worker:
    def __init__(self, host):
        pass
    def resources(self):
        return ray.get_runtime_context().get_assigned_resources()

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "num_gpus": 2, "include_dashboard": False})
cluster.add_node(num_cpus=1, num_gpus=2, resources={"decode": 1, "accelerator_type:H100": 1})
cluster.wait_for_nodes()
runtime = RayRuntime(cluster.address)
runtime.start()
pool = PoolSettings(replicas=1, accelerators_per_worker=2, accelerator_type="H100", node_resource="decode")
plan = worker_plan(Role.DECODE, pool, 0)
node_id = assign([plan], runtime.nodes()).node_of["decode-0"]
handle = runtime.create(plan, Worker, lambda host: (host,), env={}, node_id=node_id)
resources = asyncio.run(runtime.call(handle, "resources"))
kinds = {node["NodeID"]: "accelerator_type:H100" in node["Resources"] for node in ray.nodes()}
print(json.dumps({"gpus": resources["GPU"], "on_h100": kinds[handle.node.node_id]}))
runtime.stop()
cluster.shutdown()
"""


def test_a_worker_for_one_kind_of_gpu_starts_on_a_node_that_has_it(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"HOME": str(tmp_path), "BATON_CACHE": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == {"gpus": 2.0, "on_h100": True}
