"""A worker takes another pool's role: `baton role` on one side, the controller's answer on the other."""

from __future__ import annotations

import time

import grpc

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from cluster.errors import ConfigError
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import ClusterSpec, Role, SecuritySettings
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.controller.pair_table import PairTable
from orchestrator.controller.worker_pool import WorkerPool

TIMEOUT_S = 120.0
"""Handshakes with every new peer; one takes a tenth of a second on two cores."""


class RoleChanges:
    """Lets workers take another pool's role. Owns nothing: the pool marks them, the table keeps their pairs.

    Args:
        spec: The cluster.
        pool: Whose workers.
        pairs: Where a worker does its handshake with its new peers.
    """

    def __init__(self, spec: ClusterSpec, pool: WorkerPool, pairs: PairTable) -> None:
        self._spec = spec
        self._pool = pool
        self._pairs = pairs

    async def change_role(self, worker_id: str, role: Role) -> ManagedWorker:
        """Let a ready worker do another pool's work, its engine as it is. Returns once that is published.

        Handshakes with new peers come first; until then the worker serves as before. What it has in its old role moves
        away (decode) or finishes and is read (prefill).

        Raises:
            ConfigError: the worker cannot take the role, or is the last one of its pool.
            ServingError: it cannot exchange KV with a new peer; it keeps its role.
        """
        worker = self._checked(worker_id, role)
        if worker.role is role:
            return worker
        peer_role = Role.DECODE if role is Role.PREFILL else Role.PREFILL
        peers = [
            each
            for each in self._pool.workers()
            if each is not worker
            and each.role is peer_role
            and each.up  # those on standby, too: they will serve with it
            and each.member.revision == worker.member.revision
        ]
        await self._pairs.shake_hands([(worker, peer) if role is Role.PREFILL else (peer, worker) for peer in peers])
        await self._pool.call(worker, "change_role", role.value)
        self._checked(worker_id, role)  # much may have happened meanwhile
        await self._pool.take_role(worker, role)
        return worker

    def _checked(self, worker_id: str, role: Role) -> ManagedWorker:
        """The worker, if it may take the role at this moment."""
        worker = self._pool.find(worker_id)
        if worker is None or worker.member.state != "ready" or worker.draining:
            raise ConfigError(f"{worker_id} is not ready, or unknown; `baton status` lists the workers")
        if Role.COLOCATED in (role, worker.role):
            raise ConfigError("a colocated worker exchanges no KV: only prefill and decode workers change roles")
        if role is worker.role:
            return worker
        if worker.plan.role is Role.PREFILL and not self._spec.changes_roles:
            raise ConfigError(
                f"{worker_id} was started to prefill alone; set autoscaling.enabled and change_roles, with equal "
                "engines in both pools, and start it again"
            )
        rest = [each for each in self._pool.workers() if each.role is worker.role and each.member.state == "ready"]
        if len(rest) < 2:
            raise ConfigError(f"{worker_id} is the last {worker.role} worker; start another one first")
        return worker


async def serve_role_change(
    request: registry_pb2.ChangeRoleRequest, roles: RoleChanges
) -> registry_pb2.ChangeRoleResponse:
    """`Registry.ChangeRole`.

    Raises:
        ConfigError: no such worker or role, or it cannot take it.
    """
    began_s = time.monotonic()
    if request.role not in (Role.PREFILL, Role.DECODE):
        raise ConfigError(f"role {request.role!r}: expected prefill or decode")
    worker = await roles.change_role(request.worker_id, Role(request.role))
    return registry_pb2.ChangeRoleResponse(elapsed_s=time.monotonic() - began_s, pid=worker.member.pid)


async def change_role(
    address: str, worker_id: str, role: Role, *, security: SecuritySettings | None = None
) -> registry_pb2.ChangeRoleResponse:
    """Ask the controller at ``address``.

    Raises:
        ConfigError: the controller is not there, or refused; the text says why.
    """
    rpc = InternalRpc(security)
    async with rpc.channel(address) as channel:
        request = registry_pb2.ChangeRoleRequest(worker_id=worker_id, role=role.value)
        try:
            answer: registry_pb2.ChangeRoleResponse = await registry_pb2_grpc.RegistryStub(channel).ChangeRole(
                request, metadata=rpc.metadata, timeout=TIMEOUT_S
            )
        except grpc.aio.AioRpcError as error:
            raise ConfigError(f"the controller at {address} changed no role: {error.details()}") from error
        return answer
