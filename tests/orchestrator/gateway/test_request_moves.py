"""Moves alone: one tick over runs and views."""

from __future__ import annotations

from orchestrator.gateway.forecast import OutputForecast
from orchestrator.gateway.metrics import ModelMetrics
from orchestrator.gateway.request_moves import RequestMoves
from orchestrator.request.lifecycle import Event, FreeReservation, Moved, State, Turned, WorkerLost
from tests.fakes.gateway_parts import BLOCK, FakeFleet, FakeRun, prepared


class Setup:
    def __init__(self, *, rebalances: bool = False, at_once: int = 2) -> None:
        self.fleet, self.metrics = FakeFleet(), ModelMetrics()
        for worker_id in ("prefill-0", "decode-0", "decode-1"):
            self.fleet.add(worker_id)
        self.runs: dict[int, FakeRun] = {}
        self.moves = RequestMoves(
            self.fleet, self.runs, OutputForecast(512, BLOCK), self.metrics,
            moves_at_once=at_once, rebalances=rebalances,
        )  # fmt: skip

    def run(self, tokens: int = 5) -> FakeRun:
        run = FakeRun(prepared(64, 500))
        self.runs[run.number] = run
        return run.decodes("decode-0", tokens) if tokens else run

    def moving(self) -> list[FakeRun]:
        return [run for run in self.runs.values() if self.moves.is_moving(run.life)]


def test_a_draining_worker_is_emptied_a_few_at_a_time() -> None:
    setup = Setup()
    runs = [setup.run() for _ in range(3)]
    assert not setup.moves.tick()
    setup.fleet.emptying.append("decode-0")
    assert setup.moves.tick()
    assert len(setup.moving()) == 2
    assert all(isinstance(run.posted[0], Moved) and run.life.decode_id == "decode-1" for run in setup.moving())
    assert set(setup.fleet.reserved["decode-1"]) == {run.life.request_id for run in setup.moving()}
    setup.moves.tick()
    assert len(setup.moving()) == 2
    # One lands: it makes tokens where it is, and the third may go.
    landed = setup.moving()[0]
    landed.decodes("decode-1", 0)
    landed.decodes("decode-1", 2)
    assert landed.life.has_output
    setup.moves.tick()
    assert sum(bool(run.posted) for run in runs) == 3
    assert setup.metrics.moves._value.get() == 3


def test_one_that_would_change_its_meaning_stays_and_keeps_the_worker_busy() -> None:
    setup = Setup()
    setup.run().life.resumable = False
    setup.fleet.emptying.append("decode-0")
    assert setup.moves.tick()
    assert not setup.moving()


def test_nothing_moves_off_a_colocated_worker_and_it_stays_busy() -> None:
    setup = Setup()
    setup.fleet.add("colocated-0")
    run = setup.run(0).decodes("colocated-0", 5)
    setup.fleet.emptying.append("colocated-0")
    assert setup.moves.tick()
    assert not setup.moving()
    assert run.life.decode_id == "colocated-0"


def test_a_reservation_moves_without_counting() -> None:
    setup = Setup()
    run = setup.run(0)
    run.placed("prefill-0", "decode-0")
    setup.fleet.emptying.append("decode-0")
    assert setup.moves.tick()
    assert (run.life.state, run.life.decode_id) == (State.PREFILLING, "decode-1")
    assert not setup.moving()
    assert setup.metrics.moves._value.get() == 0


def test_a_move_is_forgotten_when_its_request_ends() -> None:
    setup = Setup()
    run = setup.run()
    setup.fleet.emptying.append("decode-0")
    setup.moves.tick()
    assert setup.moving() == [run]
    setup.runs.clear()
    assert not setup.moves.tick()
    assert not setup.moves.is_moving(run.life)


def test_one_that_has_landed_is_not_on_its_way_before_the_next_tick_either() -> None:
    setup = Setup()
    run = setup.run()
    setup.fleet.emptying.append("decode-0")
    setup.moves.tick()
    run.decodes("decode-1", 0)
    assert setup.moving() == [run]
    run.decodes("decode-1", 2)
    assert not setup.moving()


def test_one_whose_target_is_lost_moves_again() -> None:
    setup = Setup()
    run = setup.run()
    setup.fleet.emptying.append("decode-0")
    setup.moves.tick()
    run.life.handle(WorkerLost("decode-1"))
    assert not setup.moving()
    run.decodes("decode-0")
    setup.moves.tick()
    assert run.posted == [Moved("decode-1")] * 2
    assert setup.moving() == [run]


def test_one_that_could_not_move_after_all_moves_later() -> None:
    setup = Setup()
    run = setup.run()
    setup.fleet.emptying.append("decode-0")
    posted: list[Event] = []
    run.post = posted.append  # type: ignore[method-assign]  # its caller does not read at present
    setup.moves.tick()
    run.life.handle(Turned((66,)))
    assert run.life.handle(posted[0]) == [FreeReservation("decode-1")]
    del setup.fleet.reserved["decode-1"][run.life.request_id]
    run.decodes("decode-0")
    setup.moves.tick()
    assert posted == [Moved("decode-1")] * 2


def test_requests_leave_a_worker_that_will_run_out_only_where_the_cluster_is_scaled() -> None:
    for rebalances in (False, True):
        setup = Setup(rebalances=rebalances)
        setup.fleet.workers.pop("decode-0")
        setup.fleet.add("decode-0", 20)
        for _ in range(2):
            setup.run()
        setup.moves.tick()
        assert len(setup.moving()) == rebalances
        assert setup.metrics.rebalanced._value.get() == rebalances
