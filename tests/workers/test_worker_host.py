from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import aiohttp
import numpy as np
import pytest

from baton.internal.v1 import worker_pb2
from baton.v1.inference_pb2 import Sampling
from cluster.engine.engine_counters import EngineCounters
from kv_transfer.ticket import HandoffTicket, issue
from orchestrator.controller.worker_roles import leg_kinds
from tests.fakes.engine import BLOCK_SIZE_TOKENS, FakeEngine, continuation
from tests.fakes.live_cluster import Cluster, cluster_of, eventually
from workers.worker_host import WorkerHost
from workers.worker_link import WorkerLink, ticket_message
from workers.worker_metrics import serve_metrics
from workers.worker_service import WorkerService

PROMPT = list(range(65, 105))


class Caller:
    """Speaks to the workers directly, as a gateway that keeps no counters of tickets would."""

    def __init__(self, cluster: Cluster) -> None:
        self._links = {
            worker_id: WorkerLink(worker_id, worker.member.address, on_lost=lambda _: None, on_load=lambda _: None)
            for worker_id, worker in cluster.workers.items()
        }
        self._count = 0

    async def leg(
        self, worker_id: str, ids: list[int], *, ticket: worker_pb2.Ticket | None = None, **fields: Any
    ) -> list[worker_pb2.LegOutput]:
        self._count += 1
        submit = worker_pb2.SubmitLeg(
            leg_id=f"leg-{self._count}",
            token_ids=np.asarray(ids, dtype="<u4").tobytes(),
            **{"sampling": Sampling(temperature=0.0), "max_tokens": 4, **fields},
        )
        if ticket is not None:
            submit.ticket.CopyFrom(ticket)
        outputs: list[worker_pb2.LegOutput] = []
        ended = asyncio.Event()

        def take(output: worker_pb2.LegOutput) -> None:
            outputs.append(output)
            if output.finish_reason:
                ended.set()

        self._links[worker_id].submit(submit, take)
        await asyncio.wait_for(ended.wait(), 20)
        return outputs

    def release(self, worker_id: str, ticket: HandoffTicket) -> None:
        self._links[worker_id].release(ticket, time.monotonic())

    async def close(self) -> None:
        for link in self._links.values():
            await link.close()


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with cluster_of("prefill-0", "decode-0") as made:
        yield made


@pytest.fixture
async def caller(cluster: Cluster) -> AsyncIterator[Caller]:
    made = Caller(cluster)
    yield made
    await made.close()


async def export(cluster: Cluster, caller: Caller) -> HandoffTicket:
    last = (await caller.leg("prefill-0", PROMPT, max_tokens=1, export=True))[-1]

    return issue(
        json.loads(last.transfer_params_json),
        source_id="prefill-0",
        incarnation=cluster.engine("prefill-0").incarnation,
        block_size_tokens=BLOCK_SIZE_TOKENS,
        deadline_s=time.monotonic() + 20,
    )


async def test_a_replayed_ticket_is_refused_by_the_worker(cluster: Cluster, caller: Caller) -> None:
    ticket = ticket_message(await export(cluster, caller), time.monotonic())
    ids = [*PROMPT, *continuation(PROMPT, 1)]
    good = await caller.leg("decode-0", ids, ticket=ticket)
    assert [token for output in good for token in output.token_ids] == continuation(PROMPT, 5)[1:]
    (refused,) = await caller.leg("decode-0", ids, ticket=ticket)
    assert (refused.finish_reason, refused.error_kind) == ("error", "TicketRefused")
    assert not refused.token_ids
    assert len(cluster.engine("decode-0").started) == 1


async def test_a_ticket_past_its_deadline_is_refused_by_the_worker(cluster: Cluster, caller: Caller) -> None:
    held = await export(cluster, caller)
    (refused,) = await caller.leg("decode-0", PROMPT, ticket=ticket_message(held, held.deadline_s + 1))
    assert refused.error_kind == "TicketRefused"
    caller.release("decode-0", held)  # it was not used up by that
    await eventually(lambda: not cluster.engine("prefill-0").leases)


