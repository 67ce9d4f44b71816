"""Rows of the measured silicon table (aiconfigurator, Apache-2.0) as workloads of our cost models."""

from __future__ import annotations

import csv
import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.hardware.catalogue import GpuSpec, gpu
from cluster.hardware.engine_constants import EngineConstants
from cluster.model.known_models import known_model
from cluster.model.model_spec import ModelSpec
from cluster.model.precision import Precision
from decode_workers.cost import DecodeCost
from planner.capacity.closed_loop import LoadGenerator

GPUS = {"h100_sxm": "H100-SXM", "h200_sxm": "H200-SXM"}
MODELS = {
    "Qwen3-32B": "Qwen3-32B",
    "Llama-3.1-8B-Instruct": "Llama-3.1-8B",
    "Llama-3.1-8B-Instruct-FP8": "Llama-3.1-8B",
    "Llama-3.1-70B": "Llama-3.1-70B",
    "DeepSeek-R1": "DeepSeek-R1",
    "DeepSeek-V3": "DeepSeek-R1",
    "Qwen3-235B-A22B-FP8": "Qwen3-235B-A22B",
    "gpt-oss-120b": "gpt-oss-120b",
    "Kimi-K2.5": "Kimi-K2.5",
    "MiniMax-M2.5": "MiniMax-M2.5",
}
DENSE = ("Qwen3-32B", "Llama-3.1-8B", "Llama-3.1-70B")
# Sheets of AIConfigurator's own gap analysis run fixed lengths with all clients started together; the others are
# InferenceMAX sweeps, whose lengths vary by 20 %. The version column distinguishes the sheets.
LOCKSTEP_VERSIONS = ("1.0.0rc3", "0.12.0", "0.5.1.post1", "0.5.6.post2", "0.5.8.post1", "1.2.0rc6.post1", "1.3.0rc1")
CONFIGURATION = (
    *("backend", "backend_version", "model_path", "system", "precision", "mode", "isl", "osl"),
    *("tp_size", "moe_tp_size", "moe_ep_size", "attention_dp_size", "pp_size"),
)


@dataclass(frozen=True)
class Measured:
    """One measured row that the colocated cost model covers."""

    row: Mapping[str, str]
    model_name: str
    model: ModelSpec
    gpu: GpuSpec
    engine: str
    tp: int
    expert_parallel: bool
    kv_dtype_bytes: float
    clients: int
    isl_tokens: int
    osl_tokens: int
    ttft_s: float
    tpot_s: float

    @property
    def lockstep(self) -> bool:
        return self.row["backend_version"] in LOCKSTEP_VERSIONS

    @property
    def conditions(self) -> tuple[int, bool]:
        """Most requests that ran at a time, and whether prompts were in the prefix cache, by sheet.

        Read off the calibration rows. By Little's law the requests that decode are
        ``clients * osl * TPOT / (TTFT + osl * TPOT)``: 99 to 106 in all six rows of gpt-oss-120b with 512 clients under
        vLLM 0.11.2 or of no stated version. Under vLLM 0.12.0 on H200 TPOT is that of decode alone (15.6 ms for 48
        requests of 8,000 tokens, 16.7 modelled), though prompts would take a third of the GPU at the data sheet's peak.
        """
        version, vllm = self.row["backend_version"], self.row["backend"] == "vllm"
        limited = vllm and self.model_name == "gpt-oss-120b" and version in ("", "0.11.2")
        return (100 if limited else 0), vllm and version == "0.12.0" and self.gpu.name == "H200-SXM"

    @property
    def cost_key(self) -> tuple[object, ...]:
        return (
            *(self.model_name, self.model.precision, self.gpu.name, self.engine),
            *(self.tp, self.expert_parallel, self.kv_dtype_bytes, self.reads_all_experts),
        )

    @property
    def reads_all_experts(self) -> bool:
        """The grouped kernel takes as long at 4 requests as at 20: vLLM 0.12.0 with weights in blocks of fp8."""
        old = self.row["backend"] == "vllm" and self.row["backend_version"] == "0.12.0"
        return old and self.model.experts > 0 and self.model.precision is Precision.FP8_BLOCK

    def cost(self, constants: EngineConstants) -> DecodeCost:
        if self.reads_all_experts:
            constants = constants.with_overrides(idle_expert_share=1.0)
        return DecodeCost(
            self.model,
            self.gpu,
            constants,
            self.tp,
            kv_dtype_bytes=self.kv_dtype_bytes,
            expert_parallel=self.expert_parallel,
        )


