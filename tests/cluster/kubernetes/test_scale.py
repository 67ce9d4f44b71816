"""The provisioner changes worker groups of a RayCluster, against a mock Kubernetes API server."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from kmock import RawHandler, Response

from cluster.errors import ConfigError
from cluster.kubernetes.api import Api, Conflict, KubernetesUnavailable
from cluster.kubernetes.provisioner import KubernetesProvisioner
from tests.support.kube_mock import Clock, Tree, bump, ok, pod, pods_of, status

# The mock's own emulation answers PATCH before the replies given here; a plain server asks them alone.
pytestmark = pytest.mark.kmock(cls=RawHandler)

CLUSTER = "/apis/ray.io/v1/namespaces/serving/rayclusters/baton-r1"


def ray_cluster(version: int, *, replicas: int = 2, leaving: tuple[str, ...] = (), hosts: int = 1) -> Tree:
    group = {
        "groupName": "decode",
        "replicas": replicas,
        "minReplicas": 1,
        "maxReplicas": 4,
        "numOfHosts": hosts,
        "scaleStrategy": {"workersToDelete": list(leaving)},
    }
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCluster",
        "metadata": {"name": "baton-r1", "resourceVersion": str(version)},
        "spec": {"workerGroupSpecs": [{**group, "groupName": "prefill"}, group]},
    }


def patches(kmock: RawHandler) -> list[Any]:
    return [request for request in kmock if request.method == "PATCH"]


class Server:
    """A RayCluster behind the mock: takes JSON patches, refuses those of an old version."""

    def __init__(self, kmock: RawHandler, tree: Tree) -> None:
        self.tree = tree
        self.before_patch: list[Any] = []
        """Replies, or changes by somebody else, one for each patch that comes in."""

        async def answer(request: Any) -> Response:
            return ok(self.tree if request.method == "GET" else await self.patch(request))

        kmock[CLUSTER] << answer

    async def patch(self, request: Any) -> Any:
        if self.before_patch:
            step = self.before_patch.pop(0)
            if isinstance(step, Response):
                return step
            step(self.tree)
        version, *operations = json.loads(request.body)
        assert version == {"op": "replace", "path": "/metadata/resourceVersion", "value": version["value"]}
        if version["value"] != self.tree["metadata"]["resourceVersion"]:
            return status(409, "Conflict")
        for operation in operations:
            *parents, last = operation["path"].strip("/").split("/")
            place: Any = self.tree
            for part in parents:
                place = place[int(part)] if isinstance(place, list) else place[part]
            place[last] = operation["value"]
        bump(self.tree)
        return self.tree

    @property
    def decode(self) -> Tree:
        return self.tree["spec"]["workerGroupSpecs"][1]


async def test_scale_names_the_pods_that_go(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    server = Server(kmock, ray_cluster(7, leaving=("decode-old",)))
    view = await provisioner.scale("decode", 1, ["decode-b"])
    assert view.groups["decode"].replicas == server.decode["replicas"] == 1
    assert server.decode["scaleStrategy"] == {"workersToDelete": ["decode-old", "decode-b"]}
    (request,) = patches(kmock)
    assert request.headers["Content-Type"] == "application/json-patch+json"


async def test_a_conflict_is_decided_anew(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    """Somebody scales up in between: the pod still goes, from the new count."""
    server = Server(kmock, ray_cluster(7, replicas=2))

    def scaled_by_another(tree: Tree) -> None:
        server.decode["replicas"] = 4
        bump(tree)

    server.before_patch = [scaled_by_another]
    pods = [view for view in await pods_of(kmock, provisioner, [pod("decode-a")]) if view.name == "decode-a"]
    await provisioner.remove(pods)
    assert server.decode["replicas"] == 3
    assert server.decode["scaleStrategy"] == {"workersToDelete": ["decode-a"]}
    assert len(patches(kmock)) == 2


async def test_conflicts_without_end_are_reported(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    server = Server(kmock, ray_cluster(7))
    server.before_patch = [bump] * 9
    with pytest.raises(Conflict):
        await provisioner.scale("decode", 3)
    assert len(patches(kmock)) == 5
    assert server.decode["replicas"] == 2


async def test_removing_twice_removes_once(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    """The answer to the first patch was lost; the patch was not."""
    server = Server(kmock, ray_cluster(7, replicas=3))
    pods = await pods_of(kmock, provisioner, [pod("decode-a")])
    await provisioner.remove(pods)
    await provisioner.remove(pods)
    assert server.decode["replicas"] == 2
    assert len(patches(kmock)) == 1


async def test_a_worker_of_two_hosts_goes_whole(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    server = Server(kmock, ray_cluster(7, replicas=3, hosts=2))
    both = await pods_of(kmock, provisioner, [pod("decode-a-0"), pod("decode-a-1")])
    with pytest.raises(ConfigError, match="a worker is 2 pods"):
        await provisioner.remove(both[:1])
    await provisioner.remove(both)
    assert server.decode["replicas"] == 2


async def test_the_pod_of_a_drained_worker_is_the_one_that_goes(
    kmock: RawHandler, provisioner: KubernetesProvisioner
) -> None:
    """Others are as empty; the one that was drained is named."""
    server = Server(kmock, ray_cluster(7, replicas=3))
    await pods_of(kmock, provisioner, [pod(f"decode-{n}", podIP=f"10.0.0.{n}") for n in range(3)])
    await provisioner.remove_hosts(["10.0.0.1"])
    assert server.decode["replicas"] == 2
    assert server.decode["scaleStrategy"] == {"workersToDelete": ["decode-1"]}


async def test_all_pods_of_a_drained_worker_go(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    """It spans two hosts, and Ray reported one."""
    server = Server(kmock, ray_cluster(7, replicas=2, hosts=2))
    items = [pod(f"decode-{n}", podIP=f"10.0.0.{n}") for n in range(4)]
    for n, item in enumerate(items):
        item["metadata"]["labels"]["ray.io/worker-group-replica-name"] = f"replica-{n // 2}"
    await pods_of(kmock, provisioner, items)
    await provisioner.remove_hosts(["10.0.0.3"])
    assert server.decode["replicas"] == 1
    assert server.decode["scaleStrategy"] == {"workersToDelete": ["decode-2", "decode-3"]}


async def test_a_group_keeps_its_least(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    server = Server(kmock, ray_cluster(7, replicas=1))
    await pods_of(kmock, provisioner, [pod("decode-0", podIP="10.0.0.0")])
    with pytest.raises(ConfigError, match="change minReplicas"):
        await provisioner.remove_hosts(["10.0.0.0"])
    assert server.decode["replicas"] == 1


@pytest.mark.parametrize(("group", "replicas"), [("decode", 5), ("decode", 0), ("colocated", 1)])
async def test_bounds_are_kept(
    kmock: RawHandler, provisioner: KubernetesProvisioner, group: str, replicas: int
) -> None:
    Server(kmock, ray_cluster(7))
    with pytest.raises(ConfigError):
        await provisioner.scale(group, replicas)
    assert not len(patches(kmock))


async def test_429_waits_as_long_as_it_says(
    kmock: RawHandler, provisioner: KubernetesProvisioner, clock: Clock
) -> None:
    server = Server(kmock, ray_cluster(7))
    server.before_patch = [status(429, "TooManyRequests", {"Retry-After": "7"}), lambda _: None]
    await provisioner.scale("decode", 3)
    assert server.decode["replicas"] == 3
    assert clock.slept == [7.0]


async def test_5xx_backs_off_longer_each_time(
    kmock: RawHandler, provisioner: KubernetesProvisioner, clock: Clock
) -> None:
    replies: list[Any] = [status(500, "InternalError"), status(503, "ServiceUnavailable"), status(504, "Timeout")]
    kmock[f"get {CLUSTER}"] << (lambda _: ok(replies.pop(0) if replies else ray_cluster(7)))
    assert (await provisioner.read()).version == "7"
    assert len(clock.slept) == 3
    assert all(later > earlier for earlier, later in itertools.pairwise(clock.slept))


async def test_a_server_that_stays_down_is_reported(
    kmock: RawHandler, provisioner: KubernetesProvisioner, clock: Clock
) -> None:
    kmock[f"get {CLUSTER}"] << (lambda _: status(503, "ServiceUnavailable"))
    with pytest.raises(KubernetesUnavailable, match="503"):
        await provisioner.read()
    assert len(kmock["get"]) == 6


async def test_timeouts_are_retried(kmock: RawHandler, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.kubernetes.api.REQUEST_TIMEOUT_S", 0.2)
    count = itertools.count()

    async def slow_once(_: Any) -> Tree:
        if next(count) == 0:
            await asyncio.sleep(1)
        return ray_cluster(7)

    kmock[f"get {CLUSTER}"] << slow_once
    assert (await KubernetesProvisioner(api, "serving", "baton-r1").read()).version == "7"
    assert next(count) == 2


async def test_a_missing_right_is_not_retried(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    kmock[f"get {CLUSTER}"] << (lambda _: status(403, "Forbidden"))
    with pytest.raises(ConfigError, match="the account lacks a right"):
        await provisioner.read()
    assert len(kmock["get"]) == 1
