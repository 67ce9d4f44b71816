"""Cut, lame and slow the network between the hosts of a cluster while reasoning traces run, and compare every token.

    python -m benchmarks.faults partitions                                   # all of them; root
    python -m benchmarks.faults partitions --faults decode-45s head-20s

Twelve traces of 45 steps begin; once all decode, the fault comes, and six more are asked for while it is there, so that
handoffs are needed, too.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.fault_load import Answers, Question, Tally, Trace, count, follow
from benchmarks.host_cluster import HEAD, HostCluster
from models.problems import generate_many
from models.tokenizer import prompt_ids

STEPS = 45
EARLY, LATE = 12, 6
OSL_EARLY_TOKENS, OSL_LATE_TOKENS = 900, 300
BEGUN_TOKENS = 60
"""Each early trace has so many when the fault comes."""
LATE_AFTER_S = 1.0
LEASE_S = 30
SLOW_KBIT_PER_S = 2000
PREFILL, DECODE = "prefill-0", "decode-0"


@dataclass(frozen=True, slots=True)
class Partition:
    """A fault of the network, and for how long."""

    what: str
    lasts_s: float
    inject: Callable[[HostCluster], None]


def _cut(worker_id: str) -> Callable[[HostCluster], None]:
    return lambda cluster: cluster.net.cut(cluster.host_of(worker_id))


def _cut_head(cluster: HostCluster) -> None:
    cluster.net.cut(HEAD)


def _part(cluster: HostCluster) -> None:
    cluster.net.part(cluster.host_of(PREFILL), cluster.host_of(DECODE))


def _part_from_all(cluster: HostCluster) -> None:
    for worker_id in cluster.members:
        if worker_id.startswith("prefill"):
            cluster.net.part(cluster.host_of(worker_id), cluster.host_of(DECODE))


def _lose_kv(cluster: HostCluster) -> None:
    cluster.net.lose(cluster.host_of(PREFILL), cluster.host_of(DECODE))


def _lose_tokens(cluster: HostCluster) -> None:
    cluster.net.lose(cluster.host_of(DECODE), HEAD)


def _slow(cluster: HostCluster) -> None:
    cluster.net.slow(cluster.host_of(DECODE), SLOW_KBIT_PER_S)


PARTITIONS: dict[str, Partition] = {
    "decode-4s": Partition("decode's link cut", 4, _cut(DECODE)),
    "prefill-4s": Partition("prefill's link cut", 4, _cut(PREFILL)),
    "decode-45s": Partition("decode's link cut", 45, _cut(DECODE)),
    "pair-4s": Partition("one prefill and one decode host do not reach each other", 4, _part),
    "pair-20s": Partition("one prefill and one decode host do not reach each other", 20, _part),
    "pair-90s": Partition("one prefill and one decode host do not reach each other", 90, _part),
    "pairs-20s": Partition("no prefill host reaches one of the decode hosts", 20, _part_from_all),
    "one-way-kv-20s": Partition("all from one prefill host to one decode host is lost", 20, _lose_kv),
    "one-way-tokens-8s": Partition("all from one decode host to the head is lost", 8, _lose_tokens),
    "one-way-tokens-30s": Partition("all from one decode host to the head is lost", 30, _lose_tokens),
    "slow-20s": Partition(f"decode's link at {SLOW_KBIT_PER_S / 1000:g} Mbit/s", 20, _slow),
    "head-4s": Partition("the head's link cut, gateway and callers' way with it", 4, _cut_head),
    "head-20s": Partition("the head's link cut", 20, _cut_head),
}


def questions(number: int, seed: int, max_tokens: int, steps: int = STEPS) -> list[Question]:
    """Problems for the small reasoner, as its chat template writes them."""
    return [
        Question(tuple(prompt_ids(each.prompt)), max_tokens)
        for each in generate_many(seed, number, steps=steps, form="symbols")
    ]


async def partitions(
    cluster: HostCluster,
    *,
    names: Sequence[str] = tuple(PARTITIONS),
    early: int = EARLY,
    late: int = LATE,
    osl: int = OSL_EARLY_TOKENS,
    on_row: Callable[[str, dict[str, Any]], None] = lambda name, row: print(name, json.dumps(row), flush=True),
) -> dict[str, Any]:
    """Each of these once; a row for each, reported as it comes."""
    first = questions(early, 71, osl)
    then = questions(late, 72, min(osl, OSL_LATE_TOKENS))
    answers = Answers()
    await answers.learn(cluster.client(), [*first, *then], clients=early)
    # Of the whole cluster: after a scenario Ray dials a healed link again only when it has something to say.
    whole = cluster.sockets()
    rows: dict[str, Any] = {}
    for name in names:
        rows[name] = await _one(cluster, PARTITIONS[name], first, then, answers, sockets=max(whole, cluster.sockets()))
        on_row(name, rows[name])
    return rows


async def _one(
    cluster: HostCluster,
    fault: Partition,
    first: list[Question],
    then: list[Question],
    answers: Answers,
    *,
    sockets: int,
) -> dict[str, Any]:
    before, ray = cluster.incarnations(), cluster.ray_restarts
    early = [Trace(question) for question in first]
    tasks = [asyncio.create_task(follow(cluster.client(), each.question, trace=each)) for each in early]
    while any(len(each.ids) < BEGUN_TOKENS and each.error is None for each in early):  # noqa: ASYNC110
        await asyncio.sleep(0.02)
    made = [len(each.ids) for each in early]
    fault.inject(cluster)
    began_s = time.monotonic()
    await asyncio.sleep(LATE_AFTER_S)
    late = [Trace(question) for question in then]
    tasks += [asyncio.create_task(follow(cluster.client(), each.question, trace=each)) for each in late]
    await asyncio.sleep(began_s + fault.lasts_s - time.monotonic())
    cluster.net.heal()
    healed_s = time.monotonic()
    await asyncio.gather(*tasks)
    answered_s = time.monotonic()
    await asyncio.sleep(1)
    await cluster.all_ready()
    ready_s = time.monotonic()
    tally = Tally()
    for trace in (*early, *late):
        count(tally, trace, answers.of(trace.question))
    leaked_blocks = await cluster.leaked_blocks(LEASE_S)
    return {
        **tally.row(),
        "leaked_blocks": leaked_blocks,
        "leaked_sockets": await cluster.leaked_sockets(sockets),
        "stray_processes": await cluster.strays(),
        "half_open": await cluster.half_open(),
        "fault": f"{fault.what} for {fault.lasts_s:g} s",
        "tokens_made_before": [min(made), max(made)],
        "errors": sorted({str(each.error) for each in (*early, *late) if each.error is not None}),
        "replaced": len(cluster.incarnations() - before),
        "ray_restarts": cluster.ray_restarts - ray,
        "answered_after_healing_s": round(answered_s - healed_s, 1),
        "whole_after_healing_s": round(ready_s - healed_s, 1),
    }
