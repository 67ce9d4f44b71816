"""Pods of a RayCluster as Baton sees and changes them: which groups there are, on what nodes, and which pods go.

KubeRay makes and ends the pods. This reads the RayCluster, and patches `replicas` and `scaleStrategy.workersToDelete`,
so that the pods that were drained are the ones that go.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import urllib3
from kubernetes import client, watch
from kubernetes.client.exceptions import ApiException

from cluster.errors import ConfigError, PlacementInfeasible
from cluster.kubernetes.api import Api, Conflict, Forbidden, WatchExpired, raise_for_good

GROUP, VERSION, PLURAL = "ray.io", "v1", "rayclusters"
CONFLICT_ATTEMPTS = 5
REPLICA_LABEL = "ray.io/worker-group-replica-name"
"""Names the worker that a pod is a part of, on groups of several hosts, where KubeRay's indexing is on."""
GPU_LABELS = ("nvidia.com/gpu.product", "cloud.google.com/gke-accelerator", "karpenter.k8s.aws/instance-gpu-name")
NVLINK_LABEL = "nvidia.com/gpu.clique"
"""Nodes of one NVLink domain, by NVIDIA's GPU feature discovery; there is none where NVLink ends at the server."""
TOPOLOGY_LABELS = ("topology.kubernetes.io/rack", "topology.kubernetes.io/zone")
"""Where no other label is asked for."""
SPOT_LABELS = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
}


