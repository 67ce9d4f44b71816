from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.spec.autoscaling_settings import ThinkingBudgetSettings
from orchestrator.policy.budget_governor import BudgetAsk, Governor, budget, rank

SETTINGS = ThinkingBudgetSettings(
    enabled=True, floor_tokens=256, unbounded_tokens=8192, spared_priority=100, spared_tenants=("gold",)
)
SEVERITY = st.floats(0, 1)
ASKS = st.builds(
    BudgetAsk,
    tokens=st.one_of(st.none(), st.integers(0, 50_000)),
    tenant=st.sampled_from(["", "acme", "gold"]),
    priority=st.integers(-1000, 1000),
    effort=st.sampled_from(["", "low", "medium", "high"]),
)


def given_tokens(ask: BudgetAsk, severity: float, settings: ThinkingBudgetSettings = SETTINGS) -> int:
    """The budget in the end, reduced or not."""
    reduced = budget(ask, severity, settings)
    if reduced is not None:
        return reduced
    return ask.tokens if ask.tokens is not None else min(settings.unbounded_tokens, ask.limit_tokens)


@given(ASKS, SEVERITY, SEVERITY)
def test_more_scarcity_never_gives_more(ask: BudgetAsk, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert given_tokens(ask, high) <= given_tokens(ask, low)


@given(ASKS, SEVERITY, st.integers(0, 5000))
def test_nobody_goes_below_the_floor_or_above_what_was_asked(ask: BudgetAsk, severity: float, floor: int) -> None:
    settings = SETTINGS.model_copy(update={"floor_tokens": floor})
    asked = given_tokens(ask, 0.0, settings)
    assert min(floor, asked) <= given_tokens(ask, severity, settings) <= asked


@given(ASKS, SEVERITY, st.integers(-1000, 1000))
def test_a_higher_priority_never_gets_less(ask: BudgetAsk, severity: float, priority: int) -> None:
    low, high = sorted((ask.priority, priority))
    assert given_tokens(replace(ask, priority=low), severity) <= given_tokens(replace(ask, priority=high), severity)


@given(ASKS, SEVERITY)
def test_a_smaller_effort_keeps_no_smaller_a_share(ask: BudgetAsk, severity: float) -> None:
    kept = [given_tokens(replace(ask, effort=effort), severity) for effort in ("high", "medium", "low")]
    assert kept == sorted(kept)


@given(ASKS, SEVERITY)
def test_the_spared_keep_all(ask: BudgetAsk, severity: float) -> None:
    assert budget(replace(ask, tenant="gold"), severity, SETTINGS) is None
    assert budget(replace(ask, priority=100), severity, SETTINGS) is None
    assert rank(replace(ask, tenant="acme", priority=99), SETTINGS) < 1


@given(ASKS, SEVERITY)
def test_off_it_changes_nothing(ask: BudgetAsk, severity: float) -> None:
    assert budget(ask, severity, SETTINGS.model_copy(update={"enabled": False})) is None
    assert budget(ask, 0.0, SETTINGS) is None


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 20)), max_size=30), st.floats(0, 5), st.floats(0, 20))
def test_severity_stays_in_bounds_and_rises_with_pressure(
    past: list[tuple[float, float]], pressure: float, seconds: float
) -> None:
    one, other = Governor(), Governor()
    for each in past:
        assert 0 <= one.step(*each) <= 1
        other.step(*each)
    assert one.step(pressure, seconds) <= other.step(pressure + 0.5, seconds)


def test_it_takes_seconds_to_bite_and_minutes_to_forget() -> None:
    governor = Governor()
    assert governor.step(3.0, 20.0) == 1.0
    assert governor.step(0.9, 60.0) > 0.9
    assert governor.step(0.0, 60.0) > 0.3
    assert governor.step(0.0, 60.0) == 0.0
