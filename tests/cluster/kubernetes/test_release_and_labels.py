"""Which pod of a release is taken, and how labels of Kubernetes' nodes reach placement."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError, NoReadyWorker, WorkerError
from cluster.kubernetes.nodes import RETRY_S, NodeLabels, ray_labels
from cluster.kubernetes.provisioner import KubeNode, KubernetesProvisioner
from cluster.kubernetes.release import ReleasePod, _pod, choose
from cluster.topology import NodeView, node_view

# --- pods -----------------------------------------------------------------------------------------------------------

pods = st.lists(
    st.builds(
        ReleasePod, st.sampled_from("abcdef"), st.just("head"), st.sampled_from(["r1", "r2"]), st.booleans(),
        st.just("ray-head"), st.just({}),
    ),
    min_size=1,
    max_size=6,
)  # fmt: skip


@given(pods, st.sampled_from([None, "r1", "r2"]))
def test_a_ready_pod_of_the_revision_is_taken_or_the_refusal_says_why(
    found: list[ReleasePod], revision: str | None
) -> None:
    revisions = {pod.revision for pod in found}
    fitting = [pod for pod in found if revision in (None, pod.revision)]
    if (revision is None and len(revisions) > 1) or not fitting:
        with pytest.raises(ConfigError, match="r1"):
            choose(found, revision, "release trial")
    elif not any(pod.ready for pod in fitting):
        with pytest.raises(NoReadyWorker, match=rf"none of its {len(fitting)} head pods is ready"):
            choose(found, revision, "release trial")
    else:
        chosen = choose(found, revision, "release trial")
        assert chosen.ready
        assert chosen in fitting
        assert chosen.name == min(pod.name for pod in fitting if pod.ready)


def pod(*, ready: str | None = "True", deleted: bool = False, **more: Any) -> Any:
    metadata = {"name": "p", "labels": None, "annotations": None, "deletion_timestamp": "now" if deleted else None}
    conditions = None if ready is None else [SimpleNamespace(type="Ready", status=ready)]
    container = SimpleNamespace(name="gateway", ports=None)
    spec = {"containers": [container, SimpleNamespace(name="sidecar", ports=None)], "volumes": None}
    return SimpleNamespace(
        metadata=SimpleNamespace(**(metadata | more)),
        status=SimpleNamespace(conditions=conditions),
        spec=SimpleNamespace(**spec),
    )


@pytest.mark.parametrize(
    ("item", "ready"),
    [
        (pod(), True),
        (pod(ready="False"), False),
        (pod(ready=None), False),
        (pod(deleted=True), False),  # it answers until it ends, and is about to
    ],
)
def test_readiness(item: Any, ready: bool) -> None:
    assert _pod(item).ready is ready


def test_a_pod_without_anything_has_empty_fields() -> None:
    found = _pod(pod())
    assert (found.component, found.revision, dict(found.ports), found.tls, found.server_name) == ("", "", {}, False, "")
    assert found.container == "gateway"


def test_ports_tls_and_the_certificates_name_are_read() -> None:
    item = pod(annotations={"baton.io/server-name": "gw.internal"}, labels={"baton.io/revision": "r2"})
    item.spec.containers[0].ports = [SimpleNamespace(name="grpc", container_port=50051)]
    item.spec.volumes = [SimpleNamespace(name="tls")]
    found = _pod(item)
    assert (found.revision, found.server_name, found.tls, dict(found.ports)) == (
        "r2", "gw.internal", True, {"grpc": 50051}
    )  # fmt: skip


# --- labels ---------------------------------------------------------------------------------------------------------


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
