"""Break a real cluster under load, from a seed, and count what was lost.

    python -m benchmarks.faults kills --requests 1000 --every-s 90
    python -m benchmarks.faults drain --traces 16
    python -m benchmarks.faults cancels --requests 500
    python -m benchmarks.faults each                      # every fault once, by name
    python -m benchmarks.faults soak --minutes 30
    python -m benchmarks.faults partitions                # hosts apart, see benchmarks/partitions.py

Two prefill and two decode workers serve the small reasoning model in float32. Every answer is greedy and is compared
token by token with the one the undisturbed cluster gave. Figures are added to docs/faults.json; docs/reliability.md
shows them. The tests run the same code at small size (tests/engines/test_faults.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.fault_cluster import FaultCluster, started
from benchmarks.fault_kinds import FAULTS, KILLS, REPLACING
from benchmarks.fault_load import Answers, Question, Tally, Trace, count, draw_questions, follow, open_load, run_load
from benchmarks.host_cluster import apart
from benchmarks.partitions import PARTITIONS, partitions

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "faults.json"
LEASE_S = 30
SOAK_LOAD = 0.8

SPEC = """
name: faults
model:
  path: {model}
  served_name: reasoner
  max_model_len_tokens: 2048
  dtype: float32
  reasoning: {{effort_budgets_tokens: {{none: 0, low: 16, medium: 64, high: 1024}}}}
pools:
  prefill: {{replicas: 2, engine: {{kv_blocks: 1024}}}}
  decode: {{replicas: 2, engine: {{kv_blocks: 1024}}}}