def parse(row: Mapping[str, str]) -> Measured | None:
    """A row as a workload; ``None`` for what the colocated model leaves out.

    Left out: disaggregated rows, attention data parallel, pipeline parallel, MoE rows whose expert layout does not
    match the tensor-parallel size, spreads over more than one node, and models with linear or sparse attention.
    """
    name = MODELS.get(row["model_path"].split("/")[-1])
    if name is None or row["mode"] != "agg" or row["system"] not in GPUS:
        return None
    if (row["attention_dp_size"] or "1") != "1" or (row["pp_size"] or "1") != "1":
        return None
    tp, model = int(row["tp_size"]), known_model(name)
    if tp > 8 or (model.experts and int(row["moe_tp_size"] or 1) * int(row["moe_ep_size"] or 1) != tp):
        return None
    engine, kv_dtype_bytes = row["backend"], 2.0
    # TensorRT-LLM changed its default runtime after 1.0, and the sheets of before and after disagree by half.
    constants = "trtllm-1.0" if row["backend_version"].startswith("1.0.") else engine
    if row["precision"] == "fp8" and not model.experts:
        model = model.with_precision("fp8_block" if engine == "sglang" else "fp8")
        if engine == "trtllm" or (engine == "vllm" and not row["backend_version"]):
            kv_dtype_bytes = 1.0
    if name == "Qwen3-235B-A22B":
        model = model.with_precision("fp8_block")
    if model.is_mla and engine == "trtllm":
        kv_dtype_bytes = 1.0
    clients = row.get("concurrency") or row["batch_size"]
    if not clients:
        return None
    return Measured(
        row=row,
        model_name=name,
        model=model,
        gpu=gpu(GPUS[row["system"]]),
        engine=constants,
        tp=tp,
        expert_parallel=int(row["moe_ep_size"] or 1) > 1,
        kv_dtype_bytes=kv_dtype_bytes,
        clients=int(clients),
        isl_tokens=int(row["isl"]),
        osl_tokens=int(row["osl"]),
        ttft_s=float(row["silicon_ttft_ms"]) / 1e3,
        tpot_s=float(row["silicon_tpot_ms"]) / 1e3,
    )


def read(path: Path) -> list[dict[str, str]]:
    """All rows of a table."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def parse_all(rows: Iterable[Mapping[str, str]]) -> list[Measured]:
    """All rows that :func:`parse` covers."""
    return [found for found in map(parse, rows) if found is not None]


def full_table() -> Path | None:
    """The full measured table inside an installed ``aiconfigurator-core``, ``None`` where it is not installed."""
    spec = importlib.util.find_spec("aiconfigurator_core")
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0]) / "systems" / "silicon_sample.csv"
    return path if path.exists() else None


def held_out(full: Iterable[Mapping[str, str]], calibration: Iterable[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Rows of ``full`` on the two systems whose whole configuration is absent from ``calibration``."""
    tuned = {tuple(row[column] for column in CONFIGURATION) for row in calibration}
    return [
        row for row in full if row["system"] in GPUS and tuple(row[column] for column in CONFIGURATION) not in tuned
    ]


# Fitted by planner_fit.py on the calibration rows, 2026-11-22: (stall share, collision share).
LOCKSTEP = (0.669, 0.436)
SPREAD = (0.961, 0.092)


def generator(
    row: Measured, lockstep: tuple[float, float] = LOCKSTEP, spread: tuple[float, float] = SPREAD
) -> LoadGenerator:
    """The load generator of a row."""
    name, shares = ("lockstep", lockstep) if row.lockstep else ("spread lengths", spread)
    return LoadGenerator(name, *shares, *row.conditions)