@dataclass(frozen=True, slots=True)
class GroupView:
    """A worker group. ``hosts`` are the pods of one replica; ``leaving`` the pods named to be deleted."""

    name: str
    index: int
    replicas: int
    min_replicas: int
    max_replicas: int
    hosts: int
    leaving: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class KubeNode:
    """A node's hardware, by its labels. ``zone`` is its rack or zone."""

    name: str
    gpu: str
    nvlink_domain: str
    zone: str
    spot: bool


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod. ``state`` is waiting, running, ready, failed, ending or lost (its node is gone); ``why`` says for what.

    ``replica`` names the worker that it is a part of, where a worker takes several pods.
    """

    name: str
    group: str
    node: str
    state: str
    why: str = ""
    ip: str = ""
    replica: str = ""


@dataclass(frozen=True, slots=True)
class ClusterView:
    """A RayCluster at one resourceVersion."""

    version: str
    groups: Mapping[str, GroupView]


def node_of(name: str, labels: Mapping[str, str], domain_label: str = "") -> KubeNode:
    """What labels say of a node; the first label that is there counts.

    Args:
        name: The node's.
        labels: The node's.
        domain_label: Label of its rack or zone; empty takes the usual ones.

    Example:
        >>> node_of("a", {"nvidia.com/gpu.product": "NVIDIA-H200", "karpenter.sh/capacity-type": "spot"})
        KubeNode(name='a', gpu='NVIDIA-H200', nvlink_domain='', zone='', spot=True)
    """
    return KubeNode(
        name,
        next((labels[key] for key in GPU_LABELS if key in labels), ""),
        labels.get(NVLINK_LABEL, ""),
        next((labels[key] for key in ([domain_label] if domain_label else TOPOLOGY_LABELS) if key in labels), ""),
        any(labels.get(key) == value for key, value in SPOT_LABELS.items()),
    )


def scale_patch(view: ClusterView, group: str, replicas: int, delete: Sequence[str] = ()) -> list[dict[str, Any]]:
    """JSON patch that sets a group's replicas and names the pods that go; refused by the server if the object moved on.

    Raises:
        ConfigError: there is no such group, or ``replicas`` is outside its bounds.
    """
    found = view.groups.get(group)
    if found is None:
        raise ConfigError(f"the RayCluster has no group {group}; it has {', '.join(sorted(view.groups))}")
    if not found.min_replicas <= replicas <= found.max_replicas:
        raise ConfigError(
            f"{group}: {replicas} replicas are outside {found.min_replicas} to {found.max_replicas}; "
            "change minReplicas or maxReplicas in the chart's values"
        )
    path = f"/spec/workerGroupSpecs/{found.index}"
    patch: list[dict[str, Any]] = [
        # A version that is not the present one makes the server answer 409.
        {"op": "replace", "path": "/metadata/resourceVersion", "value": view.version},
        {"op": "replace", "path": f"{path}/replicas", "value": replicas},
    ]
    if delete:
        # Those named before stay named: KubeRay removes the list once they have gone.
        names = list(dict.fromkeys([*found.leaving, *delete]))
        patch.append({"op": "add", "path": f"{path}/scaleStrategy", "value": {"workersToDelete": names}})
    return patch


class KubernetesProvisioner:
    """One RayCluster.

    Args:
        api: Client.
        namespace: Of the RayCluster.
        cluster: Its name.
        now: Monotonic seconds.
    """

    def __init__(self, api: Api, namespace: str, cluster: str, *, now: Callable[[], float] = time.monotonic) -> None:
        self._api = api
        self._core = client.CoreV1Api(api.client)
        self._custom = client.CustomObjectsApi(api.client)
        self._namespace = namespace
        self._cluster = cluster
        self._now = now

    async def read(self) -> ClusterView:
        """The RayCluster as it is.

        Raises:
            ServingError: see `Api.call`.
        """
        found = await self._api.call(
            self._custom.get_namespaced_custom_object, GROUP, VERSION, self._namespace, PLURAL, self._cluster
        )
        groups = {}
        for index, group in enumerate(found["spec"].get("workerGroupSpecs") or []):
            replicas = int(group.get("replicas") or 0)
            groups[group["groupName"]] = GroupView(
                group["groupName"],
                index,
                replicas,
                int(group.get("minReplicas") or 0),
                int(group.get("maxReplicas") or replicas),
                int(group.get("numOfHosts") or 1),
                tuple((group.get("scaleStrategy") or {}).get("workersToDelete") or ()),
            )
        return ClusterView(found["metadata"]["resourceVersion"], groups)

    async def nodes(self, domain_label: str = "") -> dict[str, KubeNode]:
        """All nodes of the Kubernetes cluster; ``domain_label`` as for `node_of`.

        Raises:
            Forbidden: the account may not list nodes, which are in no namespace.
        """
        found = await self._api.call(self._core.list_node)
        return {
            item.metadata.name: node_of(item.metadata.name, item.metadata.labels or {}, domain_label)
            for item in found.items
        }

    async def pods(self) -> list[PodView]:
        """Pods of the RayCluster's workers; one whose node is gone is ``lost``, whatever its last status said.

        An account that may not list nodes has to trust the status.
        """
        found = await self._api.call(self._core.list_namespaced_pod, self._namespace, label_selector=self._selector())
        nodes = await self._known_nodes()
        return [_pod(item, nodes) for item in found.items]

    async def _known_nodes(self) -> Mapping[str, KubeNode] | None:
        try:
            return await self.nodes()
        except Forbidden:
            return None

    async def scale(self, group: str, replicas: int, delete: Sequence[str] = ()) -> ClusterView:
        """Set a group's replicas; ``delete`` names the pods that go. Read and decided again on a conflict.

        Raises:
            ConfigError: outside the group's bounds.
            Conflict: somebody else changed the object at each attempt.
            ServingError: see `Api.call`.
        """
        return await self._change(group, lambda _: replicas, delete)

    async def remove(self, pods: Sequence[PodView]) -> None:
        """Have these pods end, and no others in their place.

        Raises:
            ServingError: as `scale`. Nothing was changed of the groups that follow the one that failed.
        """
        for group in dict.fromkeys(pod.group for pod in pods):
            names = [pod.name for pod in pods if pod.group == group]

            def fewer(found: GroupView, names: list[str] = names) -> int:
                new = [name for name in names if name not in found.leaving]
                if len(new) % found.hosts:
                    raise ConfigError(f"{found.name}: a worker is {found.hosts} pods; name all of them")
                return found.replicas - len(new) // found.hosts

            await self._change(group, fewer, names)

    async def remove_hosts(self, hosts: Sequence[str]) -> None:
        """Have the pods at these addresses end, and no others in their place: those of a worker that was drained.

        A worker of several pods goes whole. Pods that end already are left alone.

        Raises:
            ServingError: as `remove`; ConfigError, where the group would fall below its ``minReplicas``.
        """
        pods = await self.pods()
        replicas = {pod.replica for pod in pods if pod.ip in hosts and pod.replica}
        await self.remove(
            [
                pod
                for pod in pods
                if (pod.ip in hosts or pod.replica in replicas) and pod.state not in ("ending", "failed")
            ]
        )

    async def _change(self, group: str, replicas_of: Callable[[GroupView], int], delete: Sequence[str]) -> ClusterView:
        for attempt in range(CONFLICT_ATTEMPTS):
            view = await self.read()
            found = view.groups.get(group)
            wanted = replicas_of(found) if found is not None else 0
            if found is not None and found.replicas == wanted and set(delete) <= set(found.leaving):
                return view  # an earlier attempt, whose answer was lost, has done it
            patch = scale_patch(view, group, wanted, delete)
            try:
                await self._api.call(
                    self._custom.patch_namespaced_custom_object,
                    GROUP, VERSION, self._namespace, PLURAL, self._cluster, patch,
                    _content_type="application/json-patch+json",
                )  # fmt: skip
                return await self.read()
            except Conflict:
                if attempt + 1 == CONFLICT_ATTEMPTS:
                    raise
        raise AssertionError

    async def wait_ready(self, group: str, count: int, timeout_s: float, *, interval_s: float = 5.0) -> list[PodView]:
        """Wait for so many ready pods in a group; returns them.

        Raises:
            PlacementInfeasible: they were not ready in time; the text says what the others wait for.
        """
        deadline_s = self._now() + timeout_s
        while True:
            pods = [pod for pod in await self.pods() if pod.group == group]
            ready = [pod for pod in pods if pod.state == "ready"]
            if len(ready) >= count:
                return ready
            if self._now() >= deadline_s:
                others = "; ".join(f"{pod.name} is {pod.state}: {pod.why}" for pod in pods if pod.state != "ready")
                raise PlacementInfeasible(
                    f"{group}: {len(ready)} of {count} pods were ready after {timeout_s:g} s ({others or 'no pod'})"
                )
            await self._api.sleep(interval_s)

    async def watch_pods(self) -> AsyncIterator[list[PodView]]:
        """The pods, again after every change, for ever: through 410 Gone, closed streams and a server's restart."""
        while True:
            listed = await self._api.call(
                self._core.list_namespaced_pod, self._namespace, label_selector=self._selector()
            )
            known = {item.metadata.name: item for item in listed.items}
            version = listed.metadata.resource_version
            nodes = await self._known_nodes()
            yield [_pod(item, nodes) for item in known.values()]
            try:
                async for event, item in self._events(version):
                    if event == "DELETED":
                        known.pop(item.metadata.name, None)
                    elif event != "BOOKMARK":
                        known[item.metadata.name] = item
                    nodes = await self._known_nodes()
                    yield [_pod(each, nodes) for each in known.values()]
            except WatchExpired:
                continue
            await self._api.sleep(0.1)  # a server that closes every stream at once is not to be stormed

    async def _events(self, version: str) -> AsyncIterator[tuple[str, Any]]:
        stream = watch.Watch()
        events = stream.stream(
            self._core.list_namespaced_pod, self._namespace, label_selector=self._selector(),
            resource_version=version, timeout_seconds=60, _request_timeout=75,
        )  # fmt: skip
        try:
            while True:
                try:
                    event = await asyncio.to_thread(next, events, None)
                except ApiException as error:
                    raise_for_good(error)
                    return
                except (urllib3.exceptions.HTTPError, OSError):
                    return
                if event is None:
                    return
                yield event["type"], event["object"]
        finally:
            stream.stop()

    def _selector(self) -> str:
        return f"ray.io/cluster={self._cluster},ray.io/node-type=worker"


