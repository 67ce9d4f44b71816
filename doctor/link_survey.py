"""Measures links where a Ray cluster's nodes are: one pair of nodes stands for all workers on them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from cluster.errors import TransferTimeout, WorkerDied
from cluster.ray_runtime import RayRuntime
from cluster.spec.config import ClusterSpec, PoolSettings, Role
from cluster.topology import NodeView
from doctor.link_diagnosis import Pair
from kv_transfer.link_probe import LinkMeasurement, ProbeRequest, ProbeServer, probe_client
from kv_transfer.transport import Endpoint

MARGIN_S = 30.0
"""Beyond the probe's own timeout: Ray starts a process for each end."""


class ProbeReader:
    """The reading end as a Ray actor."""

    def read(self, request: ProbeRequest, host: str, port: int) -> LinkMeasurement:
        """As `probe_client`."""
        return probe_client(request, host, port)


def node_pairs(spec: ClusterSpec, nodes: Sequence[NodeView], *, max_pairs: int = 64) -> list[Pair]:
    """A pair for each node that may hold prefill workers and each that may hold decode workers.

    Endpoints carry node ids as worker ids. Pairs on one node come first: there may be more nodes than patience.
    """
    pools = dict(spec.pools.items())
    prefill, decode = pools.get(Role.PREFILL), pools.get(Role.DECODE)
    if prefill is None or decode is None:
        return []
    pairs = [
        Pair(_endpoint(source, prefill), _endpoint(target, decode), (f"prefill {source.host} -> decode {target.host}",))
        for source in _eligible(nodes, prefill)
        for target in _eligible(nodes, decode)
    ]
    pairs.sort(key=lambda pair: pair.source.worker_id != pair.target.worker_id)
    return pairs[:max_pairs]


def _eligible(nodes: Sequence[NodeView], pool: PoolSettings) -> list[NodeView]:
    return [node for node in nodes if pool.node_resource is None or node.free.get(pool.node_resource, 0) > 0]


def _endpoint(node: NodeView, pool: PoolSettings) -> Endpoint:
    on_cpu = pool.accelerators_per_worker == 0
    return Endpoint(node.node_id, node.host, on_cpu=on_cpu, nvlink_domain=node.nvlink_domain, rdma=node.rdma)


class RayMeasure:
    """Runs a probe with its serving end on the source's node and its reading end on the target's."""

    def __init__(self, runtime: RayRuntime) -> None:
        self._runtime = runtime
        self._nodes = {node.node_id: node for node in runtime.nodes()}

    def __call__(self, pair: Pair, request: ProbeRequest) -> LinkMeasurement:
        """Measure one pair.

        Raises:
            TransferError: as `probe_client`; a helper that is gone or silent counts as a timeout.
        """
        source, target = self._nodes[pair.source.worker_id], self._nodes[pair.target.worker_id]
        request = request.at(self._runtime.host_of(source))
        limit_s = request.timeout_s + MARGIN_S
        try:
            with (
                self._runtime.visitor(source, ProbeServer, request) as serve,
                self._runtime.visitor(target, ProbeReader) as read,
            ):
                host, port = serve("start", limit_s)
                try:
                    found: LinkMeasurement = read("read", limit_s, request, host, port)
                finally:
                    with contextlib.suppress(WorkerDied):
                        serve("stop", limit_s)
        except WorkerDied as error:
            raise TransferTimeout(error.message) from error
        return found
