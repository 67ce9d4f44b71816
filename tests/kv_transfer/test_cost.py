import pytest

from cluster.errors import ConfigError
from cluster.hardware.catalogue import gpu
from kv_transfer.cost import Link, TransferCost


def test_one_nic_moves_what_nixl_was_measured_at() -> None:
    cost = TransferCost.over(Link.RDMA, gpu("H100-SXM"))
    assert 1e10 / (cost.transfer_s(int(1e10)) - cost.setup_s) == pytest.approx(49.5e9, rel=0.001)


def test_eight_gpus_match_the_published_fit() -> None:
    # 0.38 ms + bytes / 146 GB/s was fitted on 8x200 Gb/s RoCE.
    cost = TransferCost.over(Link.RDMA, gpu("H100-SXM").with_overrides(nic_bytes_per_s=25e9), gpus=8)
    assert cost.transfer_s(int(10e9)) == pytest.approx(0.38e-3 + 10e9 / 146e9, rel=0.01)


def test_order_of_links_and_growth_with_bytes() -> None:
    times = [
        TransferCost.over(link, gpu("H100-SXM")).transfer_s(2**30)
        for link in (Link.INFINITE, Link.NVLINK, Link.RDMA, Link.SHARED_MEMORY, Link.TCP)
    ]
    assert times[0] == 0.0
    assert times == sorted(times)


def test_descriptors_cost_time() -> None:
    plain, small = TransferCost(1e9, 0.0), TransferCost(1e9, 0.0, 1.4e-6, bytes_per_descriptor=4096)
    assert small.transfer_s(4096) == pytest.approx(plain.transfer_s(4096) + 1.4e-6)


def test_bad_links_are_reported() -> None:
    with pytest.raises(ConfigError, match="rdma"):
        TransferCost.over("rmda", gpu("H100-SXM"))
    with pytest.raises(ConfigError, match="no scale-up"):
        TransferCost.over(Link.NVLINK, gpu("L40S"))
    with pytest.raises(ConfigError, match="bytes_per_s"):
        TransferCost(0.0)
