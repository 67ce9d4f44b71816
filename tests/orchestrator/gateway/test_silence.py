"""Workers are given up for silence, but never while the gateway itself was away."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.gateway.silence import SilenceWatch

TIMEOUT_S = 15.0


def test_one_that_alone_is_silent_is_given_up_when_its_time_is_over() -> None:
    watch, silent_at = SilenceWatch(TIMEOUT_S), []
    for second in range(40):
        now_s = 100.0 + second
        if watch.check(now_s, {"a": 100.0, "b": now_s}).silent:
            silent_at.append(second)
    assert silent_at[0] == 15


@given(st.floats(0.2, 600))
def test_a_silent_worker_is_found_whatever_the_time_out(timeout_s: float) -> None:
    watch = SilenceWatch(timeout_s)
    times_s = [100.0 + watch.every_s * check for check in range(int(timeout_s / watch.every_s) + 2)]
    found = [watch.check(now_s, {"a": 100.0, "b": now_s}).silent for now_s in times_s]
    assert found[-1] == ("a",)


def test_after_a_pause_each_has_its_time_anew() -> None:
    watch = SilenceWatch(TIMEOUT_S)
    watch.check(100.0, {"a": 100.0, "b": 100.0})
    verdict = watch.check(160.0, {"a": 100.0, "b": 160.0})
    assert (verdict.renew, verdict.silent) == (True, ())


def test_when_nobody_is_heard_nobody_is_given_up_for_a_minute() -> None:
    watch, verdicts = SilenceWatch(TIMEOUT_S), []
    for second in range(120):
        verdicts.append(watch.check(100.0 + second, {"a": 100.0, "b": 100.0}))
    assert sum(verdict.cut_off for verdict in verdicts) == 1
    first = next(index for index, verdict in enumerate(verdicts) if verdict.renew or (verdict.silent and index))
    assert first == 0  # the first check has no check before it
    assert not any(verdict.silent for verdict in verdicts[:65])
    assert any(verdict.silent for verdict in verdicts[65:])


@given(st.lists(st.tuples(st.floats(0.1, 60), st.sets(st.sampled_from("abc"))), max_size=60))
def test_nobody_is_given_up_who_was_heard_within_the_timeout(steps: list[tuple[float, set[str]]]) -> None:
    watch, now_s = SilenceWatch(TIMEOUT_S), 0.0
    heard_s = dict.fromkeys("abc", 0.0)
    for pause_s, heard in steps:
        now_s += pause_s
        heard_s |= dict.fromkeys(heard, now_s)
        verdict = watch.check(now_s, heard_s)
        assert all(now_s - heard_s[name] >= TIMEOUT_S for name in verdict.silent)
        assert not (verdict.silent and (verdict.renew or pause_s > TIMEOUT_S / 3))
        if verdict.renew:
            heard_s = {name: max(last_s, now_s) for name, last_s in heard_s.items()}
