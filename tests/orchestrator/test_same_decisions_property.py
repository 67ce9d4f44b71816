"""The live gateway and the simulator decide alike, whatever happens: both get the same random events, one by one."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baton.internal.v1 import registry_pb2
from cluster.errors import RequestRejected
from cluster.placement import worker_plan
from cluster.spec.config import PoolSettings, Role, parse
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.gateway import peaks
from orchestrator.policy.router import Placement, RequestView
from orchestrator.policy.scaling_policy import ChangeRole, DrainWorker, StartWorker
from orchestrator.request import lifecycle as lc
from planner.simulator.cost import AffineCost, AffineTransfer
from planner.simulator.fleet import FleetSpec, PoolSpec, Worker
from planner.simulator.forecast import LiveForecast
from planner.simulator.gateway import GatewaySpec, Rules
from planner.simulator.profile import EngineProfile
from planner.simulator.records import Outcome
from planner.simulator.simulation import Simulation
from planner.simulator.workload import Workload
from tests.fakes.live_cluster import ask, gateway_of
from tests.fakes.scripted import BLOCK_SIZE_TOKENS, Clock, ScriptedEngine, ScriptedLink
from tests.fakes.tokenizer import front

MOST_TOKENS = 64
"""Limit of every request's output. What is reserved is never outgrown: what a gateway knows of a worker is then what
the simulator knows."""
MOST_QUEUED = 3
PATIENCE_S = 0.93
START_S = 2.21
TICK_S = 0.1
TENANTS = ("chat", "batch")
WEIGHTS = {"batch": 0.5}
COST = AffineCost(decode_base_s=0.01, prefill_token_s=0.002)
SPEC = f"""
model: {{path: m, served_name: fake, max_model_len_tokens: 1024}}
pools: {{prefill: {{replicas: 1}}, decode: {{replicas: 1}}}}
gateway: {{max_queued_requests: {MOST_QUEUED}, forecast_osl_tokens: {MOST_TOKENS}}}
transfer: {{retry_budget: 2, local_prefill_after_s: 0.3}}
tenants: {{batch: {{weight: 0.5}}}}
autoscaling: {{enabled: true, interval_s: 1000, preempt_after_s: {PATIENCE_S}}}
"""

OTHER = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}
POOL = parse(SPEC).pools.decode or PoolSettings()

Decision = tuple[Any, ...]


@dataclass(frozen=True)
class Asked:
    """One request of a script."""

    isl_tokens: int
    osl_tokens: int
    priority: int
    tenant: int


@dataclass(frozen=True)
class Script:
    """Workers, requests in the order in which they come, and what happens; numbers choose among what there is."""

    prefill: int
    decode: int
    colocated: int
    standby: int
    total_blocks: int
    requests: list[Asked]
    events: list[tuple[str, int, int]]


requests = st.builds(
    Asked, st.integers(1, 300), st.integers(1, MOST_TOKENS), st.sampled_from([-1, 0, 0, 0, 1]), st.integers(0, 1)
)
events = st.tuples(
    st.sampled_from(["arrive"] * 7 + ["progress"] * 9 + ["lose", "drain", "start", "cancel", "role", "wait"]),
    st.integers(0, 30),
    st.integers(1, 40),
)
scripts = st.builds(
    Script,
    st.integers(1, 2),
    st.integers(1, 3),
    st.integers(0, 1),
    st.integers(0, 1),
    st.integers(14, 32),
    st.lists(requests, min_size=6, max_size=14),
    st.lists(events, min_size=10, max_size=40),
)


def plain(event: lc.Event, actions: list[lc.Action]) -> list[Decision]:
    """What was decided with an event, without what two drivers cannot share."""
    found: list[Decision] = []
    match event:
        case lc.Moved() if actions:
            found.append(("moved", event.decode_id))
        case lc.Preempted() if actions:
            found.append(("preempted",))
        case lc.Displaced() if actions:
            found.append(("displaced",))
    for action in actions:
        if isinstance(action, lc.AskPlacement):
            found.append(("waits", tuple(sorted(action.avoid))))
        elif isinstance(action, lc.StartLeg):
            found.append(("leg", action.worker_id, len(action.token_ids), action.max_tokens, action.ticket is not None))
        elif isinstance(action, lc.Fail) and not isinstance(event, lc.Cancelled | lc.Displaced):
            found.append(("failed", type(action.error).__name__))
        elif isinstance(action, lc.Finish):
            found.append(("finished", action.reason))
    return found


@dataclass
class Logs:
    """Decisions of both drivers, in order, with the request's number."""

    live: list[Decision] = field(default_factory=list)
    virtual: list[Decision] = field(default_factory=list)
    exports: set[str] = field(default_factory=set)
    """Legs of the simulator that export for a move: they read no prompt."""

    def take(self, request_id: str, event: lc.Event, actions: list[lc.Action]) -> None:
        name, *rest = request_id.split(".")  # a gateway adds the choice and a number
        log = self.live if rest else self.virtual
        log += [(int(name), *each) for each in plain(event, actions)]
        if isinstance(event, lc.Moved) and not rest:
            self.exports |= {action.leg_id for action in actions if isinstance(action, lc.StartLeg)}

    def placed(self, log: list[Decision], placer: Any, number_of: Callable[[Any], int]) -> None:
        """Have what a driver's placer decides in a log, when it decides it."""
        real = placer.placed

        def placed(item: Any, view: RequestView, placement: Placement) -> None:
            log.append((number_of(item), "placed", placement.prefill_id, placement.decode_id))
            real(item, view, placement)

        placer.placed = placed

    def alike(self) -> bool:
        """Whether each request went the same way, and each kind of decision was taken in the same order.

        Not the order of all, nor of legs: a gateway's runs take what was decided for them a moment later, each in its
        own task.
        """
        kinds = [[each for each in log if each[1] != "leg"] for log in (self.live, self.virtual)]
        return _sorted(self.live, 0) == _sorted(self.virtual, 0) and _sorted(kinds[0], 1) == _sorted(kinds[1], 1)


