"""The cluster spec: one YAML file, checked as a whole before anything starts.

Every key is listed in the section's own file beside this one (``pool_settings`` and so on) with its unit, default and
reason; an unknown key is an error that names its path. The Helm chart copies its ``config:`` block into a file of this
form, so there is one schema, not two.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pydantic
import yaml
from pydantic import Field, PrivateAttr, model_validator

from cluster.errors import ConfigError
from cluster.spec.autoscaling_settings import AutoscalingSettings
from cluster.spec.gateway_settings import GatewaySettings, TenantSettings
from cluster.spec.health_settings import DrainSettings, HealthSettings
from cluster.spec.model_settings import ModelSettings
from cluster.spec.objective_settings import CostSettings, SloSettings
from cluster.spec.pool_settings import PoolSettings, PoolsSettings, Role
from cluster.spec.security_settings import SecuritySettings
from cluster.spec.settings import Settings
from cluster.spec.transfer_settings import TransferSettings, Transport

__all__ = [
    "ClusterSpec", "DrainSettings", "GatewaySettings", "PoolSettings", "Role", "SecuritySettings", "SloSettings",
    "TenantSettings", "TransferSettings", "Transport", "load", "parse",
]  # fmt: skip
"""The spec and those of its parts that are asked for all over the tree; others are imported from their section."""


class ClusterSpec(Settings):
    """One cluster."""

    name: str = Field("local", pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")
    """Name of the cluster; state files and Ray actors carry it."""
    model: ModelSettings
    """The model served."""
    pools: PoolsSettings
    """The workers."""
    transfer: TransferSettings = TransferSettings()
    """KV handoff."""
    gateway: GatewaySettings = GatewaySettings()
    """Listeners and limits."""
    tenants: dict[Annotated[str, Field(max_length=256)], TenantSettings] = {}  # noqa: RUF012
    """Weights and limits by tenant; the entry ``default`` holds for every tenant that has none of its own."""
    security: SecuritySettings = SecuritySettings()
    """TLS, keys and the cluster's own credential."""
    drain: DrainSettings = DrainSettings()
    """Emptying workers."""
    autoscaling: AutoscalingSettings = AutoscalingSettings()
    """Growing and shrinking the pools."""
    health: HealthSettings = HealthSettings()
    """Judging workers."""
    slo: SloSettings = SloSettings()
    """Objectives."""
    cost: CostSettings = CostSettings()
    """Prices."""
    _worker_prefix: str = PrivateAttr("")

    @property
    def worker_prefix(self) -> str:
        """What the names of workers begin with: empty, or the model's name where a cluster has several."""
        return self._worker_prefix

    def with_worker_prefix(self, prefix: str) -> ClusterSpec:
        """The same, for a model beside others."""
        spec = self.model_copy()
        spec._worker_prefix = prefix
        return spec

    @model_validator(mode="after")
    def _check(self) -> ClusterSpec:
        roles = {role: pool for role, pool in self.pools.items() if pool.replicas}
        if not roles:
            raise ValueError("pools: no worker at all; set replicas of prefill and decode, or of colocated")
        if (Role.PREFILL in roles) != (Role.DECODE in roles):
            raise ValueError("pools: prefill and decode need each other; give both replicas >= 1, or use colocated")
        sizes = {pool.engine.block_size_tokens for pool in roles.values()}
        if len(sizes) > 1:
            raise ValueError(f"pools: engine.block_size_tokens differs between pools ({sorted(sizes)}); make it equal")
        devices = {pool.accelerators_per_worker > 0 for pool in roles.values()}
        if len(devices) > 1:
            raise ValueError(
                "pools: CPU and GPU workers cannot exchange KV; set accelerators_per_worker in all or none"
            )
        self._check_types(on_cpu=devices == {False})
        if self.autoscaling.enabled:
            self._check_autoscaling(roles)
        if Role.PREFILL in roles and roles[Role.PREFILL].engine.speculative:
            raise ValueError("pools.prefill.engine.speculative: prefill makes one token; put it in decode or colocated")
        return self

    def _check_types(self, *, on_cpu: bool) -> None:
        """What vLLM's CPU engine computes on some processors only, no CPU cluster may ask for."""
        if on_cpu and self.model.kv_cache_dtype == "fp8":
            raise ValueError("model.kv_cache_dtype=fp8: on CPU vLLM has it for AVX-512 alone; use auto, or GPU workers")
        if on_cpu and self.model.quantization == "fp8":
            raise ValueError(
                "model.quantization=fp8: on CPU vLLM has it for AMX alone; leave it out, or use GPU workers"
            )

    def _check_autoscaling(self, roles: dict[Role, PoolSettings]) -> None:
        if Role.PREFILL not in roles:
            raise ValueError("autoscaling: needs a prefill and a decode pool; colocated workers are not scaled")
        for role in (Role.PREFILL, Role.DECODE):
            pool = roles[role]
            if not 1 <= pool.min_replicas <= pool.replicas:
                raise ValueError(f"pools.{role}.min_replicas must be from 1 to replicas ({pool.replicas})")
        gpus = sum(pool.gpus_per_worker * pool.started_replicas for pool in roles.values())
        if self.autoscaling.max_gpus is not None and self.autoscaling.max_gpus < gpus:
            raise ValueError(
                f"autoscaling.max_gpus must be at least {gpus}, what the pools' replicas and standby_replicas take"
            )

    @property
    def changes_roles(self) -> bool:
        """Whether workers of one pool may take the other's role: the autoscaler may, and their engines are alike."""
        pools = dict(self.pools.items())
        prefill, decode = pools.get(Role.PREFILL), pools.get(Role.DECODE)
        if prefill is None or decode is None or not (self.autoscaling.enabled and self.autoscaling.change_roles):
            return False
        shape = ("accelerators_per_worker", "tensor_parallel_size", "expert_parallel", "accelerator_type")
        return all(getattr(prefill, name) == getattr(decode, name) for name in shape)

    def tenant(self, name: str) -> TenantSettings:
        """What a tenant may have."""
        return self.tenants.get(name) or self.tenants.get("default") or TenantSettings()


