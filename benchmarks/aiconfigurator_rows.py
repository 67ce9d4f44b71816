"""AIConfigurator's own prediction of the held-out rows, written as CSV for ``planner_accuracy.py``.

Needs ``aiconfigurator`` and ``aiconfigurator-core`` (0.12.0 was used), best in an environment of their own:

    python benchmarks/aiconfigurator_rows.py ../shared/data/silicon_h100_h200_calibration.csv rows.csv

Takes about four seconds a configuration. Each row is asked as its user would: the model, system, engine, parallel
sizes, lengths, clients as batch size, and the precision that ``silicon.py`` assumes for our own prediction.
"""

from __future__ import annotations

import csv
import logging
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from benchmarks.silicon import Measured, full_table, held_out, parse_all, read

PATHS = {
    "Qwen3-32B": "Qwen/Qwen3-32B",
    "Llama-3.1-8B": "meta-llama/Meta-Llama-3.1-8B",
    "Llama-3.1-70B": "meta-llama/Meta-Llama-3.1-70B",
    "DeepSeek-R1": "deepseek-ai/DeepSeek-R1",
    "Qwen3-235B-A22B": "Qwen/Qwen3-235B-A22B-FP8",
    "gpt-oss-120b": "openai/gpt-oss-120b",
    "Kimi-K2.5": "moonshotai/Kimi-K2.5",
    "MiniMax-M2.5": "MiniMaxAI/MiniMax-M2.5",
}


def _question(row: Measured) -> dict[str, Any]:
    asked: dict[str, Any] = {
        "model_path": PATHS[row.model_name],
        "system_name": row.row["system"],
        "backend_name": row.row["backend"],
        "isl": row.isl_tokens,
        "osl": row.osl_tokens,
        "batch_size": row.clients,
        "tp_size": row.tp,
    }
    if row.model.experts:
        asked["moe_tp_size"] = int(row.row["moe_tp_size"] or 1)
        asked["moe_ep_size"] = int(row.row["moe_ep_size"] or 1)
    elif row.model.precision.computes_in_fp8:
        asked["gemm_quant_mode"] = row.model.precision.value
    if row.kv_dtype_bytes == 1.0:
        asked["kvcache_quant_mode"] = "fp8"
    return asked


def main() -> None:
    logging.disable(logging.ERROR)
    from aiconfigurator.cli.api import cli_estimate

    calibration, out = Path(sys.argv[1]), Path(sys.argv[2])
    table = full_table()
    assert table is not None, "aiconfigurator-core is not installed"
    rows = parse_all(held_out(read(table), read(calibration)))
    rows.sort(key=lambda row: (str(row.cost_key), row.isl_tokens, row.osl_tokens, row.clients))
    known: dict[str, tuple[str, str, str]] = {}
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "tpot_ms", "ttft_ms", "note"])
        for i, row in enumerate(rows):
            asked = _question(row)
            key = str(asked)
            if key not in known:
                try:
                    found = cli_estimate(**asked)
                    known[key] = (f"{found.tpot:.4f}", f"{found.ttft:.4f}", found.kv_cache_warning or "")
                except Exception as error:  # Whatever it raises, the row has no prediction.
                    known[key] = ("", "", f"{type(error).__name__}: {error}"[:200])
            writer.writerow([row.row["id"], *known[key]])
            file.flush()
            if i % 20 == 0:
                print(f"{i}/{len(rows)}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
