"""The workers of a simulated cluster: starting, ready, draining, gone; and the router's view of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from cluster.errors import ConfigError
from cluster.spec.config import Role
from orchestrator.policy.router import WorkerView
from orchestrator.policy.scaling_policy import WorkerStatus
from orchestrator.policy.standby import Place, exchanges
from planner.simulator.cost import StepTable, TransferCost
from planner.simulator.engine import Engine
from planner.simulator.engine_owner import EngineOwner
from planner.simulator.gaps import GapHistogram
from planner.simulator.kernel import Kernel
from planner.simulator.profile import EngineProfile


@dataclass(frozen=True)
class PoolSpec:
    """Workers of one role and kind.

    Args:
        role: What they do.
        profile: What they are.
        replicas: Workers that are ready at the start.
        start_s: Seconds from the decision to start one until it serves.
        domain: NVLink domain; workers of one domain use ``FleetSpec.domain_transfer`` among themselves.
        standby_replicas: Workers beyond ``replicas`` that are ready at the start and get no requests.
    """

    role: Role
    profile: EngineProfile
    replicas: int
    start_s: float = 60.0
    domain: str = ""
    standby_replicas: int = 0


@dataclass(frozen=True)
class FleetSpec:
    """All pools, and what lies between them.

    Args:
        pools: At least one worker must come of them.
        transfer: KV between two workers.
        domain_transfer: KV within one NVLink domain; left out, the same.
        local_prefill_below_tokens: As in the cluster spec.
        local_prefill_after_s: As in the cluster spec; left out, decode never helps an overloaded prefill pool.
    """

    pools: Sequence[PoolSpec]
    transfer: TransferCost
    domain_transfer: TransferCost | None = None
    local_prefill_below_tokens: int = 0
    local_prefill_after_s: float | None = None

    def __post_init__(self) -> None:
        if not self.pools:
            raise ConfigError("fleet.pools: at least one pool is needed")
        sizes = {pool.profile.block_size_tokens for pool in self.pools}
        if len(sizes) > 1:
            raise ConfigError(f"fleet.pools: block_size_tokens differs ({sorted(sizes)}); make it equal")


@dataclass(slots=True, eq=False)
class Worker:
    """One worker. ``state`` is starting, ready, draining or gone; on ``standby`` it waits though it is ready."""

    number: int
    worker_id: str
    role: Role
    pool: PoolSpec
    launched_s: float
    state: str = "starting"
    since_s: float = 0.0
    stopped_s: float = -1.0
    incarnations: int = 0
    engine: Engine | None = None
    migrate: bool = False
    standby: bool = False
    exports: int = 0
    gaps: GapHistogram = field(default_factory=GapHistogram)

    @property
    def incarnation(self) -> str:
        """Name of the engine process."""
        return f"{self.worker_id}#{self.incarnations}"


class Fleet:
    """Owns the workers and what is known of them. What their legs mean is not known here."""

    def __init__(
        self,
        kernel: Kernel,
        spec: FleetSpec,
        *,
        unit_tokens: int,
        slow_gap_s: float,
    ) -> None:
        self.spec = spec
        self.workers: dict[str, Worker] = {}
        self._kernel = kernel
        self._unit_tokens = unit_tokens
        self._slow_gap_s = slow_gap_s
        self._tables: dict[int, StepTable] = {}
        self._rates: dict[int, float] = {}
        self._serving: list[Worker] = []

    def start(self, owner: EngineOwner, *, on_ready: Callable[[Worker], None], on_promoted: Callable[[], None]) -> None:
        """Launch the workers that are ready at the start.

        Args:
            owner: What the engines report to.
            on_ready: A worker has loaded.
            on_promoted: A worker on standby serves.
        """
        self._owner, self._on_ready, self._on_promoted = owner, on_ready, on_promoted
        for pool in self.spec.pools:
            for index in range(pool.replicas + pool.standby_replicas):
                self.launch(pool, pool.role, 0.0, standby=index >= pool.replicas)

    def pool_of(self, role: Role, kind: str = "") -> PoolSpec:
        """The pool to start a worker of.

        Raises:
            ConfigError: there is none of that role and kind; any pool of that kind does for a role not listed.
        """
        for pool in self.spec.pools:
            if pool.role is role and kind in ("", pool.profile.name):
                return pool
        raise ConfigError(f"fleet.pools: no pool with role {role.value} and kind {kind or 'any'}")

    def launch(self, pool: PoolSpec, role: Role, delay_s: float, *, standby: bool = False) -> Worker:
        """Start a worker; it is ready after ``delay_s``. One on standby serves in its place, if there is any."""
        number = len(self.workers)
        count = sum(worker.role is role for worker in self.workers.values())
        worker_id = f"{role.value}-{count}"
        while worker_id in self.workers:
            count += 1
            worker_id = f"{role.value}-{count}"
        worker = Worker(number, worker_id, role, pool, self._kernel.now_s, since_s=self._kernel.now_s)
        worker.standby = standby
        self.workers[worker_id] = worker
        if delay_s > 0:
            self._kernel.at(self._kernel.now_s + delay_s, self._ready, worker)
        else:
            self._ready(worker)
        self._fill_places()
        return worker

    def fail(self, worker: Worker) -> bool:
        """The process dies; another starts in its place after the pool's start-up time.

        Returns:
            Whether one on standby serves from here on: `on_promoted` is not called, since requests that were
            on the dead worker come first.
        """
        self._stop_engine(worker)
        worker.state, worker.since_s = "starting", self._kernel.now_s
        self._kernel.at(self._kernel.now_s + worker.pool.start_s, self._ready, worker)
        return self._exchange()

    def drain(self, worker: Worker, migrate: bool) -> None:
        """Give it nothing new. A worker that has not started yet is simply dropped."""
        if worker.state == "starting":
            self._gone(worker)
        elif worker.state == "ready":
            worker.state, worker.since_s, worker.migrate = "draining", self._kernel.now_s, migrate

    def settle(self, worker: Worker) -> bool:
        """Stop a draining worker if it is empty; whether it is gone."""
        engine = worker.engine
        if worker.state == "draining" and engine is not None:
            if engine.requests or worker.exports or engine.unclaimed_blocks:
                return False
            self._stop_engine(worker)
            self._gone(worker)
        return worker.state == "gone"

    def views(self) -> list[WorkerView]:
        """Every worker that serves, as the router sees it at this instant."""
        return [self._view(worker) for worker in self._serving]

    def status(self) -> list[WorkerStatus]:
        """Every worker that is not gone, those on standby left out: policies decide about workers that serve."""
        return [
            WorkerStatus(self._view(each), each.pool.profile.name, each.state, each.since_s, each.pool.profile.gpus)
            for each in self.workers.values()
            if each.state != "gone" and not each.standby
        ]

    def gpu_s(self) -> float:
        """GPU-seconds from launch to stop, start-up included."""
        now_s = self._kernel.now_s
        return sum(
            worker.pool.profile.gpus * ((worker.stopped_s if worker.stopped_s >= 0 else now_s) - worker.launched_s)
            for worker in self.workers.values()
        )

    def transfer_work_s(self, source: Worker, target: Worker, kv_bytes: int) -> float:
        """Seconds of an idle link that a transfer takes."""
        near = self.spec.domain_transfer
        same = source.pool.domain == target.pool.domain and source.pool.domain != ""
        return (near if near is not None and same else self.spec.transfer).transfer_s(kv_bytes)

    def gaps(self) -> GapHistogram:
        """Gaps between tokens on all workers so far."""
        total = GapHistogram()
        for worker in self.workers.values():
            total.merge(worker.gaps)
            if worker.engine is not None:
                worker.engine.sync()
                total.merge(worker.engine.batch.gaps)
        return total

    def _ready(self, worker: Worker) -> None:
        if worker.state == "gone":
            return
        worker.state, worker.since_s = "ready", self._kernel.now_s
        worker.incarnations += 1
        profile = worker.pool.profile
        table = self._tables.setdefault(id(profile.decode), StepTable(profile.decode))
        worker.engine = Engine(
            self._kernel,
            self._owner,
            profile,
            worker.worker_id,
            unit_tokens=self._unit_tokens,
            slow_gap_s=self._slow_gap_s,
            table=table,
        )
        self._rates.setdefault(id(profile), profile.prefill_tokens_per_s)
        self._serving = [each for each in self.workers.values() if each.engine is not None]
        self._fill_places()
        self._on_ready(worker)

    def _fill_places(self) -> None:
        if self._exchange():
            self._on_promoted()

    def _exchange(self) -> bool:
        """Have workers on standby serve where they are to; whether one does from here on."""
        found = exchanges(
            Place(each.worker_id, each.role, each.standby, each.state == "ready")
            for each in self.workers.values()
            if each.state in ("starting", "ready")
        )
        for exchange in found:
            promoted, replaced = self.workers[exchange.promoted], self.workers[exchange.replaced]
            promoted.standby, replaced.standby = False, True
            promoted.since_s = self._kernel.now_s
        return bool(found)

    def _stop_engine(self, worker: Worker) -> None:
        if worker.engine is not None:
            worker.engine.kill()
            worker.gaps.merge(worker.engine.batch.gaps)
            worker.engine, worker.exports = None, 0
        self._serving = [each for each in self.workers.values() if each.engine is not None]

    def _gone(self, worker: Worker) -> None:
        worker.state, worker.since_s, worker.stopped_s = "gone", self._kernel.now_s, self._kernel.now_s

    def _view(self, worker: Worker) -> WorkerView:
        engine, profile = worker.engine, worker.pool.profile
        if engine is None:
            return WorkerView(
                worker.worker_id, worker.role, profile.total_blocks, profile.total_blocks, accepting=False
            )
        engine.sync()
        return WorkerView(
            worker.worker_id,
            worker.role,
            engine.pool.total,
            engine.pool.free,
            engine.reserved_blocks,
            engine.requests,
            engine.queued_tokens,
            self._rates[id(profile)],
            worker.pool.domain,
            worker.state == "ready" and not worker.standby,
        )