def load(path: Path | None = None) -> ClusterSpec:
    """Read and check a spec; without a path, the embedded ``local.yaml``.

    Raises:
        ConfigError: the file is missing or not YAML, or a key is unknown or out of range; the text names the key.
    """
    return parse(spec_text(path), source=str(path or "local.yaml"))


def parse(text: str, *, source: str = "spec") -> ClusterSpec:
    """Check a spec given as YAML text.

    Raises:
        ConfigError: as for `load`.

    Example:
        >>> parse("model: {path: m, served_name: m, max_model_len_tokens: 64, colour: red}")
        Traceback (most recent call last):
            ...
        cluster.errors.ConfigError: spec: model.colour: unknown key; pools: missing
    """
    return checked(read_tree(text, source), source)


def checked(tree: dict[str, Any], source: str, places: Mapping[str, str] | None = None) -> ClusterSpec:
    """The spec of a tree; ``places`` says where a section of it stands in the file.

    Raises:
        ConfigError: as for `load`.
    """
    try:
        return ClusterSpec.model_validate(tree)
    except pydantic.ValidationError as error:
        raise ConfigError(f"{source}: {'; '.join(problem(item, places or {}) for item in error.errors())}") from error


def spec_text(path: Path | None) -> str:
    """The text of a spec file; without a path, of the embedded ``local.yaml``.

    Raises:
        ConfigError: it cannot be read.
    """
    if path is None:
        return importlib.resources.files("cluster.spec").joinpath("local.yaml").read_text()
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the spec {path}: {error}") from error


def read_tree(text: str, source: str) -> dict[str, Any]:
    """The keys of a spec.

    Raises:
        ConfigError: it is not YAML, or has no keys.
    """
    try:
        tree: Any = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source}: not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{source}: expected keys such as `model:` and `pools:`, got {type(tree).__name__}")
    return tree


def problem(item: Any, places: Mapping[str, str]) -> str:
    """What one of pydantic's errors says, with the key as it stands in the file."""
    first, *rest = [str(part) for part in item["loc"]] or [""]
    path = ".".join([places.get(first, first), *rest])
    prefix = f"{path}: " if path else ""
    match item["type"]:
        case "missing":
            return f"{prefix}missing"
        case "extra_forbidden":
            return f"{prefix}unknown key"
        case "value_error":
            return f"{prefix}{item['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{path}={item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