def _sorted(log: list[Decision], key: int) -> list[Decision]:
    return sorted(log, key=lambda each: each[key])  # stable: what is equal by the key keeps its order


def state_of(worker: Worker) -> str:
    """As the controller would have it."""
    return "standby" if worker.standby and worker.state == "ready" else worker.state


def managed(worker: Worker) -> ManagedWorker:
    """The controller's record of a worker that the simulator has."""
    found = ManagedWorker.planned(worker_plan(worker.role, POOL, worker.number), POOL)
    found.member.state, found.standby = state_of(worker), worker.standby
    found.draining = worker.state in ("draining", "gone")
    return found


class Both:
    """A gateway and a simulation over workers that do what the script says."""

    def __init__(self, script: Script, clock: Clock) -> None:
        self.script = script
        self.clock = clock
        self.begin_s = clock.now_s
        self.arrived = 0
        kind = EngineProfile(COST, COST, script.total_blocks, block_size_tokens=BLOCK_SIZE_TOKENS, mixed=COST)
        self.rate = kind.prefill_tokens_per_s
        size = len(script.requests)
        column = {name: np.array([getattr(each, name) for each in script.requests]) for name in Asked.__annotations__}
        self.simulation = Simulation(
            FleetSpec(
                [
                    PoolSpec(Role.PREFILL, kind, script.prefill, START_S),
                    PoolSpec(Role.DECODE, kind, script.decode, START_S, standby_replicas=script.standby),
                    PoolSpec(Role.COLOCATED, kind, script.colocated, START_S),
                ],
                AffineTransfer(1e15),
                local_prefill_after_s=0.3,
            ),
            Workload(
                np.arange(size, dtype=float),
                column["isl_tokens"],
                np.zeros(size, int),
                column["osl_tokens"],
                priority=column["priority"],
                tenant=column["tenant"],
                tenants=TENANTS,
            ),
            GatewaySpec(
                max_queued_requests=MOST_QUEUED,
                deadline_s=3600.0,
                max_output_tokens=MOST_TOKENS,
                preempt_after_s=PATIENCE_S,
                rules=Rules.LIVE,
                weights=WEIGHTS,
            ),
            forecast=LiveForecast(MOST_TOKENS, MOST_TOKENS, BLOCK_SIZE_TOKENS),
        )
        self.links: dict[str, ScriptedLink] = {}
        self.gateway = gateway_of(parse(SPEC), front())
        self.gateway.model.placer._clock = clock  # its default was bound before the clock was replaced
        self.loop: Any = asyncio.get_running_loop()
        self.loop.time = clock  # timers of the gateway, too, are due when the clock says so
        self.streams: list[asyncio.Task[None]] = []
        self.published: tuple[Any, ...] = ()

    def link(self, worker_id: str, address: str, **given: Any) -> ScriptedLink:
        made = ScriptedLink(worker_id, address, self.script.total_blocks, self.rate, given["on_load"], self.clock.now_s)
        self.links[worker_id] = made
        return made

    # --- the registry: a gateway learns of the workers that the simulator has ------------------------------------

    def publish(self) -> bool:
        """Publish the membership if it changed; whether it did."""
        fleet = self.simulation.fleet
        states = {each: state_of(each) for each in fleet.workers.values() if each.engine is not None}
        for worker in fleet.workers.values():
            # A controller ends a worker only when the gateways, too, have nothing on it any more.
            if (
                worker.state == "gone"
                and worker.worker_id in self.gateway.model.fleet.workers
                and self.concerns(worker)
            ):
                states[worker] = "draining"
        members = [
            registry_pb2.Member(
                worker_id=worker.worker_id,
                role=worker.role.value,
                state=state,
                address=worker.incarnation,
                incarnation=worker.incarnation,
                total_blocks=self.script.total_blocks,
                block_size_tokens=BLOCK_SIZE_TOKENS,
                cpus=1,
            )
            for worker, state in states.items()
        ]
        starting = sum(managed(each).on_its_way for each in fleet.workers.values())
        present = (starting, *((each.incarnation, each.role, each.state) for each in members))
        if present == self.published:
            return False
        self.published = present
        self.gateway.update_members(
            registry_pb2.WatchMembersResponse(members=members, starting_decode_workers=starting)
        )
        self.gateway.model.fleet._prefixes = None  # prompts share nothing
        return True

    def concerns(self, worker: Worker) -> bool:
        """Whether a request of the gateway has anything on a worker, its KV before the first token included."""
        lives = [run.life for run in self.gateway.model.runs.values()]
        return any(
            life.decode_id == worker.worker_id or (life.prefill_id == worker.worker_id and not life.has_output)
            for life in lives
        )

    def reads(self, worker: Worker) -> bool:
        """Whether prompts are read on a worker for others to decode."""
        lives = [flight.lifecycle for flight in self.simulation.live.values()]
        return any(life.prefill_id == worker.worker_id and life.state is lc.State.PREFILLING for life in lives)

    async def settle(self) -> None:
        """Let the gateway's tasks and the simulator's present instant run, until nothing more follows."""
        self.simulation.kernel.run(self.clock.now_s - self.begin_s)
        for _ in range(3):
            self.publish()
            for _ in range(6):
                await asyncio.sleep(0)
            for worker_id in list(self.gateway.model.fleet.workers):
                self.links[worker_id].report(self.clock.now_s)
        for _ in range(4):
            await asyncio.sleep(0)

    async def wait(self, seconds: float) -> None:
        """Let time pass on both sides."""
        until_s = self.clock.now_s + seconds
        while self.clock.now_s < until_s:
            self.clock.now_s = min(until_s, self.clock.now_s + TICK_S, self.next_s())
            await self.settle()

    def next_s(self) -> float:
        """When something is due on either side: what it changes is seen by both at the same time."""
        heap, timers = self.simulation.kernel._heap, self.loop._scheduled
        due_s = [self.begin_s + heap[0][0]] if heap else []
        due_s += [timers[0]._when] if timers else []
        return max(self.clock.now_s + 1e-6, min(due_s, default=float("inf")))

    # --- events ---------------------------------------------------------------------------------------------

    async def happens(self, what: str, which: int, count: int) -> None:
        """One event on both sides; nothing where there is nothing for it to happen to."""
        fleet, apply = self.simulation.fleet, self.simulation.changes.apply
        ready = [each for each in fleet.workers.values() if each.state == "ready" and not each.standby]
        starting = [each for each in fleet.workers.values() if each.state == "starting"]
        match what:
            case "arrive" if self.arrived < len(self.script.requests):
                self.arrive(self.arrived)
                self.arrived += 1
            case "progress":
                running = [flight for flight in self.simulation.live.values() if flight.lifecycle.leg_id is not None]
                if running:
                    self.progress(running[which % len(running)], count)
            case "lose" if len(ready) > 2:
                self.simulation.fail(ready[which % len(ready)].worker_id)
            case "drain" if len(ready) > 2:
                apply(DrainWorker(ready[which % len(ready)].worker_id, migrate=True))
            case "start" if len(fleet.workers) < 6:
                apply(StartWorker(Role.DECODE if which % 3 else Role.PREFILL, delay_s=START_S))
            case "cancel" if starting:
                apply(DrainWorker(starting[which % len(starting)].worker_id))
            case "role" if len(ready) > 2:
                worker = ready[which % len(ready)]
                peers = sum(each.role is worker.role for each in ready)
                # Not while it reads prompts: a gateway takes their blocks for those it has reserved there.
                if worker.role in OTHER and peers > 1 and not self.reads(worker):
                    apply(ChangeRole(worker.worker_id, OTHER[worker.role]))
            case "wait":
                await self.wait(count / 8)
        await self.settle()

    def arrive(self, index: int) -> None:
        asked = self.script.requests[index]
        request = ask(
            [65 + index] * asked.isl_tokens,
            MOST_TOKENS,
            request_id=str(index),
            priority=asked.priority,
            tenant=TENANTS[asked.tenant],
        )

        async def read() -> None:
            async for _ in self.gateway.generate(request):
                pass

        self.streams.append(asyncio.create_task(read()))
        self.simulation.arrive(index)

    def progress(self, flight: Any, count: int) -> None:
        number = flight.index
        run = next(each for each in self.gateway.model.runs.values() if each.life.request_id.startswith(f"{number}."))
        leg_id, left_tokens = run.life.leg_id, flight.osl_tokens - len(run.life.output_ids)
        link = next(each for each in self.links.values() if leg_id in each.legs)
        flight.engine.progress(flight.leg, count)
        if flight.index in self.simulation.live:
            self.simulation.driver.tell_progress(flight)
        link.progress(leg_id, count, left_tokens)

    def rejected(self) -> tuple[list[int], list[int]]:
        """Requests that were refused, or lost their place, on each side."""
        live = [
            index
            for index, stream in enumerate(self.streams)
            if stream.done() and isinstance(stream.exception(), RequestRejected)
        ]
        outcomes = self.simulation.records["outcome"]
        return live, [index for index in range(len(outcomes)) if outcomes[index] == Outcome.REJECTED]


