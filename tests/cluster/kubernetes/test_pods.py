"""The provisioner reads pods and nodes, against a mock Kubernetes API server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from kmock import RawHandler, Response

from cluster.errors import PlacementInfeasible
from cluster.kubernetes.api import Forbidden
from cluster.kubernetes.nodes import NodeLabels
from cluster.kubernetes.provisioner import KubeNode, KubernetesProvisioner
from tests.support.kube_mock import NODES, PODS, Clock, Tree, container, listing, nodes, ok, pod, pods_of, status

# The mock's own emulation answers PATCH before the replies given here; a plain server asks them alone.
pytestmark = pytest.mark.kmock(cls=RawHandler)

LABELS = {
    "nvidia.com/gpu.product": "NVIDIA-H100",
    "nvidia.com/gpu.clique": "clique-7",
    "topology.kubernetes.io/zone": "z",
    "example.org/rack": "r3",
    "cloud.google.com/gke-spot": "true",
}


async def test_a_node_that_vanishes_takes_its_pods(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    found = await pods_of(kmock, provisioner, [pod("decode-a"), pod("decode-b", node="n2")], "n1")
    assert {view.name: view.state for view in found} == {"decode-a": "ready", "decode-b": "lost"}


async def test_a_pod_that_never_starts_says_why(
    kmock: RawHandler, provisioner: KubernetesProvisioner, clock: Clock
) -> None:
    pulling = {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}
    full = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes have nvidia.com/gpu"}
    kmock[f"get {PODS}"] << listing(
        "PodList",
        [
            pod("decode-a"),
            pod("decode-b", phase="Pending", ready=False, containerStatuses=[container(pulling)]),
            pod("decode-c", node="", phase="Pending", ready=False, conditions=[full]),
        ],
    )
    kmock[f"get {NODES}"] << nodes("n1")
    with pytest.raises(PlacementInfeasible) as caught:
        await provisioner.wait_ready("decode", 3, 600)
    assert "1 of 3 pods were ready after 600 s" in str(caught.value)
    assert "ImagePullBackOff: no such image" in str(caught.value)
    assert "0/3 nodes have nvidia.com/gpu" in str(caught.value)
    assert clock.now_s >= 600


async def test_nodes_are_read_by_their_labels(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    kmock[f"get {NODES}"] << listing("NodeList", [{"metadata": {"name": "n1", "labels": LABELS}}])
    assert await provisioner.nodes() == {"n1": KubeNode("n1", "NVIDIA-H100", "clique-7", "z", True)}
    assert (await provisioner.nodes("example.org/rack"))["n1"].zone == "r3"


async def test_without_the_right_to_list_nodes_a_pods_status_is_believed(
    kmock: RawHandler, provisioner: KubernetesProvisioner
) -> None:
    kmock[f"get {PODS}"] << listing("PodList", [pod("decode-a", node="gone")])
    kmock[f"get {NODES}"] << (lambda _: status(403, "Forbidden"))
    assert [view.state for view in await provisioner.pods()] == ["ready"]
    with pytest.raises(Forbidden):
        await provisioner.nodes()


async def test_node_labels_become_ray_labels_of_the_pods_there(
    kmock: RawHandler, provisioner: KubernetesProvisioner
) -> None:
    """Asked for once, and again when an address is new: a pod that Ray's autoscaler brought."""
    pods = [pod("decode-a", podIP="10.0.0.1")]
    kmock[f"get {PODS}"] << (lambda _: ok(listing("PodList", pods)))
    kmock[f"get {NODES}"] << listing("NodeList", [{"metadata": {"name": "n1", "labels": LABELS}}])
    labels = NodeLabels(provisioner, "example.org/rack")
    head = "10.0.0.9"
    expected = {
        "baton.io/nvlink-domain": "clique-7",
        "baton.io/domain": "r3",
        "baton.io/gpu": "NVIDIA-H100",
        "baton.io/spot": "true",
    }
    for _ in range(2):
        assert await asyncio.to_thread(labels, [head, "10.0.0.1"]) == {"10.0.0.1": expected}
    assert len(kmock[f"get {PODS}"]) == 1
    pods.append(pod("decode-b", podIP="10.0.0.2"))
    found = await asyncio.to_thread(labels, [head, "10.0.0.1", "10.0.0.2"])
    assert set(found) == {"10.0.0.1", "10.0.0.2"}


async def test_workers_are_placed_without_labels_where_they_cannot_be_read(
    kmock: RawHandler, provisioner: KubernetesProvisioner, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    kmock[f"get {NODES}"] << (lambda _: status(403, "Forbidden"))
    labels = NodeLabels(provisioner, now=clock.now)
    for _ in range(3):
        assert await asyncio.to_thread(labels, ["10.0.0.1"]) == {}
    assert len(kmock["get"]) == 1
    assert "labels of nodes are not known: Kubernetes refuses: the account lacks a right" in caplog.text
    clock.now_s += 31
    await asyncio.to_thread(labels, ["10.0.0.1"])
    assert len(kmock["get"]) == 2


async def test_a_watch_survives_410(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    """Gone in the stream, then gone at the start of one: both times it lists again, and misses nothing."""
    lists = [
        listing("PodList", [pod("decode-a")], 1),
        listing("PodList", [pod("decode-a"), pod("decode-b")], 5),
        listing("PodList", [pod("decode-c")], 9),
    ]
    gone = {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}
    watches: list[Any] = [
        [{"type": "DELETED", "object": pod("decode-a")}, gone],
        status(410, "Gone"),
        [{"type": "MODIFIED", "object": pod("decode-c", ready=False)}],
    ]
    seen_versions: list[str] = []

    async def answer(request: Any) -> Any:
        if "watch" not in request.params:
            return ok(lists.pop(0))
        seen_versions.append(request.params["resourceVersion"])
        step = watches.pop(0)
        return step if isinstance(step, Response) else lines(step)

    kmock[f"get {PODS}"] << answer
    kmock[f"get {NODES}"] << nodes("n1")
    seen: list[dict[str, str]] = []
    async for pods in provisioner.watch_pods():
        seen.append({view.name: view.state for view in pods})
        if len(seen) == 5:
            break
    assert seen == [
        {"decode-a": "ready"},
        {},
        {"decode-a": "ready", "decode-b": "ready"},
        {"decode-c": "ready"},
        {"decode-c": "running"},
    ]
    assert seen_versions == ["1", "5", "9"]


def lines(events: list[Tree]) -> Response:
    return Response(status=200, payload="".join(json.dumps(event) + "\n" for event in events).encode())
