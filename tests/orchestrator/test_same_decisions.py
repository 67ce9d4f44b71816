"""The live gateway, over fake engines, and the simulator take the same actions on the same requests."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from cluster.spec.config import Role
from orchestrator.request import lifecycle as lc
from planner.simulator.cost import AffineCost, AffineTransfer
from planner.simulator.engine import EngineProfile
from planner.simulator.failures import FailurePlan
from planner.simulator.fleet import FleetSpec, PoolSpec
from planner.simulator.forecast import FixedForecast
from planner.simulator.simulation import GatewaySpec, Simulation
from planner.simulator.workload import Workload
from tests.fakes.engine import BLOCK_SIZE_TOKENS
from tests.fakes.live_cluster import ask, cluster_of, run

OSL = 8
LENGTHS = (40, 64, 100, 33)
APART = ("prefill-0", "prefill-1", "decode-0", "decode-1")
TOGETHER = ("colocated-0", "colocated-1")

Actions = list[tuple[Any, ...]]


@contextmanager
def recorded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Actions]]:
    """The actions of every lifecycle in the order in which requests came; tokens sent in one go or many count alike."""
    real, known, logs = lc.Lifecycle.handle, list[lc.Lifecycle](), list[Actions]()

    def handle(self: lc.Lifecycle, event: lc.Event) -> list[lc.Action]:
        actions = real(self, event)
        at = next((i for i, each in enumerate(known) if each is self), len(known))
        if at == len(known):
            known.append(self)
            logs.append([])
        for action in actions:
            plain = _plain(action)
            if plain[0] == "SendTokens" and logs[at] and logs[at][-1][0] == "SendTokens":
                plain = ("SendTokens", logs[at].pop()[1] + plain[1])
            logs[at].append(plain)
        return actions

    with monkeypatch.context() as patch:
        patch.setattr(lc.Lifecycle, "handle", handle)
        yield logs


def _plain(action: lc.Action) -> tuple[Any, ...]:
    """An action without what two runs cannot share: ids of requests, legs and tickets, and the tokens themselves."""
    name = type(action).__name__
    match action:
        case lc.StartLeg():
            details = action.generated_tokens, action.max_tokens, action.export, action.ticket is not None
            return (name, action.worker_id, len(action.token_ids), *details)
        case lc.SendTokens():
            return (name, len(action.token_ids))
        case lc.AskPlacement():
            return (name, tuple(sorted(action.avoid)))
        case lc.AbortLeg() | lc.ReleaseTicket() | lc.FreeReservation():
            return (name, action.worker_id)
        case _:
            return (name,)


def prompt(index: int, length: int) -> list[int]:
    """Prompts that share no prefix."""
    return [65 + (index * 7 + place * (index + 1)) % 26 for place in range(length)]


def simulated(
    worker_ids: tuple[str, ...], arrival_s: list[float], lengths: tuple[int, ...], failures: FailurePlan | None = None
) -> None:
    """The same requests in virtual time: a decode step takes one second, a prefill two."""
    cost = AffineCost(decode_base_s=1.0, prefill_base_s=2.0)
    kind = EngineProfile(cost, cost, total_blocks=64, block_size_tokens=BLOCK_SIZE_TOKENS, mixed=cost)
    roles = [Role(each.split("-")[0]) for each in worker_ids]
    pools = [PoolSpec(role, kind, roles.count(role), start_s=1e6) for role in dict.fromkeys(roles)]
    size = len(lengths)
    requests = Workload(np.array(arrival_s), np.array(lengths), np.zeros(size, int), np.full(size, OSL))
    spec = GatewaySpec(max_output_tokens=OSL, retry_budget=2)
    forecast = FixedForecast(OSL)  # as the gateway: the forecast, but no more than what was asked for
    result = Simulation(
        FleetSpec(pools, AffineTransfer(1e9)), requests, spec, forecast=forecast, failures=failures or FailurePlan()
    ).run()
    assert result.summary()["finished"] == size


@pytest.mark.parametrize("worker_ids", [APART, TOGETHER])
async def test_one_after_another(worker_ids: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch) as live:
        async with cluster_of(*worker_ids) as cluster:
            for index, length in enumerate(LENGTHS):
                await run(cluster, ask(prompt(index, length), OSL))
                await cluster.idle()
    with recorded(monkeypatch) as virtual:
        simulated(worker_ids, [1000.0 * index for index in range(len(LENGTHS))], LENGTHS)
    assert live == virtual
    assert len(live) == len(LENGTHS) and all(log[-1] == ("Finish",) for log in live)


async def test_the_second_goes_to_the_emptier_decode_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch) as live:
        async with cluster_of(*APART) as cluster:
            hold = cluster.engine("decode-0").hold(3)
            first = asyncio.create_task(run(cluster, ask(prompt(0, 100), OSL)))
            await hold.reached.wait()
            await run(cluster, ask(prompt(1, 40), OSL))
            hold.open()
            await first
    with recorded(monkeypatch) as virtual:
        simulated(APART, [0.0, 5.0], (100, 40))
    assert live == virtual
    starts = [[action[1] for action in log if action[0] == "StartLeg"] for log in live]
    assert starts == [["prefill-0", "decode-0"], ["prefill-0", "decode-1"]]


async def test_a_prefill_worker_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    with recorded(monkeypatch) as live:
        async with cluster_of(*APART) as cluster:
            hold = cluster.engine("prefill-0").hold("prefill")
            asked = asyncio.create_task(run(cluster, ask(prompt(0, 100), OSL)))
            await hold.reached.wait()
            await cluster.kill("prefill-0")
            await asked
    with recorded(monkeypatch) as virtual:
        simulated(APART, [0.0], (100,), FailurePlan(at=((1.0, "prefill-0"),)))
    assert live == virtual
    assert ("AskPlacement", ("prefill-0",)) in live[0]
    assert [action[1] for action in live[0] if action[0] == "StartLeg"] == ["prefill-0", "prefill-1", "decode-0"]
