"""How labels of Kubernetes' nodes reach placement, also while the API server does not answer."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import WorkerError
from cluster.kubernetes.nodes import RETRY_S, NodeLabels, ray_labels
from cluster.kubernetes.provisioner import KubeNode, KubernetesProvisioner
from cluster.topology import NodeView, node_view


@given(st.sampled_from(["", "h100"]), st.sampled_from(["", "d1"]), st.sampled_from(["", "rack-1"]), st.booleans())
def test_labels_survive_the_way_through_ray(gpu: str, domain: str, zone: str, spot: bool) -> None:
    labels = ray_labels(KubeNode("n1", gpu, domain, zone, spot))
    assert all(labels.values())  # Ray takes no empty label
    view = node_view("node", "10.0.0.1", {"CPU": 1.0}, labels)
    assert (view.gpu, view.nvlink_domain, view.zone, view.spot) == (gpu, domain, zone, spot)
    assert view.domain == (domain or zone)


def test_gpus_of_one_server_share_a_domain_of_their_own_which_a_rack_goes_before() -> None:
    view = node_view("node", "h", {"GPU": 8.0}, {})
    assert view.nvlink_domain == view.domain == "node"
    assert node_view("node", "h", {"GPU": 8.0}, {"baton.io/domain": "rack-1"}).domain == "rack-1"
    assert node_view("node", "h", {"GPU": 1.0}, {}).domain == ""


@given(
    st.dictionaries(st.sampled_from(["CPU", "GPU", "memory"]), st.floats(0, 100)),
    st.dictionaries(st.sampled_from(["CPU", "GPU", "memory"]), st.floats(0, 100)),
)
def test_what_fits_leaves_nothing_below_zero(free: dict[str, float], need: dict[str, float]) -> None:
    fits = NodeView("n", "h", free).fits(need)
    assert fits == all(free.get(name, 0.0) - amount >= -1e-9 for name, amount in need.items())
    assert NodeView("n", "h", free).fits(free)


class Cluster:
    """Answers as a provisioner does, or fails; counts how often it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.fails = False
        self.addresses: dict[str, str] = {"10.0.0.1": "n1"}

    async def nodes(self, domain_label: str) -> dict[str, KubeNode]:
        self.asked += 1
        if self.fails:
            raise WorkerError("forbidden")
        return {"n1": KubeNode("n1", "H100", "", "rack-1", False)}

    async def pods(self) -> Sequence[Any]:
        return [SimpleNamespace(ip=ip, node=node) for ip, node in self.addresses.items()]


@pytest.fixture
def labels() -> tuple[Cluster, NodeLabels, list[float]]:
    cluster, clock = Cluster(), [0.0]
    return cluster, NodeLabels(cast(KubernetesProvisioner, cluster), now=lambda: clock[0]), clock


def test_the_api_server_is_asked_when_an_address_is_new_and_not_else(labels: Any) -> None:
    cluster, read, _ = labels
    assert read(["10.0.0.1"])["10.0.0.1"]["baton.io/domain"] == "rack-1"
    assert "10.0.0.9" not in read(["10.0.0.1", "10.0.0.9"])  # the head's, say: asked for once
    read(["10.0.0.9"])
    read(["10.0.0.1"])
    assert cluster.asked == 2
    cluster.addresses["10.0.0.2"] = "n1"
    assert "10.0.0.2" in read(["10.0.0.2"])
    assert cluster.asked == 3


def test_a_pod_on_a_node_that_is_not_known_has_no_labels(labels: Any) -> None:
    cluster, read, _ = labels
    cluster.addresses = {"10.0.0.1": "gone", "": "n1"}
    assert read(["10.0.0.1"]) == {}


def test_after_a_failure_what_was_known_stays_and_it_is_asked_again_later(
    labels: Any, caplog: pytest.LogCaptureFixture
) -> None:
    cluster, read, clock = labels
    known = dict(read(["10.0.0.1"]))
    cluster.fails = True
    assert read(["10.0.0.2"]) == known
    assert "labels of nodes are not known: forbidden" in caplog.text
    clock[0] = RETRY_S - 1
    read(["10.0.0.2"])
    assert cluster.asked == 2
    cluster.fails = False
    clock[0] = RETRY_S
    read(["10.0.0.2"])
    assert cluster.asked == 3
