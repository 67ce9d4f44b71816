"""Membership: the controller says which workers there are, gateways listen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import grpc

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from baton.v1 import cluster_pb2
from cluster.errors import ConfigError, ServingError
from cluster.internal_rpc import InternalRpc

DrainHandler = Callable[[registry_pb2.DrainRequest], AsyncIterator[registry_pb2.DrainResponse]]
RoleHandler = Callable[[registry_pb2.ChangeRoleRequest], Awaitable[registry_pb2.ChangeRoleResponse]]
CheckHandler = Callable[[], AsyncIterator[registry_pb2.CheckAnswersResponse]]
AddHandler = Callable[[registry_pb2.AddModelRequest], Awaitable[registry_pb2.AddModelResponse]]
RemoveHandler = Callable[[registry_pb2.RemoveModelRequest], AsyncIterator[registry_pb2.DrainResponse]]
ReportHandler = Callable[[registry_pb2.ReportRequestsRequest], registry_pb2.ReportRequestsResponse]

log = logging.getLogger("baton.registry")


class RegistryService(registry_pb2_grpc.RegistryServicer):
    """Holds the membership and sends it to all watchers, at once and after every change.

    Args:
        drain: Serves ``Drain``; without it, the call is refused.
        change_role: Serves ``ChangeRole``, likewise.
        check: Serves ``CheckAnswers``, likewise.
        add_model: Serves ``AddModel``, likewise.
        remove_model: Serves ``RemoveModel``, likewise.
    """

    def __init__(
        self,
        drain: DrainHandler | None = None,
        change_role: RoleHandler | None = None,
        check: CheckHandler | None = None,
        add_model: AddHandler | None = None,
        remove_model: RemoveHandler | None = None,
    ) -> None:
        self._drain = drain
        self._change_role = change_role
        self._check = check
        self._add_model = add_model
        self._remove_model = remove_model
        self.on_report: dict[str, ReportHandler] = {}
        """Serve ``ReportRequests``, by model; reports about others are taken and dropped."""
        self._by_model: dict[str, registry_pb2.WatchMembersResponse] = {}
        self._entries: list[registry_pb2.ModelEntry] = []
        self._current = registry_pb2.WatchMembersResponse()
        self._changed = asyncio.Condition()
        self._version = 0

    async def publish(
        self,
        model: str,
        members: list[registry_pb2.Member],
        pairs: list[registry_pb2.Pair],
        starting_decode_workers: int = 0,
        canary: cluster_pb2.CanaryReport | None = None,
    ) -> None:
        """Replace one model's part of the membership."""
        async with self._changed:
            self._by_model[model] = registry_pb2.WatchMembersResponse(
                members=members,
                pairs=pairs,
                starting_decode_workers=starting_decode_workers,
                canary=canary,
                starting_by_model={model: starting_decode_workers},
            )
            self._show()

    async def publish_models(self, entries: Sequence[registry_pb2.ModelEntry]) -> None:
        """Replace the list of models; what others had in the membership is forgotten."""
        async with self._changed:
            self._entries = list(entries)
            names = {entry.served_name for entry in entries}
            for gone in self._by_model.keys() - names:
                del self._by_model[gone]
                self.on_report.pop(gone, None)
            self._show()

    def _show(self) -> None:
        self._current = together(self._by_model.values())
        self._current.models.extend(self._entries)
        self._version += 1
        self._changed.notify_all()

    async def WatchMembers(  # noqa: N802, D102
        self, request: registry_pb2.WatchMembersRequest, context: Any
    ) -> AsyncIterator[registry_pb2.WatchMembersResponse]:
        seen = -1
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda seen=seen: self._version != seen)  # type: ignore[misc]
                seen, current = self._version, self._current
            yield current

    async def Drain(  # noqa: N802, D102
        self, request: registry_pb2.DrainRequest, context: Any
    ) -> AsyncIterator[registry_pb2.DrainResponse]:
        if self._drain is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this registry has no controller that drains")
            return
        try:
            async for progress in self._drain(request):
                yield progress
        except ConfigError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)

    async def ChangeRole(  # noqa: N802, D102
        self, request: registry_pb2.ChangeRoleRequest, context: Any
    ) -> registry_pb2.ChangeRoleResponse:
        if self._change_role is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this registry has no controller that changes roles")
            raise AssertionError
        try:
            return await self._change_role(request)
        except ConfigError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
        except (ServingError, TimeoutError) as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error) or "the worker does not answer")
        raise AssertionError

    async def CheckAnswers(  # noqa: N802, D102
        self, request: registry_pb2.CheckAnswersRequest, context: Any
    ) -> AsyncIterator[registry_pb2.CheckAnswersResponse]:
        if self._check is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this registry has no controller that asks workers")
            return
        async for row in self._check():
            yield row

    async def AddModel(  # noqa: N802, D102
        self, request: registry_pb2.AddModelRequest, context: Any
    ) -> registry_pb2.AddModelResponse:
        if self._add_model is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this registry has no controller that adds models")
            raise AssertionError
        try:
            return await self._add_model(request)
        except ConfigError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)
        except (ServingError, TimeoutError) as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error) or "a worker does not answer")
        raise AssertionError

    async def RemoveModel(  # noqa: N802, D102
        self, request: registry_pb2.RemoveModelRequest, context: Any
    ) -> AsyncIterator[registry_pb2.DrainResponse]:
        if self._remove_model is None:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this registry has no controller that removes models")
            return
        try:
            async for progress in self._remove_model(request):
                yield progress
        except ConfigError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, error.message)

    async def ReportRequests(  # noqa: N802, D102
        self, request: registry_pb2.ReportRequestsRequest, context: Any
    ) -> registry_pb2.ReportRequestsResponse:
        model = request.model or next(iter(self.on_report), "")
        on_report = self.on_report.get(model)
        return on_report(request) if on_report is not None else registry_pb2.ReportRequestsResponse()


def together(parts: Iterable[registry_pb2.WatchMembersResponse]) -> registry_pb2.WatchMembersResponse:
    """The membership of several models."""
    whole = registry_pb2.WatchMembersResponse()
    starting, tolerance_nat, has_reference = 0, 0.0, True
    for part in parts:
        whole.MergeFrom(part)
        starting += part.starting_decode_workers
        if part.HasField("canary"):
            tolerance_nat = max(tolerance_nat, part.canary.tolerance_nat)
            has_reference = has_reference and part.canary.has_reference
    whole.starting_decode_workers = starting
    if whole.HasField("canary"):
        whole.canary.tolerance_nat, whole.canary.has_reference = tolerance_nat, has_reference
    return whole


async def watch(
    address: str,
    on_members: Callable[[registry_pb2.WatchMembersResponse], None],
    rpc: InternalRpc | None = None,
) -> None:
    """Follow the controller at ``address`` for ever, through its restarts.

    While the controller is away the last membership stands: workers that live go on serving.
    """
    rpc = rpc or InternalRpc()
    async with rpc.channel(address) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)
        while True:
            try:
                async for message in stub.WatchMembers(
                    registry_pb2.WatchMembersRequest(), wait_for_ready=True, metadata=rpc.metadata
                ):
                    on_members(message)
            except grpc.aio.AioRpcError as error:
                log.warning("controller not reachable (%s); going on with the members known", error.code().name)
            await asyncio.sleep(0.5)
