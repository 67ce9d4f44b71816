"""How plans look: as records for JSON, as a table for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePath
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from planner.capacity.check import Checked
from planner.capacity.plan import Candidate, Latency, Plan


def _latency(latency: Latency) -> dict[str, float]:
    return {
        "p50_s": round(latency.p50_s, 6),
        "p95_s": round(latency.p95_s, 6),
        "p99_s": round(latency.p99_s, 6),
    }


def candidate_record(candidate: Candidate) -> dict[str, Any]:
    """One fleet as plain data: seconds, dollars, shares."""
    return {
        "mode": candidate.mode.value,
        "fleet": candidate.label,
        "pools": [
            {
                "role": pool.role.value,
                "gpu": pool.worker.gpu.name,
                "tensor_parallel_size": pool.worker.shape.tp,
                "pipeline_parallel_size": pool.worker.shape.pp,
                "data_parallel_size": pool.worker.shape.dp,
                "nodes_per_worker": pool.worker.shape.nodes(pool.worker.gpu),
                "workers": pool.workers,
                "workers_fractional": round(pool.fractional, 4),
                "limit": pool.limit,
                "usd_per_gpu_hour": pool.worker.gpu.price_usd_h,
            }
            for pool in candidate.pools
        ],
        "gpus": candidate.gpus,
        "gpus_fractional": round(candidate.fractional_gpus, 4),
        "rounding_loss": round(candidate.rounding_loss, 4),
        "batch_size": round(candidate.load.batch_size, 3),
        "kv_share": round(candidate.load.kv_share, 4),
        "ttft": _latency(candidate.ttft),
        "ttfat": _latency(candidate.ttfat),
        "itl": _latency(candidate.itl),
        "e2e": _latency(candidate.e2e),
        "transfer_s": round(candidate.transfer_s, 6),
        "limit": candidate.limit,
        "gpu_usd_month": round(candidate.cost.gpu_usd_month, 2),
        "extra_usd_month": round(candidate.cost.extra_usd_month, 2),
        "usd_month": round(candidate.cost.usd_month, 2),
        "usd_per_query": round(candidate.cost.usd_per_query, 8),
        "usd_per_million_output_tokens": round(candidate.cost.usd_per_million_output_tokens, 6),
        "error_band": candidate.trust.band,
        "tag": candidate.trust.tag.value,
    }


def shown(plan: Plan, most: int = 10) -> tuple[Candidate, ...]:
    """The candidates to show: the front where Pareto was asked, else the best and the best of each mode."""
    if plan.problem.spec.objective == "pareto":
        return plan.pareto[:most]
    first = list(plan.candidates[:most])
    for mode in plan.problem.spec.modes:
        best = plan.best_of(mode)
        if best is not None and best not in first:
            first.append(best)
    return tuple(first)


def assumptions(plan: Plan) -> list[str]:
    """What was assumed where the plan file says nothing."""
    found, workload = [], plan.problem.spec.workload
    if workload.trace is not None:
        file = PurePath(workload.trace.path).name
        found += [f"demand of {file}: {' '.join(line.split())}" for line in workload.trace.summary]
    for name in ("input_tokens", "reasoning_tokens", "answer_tokens"):
        if getattr(workload, name).assumed_cv:
            found.append(f"workload.{name} is a bare mean: a coefficient of variation of 1 is assumed")
    for gpu in plan.problem.gpus:
        dated = f" of {gpu.price_date}" if gpu.price_date else ""
        found.append(f"{gpu.name} at ${gpu.price_usd_h:.2f} an hour ({gpu.price_source}{dated})")
    return found


def plan_record(plan: Plan) -> dict[str, Any]:
    """The whole answer as plain data."""
    lengths = plan.problem.lengths
    return {
        "answer": plan.headline(),
        "chosen": candidate_record(plan.best),
        "candidates": [candidate_record(each) for each in shown(plan)],
        "rejected": plan.rejected,
        "assumptions": assumptions(plan),
        "workload": {
            "mean_rate_per_s": plan.problem.spec.workload.mean_rate_per_s,
            "peak_rate_per_s": plan.problem.spec.workload.peak_rate_per_s,
            "sized_rate_per_s": plan.problem.rate_per_s,
            "isl_mean_tokens": round(lengths.isl.mean, 2),
            "osl_mean_tokens": round(lengths.osl.mean, 2),
            "osl_p95_tokens": round(lengths.osl.quantile(0.95), 1),
            "in_flight_context_tokens": round(lengths.in_flight_context_tokens, 1),
        },
    }


def seconds(value_s: float) -> str:
    """Seconds or milliseconds for people.

    Example:
        >>> seconds(0.0123), seconds(75)
        ('12 ms', '75.0 s')
    """
    return f"{1e3 * value_s:.0f} ms" if value_s < 1 else f"{value_s:.1f} s" if value_s < 1000 else f"{value_s:.0f} s"


def triple(latency: Latency) -> str:
    """p50, p95 and p99 in the unit of the longest.

    Example:
        >>> triple(Latency(0.031, 0.045, 0.12)), triple(Latency(0.5, 2.25, 130.0))
        ('31/45/120 ms', '0.5/2.2/130 s')
    """
    values = (latency.p50_s, latency.p95_s, latency.p99_s)
    if max(values) < 1:
        return "/".join(f"{1e3 * each:.0f}" for each in values) + " ms"
    return "/".join(f"{each:.1f}" if each < 100 else f"{each:.0f}" for each in values) + " s"


WIDE = 132
"""Columns of a terminal that the whole table takes."""


def tables(plan: Plan, width: int) -> list[Table]:
    """The ranked table, in two halves where the terminal is narrow."""
    rows = list(enumerate(shown(plan), 1))
    what = {
        "fleet": lambda each: each.label,
        "GPUs": lambda each: f"{each.gpus} ({each.fractional_gpus:.1f} + {100 * each.rounding_loss:.0f} %)",
    }
    times = {
        "TTFT": lambda each: triple(each.ttft),
        "TTFAT": lambda each: triple(each.ttfat),
        "ITL": lambda each: triple(each.itl),
        "E2E": lambda each: triple(each.e2e),
        "KV": lambda each: f"{100 * each.load.kv_share:.0f} %",
        "binds": lambda each: each.limit,
    }
    dollars = {
        "$/month": lambda each: f"{each.cost.usd_month:,.0f}",
        "$/query": lambda each: f"{each.cost.usd_per_query:.4f}",
        "$/1M out": lambda each: f"{each.cost.usd_per_million_output_tokens:.2f}",
    }
    trust = {"trust": lambda each: f"{each.trust.tag.value} ±{100 * each.trust.band:.0f} %"}
    title, quantiles = "Plans, best first", "p50/p95/p99 at the peak"
    if width >= WIDE:
        return [_table(f"{title} (times {quantiles})", what | times | dollars | trust, rows)]
    return [_table(title, what | dollars | trust, rows), _table(f"Times, {quantiles}", times, rows)]


def _table(title: str, columns: dict[str, Callable[[Candidate], str]], rows: list[tuple[int, Candidate]]) -> Table:
    found = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    found.add_column("#")
    for name in columns:
        fold = name in ("fleet", "trust")
        found.add_column(name, overflow="fold", no_wrap=not fold, justify="right" if name.startswith("$") else "left")
    for number, each in rows:
        found.add_row(str(number), *(show(each) for show in columns.values()))
    return found


def check_record(checked: Checked) -> dict[str, Any]:
    """What the simulator says of a finalist, as plain data."""
    return {
        "fleet": checked.candidate.label,
        "requests": checked.requests,
        "added_workers": checked.added_workers,
        "broken": list(checked.broken),
        **{
            name: {"p50_s": each.p50_s, "p95_s": each.p95_s, "p99_s": each.p99_s}
            for name, each in (
                ("ttft", checked.ttft),
                ("ttfat", checked.ttfat),
                ("itl", checked.itl),
                ("e2e", checked.e2e),
            )
        },
    }


def check_table(checks: list[Checked]) -> Table:
    """The finalists in the simulator."""
    shown = Table(
        title="Finalists in the simulator, at the peak (p50/p95/p99)",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    for name in ("fleet", "TTFT", "TTFAT", "ITL", "E2E", "requests", "objectives"):
        shown.add_column(name, overflow="fold")
    for each in checks:
        kept = "kept" if not each.broken else f"missed: {', '.join(each.broken)}"
        added = f" after {each.added_workers} more workers" if each.added_workers else ""
        triples = [triple(latency) for latency in (each.ttft, each.ttfat, each.itl, each.e2e)]
        shown.add_row(each.candidate.label, *triples, str(each.requests), kept + added)
    return shown
