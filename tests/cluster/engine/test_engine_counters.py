from __future__ import annotations

from types import SimpleNamespace

import pytest

from cluster.engine import vllm_engine
from cluster.engine.engine_counters import EngineCounters


def test_steps_are_timed_from_one_to_the_next_and_idle_time_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(vllm_engine.time, "monotonic", lambda: now_s[0])
    counters = EngineCounters()

    def step(after_s: float, running: int) -> None:
        now_s[0] += after_s
        counters.record(
            SimpleNamespace(
                num_running_reqs=running,
                num_waiting_reqs=0,
                num_skipped_waiting_reqs=0,
                kv_cache_usage=0.0,
                kv_connector_stats=None,
            ),
            None,
        )

    step(5.0, 1)  # the first of a request
    step(0.01, 2)
    step(0.02, 0)  # its last one
    assert (counters.timed_steps, counters.timed_s) == (2, pytest.approx(0.03))
    step(60.0, 1)  # the next request came a minute later
    step(0.01, 1)
    assert (counters.steps, counters.timed_steps, counters.timed_s) == (5, 3, pytest.approx(0.04))
