"""The controller: starts the workers that the spec asks for, watches them, replaces those that die.

It decides nothing about requests. Gateways learn the membership from its registry. Pools grow, shrink and exchange
workers here, when somebody says so: an operator, or the autoscaler beside it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import shutil
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from baton.internal.v1 import registry_pb2, registry_pb2_grpc
from cluster.errors import ConfigError, EngineFailed, ServingError, TransferError, WorkerDied
from cluster.internal_rpc import InternalRpc
from cluster.model import model_path
from cluster.placement import WorkerPlan, assign, worker_plans
from cluster.ray_runtime import ProcessId, RayRuntime, WorkerHandle, engine_env
from cluster.spec.config import ClusterSpec, PoolSettings, Role
from kv_transfer.transport import Endpoint, choose, ucx_tls
from orchestrator.controller.autoscaler import LiveAutoscaler
from orchestrator.controller.canary import CanaryDriver
from orchestrator.controller.drain import WorkerDrain, serve_drain
from orchestrator.controller.pool_changes import PoolChanges
from orchestrator.controller.role_change import serve_role_change
from orchestrator.controller.warm_up import WarmUp
from orchestrator.controller.worker_roles import ACTORS, leg_kinds
from orchestrator.node.node_health import LOADED
from orchestrator.policy.silence import CutOff
from orchestrator.policy.standby import Place, exchanges
from orchestrator.registry import RegistryService

log = logging.getLogger("baton.controller")

NODE_LEAVES_TIMEOUT_S = 600.0
"""A node that was said to go away and stays is used again after this long."""
NODE_POLL_S = 5.0
RESTART_BACKOFF_S = (1.0, 5.0, 15.0, 60.0)

PAIR_ROLES = (Role.PREFILL.value, Role.DECODE.value)

GiveBack = Callable[[Sequence[str]], Awaitable[None]]
"""Takes addresses of nodes that nobody needs."""
Progress = Callable[[str, str, str], None]
"""Called with a subject (``ray``, a worker id, a pair), a stage and a detail."""


class Health(Enum):
    """What a worker answers when it is asked how it is."""

    WELL = "well"
    SILENT = "silent"
    LOST = "lost"


@dataclass(slots=True)
class ManagedWorker:
    """One worker of the plan, through all its incarnations."""

    plan: WorkerPlan
    pool: PoolSettings
    handle: WorkerHandle | None = None
    member: registry_pb2.Member = field(default_factory=registry_pb2.Member)
    restarts: int = 0
    processes: list[ProcessId] = field(default_factory=list)
    """The actor and its children, to end what outlives it."""
    draining: bool = False
    """The controller drains it, and decides what becomes of it."""
    role: Role = Role.DECODE
    """What it does at present; the plan says what it was started for, and its name keeps that."""
    since_s: float = field(default_factory=time.monotonic)
    """When it came into its state."""
    load: dict[str, Any] | None = None
    """Its engine's load when it was last asked, at ``load_s`` (monotonic)."""
    load_s: float = 0.0
    unwanted: threading.Event = field(default_factory=threading.Event)
    """It is not to serve, though it has not finished starting."""
    standby: bool = False
    """Once it is ready it waits, and another serves (`orchestrator.policy.standby`)."""
    returns: bool = False
    """It drains, and starts anew."""
    start_failed: bool = False
    """Its last start failed; the next one may, too."""

    @classmethod
    def planned(cls, plan: WorkerPlan, pool: PoolSettings) -> ManagedWorker:
        """A worker that is to be started."""
        return cls(plan, pool, role=plan.role, standby=plan.standby)

    @property
    def up(self) -> bool:
        """Whether it could serve: it is ready, or on standby."""
        return self.member.state in LOADED

    @property
    def on_its_way(self) -> bool:
        """Whether it is being started to serve."""
        given_up = self.draining or self.start_failed or self.unwanted.is_set()
        return not (self.up or self.standby or given_up)


@dataclass(slots=True)
class DrainWork:
    """Workers being drained together. ``task`` ends when all are stopped."""

    drains: list[WorkerDrain]
    task: asyncio.Task[None]


