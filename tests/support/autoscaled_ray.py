"""A Ray cluster whose own autoscaler (v2) adds and removes fake nodes on this machine: real raylets, one host.

`python -m tests.support.autoscaled_ray FOLDER` starts it, orders workers as Baton does, lets one go, and prints the
nodes there were. In a process of its own, so that the test can end all that it started, whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import ray
from ray.cluster_utils import FAKE_HEAD_NODE_ID, AutoscalingCluster

from cluster.placement import assign, worker_plan
from cluster.ray_runtime import RayRuntime, WorkerHandle
from cluster.spec.config import PoolSettings, Role
from tests.support.ports import free_port

POOLS = {role: PoolSettings(replicas=1, node_resource=role.value) for role in (Role.PREFILL, Role.DECODE)}
WAIT_S = 60.0
HEAD_ATTEMPTS = 3
IDLE_S = 3.0
_LISTS = [
    "initialization_commands",
    "setup_commands",
    "head_setup_commands",
    "worker_setup_commands",
    "head_start_ray_commands",
    "worker_start_ray_commands",
    "cluster_synced_files",
    "rsync_exclude",
    "rsync_filter",
]


class FakeNodes(AutoscalingCluster):
    """As the base, beside other Ray clusters: it ends none of them. The wheel lacks the file the base is made from."""

    def __init__(self, folder: Path, pools: dict[str, Any]) -> None:
        self._folder = folder
        # Not the loopback: a driver that joins takes the machine's own address for it, and is not heard there.
        host = ray.util.get_node_ip_address()
        self.address = f"{host}:{free_port(host)}"
        self._head: subprocess.Popen[bytes] | None = None
        super().__init__(head_resources={"CPU": 1}, worker_node_types=pools, autoscaler_v2=True)

    def _generate_config(
        self, head_resources: Any, worker_node_types: Any, autoscaler_v2: bool = False, **more: Any
    ) -> dict[str, Any]:
        provider = {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": self.address,
        }
        head = {"resources": head_resources, "node_config": {}, "max_workers": 0}
        return {
            "cluster_name": "fake",
            "max_workers": 8,
            "provider": provider,
            "available_node_types": {**worker_node_types, "ray.head.default": head},
            "head_node_type": "ray.head.default",
            "upscaling_speed": 1.0,
            "idle_timeout_minutes": IDLE_S / 60,
            "docker": {},
            "auth": {},
            "file_mounts": {},
            "file_mounts_sync_continuously": False,
            **{name: [] for name in _LISTS},
        }

    def start(self, _system_config: Any = None, override_env: Any = None) -> None:
        """Start the head, without the token that Ray asks for where it finds one in the home folder.

        Raises:
            TimeoutError: it did not start; its log is in the folder.
        """
        config = self._folder / "autoscaling.json"
        config.write_text(json.dumps(self._config))
        host, port = self.address.split(":")
        for _ in range(HEAD_ATTEMPTS):
            with (self._folder / "head.log").open("ab") as log:
                self._head = subprocess.Popen(
                    [
                        str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=1",
                        f"--node-ip-address={host}", f"--port={port}", f"--autoscaling-config={config}",
                        "--include-dashboard=false", "--dashboard-agent-listen-port=0", f"--temp-dir={self._folder}",
                        f"--object-store-memory={80 << 20}",
                    ],
                    env=os.environ | {
                        "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_enable_autoscaler_v2": "1",
                        "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID, "RAY_AUTH_MODE": "disabled",
                    },
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip
            if self._head_serves():
                return
        raise TimeoutError(f"Ray's head did not start in {HEAD_ATTEMPTS} attempts: {self._folder / 'head.log'}")

    def _head_serves(self) -> bool:
        """Wait for the head's raylet. It ends itself where its agent takes more than 15 s: two cores, other work."""
        assert self._head is not None
        while self._head.poll() is None:
            if list(self._folder.glob("session_*/dashboard_agent_listen_port*")):
                return True
            time.sleep(0.2)
        return False

    def shutdown(self) -> None:
        """End the head. Fake nodes that are left are orphans then."""
        if self._head is not None:
            self._head.terminate()
            self._head.wait(30)


class Worker:
    """A worker with no engine: what Ray has to place is the same."""

    def __init__(self, host: str) -> None: ...

    def node_id(self) -> str:
        return str(ray.get_runtime_context().get_node_id())


class Watch:
    """Looks at the nodes all the time, and remembers every set there was, with the time since the start."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, dict[str, int]]] = []
        self._began_s = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(0.1):
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            pools = Counter(role.value for resources in alive for role in POOLS if role in resources)
            if not self.seen or self.seen[-1][1] != pools:
                self.seen.append((round(time.monotonic() - self._began_s, 1), dict(pools)))

    def wait(self, pools: dict[str, int]) -> None:
        """Until these are the nodes.

        Raises:
            TimeoutError: they never were.
        """
        deadline_s = time.monotonic() + WAIT_S
        while not self.seen or self.seen[-1][1] != pools:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"the nodes were {self.seen}, in the end not {pools}")
            time.sleep(0.1)

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


def order(runtime: RayRuntime, role: Role) -> WorkerHandle:
    """As the controller does it: a place if there is one, else a placement group that waits for a node."""
    plan = worker_plan(role, POOLS[role], 0)
    place = assign([plan], runtime.nodes(), may_wait=True)
    assert place.waiting == (plan.worker_id,), "there is a node for it already"
    handle = runtime.create(plan, Worker, lambda host: (host,), env={})
    assert ray.get(handle.actor.node_id.remote(), timeout=WAIT_S) == handle.node.node_id
    return handle


def main() -> None:
    """Prints one line of JSON: nodes by pool, each time that they changed."""
    folder = Path(sys.argv[1])
    pool = {"node_config": {}, "min_workers": 0, "max_workers": 3}
    nodes = FakeNodes(folder, {role.value: {"resources": {"CPU": 1, role.value: 1}, **pool} for role in POOLS})
    runtime = RayRuntime(nodes.address, placement_timeout_s=WAIT_S)
    with contextlib.ExitStack() as ending:
        ending.callback(nodes.shutdown)
        nodes.start()
        runtime.start()
        ending.callback(runtime.stop)
        watch = Watch()
        ending.callback(watch.stop)
        watch.wait({})
        order(runtime, Role.PREFILL)
        watch.wait({"prefill": 1})
        decode = order(runtime, Role.DECODE)
        watch.wait({"prefill": 1, "decode": 1})
        runtime.remove(decode)
        watch.wait({"prefill": 1})
    print(json.dumps([pools for _, pools in watch.seen]), flush=True)
    print(watch.seen, file=sys.stderr)


if __name__ == "__main__":
    main()
