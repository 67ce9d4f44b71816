"""The registry over gRPC: what it sends to watchers, and how it refuses."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

import grpc
import pytest

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from cluster.errors import ConfigError, WorkerDied
from orchestrator.registry import RegistryService, watch


@contextlib.asynccontextmanager
async def served(service: RegistryService, port: int = 0) -> AsyncIterator[str]:
    server = grpc.aio.server()
    registry_pb2_grpc.add_RegistryServicer_to_server(service, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(0)


async def refusal(service: RegistryService, method: str) -> grpc.aio.AioRpcError:
    requests = {
        "Drain": registry_pb2.DrainRequest(worker_ids=["decode-0"]),
        "ChangeRole": registry_pb2.ChangeRoleRequest(worker_id="decode-0", role="prefill"),
        "CheckAnswers": registry_pb2.CheckAnswersRequest(),
    }
    async with served(service) as address, grpc.aio.insecure_channel(address) as channel:
        call = getattr(registry_pb2_grpc.RegistryStub(channel), method)(requests[method], timeout=20)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            if method == "ChangeRole":
                await call
            else:
                async for _ in call:
                    pass
        return refused.value


@pytest.mark.parametrize("method", ["Drain", "ChangeRole", "CheckAnswers"])
async def test_what_no_controller_serves_is_refused(method: str) -> None:
    assert (await refusal(RegistryService(), method)).code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (ConfigError("no such worker"), grpc.StatusCode.INVALID_ARGUMENT, "no such worker"),
        (WorkerDied("it is gone"), grpc.StatusCode.UNAVAILABLE, "it is gone"),
        (TimeoutError(), grpc.StatusCode.UNAVAILABLE, "the worker does not answer"),
    ],
)
async def test_a_role_that_is_not_changed_says_why(error: Exception, code: grpc.StatusCode, text: str) -> None:
    async def fails(_: registry_pb2.ChangeRoleRequest) -> registry_pb2.ChangeRoleResponse:
        raise error

    refused = await refusal(RegistryService(change_role=fails), "ChangeRole")
    assert refused.code() is code
    assert text in (refused.details() or "")


async def test_a_drain_of_what_is_not_there_says_so() -> None:
    async def fails(_: registry_pb2.DrainRequest) -> AsyncIterator[registry_pb2.DrainResponse]:
        raise ConfigError("decode-0 is unknown")
        yield

    refused = await refusal(RegistryService(fails), "Drain")
    assert (refused.code(), refused.details()) == (grpc.StatusCode.INVALID_ARGUMENT, "decode-0 is unknown")


async def test_reports_without_an_autoscaler_are_taken_and_dropped() -> None:
    async with served(RegistryService()) as address, grpc.aio.insecure_channel(address) as channel:
        answer = await registry_pb2_grpc.RegistryStub(channel).ReportRequests(
            registry_pb2.ReportRequestsRequest(gateway="a", sequence=1), timeout=20
        )
        assert answer == registry_pb2.ReportRequestsResponse()


async def test_a_watcher_follows_changes_and_a_controller_that_starts_again() -> None:
    seen: asyncio.Queue[list[str]] = asyncio.Queue()

    def take(message: registry_pb2.WatchMembersResponse) -> None:
        seen.put_nowait([member.worker_id for member in message.members])

    async def until(wanted: list[str]) -> None:
        async with asyncio.timeout(20):
            while await seen.get() != wanted:
                pass

    async with contextlib.AsyncExitStack() as stack:
        service = RegistryService()
        address = await stack.enter_async_context(served(service))
        watcher = asyncio.create_task(watch(address, take))
        try:
            await until([])
            await service.publish("m", [registry_pb2.Member(worker_id="decode-0")], [])
            await until(["decode-0"])
            await stack.aclose()
            again = RegistryService()
            await again.publish("m", [registry_pb2.Member(worker_id="decode-1")], [])
            async with served(again, int(address.rpartition(":")[2])):
                await until(["decode-1"])
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
