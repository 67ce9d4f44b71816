"""Baton's own scaling decision: both pools under one budget of GPUs. Pure, and a function of what it is given.

Prefill is sized for the first token, decode for the KV that will be held when a worker ordered now would serve.
Growing is immediate. Shrinking waits until the smaller pool would have done for a while, by a stricter measure, which
together with the cool-down keeps a steady load from flapping. Between the pools a worker changes its role where one
has to grow and the other is too large, since that takes no start-up.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from cluster.spec.config import Role
from cluster.spec.settings import Settings
from orchestrator.policy.demand import RECENT_S, Demand
from orchestrator.policy.scaling_policy import ChangeRole, DrainWorker, ScalingAction, StartWorker

BUCKET_S = 30.0
GROWTH_RUN_S = 600.0
"""Seconds without a change after which growth begins again."""
SURGE_S = 1800.0
"""Seconds after a surge in which the pool may come down sooner."""
FULL = 0.97
"""Share of its KV at which a decode worker has no headroom for new requests: the rest is reserved."""
SPREAD = 1.5
"""Standard deviation of what ``n`` requests of a steady load need, over that need, times ``sqrt(n)``. Measured in three
simulated stationary loads with 540 to 740 requests in flight: 1.1, 1.3, 1.7."""
PREFILL_PATIENCE_S = 120.0
"""Patience of the prefill pool at most: the need it must fit is already that of ten minutes of prompts."""


class DecisionSettings(Settings):
    """Bounds and patience that `decide` keeps to; the spec's ``autoscaling`` and pools give them."""

    min_prefill: int = Field(1, ge=0)
    """Fewest prefill workers."""
    max_prefill: int = Field(1000, ge=0)
    """Most prefill workers."""
    min_decode: int = Field(1, ge=0)
    """Fewest decode workers."""
    max_decode: int = Field(1000, ge=0)
    """Most decode workers."""
    max_gpus: int | None = Field(None, ge=1)
    """GPUs of both pools together; left out, no limit."""
    fill: float = Field(1.04, gt=0, le=1.5)
    """Share of a decode worker's KV that the 95th percentile of demand may take. Above 1, the pool is sized for a lower
    percentile, and long traces are preempted more often."""
    shrink_fill: float = Field(0.92, gt=0, le=1.5)
    """The same after a worker was taken away; the gap to ``fill`` is the hysteresis."""
    help_share: float = Field(0.0, ge=0, lt=1)
    """Share of a decode worker's time that prompts may take where the prefill pool is overloaded: colocated overflow.
    The prefill pool is smaller by it, by half at most, and first tokens cost others a few slow gaps. Only where the
    router lets decode help (``local_prefill_after_s``); 0 sizes prefill for all prompts."""
    patience_s: float = Field(600.0, ge=0)
    """Seconds for which one worker fewer must have been enough; the less for ``k`` fewer, the less chance they are
    (`_share_of_patience`). The prefill pool waits `PREFILL_PATIENCE_S` at most."""
    surge_patience_s: float = Field(120.0, ge=0)
    """The same after a surge, when what was started to catch up is soon too much. At most ``patience_s`` counts."""
    cooldown_s: float = Field(60.0, ge=0)
    """Seconds after any change of a pool before it may shrink."""
    cancel_patience_s: float = Field(0.0, ge=0)
    """Seconds for which a worker that has not started yet must have been too many before it is cancelled. At 0 it is
    cancelled at once; where a worker holds a few requests only, demand that comes and goes then orders and cancels.
    At most ``patience_s`` counts."""
    change_roles: bool = True
    """Let a worker of a pool that is too large take the other pool's role."""


@dataclass(frozen=True, slots=True)
class WorkerRow:
    """One worker, as far as a decision needs it. ``load`` is what a drain would have to move, in KV blocks."""

    worker_id: str
    role: Role
    kind: str
    state: str
    since_s: float
    gpus: int
    load: int


