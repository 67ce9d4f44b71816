"""Which worker goes to which node. Pure: the spec and the nodes go in, placement groups come out.

One placement group per worker. Pools stay on nodes of their own where the spec names a ``node_resource``. Where the
topology is known, a decode worker goes to an NVLink domain that a prefill worker is in, so that the handoff can use
the fast link, or at least to its rack or zone. Decode keeps off spot nodes where it can: it holds long traces, which a
node that goes must all move; prefill takes them first.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from cluster.errors import PlacementInfeasible
from cluster.spec.config import ClusterSpec, PoolSettings, Role
from cluster.topology import NodeView

GIB = 1 << 30
POOL_SHARE = 0.001
"""Amount of a pool's custom resource that a worker takes: the resource marks nodes, it does not count workers."""


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """One worker and the placement group it needs.

    ``bundles`` are resource demands by Ray's names, the kind of accelerator included. ``standby``: it waits at first
    (``standby_replicas``).
    """

    worker_id: str
    role: Role
    bundles: tuple[Mapping[str, float], ...]
    strategy: str
    accelerator_type: str | None = None
    standby: bool = False

    @property
    def total(self) -> dict[str, float]:
        """Demand of all bundles together."""
        result: dict[str, float] = {}
        for bundle in self.bundles:
            for name, amount in bundle.items():
                result[name] = result.get(name, 0.0) + amount
        return result


@dataclass(frozen=True, slots=True)
class Assignment:
    """Where each worker goes; a worker without an entry must wait for a node (the autoscaler adds it)."""

    node_of: Mapping[str, str] = field(default_factory=dict)
    waiting: tuple[str, ...] = ()


def worker_plans(spec: ClusterSpec, *, gpus_per_node: int = 8) -> list[WorkerPlan]:
    """The workers a spec asks for, prefill first.

    A worker whose GPUs fit one node is one STRICT_PACK group; a larger one gets a bundle per GPU, packed on as few
    nodes as Ray can, and vLLM's Ray executor runs in it.

    Example:
        >>> from cluster.spec.config import load
        >>> [(plan.worker_id, plan.strategy) for plan in worker_plans(load())]
        [('prefill-0', 'STRICT_PACK'), ('decode-0', 'STRICT_PACK')]
    """
    return [
        replace(
            worker_plan(role, pool, index, gpus_per_node=gpus_per_node, prefix=spec.worker_prefix),
            standby=index >= pool.replicas,
        )
        for role, pool in spec.pools.items()
        for index in range(pool.started_replicas)
    ]


def worker_plan(role: Role, pool: PoolSettings, index: int, *, gpus_per_node: int = 8, prefix: str = "") -> WorkerPlan:
    """The placement group of one worker, whose name begins with ``prefix``."""
    gpus = pool.accelerators_per_worker
    marker = {pool.node_resource: POOL_SHARE} if pool.node_resource else {}
    if pool.accelerator_type:
        # In each bundle: Ray looks for a group's nodes by its bundles alone.
        marker[f"accelerator_type:{pool.accelerator_type}"] = POOL_SHARE
    memory = {"memory": pool.memory_gib_per_worker * GIB} if pool.memory_gib_per_worker else {}
    bundles: tuple[Mapping[str, float], ...]
    if gpus <= gpus_per_node:
        bundles = ({"CPU": pool.cpus_per_worker, **({"GPU": float(gpus)} if gpus else {}), **memory, **marker},)
    else:
        bundles = (
            {"CPU": pool.cpus_per_worker, "GPU": 1.0, **memory, **marker},
            *[{"GPU": 1.0, **marker}] * (gpus - 1),
        )
    return WorkerPlan(
        worker_id=f"{prefix}{role}-{index}",
        role=role,
        bundles=bundles,
        strategy="STRICT_PACK" if len(bundles) == 1 else "PACK",
        accelerator_type=pool.accelerator_type,
    )


