"""The controller's side of a drain: tell the worker, wait until it is empty or the time is up, stop it.

`baton drain`, a pod's preStop and a worker's own SIGTERM all come here. The gateways move the requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import grpc

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from cluster.errors import ConfigError, ServingError
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import SecuritySettings

if TYPE_CHECKING:
    from orchestrator.controller.controller import Controller, ManagedWorker

log = logging.getLogger("baton.controller")

POLL_S = 0.25
EMPTY_POLLS = 2
"""A worker is empty when it was found so this often in a row: a gateway may be about to send the next leg of a move."""


class WorkerDrain:
    """One worker being emptied. `run` it; ``progress`` tells how far it is."""

    def __init__(self, controller: Controller, worker: ManagedWorker, timeout_s: float) -> None:
        self._controller = controller
        self._worker = worker
        self._timeout_s = timeout_s
        self.progress = registry_pb2.WorkerDrain(
            worker_id=worker.plan.worker_id, stage=registry_pb2.DRAIN_STAGE_DRAINING
        )

    async def run(self) -> None:
        """Return once the worker is empty, or gone, or its time is up; it still runs."""
        progress, call = self.progress, self._controller.call
        deadline_s = time.monotonic() + self._timeout_s
        empty = 0
        try:
            await call(self._worker, "drain")
            while empty < EMPTY_POLLS:
                load: dict[str, Any] = await call(self._worker, "check_health")
                requests = max(load["legs"], load["running_requests"] + load["waiting_requests"])
                progress.requests_at_start = max(progress.requests_at_start, requests)
                progress.requests, progress.used_blocks = requests, load["used_blocks"]
                # Leases that nobody has read count as used blocks: this is how a prefill worker waits for its readers.
                empty = empty + 1 if not requests and not load["used_blocks"] else 0
                if time.monotonic() >= deadline_s:
                    progress.stage = registry_pb2.DRAIN_STAGE_TIMED_OUT
                    return
                await asyncio.sleep(POLL_S)
        except (ServingError, TimeoutError) as error:
            log.error("worker %s died while it drained: %s", progress.worker_id, error)
            progress.stage = registry_pb2.DRAIN_STAGE_LOST
            return
        progress.stage = registry_pb2.DRAIN_STAGE_DRAINED


async def serve_drain(
    request: registry_pb2.DrainRequest, controller: Controller, default_timeout_s: float
) -> AsyncIterator[registry_pb2.DrainResponse]:
    """`Registry.Drain`: progress until all workers are gone.

    Raises:
        ConfigError: no such worker, or none was named.
    """
    timeout_s = request.timeout_s or default_timeout_s
    if not request.worker_ids:
        raise ConfigError("name at least one worker; `baton status` lists them")
    began_s = time.monotonic()
    work = controller.drain(
        list(request.worker_ids), timeout_s, replace=request.replace, node_leaves=request.node_leaves
    )

    def report() -> registry_pb2.DrainResponse:
        return registry_pb2.DrainResponse(
            workers=[drain.progress for drain in work.drains],
            elapsed_s=time.monotonic() - began_s,
            timeout_s=timeout_s,
        )

    while not work.task.done():
        yield report()
        await asyncio.wait([work.task], timeout=POLL_S)
    work.task.result()
    yield report()


async def drain_workers(
    address: str,
    choose: Callable[[Sequence[registry_pb2.Member]], Sequence[str]],
    *,
    timeout_s: float,
    replace: bool,
    node_leaves: bool,
    security: SecuritySettings | None = None,
) -> AsyncIterator[registry_pb2.DrainResponse]:
    """Ask the controller at ``address`` to drain the workers that ``choose`` picks from the members; its progress.

    Ends at once if it picks none. ``security`` is the spec's: the registry may ask for the cluster's secret.

    Raises:
        ConfigError: the controller is not there, or knows no such worker.
    """
    rpc = InternalRpc(security)
    async with rpc.channel(address) as channel:
        stub = registry_pb2_grpc.RegistryStub(channel)
        try:
            watch = stub.WatchMembers(registry_pb2.WatchMembersRequest(), timeout=10, metadata=rpc.metadata)
            members = (await watch.read()).members
            watch.cancel()
            chosen = list(choose(members))
            if not chosen:
                return
            request = registry_pb2.DrainRequest(
                worker_ids=chosen, timeout_s=timeout_s, replace=replace, node_leaves=node_leaves
            )
            async for progress in stub.Drain(request, metadata=rpc.metadata):
                yield progress
        except grpc.aio.AioRpcError as error:
            raise ConfigError(f"the controller at {address} did not drain: {error.details()}") from error
