from __future__ import annotations

from cluster.topology import DOMAIN_LABEL, GPU_LABEL, NVLINK_DOMAIN_LABEL, RDMA_LABEL, SPOT_LABEL, node_view


def test_labels_name_the_domain_and_rdma() -> None:
    view = node_view("n", "h", {"GPU": 8.0}, {NVLINK_DOMAIN_LABEL: "rack-1", RDMA_LABEL: "true"})
    assert (view.nvlink_domain, view.rdma) == ("rack-1", True)


def test_without_a_label_each_server_of_several_gpus_is_a_domain() -> None:
    assert node_view("n", "h", {"GPU": 8.0}, {}).nvlink_domain == "n"
    assert node_view("n", "h", {"GPU": 1.0}, {}).nvlink_domain == ""
    assert node_view("n", "h", {"CPU": 8.0}, {}).nvlink_domain == ""


def test_labels_of_the_kubernetes_node_arrive() -> None:
    labels = {DOMAIN_LABEL: "rack-3", GPU_LABEL: "NVIDIA-H200", SPOT_LABEL: "true"}
    view = node_view("n", "h", {"GPU": 8.0}, labels)
    assert (view.zone, view.gpu, view.spot) == ("rack-3", "NVIDIA-H200", True)
    # A server's own NVLink ends at the server: two servers of a rack share the rack.
    assert view.domain == "rack-3"
    assert node_view("n", "h", {}, {**labels, NVLINK_DOMAIN_LABEL: "clique"}).domain == "clique"
    assert node_view("n", "h", {"GPU": 8.0}, {}).domain == "n"


def test_a_need_fits_if_all_of_it_is_free() -> None:
    view = node_view("n", "h", {"CPU": 2.0, "pool": 0.3}, {})
    assert view.fits({"CPU": 2.0, "pool": 0.1 + 0.2})
    assert not view.fits({"CPU": 2.0, "GPU": 1.0})
