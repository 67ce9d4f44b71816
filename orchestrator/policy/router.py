"""Which workers serve a request. Pure: views of the workers go in, a pair or a reason to wait comes out.

Decode is chosen first, since it holds the request for its whole life and must have headroom for the KV that is to
come; then prefill, by the time to first token that is to be expected of it.

What is held for long is at stake where a node may be taken away at short notice: on spot workers requests of batch
priority decode first, and others only where no other worker has headroom. A prefill ends before any notice is over, so
spot makes no difference to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.spec.config import Role

LOCAL_PREFILL_SHARE = 0.8
"""A decode worker helps out with a prefill when it takes less than this share of the prefill pool's time."""


@dataclass(frozen=True, slots=True)
class WorkerView:
    """What the router knows of one worker at one time.

    ``reserved_blocks`` are reserved for requests on their way and not yet taken in the engine;
    ``queued_tokens`` are uncached prompt tokens given to the worker and not yet prefilled; ``revision`` is the engine,
    and two revisions are never paired.
    """

    worker_id: str
    role: Role
    total_blocks: int
    free_blocks: int
    reserved_blocks: int = 0
    running_requests: int = 0
    queued_tokens: int = 0
    prefill_tokens_per_s: float = 10_000.0
    domain: str = ""
    accepting: bool = True
    peak_blocks: int | None = None
    """Most blocks that what it has is forecast to hold at once; where that is known, it ranks the decode workers."""
    revision: str = ""
    spot: bool = False
    """Its node may be taken away at short notice."""
    refuses: frozenset[str] = frozenset()
    """Prefill workers whose KV arrives wrong there (`orchestrator.policy.canary`)."""

    @property
    def headroom_blocks(self) -> int:
        """Blocks neither used nor reserved."""
        return self.free_blocks - self.reserved_blocks