@dataclass(frozen=True, slots=True)
class PoolMemory:
    """What a decision remembers of a pool: when it last changed, and the most it needed, by half minutes.

    ``base`` is its size before a run of growth, ``surged_s`` when such a run last made it larger by half and by two
    workers or more.
    """

    changed_s: float = -1e9
    base: int = 0
    surged_s: float = -1e9
    needed: tuple[tuple[float, float], ...] = ()

    def noting(self, now_s: float, need: float, keep_s: float) -> PoolMemory:
        """With the present need; what is older than ``keep_s`` is dropped."""
        bucket_s = _bucket_s(keep_s)
        kept = tuple(each for each in self.needed if each[0] > now_s - keep_s - bucket_s)
        if kept and now_s - kept[-1][0] < bucket_s:
            kept = (*kept[:-1], (kept[-1][0], max(kept[-1][1], need)))
        else:
            kept = (*kept, (now_s, need))
        return replace(self, needed=kept)

    def grown(self, now_s: float, before: int, after: int) -> PoolMemory:
        """Once the pool grows."""
        base = before if now_s - self.changed_s > GROWTH_RUN_S or not self.base else min(self.base, before)
        surge = after >= max(base + 2, 1.5 * base)
        return replace(self, changed_s=now_s, base=base, surged_s=now_s if surge else self.surged_s)

    def surged(self, now_s: float) -> bool:
        """Whether the pool caught up with a surge lately."""
        return now_s - self.surged_s < SURGE_S

    def most(self, now_s: float, span_s: float, keep_s: float) -> float | None:
        """Most workers needed in the span, or None if the pool has not been watched for so long."""
        if not self.needed or self.needed[0][0] > now_s - span_s + 1e-9:
            return None
        bucket_s = _bucket_s(keep_s)
        return max(need for time_s, need in self.needed if time_s > now_s - span_s - bucket_s)