class Controller:
    """Runs the workers of one spec on Ray.

    Args:
        spec: The cluster.
        runtime: Ray.
        on_progress: Told what happens.
        log_folder: Where logs go that must outlive Ray's session.
        give_back: Called with the nodes that a drained worker leaves empty, so that they and no others go.
    """

    def __init__(
        self,
        spec: ClusterSpec,
        runtime: RayRuntime,
        *,
        on_progress: Progress,
        log_folder: Path,
        give_back: GiveBack | None = None,
    ) -> None:
        self._spec = spec
        self._runtime = runtime
        self.say = on_progress
        self._log_folder = log_folder
        self._give_back = give_back
        self._workers: dict[str, ManagedWorker] = {}
        self._pairs: dict[tuple[str, str], registry_pb2.Pair] = {}
        self._warmed: dict[tuple[str, str], tuple[str, str]] = {}
        """Incarnations of the pairs that have shaken hands."""
        self.canary = CanaryDriver(self, spec)
        self._registry = RegistryService(
            lambda request: serve_drain(request, self, spec.drain.timeout_s),
            lambda request: serve_role_change(request, self.changes),
            self.canary.check,
        )
        self.rpc = InternalRpc(spec.security)
        self._server: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._watching: asyncio.Task[None] | None = None
        self._stopping = False
        self.changes = PoolChanges(self, spec, runtime)

    @property
    def worker_pids(self) -> list[int]:
        """Processes of all workers, for a clean-up that must not depend on Ray."""
        return [worker.member.pid for worker in self._workers.values() if worker.member.pid]

    async def serve_registry(self, host: str, port: int = 0) -> str:
        """Start the registry; returns its address."""
        self._server = self.rpc.server()
        registry_pb2_grpc.add_RegistryServicer_to_server(self._registry, self._server)
        bound = self.rpc.bind(self._server, f"{host}:{port}")
        await self._server.start()
        return f"{host}:{bound}"

    def workers(self) -> list[ManagedWorker]:
        """All workers, in order of start."""
        return list(self._workers.values())

    def add(self, plan: WorkerPlan, pool: PoolSettings) -> ManagedWorker:
        """Take a worker up that is to be started."""
        worker = self._workers[plan.worker_id] = ManagedWorker.planned(plan, pool)
        return worker

    async def forget(self, worker: ManagedWorker) -> None:
        """Have a worker be no more, its process having ended."""
        self._workers.pop(worker.plan.worker_id, None)
        await self.publish()

    async def start(self) -> None:
        """Place and start all workers, then warm all pairs.

        Raises:
            ServingError: a worker cannot be placed or started; the text says why.
        """
        model_path.check(self._spec.model.path)
        pools = dict(self._spec.pools.items())
        plans = worker_plans(self._spec)
        assignment = assign(plans, await asyncio.to_thread(self._runtime.nodes), may_wait=True)
        self._workers = {plan.worker_id: ManagedWorker.planned(plan, pools[plan.role]) for plan in plans}
        async with asyncio.TaskGroup() as group:
            for worker in self._workers.values():
                group.create_task(self.start_worker(worker, assignment.node_of.get(worker.plan.worker_id)))
        await self.warm(list(self._workers))
        self._watching = asyncio.create_task(self._watch())
        self.background(self.canary.run())
        if self._spec.autoscaling.enabled:
            autoscaler = LiveAutoscaler(self, self._spec, self._log_folder / "decisions.jsonl")
            self._registry.on_report = autoscaler.on_report
            self.background(autoscaler.run())

    async def stop(self) -> None:
        """Stop all workers in parallel, politely first."""
        self._stopping = True
        for worker in self._workers.values():
            worker.unwanted.set()  # or a wait for a place would outlive this
        if self._watching is not None:
            self._watching.cancel()
        for task in self._tasks:
            task.cancel()

        await asyncio.gather(*(self.end(worker) for worker in self._workers.values()))
        if self._server is not None:
            await self._server.stop(grace=0.5)

    # --- drain ----------------------------------------------------------------------------------------------

    async def call(self, worker: ManagedWorker, method: str, *arguments: Any) -> Any:
        """Await a method of the worker, for at most ``health.silence_timeout_s``.

        Raises:
            WorkerDied: it is gone.
            TimeoutError: it does not answer.
        """
        if worker.handle is None:
            raise WorkerDied("the worker is gone", worker_id=worker.plan.worker_id)
        async with asyncio.timeout(self._spec.health.silence_timeout_s):
            return await self._runtime.call(worker.handle, method, *arguments)

    def drain(
        self, worker_ids: list[str], timeout_s: float, *, replace: bool = False, node_leaves: bool = False
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
        for worker_id in worker_ids:
            known = self._workers.get(worker_id)
            if known is None or not known.up or known.draining:
                state = "unknown" if known is None else "draining" if known.draining else known.member.state or "gone"
                ready = [key for key, each in self._workers.items() if each.up]
                raise ConfigError(f"{worker_id} is {state}; workers that can be drained: {', '.join(ready) or 'none'}")
        workers = [self._workers[worker_id] for worker_id in dict.fromkeys(worker_ids)]
        for worker in workers:
            worker.draining, worker.returns = True, replace
            worker.member.state, worker.since_s = "draining", time.monotonic()
        drains = [WorkerDrain(self, worker, timeout_s) for worker in workers]

        async def work() -> None:
            await self.publish()
            await asyncio.gather(*(drain.run() for drain in drains))
            await asyncio.gather(*(self._retire(worker, replace, node_leaves) for worker in workers))

        return DrainWork(drains, self.background(work()))

    def background(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run it beside; it ends with the controller at the latest."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _retire(self, worker: ManagedWorker, replace: bool, node_leaves: bool) -> None:
        """Stop a drained worker; start another in its place, or leave it be."""
        left = worker.handle.node.node_id if worker.handle is not None and node_leaves else None
        hosts = worker.handle.hosts if worker.handle is not None else ()
        worker.member.state = "lost"
        await self.publish()
        await self.end(worker)
        await self.remove(worker)
        self.say(worker.plan.worker_id, "drained", "a new one starts" if replace else "stopped")
        worker.draining = worker.returns = False
        if replace and not self._stopping:
            await self.publish()
            self.background(self.restart(worker, once_gone=left))
        elif not replace:
            await self.forget(worker)
            if not node_leaves:
                await self._leave(hosts)

    async def _leave(self, hosts: Sequence[str]) -> None:
        """Give back the nodes that no other worker is on, or starts on."""
        kept = {host for worker in self._workers.values() if worker.handle is not None for host in worker.handle.hosts}
        if self._give_back is None or self._stopping or not hosts or set(hosts) & kept:
            return
        try:
            await self._give_back(hosts)
        except ServingError as error:
            log.warning("the nodes %s stay: %s", ", ".join(hosts), error)

    async def end(self, worker: ManagedWorker) -> None:
        """Have a worker stop by itself."""
        if worker.handle is None:
            return
        self.say(worker.plan.worker_id, "stopping", "")
        try:
            async with asyncio.timeout(10):
                await self._runtime.call(worker.handle, "stop")
        except (ServingError, TimeoutError) as error:
            log.warning("worker %s did not stop by itself: %s", worker.plan.worker_id, error)

    async def remove(self, worker: ManagedWorker) -> None:
        """Give a worker's resources back, and end what is left of its processes."""
        if worker.handle is not None:
            handle, worker.handle = worker.handle, None
            processes, worker.processes = worker.processes, []
            await asyncio.to_thread(self._runtime.remove, handle, processes)

    # --- one worker -----------------------------------------------------------------------------------------

    async def start_worker(self, worker: ManagedWorker, node_id: str | None = None) -> None:
        """Place a worker and load its engine; it is not ready before `warm`.

        Raises:
            ServingError: it could not be placed or started; the text says why.
        """
        plan, pool, spec = worker.plan, worker.pool, self._spec
        self.say(plan.worker_id, "placing", "")
        on_cpu = pool.accelerators_per_worker == 0
        handle = await asyncio.to_thread(
            self._runtime.create,
            plan,
            ACTORS[plan.role],
            lambda host: (spec, pool, plan.worker_id, host, leg_kinds),
            env=engine_env(
                on_cpu=on_cpu,
                omp_threads=pool.omp_threads,
                kv_cache_gib=pool.engine.cpu_kv_cache_gib,
                ucx_tls=ucx_tls(spec.transfer.transports, on_cpu=on_cpu),
            ),
            node_id=node_id,
            cancelled=worker.unwanted,
        )
        worker.handle = handle
        self.say(plan.worker_id, "loading", f"on {self._runtime.host_of(handle.node)}")
        started_s = time.monotonic()
        try:
            facts = await self._runtime.call(handle, "start")
        except (ServingError, TimeoutError) as error:
            folder = self._keep_logs()
            raise EngineFailed(f"{plan.worker_id} did not start: {error}; its logs are in {folder}") from error
        worker.member = registry_pb2.Member(
            worker_id=plan.worker_id,
            role=worker.role.value,
            state="starting",
            address=facts["address"],
            metrics_address=facts["metrics_address"],
            incarnation=facts["engine"]["incarnation"],
            node=handle.node.node_id[:12],
            domain=handle.node.domain,
            accelerator="cpu" if on_cpu else (handle.node.gpu or pool.accelerator_type or "gpu"),
            total_blocks=facts["engine"]["total_blocks"],
            block_size_tokens=facts["engine"]["block_size_tokens"],
            pid=facts["pid"],
            accelerators=pool.accelerators_per_worker,
            cpus=pool.cpus_per_worker,
            revision=facts["engine"]["version"],
            spot=handle.node.spot,
            attention_kernels=facts["engine"]["attention_kernels"],
            vocab_size=facts["engine"]["vocab_size"],
            max_model_len_tokens=facts["engine"]["max_model_len_tokens"],
        )
        worker.processes = facts["processes"]
        kernels = ", ".join(worker.member.attention_kernels)
        self.say(
            plan.worker_id, "loaded", f"{time.monotonic() - started_s:.0f} s" + (f", {kernels}" if kernels else "")
        )

    def _keep_logs(self) -> Path:
        """Copy Ray's logs to where they outlive the session."""
        if self._runtime.session_folder is not None:
            source = self._runtime.session_folder / "session_latest" / "logs"
            shutil.copytree(source, self._log_folder / "ray", dirs_exist_ok=True, ignore_dangling_symlinks=True)
        return self._log_folder

    # --- pairs ----------------------------------------------------------------------------------------------

    def _endpoint(self, worker: ManagedWorker) -> Endpoint:
        assert worker.handle is not None
        node = worker.handle.node
        return Endpoint(
            worker.plan.worker_id,
            node.host,
            on_cpu=worker.pool.accelerators_per_worker == 0,
            nvlink_domain=node.nvlink_domain,
            rdma=node.rdma,
        )

    async def warm(self, new: list[str]) -> None:
        """Warm pairs that have a new worker in them; then the new ones that compute rightly are ready, or on standby.

        Raises:
            EngineFailed: those that do not leave too few to serve; the text says how they were found out.
        """
        started = {
            key: worker for key, worker in self._workers.items() if worker.member.state == "starting" or worker.up
        }
        prefills = [worker for worker in started.values() if worker.role is Role.PREFILL]
        decodes = [worker for worker in started.values() if worker.role is Role.DECODE]
        warm_up = WarmUp({key: worker.member for key, worker in started.items()}, self.rpc)
        try:
            for worker_id in new:
                if started[worker_id].role is Role.COLOCATED:
                    await warm_up.alone(worker_id)
            for prefill, decode in itertools.product(prefills, decodes):
                if not {prefill.plan.worker_id, decode.plan.worker_id} & set(new):
                    continue
                if prefill.member.revision == decode.member.revision:
                    await self.warm_pair(warm_up, prefill, decode)
                else:
                    log.warning(
                        "%s runs %s and %s runs %s: not paired",
                        prefill.plan.worker_id, prefill.member.revision, decode.plan.worker_id, decode.member.revision,
                    )  # fmt: skip
        finally:
            await warm_up.close()
        refused = await self.canary.admit(new)
        for worker_id in new:
            if worker_id in refused:
                self.say(worker_id, "faulty", refused[worker_id])
                continue
            state = "standby" if started[worker_id].standby else "ready"
            started[worker_id].member.state, started[worker_id].since_s = state, time.monotonic()
            started[worker_id].start_failed = False
            self.canary.serve(worker_id)
            self.say(worker_id, state, started[worker_id].member.address)
        await self.publish()
        if refused and (len(new) == 1 or not self._can_serve()):
            raise EngineFailed("; ".join(dict.fromkeys(refused.values())))
        for worker_id in refused:
            await self._replace(started[worker_id])

    def _can_serve(self) -> bool:
        roles = {worker.role for worker in self._workers.values() if worker.up}
        return Role.COLOCATED in roles or {Role.PREFILL, Role.DECODE} <= roles

    async def warm_pair(self, warm_up: WarmUp, prefill: ManagedWorker, decode: ManagedWorker) -> None:
        """Have a pair shake hands, unless it has.

        Raises:
            ServingError: it cannot exchange KV.
        """
        names = (prefill.plan.worker_id, decode.plan.worker_id)
        incarnations = (prefill.member.incarnation, decode.member.incarnation)
        if self._warmed.get(names) == incarnations:
            return  # before one of them changed its role
        transport = choose(self._endpoint(prefill), self._endpoint(decode), self._spec.transfer.transports)
        if transport is None:
            raise TransferError(
                f"{names[0]} and {names[1]} share no allowed transport; add one to transfer.transports "
                "or place them nearer"
            )
        handshake_s = await warm_up.pair(*names)
        self._warmed[names] = incarnations
        self._pairs[names] = registry_pb2.Pair(
            prefill=names[0], decode=names[1], transport=transport.value, handshake_s=handshake_s
        )
        log.info("pair %s -> %s: %s, handshake %.3f s", *names, transport.value, handshake_s)
        self.say(f"{names[0]} → {names[1]}", "paired", f"{transport.value}, handshake {handshake_s * 1000:.0f} ms")

    async def publish(self) -> None:
        """Tell the gateways what workers there are, once those on standby have filled the places that they can."""
        self._fill_places()
        members = [worker.member for worker in self._workers.values() if worker.member.incarnation]
        roles = {member.worker_id: member.role for member in members}
        self._pairs = {names: pair for names, pair in self._pairs.items() if set(names) <= set(self._workers)}
        pairs = [
            pair for pair in self._pairs.values() if (roles.get(pair.prefill), roles.get(pair.decode)) == PAIR_ROLES
        ]
        for pair in pairs:
            pair.refused = (pair.prefill, pair.decode) in self.canary.core.refused
        starting = sum(worker.on_its_way and worker.role is not Role.PREFILL for worker in self._workers.values())
        await self._registry.publish(members, pairs, starting, self.canary.report())

    def _fill_places(self) -> None:
        places = [
            Place(worker.plan.worker_id, worker.role, worker.standby, worker.up)
            for worker in self._workers.values()
            if not worker.unwanted.is_set() and (worker.returns or not worker.draining)
        ]
        for exchange in exchanges(places):
            promoted, replaced = self._workers[exchange.promoted], self._workers[exchange.replaced]
            promoted.standby, replaced.standby = False, True
            promoted.member.state, promoted.since_s = "ready", time.monotonic()
            log.info("%s serves in the place of %s", exchange.promoted, exchange.replaced)
            self.say(exchange.promoted, "ready", f"from standby, in the place of {exchange.replaced}")

    # --- health ---------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        cut_off = CutOff(self._spec.health.silence_timeout_s)
        while True:
            await asyncio.sleep(self._spec.health.interval_s)
            ready = [worker for worker in self._workers.values() if worker.up]
            found = await asyncio.gather(*(self._health(worker) for worker in ready))
            silent = sum(each is Health.SILENT for each in found)
            if cut_off.observe(time.monotonic(), heard=Health.WELL in found, silent=silent):
                log.warning("no worker answers: this host is cut off, or all of them are; none is replaced yet")
                continue
            for worker, health in zip(ready, found, strict=True):
                if health is not Health.WELL and worker.up and not self._stopping and not worker.draining:
                    await self._replace(worker)

    async def _health(self, worker: ManagedWorker) -> Health:
        try:
            load = await self.call(worker, "check_health")
        except TimeoutError:
            log.error("worker %s does not answer", worker.plan.worker_id)
            return Health.SILENT
        except ServingError as error:
            log.error("worker %s is lost: %s", worker.plan.worker_id, error)
            return Health.LOST
        worker.load, worker.load_s = load, time.monotonic()
        if load["draining"] and not worker.draining:
            log.warning("worker %s was told to end; it is drained and replaced", worker.plan.worker_id)
            self.drain([worker.plan.worker_id], self._spec.drain.timeout_s, replace=True)
        return Health.WELL

    async def _replace(self, worker: ManagedWorker) -> None:
        worker.member.state = "lost"
        await self.publish()
        self.say(worker.plan.worker_id, "lost", "a new one starts")
        self.background(self.restart(worker))

    async def take_out(self, worker_id: str, sentence: str) -> None:
        """Stop a worker that computes wrongly, at once: what it had is prefilled again elsewhere from the ledger.

        Its KV moves nowhere, and what other workers read from it they drop.
        """
        worker = self._workers.get(worker_id)
        if worker is None or self._stopping or not (worker.up or worker.draining):
            return
        self.say(worker_id, "faulty", sentence)
        if worker.draining:  # who drains it stops it; gateways are to move nothing meanwhile
            worker.member.state = "lost"
            await self.publish()
        else:
            await self._replace(worker)
        if worker.role is not Role.COLOCATED:
            readers = [key for key, each in self._workers.items() if each.up and each.role is Role.DECODE]
            self.background(self.forget_kv(readers))

    async def forget_kv(self, worker_ids: Sequence[str]) -> None:
        """Have workers drop KV that may be wrong. Their running requests compute theirs again, and no token changes."""
        for worker_id in worker_ids:
            worker = self._workers.get(worker_id)
            try:
                if worker is not None and worker.up:
                    await self.call(worker, "forget_kv")
            except (ServingError, TimeoutError) as error:
                log.error("worker %s keeps KV that may be wrong, and is replaced: %s", worker_id, error)
                await self._replace(worker)  # type: ignore[arg-type]

    async def restart(self, worker: ManagedWorker, *, once_gone: str | None = None) -> None:
        """Start a worker anew, as often as it takes; ``once_gone`` is a node that must have left before."""
        if once_gone is not None:
            await self._until_gone(once_gone)
        while not self._stopping:
            await self.remove(worker)
            backoff = RESTART_BACKOFF_S[min(worker.restarts, len(RESTART_BACKOFF_S) - 1)]
            worker.restarts += 1
            await asyncio.sleep(backoff)
            try:
                await self.start_worker(worker)
                await self.warm([worker.plan.worker_id])
            except (ServingError, WorkerDied) as error:
                log.error("worker %s could not be replaced, next try follows: %s", worker.plan.worker_id, error)
                worker.start_failed = True
                await self.publish()
                continue
            return

    async def _until_gone(self, node_id: str) -> None:
        """Wait for a node to leave, or Ray would place the new worker on it again."""
        for _ in range(int(NODE_LEAVES_TIMEOUT_S / NODE_POLL_S)):
            if node_id not in {node.node_id for node in await asyncio.to_thread(self._runtime.nodes)}:
                return
            await asyncio.sleep(NODE_POLL_S)
