"""Specs of several models: what an entry may have, what all share, and where an error is said to be."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.placement import worker_plans
from cluster.spec import config, portfolio

SPEC = """
name: duo
models:
  fast:
    path: f
    max_model_len_tokens: 64
    pools: {colocated: {replicas: 1}}
  thinking:
    path: t
    served_name: big
    max_model_len_tokens: 128
    reasoning: {}
    pools: {prefill: {replicas: 1}, decode: {replicas: 2}}
    slo: {ttft_p95_s: 1}
slo: {itl_p95_s: 0.5}
autoscaling: {interval_s: 7}
tenants: {a: {weight: 3}}
routes: {auto: {arms: {fast: 9, big: 1}}}
"""


def test_each_model_is_the_spec_of_a_cluster_that_has_it_alone() -> None:
    found = portfolio.parse(SPEC)
    assert list(found.models) == ["fast", "big"]
    fast, big = found.models.values()
    assert (fast.model.path, big.model.path) == ("f", "t")
    assert (fast.slo.ttft_p95_s, big.slo.ttft_p95_s) == (2.0, 1.0)
    assert fast.slo.itl_p95_s == big.slo.itl_p95_s == 0.5  # an entry's section leaves what it does not name
    assert fast.autoscaling.interval_s == 7
    assert fast.tenants == big.tenants
    assert found.routes["auto"].arms == {"fast": 9, "big": 1}


def test_names_of_workers_begin_with_the_model_through_copies_and_pickles() -> None:
    big = portfolio.parse(SPEC).with_gateway({"http_port": 1}).models["big"]
    again = pickle.loads(pickle.dumps(big))
    assert again.gateway.http_port == 1
    assert [plan.worker_id for plan in worker_plans(again)] == [
        "thinking-prefill-0", "thinking-decode-0", "thinking-decode-1",
    ]  # fmt: skip


def test_a_spec_of_one_model_is_a_portfolio_of_one() -> None:
    found = portfolio.load()
    assert found.first == config.load()
    assert list(found.models) == [found.first.model.served_name]
    assert found.first.worker_prefix == ""
    assert found.model(None) is found.first


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("reasoning: {}", "colour: red", "spec: models.thinking.colour: unknown key"),
        ("replicas: 2", "replicas: two", "spec: models.thinking.pools.decode.replicas='two': "),
        ("replicas: 2", "replicas: 0", "spec: models.thinking: pools: prefill and decode need each other"),
        ("ttft_p95_s: 1", "ttft: 1", "spec: models.thinking.slo.ttft: unknown key"),
        ("big: 1", "small: 1", "spec: routes.auto.arms: there is no model 'small'; models has fast, big"),
        ("big: 1", "big: 0", "spec: routes.auto.arms.big=0: "),
        ("{auto:", "{big:", "spec: routes.big: a model has this name"),
        ("served_name: big", "served_name: fast", "spec: models: two entries have one served_name"),
        ("name: duo", "name: duo\npools: {}", "spec: pools stands beside models"),
        ("name: duo", "name: duo\nmodel: {}", "spec: model stands beside models"),
        ("  fast:", "  Fast:", "spec: models.Fast"),
        ("interval_s: 7", "interval_s: 0", "spec: autoscaling.interval_s=0: "),
        ("    path: f\n", "", "spec: models.fast.path: missing"),
    ],
)
def test_an_error_names_the_key_as_it_stands_in_the_file(old: str, new: str, message: str) -> None:
    assert old in SPEC
    with pytest.raises(ConfigError) as caught:
        portfolio.parse(SPEC.replace(old, new))
    assert str(caught.value).startswith(message)


def test_all_models_together_stay_within_the_gpus_that_they_share() -> None:
    text = """
models:
  a: &model {path: a, max_model_len_tokens: 64, pools: {prefill: {replicas: 1}, decode: {replicas: 2}}}
  b: *model
autoscaling: {enabled: true, max_gpus: 6}
"""
    assert portfolio.parse(text).max_gpus == 6
    with pytest.raises(ConfigError, match="max_gpus must be at least 6, what the models' replicas"):
        portfolio.parse(text.replace("max_gpus: 6", "max_gpus: 5"))


def test_one_of_several_has_to_be_named(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC)
    found = portfolio.load(path)
    assert found.model("big").model.path == "t"
    with pytest.raises(ConfigError, match="the models fast, big; name one with --model"):
        found.model(None)
    with pytest.raises(ConfigError, match="no model 'thinking'; there are fast, big"):
        found.model("thinking")


def test_a_model_that_is_added_takes_the_clusters_sections() -> None:
    entry = {"path": "n", "max_model_len_tokens": 64, "pools": {"colocated": {"replicas": 1}}, "slo": {"ttft_p95_s": 9}}
    found = portfolio.parse(SPEC).added("new", entry)
    new = found.models["new"]
    assert (new.slo.ttft_p95_s, new.slo.itl_p95_s, new.autoscaling.interval_s) == (9, 0.5, 7)
    assert [plan.worker_id for plan in worker_plans(new)] == ["new-colocated-0"]
    assert list(found.removed("new").models) == ["fast", "big"]
    with pytest.raises(ConfigError, match="the route 'auto' sends requests to 'fast'"):
        found.removed("fast")
    beside = portfolio.load().added("new", entry)
    assert beside.models["new"].slo.itl_p95_s == beside.first.slo.itl_p95_s
