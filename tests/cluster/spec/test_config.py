from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError
from cluster.placement import worker_plans
from cluster.spec import portfolio
from cluster.spec.config import ClusterSpec, Role, load, parse

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


def tree(**changes: Any) -> dict[str, Any]:
    return {
        "model": {"path": "m", "served_name": "m", "max_model_len_tokens": 64},
        "pools": {"prefill": {"replicas": 1}, "decode": {"replicas": 1}},
        **changes,
    }


def problem(spec: Any) -> str:
    with pytest.raises(ConfigError) as refused:
        parse(yaml.safe_dump(spec))
    return refused.value.message


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_load_and_plan(path: Path) -> None:
    specs = portfolio.load(path).models.values()
    plans = [plan for spec in specs for plan in worker_plans(spec)]
    assert len(plans) == sum(pool.started_replicas for spec in specs for _, pool in spec.pools.items())
    assert len({plan.worker_id for plan in plans}) == len(plans)


def test_workers_on_standby_are_planned_and_count_for_the_budget() -> None:
    pools = {"prefill": {"replicas": 1}, "decode": {"replicas": 2, "standby_replicas": 1}}
    plans = worker_plans(parse(yaml.safe_dump(tree(pools=pools))))
    assert [(plan.worker_id, plan.standby) for plan in plans[1:]] == [
        ("decode-0", False), ("decode-1", False), ("decode-2", True)
    ]  # fmt: skip
    spec = tree(pools=pools, autoscaling={"enabled": True, "max_gpus": 3})
    assert "max_gpus must be at least 4" in problem(spec)
    nobody = {"prefill": {"replicas": 1}, "decode": {"replicas": 0, "standby_replicas": 1}}
    assert "standby_replicas needs replicas" in problem(tree(pools=nobody))


def test_the_default_is_the_local_example() -> None:
    assert load() == load(next(path for path in EXAMPLES if path.stem == "local"))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "model",
        "pools",
        "pools.prefill",
        "pools.decode.engine",
        "transfer",
        "gateway",
        "slo",
        "cost",
        "model.reasoning",
    ],
)
def test_an_unknown_key_is_named_at_every_level(path: str) -> None:
    spec = tree()
    section = spec
    for part in path.split(".") if path else []:
        section = section.setdefault(part, {})
    section["colour"] = "red"
    assert f"{path}.colour: unknown key".lstrip(".") in problem(spec)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("name", "Not A Name"),
        ("model.path", ""),
        ("model.max_model_len_tokens", 0),
        ("model.dtype", "int3"),
        ("model.reasoning.start", ""),
        ("pools.prefill.replicas", -1),
        ("pools.prefill.cpus_per_worker", 0),
        ("pools.decode.engine.block_size_tokens", 0),
        ("pools.decode.engine.gpu_memory_utilization", 1.5),
        ("pools.decode.engine.cpu_kv_cache_gib", 0.5),
        ("pools.decode.engine.speculative.num_tokens", 17),
        ("transfer.lease_s", 5),
        ("transfer.retry_budget", -1),
        ("transfer.transports", []),
        ("gateway.grpc_port", 70000),
        ("gateway.max_request_bytes", 10),
        ("slo.ttft_p95_s", 0),
        ("cost.usd_per_cpu_hour", -1),
    ],
)
def test_a_bad_value_is_named_with_its_path(path: str, value: Any) -> None:
    spec = tree()
    *sections, key = path.split(".")
    section = spec
    for part in sections:
        section = section.setdefault(part, {})
    section[key] = value
    assert f"{path}={value!r}: " in problem(spec)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pools": {}}, "no worker at all"),
        ({"pools": {"colocated": {"replicas": 0}}}, "no worker at all"),
        ({"pools": {"prefill": {"replicas": 1}}}, "need each other"),
        ({"pools": {"decode": {"replicas": 1}, "colocated": {"replicas": 1}}}, "need each other"),
        (
            {"pools": {"prefill": {"replicas": 1}, "decode": {"replicas": 1, "engine": {"block_size_tokens": 64}}}},
            "differs between pools ([32, 64])",
        ),
        (
            {"pools": {"prefill": {"replicas": 1, "accelerators_per_worker": 1}, "decode": {"replicas": 1}}},
            "cannot exchange KV",
        ),
        (
            {"pools": {"prefill": {"replicas": 1, "engine": {"speculative": {}}}, "decode": {"replicas": 1}}},
            "prefill makes one token",
        ),
        ({"pools": {"colocated": {"replicas": 1, "tensor_parallel_size": 2}}}, "needs accelerators_per_worker"),
        (
            {"pools": {"colocated": {"replicas": 1, "accelerators_per_worker": 3, "tensor_parallel_size": 2}}},
            "multiple of tensor_parallel_size",
        ),
        ({"pools": {"colocated": {"replicas": 1, "engine": {"block_size_tokens": 48}}}}, "multiple of 32 on CPU"),
        ({"pools": {"colocated": {"replicas": 2, "max_replicas": 1}}}, "at least replicas"),
        (
            {"model": {**tree()["model"], "kv_cache_dtype": "fp8"}, "pools": {"colocated": {"replicas": 1}}},
            "use auto, or GPU workers",
        ),
        (
            {"model": {**tree()["model"], "quantization": "fp8"}, "pools": {"colocated": {"replicas": 1}}},
            "leave it out, or use GPU workers",
        ),
        ({"transfer": {"ticket_deadline_s": 30}}, "below lease_s"),
    ],
)
def test_rules_across_keys_are_reported_in_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    assert sentence in problem(tree(**changes))


