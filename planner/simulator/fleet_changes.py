"""How a scaling policy's actions are carried out in a simulated cluster: starts, drains, roles, migrations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cluster.spec.config import DrainSettings, Role
from orchestrator.policy.drain_moves import DRAIN_TICK_S, HeldRequest, Hold, Move, empty_workers, is_to_be_emptied
from orchestrator.policy.router import Wait, is_batch
from orchestrator.policy.scaling_policy import ChangeRole, DrainWorker, MigrateRequest, ScalingAction, StartWorker
from orchestrator.request import lifecycle as lc
from orchestrator.request.moving import Moves, hold_of
from planner.simulator.driver import LegDriver
from planner.simulator.fleet import Fleet, Worker
from planner.simulator.flight import Flight
from planner.simulator.forecast import LengthForecast
from planner.simulator.gateway import GatewaySpec
from planner.simulator.kernel import Kernel, Timers
from planner.simulator.leg import LegState
from planner.simulator.placer import Placer
from planner.simulator.records import Records

MOVES_AT_ONCE = DrainSettings().moves_at_once


class FleetChanges:
    """Changes the fleet, and moves requests with their KV."""

    def __init__(
        self,
        kernel: Kernel,
        timers: Timers,
        records: Records,
        gateway: GatewaySpec,
        fleet: Fleet,
        flights: Mapping[int, Flight],
        driver: LegDriver,
        placer: Placer,
        forecast: LengthForecast,
    ) -> None:
        self._kernel = kernel
        self._timers = timers
        self._records = records
        self._gateway = gateway
        self._fleet = fleet
        self._flights = flights
        self._driver = driver
        self._placer = placer
        self._forecast = forecast
        self._moves = Moves()
        self._ticking = False

    def apply(self, action: ScalingAction) -> None:
        """Carry out one action.

        Raises:
            ConfigError: it names a role or kind that no pool has.
        """
        fleet = self._fleet
        match action:
            case StartWorker():
                pool = fleet.pool_of(action.role, action.kind)
                fleet.launch(pool, action.role, pool.start_s if action.delay_s is None else action.delay_s)
            case DrainWorker():
                worker = fleet.workers[action.worker_id]
                fleet.drain(worker, action.migrate)
                if self._gateway.live_rules:
                    self._placer.pump()  # those that avoided the other workers no longer do; a move comes a tick later
                if action.migrate and worker.state == "draining":
                    self._begin_to_empty(worker)
                fleet.settle(worker)
            case ChangeRole():
                worker = fleet.workers[action.worker_id]
                if worker.role is not action.role:
                    worker.role = action.role
                    self._placer.pump()
                    if self._gateway.live_rules and action.role is Role.PREFILL:
                        self._begin_to_empty(worker)
            case MigrateRequest():
                flight = self._flights.get(action.request)
                if flight is not None:
                    self._move(flight, action.target_id)
        if self._gateway.live_rules:
            self._placer.pump()  # a worker on its way is reason enough to try again

    def _begin_to_empty(self, worker: Worker) -> None:
        """Move what is on a worker; by live rules in one tick with all that are to be emptied, as a gateway does."""
        if not self._gateway.live_rules:
            self._empty(worker)
        elif not self._ticking:
            self._tick()

    def _tick(self, _: object = None) -> None:
        workers = [each for each in self._fleet.workers.values() if not self._is_empty(each)]
        self._ticking = self._move_off(workers)
        if self._ticking:
            self._timers.at(self._kernel.now_s + DRAIN_TICK_S, self._tick)

    def _empty(self, worker: Worker) -> None:
        """Move what decodes on one worker that is to be emptied; again later for what could not move yet."""
        if self._is_empty(worker):
            return
        self._move_off([worker])
        if not self._is_empty(worker):
            self._timers.at(self._kernel.now_s + DRAIN_TICK_S, lambda _: self._empty(worker))

    def _move_off(self, workers: Sequence[Worker]) -> bool:
        self._moves.forget_over({flight.lifecycle.request_id: flight.lifecycle for flight in self._flights.values()})
        return empty_workers(
            [worker.worker_id for worker in workers],
            held=self._held_by,
            views=self._fleet.views,
            begin=self._begin_move,
            block_size_tokens=self._fleet.spec.pools[0].profile.block_size_tokens,
            moves_at_once=MOVES_AT_ONCE,
        )

    def _is_empty(self, worker: Worker) -> bool:
        """Whether nothing is to be moved off a worker."""
        if worker.state == "draining":
            return self._fleet.settle(worker) or not worker.migrate
        decodes = any(flight.lifecycle.decode_id == worker.worker_id for flight in self._flights.values())
        return worker.state != "ready" or not is_to_be_emptied(worker.role, draining=False, decodes=decodes)

    def _hold(self, flight: Flight, worker: Worker) -> Hold | None:
        life = flight.lifecycle
        if self._gateway.live_rules:
            moving = self._moves.under_way(life)
        else:  # off this worker alone: one that comes to it and has its next move ahead of it counts for that
            moving = life.prefill_id == worker.worker_id and life.moves > 0 and not life.has_output
        return hold_of(life, worker.worker_id, moving=moving)

    def _held_by(self, worker_id: str) -> list[HeldRequest]:
        worker = self._fleet.workers[worker_id]
        flights = [flight for flight in self._flights.values() if self._hold(flight, worker)]
        return [self._held(flight, worker) for flight in flights]

    def _held(self, flight: Flight, worker: Worker) -> HeldRequest:
        self._driver.tell_progress(flight)
        leg = flight.leg
        # One that has landed by what it reported just now counts until the next tick.
        hold = self._hold(flight, worker) or Hold.MOVING
        if hold is Hold.DECODING and (leg is None or leg.state is not LegState.DECODING):
            hold = Hold.BUSY  # its engine has preempted it
        known = flight.isl_tokens + flight.generated_tokens
        more = self._forecast.osl_tokens(flight.tenant, flight.isl_tokens, flight.generated_tokens)
        prefill_id = flight.lifecycle.prefill_id if hold is Hold.RESERVED else None
        return HeldRequest(str(flight.index), hold, known, more, is_batch(flight.priority), prefill_id)

    def _move(self, flight: Flight, target_id: str | None) -> None:
        """Begin a migration with the KV. Only a request that decodes and has somewhere to go can.

        Colocated workers neither export KV nor read it.
        """
        leg, source = flight.leg, flight.worker
        if leg is None or source is None or leg.state is not LegState.DECODING or source.role is Role.COLOCATED:
            return
        views = [
            view
            for view in self._fleet.views()
            if view.worker_id != source.worker_id
            and (view.role is Role.PREFILL or (view.role is Role.DECODE and target_id in (None, view.worker_id)))
        ]
        self._driver.tell_progress(flight)
        placement = self._placer.place(flight, views)
        if not isinstance(placement, Wait):
            self._begin(flight, placement.decode_id, placement.reserve_blocks)

    def _begin_move(self, _: str, move: Move) -> None:
        self._begin(self._flights[int(move.request_id)], move.target_id, move.reserve_blocks)

    def _begin(self, flight: Flight, target_id: str, blocks: int) -> None:
        """Let a request go on at the target."""
        target, columns = self._fleet.workers[target_id], self._records.columns
        if flight.lifecycle.state is lc.State.PREFILLING:
            flight.unreserve()  # the reservation alone changes its place
        self._placer.reserve(flight, target, blocks)
        columns["decode"][flight.index] = target.number
        self._moves.begin(flight.lifecycle, target_id)
        self._driver.handle(flight, lc.Moved(target_id))
        columns["moves"][flight.index] = flight.lifecycle.moves
