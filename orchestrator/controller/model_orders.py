"""Asking a controller for one more model, or for one fewer; from the command line."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

import grpc

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from cluster.errors import ConfigError
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import SecuritySettings


async def add_model(
    address: str, name: str, entry_yaml: str, security: SecuritySettings | None = None
) -> registry_pb2.AddModelResponse:
    """Have the controller at ``address`` start a model's workers; returns once they serve.

    ``security`` is the spec's: the registry may ask for the cluster's secret.

    Raises:
        ConfigError: the controller is not there, or refused; the text says why.
    """
    request = registry_pb2.AddModelRequest(name=name, entry_yaml=entry_yaml)
    async with _registry(address, security) as (stub, rpc):
        added: registry_pb2.AddModelResponse = await stub.AddModel(request, metadata=rpc.metadata)
        return added


async def remove_model(
    address: str, served_name: str, timeout_s: float, security: SecuritySettings | None = None
) -> AsyncIterator[registry_pb2.DrainResponse]:
    """Have the controller at ``address`` end a model; its progress.

    Raises:
        ConfigError: as `add_model`.
    """
    request = registry_pb2.RemoveModelRequest(served_name=served_name, timeout_s=timeout_s)
    async with _registry(address, security) as (stub, rpc):
        async for progress in stub.RemoveModel(request, metadata=rpc.metadata):
            yield progress


async def list_models(address: str, security: SecuritySettings | None = None) -> registry_pb2.WatchMembersResponse:
    """The models of the controller at ``address``, and their workers.

    Raises:
        ConfigError: the controller is not there.
    """
    async with _registry(address, security) as (stub, rpc):
        watch = stub.WatchMembers(registry_pb2.WatchMembersRequest(), timeout=10, metadata=rpc.metadata)
        found: registry_pb2.WatchMembersResponse = await watch.read()
        watch.cancel()
        return found


@asynccontextmanager
async def _registry(
    address: str, security: SecuritySettings | None
) -> AsyncGenerator[tuple[registry_pb2_grpc.RegistryStub, InternalRpc]]:
    rpc = InternalRpc(security)
    async with rpc.channel(address) as channel:
        try:
            yield registry_pb2_grpc.RegistryStub(channel), rpc
        except grpc.aio.AioRpcError as error:
            raise ConfigError(f"the controller at {address} did not: {error.details()}") from error
