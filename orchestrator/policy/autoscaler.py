"""Baton's own scaling decision: both pools under one budget of GPUs. Pure, and a function of what it is given.

Prefill is sized for the first token, decode for the KV that will be held when a worker ordered now would serve.
Growing is immediate. Shrinking waits until the smaller pool would have done for a while, by a stricter measure, which
together with the cool-down keeps a steady load from flapping. Between the pools a worker changes its role where one
has to grow and the other is too large, since that takes no start-up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field

from cluster.config import Role, Settings
from orchestrator.policy.demand import Demand
from orchestrator.policy.scaling import ChangeRole, DrainWorker, ScalingAction, StartWorker

BUCKET_S = 30.0
GROWTH_RUN_S = 600.0
"""Seconds without a change after which growth begins anew."""
SURGE_S = 1800.0
"""Seconds after a surge in which the pool may come down sooner."""
FULL = 0.97
"""Share of its KV at which a decode worker has no room for newcomers: the rest is promised."""


class AutoscalerSettings(Settings):
    """Bounds and patience of the autoscaler."""

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
    percentile, and long traces make way more often."""
    shrink_fill: float = Field(0.92, gt=0, le=1.5)
    """The same after a worker was taken away; the gap to ``fill`` is the hysteresis."""
    help_share: float = Field(0.0, ge=0, lt=1)
    """Share of a decode worker's time that prompts may take where the prefill pool is crowded: colocated overflow. The
    prefill pool is smaller by it, by half at most, and first tokens cost others a few slow gaps. Only where the router
    lets decode help (``local_prefill_after_s``); 0 sizes prefill for all prompts."""
    patience_s: float = Field(600.0, ge=0)
    """Seconds for which one worker fewer must have been enough; for ``k`` fewer a ``k``-th of it."""
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
    needed: tuple[tuple[float, int], ...] = ()

    def noting(self, now_s: float, need: int, keep_s: float) -> PoolMemory:
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

    def most(self, now_s: float, span_s: float, keep_s: float) -> int | None:
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


@dataclass(frozen=True, slots=True)
class _Need:
    """Workers a pool should have: at once, and by the stricter measure for shrinking."""

    grow: int
    shrink: int
    why: str


def decide(settings: AutoscalerSettings, memory: Memory, demand: Demand, workers: Sequence[WorkerRow]) -> Decision:
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
                reasons.append(f"{role} {have[role]} -> {left}: {need.shrink} do; {need.why}")
    reason = "; ".join(reasons) or f"no change: {needs[Role.PREFILL].why}; {needs[Role.DECODE].why}"
    return Decision(tuple(actions), reason, Memory(kept[Role.PREFILL], kept[Role.DECODE]))


def _prefill_need(settings: AutoscalerSettings, demand: Demand, helpers: int, memory: PoolMemory) -> _Need:
    overflow = min(settings.help_share * helpers, demand.prefill_workers_recent / 2)
    recent, long = demand.prefill_workers_recent - overflow, demand.prefill_workers_long - overflow
    burst = demand.prefill_workers_burst

    def workers(need: float) -> int:
        return _clamp(math.ceil(need - 1e-9), settings.min_prefill, settings.max_prefill)

    # Nothing is taken off for decode's help: until the workers come, it has enough to do.
    grow = workers(max(recent, burst))
    margin = settings.fill / settings.shrink_fill
    strict = workers(max(recent, long) * margin)
    if memory.surged(demand.now_s):  # what came for a burst goes once that has left the shorter window
        strict = max(workers(recent * margin), min(strict, memory.base))
    why = (
        f"the prompts of the last five minutes ({demand.prompt_tokens_per_s:,.0f} tokens/s) want "
        f"{demand.prefill_workers_recent:.1f} prefill workers for their first tokens, those of ten "
        f"{demand.prefill_workers_long:.1f}, of which {helpers} decode workers take {overflow:.1f}"
    )
    if burst:
        why += f"; a burst wants {burst:.1f}"
    return _Need(grow, max(grow, strict), why)


