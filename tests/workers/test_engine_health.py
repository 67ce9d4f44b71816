from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from workers.engine_health import EngineHealth

STALL_S = 20.0


def test_a_leg_is_work_from_its_own_time_on() -> None:
    health = EngineHealth(STALL_S)
    health.must_step("import", 30.0)
    assert not any(health.hung(7, now_s) for now_s in (0.0, 10.0, 29.0))
    assert not health.hung(7, 30.0)
    assert not health.hung(7, 49.0)
    assert health.hung(7, 50.0)


def test_a_leg_that_ended_is_no_work() -> None:
    health = EngineHealth(STALL_S)
    health.must_step("a", 0.0)
    assert not health.hung(7, 0.0)
    health.leg_ended("a")
    health.leg_ended("unknown")
    assert not health.hung(7, 100.0)


@given(steps=st.lists(st.integers(0, 3), max_size=30))
def test_an_engine_that_died_is_hung_whatever_it_counts(steps: list[int]) -> None:
    health = EngineHealth(STALL_S)
    health.died = True
    assert all(health.hung(count, float(now_s)) for now_s, count in enumerate(steps))


@given(st.lists(st.tuples(st.floats(0, 30), st.booleans()), max_size=40))
def test_an_engine_that_steps_is_never_hung(samples: list[tuple[float, bool]]) -> None:
    health, now_s = EngineHealth(STALL_S), 0.0
    for steps, (wait_s, busy) in enumerate(samples):
        now_s += wait_s
        if busy:
            health.must_step("leg", now_s)
        else:
            health.leg_ended("leg")
        assert not health.hung(steps, now_s)
