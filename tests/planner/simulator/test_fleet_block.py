"""The fleet of a scenario: by model and kind of GPU, or by stated constants."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from cluster.errors import ConfigError
from cluster.spec.config import Role, TransferSettings
from decode_workers.cost import DecodeCost
from kv_transfer.blocks import kv_bytes_per_token
from kv_transfer.cost import TransferCost
from planner.simulator.cost import AffineTransfer
from planner.simulator.fleet_block import FleetBlock

POOLS: list[dict[str, Any]] = [
    {"role": "prefill", "replicas": 1, "gpu": "H100-SXM", "tensor_parallel": 2},
    {"role": "decode", "replicas": 3, "gpu": "H100-SXM", "tensor_parallel": 2},
]
STATED: dict[str, Any] = {
    "role": "colocated",
    "replicas": 1,
    "kv_capacity_tokens": 1000,
    "cost": {"decode_base_s": 0.01, "prefill_token_s": 1e-4},
}


def fleet(**keys: Any) -> FleetBlock:
    return FleetBlock.model_validate({"model": "Qwen3-32B", "pools": POOLS} | keys)


def test_model_and_gpu_give_time_and_capacity() -> None:
    spec = fleet(link="rdma").build()
    prefill, decode = (pool.profile for pool in spec.pools)
    assert isinstance(decode.decode, DecodeCost)
    assert prefill is decode, "equal workers share one cost model, and so its table"
    assert decode.gpus == 2 and decode.name == "H100-SXM"
    assert decode.total_blocks == decode.decode.kv_capacity_tokens() // 16
    assert decode.kv_bytes_per_token == kv_bytes_per_token(decode.decode.roofline.model, 2.0)
    assert 0.012 < decode.decode.step_s(1, 1000) < 0.03
    assert isinstance(spec.transfer, TransferCost)


def test_fp8_cache_holds_twice_the_tokens() -> None:
    wide, narrow = (
        fleet(model={"name": "Qwen3-32B", "kv_cache_dtype": kind}).build().pools[1].profile for kind in ("bf16", "fp8")
    )
    assert narrow.total_blocks == pytest.approx(2 * wide.total_blocks, rel=0.01)
    assert narrow.kv_bytes_per_token == 0.5 * wide.kv_bytes_per_token


def test_stated_constants_need_no_model() -> None:
    spec = FleetBlock.model_validate({"pools": [STATED]}).build()
    assert spec.pools[0].role is Role.COLOCATED
    assert spec.pools[0].profile.decode.step_s(1, 1) == 0.01
    assert isinstance(spec.transfer, AffineTransfer)


def test_decode_helps_a_crowded_prefill_pool_as_the_cluster_does_by_default() -> None:
    assert fleet().build().local_prefill_after_s == TransferSettings().local_prefill_after_s
    assert fleet(local_prefill_after_s=None).build().local_prefill_after_s is None


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"model": None}, "fleet.model"),
        ({"pools": [POOLS[0] | {"cost": STATED["cost"]}]}, "gpu"),
        ({"pools": [{"role": "decode", "replicas": 1}]}, "gpu"),
        ({"pools": [STATED | {"kv_capacity_tokens": None}]}, "kv_capacity_tokens"),
    ],
)
def test_what_does_not_go_together_is_named(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=text):
        fleet(**keys)


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"model": "Qwen4"}, "Qwen4"),
        ({"engine": "ollama"}, "ollama"),
        ({"pools": [POOLS[0] | {"gpu": "H9000"}]}, "H9000"),
        ({"pools": [POOLS[0] | {"gpu": "A10G"}]}, "fleet.pools.0"),
        ({"pools": [STATED], "link": "rdma"}, "fleet.link"),
    ],
)
def test_what_cannot_be_had_is_named(keys: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        fleet(**keys).build()
