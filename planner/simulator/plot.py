"""Pictures of workloads and runs: bars in a terminal, or a PNG where matplotlib is installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import ConfigError
from planner.simulator.result import Result
from planner.simulator.workload import Floats, Ints, Workload

_ROLES = ("prefill", "decode", "colocated")
_EIGHTHS = " ▁▂▃▄▅▆▇█"


def bars(values: Floats, width: int = 60) -> str:
    """Values as a row of blocks, highest at the top of the last block.

    Example:
        >>> bars(np.array([0.0, 4.0, 8.0]), width=3)
        ' ▄█'
    """
    if len(values) > width:
        values = np.array([part.mean() for part in np.array_split(values, width)])
    top = float(values.max()) if len(values) else 0.0
    return "".join(_EIGHTHS[round(8 * float(value) / top)] if top > 0 else " " for value in values)


def describe(workload: Workload) -> list[str]:
    """A workload in a few lines of text: its rate and lengths over time, and their distributions."""
    lines = []
    edges = np.linspace(0.0, max(workload.duration_s, 1e-9), 61)
    # Over no time there is no rate to draw.
    if workload.duration_s > 0:
        rate = np.histogram(workload.arrival_s, edges)[0] / (edges[1] - edges[0])
        lines.append(f"rate/s           |{bars(rate)}| max {rate.max():.3g}")
    for name in ("isl_tokens", "reasoning_tokens", "answer_tokens") if workload.duration_s > 0 else ():
        tokens: Ints = getattr(workload, name)
        if not tokens.any():
            continue
        sums = np.histogram(workload.arrival_s, edges, weights=tokens)[0]
        counts = np.maximum(1, np.histogram(workload.arrival_s, edges)[0])
        lines.append(f"{name:16} |{bars(sums / counts)}| mean over time, max {(sums / counts).max():,.0f}")
    for name in ("isl_tokens", "reasoning_tokens", "answer_tokens"):
        tokens = getattr(workload, name)
        if tokens.any():
            p50, p95, p99 = (int(each) for each in np.quantile(tokens, (0.5, 0.95, 0.99)))
            cv = float(tokens.std() / tokens.mean())
            lines.append(f"{name:16} mean {tokens.mean():,.0f}  p50 {p50:,}  p95 {p95:,}  p99 {p99:,}  cv {cv:.2f}")
    return lines


def save_workload(workload: Workload, path: Path) -> None:
    """Rate and token demand over time, and the distributions of lengths, as one picture.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure, axes = _figure(1, 3)
    edges = np.linspace(0.0, max(workload.duration_s, 1e-9), 121)
    hours = (edges[1:] + edges[:-1]) / 7200
    width_s = edges[1] - edges[0]
    axes[0].plot(hours, np.histogram(workload.arrival_s, edges)[0] / width_s)
    axes[0].set(title="arrivals", xlabel="hours", ylabel="requests per second")
    for label, tokens in (("prompt", workload.isl_tokens), ("output", workload.osl_tokens)):
        axes[1].plot(hours, np.histogram(workload.arrival_s, edges, weights=tokens)[0] / width_s, label=label)
    axes[1].set(title="demand", xlabel="hours", ylabel="tokens per second")
    for name in ("isl_tokens", "reasoning_tokens", "answer_tokens"):
        values = np.sort(getattr(workload, name))
        if values.any():
            axes[2].plot(np.maximum(1, values), np.linspace(0, 1, len(values)), label=name)
    axes[2].set(title="lengths", xlabel="tokens", ylabel="share of requests", xscale="log")
    for axis in axes[1:]:
        axis.legend()
    figure.savefig(path, dpi=110)


def save_result(result: Result, path: Path) -> None:
    """Workers, KV in use, queue, and time to first token over a run, as one picture.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure, axes = _figure(1, 4)
    line = result.timeline
    minutes = line["time_s"] / 60
    for role in _ROLES:
        if line[f"{role}_total_blocks"].any():
            axes[0].plot(minutes, line[f"{role}_workers"], label=role)
            axes[1].plot(minutes, line[f"{role}_used_blocks"] / np.maximum(1, line[f"{role}_total_blocks"]), label=role)
    axes[0].set(title="workers", xlabel="minutes")
    axes[1].set(title="KV in use", xlabel="minutes", ylabel="share", ylim=(0, 1))
    axes[2].plot(minutes, line["in_flight"], label="in flight")
    axes[2].plot(minutes, line["queued"], label="queued")
    axes[2].set(title="requests", xlabel="minutes")
    for name in ("ttft_s", "ttfat_s", "e2e_s"):
        values = np.sort(getattr(result.records, name)())
        if len(values):
            axes[3].plot(np.maximum(1e-3, values), np.linspace(0, 1, len(values)), label=name[:-2])
    axes[3].set(title="latency", xlabel="seconds", ylabel="share of requests", xscale="log")
    for axis in axes:
        axis.legend()
    figure.savefig(path, dpi=110)


def save_policies(results: dict[str, Result], path: Path, *, ttft_s: float) -> None:
    """GPUs, KV of the decoding workers, queue and late first tokens of several runs over time, one picture.

    Args:
        results: Runs by policy, of one workload.
        path: PNG to write.
        ttft_s: Objective for the first token.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    figure, ((gpus, kv), (queue, ttft)) = _figure(2, 2)
    for name, result in results.items():
        line, summary = result.timeline, result.summary(ttft_s=ttft_s)
        minutes = line["time_s"] / 60
        label = f"{name}: {summary['good']:.1%} good, {summary['gpu_hours']:.1f} GPU-h"
        gpus.step(minutes, sum(line[f"{role}_gpus"] for role in _ROLES), where="post", label=label)
        queue.plot(minutes, line["queued"])
        used, total = (sum(line[f"{role}_{key}_blocks"] for role in _ROLES[1:]) for key in ("used", "total"))
        kv.plot(minutes, used / np.maximum(1, total))
        late_s = np.sort(result.records.ttft_s())
        if len(late_s):
            # Share that took longer, so that the few that miss the objective are what is seen.
            ttft.step(np.maximum(1e-2, late_s), 1 - np.arange(len(late_s)) / len(late_s), where="pre")
    gpus.set(title="GPUs", ylim=(0, None))
    kv.set(title="KV in use, decoding workers", ylabel="share", ylim=(0, 1))
    queue.set(title="queued requests", xlabel="minutes", ylim=(0, None))
    ttft.axvline(ttft_s, color="0.6", lw=0.8, ls="--")
    ttft.axhline(0.01, color="0.6", lw=0.8, ls="--")
    ttft.set(title="time to first token", xlabel="seconds", ylabel="share that took longer", xscale="log")
    ttft.set(yscale="log", ylim=(1e-4, 1.0))
    figure.legend(loc="outside lower center", ncols=2, fontsize=9)
    figure.savefig(path, dpi=90)


def _figure(rows: int, columns: int) -> tuple[Any, Any]:
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("plots need matplotlib: pip install matplotlib, or leave --png out") from error
    figure = Figure(figsize=(5 * columns, 3.6 * rows), layout="constrained")
    return figure, figure.subplots(rows, columns)
