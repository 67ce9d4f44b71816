"""`baton bench`: load against any endpoint, and what it measured."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import typer
from rich.console import Console

from bench import options
from bench.measure import BenchRun, measure_sync
from bench.record import RequestRecord
from bench.report import Slo
from bench.show import show
from bench.target import RequestStyle
from bench.trace import trace_rows
from bench.workload import ClosedPlan, PlannedRequest, open_plan, trace_plan
from cluster.errors import ConfigError
from planner.simulator.trace_formats import summary
from planner.simulator.trace_formats.reading import TraceReading, trace_options
from planner.simulator.traces import load, need_times


def bench(
    endpoint: options.Endpoint = "http://127.0.0.1:8000", model: options.Model = "",
    concurrency: options.Concurrency = None, rate: options.Rate = None, burstiness: options.Burstiness = 1.0,
    requests: options.Requests = None, duration_s: options.DurationS = None,
    isl: options.Isl = 500, osl: options.Osl = 128,
    trace: options.Trace = None, unit: options.Unit = "auto", tokenizer: options.Tokenizer = None,
    chars_per_token: options.CharsPerToken = None, trace_speed: options.TraceSpeed = 1.0,
    max_total_tokens: options.MaxTotalTokens = None, warmup: options.Warmup = 2,
    api: options.Api = "completions", prompt: options.Prompt = "ids", token_ids: options.TokenIds = "32:96",
    natural_end: options.NaturalEnd = False, temperature: options.Temperature = 0.0,
    count_ids: options.CountIds = False, seed: options.Seed = 0, timeout_s: options.TimeoutS = 600.0,
    slo_ttft_s: options.SloTtftS = None, slo_ttfat_s: options.SloTtfatS = None, slo_itl_s: options.SloItlS = None,
    slo_e2e_s: options.SloE2eS = None, pid: options.Pid = None, out: options.Out = None,
    as_json: options.AsJson = False,
) -> None:  # fmt: skip
    """Send load to an endpoint and report latencies, rates, goodput and CPU seconds.

    Exits with 1 when no request ended well.
    """
    if api not in ("completions", "chat") or prompt not in ("ids", "text"):
        raise ConfigError("--api: expected completions or chat; --prompt: expected ids or text")
    if rate is not None and concurrency is not None:
        raise ConfigError("--rate: give one of --rate, --concurrency and the times of --trace")
    low, high = _id_range(token_ids)
    errors = Console(stderr=True)
    plan: Sequence[PlannedRequest]
    if trace is not None:
        reading = load(trace, trace_options(unit, tokenizer, chars_per_token), rate_per_s=rate, seed=seed)
        timed = concurrency is None
        plan = _trace_plan(trace, reading, errors, requests, trace_speed, max_total_tokens, timed=timed)
    else:
        plan = _random_plan(isl, osl, requests, duration_s, rate=rate, burstiness=burstiness, seed=seed)
    style = RequestStyle(
        model=model, api=cast(Literal["completions", "chat"], api), prompt=cast(Literal["ids", "text"], prompt),
        seed=seed, low_id=low, high_id=high, temperature=temperature, ignore_eos=not natural_end, count_ids=count_ids,
        timeout_s=timeout_s, api_key=os.environ.get("BATON_API_KEY", ""),
    )  # fmt: skip
    closed = concurrency or (1 if rate is None and trace is None else None)
    slo = Slo(slo_ttft_s, slo_ttfat_s, slo_itl_s, slo_e2e_s)
    pids = tuple(pid or ())
    setting = BenchRun(
        endpoint, plan, style, concurrency=closed, warmup=warmup, duration_s=duration_s, slo=slo, pids=pids
    )
    measured, records = _measured(setting, errors)
    loop = f"closed loop, {closed} clients" if closed else "open loop" + (f", {rate:g} per second" if rate else "")
    found = {"loop": loop, "clients": closed, "seed": seed, "api": api, **measured}
    _give(found, records, out, as_json=as_json)
    if not found["completed"]:
        raise typer.Exit(1)


def _trace_plan(
    trace: Path,
    reading: TraceReading,
    errors: Console,
    count: int | None,
    speed: float,
    max_total_tokens: int | None,
    *,
    timed: bool,
) -> Sequence[PlannedRequest]:
    """The trace's requests; what was read is printed."""
    if timed:
        need_times(trace, reading, "--rate for arrivals, or -c for clients that each wait")
    for line in summary.lines(reading):
        errors.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
    plan = trace_plan(trace_rows(reading), count=count, speed=speed, timed=timed, max_total_tokens=max_total_tokens)
    if not plan:
        raise ConfigError(f"--trace {trace}: no row is left to send")
    return plan


def _random_plan(
    isl: int,
    osl: int,
    requests: int | None,
    duration_s: float | None,
    *,
    rate: float | None,
    burstiness: float,
    seed: int,
) -> Sequence[PlannedRequest]:
    """Requests of the same lengths: at the times of a renewal process, or for clients that each wait."""
    if rate is None:
        return ClosedPlan(isl, osl, requests or (100 if duration_s is None else None))
    count = requests or (100 if duration_s is None else int(rate * duration_s * 2) + 10)
    return open_plan(count, isl, osl, rate_per_s=rate, burstiness=burstiness, seed=seed)


def _measured(setting: BenchRun, errors: Console) -> tuple[dict[str, Any], list[RequestRecord]]:
    """Send the load; on a terminal, count what has ended."""
    if not errors.is_terminal:
        return measure_sync(setting)
    # Once a second: a spinner's usual twelve frames would cost more CPU than the load.
    with errors.status(f"sending to {setting.endpoint}", refresh_per_second=1) as status:
        return measure_sync(setting, lambda ended: status.update(f"{ended} requests ended"))


def _give(found: dict[str, Any], records: Sequence[RequestRecord], out: Path | None, *, as_json: bool) -> None:
    """Write the file that was asked for, and print the result."""
    if out is not None:
        out.write_text(json.dumps({**found, "records": [record.to_dict() for record in records]}, indent=1))
    if as_json:
        json.dump(found, sys.stdout, indent=2)
        print()
    else:
        show(found, Console())


def _id_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    if low.isdigit() and high.isdigit() and int(low) < int(high):
        return int(low), int(high)
    raise ConfigError(f"--token-ids {text}: expected LOW:HIGH with LOW below HIGH")
