"""Write the chosen plan as what deploys it: the cluster spec, and Helm values that hold that spec as it is."""

from __future__ import annotations

import math
from typing import Any

import yaml

from cluster.errors import ConfigError
from cluster.spec.config import ClusterSpec, Role
from cluster.spec.config import parse as parse_cluster
from planner.capacity.plan import Candidate
from planner.capacity.pools import Sized
from planner.capacity.resolve import Problem
from planner.capacity.spec import kubernetes_name

_TRANSPORTS = {
    "nvlink": ["nvlink", "rdma", "tcp"],
    "rdma": ["rdma", "tcp"],
    "infinite": ["nvlink", "rdma"],
    "shared_memory": ["shared_memory", "tcp"],
    "tcp": ["tcp"],
}
HELM_KEYS = {Role.PREFILL: "prefillWorkers", Role.DECODE: "decodeWorkers", Role.COLOCATED: "colocatedWorkers"}


def accelerator_type(gpu_name: str) -> str:
    """Ray's label for a catalogue name.

    Example:
        >>> accelerator_type("H100-SXM")
        'H100'
    """
    return {"A100-SXM-80": "A100-80G", "MI300X": "AMD-Instinct-MI300X-OAM"}.get(gpu_name, gpu_name.split("-")[0])


def _pool(problem: Problem, sized: Sized) -> dict[str, Any]:
    engine, shape = problem.spec.engine, sized.worker.shape
    if shape.pp > 1 or shape.dp > 1:
        raise ConfigError(
            f"the plan's {sized.role.value} workers are of {shape} GPUs: a cluster spec knows tensor parallel alone; "
            "take pipeline_parallel and data_parallel of 1 to emit one"
        )
    return {
        "replicas": sized.workers,
        "accelerators_per_worker": shape.gpus,
        "tensor_parallel_size": shape.tp,
        "accelerator_type": accelerator_type(sized.worker.gpu.name),
        "expert_parallel": problem.spec.hardware.expert_parallel,
        "engine": {
            "block_size_tokens": engine.block_size_tokens,
            "gpu_memory_utilization": engine.memory_utilisation,
            "max_num_seqs": engine.max_num_seqs,
            "max_num_batched_tokens": engine.max_num_batched_tokens,
        },
    }


def cluster_spec(problem: Problem, candidate: Candidate) -> dict[str, Any]:
    """The cluster spec of a plan, checked against its schema.

    Raises:
        ConfigError: the plan holds something that the cluster spec cannot say.
    """
    spec, lengths = problem.spec, problem.lengths
    longest = lengths.isl.quantile(0.999) + lengths.osl.quantile(0.999)
    gpu_usd_h = sum(pool.usd_h for pool in candidate.pools) / candidate.gpus
    # fp8 made at load time only where the checkpoint itself is wider; a checkpoint stored in fp8 loads as it is.
    quantization = "fp8" if spec.model.precision in ("fp8", "fp8_block") else None
    model: dict[str, Any] = {
        "path": spec.model.config or f"/models/{problem.model.name}",
        "served_name": problem.model.name.lower(),
        "max_model_len_tokens": min(problem.model.max_context_tokens, 256 * math.ceil(longest / 256)),
        "kv_cache_dtype": "fp8" if problem.kv_dtype_bytes == 1.0 else "auto",
    }
    if quantization:
        model["quantization"] = quantization
    if lengths.reasoning.mean > 0:
        budget = int(lengths.reasoning.quantile(0.99))
        model["reasoning"] = {"effort_budgets_tokens": {"none": 0, "low": 512, "medium": 4096, "high": budget}}
    slo = {
        f"{name}_p95_s": value
        for name in ("ttft", "itl", "ttfat", "e2e")
        if (value := getattr(spec.slo, f"{name}_s")) is not None and spec.slo.percentile == 95
    }
    tree = {
        "name": kubernetes_name(spec.name),
        "model": model,
        "pools": {pool.role.value: _pool(problem, pool) for pool in candidate.pools},
        "transfer": {"transports": _TRANSPORTS[spec.hardware.link]},
        "gateway": {"forecast_osl_tokens": max(1, round(lengths.osl.mean))},
        "slo": slo,
        "cost": {"usd_per_accelerator_hour": round(gpu_usd_h, 4)},
    }
    parse_cluster(yaml.safe_dump(tree), source="emitted spec")
    return tree


def helm_values(problem: Problem, candidate: Candidate) -> dict[str, Any]:
    """Helm values of a plan: worker groups, and the cluster spec under ``config``.

    The chart's pods offer the pool's name as a Ray resource, so its spec ties each pool to its own pods.
    """
    values: dict[str, Any] = {"image": {"device": "cuda"}}
    for pool in candidate.pools:
        values[HELM_KEYS[pool.role]] = {
            "replicas": pool.workers,
            "gpusPerWorker": pool.worker.shape.gpus,
            "tensorParallelSize": pool.worker.shape.tp,
            "gpu": accelerator_type(pool.worker.gpu.name),
        }
    if candidate.pools[0].role is Role.COLOCATED:
        values |= {HELM_KEYS[role]: {"replicas": 0} for role in (Role.PREFILL, Role.DECODE)}
    config = cluster_spec(problem, candidate)
    for name, pool in config["pools"].items():
        pool["node_resource"] = name
    values["config"] = config
    return values


def gpus_of(spec: ClusterSpec) -> int:
    """GPUs that a cluster spec deploys: what is emitted is what was costed."""
    return sum(pool.replicas * pool.accelerators_per_worker for _, pool in spec.pools.items())
