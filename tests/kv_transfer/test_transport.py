from __future__ import annotations

import pytest

from cluster.spec.config import Transport
from kv_transfer.transport import Endpoint, choose, ucx_tls

ALL = list(Transport)
CPU = Endpoint("a", "h1", on_cpu=True)
GPU = Endpoint("a", "h1", on_cpu=False, nvlink_domain="n1", rdma=True)


@pytest.mark.parametrize(
    ("source", "target", "allowed", "best"),
    [
        (CPU, Endpoint("b", "h1", on_cpu=True), ALL, Transport.SHARED_MEMORY),
        (CPU, Endpoint("b", "h2", on_cpu=True), ALL, Transport.TCP),
        (CPU, Endpoint("b", "h2", on_cpu=True), [Transport.SHARED_MEMORY], None),
        (GPU, Endpoint("b", "h2", on_cpu=False, nvlink_domain="n1"), ALL, Transport.NVLINK),
        (GPU, Endpoint("b", "h2", on_cpu=False, nvlink_domain="n2", rdma=True), ALL, Transport.RDMA),
        (GPU, Endpoint("b", "h1", on_cpu=False), ALL, Transport.TCP),
        (GPU, GPU, [Transport.TCP, Transport.RDMA], Transport.RDMA),
    ],
)
def test_the_best_common_transport_is_chosen(
    source: Endpoint, target: Endpoint, allowed: list[Transport], best: Transport | None
) -> None:
    assert choose(source, target, allowed) is best
    assert choose(target, source, allowed) is best


def test_ucx_is_allowed_what_the_spec_allows_and_no_more() -> None:
    assert ucx_tls([Transport.RDMA], on_cpu=False) == "self,rc,ud,cuda_copy"
    assert ucx_tls([Transport.NVLINK, Transport.RDMA], on_cpu=False) == "self,cuda_ipc,cuda_copy,rc,ud"
    assert "cuda" not in ucx_tls(ALL, on_cpu=True)
    assert "tcp" not in ucx_tls([Transport.SHARED_MEMORY], on_cpu=True)