@contextmanager
def scripted(script: Script) -> Iterator[tuple[Both, Logs]]:
    real, logs, clock = lc.Lifecycle.handle, Logs(), Clock()

    def handle(self: lc.Lifecycle, event: lc.Event) -> list[lc.Action]:
        actions = real(self, event)
        logs.take(self.request_id, event, actions)
        return actions

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lc.Lifecycle, "handle", handle)
        patch.setattr(time, "monotonic", clock)
        patch.setattr(peaks, "FRESH_S", float("inf"))  # none is ever reckoned: the simulator ranks by what is reserved
        patch.setattr("planner.simulator.fleet.Engine", partial(ScriptedEngine, exports=logs.exports))
        both = Both(script, clock)
        patch.setattr("orchestrator.gateway.fleet.WorkerLink", both.link)
        logs.placed(logs.live, both.gateway.model.placer, lambda run: int(run.request.request_id))
        logs.placed(logs.virtual, both.simulation.placer, lambda flight: flight.index)
        yield both, logs


async def run(script: Script) -> Logs:
    with scripted(script) as (both, logs):
        try:
            await both.settle()
            for at, event in enumerate(script.events):
                await both.happens(*event)
                await both.wait(4 * TICK_S)  # a gateway may be between two ticks of a drain, or two samples
                for _ in range(5):
                    if not logs.alike():
                        await both.wait(TICK_S)
                assert logs.alike(), (at, event, logs)
                live, virtual = both.rejected()
                assert live == virtual, (at, event)
        finally:
            for stream in both.streams:
                stream.cancel()
            await asyncio.gather(*both.streams, return_exceptions=True)
            await both.gateway.close()
    return logs


# Other scripts each time, unlike other properties: whatever two drivers do not agree on is news.
@settings(max_examples=60, deadline=None, derandomize=False, suppress_health_check=list(HealthCheck))
@given(scripts)
def test_both_drivers_decide_alike(script: Script) -> None:
    asyncio.run(run(script))
