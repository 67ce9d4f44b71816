"""The picture of `benchmarks/autoscaling.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

matplotlib.use("Agg")


def draw(rows: list[dict[str, Any]], cases: list[str], blocks_of_a_worker: int, png: Path) -> None:
    """Cost and missed requests of each policy, and the pools of Baton's, one row a case."""
    figure = Figure(figsize=(11, 3.1 * len(cases)), layout="constrained")
    axes = figure.subplots(len(cases), 2, squeeze=False)
    for (left, right), case in zip(axes, cases, strict=True):
        runs = [e for e in rows if e["case"] == case]
        most_hours = 2.0 * min(e["gpu_hours"] for e in runs)
        for e in runs:
            hours = min(e["gpu_hours"], most_hours)  # a policy that runs away stands at the edge, with what it took
            static = e["policy"].startswith("static")
            mark = "o" if e["policy"] == "baton" else "s" if static else "x"
            colour = "tab:red" if e["policy"] == "baton" else "0.4" if static else "tab:blue"
            left.scatter(hours, 100 * (1 - e["good"]), marker=mark, color=colour)
            text = e["policy"] if static else f"{e['policy']} @{e['start_s']:.0f}"
            text += f" ({e['gpu_hours']:.0f})" if hours < e["gpu_hours"] else ""
            left.annotate(
                text, (hours, 100 * (1 - e["good"])), fontsize=6, xytext=(3, 3), textcoords="offset points",
                ha="right" if hours > 0.8 * most_hours else "left",
            )  # fmt: skip
            if e["policy"] == "baton":
                line, style = e["timeline"], "-" if e["start_s"] < 100 else "--"
                minutes = np.array(line["time_s"]) / 60
                for pool, shade in (("prefill", "tab:green"), ("decode", "tab:red")):
                    label = f"{pool}, start {e['start_s']:.0f} s"
                    right.step(minutes, line[f"{pool}_workers"], style, color=shade, label=label, where="post", lw=1.2)
                if e["start_s"] < 100:
                    used = np.array(line["decode_used_blocks"]) / blocks_of_a_worker
                    right.fill_between(minutes, used, color="0.85", label="KV in use, in workers")
        left.axhline(1.0, color="0.7", lw=0.8)
        left.set(title=case, xlabel="GPU-hours", ylabel="requests that missed, %")
        left.set_yscale("symlog", linthresh=2.0)
        left.set_yticks(ticks := [0, 0.5, 1, 1.5, 2, 5, 10, 20, 50, 100], [f"{each:g}" for each in ticks])
        left.set_ylim(0, 1.2 * max(2.0, *(100 * (1 - e["good"]) for e in runs)))
        right.set(title=f"{case}: workers of Baton's policy", xlabel="minutes", ylim=(0, None))
        right.legend(fontsize=7)
    figure.savefig(png, dpi=100)
