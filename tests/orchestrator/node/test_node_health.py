"""What the probes say while engines load, pair, serve and hang."""

from __future__ import annotations

import pytest

from orchestrator.node.node_health import Engine, Member, NodeHealth

HERE, THERE = "10.0.0.1", "10.0.0.2"


def member(state: str, host: str = HERE, name: str = "decode-0") -> Member:
    return Member(name, host, state)


@pytest.fixture
def health() -> NodeHealth:
    return NodeHealth(HERE, stall_timeout_s=60)


def test_an_engine_that_loads_for_long_is_alive_and_not_ready(health: NodeHealth) -> None:
    for second in range(0, 3600, 10):
        answers = health.see([Engine(7, second * 0.5)], [], now_s=second)
        assert (answers.started, answers.ready, answers.alive) == (False, False, True)


def test_an_engine_that_does_nothing_while_loading_hangs(health: NodeHealth) -> None:
    assert health.see([Engine(7, 5.0)], [], now_s=0).alive
    assert health.see([Engine(7, 9.0)], [], now_s=30).alive
    assert health.see([Engine(7, 9.0)], [], now_s=89).alive
    answers = health.see([Engine(7, 9.0)], [], now_s=90)
    assert not answers.alive
    assert "hung" in answers.why


def test_the_trickle_of_an_idle_event_loop_is_no_progress(health: NodeHealth) -> None:
    alive = [health.see([Engine(7, 5.0 + second * 0.001)], [], now_s=second).alive for second in range(0, 100, 2)]
    assert alive[0]
    assert not alive[-1]


def test_an_idle_engine_that_has_loaded_does_not_hang(health: NodeHealth) -> None:
    health.see([Engine(7, 5.0)], [member("ready")], now_s=0)
    assert health.see([Engine(7, 5.0)], [member("ready")], now_s=10_000).ready


def test_loaded_is_not_ready_before_every_pair_has_shaken_hands(health: NodeHealth) -> None:
    answers = health.see([Engine(7, 5.0)], [member("starting")], now_s=0)
    assert (answers.started, answers.ready, answers.alive) == (True, False, True)
    assert "handshake" in answers.why
    assert health.see([Engine(7, 5.0)], [member("ready")], now_s=1).ready


def test_a_worker_on_standby_has_shaken_hands_and_its_pod_is_ready(health: NodeHealth) -> None:
    assert health.see([Engine(7, 5.0)], [member("standby")], now_s=0).ready
    assert health.see([], [member("standby", THERE)], now_s=1).ready  # and so is one that is free


def test_one_of_two_workers_here_is_not_enough(health: NodeHealth) -> None:
    members = [member("ready"), member("starting", name="decode-1")]
    assert not health.see([Engine(7, 1.0), Engine(8, 1.0)], members, now_s=0).ready


def test_a_draining_pod_takes_nothing_new_and_lives(health: NodeHealth) -> None:
    answers = health.see([Engine(7, 5.0)], [member("draining")], now_s=0)
    assert (answers.ready, answers.alive, answers.why) == (False, True, "draining")


def test_a_free_pod_is_ready_once_the_cluster_is(health: NodeHealth) -> None:
    assert not health.see([], [], now_s=0).ready
    assert not health.see([], [member("starting", THERE)], now_s=1).ready
    answers = health.see([], [member("ready", THERE)], now_s=2)
    assert (answers.started, answers.ready, answers.why) == (True, True, "free")


def test_a_replacement_is_followed_from_its_own_start(health: NodeHealth) -> None:
    health.see([Engine(7, 500.0)], [member("ready")], now_s=0)
    assert health.see([Engine(8, 0.1)], [], now_s=1000).alive
    assert health.see([Engine(8, 0.1)], [], now_s=1059).alive
    assert not health.see([Engine(8, 0.1)], [], now_s=1060).alive


def test_without_ray_nothing_is_well(health: NodeHealth) -> None:
    answers = health.see([], [member("ready", THERE)], now_s=0, ray=False)
    assert not (answers.started or answers.ready or answers.alive)