@pytest.mark.parametrize("why", ["draining", "sampling"])
async def test_a_leg_refused_before_the_read_gives_its_blocks_back(cluster: Cluster, caller: Caller, why: str) -> None:
    ticket = ticket_message(await export(cluster, caller), time.monotonic())
    if why == "draining":
        cluster.workers["decode-0"].service.drain(grace_s=0)
    sampling = Sampling(temperature=-1.0 if why == "sampling" else 0.0)
    (refused,) = await caller.leg("decode-0", PROMPT, ticket=ticket, sampling=sampling)
    assert refused.error_kind == {"draining": "WorkerDraining", "sampling": "InvalidRequest"}[why]
    await eventually(lambda: not cluster.engine("prefill-0").leases)


async def test_malformed_commands_harm_nobody_else(cluster: Cluster, caller: Caller) -> None:
    broken = worker_pb2.Ticket(ticket_id="x", expires_in_s=9, params_json="{")
    (refused,) = await caller.leg("decode-0", PROMPT, ticket=broken)
    assert refused.finish_reason == "error"
    caller.release("decode-0", HandoffTicket("y", "p", "i", 1, 1, time.monotonic() + 9, "{"))
    made = await caller.leg("decode-0", PROMPT)
    assert [token for output in made for token in output.token_ids] == continuation(PROMPT, 4)


async def test_a_gateway_that_goes_away_leaves_no_leg_behind(cluster: Cluster, caller: Caller) -> None:
    decode = cluster.engine("decode-0")
    hold = decode.hold(2)
    task = asyncio.create_task(caller.leg("decode-0", PROMPT))
    await asyncio.wait_for(hold.reached.wait(), 20)
    await caller.close()
    task.cancel()
    await eventually(lambda: decode.used_blocks == 0)


@pytest.mark.parametrize("in_main_thread", [True, False], ids=["main-thread", "as-ray-does"])
@pytest.mark.parametrize("busy", [True, False])
async def test_sigterm_drains_a_worker_that_has_work_and_ends_one_that_has_none(
    monkeypatch: pytest.MonkeyPatch, busy: bool, in_main_thread: bool
) -> None:
    ended: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda signum, _: ended.append(signum))
    monkeypatch.setattr(WorkerService, "legs", int(busy))
    for name in ("HOST", "PORT"):  # which the host sets for good
        monkeypatch.setenv(f"VLLM_NIXL_SIDE_CHANNEL_{name}", "")
    arguments = ("decode-0", "decode", "127.0.0.1", FakeEngine, leg_kinds)
    host = WorkerHost(*arguments) if in_main_thread else await asyncio.to_thread(WorkerHost, *arguments)
    try:
        await host.start()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        load = await host.check_health()
        assert load["draining"] is busy
        assert ended == ([] if busy else [signal.SIGTERM])
        if busy:
            os.kill(os.getpid(), signal.SIGTERM)  # a second signal ends it at once
            assert ended == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
        await host.stop()


async def test_preemptions_inside_the_engine_are_reported_and_counted() -> None:
    async with cluster_of("prefill-0", "decode-0") as cluster:
        cluster.engine("decode-0").preemptions = 3
        reported = lambda: {row.worker_id: row.preemptions for row in cluster.gateway.status().workers}  # noqa: E731
        await eventually(lambda: reported() == {"prefill-0": 0, "decode-0": 3})
        runner, port = await serve_metrics(
            "127.0.0.1", lambda: {"pool": "", "worker": "decode-0"}, cluster.workers["decode-0"].service.load
        )
        try:
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{port}/metrics") as answer:
                assert 'baton_worker_preemptions_total{pool="",worker="decode-0"} 3.0' in await answer.text()
        finally:
            await runner.cleanup()


def test_the_counters_add_up_what_vllm_says_of_each_step() -> None:
    counters = EngineCounters()
    for preempted in (0, 2, 1):
        counters.record(
            None, SimpleNamespace(num_prompt_tokens=5, num_generation_tokens=1, num_preempted_reqs=preempted)
        )
    assert (counters.prompt_tokens, counters.output_tokens, counters.preemptions) == (15, 3, 3)
