import shutil
import tempfile
from collections.abc import Iterator

import pytest

from cluster.ray_runtime import RayRuntime
from cluster.spec.config import Transport, parse
from cluster.topology import NodeView
from doctor.link_diagnosis import examine_links
from doctor.link_survey import RayMeasure, node_pairs

SPEC = parse(
    "model: {path: /nowhere, served_name: m, max_model_len_tokens: 64}\n"
    "pools:\n"
    "  prefill: {replicas: 1, node_resource: prefill}\n"
    "  decode: {replicas: 1, node_resource: decode}\n"
)


def test_nodes_of_the_two_pools_are_paired_the_same_node_first() -> None:
    nodes = [
        NodeView("a", "10.0.0.1", {"prefill": 1}),
        NodeView("b", "10.0.0.2", {"prefill": 1, "decode": 1}),
        NodeView("c", "10.0.0.3", {"decode": 1}, rdma=True),
    ]
    pairs = node_pairs(SPEC, nodes)
    assert [(pair.source.worker_id, pair.target.worker_id) for pair in pairs] == [
        ("b", "b"),
        ("a", "b"),
        ("a", "c"),
        ("b", "c"),
    ]
    assert pairs[2].target.rdma
    assert len(node_pairs(SPEC, nodes, max_pairs=2)) == 2


@pytest.fixture
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayRuntime]:
    from ray.cluster_utils import Cluster

    # Ray's workers run at niceness 15 otherwise, and starve beside anything else on two cores.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    folder = tempfile.mkdtemp(prefix="baton-ray-")  # short, for the names of Unix sockets
    head = {"num_cpus": 1, "resources": {"prefill": 1}, "temp_dir": folder}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    runtime = RayRuntime(cluster.address)
    try:
        cluster.add_node(num_cpus=1, resources={"decode": 1})
        cluster.wait_for_nodes()
        runtime.start()
        yield runtime
    finally:
        runtime.stop()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.ray
@pytest.mark.engine
def test_a_link_between_two_ray_nodes_is_measured(two_nodes: RayRuntime) -> None:
    pairs = node_pairs(SPEC, two_nodes.nodes())
    assert len(pairs) == 1
    assert pairs[0].source.worker_id != pairs[0].target.worker_id
    (report,) = examine_links(
        SPEC, pairs, min_ratio=0, measure=RayMeasure(two_nodes), sizes_bytes=(4096, 65536, 4 << 20)
    )
    assert report.verdict.ok, report.verdict.sentence
    assert report.measurement is not None
    assert report.measurement.used == Transport.SHARED_MEMORY.value
    assert report.measurement.intact
