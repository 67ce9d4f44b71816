"""A worker takes another pool's role: `baton role` on one side, the controller's answer on the other."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import grpc

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from cluster.errors import ConfigError
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import Role, SecuritySettings

if TYPE_CHECKING:
    from orchestrator.controller.pool_changes import PoolChanges

TIMEOUT_S = 120.0
"""Handshakes with every new peer; one takes a tenth of a second on two cores."""


async def serve_role_change(
    request: registry_pb2.ChangeRoleRequest, changes: PoolChanges
) -> registry_pb2.ChangeRoleResponse:
    """`Registry.ChangeRole`.

    Raises:
        ConfigError: no such worker or role, or it cannot take it.
    """
    began_s = time.monotonic()
    if request.role not in (Role.PREFILL, Role.DECODE):
        raise ConfigError(f"role {request.role!r}: expected prefill or decode")
    worker = await changes.change_role(request.worker_id, Role(request.role))
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
