"""Error of TPOT on kinds of GPU and shapes of workers that nothing was fitted on, and what band covers it.

    python benchmarks/planner_new_gpus.py --table silicon_sample.csv

Rows of B200, B300, GB200 and GB300, and of Hopper with attention in data parallel or with models of states and sparse
attention. The band is chosen on the configurations of even digest, the smallest multiple of 5 % that holds 87.5 %,
and its coverage is stated on those of odd digest.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.silicon import CONFIGURATION, DENSE, MODELS, full_table, read
from cluster.errors import ConfigError
from cluster.hardware.catalogue import gpu
from cluster.hardware.engine_constants import engine_constants
from cluster.model.known_models import known_model
from decode_workers.cost import DecodeCost
from planner.capacity.closed_loop import LoadGenerator, closed_loop

GPUS = {
    "b200_sxm": "B200-SXM",
    "b300_sxm": "B300-SXM",
    "gb200": "GB200-NVL72",
    "gb300": "GB300-NVL72",
    "h100_sxm": "H100-SXM",
    "h200_sxm": "H200-SXM",
}
HOPPER = ("h100_sxm", "h200_sxm")
ALL_MODELS = MODELS | {
    "GLM-5": "GLM-5",
    "Qwen3.5-397B-A17B": "Qwen3.5-397B-A17B",
    "DeepSeek-R1-NVFP4": "DeepSeek-R1",
    "DeepSeek-V3.1-NVFP4": "DeepSeek-R1",
    "Qwen3-32B-NVFP4": "Qwen3-32B",
}
SPREAD = LoadGenerator("spread lengths", 0.961, 0.092)


def predicted_s(row: Mapping[str, str]) -> float | None:
    """Our TPOT for a colocated row; ``None`` where its shape is not one that its own columns agree on."""
    name = ALL_MODELS.get(row["model_path"].split("/")[-1])
    sizes = [row[key] for key in ("tp_size", "moe_tp_size", "moe_ep_size", "batch_size")]
    if name is None or row["mode"] != "agg" or row["system"] not in GPUS or not all(each.isdigit() for each in sizes):
        return None
    tp, moe_tp, moe_ep, batch = (int(each) for each in sizes)
    dp, model = int(row["attention_dp_size"] or 1), known_model(name)
    if model.experts and moe_tp * moe_ep != tp * dp:
        return None
    if not model.experts and dp > 1:
        return None
    precision = {"fp4": "mxfp4" if name.startswith("gpt-oss") else "nvfp4", "fp8": "fp8_block", "bf16": "bf16"}
    model = model.with_precision(precision.get(row["precision"], model.precision.value))
    engine = engine_constants(row["backend"])
    # TensorRT-LLM keeps KV in fp8 by default in these sheets, as in those of Hopper.
    kv_dtype_bytes = 1.0 if row["backend"] == "trtllm" else 2.0
    try:
        cost = DecodeCost(
            model,
            gpu(GPUS[row["system"]]),
            engine,
            tp,
            kv_dtype_bytes=kv_dtype_bytes,
            expert_parallel=moe_ep > 1,
            dp=dp,
        )
    except ConfigError:
        return None
    return closed_loop(cost, batch * dp, int(row["isl"]), int(row["osl"]), SPREAD).tpot_s


def _line(label: str, errors: Sequence[float]) -> str:
    values = np.abs(np.array(errors))
    shown = f"{values.mean():7.1%} {np.median(values):7.1%} {np.quantile(values, 0.85):7.1%} {np.mean(errors):+8.1%}"
    return f"{label:<44} {values.size:5d} {shown}"


def _even(row: Mapping[str, str]) -> bool:
    return zlib.crc32("|".join(row[key] for key in CONFIGURATION).encode()) % 2 == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    table = options.table or full_table()
    if table is None:
        sys.exit("no table: install aiconfigurator-core or give --table")
    found: list[tuple[Mapping[str, str], float]] = []
    for row in read(table):
        hopper = row["system"] in HOPPER
        name = ALL_MODELS.get(row["model_path"].split("/")[-1], "")
        new = row["attention_dp_size"] not in ("", "1") or name in ("GLM-5", "Qwen3.5-397B-A17B")
        if (not hopper or new) and (predicted := predicted_s(row)) is not None:
            found.append((row, predicted / (float(row["silicon_tpot_ms"]) / 1e3) - 1))
    print(f"{'TPOT':<44} {'rows':>5} {'mean':>7} {'median':>7} {'85 %':>7} {'bias':>8}")
    never = [(row, error) for row, error in found if row["system"] not in HOPPER]
    for system in sorted({row["system"] for row, _ in never}):
        print(_line(f"{GPUS[system]}", [error for row, error in never if row["system"] == system]))
    dense = [error for row, error in never if ALL_MODELS[row["model_path"].split("/")[-1]] in DENSE]
    print(_line("never fitted, dense", dense))
    for backend in sorted({row["backend"] for row, _ in never}):
        print(_line(f"never fitted, {backend}", [error for row, error in never if row["backend"] == backend]))
    for precision in sorted({row["precision"] for row, _ in never}):
        print(_line(f"never fitted, {precision}", [e for row, e in never if row["precision"] == precision]))
    print(_line("never fitted, all", [error for _, error in never]))
    hopper_new = [error for row, error in found if row["system"] in HOPPER]
    print(_line("Hopper, data parallel, GLM-5, Qwen3.5", hopper_new))
    print()
    for label, of_kind in (("dense", True), ("mixture of experts", False)):
        part = [(row, e) for row, e in never if (ALL_MODELS[row["model_path"].split("/")[-1]] in DENSE) is of_kind]
        chosen = np.abs([error for row, error in part if _even(row)])
        checked = np.abs([error for row, error in part if not _even(row)])
        band = next(each / 100 for each in range(5, 500, 5) if np.mean(chosen <= each / 100) >= 0.875)
        held = np.mean(checked <= band)
        print(f"{label}: a band of {band:.0%} by {chosen.size} rows holds {held:.1%} of the {checked.size} others")


if __name__ == "__main__":
    main()
