import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from planner.capacity.resolve import resolve
from planner.capacity.spec import kubernetes_name, load, parse

from .plans import tree, workload


def test_a_bare_mean_is_taken_with_a_spread_of_one() -> None:
    spec = parse(tree(workload=workload(input_tokens=1000)))
    assert spec.workload.input_tokens.assumed_cv
    assert spec.workload.lengths().isl.cv == pytest.approx(1, abs=0.01)
    fixed = parse(tree(workload=workload(input_tokens={"mean": 1000, "cv": 0})))
    assert not fixed.workload.input_tokens.assumed_cv
    assert fixed.workload.lengths().isl.cv == 0


def test_users_become_a_rate() -> None:
    spec = parse(tree(workload=workload(rate_per_s=None, users={"per_month": 1000, "queries_per_user_month": 60})))
    assert spec.workload.mean_rate_per_s == pytest.approx(60_000 / (730.5 * 3600))
    peaked = parse(tree(workload=workload(peak_to_mean=3)))
    assert peaked.workload.peak_rate_per_s == pytest.approx(30)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"modle": {}}, "modle: unknown key"),
        ({"workload": workload(rate_per_m=1)}, "workload.rate_per_m: unknown key"),
        ({"slo": {"ttft_ms": 200}}, "slo.ttft_ms: unknown key"),
        ({"slo": {"ttft_s": "2s"}}, "slo.ttft_s"),
        ({"slo": {"ttft_s": -1}}, "slo.ttft_s"),
        ({"workload": workload(rate_per_s=None)}, "rate_per_s or users"),
        ({"workload": workload(prefix_hit_share=40)}, "prefix_hit_share"),
        ({"workload": workload(input_tokens={"mean": 3, "quantiles": {0: 1, 1: 2}})}, "mean or quantiles"),
        ({"model": {}}, "give name or config"),
        ({"objective": "speed"}, "objective"),
        ({"name": "Not A Name"}, "name"),
    ],
)
def test_bad_plans_name_the_key(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        parse(tree(**change))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"name": "Qwen9"}}, "Qwen9"),
        ({"engine": {"name": "vlm"}}, "vlm"),
        ({"engine": {"constants": {"speed": 2}}}, "speed"),
        ({"hardware": {"gpus": ["H100"]}}, "H100-SXM"),
        ({"hardware": {"gpus": ["X1"], "overrides": {"X1": {"price_usd_h": 1}}}}, "memory_bytes"),
        ({"hardware": {"overrides": {"B200-SXM": {"price_usd_h": 1}}}}, "B200-SXM"),
        ({"workload": workload(answer_tokens=90_000)}, "40960"),
        ({"workload": workload(input_tokens=0)}, "input_tokens"),
        ({"workload": workload(answer_tokens=0, reasoning_tokens=0)}, "answer_tokens"),
    ],
)
def test_what_cannot_be_looked_up_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve(parse(tree(**change)))


def test_a_price_override_reaches_the_gpu_and_a_new_kind_can_be_described() -> None:
    own = {
        "X1": {
            "memory_bytes": 2e11, "hbm_bytes_per_s": 1e13, "bf16_flops": 3e15, "pcie_bytes_per_s": 1e11,
            "nic_bytes_per_s": 1e11, "price_usd_h": 6,
        },
        "H100-SXM": {"price_usd_h": 1.5},
    }  # fmt: skip
    found = resolve(parse(tree(hardware={"gpus": ["H100-SXM", "X1"], "overrides": own})))
    assert [gpu.price_usd_h for gpu in found.gpus] == [1.5, 6]
    assert found.gpus[0].price_source == "the plan"


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        load(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match="not YAML"):
        load(tmp_path / "bad.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="expected keys"):
        load(tmp_path / "list.yaml")


@pytest.mark.parametrize(
    ("name", "made"),
    [("llama_plain", "llama-plain"), ("Llama-3.1_70B", "llama-3-1-70b"), ("plan", "plan"), ("a_", "a"), ("7", "7")],
)
def test_a_name_is_taken_and_made_fit_for_kubernetes(name: str, made: str) -> None:
    assert parse(tree(name=name)).name == name
    assert kubernetes_name(name) == made


@pytest.mark.parametrize("name", ["", "-a", "a b", "_", "a" * 64, "a/b"])
def test_a_name_that_cannot_be_made_fit_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        parse(tree(name=name))


@given(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", fullmatch=True))
def test_every_name_that_is_taken_is_one_of_kubernetes(name: str) -> None:
    assert parse(tree(name=name)).name == name
    assert re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", kubernetes_name(name))
