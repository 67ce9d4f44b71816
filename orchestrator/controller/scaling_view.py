"""What the autoscaler sees of a live cluster: requests from the gateways' reports, workers from the pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from baton.internal.v1 import registry_pb2
from cluster.spec.config import Role
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.policy.measured_capacity import LoadReading, MeasuredCapacity
from orchestrator.policy.request_log import RequestLog
from orchestrator.policy.router import WorkerView
from orchestrator.policy.scaling_policy import Arrival, FinishedRequest, InFlight, WorkerStatus

SCALED = (Role.PREFILL, Role.DECODE)

Workers = Callable[[], Sequence[ManagedWorker]]
"""All workers, in order of start."""


class WorkerStatuses:
    """Prefill and decode workers as a policy sees them.

    Args:
        workers: See `Workers`.
        changing: Roles that workers are about to have; they count as changed.
        began_s: Monotonic time that statuses count from.
    """

    def __init__(self, workers: Workers, changing: Mapping[str, Role], *, began_s: float) -> None:
        self._workers = workers
        self._changing = changing
        self._began_s = began_s

    def all(self) -> list[WorkerStatus]:
        """Every one that starts, serves or drains.

        Those on standby are not among them: the policy decides about workers that serve, within GPUs less theirs.
        """
        return [
            self._status(worker)
            for worker in self._workers()
            if worker.role in SCALED and not worker.standby  # colocated ones are not scaled
        ]

    def _status(self, worker: ManagedWorker) -> WorkerStatus:
        member, load = worker.member, worker.load or {}
        state = member.state if member.state in ("ready", "draining") else "starting"
        if worker.unwanted.is_set() or worker.draining:  # an engine takes seconds to end, and is none that starts
            state = "draining"
        view = WorkerView(
            worker_id=worker.worker_id,
            role=self._changing.get(worker.worker_id, worker.role),
            total_blocks=member.total_blocks,
            free_blocks=max(0, member.total_blocks - load.get("used_blocks", 0)),
            running_requests=load.get("running_requests", 0),
        )
        since_s = max(0.0, worker.since_s - self._began_s)
        return WorkerStatus(view, worker.plan.role.value, state, since_s, worker.pool.gpus_per_worker)


class LiveView:
    """`FleetView` over the gateways' reports and the workers, at one time."""

    def __init__(self, requests: RequestLog, statuses: WorkerStatuses, now_s: float) -> None:
        self._requests = requests
        self._statuses = statuses
        self._flights = list(requests.in_flight(now_s))

    @property
    def arrived_requests(self) -> int:
        """Requests so far."""
        return self._requests.arrived_requests

    @property
    def arrived_tokens(self) -> int:
        """Prompt tokens so far."""
        return self._requests.arrived_tokens

    @property
    def queued_requests(self) -> int:
        """Requests that wait in gateways."""
        return sum(each.phase == "queued" for each in self._flights)

    @property
    def queued_prompt_tokens(self) -> int:
        """Prompt tokens of those."""
        return sum(each.isl_tokens for each in self._flights if each.phase == "queued")

    def workers(self) -> Sequence[WorkerStatus]:
        """See `WorkerStatuses.all`."""
        return self._statuses.all()

    def in_flight(self) -> Iterator[InFlight]:
        """Requests that have not ended."""
        return iter(self._flights)

    def arrived(self) -> Sequence[Arrival]:
        """Requests that came since the last call."""
        return self._requests.take_arrived()

    def finished(self) -> Sequence[FinishedRequest]:
        """Requests that finished since the last call."""
        return self._requests.take_finished()


class LoadReader:
    """Gives a capacity what workers measured. Owns which readings it has given.

    Args:
        workers: See `Workers`.
        capacity: Takes the readings.
    """

    def __init__(self, workers: Workers, capacity: MeasuredCapacity) -> None:
        self._workers = workers
        self._capacity = capacity
        self._read_s: dict[str, float] = {}
        """Time of the last reading, by incarnation."""

    def read(self) -> None:
        """Take each worker's counters that came since the last call."""
        workers = self._workers()
        for worker in workers:
            load, incarnation = worker.load, worker.member.incarnation
            if load is None or self._read_s.get(incarnation) == worker.load_s:
                continue
            self._read_s[incarnation] = worker.load_s
            reading = LoadReading(
                worker.load_s,
                load["steps"],
                load["output_tokens"],
                load["running_requests"],
                load["used_blocks"] * worker.member.block_size_tokens,
                load["prefill_tokens_per_s"],
                load["timed_steps"],
                load["timed_s"],
            )
            self._capacity.read(incarnation, reading, decodes=worker.role is Role.DECODE)
        present = {worker.member.incarnation for worker in workers}
        self._capacity.forget(present)
        self._read_s = {key: time_s for key, time_s in self._read_s.items() if key in present}


def enter_report(requests: RequestLog, request: registry_pb2.ReportRequestsRequest, now_s: float) -> None:
    """Enter a gateway's report into the log of requests."""
    requests.report(
        request.gateway,
        request.sequence,
        now_s,
        [Arrival(now_s - each.age_s, each.request_class, each.isl_tokens) for each in request.arrived],
        [
            InFlight(
                each.request,
                each.request_class,
                each.priority,
                each.isl_tokens,
                each.generated_tokens,
                each.decode_id or None,
                each.phase,
                each.answer_tokens,
            )
            for each in request.in_flight
        ],
        [
            FinishedRequest(
                each.request,
                each.request_class,
                each.isl_tokens,
                each.cached_tokens,
                each.reasoning_tokens,
                each.answer_tokens,
                each.ttft_s,
                each.e2e_s,
            )
            for each in request.finished
        ],
    )
