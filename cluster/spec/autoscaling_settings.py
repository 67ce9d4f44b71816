"""The spec's ``autoscaling`` section. Bounds of a pool stand with the pool: ``min_replicas`` and ``max_replicas``."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, field_validator

from cluster.spec.settings import Settings

HalfLife = Annotated[float, Field(gt=0)]


class ThinkingBudgetSettings(Settings):
    """How thinking budgets shrink when the forecast exceeds what can be had. Requests that run keep theirs."""

    enabled: bool = False
    """Shrink budgets before requests are refused; the reply says so."""
    floor_tokens: int = Field(512, ge=0)
    """No budget is made smaller than this."""
    unbounded_tokens: int = Field(32768, ge=1)
    """What a request that asks for no budget is taken to ask for."""
    spared_priority: int = Field(100, ge=-1000, le=1000)
    """Requests of this priority or a higher one keep what they asked for."""
    spared_tenants: tuple[Annotated[str, Field(max_length=256)], ...] = ()
    """Tenants that keep what they asked for."""


class AutoscalingSettings(Settings):
    """Whether and how the controller changes the pools. See docs/autoscaling.md."""

    enabled: bool = False
    """Act. Off: the controller keeps the workers of the spec."""
    interval_s: float = Field(5.0, gt=0)
    """Seconds between decisions."""
    report_interval_s: float = Field(1.0, gt=0)
    """Seconds between the reports of a gateway, on which decisions rest."""
    start_s: float = Field(120.0, gt=0)
    """Seconds from the order of a worker until it serves: what `baton up` takes on these nodes."""
    max_gpus: int | None = Field(None, ge=1)
    """GPUs of both pools together, a CPU worker counting as one; left out, the pools' own bounds alone."""
    patience_s: float | None = Field(None, ge=0)
    """Seconds for which one worker fewer must have been enough; left out, the policy's own (ten minutes)."""
    surge_patience_s: float | None = Field(None, ge=0)
    """The same after the pool has grown by half and by two workers or more; left out, the policy's (two minutes)."""
    cooldown_s: float | None = Field(None, ge=0)
    """Seconds after any change of a pool before it may shrink; left out, the policy's own (a minute)."""
    cancel_patience_s: float | None = Field(None, ge=0)
    """Seconds for which a worker that has not started yet must have been too many before it is cancelled; left out, it
    is cancelled at once. Worth some seconds where a worker holds a few requests only."""
    length_half_lives_s: tuple[HalfLife, HalfLife, HalfLife] = (900.0, 150.0, 25.0)
    """Seconds after which an answer's length counts half, in the long, the middle and the short memory of the forecast,
    longest first. Shorter ones let a pool shrink sooner after traces became shorter, and follow chance more: a memory
    should span a few dozen answers."""
    change_roles: bool = True
    """Let a worker take the other pool's role without a restart. Prefill engines are then started so that they can."""
    start_failure_pause_s: float = Field(60.0, ge=0)
    """Seconds without a new start after one has failed."""
    preempt_after_s: float | None = Field(0.1, ge=0)
    """Seconds for which the next request may find no KV while a decode worker starts, before the longest running one
    is preempted: it waits, and is computed again. null: never."""
    thinking_budgets: ThinkingBudgetSettings = ThinkingBudgetSettings()
    """What happens to thinking budgets when no more workers can be had."""

    @field_validator("length_half_lives_s")
    @classmethod
    def _longest_first(cls, half_lives_s: tuple[float, float, float]) -> tuple[float, float, float]:
        long_s, middle_s, short_s = half_lives_s
        if not long_s > middle_s > short_s:
            raise ValueError("expected three half-lives in seconds, the longest first, such as [900, 150, 25]")
        return half_lives_s
