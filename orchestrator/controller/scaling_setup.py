"""What the autoscaler starts from: the pools' bounds, and what a decode worker takes."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from cluster.errors import ConfigError, ServingError
from cluster.hardware.catalogue import catalogue
from cluster.hardware.engine_constants import engine_constants
from cluster.model.model_config import read_config
from cluster.model.model_path import expand
from cluster.spec.config import ClusterSpec, Role
from decode_workers.cost import DecodeCost
from decode_workers.profile import engine_settings
from orchestrator.controller.managed_worker import ManagedWorker
from orchestrator.policy.demand import DemandForecaster, horizons_s
from orchestrator.policy.length_forecast import LengthSettings
from orchestrator.policy.measured_capacity import MeasuredCapacity, measured_capacity
from orchestrator.policy.scaling_decision import DecisionSettings
from prefill_workers.cost import PrefillCost

log = logging.getLogger("baton.autoscaler")


def forecaster_of(spec: ClusterSpec, capacity: MeasuredCapacity) -> DemandForecaster:
    """The forecaster for this spec; ``capacity`` remembers contexts for as long as it remembers lengths."""
    settings = spec.autoscaling
    lengths = LengthSettings(
        prior_mean_tokens=float(spec.gateway.forecast_osl_tokens), memory_s=settings.length_half_lives_s
    )
    capacity.context_memory_s = lengths.memory_s[1]
    return DemandForecaster(
        capacity, ttft_s=spec.slo.ttft_p95_s, horizons_s=horizons_s(settings.start_s), lengths=lengths
    )


def policy_settings(spec: ClusterSpec) -> DecisionSettings:
    """Settings of the policy, from the pools' bounds and the ``autoscaling`` section.

    GPUs of workers on standby are off its budget: there are always as many.
    """
    pools, settings = dict(spec.pools.items()), spec.autoscaling
    prefill, decode = pools[Role.PREFILL], pools[Role.DECODE]
    standby_gpus = sum(pool.gpus_per_worker * pool.standby_replicas for pool in (prefill, decode))
    tree = {
        "min_prefill": prefill.min_replicas,
        "max_prefill": prefill.most_replicas,
        "min_decode": decode.min_replicas,
        "max_decode": decode.most_replicas,
        "max_gpus": settings.max_gpus - standby_gpus if settings.max_gpus is not None else None,
        "change_roles": spec.changes_roles,
        "patience_s": settings.patience_s,
        "surge_patience_s": settings.surge_patience_s,
        "cancel_patience_s": settings.cancel_patience_s,
        "cooldown_s": settings.cooldown_s,
    }
    return DecisionSettings(**{name: value for name, value in tree.items() if value is not None})


def capacity_of(spec: ClusterSpec, workers: Sequence[ManagedWorker]) -> MeasuredCapacity:
    """What a decode worker takes: KV and batch limit of engines that are up, and the cost model if it knows them.

    Raises:
        ConfigError: no decode worker is up.
    """
    held = [
        worker.member.total_blocks * worker.member.block_size_tokens
        for worker in workers
        if worker.role is Role.DECODE and worker.member.total_blocks
    ]
    if not held:
        raise ConfigError("autoscaling: no decode worker is up to tell how much KV one holds")
    step_s, prompt_s = _modelled(spec)
    pool = dict(spec.pools.items())[Role.DECODE]
    return measured_capacity(
        min(held),
        itl_s=spec.slo.itl_p95_s,
        max_num_seqs=engine_settings(spec, pool, Role.DECODE).max_num_seqs,
        modelled_step_s=step_s,
        modelled_prompt_s=prompt_s,
    )


def _modelled(spec: ClusterSpec) -> tuple[Callable[[int, int], float] | None, Callable[[int], float] | None]:
    """The cost models' step and prompt times; None where the catalogue does not know the GPU, or there is none."""
    pools = dict(spec.pools.items())
    decode = pools[Role.DECODE]
    name = decode.accelerator_type or ""
    known = [gpu for key, gpu in sorted(catalogue().items()) if name and key.split("-")[0] == name.split("-")[0]]
    if not known or not decode.accelerators_per_worker:
        return None, None
    try:
        config = json.loads((Path(expand(spec.model.path)) / "config.json").read_text())
        model = read_config(config)
    except (OSError, ValueError, ServingError) as error:
        log.warning("no cost model, capacity is measured alone: %s", error)
        return None, None
    engine, tp = engine_constants("vllm"), decode.accelerators_per_worker
    step = DecodeCost(model, known[0], engine, tp, expert_parallel=decode.expert_parallel)
    prompt = PrefillCost(model, known[0], engine, pools[Role.PREFILL].accelerators_per_worker or tp)
    return step.step_s, prompt.prefill_s
