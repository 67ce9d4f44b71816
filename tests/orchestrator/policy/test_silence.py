from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.silence import HOLD, CutOff

TIMEOUT_S = 15.0


@given(st.lists(st.tuples(st.floats(0.01, 30), st.booleans(), st.integers(0, 5)), max_size=40))
def test_judgement_waits_only_while_nobody_is_heard_and_not_for_ever(steps: list[tuple[float, bool, int]]) -> None:
    cut_off, now_s, common_s = CutOff(TIMEOUT_S), 0.0, 0.0
    began_s: float | None = None
    for step_s, heard, silent in steps:
        now_s += step_s
        waits = cut_off.observe(now_s, heard=heard, silent=silent)
        if heard or silent < 2:
            began_s = None
            assert not waits
            continue
        began_s = now_s if began_s is None else began_s
        common_s = now_s - began_s
        assert waits == (common_s < HOLD * TIMEOUT_S)


def test_a_silence_that_ended_is_forgotten() -> None:
    cut_off = CutOff(TIMEOUT_S)
    assert cut_off.observe(0.0, heard=False, silent=2)
    assert not cut_off.observe(70.0, heard=True, silent=1)
    assert cut_off.observe(71.0, heard=False, silent=2)
