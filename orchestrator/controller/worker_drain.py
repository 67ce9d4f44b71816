"""The controller's side of a drain: announce it to the worker, wait until it is empty or its time is up, stop it.

`baton drain`, a pod's preStop and a worker's own SIGTERM all come here. The gateways move the requests.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from cluster.errors import ConfigError, ServingError
from cluster.internal_rpc import InternalRpc
from cluster.spec.config import SecuritySettings
from orchestrator.controller.background_tasks import BackgroundTasks
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.controller.worker_pool import WorkerPool
from orchestrator.controller.worker_replacement import WorkerReplacement

log = logging.getLogger("baton.controller")

POLL_S = 0.25
EMPTY_POLLS = 2
"""A worker is empty when it was found so this often in a row: a gateway may be about to send the next leg of a move."""


GiveBack = Callable[[Sequence[str]], Awaitable[None]]
"""Takes addresses of nodes that nobody needs."""


class WorkerCalls(Protocol):
    """What a drain needs of the pool: calls of a worker's methods."""

    async def call(self, worker: ManagedWorker, method: str, *arguments: Any) -> Any:
        """Await a method of the worker."""
        ...


class WorkerDrain:
    """One worker being emptied. `run` it; ``progress`` says how far it is."""

    def __init__(self, calls: WorkerCalls, worker: ManagedWorker, timeout_s: float) -> None:
        self._calls = calls
        self._worker = worker
        self._timeout_s = timeout_s
        self.progress = registry_pb2.WorkerDrain(
            worker_id=worker.plan.worker_id, stage=registry_pb2.DRAIN_STAGE_DRAINING
        )

    async def run(self) -> None:
        """Return once the worker is empty, or gone, or its time is up; it still runs."""
        progress, call = self.progress, self._calls.call
        deadline_s = time.monotonic() + self._timeout_s
        empty = 0
        try:
            await call(self._worker, "drain")
            while empty < EMPTY_POLLS:
                load: dict[str, Any] = await call(self._worker, "check_health")
                requests = max(load["legs"], load["running_requests"] + load["waiting_requests"])
                progress.requests_at_start = max(progress.requests_at_start, requests)
                progress.requests, progress.used_blocks = requests, load["used_blocks"]
                # Leases that nobody has read count as used blocks: so a prefill worker waits for its readers.
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


@dataclass(slots=True)
class DrainWork:
    """Workers being drained together. ``task`` ends when all are stopped."""

    drains: list[WorkerDrain]
    task: asyncio.Task[None]


class WorkerDrains:
    """Drains workers of a pool. Owns the drains under way, by way of ``tasks``.

    Args:
        pool: Whose workers.
        replacement: Starts workers in the place of those that are to come back.
        tasks: Where drains run.
        give_back: Called with the nodes that a drained worker leaves empty, so that they and no others go.
    """

    def __init__(
        self,
        pool: WorkerPool,
        replacement: WorkerReplacement,
        tasks: BackgroundTasks,
        *,
        give_back: GiveBack | None = None,
    ) -> None:
        self._pool = pool
        self._replacement = replacement
        self._tasks = tasks
        self._give_back = give_back

    def drain(
        self, worker_ids: Sequence[str], timeout_s: float, *, replace: bool = False, node_leaves: bool = False
    ) -> DrainWork:
        """Empty workers, then stop them; gateways move their requests. Goes on if nobody waits for it.

        Args:
            worker_ids: Workers that are ready or on standby.
            timeout_s: Seconds after which a worker is stopped with what it still has.
            replace: Start a worker in the place of each one.
            node_leaves: Not before its node has left the Ray cluster.

        Raises:
            ConfigError: a worker is not known, not ready, or drains already.
        """
        workers = self._pool.begin_drain(worker_ids, returns=replace)
        drains = [WorkerDrain(self._pool, worker, timeout_s) for worker in workers]

        async def work() -> None:
            await self._pool.publish()
            await asyncio.gather(*(drain.run() for drain in drains))
            await asyncio.gather(*(self._retire(worker, replace, node_leaves) for worker in workers))

        return DrainWork(drains, self._tasks.start(work()))

    async def _retire(self, worker: ManagedWorker, replace: bool, node_leaves: bool) -> None:
        """Stop a drained worker; start another in its place, or leave it be."""
        node_id = worker.handle.node.node_id if worker.handle is not None else None
        hosts = worker.handle.hosts if worker.handle is not None else ()
        await self._pool.retire(worker)
        if replace and not self._pool.stopping:
            await self._pool.publish()
            self._replacement.restart(worker, once_gone=node_id if node_leaves else None)
        elif not replace:
            await self._pool.forget(worker)
            if not node_leaves:
                await self._leave(hosts)

    async def _leave(self, hosts: Sequence[str]) -> None:
        """Give back the nodes that no other worker is on, or starts on."""
        kept = {host for each in self._pool.workers() if each.handle is not None for host in each.handle.hosts}
        if self._give_back is None or self._pool.stopping or not hosts or set(hosts) & kept:
            return
        try:
            await self._give_back(hosts)
        except ServingError as error:
            log.warning("the nodes %s stay: %s", ", ".join(hosts), error)


# --- Registry.Drain and its caller ------------------------------------------------------------------------------


class StartDrains(Protocol):
    """Begins to drain workers, of any models; see `WorkerDrains.drain`."""

    def __call__(
        self, worker_ids: Sequence[str], timeout_s: float, *, replace: bool = False, node_leaves: bool = False
    ) -> Sequence[DrainWork]:
        """What is under way, by model."""
        ...


async def serve_drain(
    request: registry_pb2.DrainRequest, start: StartDrains, default_timeout_s: float
) -> AsyncIterator[registry_pb2.DrainResponse]:
    """`Registry.Drain`: progress until all workers are gone.

    Raises:
        ConfigError: no such worker, or none was named.
    """
    timeout_s = request.timeout_s or default_timeout_s
    if not request.worker_ids:
        raise ConfigError("name at least one worker; `baton status` lists them")
    began_s = time.monotonic()
    works = start(list(request.worker_ids), timeout_s, replace=request.replace, node_leaves=request.node_leaves)

    def report() -> registry_pb2.DrainResponse:
        return registry_pb2.DrainResponse(
            workers=[drain.progress for work in works for drain in work.drains],
            elapsed_s=time.monotonic() - began_s,
            timeout_s=timeout_s,
        )

    tasks = [work.task for work in works]
    while not all(task.done() for task in tasks):
        yield report()
        await asyncio.wait(tasks, timeout=POLL_S)
    for task in tasks:
        task.result()
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
