"""The containers' commands, as helm renders them, run here as processes, a loopback address for each pod.

Kubernetes gives names, mounts and a network to each pod; one machine has one of each. So in the rendered text the
head's name becomes its address, mounted folders become folders of the test, and fixed ports become free ones.
"""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from interface.client.client import Client
from models.problems import generate
from models.tokenizer import build_tokenizer
from models.verify import verify_answer
from orchestrator.node.health_check import is_alive
from scripts.fetch_helm import fetch
from tests.helm.chart import CHART, Chart, Manifest, Rendered
from tests.support.ending import end_marked
from tests.support.lease_server import LeaseServer, lease_server
from tests.support.live_cluster import START_TIMEOUT_S, marked_processes
from tests.support.short_folder import short_folder

pytestmark = [pytest.mark.engine, pytest.mark.ray]

SPEC_FOLDER = "/etc/baton/spec"
IPS = {"head": "127.0.0.11", "prefill": "127.0.0.12", "decode": "127.0.0.13", "gateway": "127.0.0.14"}
"""Not 127.0.0.1: Ray takes that for the machine's own address."""
PODS, NODES = "/api/v1/namespaces/serving/pods", "/api/v1/nodes"
STOP_TIMEOUT_S = 120


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("0.0.0.0", 0))
        return int(found.getsockname()[1])


def trial_values(model: Path) -> Manifest:
    """The CPU trial, with the test's model and free ports for the gateway."""
    values: Manifest = yaml.safe_load((CHART / "ci" / "cpu-trial-values.yaml").read_text())
    values["config"]["model"] = {
        "path": str(model),
        "served_name": "reasoner",
        "max_model_len_tokens": 2048,
        "dtype": "float32",
        "reasoning": {"effort_budgets_tokens": {"none": 0, "low": 16, "medium": 64, "high": 1024}},
    }
    values["config"]["gateway"] = {f"{name}_port": free_port() for name in ("grpc", "http", "metrics")}
    values["head"]["dashboard"] = False
    values["rayToken"] = True
    # The head scales drained pods away and reads the nodes' labels.
    values["autoscaling"] = {"enabled": True}
    values["topology"] = {"readNodeLabels": True}
    values["decodeWorkers"]["minReplicas"] = 0
    return values


@dataclass
class Pod:
    """A container's process."""

    name: str
    ip: str
    folder: Path
    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    env: dict[str, str]

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def probe(self, path: str) -> tuple[int, str]:
        """Status and text of a probe; 0 while nothing listens."""
        try:
            with urllib.request.urlopen(f"http://{self.ip}:{self.ports['8081']}{path}", timeout=5) as reply:
                return reply.status, reply.read().decode().strip()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode().strip()
        except OSError:
            return 0, ""


class Pods:
    """Starts the containers of a rendered chart."""

    def __init__(self, rendered: Rendered, folder: Path, lease: LeaseServer) -> None:
        self.rendered = rendered
        self.folder = folder
        self.spec = folder / "spec"
        self.spec.mkdir()
        (config,) = rendered.of("ConfigMap").values()
        for name, text in config["data"].items():
            (self.spec / name).write_text(text)
        self.kubeconfig = lease.kubeconfig(folder / "kubeconfig")
        self.shared_ports = {"6379": free_port(), "50100": free_port()}
        self.pods: list[Pod] = []
        (cluster,) = rendered.ray_clusters
        assert cluster["spec"]["authOptions"] == {"mode": "token"}
        self.token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        """What KubeRay puts into the environment of Ray containers."""

    def start(self, name: str, manifest: Manifest) -> Pod:
        """Start a pod's first container."""
        container = manifest["spec"]["containers"][0]
        folder = self.folder / name
        folder.mkdir()
        ports = {"8080": free_port(), "8081": free_port()}
        command = [self._here(text, ports) for text in (*container["command"], *container["args"])]
        env = self._environment(container, name, folder, ports)
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                command, env=env, cwd=folder, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0
            )
        pod = Pod(name, IPS[name], folder, process, ports, env)
        self.pods.append(pod)
        return pod

    def run(self, pod: Pod, command: list[str]) -> None:
        """Run a command in a pod, as `kubectl exec` does."""
        result = subprocess.run(
            command, env=pod.env, cwd=pod.folder, capture_output=True, text=True, timeout=STOP_TIMEOUT_S, check=False
        )
        assert result.returncode == 0, result.stdout + result.stderr + self.logs()

    def _environment(self, container: dict[str, Any], name: str, folder: Path, ports: dict[str, int]) -> dict[str, str]:
        return {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": os.environ.get("PYTHONPATH", ""),
            "KUBECONFIG": str(self.kubeconfig),
            "RAY_TMPDIR": str(folder),
            "TMPDIR": str(folder),
            **(self.token if container["name"].startswith("ray-") else {}),
            **{entry["name"]: self._value(entry, name, folder, ports) for entry in container["env"]},
        }

    def _value(self, entry: dict[str, Any], name: str, folder: Path, ports: dict[str, int]) -> str:
        if "valueFrom" in entry:
            fields = {"status.podIP": IPS[name], "metadata.name": name, "metadata.namespace": "serving"}
            return fields[entry["valueFrom"]["fieldRef"]["fieldPath"]]
        # /tmp is a volume of each pod.
        return self._here(re.sub(r"^/tmp\b", str(folder), entry["value"]), ports)

    def _here(self, text: str, ports: dict[str, int]) -> str:
        (cluster,) = self.rendered.of("RayCluster")
        text = text.replace(SPEC_FOLDER, str(self.spec)).replace(f"{cluster}-head-svc", IPS["head"])
        for port, free in {**self.shared_ports, **ports}.items():
            text = re.sub(rf"(?<![\d.]){port}\b", str(free), text)
        return text

    def wait(self, pod: Pod, path: str) -> None:
        """Until the probe says yes."""
        self.until(lambda: pod.probe(path)[0] == 200, f"{pod.name} {path}")

    def wait_for_ray(self, pod: Pod) -> None:
        """Until Ray runs: two that start at once on one machine may take the same port (seen: a raylet that hung).

        Pods have a network each, and start as they like.
        """
        self.until(lambda: "Ray runtime started" in pod.log, f"{pod.name}: Ray")

    def until(self, done: Callable[[], bool], what: str) -> None:
        deadline_s = time.monotonic() + START_TIMEOUT_S
        while not done():
            ended = [each.name for each in self.pods if each.process.poll() is not None]
            late = time.monotonic() > deadline_s
            if ended or late:
                raise AssertionError(f"{what}: {'too late' if late else f'{ended} ended'}\n{self.logs()}")
            time.sleep(0.2)

    def logs(self) -> str:
        """The end of what each pod said."""
        return "\n".join(f"--- {pod.name} {pod.probe('/readyz')}\n{pod.log[-4000:]}" for pod in self.pods)

    def stop(self) -> list[int]:
        """SIGTERM to all, as when a release is deleted; their exit statuses."""
        for pod in self.pods:
            if pod.process.poll() is None:
                pod.process.send_signal(signal.SIGTERM)
        return [pod.process.wait(STOP_TIMEOUT_S) for pod in self.pods]

    def kill(self) -> None:
        """What is left, with all its processes."""
        for pod in self.pods:
            end_marked(pod.folder / "baton")
        for pod in self.pods:
            pod.process.wait(STOP_TIMEOUT_S)


