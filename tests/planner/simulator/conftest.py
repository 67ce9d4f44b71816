"""Shared pieces: a plain cost, small fleets, and the data folder where it is at hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cluster.spec.config import Role
from planner.simulator.cost import AffineCost, AffineTransfer
from planner.simulator.engine import EngineProfile
from planner.simulator.fleet import FleetSpec, PoolSpec
from planner.simulator.workload import Workload

COST = AffineCost(0.01, 1e-4, 1e-6, 0.005, 1e-4, 1e-8)


@pytest.fixture
def data() -> Path:
    """The folder of public traces, which is not shipped."""
    for parent in Path(__file__).resolve().parents:
        for folder in (parent / "shared" / "data", parent.parent / "shared" / "data"):
            if (folder / "servegen_r1_shift_1h.csv").exists():
                return folder
    pytest.skip("shared/data is not beside the checkout")


@pytest.fixture
def fleet() -> Callable[..., FleetSpec]:
    """Makes a fleet of equal workers."""

    def make(prefill: int = 1, decode: int = 2, colocated: int = 0, blocks: int = 2000, **profile: object) -> FleetSpec:
        kind = EngineProfile(COST, COST, blocks, mixed=COST, kv_bytes_per_token=1e4, **profile)  # type: ignore[arg-type]
        roles = ((Role.PREFILL, prefill), (Role.DECODE, decode), (Role.COLOCATED, colocated))
        return FleetSpec(
            [PoolSpec(role, kind, count, 5.0) for role, count in roles if count], AffineTransfer(1e9, 0.001)
        )

    return make


@pytest.fixture
def workload() -> Callable[..., Workload]:
    """Makes random requests."""

    def make(size: int, rate_per_s: float = 5.0, seed: int = 0, **columns: object) -> Workload:
        rng = np.random.default_rng(seed)
        return Workload(
            np.cumsum(rng.exponential(1 / rate_per_s, size)),
            rng.integers(1, 300, size),
            rng.integers(0, 200, size),
            rng.integers(1, 100, size),
            **columns,  # type: ignore[arg-type]
        )

    return make
