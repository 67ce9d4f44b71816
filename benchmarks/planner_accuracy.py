"""Error of the cost models on measured configurations kept out of all tuning, beside AIConfigurator's own.

    python benchmarks/planner_accuracy.py ../shared/data/silicon_h100_h200_calibration.csv \\
        --aiconfigurator rows.csv

The full table comes from an installed ``aiconfigurator-core`` (or ``--table silicon_sample.csv``); rows whose
configuration (engine, version, model, system, precision, parallel sizes, lengths) appears in the calibration file
are dropped. ``rows.csv`` is written by ``aiconfigurator_rows.py``; where it is given, both models are scored on the
rows that AIConfigurator answers, and ours on all rows too.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.silicon import DENSE, Measured, full_table, generator, held_out, parse_all, read
from cluster.hardware.engine_constants import engine_constants
from decode_workers.cost import DecodeCost
from planner.capacity.closed_loop import closed_loop

Prediction = tuple[float, float]


def predict(rows: Sequence[Measured]) -> dict[str, Prediction]:
    """Our (TPOT, TTFT) seconds by row id."""
    costs, found = {}, {}
    for row in rows:
        cost: DecodeCost | None = costs.get(row.cost_key)
        if cost is None:
            cost = costs[row.cost_key] = row.cost(engine_constants(row.engine))
        estimate = closed_loop(cost, row.clients, row.isl_tokens, row.osl_tokens, generator(row))
        found[row.row["id"]] = (estimate.tpot_s, estimate.ttft_s)
    return found


def read_aiconfigurator(path: Path) -> dict[str, Prediction]:
    """AIConfigurator's (TPOT, TTFT) seconds by row id, where it gave any."""
    with path.open(newline="") as file:
        return {
            row["id"]: (float(row["tpot_ms"]) / 1e3, float(row["ttft_ms"]) / 1e3)
            for row in csv.DictReader(file)
            if row["tpot_ms"]
        }


def _score(rows: Sequence[Measured], predicted: dict[str, Prediction], which: int) -> str:
    errors = np.array(
        [
            abs(predicted[row.row["id"]][which] / (row.tpot_s, row.ttft_s)[which] - 1)
            for row in rows
            if row.row["id"] in predicted
        ]
    )
    if not errors.size:
        return f"{'-':>5} {'-':>7} {'-':>7} {'-':>9}"
    return (
        f"{errors.size:5d} {errors.mean():7.1%} {float(np.median(errors)):7.1%} {float((errors <= 0.25).mean()):9.1%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--aiconfigurator", type=Path)
    options = parser.parse_args()
    table = options.table or full_table()
    if table is None:
        sys.exit("no table: install aiconfigurator-core or give --table")
    everything = held_out(read(table), read(options.calibration))
    rows = parse_all(everything)
    print(f"{len(everything)} held-out rows on H100 and H200, {len(rows)} of them colocated and covered by the model\n")
    groups: list[tuple[str, int, Callable[[Measured], bool]]] = [
        ("dense TPOT", 0, lambda row: row.model_name in DENSE),
        ("dense TPOT vllm", 0, lambda row: row.model_name in DENSE and row.engine == "vllm"),
        ("dense TPOT sglang", 0, lambda row: row.model_name in DENSE and row.engine == "sglang"),
        ("dense TPOT trtllm", 0, lambda row: row.model_name in DENSE and row.engine.startswith("trtllm")),
        (
            "DeepSeek-R1 8xH200 sglang TPOT",
            0,
            lambda row: row.model_name == "DeepSeek-R1" and row.engine == "sglang" and row.tp == 8,
        ),
        ("mixture-of-experts TPOT", 0, lambda row: row.model_name not in DENSE),
        ("all TPOT", 0, lambda row: True),
        ("TTFT, at most 4 clients", 1, lambda row: row.clients <= 4),
        ("dense TTFT, at most 4 clients", 1, lambda row: row.clients <= 4 and row.model_name in DENSE),
        ("TTFT, more clients, no queue model", 1, lambda row: row.clients > 4),
    ]
    ours = predict(rows)
    theirs = read_aiconfigurator(options.aiconfigurator) if options.aiconfigurator else {}
    shared = {key: value for key, value in ours.items() if key in theirs}
    columns = f"{'rows':>5} {'mean':>7} {'median':>7} {'in 25 %':>9}"
    sets = [("baton, all rows", ours)]
    if theirs:
        sets += [("baton, same rows", shared), ("aiconfigurator", theirs)]
    print(" " * 36 + "".join(f"{name:<34}" for name, _ in sets))
    print(" " * 36 + "   ".join(f"{columns:<31}" for _ in sets))
    for name, which, chosen in groups:
        part = [row for row in rows if chosen(row)]
        print(f"{name:<36}" + "   ".join(f"{_score(part, values, which):<31}" for _, values in sets))


if __name__ == "__main__":
    main()