@pytest.mark.parametrize("text", ["", "- a", "3", "a: [", "\t"])
def test_what_is_no_spec_is_reported_so(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "bytes.yaml")


def test_all_problems_are_reported_at_once() -> None:
    assert problem({"model": {"path": "m"}, "x": 1}).count(";") == 3


def test_a_pool_has_the_role_of_its_name() -> None:
    assert [role for role, _ in parse(yaml.safe_dump(tree())).pools.items()] == [Role.PREFILL, Role.DECODE]


pools = st.fixed_dictionaries(
    {"replicas": st.integers(1, 4)},
    optional={
        "cpus_per_worker": st.floats(0.1, 64),
        "spread": st.booleans(),
        "node_resource": st.none() | st.sampled_from(["a", "b"]),
        "engine": st.fixed_dictionaries({}, optional={"max_num_seqs": st.none() | st.integers(1, 512)}),
    },
)
specs = st.fixed_dictionaries(
    {
        "model": st.fixed_dictionaries(
            {
                "path": st.text(min_size=1, max_size=5),
                "served_name": st.just("m"),
                "max_model_len_tokens": st.integers(1),
            },
            optional={"reasoning": st.just({}), "dtype": st.sampled_from(["float16", "float32"])},
        ),
        "pools": st.fixed_dictionaries({"prefill": pools, "decode": pools}, optional={"colocated": pools}),
    },
    optional={
        "transfer": st.fixed_dictionaries({}, optional={"lease_s": st.integers(21, 99)}),
        "gateway": st.fixed_dictionaries({}, optional={"grpc_port": st.integers(0, 65535)}),
    },
)


@settings(deadline=None, max_examples=50)
@given(specs)
def test_any_valid_spec_survives_being_written_and_read(spec: dict[str, Any]) -> None:
    made = ClusterSpec.model_validate(spec)
    assert parse(yaml.safe_dump(made.model_dump(mode="json"))) == made


@pytest.mark.parametrize("half_lives_s", [[900, 150], [25, 150, 900], [900, 900, 25], [900, 150, 0]])
def test_half_lives_of_lengths_are_three_and_fall(half_lives_s: list[float]) -> None:
    message = problem(tree(autoscaling={"length_half_lives_s": half_lives_s}))
    assert "autoscaling.length_half_lives_s" in message
