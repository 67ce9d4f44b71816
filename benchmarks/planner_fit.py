"""Fit the engines' constants on the calibration rows and print ``cluster/hardware/engine_constants.csv``.

    python benchmarks/planner_fit.py ../shared/data/silicon_h100_h200_calibration.csv

Minimises log error of TPOT, and of TTFT where at most four clients ran (same weight), robustly, with a prior on
every constant: kernels from single operations measured on H100 and H200 (GEMM 0.79 of bf16 peak and 0.80 of
bandwidth, fp8 0.70, prefill attention 0.61, decode attention 0.88, all-reduce 0.68 of the link and 4 µs), reduced
for clocks under sustained load. Load generators are shared by all engines. ``--folds 5`` prints the error on
configurations left out in turn, which is what the prior's strength was chosen by.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.silicon import DENSE, Measured, generator, parse_all, read
from cluster.hardware.engine_constants import EngineConstants, engine_constants
from decode_workers.cost import DecodeCost
from planner.capacity.closed_loop import closed_loop
from planner.capacity.least_squares import Vector, fit

# name, prior, lower, upper, width of the prior in log units
CONSTANTS = (
    ("gemm_share", 0.68, 0.5, 0.8, 0.15),
    ("gemm_fp8_share", 0.58, 0.3, 0.75, 0.2),
    ("moe_share", 0.3, 0.08, 0.75, 0.5),
    ("memory_share", 0.82, 0.7, 0.95, 0.08),
    ("moe_memory_share", 0.7, 0.3, 0.95, 0.25),
    ("kv_share", 0.85, 0.4, 0.95, 0.15),
    ("attention_share", 0.58, 0.25, 0.7, 0.2),
    ("softness", 2.7, 1.2, 8.0, 0.4),
    ("layer_s", 12e-6, 2e-6, 6e-5, 0.7),
    ("moe_layer_s", 15e-6, 1e-6, 1e-4, 0.7),
    ("token_layer_s", 5e-9, 1e-10, 2e-7, 1.5),
    ("step_s", 1e-3, 5e-5, 1e-2, 1.0),
    ("sequence_s", 5e-6, 2e-7, 1e-4, 1.0),
    ("all_reduce_s", 5e-6, 1.5e-6, 2e-5, 0.4),
    ("all_reduce_share", 0.55, 0.2, 0.8, 0.3),
    ("first_token_s", 0.015, 0.001, 0.3, 1.0),
    ("prefill_layer_s", 2e-4, 1e-6, 3e-3, 1.0),
    ("prefill_moe_layer_s", 3e-4, 1e-6, 3e-3, 1.0),
)
GENERATORS = (
    ("lockstep stall share", 0.6, 0.4, 1.0, 0.15),
    ("lockstep collision share", 0.5, 0.01, 1.0, 0.5),
    ("spread stall share", 0.95, 0.4, 1.0, 0.15),
    ("spread collision share", 0.1, 0.01, 1.0, 0.7),
)
ENGINES = ("vllm", "sglang", "trtllm", "trtllm-1.0")
PRIOR_WEIGHT = 0.3
TTFT_WEIGHT = 1.0
TTFT_CLIENTS = 4


def _unpack(point: Vector) -> tuple[dict[str, EngineConstants], tuple[float, float], tuple[float, float]]:
    engines = {}
    for i, engine in enumerate(ENGINES):
        values = np.exp(point[i * len(CONSTANTS) : (i + 1) * len(CONSTANTS)])
        engines[engine] = engine_constants(engine).with_overrides(
            **{row[0]: float(value) for row, value in zip(CONSTANTS, values, strict=True)}
        )
    lock = [float(value) for value in np.exp(point[len(ENGINES) * len(CONSTANTS) :])]
    return engines, (lock[0], lock[1]), (lock[2], lock[3])


def predict(rows: Sequence[Measured], point: Vector) -> list[tuple[float, float]]:
    """Predicted (TPOT, TTFT) seconds of each row."""
    engines, lockstep, spread = _unpack(point)
    costs: dict[tuple[object, ...], DecodeCost] = {}
    found = []
    for row in rows:
        cost = costs.get(row.cost_key)
        if cost is None:
            cost = costs[row.cost_key] = row.cost(engines[row.engine])
        estimate = closed_loop(cost, row.clients, row.isl_tokens, row.osl_tokens, generator(row, lockstep, spread))
        found.append((estimate.tpot_s, estimate.ttft_s))
    return found


def fit_rows(rows: Sequence[Measured]) -> Vector:
    """Constants of all engines and both load generators, as logarithms."""
    table = CONSTANTS * len(ENGINES) + GENERATORS
    prior, low, high, width = (np.log([row[i] for row in table]) for i in (1, 2, 3, 4))
    width = np.array([row[4] for row in table])

    def residuals(point: Vector) -> Vector:
        values = []
        for row, (tpot_s, ttft_s) in zip(rows, predict(rows, point), strict=True):
            values.append(math.log(tpot_s / row.tpot_s))
            if row.clients <= TTFT_CLIENTS:
                values.append(TTFT_WEIGHT * math.log(ttft_s / row.ttft_s))
        return np.concatenate([values, PRIOR_WEIGHT * (point - prior) / width])

    return fit(residuals, prior, low, high)


def _errors(rows: Sequence[Measured], point: Vector) -> tuple[list[float], list[float], list[float]]:
    dense, other, ttft = [], [], []
    for row, (tpot_s, ttft_s) in zip(rows, predict(rows, point), strict=True):
        (dense if row.model_name in DENSE else other).append(abs(tpot_s / row.tpot_s - 1))
        if row.clients <= TTFT_CLIENTS:
            ttft.append(abs(ttft_s / row.ttft_s - 1))
    return dense, other, ttft


def _print_errors(label: str, dense: Sequence[float], other: Sequence[float], ttft: Sequence[float]) -> None:
    within = float(np.mean(np.array(dense) < 0.25))
    print(
        f"# {label}: dense TPOT mean {np.mean(dense):.1%} median {np.median(dense):.1%} within 25 %: {within:.1%}; "
        f"MoE TPOT mean {np.mean(other):.1%} median {np.median(other):.1%}; TTFT to 4 clients mean {np.mean(ttft):.1%}",
        file=sys.stderr,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("calibration", type=Path)
    parser.add_argument("--folds", type=int, default=0)
    parser.add_argument("--date", default="2026-11-29")
    options = parser.parse_args()
    rows = parse_all(read(options.calibration))
    point = fit_rows(rows)
    engines, lockstep, spread = _unpack(point)
    _print_errors(f"{len(rows)} calibration rows", *_errors(rows, point))
    print(f"# lockstep {lockstep}, spread {spread}", file=sys.stderr)
    if options.folds:
        keys = sorted({str([row.row[c] for c in row.row if c not in _MEASURED]) for row in rows})
        order = np.random.default_rng(0).permutation(len(keys))
        fold = {key: int(order[i]) % options.folds for i, key in enumerate(keys)}
        totals: tuple[list[float], list[float], list[float]] = ([], [], [])
        for part in range(options.folds):
            inside = [fold[str([row.row[c] for c in row.row if c not in _MEASURED])] == part for row in rows]
            trained = fit_rows([row for row, test in zip(rows, inside, strict=True) if not test])
            found = _errors([row for row, test in zip(rows, inside, strict=True) if test], trained)
            for total, part_errors in zip(totals, found, strict=True):
                total.extend(part_errors)
        _print_errors(f"left out in {options.folds} folds of whole configurations", *totals)
    names = list(EngineConstants.__dataclass_fields__)
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(names)
    for engine, constants in engines.items():
        count = sum(row.engine == engine for row in rows)
        source = f"benchmarks/planner_fit.py on {count} measured rows of {engine} (aiconfigurator, Apache-2.0)"
        values = {**{name: getattr(constants, name) for name in names}, "source": source, "date": options.date}
        writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in values.values()])


_MEASURED = ("concurrency", "batch_size", "measured", "silicon_ttft_ms", "silicon_tpot_ms")


if __name__ == "__main__":
    main()
