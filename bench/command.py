"""`baton bench`: load against any endpoint, and what it measured."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, cast

import typer
from rich.console import Console

from bench.measure import BenchRun, measure_sync
from bench.report import Slo
from bench.show import show
from bench.target import RequestStyle
from bench.trace import trace_rows
from bench.workload import ClosedPlan, PlannedRequest, open_plan, trace_plan
from cluster.errors import ConfigError
from planner.simulator.trace_formats import summary
from planner.simulator.trace_formats.reading import trace_options
from planner.simulator.traces import load, need_times


def bench(
    endpoint: Annotated[
        str, typer.Argument(help="http://host:port (OpenAI's interface) or grpc://host:port (baton.v1).")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Model to ask for; left out, the first one served.")] = "",
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", "-c", help="Closed loop: clients that each wait.", min=1)
    ] = None,
    rate: Annotated[
        float | None, typer.Option(help="Open loop: requests per second, whatever the server does.", min=1e-6)
    ] = None,
    burstiness: Annotated[
        float, typer.Option(help="Open loop: squared coefficient of variation of the gaps; 1 is Poisson.", min=1e-9)
    ] = 1.0,
    requests: Annotated[int | None, typer.Option("--requests", "-n", help="Requests to send.", min=1)] = None,
    duration_s: Annotated[float | None, typer.Option(help="Stop sending after so long.", min=0)] = None,
    isl: Annotated[int, typer.Option(help="Prompt tokens.", min=1)] = 500,
    osl: Annotated[int, typer.Option(help="Output tokens.", min=1)] = 128,
    trace: Annotated[
        Path | None, typer.Option(help="Lengths, and without -c also times: a trace of any known format.")
    ] = None,
    unit: Annotated[str, typer.Option(help="Of the trace's times, where they are numbers: s, ms, us, ns.")] = "auto",
    tokenizer: Annotated[
        Path | None, typer.Option(help="For a trace of text: tokenizer.json or a model's folder.")
    ] = None,
    chars_per_token: Annotated[
        float | None, typer.Option(help="For a trace of text: an estimate in place of a tokenizer.")
    ] = None,
    trace_speed: Annotated[float, typer.Option(help="Play the trace this many times faster.", min=1e-6)] = 1.0,
    max_total_tokens: Annotated[
        int | None, typer.Option(help="Leave out rows of the trace with more tokens than this.", min=2)
    ] = None,
    warmup: Annotated[int, typer.Option(help="Requests sent before, and not counted.", min=0)] = 2,
    api: Annotated[str, typer.Option(help="completions, or chat (prompts are text then).")] = "completions",
    prompt: Annotated[str, typer.Option(help="ids (exact length) or text (random words).")] = "ids",
    token_ids: Annotated[str, typer.Option(help="Range LOW:HIGH that prompt token ids are drawn from.")] = "32:96",
    natural_end: Annotated[
        bool, typer.Option("--natural-end", help="Let the model stop by itself, in place of exactly --osl tokens.")
    ] = False,
    temperature: Annotated[float, typer.Option(min=0)] = 0.0,
    count_ids: Annotated[
        bool, typer.Option("--count-ids", help="Count tokens by ids in each message, in place of the usage.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    timeout_s: Annotated[float, typer.Option(help="Of one request.", min=0.001)] = 600.0,
    slo_ttft_s: Annotated[float | None, typer.Option(help="Goodput: time to first token.")] = None,
    slo_ttfat_s: Annotated[float | None, typer.Option(help="Goodput: time to first answer token.")] = None,
    slo_itl_s: Annotated[float | None, typer.Option(help="Goodput: 95th percentile of a request's gaps.")] = None,
    slo_e2e_s: Annotated[float | None, typer.Option(help="Goodput: time to last token.")] = None,
    pid: Annotated[
        list[int] | None, typer.Option(help="Root of the server's processes, for CPU seconds. May be repeated.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write the result and every request to this JSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object in place of a table.")] = False,
) -> None:
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
        if concurrency is None:
            need_times(trace, reading, "--rate for arrivals, or -c for clients that each wait")
        for line in summary.lines(reading):
            errors.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
        plan = trace_plan(
            trace_rows(reading),
            count=requests,
            speed=trace_speed,
            timed=concurrency is None,
            max_total_tokens=max_total_tokens,
        )
        if not plan:
            raise ConfigError(f"--trace {trace}: no row is left to send")
    elif rate is not None:
        count = requests or (100 if duration_s is None else int(rate * duration_s * 2) + 10)
        plan = open_plan(count, isl, osl, rate_per_s=rate, burstiness=burstiness, seed=seed)
    else:
        plan = ClosedPlan(isl, osl, requests or (100 if duration_s is None else None))
    style = RequestStyle(
        model=model,
        api=cast(Literal["completions", "chat"], api),
        prompt=cast(Literal["ids", "text"], prompt),
        seed=seed,
        low_id=low,
        high_id=high,
        temperature=temperature,
        ignore_eos=not natural_end,
        count_ids=count_ids,
        timeout_s=timeout_s,
        api_key=os.environ.get("BATON_API_KEY", ""),
    )
    closed = concurrency or (1 if rate is None and trace is None else None)
    setting = BenchRun(
        endpoint,
        plan,
        style,
        concurrency=closed,
        warmup=warmup,
        duration_s=duration_s,
        slo=Slo(slo_ttft_s, slo_ttfat_s, slo_itl_s, slo_e2e_s),
        pids=tuple(pid or ()),
    )
    if errors.is_terminal:
        # Once a second: a spinner's usual twelve frames would cost more CPU than the load.
        with errors.status(f"sending to {endpoint}", refresh_per_second=1) as status:
            found, records = measure_sync(setting, lambda ended: status.update(f"{ended} requests ended"))
    else:
        found, records = measure_sync(setting)
    loop = f"closed loop, {closed} clients" if closed else "open loop" + (f", {rate:g} per second" if rate else "")
    found = {"loop": loop, "clients": closed, "seed": seed, "api": api, **found}
    if out is not None:
        out.write_text(json.dumps({**found, "records": [record.to_dict() for record in records]}, indent=1))
    if as_json:
        json.dump(found, sys.stdout, indent=2)
        print()
    else:
        show(found, Console())
    if not found["completed"]:
        raise typer.Exit(1)


def _id_range(text: str) -> tuple[int, int]:
    low, _, high = text.partition(":")
    if low.isdigit() and high.isdigit() and int(low) < int(high):
        return int(low), int(high)
    raise ConfigError(f"--token-ids {text}: expected LOW:HIGH with LOW below HIGH")
