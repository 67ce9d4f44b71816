"""Labels of Kubernetes nodes as labels of Ray nodes, so that placement, router and the chart's affinity speak of the
same domains. A Ray node is a pod here, found by its address."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence

from cluster.errors import ServingError
from cluster.kubernetes.provisioner import KubeNode, KubernetesProvisioner
from cluster.topology import DOMAIN_LABEL, GPU_LABEL, NVLINK_DOMAIN_LABEL, SPOT_LABEL

log = logging.getLogger("baton.kubernetes")

RETRY_S = 30.0
"""After a failure it is asked again after this long."""


def ray_labels(node: KubeNode) -> dict[str, str]:
    """Ray labels of a pod on this node.

    Example:
        >>> ray_labels(KubeNode("n1", "NVIDIA-H200", "", "rack-7", True))
        {'baton.io/domain': 'rack-7', 'baton.io/gpu': 'NVIDIA-H200', 'baton.io/spot': 'true'}
    """
    labels = {
        NVLINK_DOMAIN_LABEL: node.nvlink_domain,
        DOMAIN_LABEL: node.zone,
        GPU_LABEL: node.gpu,
        SPOT_LABEL: "true" if node.spot else "",
    }
    return {key: value for key, value in labels.items() if value}


class NodeLabels:
    """Ray labels by pod address, read from the API server when an address is new. Called off the event loop.

    Without an answer workers are placed as if the nodes had no labels, and the log says so: a cluster that serves from
    the wrong rack beats one that does not start.

    Args:
        provisioner: Of the RayCluster.
        domain_label: Node label of the rack or zone; empty takes the usual ones.
        now: Monotonic seconds.
    """

    def __init__(
        self, provisioner: KubernetesProvisioner, domain_label: str = "", *, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._provisioner = provisioner
        self._domain_label = domain_label
        self._now = now
        self._known: dict[str, dict[str, str]] = {}
        self._answered: set[str] = set()
        """Addresses that were asked for; those of pods on other clusters, or of the head, never get labels."""
        self._failed_s: float | None = None

    def __call__(self, hosts: Sequence[str]) -> Mapping[str, Mapping[str, str]]:
        """Labels of the pods at these addresses, as far as they are known."""
        waits = self._failed_s is not None and self._now() - self._failed_s < RETRY_S
        if waits or self._answered >= set(hosts):
            return self._known
        try:
            self._known = asyncio.run(self._read())
            self._answered = set(hosts)
            self._failed_s = None
        except ServingError as error:
            self._failed_s = self._now()
            log.warning("labels of nodes are not known: %s", error)
        return self._known

    async def _read(self) -> dict[str, dict[str, str]]:
        nodes = await self._provisioner.nodes(self._domain_label)
        pods = await self._provisioner.pods()
        return {pod.ip: ray_labels(nodes[pod.node]) for pod in pods if pod.ip and pod.node in nodes}
