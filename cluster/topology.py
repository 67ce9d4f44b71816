"""What nodes there are: their free resources and which NVLink domain they belong to. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

NVLINK_DOMAIN_LABEL = "baton.io/nvlink-domain"
"""Ray node label (``ray start --labels``) that names the NVLink domain; without it, each GPU node is its own."""
RDMA_LABEL = "baton.io/rdma"
"""Ray node label set to ``true`` where the node has RDMA."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """One node. ``free`` are resources not taken, by Ray's names (``CPU``, ``GPU``, ``memory`` in bytes, custom)."""

    node_id: str
    host: str
    free: Mapping[str, float]
    nvlink_domain: str = ""
    rdma: bool = False

    def fits(self, need: Mapping[str, float]) -> bool:
        """Whether all of ``need`` is free here."""
        return all(self.free.get(name, 0.0) + 1e-9 >= amount for name, amount in need.items())


def node_view(node_id: str, host: str, free: Mapping[str, float], labels: Mapping[str, str]) -> NodeView:
    """Make a view from what Ray says of a node."""
    domain = labels.get(NVLINK_DOMAIN_LABEL, "")
    if not domain and free.get("GPU", 0) > 1:
        domain = node_id  # the GPUs of one server share NVLink or at least PCIe
    return NodeView(node_id, host, dict(free), domain, labels.get(RDMA_LABEL, "") == "true")