def group_of(cluster: Manifest, name: str) -> Manifest:
    (group,) = [group for group in cluster["spec"]["workerGroupSpecs"] if group["groupName"] == name]
    return group


def publish(lease: LeaseServer, rendered: Rendered) -> str:
    """Put the RayCluster, its pods and their nodes on the API server; returns the RayCluster's path."""
    (cluster,) = rendered.ray_clusters
    pods = [
        {
            "metadata": {"name": f"{group}-pod", "labels": {"ray.io/group": group}},
            "spec": {"nodeName": f"node-of-{group}", "containers": [{"name": "ray-worker"}]},
            "status": {"phase": "Running", "podIP": IPS[group]},
        }
        for group in rendered.groups
        if group in IPS
    ]
    nodes = [
        {"metadata": {"name": f"node-of-{group}", "labels": {"topology.kubernetes.io/zone": "z"}}} for group in IPS
    ]
    path = f"/apis/ray.io/v1/namespaces/serving/rayclusters/{cluster['metadata']['name']}"
    lease.objects[path] = {**cluster, "metadata": {**cluster["metadata"], "resourceVersion": "1"}}
    lease.objects[PODS] = {"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}
    lease.objects[NODES] = {"kind": "NodeList", "apiVersion": "v1", "metadata": {}, "items": nodes}
    return path


def test_the_rendered_commands_serve_a_request(test_model: Path) -> None:
    with ExitStack() as stack:
        folder = stack.enter_context(short_folder())
        lease = stack.enter_context(lease_server())
        values = trial_values(test_model)
        rendered = Chart(fetch(), folder).render(values)
        ray_cluster = publish(lease, rendered)
        pods = Pods(rendered, folder, lease)
        stack.callback(pods.kill)

        gateway = pods.start("gateway", rendered.gateway)
        head = pods.start("head", rendered.head)
        pods.wait(head, "/startupz")
        nodes = {}
        for role in ("prefill", "decode"):
            nodes[role] = pods.start(role, rendered.worker(role))
            pods.wait_for_ray(nodes[role])
        for pod in (head, *nodes.values(), gateway):
            pods.wait(pod, "/readyz")
        assert {pod.probe("/readyz")[1] for pod in nodes.values()} == {"ready"}
        for pod in pods.pods:
            assert is_alive({"POD_IP": pod.ip, "BATON_PROBE_PORT": str(pod.ports["8081"])})
        assert set(lease.holders) == {"head"}

        problem = generate(23, steps=4)
        with Client(f"127.0.0.1:{values['config']['gateway']['grpc_port']}") as client:
            at = {worker.worker_id: worker.node for worker in client.get_status().workers}
            assert set(at) == {"prefill-0", "decode-0"}
            assert len(set(at.values())) == 2
            completion = client.complete(messages=problem.messages, temperature=0.0, max_tokens=1100, deadline_s=300)
        assert verify_answer(problem, build_tokenizer().decode(completion.token_ids)), completion.text
        assert (completion.workers.prefill, completion.workers.decode) == ("prefill-0", "decode-0")
        assert completion.handoff.bytes > 0
        assert {PODS, NODES} <= lease.read

        pods.run(head, ["baton", "drain", "decode-0"])
        pods.until(lambda: group_of(lease.objects[ray_cluster], "decode")["replicas"] == 0, "the drained pod is named")
        decode = group_of(lease.objects[ray_cluster], "decode")
        assert decode["scaleStrategy"] == {"workersToDelete": ["decode-pod"]}
        assert group_of(lease.objects[ray_cluster], "prefill")["replicas"] == 1

        statuses = pods.stop()
        assert statuses == [0, 0, 0, 0], pods.logs()
        assert lease.holders[-1] == "", pods.logs()
        for pod in pods.pods:
            assert not marked_processes(pod.folder / "baton", wait_s=20)
