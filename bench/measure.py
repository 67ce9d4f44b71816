"""One run from warm-up to summary."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bench.cpu import CpuMeter
from bench.grpc_target import GrpcTarget
from bench.http_target import HttpTarget
from bench.record import RequestRecord
from bench.report import Slo, summarise
from bench.runner import run
from bench.target import RequestStyle, Target
from bench.workload import PlannedRequest

Result = tuple[dict[str, Any], list[RequestRecord]]
"""Summary and records."""

WARM_UP_SEED_OFFSET = 1_000_003
"""Warm-up prompts differ from the measured ones, or a prefix cache would answer those."""


@dataclass(frozen=True, slots=True)
class BenchRun:
    """One run: what is sent where. `measure` runs it; importable, for `benchmarks/`."""

    endpoint: str
    plan: Sequence[PlannedRequest]
    style: RequestStyle
    concurrency: int | None = 1
    warmup: int = 0
    duration_s: float | None = None
    slo: Slo = field(default_factory=Slo)
    pids: tuple[int, ...] = ()


def open_target(endpoint: str, *, api_key: str = "") -> Target:
    """The target an endpoint's scheme names."""
    return (GrpcTarget if endpoint.startswith("grpc://") else HttpTarget)(endpoint, api_key=api_key)


async def measure(bench: BenchRun, progress: Callable[[int], None] | None = None) -> Result:
    """Warm up, run, summarise. ``progress`` gets the number of requests that ended.

    Raises:
        ServingError: the endpoint does not answer or serves no model.
    """
    target = open_target(bench.endpoint, api_key=bench.style.api_key)
    try:
        style = bench.style if bench.style.model else replace(bench.style, model=await target.model())
        if bench.warmup and bench.plan:
            first = bench.plan[0]
            warm = [PlannedRequest(index, first.isl_tokens, min(first.osl_tokens, 16)) for index in range(bench.warmup)]
            await run(
                target,
                warm,
                replace(style, seed=style.seed + WARM_UP_SEED_OFFSET),
                concurrency=min(bench.warmup, bench.concurrency or 8),
                meter=CpuMeter(()),
            )
        ended = 0

        def on_done(record: RequestRecord) -> None:
            nonlocal ended
            ended += 1
            if progress is not None:
                progress(ended)

        outcome = await run(
            target,
            bench.plan,
            style,
            concurrency=bench.concurrency,
            meter=CpuMeter(bench.pids),
            duration_s=bench.duration_s,
            on_done=on_done,
        )
    finally:
        await target.close()
    found = summarise(
        outcome.records,
        duration_s=outcome.duration_s,
        slo=bench.slo,
        server_cpu_s=outcome.server_cpu_s,
        client_cpu_s=outcome.client_cpu_s,
    )
    return {"endpoint": bench.endpoint, "model": style.model, **found}, outcome.records


def measure_sync(bench: BenchRun, progress: Callable[[int], None] | None = None) -> Result:
    """`measure` on a loop of its own; uvloop's, which costs the client about half of asyncio's."""
    import uvloop

    result: Result = uvloop.run(measure(bench, progress))
    return result