def assign(
    plans: Sequence[WorkerPlan],
    nodes: Sequence[NodeView],
    *,
    taken_domains: frozenset[str] = frozenset(),
    may_wait: bool = False,
) -> Assignment:
    """Choose a node for each single-node worker.

    Prefill workers come first; a decode worker prefers a node in an NVLink domain that a prefill worker has, then one
    in its rack or zone. Then: prefill on spot nodes and the others off them, the node with the fewest workers of its
    own role, the one with the least left over.

    Args:
        plans: Workers to place, in order.
        nodes: Nodes with their free resources.
        taken_domains: NVLink domains, racks and zones of prefill workers that run already.
        may_wait: Leave workers that fit nowhere waiting (an autoscaler may bring nodes) in place of an error.

    Raises:
        PlacementInfeasible: a worker fits no node; the text says what it needs and what the largest node has.
    """
    free = _FreeNodes(nodes, taken_domains)
    node_of: dict[str, str] = {}
    waiting: list[str] = []
    for plan in plans:
        if len(plan.bundles) > 1:
            continue  # spans nodes: Ray spreads the bundles itself
        fitting = free.fitting(plan)
        if fitting:
            node_of[plan.worker_id] = chosen = min(fitting, key=partial(free.rank, plan))
            free.take(plan, chosen)
        elif may_wait:
            waiting.append(plan.worker_id)
        else:
            raise PlacementInfeasible(_shortage(plan, plan.total, nodes), worker_id=plan.worker_id)
    return Assignment(node_of, tuple(waiting))


class _FreeNodes:
    """Owns what is left on each node while workers are placed, and where prefill workers are.

    ``domains`` are NVLink domains, racks and zones of prefill workers that run already.
    """

    def __init__(self, nodes: Sequence[NodeView], domains: Iterable[str]) -> None:
        self._nodes = {node.node_id: node for node in nodes}
        self._free = {node.node_id: dict(node.free) for node in nodes}
        self._prefill_domains = set(domains)
        self._roles_on: dict[tuple[str, Role], int] = {}

    def fitting(self, plan: WorkerPlan) -> list[str]:
        """Nodes that have what the worker needs."""
        need = plan.total
        return [node_id for node_id, left in self._free.items() if NodeView(node_id, "", left).fits(need)]

    def rank(self, plan: WorkerPlan, node_id: str) -> tuple[int, bool, int, float, str]:
        """How ill the node suits the worker; the least suits best."""
        node, left = self._nodes[node_id], self._free[node_id]
        far = self._distance(node) if plan.role is Role.DECODE else 0
        ill_placed = node.spot is not (plan.role is Role.PREFILL)
        same_role = self._roles_on.get((node_id, plan.role), 0)
        return (far, ill_placed, same_role, left.get("GPU", 0.0) + left.get("CPU", 0.0) / 1000, node_id)

    def _distance(self, node: NodeView) -> int:
        """From prefill workers: 0 by NVLink, 1 in their rack or zone, 2 elsewhere."""
        if not self._prefill_domains or node.nvlink_domain in self._prefill_domains:
            return 0
        return 1 if node.zone in self._prefill_domains else 2

    def take(self, plan: WorkerPlan, node_id: str) -> None:
        """Place the worker there."""
        self._roles_on[node_id, plan.role] = self._roles_on.get((node_id, plan.role), 0) + 1
        node, left = self._nodes[node_id], self._free[node_id]
        if plan.role is Role.PREFILL:
            self._prefill_domains |= {node.nvlink_domain, node.zone} - {""}
        for name, amount in plan.total.items():
            left[name] = left.get(name, 0.0) - amount


def _shortage(plan: WorkerPlan, need: Mapping[str, float], nodes: Sequence[NodeView]) -> str:
    wanted = ", ".join(f"{amount:g} {name}" for name, amount in need.items())
    if not nodes:
        return f"needs {wanted}, and the cluster has no node"
    best = max(nodes, key=lambda node: sum(node.free.get(name, 0.0) >= amount for name, amount in need.items()))
    lacking = [
        f"{best.free.get(name, 0.0):g} of {amount:g} {name}"
        for name, amount in need.items()
        if best.free.get(name, 0.0) < amount
    ]
    return f"needs {wanted} on one node; the closest of {len(nodes)} nodes has free only {', '.join(lacking) or 'less'}"
