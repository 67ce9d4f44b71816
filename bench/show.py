"""The table of a run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.report import PERCENTILES

_ROWS = (
    ("TTFT", "ttft_s"),
    ("TTFAT", "ttfat_s"),
    ("ITL", "itl_s"),
    ("TPOT", "tpot_s"),
    ("E2E", "e2e_s"),
)


def show(found: dict[str, Any], console: Console) -> None:
    """Print a result of `measure`."""
    title = escape(f"{found['endpoint']} ({found['model']}), {found['loop']}")
    table = Table(title=title, title_justify="left")
    table.add_column("ms")
    for heading in (*(f"p{percentile}" for percentile in PERCENTILES), "mean", "max"):
        table.add_column(heading, justify="right")
    for name, key in _ROWS:
        if values := found[key]:
            cells = [f"{values[f'p{percentile}'] * 1000:.1f}" for percentile in PERCENTILES]
            table.add_row(name, *cells, f"{values['mean'] * 1000:.1f}", f"{values['max'] * 1000:.1f}")
    console.print(table)
    line = (
        f"{found['completed']} of {found['requests']} requests ended well in {found['duration_s']:.2f} s: "
        f"{found['output_tokens_per_s']:.1f} tokens/s, {found['requests_per_s']:.2f} requests/s"
    )
    console.print(line, highlight=False)
    if found["goodput_requests_per_s"] is not None:
        goals = ", ".join(f"{name.removesuffix('_s')} <= {value:g} s" for name, value in found["slo"].items())
        met = f"{found['slo_met']} requests met {goals}"
        console.print(f"goodput {found['goodput_requests_per_s']:.2f} requests/s ({met})", highlight=False)
    if found["tokens_per_message"] > 1.001:
        console.print(
            f"{found['tokens_per_message']:.2f} tokens per message: the further tokens of one count as gaps of 0",
            highlight=False,
        )
    if found["server_cpu_s"] is not None:
        per = found["server_cpu_s_per_1k_tokens"]
        thousand = f", {per:.2f} per 1,000 output tokens" if per is not None else ""
        console.print(f"server: {found['server_cpu_s']:.2f} CPU seconds{thousand}", highlight=False)
    per_token = found["client_cpu_us_per_token"]
    console.print(
        f"client: {found['client_cpu_share_of_core']:.1%} of a core"
        + (f", {per_token:.1f} µs per token" if per_token is not None else ""),
        highlight=False,
    )
    if found["max_lag_s"] > 0.01:
        console.print(
            f"[yellow]requests were sent up to {found['max_lag_s'] * 1000:.0f} ms late: the client is short of CPU[/]"
        )
    for kind, count in found["failures"].items():
        # The detail is a server's own text, which may look like markup.
        detail = escape(found["failure_details"][kind])
        console.print(f"[red]{count} failed: {escape(kind)}[/] ({detail})", highlight=False)