def _decode_need(settings: AutoscalerSettings, demand: Demand, memory: PoolMemory) -> _Need:
    room = max(1.0, demand.worker_kv_tokens)
    start_s, ahead = demand.horizons_s[-1], demand.kv_high_tokens[-1]
    # What is held already counts in full, whatever share of the forecast is left to chance.
    full = max(ahead / settings.fill, demand.kv_high_tokens[0] / FULL)
    grow = _clamp(math.ceil(full / room - 1e-9), settings.min_decode, settings.max_decode)
    most = max(demand.kv_high_tokens)
    if not memory.surged(demand.now_s):  # after a surge, what is held goes down by itself
        most = max(most, demand.kv_tokens * _longer_on_fewer(demand))
    strict = _clamp(math.ceil(most / (room * settings.shrink_fill) - 1e-9), settings.min_decode, settings.max_decode)
    why = (
        f"KV {demand.kv_tokens / 1e6:.2f} M tokens, with 95 % under {ahead / 1e6:.2f} M in {start_s:.0f} s, and a "
        f"decode worker takes {room * settings.fill / 1e6:.2f} M; requests end at {demand.pace:.2f} of their usual pace"
    )
    return _Need(grow, max(grow, strict), why)


def _longer_on_fewer(demand: Demand) -> float:
    """How many times as long requests would hold their KV on fewer workers, each well filled and so slower.

    The forecast sees only what of this happens before its last horizon; a pool that shrank by it would grow again.
    """
    planned = demand.planned_tokens_per_s
    return max(1.0, demand.request_tokens_per_s / planned) if planned > 0 else 1.0


def _within_budget(settings: AutoscalerSettings, needs: dict[Role, _Need], gpus: dict[Role, int]) -> dict[Role, _Need]:
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
        role: _Need(min(need.grow, cut[role]), min(need.shrink, cut[role]), need.why + note)
        for role, need in needs.items()
    }


def _lend(
    needs: dict[Role, _Need], pools: dict[Role, list[WorkerRow]], have: dict[Role, int], role: Role, other: Role
) -> list[WorkerRow]:
    """Serving workers of ``other`` that it can spare and ``role`` wants, least loaded first."""
    want = min(needs[role].grow - have[role], have[other] - needs[other].shrink)
    kinds = {row.gpus for row in (*pools[role], *pools[other])}
    if want <= 0 or len(kinds) > 1:
        return []
    ready = [row for row in pools[other] if row.state == "ready"]
    return sorted(ready, key=lambda row: (row.load, row.worker_id))[:want]


def _shrink(
    settings: AutoscalerSettings, memory: PoolMemory, need: _Need, rows: list[WorkerRow], have: int, now_s: float
) -> tuple[PoolMemory, list[WorkerRow]]:
    """Whom to let go. A worker that has not started yet goes at once; others after patience and cool-down."""
    if need.shrink >= have:
        return memory, []
    starting = sorted((row for row in rows if row.state == "starting"), key=lambda row: (-row.since_s, row.worker_id))
    if starting:
        if settings.cancel_patience_s:
            span_s = min(settings.cancel_patience_s, settings.patience_s)
            most = memory.most(now_s, span_s, settings.patience_s)
            if most is None or most >= have:
                return memory, []
        return replace(memory, changed_s=now_s), starting[: have - need.shrink]
    if now_s - memory.changed_s < settings.cooldown_s:
        return memory, []
    patience_s = settings.patience_s
    if memory.surged(now_s):
        patience_s = min(patience_s, settings.surge_patience_s)
    for fewer in range(have - need.shrink, 0, -1):
        most = memory.most(now_s, patience_s / fewer, settings.patience_s)
        if most is not None and most <= have - fewer:
            victims = sorted(rows, key=lambda row: (row.load, row.worker_id))[:fewer]
            return replace(memory, changed_s=now_s), victims
    return memory, []


def _bucket_s(patience_s: float) -> float:
    """Half minutes, or less where the patience is short."""
    return min(BUCKET_S, patience_s / 4)


def _clamp(value: int, low: int, high: int) -> int:
    return max(low, min(high, value))
