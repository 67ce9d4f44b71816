"""Replies and objects of a mock Kubernetes API server, and time that passes only when somebody sleeps."""

from __future__ import annotations

import asyncio
from typing import Any

from kmock import RawHandler, Response

from cluster.kubernetes.provisioner import KubernetesProvisioner

PODS = "/api/v1/namespaces/serving/pods"
NODES = "/api/v1/nodes"

Tree = dict[str, Any]


class Clock:
    """Time that passes only when somebody sleeps."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)


def status(code: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
    return Response(status=code, payload=body, headers=headers)


def ok(answer: Any) -> Response:
    """A reply that says 200: the mock keeps the status of an earlier reply otherwise."""
    return answer if isinstance(answer, Response) else Response(status=200, payload=answer)


def bump(tree: Tree) -> None:
    tree["metadata"]["resourceVersion"] = str(int(tree["metadata"]["resourceVersion"]) + 1)


def pod(name: str, *, node: str = "n1", phase: str = "Running", ready: bool = True, **more: Any) -> Tree:
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}, *more.pop("conditions", [])]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": "serving", "labels": {"ray.io/group": "decode"}},
        "spec": {"nodeName": node, "containers": [{"name": "ray-worker"}]},
        "status": {"phase": phase, "conditions": conditions, **more},
    }


def listing(kind: str, items: list[Tree], version: int = 1) -> Tree:
    return {"kind": kind, "apiVersion": "v1", "metadata": {"resourceVersion": str(version)}, "items": items}


def nodes(*names: str) -> Tree:
    return listing("NodeList", [{"metadata": {"name": name, "labels": {}}} for name in names])


def container(more: Tree) -> Tree:
    return {"name": "ray-worker", "image": "i", "imageID": "", "ready": False, "restartCount": 0, **more}


async def pods_of(kmock: RawHandler, provisioner: KubernetesProvisioner, items: list[Tree], *names: str) -> Any:
    """The provisioner's view of these pods, on nodes of these names."""
    kmock[f"get {PODS}"] << listing("PodList", items)
    kmock[f"get {NODES}"] << nodes(*(names or ("n1",)))
    return await provisioner.pods()
