"""Thinking budgets under scarcity: when no more workers can be had, traces get shorter before any is refused. Pure.

Two decisions. The controller turns the forecast into a *severity* from 0 to 1 (`Governor`). Gateways turn severity into
each new request's budget (`budget`): those of low rank lose first and most, and nobody goes below the floor.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.spec.autoscaling_settings import ThinkingBudgetSettings

TARGET_PRESSURE = 0.95
"""Forecast demand over what can be had that severity steers to: a little under full."""
RISE_PER_S = 0.05
"""Severity that a pressure of twice the target adds a second: the worst is reached in 20 s."""
FALL_PER_S = 0.01
"""Slower, so that budgets do not swing with the traces that they shorten."""
EFFORT_SHARE = {"none": 0.4, "minimal": 0.4, "low": 0.4, "medium": 0.2}
"""What a small effort adds to the rank: little is to be had from small budgets."""


@dataclass(slots=True)
class Governor:
    """Severity over time, by integral control: it rises while demand exceeds what can be had, and falls slowly after.

    Example:
        >>> governor = Governor()
        >>> governor.step(0.5, 10.0)
        0.0
        >>> 0.4 < governor.step(1.9, 10.0) <= 0.5
        True
        >>> governor.step(0.0, 1000.0)
        0.0
    """

    severity: float = 0.0

    def step(self, pressure: float, seconds: float) -> float:
        """Take the pressure of the last ``seconds``; returns the severity.

        Args:
            pressure: KV that demand stays under with 95 %, over the KV of all workers that may be had.
            seconds: Since the last step.
        """
        excess = pressure / TARGET_PRESSURE - 1.0
        change = RISE_PER_S * min(1.0, excess) if excess > 0 else FALL_PER_S * max(-1.0, excess)
        self.severity = min(1.0, max(0.0, self.severity + change * max(0.0, seconds)))
        return self.severity


@dataclass(frozen=True, slots=True)
class BudgetAsk:
    """What a request asks for. ``tokens`` None: no budget. ``effort`` as in the spec's budgets, or empty."""

    tokens: int | None
    tenant: str
    priority: int
    effort: str = ""
    limit_tokens: int = 1 << 30
    """What the model can make at most."""


def rank(ask: BudgetAsk, settings: ThinkingBudgetSettings) -> float:
    """From 0, cut most, to 1, spared: by tenant and priority, and the smaller efforts somewhat higher."""
    if ask.tenant in settings.spared_tenants or ask.priority >= settings.spared_priority:
        return 1.0
    if ask.priority < 0:
        return 0.0
    # Here the spared priority is above 0.
    return 0.5 * ask.priority / settings.spared_priority + EFFORT_SHARE.get(ask.effort, 0.0)


def budget(ask: BudgetAsk, severity: float, settings: ThinkingBudgetSettings) -> int | None:
    """The budget of a new request where it is to be smaller than asked for; None leaves it as it is.

    At severity ``s`` a request of rank ``r`` keeps ``1 - s * (1 - r)`` of what it asked for, never less than the floor.

    Example:
        >>> settings = ThinkingBudgetSettings(enabled=True, floor_tokens=100)
        >>> budget(BudgetAsk(4000, "", 0, "high"), 0.5, settings)
        2000
        >>> budget(BudgetAsk(80, "", 0), 1.0, settings) is None
        True
    """
    if not settings.enabled or severity <= 0:
        return None
    asked = min(settings.unbounded_tokens, ask.limit_tokens) if ask.tokens is None else ask.tokens
    kept = int(asked * (1.0 - min(1.0, severity) * (1.0 - rank(ask, settings))))
    given = max(min(settings.floor_tokens, asked), kept)
    return given if given < asked else None