@dataclass(frozen=True, slots=True)
class RequestView:
    """What the router knows of one request. ``cached_tokens`` maps worker id to prompt tokens it likely has.

    ``batch``: it goes to spot workers first (`is_batch`). ``held_on`` are workers where choices of the same request
    have its prompt's KV in use, of which ``shared_blocks`` need not be reserved once more there; see
    `orchestrator.policy.siblings`.
    """

    isl_tokens: int
    forecast_osl_tokens: int
    block_size_tokens: int
    cached_tokens: dict[str, int]
    batch: bool = False
    held_on: frozenset[str] = frozenset()
    shared_blocks: int = 0

    @property
    def reserve_blocks(self) -> int:
        """Blocks that prompt and forecast output take."""
        return -(-(self.isl_tokens + self.forecast_osl_tokens) // self.block_size_tokens)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a request goes. ``prefill_id`` is None where ``decode_id`` prefills by itself."""

    prefill_id: str | None
    decode_id: str
    reserve_blocks: int


@dataclass(frozen=True, slots=True)
class Wait:
    """Why no placement can be had at present: ``no_worker`` (none ready) or ``no_blocks`` (none with headroom)."""

    reason: str


def is_batch(priority: int) -> bool:
    """Whether a request of this priority (higher goes first) is batch work: below that of a request that names none."""
    return priority < 0


def place(
    request: RequestView,
    workers: Sequence[WorkerView],
    *,
    local_prefill_below_tokens: int = 0,
    local_prefill_after_s: float | None = None,
    avoid: frozenset[str] = frozenset(),
) -> Placement | Wait:
    """Choose the workers for one request.

    Args:
        request: Lengths, and what each worker has of the prompt.
        workers: All workers; those not accepting are passed over.
        local_prefill_below_tokens: Uncached tokens up to which the decode worker prefills by itself.
        local_prefill_after_s: Expected seconds in the prefill pool past which the decode worker prefills by itself,
            if it would be done in clearly fewer (`LOCAL_PREFILL_SHARE`) (its other requests pay for it); None: never.
        avoid: Workers that failed this request before; used only if no other is left.

    Example:
        >>> from cluster.spec.config import Role
        >>> p = WorkerView("p0", Role.PREFILL, total_blocks=100, free_blocks=100)
        >>> d = WorkerView("d0", Role.DECODE, total_blocks=100, free_blocks=100)
        >>> place(RequestView(64, 64, 32, {}), [p, d])
        Placement(prefill_id='p0', decode_id='d0', reserve_blocks=4)
    """
    usable = [worker for worker in workers if worker.accepting]
    prefills = [worker for worker in usable if worker.role is Role.PREFILL]
    holders = _unless_last(holders_among(usable, local_prefill_below_tokens), avoid)
    if not holders:
        return Wait("no_worker")
    need = request.reserve_blocks
    # A request larger than any worker is still let in where it runs alone: the engine can preempt and resume it.
    roomy = [w for w in holders if w.headroom_blocks >= need or (w.running_requests == 0 and w.reserved_blocks == 0)]
    if not roomy:
        return Wait("no_blocks")
    holder = min(roomy, key=lambda worker: holder_rank(worker, request))
    uncached = request.isl_tokens - request.cached_tokens.get(holder.worker_id, 0)
    alone = holder.role is Role.COLOCATED or uncached <= local_prefill_below_tokens
    if alone:
        return Placement(None, holder.worker_id, need)
    prefills = _unless_last([worker for worker in prefills if _paired(worker, holder)], avoid)
    if not prefills:
        return Wait("no_worker")
    best = min(prefills, key=lambda worker: _prefill_rank(worker, request, holder.domain))
    remote_s = expected_ttft_s(best, request)
    overloaded = local_prefill_after_s is not None and remote_s > local_prefill_after_s
    if overloaded and expected_ttft_s(holder, request) < LOCAL_PREFILL_SHARE * remote_s:
        return Placement(None, holder.worker_id, need)
    return Placement(best.worker_id, holder.worker_id, need)


def holders_among(workers: Sequence[WorkerView], local_prefill_below_tokens: int = 0) -> list[WorkerView]:
    """The workers on which a request can decode, with headroom or not: they take work and get prompts."""
    usable = [worker for worker in workers if worker.accepting]
    prefills = [worker for worker in usable if worker.role is Role.PREFILL]
    return [
        worker
        for worker in usable
        if worker.role is Role.COLOCATED
        or (
            worker.role is Role.DECODE
            and (local_prefill_below_tokens or any(_paired(each, worker) for each in prefills))
        )
    ]


def without_avoided(
    workers: Sequence[WorkerView], avoid: frozenset[str], local_prefill_below_tokens: int = 0
) -> list[WorkerView]:
    """The workers without those to avoid on which a request could decode, unless no other could decode it."""
    holders = holders_among(workers, local_prefill_below_tokens)
    kept = {worker.worker_id for worker in _unless_last(holders, avoid)}
    dropped = {worker.worker_id for worker in holders} - kept
    return [worker for worker in workers if worker.worker_id not in dropped]


def _paired(prefill: WorkerView, decode: WorkerView) -> bool:
    """Whether KV goes from the one to the other."""
    return prefill.revision == decode.revision and prefill.worker_id not in decode.refuses


def _unless_last(workers: list[WorkerView], avoid: frozenset[str]) -> list[WorkerView]:
    """Without those to avoid, but for each part of the work apart: the only decode worker is better than none."""
    return [worker for worker in workers if worker.worker_id not in avoid] or workers


def expected_ttft_s(worker: WorkerView, request: RequestView) -> float:
    """Seconds until the worker would have prefilled the request: its queue, then the uncached prompt tokens."""
    uncached = max(1, request.isl_tokens - request.cached_tokens.get(worker.worker_id, 0))
    return (worker.queued_tokens + uncached) / worker.prefill_tokens_per_s


def holder_rank(worker: WorkerView, request: RequestView) -> tuple[bool, float, int, str]:
    """Spot or not as suits the request, then least filled at its peak with it; cached prompt blocks count as free."""
    cached_blocks = request.cached_tokens.get(worker.worker_id, 0) // request.block_size_tokens
    held = worker.total_blocks - worker.headroom_blocks if worker.peak_blocks is None else worker.peak_blocks
    taken = held + request.reserve_blocks - cached_blocks
    queue_share = worker.queued_tokens / worker.prefill_tokens_per_s if worker.role is Role.COLOCATED else 0.0
    filled = taken / max(1, worker.total_blocks) + queue_share
    return (worker.spot is not request.batch, filled, worker.running_requests, worker.worker_id)


def _prefill_rank(worker: WorkerView, request: RequestView, domain: str) -> tuple[float, bool, str]:
    """Earliest first token; among equals, the one in the decode worker's NVLink domain."""
    return (round(expected_ttft_s(worker, request), 3), worker.domain != domain, worker.worker_id)
