from __future__ import annotations

import pytest

from cluster.spec.config import ClusterSpec, Role, parse
from decode_workers import profile as decode
from prefill_workers import profile as prefill
from workers.engine_settings import base_settings

GPU = "accelerators_per_worker: 1"
SPEC = """
model: {{path: /models/m, served_name: m, max_model_len_tokens: 2048}}
transfer: {{lease_s: 33}}
autoscaling: {{enabled: {scaled}}}
pools:
  prefill: {{replicas: 1, {device}}}
  decode: {{replicas: 1, {device}, engine: {{{engine}}}}}
"""


def spec_of(*, device: str = "cpus_per_worker: 1", scaled: bool = False, engine: str = "") -> ClusterSpec:
    return parse(SPEC.format(device=device, scaled=str(scaled).lower(), engine=engine))


def test_a_prefill_engine_gives_kv_away_and_reads_some_only_if_it_may_become_decode() -> None:
    for scaled, kv_role in ((False, "kv_producer"), (True, "kv_consumer")):
        spec = spec_of(scaled=scaled)
        pool = dict(spec.pools.items())[Role.PREFILL]
        assert prefill.engine_settings(spec, pool).kv_role == kv_role


@pytest.mark.parametrize(("role", "kv_role"), [(Role.DECODE, "kv_consumer"), (Role.COLOCATED, None)])
def test_a_decode_engine_reads_kv_and_a_colocated_one_neither(role: Role, kv_role: str | None) -> None:
    spec = spec_of()
    pool = dict(spec.pools.items())[Role.DECODE]
    assert decode.engine_settings(spec, pool, role).kv_role == kv_role


def test_prefill_takes_larger_steps_of_fewer_sequences() -> None:
    for device in (GPU, "cpus_per_worker: 1"):
        spec = spec_of(device=device)
        pools = dict(spec.pools.items())
        computes = prefill.engine_settings(spec, pools[Role.PREFILL])
        reads = decode.engine_settings(spec, pools[Role.DECODE], Role.DECODE)
        assert (computes.max_num_batched_tokens or 0) > (reads.max_num_batched_tokens or 0)
        assert (computes.max_num_seqs or 0) <= (reads.max_num_seqs or 0)
        assert computes.on_cpu is (device != GPU)


def test_decode_captures_graphs_on_gpus_alone_unless_the_spec_says() -> None:
    for device, engine, eager in (
        (GPU, "", False),
        ("cpus_per_worker: 1", "", True),
        (GPU, "enforce_eager: true", True),
    ):
        spec = spec_of(device=device, engine=engine)
        assert decode.engine_settings(spec, dict(spec.pools.items())[Role.DECODE], Role.DECODE).enforce_eager is eager


def test_the_spec_goes_before_the_profile() -> None:
    spec = spec_of(engine="max_num_seqs: 7, max_num_batched_tokens: 96, kv_blocks: 50, speculative: {num_tokens: 2}")
    settings = decode.engine_settings(spec, dict(spec.pools.items())[Role.DECODE], Role.DECODE)
    assert (settings.max_num_seqs, settings.max_num_batched_tokens, settings.kv_blocks) == (7, 96, 50)
    assert (settings.speculative_num_tokens, settings.kv_lease_s) == (2, 33)


def test_a_step_holds_a_token_of_each_sequence() -> None:
    spec = spec_of()
    pool = dict(spec.pools.items())[Role.DECODE]
    settings = base_settings(spec, pool, kv_role=None, max_num_seqs=300, max_num_batched_tokens=32, enforce_eager=True)
    assert settings.max_num_batched_tokens == 300


@pytest.mark.parametrize(("asked", "given"), [(5, 20), (40, 40)])
def test_engines_give_as_many_alternatives_as_the_gateway_lets_through(asked: int, given: int) -> None:
    spec = spec_of()
    spec = spec.model_copy(update={"gateway": spec.gateway.model_copy(update={"max_logprobs": asked})})
    settings = decode.engine_settings(spec, dict(spec.pools.items())[Role.DECODE], Role.DECODE)
    assert settings.max_logprobs == given