def _pod(item: Any, nodes: Mapping[str, KubeNode] | None) -> PodView:
    """A pod, from its object; ``nodes`` None: they are not known."""
    labels = item.metadata.labels or {}
    state, why = _state(item, nodes)
    node, ip = item.spec.node_name or "", item.status.pod_ip or ""
    return PodView(
        item.metadata.name, labels.get("ray.io/group", ""), node, state, why, ip, labels.get(REPLICA_LABEL, "")
    )


def _state(item: Any, nodes: Mapping[str, KubeNode] | None) -> tuple[str, str]:
    node, phase = item.spec.node_name, item.status.phase or "Pending"
    if node and nodes is not None and node not in nodes:
        return "lost", "its node is gone"
    if item.metadata.deletion_timestamp:
        return "ending", ""
    if phase in ("Failed", "Succeeded"):
        return "failed", item.status.reason or phase
    conditions = {each.type: each for each in item.status.conditions or []}
    if phase == "Running" and "Ready" in conditions and conditions["Ready"].status == "True":
        return "ready", ""
    return "running" if phase == "Running" else "waiting", _waits_for(item, conditions)


def _waits_for(item: Any, conditions: Mapping[str, Any]) -> str:
    for container in [*(item.status.init_container_statuses or []), *(item.status.container_statuses or [])]:
        waiting = container.state.waiting if container.state else None
        if waiting is not None:
            return f"{waiting.reason}: {waiting.message}" if waiting.message else str(waiting.reason)
    scheduled = conditions.get("PodScheduled")
    if scheduled is not None and scheduled.status != "True":
        return str(scheduled.message or scheduled.reason)
    return "its probes"
