"""What nodes there are: their free resources and which NVLink domain they belong to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NVLINK_DOMAIN_LABEL = "baton.io/nvlink-domain"
"""Ray node label (``ray start --labels``) that names the NVLink domain; without it, each GPU node is its own."""
RDMA_LABEL = "baton.io/rdma"
"""Ray node label set to ``true`` where the node has RDMA."""
DOMAIN_LABEL = "baton.io/domain"
"""Label of the rack or zone that workers had better share; it implies no link, unlike the NVLink domain."""
GPU_LABEL = "baton.io/gpu"
"""Label with the kind of GPU."""
SPOT_LABEL = "baton.io/spot"
"""Label set to ``true`` where the node may be taken away at short notice."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node. ``free`` are resources not taken, by Ray's names (``CPU``, ``GPU``, ``memory`` in bytes, custom)."""

    node_id: str
    host: str
    free: Mapping[str, float]
    nvlink_domain: str = ""
    rdma: bool = False
    zone: str = ""
    gpu: str = ""
    spot: bool = False

    @property
    def domain(self) -> str:
        """What a prefill and a decode worker had better share: an NVLink domain of several nodes, else rack or zone."""
        stated = self.nvlink_domain if self.nvlink_domain != self.node_id else ""
        return stated or self.zone or self.nvlink_domain

    def fits(self, need: Mapping[str, float]) -> bool:
        """Whether all of ``need`` is free here."""
        return all(self.free.get(name, 0.0) + 1e-9 >= amount for name, amount in need.items())


def node_view(node_id: str, host: str, free: Mapping[str, float], labels: Mapping[str, str]) -> NodeView:
    """Make a view from what Ray says of a node."""
    domain = labels.get(NVLINK_DOMAIN_LABEL, "")
    if not domain and free.get("GPU", 0) > 1:
        domain = node_id  # the GPUs of one server share NVLink or at least PCIe
    return NodeView(
        node_id,
        host,
        dict(free),
        domain,
        labels.get(RDMA_LABEL, "") == "true",
        labels.get(DOMAIN_LABEL, ""),
        labels.get(GPU_LABEL, ""),
        labels.get(SPOT_LABEL, "") == "true",
    )