@dataclass(frozen=True, slots=True)
class Memory:
    """State between decisions."""

    prefill: PoolMemory = PoolMemory()
    decode: PoolMemory = PoolMemory()


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, why in one sentence, and what to remember."""

    actions: tuple[ScalingAction, ...]
    reason: str
    memory: Memory


Patience = Callable[[float, int, int], float]
"""Seconds for which a pool must have been able to do with less: by how far, in workers, what it needed lay below the
edge to its present size; how many workers would go; and how many there are."""


@dataclass(frozen=True, slots=True)
class _Need:
    """Workers a pool should have: at once, and by the stricter measure for shrinking, not rounded.

    It does not shrink before it has been watched for ``watched_s``.
    """

    grow: int
    shrink: float
    why: str
    patience_s: Patience
    watched_s: float


def decide(settings: DecisionSettings, memory: Memory, demand: Demand, workers: Sequence[WorkerRow]) -> Decision:
    """One decision.

    Args:
        settings: Bounds and patience.
        memory: Of the last decision.
        demand: Forecast.
        workers: All that start, serve or drain.
    """
    now_s = demand.now_s
    pools = {
        role: [each for each in workers if each.role is role and each.state != "draining"]
        for role in (Role.PREFILL, Role.DECODE)
    }
    helpers = sum(each.state == "ready" for each in pools[Role.DECODE])
    needs = {
        Role.PREFILL: _prefill_need(settings, demand, helpers, memory.prefill),
        Role.DECODE: _decode_need(settings, demand, memory.decode),
    }
    gpus = {role: max((each.gpus for each in rows or workers), default=1) or 1 for role, rows in pools.items()}
    needs = _within_budget(settings, needs, gpus)
    free = (settings.max_gpus or 1 << 30) - sum(each.gpus for each in workers)
    actions: list[ScalingAction] = []
    reasons: list[str] = []
    kept = {
        role: past.noting(now_s, needs[role].shrink, settings.patience_s)
        for role, past in ((Role.PREFILL, memory.prefill), (Role.DECODE, memory.decode))
    }
    have = {role: len(rows) for role, rows in pools.items()}
    if settings.change_roles:
        for role, other in ((Role.PREFILL, Role.DECODE), (Role.DECODE, Role.PREFILL)):
            lent = _lend(needs, pools, have, role, other)
            if lent:
                actions += [ChangeRole(row.worker_id, role) for row in lent]
                gone = {row.worker_id for row in lent}
                pools[other] = [row for row in pools[other] if row.worker_id not in gone]
                have[role] += len(lent)
                have[other] -= len(lent)
                for each in (role, other):
                    kept[each] = replace(kept[each], changed_s=now_s)
                reasons.append(f"{len(lent)} {other} become {role}: {needs[role].why}")
    for role in (Role.PREFILL, Role.DECODE):
        need = needs[role]
        if need.grow > have[role]:
            more = min(need.grow - have[role], free // gpus[role])
            if more > 0:
                actions += [StartWorker(role) for _ in range(more)]
                free -= more * gpus[role]
                reasons.append(f"{role} {have[role]} -> {have[role] + more}: {need.why}")
                kept[role] = kept[role].grown(now_s, have[role], have[role] + more)
        else:
            kept[role], victims = _shrink(settings, kept[role], need, pools[role], have[role], now_s)
            if victims:
                actions += [DrainWorker(row.worker_id) for row in victims]
                left = have[role] - len(victims)
                reasons.append(f"{role} {have[role]} -> {left}: {need.shrink:.1f} do; {need.why}")
    reason = "; ".join(reasons) or f"no change: {needs[Role.PREFILL].why}; {needs[Role.DECODE].why}"
    return Decision(tuple(actions), reason, Memory(kept[Role.PREFILL], kept[Role.DECODE]))


def _prefill_need(settings: DecisionSettings, demand: Demand, helpers: int, memory: PoolMemory) -> _Need:
    overflow = min(settings.help_share * helpers, demand.prefill_workers_recent / 2)
    recent, long = demand.prefill_workers_recent - overflow, demand.prefill_workers_long - overflow
    margin = settings.fill / settings.shrink_fill
    shrink = max(recent, long) * margin
    if memory.surged(demand.now_s):  # what came for a burst goes once that has left the shorter window
        shrink = max(recent * margin, min(shrink, memory.base))
    why = (
        f"the prompts of the last five minutes ({demand.prompt_tokens_per_s:,.0f} tokens/s) want "
        f"{demand.prefill_workers_recent:.1f} prefill workers for their first tokens, those of ten "
        f"{demand.prefill_workers_long:.1f}, of which {helpers} decode workers take {overflow:.1f}"
    )
    patience_s = min(settings.patience_s, PREFILL_PATIENCE_S)
    return _need(
        recent,
        shrink,
        (settings.min_prefill, settings.max_prefill),
        why,
        lambda spare, fewer, have: patience_s,
        watched_s=min(settings.patience_s, RECENT_S),
    )


def _decode_need(settings: DecisionSettings, demand: Demand, memory: PoolMemory) -> _Need:
    capacity = max(1.0, demand.worker_kv_tokens)
    start_s, ahead = demand.horizons_s[-1], demand.kv_high_tokens[-1]
    # What is held already counts in full, whatever share of the forecast is left to chance.
    full = max(ahead / settings.fill, demand.kv_high_tokens[0] / FULL)
    most = max(demand.kv_high_tokens)
    if not memory.surged(demand.now_s):  # after a surge, what is held goes down by itself
        most = max(most, demand.kv_tokens * _longer_on_fewer(demand))
    shrink = max(full, most / settings.shrink_fill) / capacity
    why = (
        f"KV {demand.kv_tokens / 1e6:.2f} M tokens, with 95 % under {ahead / 1e6:.2f} M in {start_s:.0f} s, and a "
        f"decode worker takes {capacity * settings.fill / 1e6:.2f} M; "
        f"requests end at {demand.pace:.2f} of their usual pace"
    )
    each = capacity * demand.in_flight_requests / max(1.0, demand.kv_tokens)

    def patience_s(spare: float, fewer: int, have: int) -> float:
        if memory.surged(demand.now_s):  # what was started to catch up is soon too much, by one worker as by several
            return min(settings.patience_s, settings.surge_patience_s) / fewer
        return settings.patience_s * _share_of_patience(spare, fewer, have, each)

    return _need(full / capacity, shrink, (settings.min_decode, settings.max_decode), why, patience_s)


def _need(
    grow: float, shrink: float, bounds: tuple[int, int], why: str, patience_s: Patience, watched_s: float = 0.0
) -> _Need:
    """A need in workers, within the bounds of its pool."""
    least, most = bounds
    grow_to = max(least, min(most, _whole(grow)))
    return _Need(grow_to, max(least, min(most, max(grow, shrink))), why, patience_s, watched_s)


def _longer_on_fewer(demand: Demand) -> float:
    """How many times as long requests would hold their KV on fewer workers, each well filled and so slower.

    The forecast sees only what of this happens before its last horizon; a pool that shrank by it would grow again.
    """
    planned = demand.planned_tokens_per_s
    return max(1.0, demand.request_tokens_per_s / planned) if planned > 0 else 1.0


def _within_budget(settings: DecisionSettings, needs: dict[Role, _Need], gpus: dict[Role, int]) -> dict[Role, _Need]:
    """Cut both needs in proportion where GPUs do not reach for them."""
    if settings.max_gpus is None:
        return needs
    wanted = sum(need.grow * gpus[role] for role, need in needs.items())
    if wanted <= settings.max_gpus:
        return needs
    least = {Role.PREFILL: settings.min_prefill, Role.DECODE: settings.min_decode}
    share = settings.max_gpus / wanted
    cut = {role: max(least[role], math.floor(need.grow * share)) for role, need in needs.items()}
    left = settings.max_gpus - sum(cut[role] * gpus[role] for role in cut)
    for role in (Role.DECODE, Role.PREFILL):
        more = min(needs[role].grow - cut[role], max(0, left // gpus[role]))
        cut[role] += more
        left -= more * gpus[role]
    note = f" (wanted {wanted} GPUs, may have {settings.max_gpus})"
    return {
        role: replace(need, grow=min(need.grow, cut[role]), shrink=min(need.shrink, cut[role]), why=need.why + note)
        for role, need in needs.items()
    }


def _lend(
    needs: dict[Role, _Need], pools: dict[Role, list[WorkerRow]], have: dict[Role, int], role: Role, other: Role
) -> list[WorkerRow]:
    """Serving workers of ``other`` that it can spare and ``role`` wants, least loaded first."""
    want = min(needs[role].grow - have[role], have[other] - _whole(needs[other].shrink))
    kinds = {row.gpus for row in (*pools[role], *pools[other])}
    if want <= 0 or len(kinds) > 1:
        return []
    ready = [row for row in pools[other] if row.state == "ready"]
    return sorted(ready, key=lambda row: (row.load, row.worker_id))[:want]


def _shrink(
    settings: DecisionSettings, memory: PoolMemory, need: _Need, rows: list[WorkerRow], have: int, now_s: float
) -> tuple[PoolMemory, list[WorkerRow]]:
    """Workers to remove. A worker that has not started yet goes at once; others after patience and cool-down."""
    least = _whole(need.shrink)
    if least >= have:
        return memory, []
    starting = sorted((row for row in rows if row.state == "starting"), key=lambda row: (-row.since_s, row.worker_id))
    if starting:
        if settings.cancel_patience_s:
            span_s = min(settings.cancel_patience_s, settings.patience_s)
            most = memory.most(now_s, span_s, settings.patience_s)
            if most is None or _whole(most) >= have:
                return memory, []
        return replace(memory, changed_s=now_s), starting[: have - least]
    if now_s - memory.changed_s < settings.cooldown_s:
        return memory, []
    fewer = _lasting(settings, memory, need, have, now_s)
    victims = sorted(rows, key=lambda row: (row.load, row.worker_id))[:fewer]
    return (replace(memory, changed_s=now_s) if victims else memory), victims


def _lasting(settings: DecisionSettings, memory: PoolMemory, need: _Need, have: int, now_s: float) -> int:
    """How many workers the pool has been able to do without for long enough."""
    most, found = 0.0, 0
    if not memory.needed or now_s - memory.needed[0][0] < need.watched_s:
        return 0
    for time_s, needed in reversed(memory.needed):
        most = max(most, needed)
        fewer = have - _whole(most)
        if fewer <= 0:
            break
        span_s = need.patience_s(have - 1 - most, fewer, have)
        if now_s - time_s >= max(span_s, min(settings.cooldown_s, settings.patience_s / fewer)) - 1e-9:
            found = max(found, fewer)
    return found


def _share_of_patience(spare: float, fewer: int, have: int, requests_per_worker: float) -> float:
    """Share of the patience after which ``fewer`` workers may go at once.

    A need of one worker less, that lasts for a while, may be chance where a steady load lies at the edge between two
    sizes. Where it lies ``spare`` workers below that edge, ``z`` standard deviations, the chance that it lasts falls
    with the time by a power whose exponent, ``ln P(Z > z) / ln P(Z > 0)``, is close to ``1 + z**2``: so much less time
    will do. Where the spread is not known, a ``fewer``-th.

    Example:
        >>> [round(_share_of_patience(spare, 1, 8, 320.0), 2) for spare in (0.0, 0.5, 0.9)]
        [1.0, 0.18, 0.06]
        >>> [round(_share_of_patience(spare, 3, 100, 320.0), 2) for spare in (2.0, 2.5)]
        [0.15, 0.1]
    """
    if requests_per_worker <= 0:
        return 1.0 / fewer
    z = max(0.0, spare) / (SPREAD * math.sqrt(have / requests_per_worker))
    return min(1.0 / fewer, 1.0 / (1.0 + z * z))


def _bucket_s(patience_s: float) -> float:
    """Half minutes, or less where the patience is short."""
    return min(BUCKET_S, patience_s / 4)


def _whole(need: float) -> int:
    """Workers that this needs."""
    return math.ceil(need - 1e-9)