transfer: {{lease_s: 30, retry_budget: 4, local_prefill_after_s: null}}
gateway: {{grpc_port: 0, http_port: 0, metrics_port: 0}}
"""


async def prepared(
    cluster: FaultCluster, rng: random.Random, *, number: int, isl: tuple[int, int], osl: tuple[int, int]
) -> tuple[list[Question], Answers]:
    """Questions, and their undisturbed answers."""
    questions, answers = draw_questions(rng, number, isl=isl, osl=osl), Answers()
    await answers.learn(cluster.client(), questions)
    return questions, answers


async def finish(cluster: FaultCluster, tally: Tally, sockets_before: int) -> dict[str, Any]:
    """Wait for quiet; the counts and what was left behind."""
    await cluster.all_ready()
    leaked = await cluster.leaked_blocks(LEASE_S)
    return {
        **tally.row(),
        "leaked_blocks": leaked,
        "leaked_sockets": await cluster.leaked_sockets(sockets_before),
    }


async def kills(
    cluster: FaultCluster,
    *,
    seed: int,
    requests: int,
    every_s: float,
    clients: int,
    names: Sequence[str] = KILLS,
    isl: tuple[int, int] = (8, 1000),
    osl: tuple[int, int] = (16, 800),
) -> dict[str, Any]:
    """A random worker dies every so often while the load runs; once more when it does not end before the first one."""
    rng = random.Random(seed)
    questions, answers = await prepared(cluster, rng, number=min(64, requests), isl=isl, osl=osl)
    sockets, events, recovery_s = cluster.sockets(), [], []
    load = asyncio.create_task(
        run_load(cluster.client, questions, answers, requests=requests, clients=clients, rng=random.Random(seed + 1))
    )
    began_s = time.monotonic()

    async def inject() -> None:
        left: list[str] = []
        for number in range(1, 10**6):
            await asyncio.sleep(max(0.0, began_s + number * every_s - time.monotonic()))
            at_s = time.monotonic()
            # In random order, but each kind as often as the others: five draws from four kinds were all prefill once.
            left = left or rng.sample(names, len(names))
            name, before = left.pop(), cluster.incarnations()
            events.append(await FAULTS[name](cluster, rng))
            recovery_s.append(await cluster.recovered(before if name in REPLACING else None))
            print(f"[{at_s - began_s:6.1f} s] {events[-1]}; recovered after {recovery_s[-1]:.0f} s", flush=True)

    killer = asyncio.create_task(inject())
    try:
        await asyncio.wait([load, killer], return_when=asyncio.FIRST_COMPLETED)
        tally = await load
    finally:
        killer.cancel()
        await asyncio.gather(killer, return_exceptions=True)
    duration_s = time.monotonic() - began_s
    figures = await finish(cluster, tally, sockets)
    recovery = (
        {"median": round(statistics.median(recovery_s), 1), "max": round(max(recovery_s), 1)} if recovery_s else {}
    )
    return {**figures, "faults": events, "recovery_s": recovery, "duration_s": round(duration_s)}


async def drain(cluster: FaultCluster, *, seed: int, traces: int, osl: int = 1500) -> dict[str, Any]:
    """All traces decode on one worker; it is drained in the middle of them."""
    rng = random.Random(seed)
    questions = [Question(tuple(rng.randrange(5, 60) for _ in range(rng.randint(20, 400))), osl) for _ in range(traces)]
    answers = Answers()
    await answers.learn(cluster.client(), questions)
    sockets = cluster.sockets()
    cluster.hidden = {"decode-1"}
    cluster.refresh()
    await cluster.all_ready()
    streams = [Trace(question) for question in questions]
    tasks = [asyncio.create_task(follow(cluster.client(), each.question, trace=each)) for each in streams]
    while any(len(each.ids) < osl // 10 for each in streams):  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    cluster.hidden = set()
    cluster.refresh()
    await cluster.all_ready()
    began_s = time.monotonic()
    made = [len(each.ids) for each in streams]
    result = await cluster.baton("drain", "decode-0", "--replace", "--timeout-s", "300", "--json")
    ended_s = time.monotonic()
    if result.returncode:
        raise RuntimeError(f"the drain failed: {result.stdout} {result.stderr}")
    drained = json.loads(result.stdout)
    await asyncio.gather(*tasks)
    tally = Tally()
    for each in streams:
        count(tally, each, answers.of(each.question))
    gaps = sorted(each.longest_gap_s(began_s, ended_s) for each in streams)
    later = max(each.longest_gap_s(ended_s) for each in streams)
    figures = await finish(cluster, tally, sockets)
    return {
        **figures,
        "tokens_made_before_drain": [min(made), max(made)],
        "finished_elsewhere": sum(each.summary is not None and each.summary.moves > 0 for each in streams),
        "gap_p50_s": round(statistics.median(gaps), 3),
        "gap_p99_s": round(gaps[-1], 3),  # of fewer than a hundred streams, the longest
        "gap_while_replacement_starts_s": round(later, 3),
        "drain_s": round(drained["elapsed_s"], 1),
    }


async def cancels(cluster: FaultCluster, *, seed: int, requests: int, clients: int) -> dict[str, Any]:
    """Requests that are cancelled at random moments, nine of ten."""
    rng = random.Random(seed)
    questions, answers = await prepared(cluster, rng, number=min(24, requests), isl=(8, 1000), osl=(64, 400))
    sockets = cluster.sockets()
    tally = await run_load(
        cluster.client, questions, answers, requests=requests, clients=clients, rng=rng, cancel_share=0.9
    )
    return await finish(cluster, tally, sockets)


async def each(
    cluster: FaultCluster, *, seed: int, clients: int, names: Sequence[str] = tuple(FAULTS), questions: int = 24
) -> dict[str, Any]:
    """Every fault once under load; a row for each."""
    rng = random.Random(seed)
    asked, answers = await prepared(cluster, rng, number=questions, isl=(8, 600), osl=(16, 400))
    rows: dict[str, Any] = {}
    for name in names:
        sockets, over, total = cluster.sockets(), asyncio.Event(), Tally()
        loading = asyncio.create_task(
            run_load(cluster.client, asked, answers, requests=None, over=over, clients=clients, rng=rng, tally=total)
        )
        await asyncio.sleep(2)
        before = cluster.incarnations()
        event = await FAULTS[name](cluster, rng)
        recovery_s = await cluster.recovered(before if name in REPLACING else None)
        over.set()
        await loading
        rows[name] = {**await finish(cluster, total, sockets), "fault": event, "recovery_s": round(recovery_s, 1)}
        print(name, json.dumps(rows[name]), flush=True)
    return rows


async def soak(cluster: FaultCluster, *, seed: int, minutes: float, clients: int) -> dict[str, Any]:
    """Open load at 80 % of what the cluster was measured to serve.

    Memory is read each twentieth of the time. Growth is from a tenth of the time on, by when caches are full, to the
    end; each is the median of three readings.
    """
    rng = random.Random(seed)
    questions, answers = await prepared(cluster, rng, number=48, isl=(8, 1000), osl=(16, 400))
    sockets = cluster.sockets()
    measured, probe_s = Tally(), min(60.0, minutes * 3)
    probing = asyncio.Event()
    probe = asyncio.create_task(
        run_load(
            cluster.client, questions, answers, requests=None, over=probing, clients=clients, rng=rng, tally=measured
        )
    )
    await asyncio.sleep(probe_s)
    capacity_per_s = measured.requests / probe_s
    probing.set()
    await probe
    over, tally = asyncio.Event(), Tally()
    load = asyncio.create_task(
        open_load(
            cluster.client,
            questions,
            answers,
            rate_per_s=SOAK_LOAD * capacity_per_s,
            over=over,
            rng=rng,
            most_in_flight=4 * clients,
            tally=tally,
        )
    )
    readings = []
    for _ in range(20):
        await asyncio.sleep(minutes * 3)
        readings.append(cluster.memory_bytes())
    over.set()
    held_back = await load
    early, late = readings[1:4], readings[-3:]
    growth = {
        name: round(_median(late, name) / _median(early, name) - 1, 4)
        for name in readings[0]
        if all(name in reading for reading in readings)
    }
    return {
        **await finish(cluster, tally, sockets),
        "minutes": minutes,
        "capacity_per_s": round(capacity_per_s, 2),
        "offered_share": SOAK_LOAD,
        "held_back": held_back,
        "memory_growth": growth,
        "memory_mib": {name: [round(reading[name] / 2**20) for reading in readings] for name in growth},
    }


def _median(readings: Sequence[dict[str, int]], name: str) -> float:
    return statistics.median(reading[name] for reading in readings)


async def _partitions(arguments: argparse.Namespace) -> None:
    def on_row(name: str, row: dict[str, Any]) -> None:
        print(name, json.dumps(row), flush=True)
        _record(arguments, {name: row})

    async with apart(arguments.model) as cluster:
        await partitions(cluster, names=arguments.faults or tuple(PARTITIONS), on_row=on_row)


def _known_faults(arguments: argparse.Namespace) -> dict[str, Any]:
    return PARTITIONS if arguments.scenario == "partitions" else FAULTS


async def _main(arguments: argparse.Namespace) -> None:
    if unknown := set(arguments.faults or ()) - set(_known_faults(arguments)):
        raise SystemExit(f"--faults {' '.join(unknown)}: choose from {', '.join(_known_faults(arguments))}")
    if arguments.scenario == "partitions":
        await _partitions(arguments)
        return
    spec = SPEC.format(model=arguments.model)
    gateways = 2 if arguments.scenario == "each" else 1
    async with started(spec, gateways=gateways) as cluster:
        figures: dict[str, Any]
        match arguments.scenario:
            case "kills":
                figures = await kills(
                    cluster,
                    seed=arguments.seed,
                    requests=arguments.requests,
                    every_s=arguments.every_s,
                    clients=arguments.clients,
                )
            case "drain":
                figures = await drain(cluster, seed=arguments.seed, traces=arguments.traces)
            case "cancels":
                figures = await cancels(
                    cluster, seed=arguments.seed, requests=arguments.requests, clients=arguments.clients
                )
            case "each":
                names = arguments.faults or tuple(FAULTS)
                figures = await each(cluster, seed=arguments.seed, clients=arguments.clients, names=names)
            case _:
                figures = await soak(cluster, seed=arguments.seed, minutes=arguments.minutes, clients=arguments.clients)
    print(json.dumps(figures, indent=1))
    _record(arguments, figures)


def _record(arguments: argparse.Namespace, figures: dict[str, Any]) -> None:
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    name = f"kills, seed {arguments.seed}" if arguments.scenario == "kills" else arguments.scenario
    old = known.get(name, {}) if name in ("each", "partitions") else {}
    known[name] = {**old, **figures}
    RESULTS.write_text(json.dumps(known, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", choices=["kills", "drain", "cancels", "each", "soak", "partitions"])
    parser.add_argument("--faults", nargs="*", help="for each and partitions: only these")
    parser.add_argument("--model", default=str(ROOT / "models" / "reasoner"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--every-s", type=float, default=90.0)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--traces", type=int, default=16)
    parser.add_argument("--minutes", type=float, default=30.0)
    asyncio.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
