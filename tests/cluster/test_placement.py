from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import PlacementInfeasible
from cluster.placement import WorkerPlan, assign, worker_plan
from cluster.spec.config import PoolSettings, Role
from cluster.topology import NodeView


def plan(worker_id: str, role: Role = Role.DECODE, **need: float) -> WorkerPlan:
    return WorkerPlan(worker_id, role, (need or {"CPU": 1.0},), "STRICT_PACK")


def node(node_id: str, domain: str = "", **free: float) -> NodeView:
    return NodeView(node_id, node_id, free or {"CPU": 4.0}, domain)


def test_a_worker_that_fits_a_node_is_one_bundle() -> None:
    made = worker_plan(Role.DECODE, PoolSettings(replicas=1, accelerators_per_worker=8, node_resource="decode"), 3)
    assert (made.worker_id, made.strategy) == ("decode-3", "STRICT_PACK")
    assert made.bundles == ({"CPU": 1.0, "GPU": 8.0, "decode": 0.001},)


def test_a_larger_worker_is_a_bundle_for_each_gpu() -> None:
    made = worker_plan(Role.DECODE, PoolSettings(replicas=1, accelerators_per_worker=16), 0, gpus_per_node=8)
    assert made.strategy == "PACK"
    assert made.total["GPU"] == 16
    assert assign([made], []).node_of == {}


def test_pools_stay_on_their_nodes() -> None:
    nodes = [node("a", CPU=8.0, prefill=1.0), node("b", CPU=8.0, decode=1.0)]
    plans = [plan("p", Role.PREFILL, CPU=1.0, prefill=0.001), plan("d", CPU=1.0, decode=0.001)]
    assert assign(plans, nodes).node_of == {"p": "a", "d": "b"}


def test_decode_goes_to_the_nvlink_domain_of_prefill() -> None:
    nodes = [node("a", "n1", GPU=1.0), node("b", "n2", GPU=1.0), node("c", "n1", GPU=2.0)]
    made = assign([plan("p", Role.PREFILL, GPU=1.0), plan("d", GPU=1.0)], nodes)
    assert made.node_of == {"p": "a", "d": "c"}
    assert assign([plan("d", GPU=1.0)], nodes, taken_domains=frozenset({"n2"})).node_of == {"d": "b"}


def test_decode_goes_to_the_rack_of_prefill_where_no_nvlink_joins_them() -> None:
    nodes = [
        NodeView("a", "a", {"GPU": 8.0, "prefill": 1.0}, "a", zone="rack-2"),
        NodeView("b", "b", {"GPU": 8.0, "decode": 1.0}, "b", zone="rack-1"),
        NodeView("c", "c", {"GPU": 8.0, "decode": 1.0}, "c", zone="rack-2"),
    ]
    plans = [plan("p", Role.PREFILL, GPU=8.0, prefill=0.001), plan("d", GPU=8.0, decode=0.001)]
    assert assign(plans, nodes).node_of == {"p": "a", "d": "c"}
    linked = [*nodes, NodeView("e", "e", {"GPU": 8.0, "decode": 1.0}, "a", zone="rack-9")]
    assert assign(plans, linked).node_of["d"] == "e"


def test_decode_keeps_off_spot_nodes_and_prefill_takes_them() -> None:
    nodes = [NodeView("a", "a", {"CPU": 4.0}, spot=True), NodeView("b", "b", {"CPU": 4.0})]
    assert assign([plan("p", Role.PREFILL), plan("d")], nodes).node_of == {"p": "a", "d": "b"}
    assert assign([plan("d")], nodes[:1]).node_of == {"d": "a"}


def test_workers_of_a_role_spread() -> None:
    made = assign([plan("d0"), plan("d1")], [node("a"), node("b")])
    assert set(made.node_of.values()) == {"a", "b"}


def test_the_kind_of_accelerator_must_match() -> None:
    pool = PoolSettings(replicas=1, accelerators_per_worker=1, accelerator_type="H100")
    nodes = [node("a", CPU=8.0, GPU=8.0), NodeView("b", "b", {"CPU": 8.0, "GPU": 8.0, "accelerator_type:H100": 1.0})]
    assert assign([worker_plan(Role.DECODE, pool, 0)], nodes).node_of == {"decode-0": "b"}
    large = worker_plan(Role.DECODE, pool.model_copy(update={"accelerators_per_worker": 16}), 0)
    assert all(bundle["accelerator_type:H100"] == 0.001 for bundle in large.bundles)


def test_a_worker_that_fits_nowhere_is_reported_in_a_sentence() -> None:
    with pytest.raises(
        PlacementInfeasible, match=r"needs 8 GPU on one node; the closest of 1 nodes has free only 2 of 8"
    ):
        assign([plan("d", GPU=8.0)], [node("a", GPU=2.0)])
    with pytest.raises(PlacementInfeasible, match="the cluster has no node"):
        assign([plan("d")], [])


def test_it_may_wait_for_a_node_instead() -> None:
    made = assign([plan("d0", CPU=4.0), plan("d1", CPU=4.0)], [node("a")], may_wait=True)
    assert made.node_of == {"d0": "a"}
    assert made.waiting == ("d1",)


needs = st.fixed_dictionaries({"CPU": st.integers(1, 8).map(float)}, optional={"GPU": st.integers(1, 8).map(float)})


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.sampled_from(Role), needs), max_size=8),
    st.lists(st.tuples(needs, st.sampled_from(["", "n1", "n2"])), max_size=4),
)
def test_no_node_is_given_more_than_it_has(
    wanted: list[tuple[Role, dict[str, float]]], given_nodes: list[tuple[dict[str, float], str]]
) -> None:
    plans = [plan(f"w{index}", role, **need) for index, (role, need) in enumerate(wanted)]
    nodes = [node(f"n{index}", domain, **free) for index, (free, domain) in enumerate(given_nodes)]
    made = assign(plans, nodes, may_wait=True)
    assert set(made.node_of) | set(made.waiting) == {p.worker_id for p in plans}
    for view in nodes:
        for name in ("CPU", "GPU"):
            taken = sum(p.total.get(name, 0.0) for p in plans if made.node_of.get(p.worker_id) == view.node_id)
            assert taken <= view.free.get(name, 0.0)
    try:
        assert assign(plans, nodes).node_of == made.node_of
    except PlacementInfeasible:
        assert made.waiting
