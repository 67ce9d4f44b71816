from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import RequestRejected
from cluster.spec.config import TenantSettings
from orchestrator.policy import tenants
from orchestrator.policy.tenants import TenantLimits, TokenBucket


def limits(share: float = 1.0, **values: float) -> TenantLimits:
    return TenantLimits(lambda _: TenantSettings.model_validate(values), share=share)


def test_a_tenant_has_no_more_in_flight_than_it_may_and_others_are_not_touched() -> None:
    held = limits(max_in_flight=2)
    for _ in range(2):
        held.enter("a", now_s=0)
    with pytest.raises(RequestRejected) as refused:
        held.enter("a", now_s=0)
    assert refused.value.reason == "tenant_in_flight"
    held.enter("b", now_s=0)
    held.leave("a", now_s=1)
    held.enter("a", now_s=1)
    assert (held.in_flight("a"), held.in_flight("b")) == (2, 1)


def test_the_hint_reports_when_the_debt_is_paid() -> None:
    held = limits(tokens_per_s=10, burst_tokens=50)
    held.enter("a", now_s=0)
    held.charge("a", 250, now_s=0)
    with pytest.raises(RequestRejected) as refused:
        held.enter("a", now_s=5)
    assert refused.value.reason == "tenant_rate"
    assert refused.value.retry_after_s == pytest.approx(15.0)
    with pytest.raises(RequestRejected):
        held.enter("a", now_s=19.9)
    held.enter("a", now_s=20.1)


def test_an_overestimate_is_given_back_but_never_beyond_the_burst() -> None:
    held = limits(tokens_per_s=10, burst_tokens=50)
    held.enter("a", now_s=0)
    held.charge("a", 500, now_s=0)
    held.charge("a", -1e9, now_s=0)
    held.charge("a", 50.5, now_s=0)
    with pytest.raises(RequestRejected):
        held.enter("a", now_s=0)


def test_dollars_come_back_over_the_day_and_each_gateway_holds_its_share() -> None:
    held = limits(share=0.5, usd_per_day=24.0)
    held.enter("a", now_s=0)
    held.spend("a", 13.0, now_s=0)
    with pytest.raises(RequestRejected) as refused:
        held.enter("a", now_s=7100)  # half a dollar an hour
    assert refused.value.reason == "tenant_usd"
    held.enter("b", now_s=7100)
    held.enter("a", now_s=7300)


def test_each_gateway_holds_its_share() -> None:
    held = limits(share=0.5, max_in_flight=4, tokens_per_s=10, burst_tokens=50)
    for _ in range(2):
        held.enter("a", now_s=0)
    with pytest.raises(RequestRejected):
        held.enter("a", now_s=0)
    held.leave("a", now_s=0)
    held.charge("a", 30, now_s=0)
    with pytest.raises(RequestRejected):
        held.enter("a", now_s=0.9)  # 25 of burst, 5 a second
    held.enter("a", now_s=1.1)


def test_tenants_that_left_no_trace_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tenants, "FORGET_ABOVE", 0)
    held = limits(tokens_per_s=10, burst_tokens=50)
    for name in "abcd":
        held.enter(name, now_s=0)
        held.charge(name, 10 if name == "a" else 0, now_s=0)
    for name in "abcd":
        held.leave(name, now_s=0)
    assert set(held._accounts) == {"a"}


@settings(deadline=None, max_examples=100)
@given(
    rate=st.integers(1, 100),
    burst=st.integers(1, 1000),
    asks=st.lists(st.tuples(st.floats(0, 5), st.integers(1, 300)), min_size=1, max_size=60),
)
def test_over_any_stretch_a_tenant_gets_the_burst_the_rate_and_one_request(
    rate: int, burst: int, asks: list[tuple[float, int]]
) -> None:
    bucket = TokenBucket(rate, burst, now_s=0)
    now_s, served = 0.0, []
    for pause_s, tokens in asks:
        now_s += pause_s
        if bucket.level(now_s) > 0:
            bucket.take(tokens, now_s=now_s)
            served.append((now_s, tokens))
    for start in range(len(served)):
        for end in range(start, len(served)):
            got = sum(tokens for _, tokens in served[start : end + 1])
            span_s = served[end][0] - served[start][0]
            assert got <= burst + rate * span_s + 300 + 1e-6


@settings(deadline=None, max_examples=100)
@given(rate=st.integers(1, 100), debt=st.integers(1, 10_000))
def test_a_caller_that_waits_as_hinted_is_let_in(rate: int, debt: int) -> None:
    bucket = TokenBucket(rate, 10, now_s=0)
    bucket.take(10 + debt, now_s=0)
    wait_s = bucket.wait_s(0)
    assert wait_s == pytest.approx(debt / rate)
    assert bucket.level(wait_s + 0.01) > 0
