"""The provisioner and its lease against a mock Kubernetes API server."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from kmock import RawHandler, Response
from kubernetes import client

from cluster.errors import ConfigError, PlacementInfeasible
from cluster.kubernetes.api import Api, Conflict, Forbidden, KubernetesUnavailable
from cluster.kubernetes.lease import Lease, LeaseLost
from cluster.kubernetes.nodes import NodeLabels
from cluster.kubernetes.provisioner import KubeNode, KubernetesProvisioner

# The mock's own emulation answers PATCH before the replies given here; a plain server asks them alone.
pytestmark = pytest.mark.kmock(cls=RawHandler)

CLUSTER = "/apis/ray.io/v1/namespaces/serving/rayclusters/baton-r1"
PODS = "/api/v1/namespaces/serving/pods"
NODES = "/api/v1/nodes"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/serving/leases"
LEASE = f"{LEASES}/baton-r1-controller"

LABELS = {
    "nvidia.com/gpu.product": "NVIDIA-H100",
    "nvidia.com/gpu.clique": "clique-7",
    "topology.kubernetes.io/zone": "z",
    "example.org/rack": "r3",
    "cloud.google.com/gke-spot": "true",
}

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


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def api(kmock: RawHandler, clock: Clock) -> Api:
    settings = client.Configuration()
    settings.host = str(kmock.url).rstrip("/")
    settings.retries = False
    return Api(client.ApiClient(settings), sleep=clock.sleep, seed=1)


@pytest.fixture
def provisioner(api: Api, clock: Clock) -> KubernetesProvisioner:
    return KubernetesProvisioner(api, "serving", "baton-r1", now=clock.now)


def status(code: int, reason: str, headers: dict[str, str] | None = None) -> Response:
    body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}
    return Response(status=code, payload=body, headers=headers)


def ok(answer: Any) -> Response:
    """A reply that says 200: the mock keeps the status of an earlier reply otherwise."""
    return answer if isinstance(answer, Response) else Response(status=200, payload=answer)


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


# --- scale ----------------------------------------------------------------------------------------------------


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
    pods = [view for view in await _pods(kmock, provisioner, [pod("decode-a")]) if view.name == "decode-a"]
    await provisioner.remove(pods)
    assert server.decode["replicas"] == 3
    assert server.decode["scaleStrategy"] == {"workersToDelete": ["decode-a"]}
    assert len(patches(kmock)) == 2


async def test_conflicts_without_end_are_told(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    server = Server(kmock, ray_cluster(7))
    server.before_patch = [bump] * 9
    with pytest.raises(Conflict):
        await provisioner.scale("decode", 3)
    assert len(patches(kmock)) == 5
    assert server.decode["replicas"] == 2


async def test_removing_twice_removes_once(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    """The answer to the first patch was lost; the patch was not."""
    server = Server(kmock, ray_cluster(7, replicas=3))
    pods = await _pods(kmock, provisioner, [pod("decode-a")])
    await provisioner.remove(pods)
    await provisioner.remove(pods)
    assert server.decode["replicas"] == 2
    assert len(patches(kmock)) == 1


async def test_a_worker_of_two_hosts_goes_whole(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    server = Server(kmock, ray_cluster(7, replicas=3, hosts=2))
    both = await _pods(kmock, provisioner, [pod("decode-a-0"), pod("decode-a-1")])
    with pytest.raises(ConfigError, match="a worker is 2 pods"):
        await provisioner.remove(both[:1])
    await provisioner.remove(both)
    assert server.decode["replicas"] == 2


async def test_the_pod_of_a_drained_worker_is_the_one_that_goes(
    kmock: RawHandler, provisioner: KubernetesProvisioner
) -> None:
    """Others are as empty; the one that was drained is named."""
    server = Server(kmock, ray_cluster(7, replicas=3))
    await _pods(kmock, provisioner, [pod(f"decode-{n}", podIP=f"10.0.0.{n}") for n in range(3)])
    await provisioner.remove_hosts(["10.0.0.1"])
    assert server.decode["replicas"] == 2
    assert server.decode["scaleStrategy"] == {"workersToDelete": ["decode-1"]}


async def test_all_pods_of_a_drained_worker_go(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    """It spans two hosts, and Ray told of one."""
    server = Server(kmock, ray_cluster(7, replicas=2, hosts=2))
    items = [pod(f"decode-{n}", podIP=f"10.0.0.{n}") for n in range(4)]
    for n, item in enumerate(items):
        item["metadata"]["labels"]["ray.io/worker-group-replica-name"] = f"replica-{n // 2}"
    await _pods(kmock, provisioner, items)
    await provisioner.remove_hosts(["10.0.0.3"])
    assert server.decode["replicas"] == 1
    assert server.decode["scaleStrategy"] == {"workersToDelete": ["decode-2", "decode-3"]}


async def test_a_group_keeps_its_least(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    server = Server(kmock, ray_cluster(7, replicas=1))
    await _pods(kmock, provisioner, [pod("decode-0", podIP="10.0.0.0")])
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


# --- a server in trouble --------------------------------------------------------------------------------------


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


async def test_a_server_that_stays_down_is_told(
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


# --- pods and nodes -------------------------------------------------------------------------------------------


async def _pods(kmock: RawHandler, provisioner: KubernetesProvisioner, items: list[Tree], *names: str) -> Any:
    kmock[f"get {PODS}"] << listing("PodList", items)
    kmock[f"get {NODES}"] << nodes(*(names or ("n1",)))
    return await provisioner.pods()


async def test_a_node_that_vanishes_takes_its_pods(kmock: RawHandler, provisioner: KubernetesProvisioner) -> None:
    found = await _pods(kmock, provisioner, [pod("decode-a"), pod("decode-b", node="n2")], "n1")
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


def container(more: Tree) -> Tree:
    return {"name": "ray-worker", "image": "i", "imageID": "", "ready": False, "restartCount": 0, **more}


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


# --- lease ----------------------------------------------------------------------------------------------------


class LeaseServer:
    """One lease behind the mock, with resourceVersions."""

    def __init__(self, kmock: RawHandler) -> None:
        self.tree: Tree | None = None
        self.fail: list[Response] = []
        kmock[f"get {LEASE}"] << (lambda _: ok(self.tree or status(404, "NotFound")))

        async def created(request: Any) -> Response:
            return ok(await self.create(request))

        async def replaced(request: Any) -> Response:
            return ok(await self.replace(request))

        kmock[f"post {LEASES}"] << created
        kmock[f"put {LEASE}"] << replaced

    async def create(self, request: Any) -> Any:
        if self.tree is not None:
            return status(409, "AlreadyExists")
        self.tree = json.loads(request.body)
        self.tree["metadata"]["resourceVersion"] = "1"
        return self.tree

    async def replace(self, request: Any) -> Any:
        if self.fail:
            return self.fail.pop(0)
        assert self.tree is not None
        if json.loads(request.body)["metadata"]["resourceVersion"] != self.tree["metadata"]["resourceVersion"]:
            return status(409, "Conflict")
        self.tree = json.loads(request.body)
        bump(self.tree)
        return self.tree

    @property
    def holder(self) -> str:
        assert self.tree is not None
        return str(self.tree["spec"]["holderIdentity"])


@pytest.fixture
def two(kmock: RawHandler, api: Api, clock: Clock) -> tuple[LeaseServer, Lease, Lease]:
    server = LeaseServer(kmock)
    make = {"now": clock.now}
    return (
        server,
        Lease(api, "serving", "baton-r1-controller", holder="a", **make),
        Lease(api, "serving", "baton-r1-controller", holder="b", **make),
    )


async def test_one_holds_the_lease(two: tuple[LeaseServer, Lease, Lease], clock: Clock) -> None:
    server, first, second = two
    assert await first.try_acquire()
    assert not await second.try_acquire()
    clock.now_s += 14
    assert await first.try_acquire()  # renewed
    clock.now_s += 14
    assert not await second.try_acquire()  # saw the renewal just now
    assert server.holder == "a"


async def test_a_lease_nobody_renews_is_taken_after_its_time(
    two: tuple[LeaseServer, Lease, Lease], clock: Clock
) -> None:
    server, first, second = two
    await first.acquire()
    await second.acquire()
    assert server.holder == "b"
    assert clock.now_s >= 15
    assert server.tree is not None
    assert server.tree["spec"]["leaseTransitions"] == 1


async def test_who_lost_the_lease_stops(two: tuple[LeaseServer, Lease, Lease], clock: Clock) -> None:
    server, first, _ = two
    await first.acquire()
    assert server.tree is not None
    server.tree["spec"]["holderIdentity"] = "b"
    bump(server.tree)
    with pytest.raises(LeaseLost, match="another's"):
        await first.keep()


async def test_who_cannot_renew_in_time_stops(two: tuple[LeaseServer, Lease, Lease], clock: Clock) -> None:
    """The API server is down: another may hold the lease once ours has run out."""
    server, first, _ = two
    await first.acquire()
    server.fail = [status(503, "ServiceUnavailable") for _ in range(99)]
    with pytest.raises(LeaseLost, match="could not be renewed"):
        await first.keep()


async def test_of_two_that_take_a_free_lease_one_gets_it(two: tuple[LeaseServer, Lease, Lease]) -> None:
    server, first, second = two
    assert sorted(await asyncio.gather(first.try_acquire(), second.try_acquire())) == [False, True]
    assert server.holder in ("a", "b")


async def test_a_released_lease_is_free_at_once(two: tuple[LeaseServer, Lease, Lease], clock: Clock) -> None:
    server, first, second = two
    await first.acquire()
    await first.release()
    assert await second.try_acquire()
    assert server.holder == "b"
    assert clock.now_s == 0
