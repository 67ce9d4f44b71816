import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.spec.config import Transport
from kv_transfer.ucx_report import ReadProtocol, problem, read_protocols, transport_of, used_for

LOG = """\
[1795324651.7] [vm:77 :0]     ucp_context.c:2753 UCX  INFO  Version 1.23.0
[1795324546.9] [vm:75 :0]   +--------+-------------+-----------------------------------+
[1795324546.9] [vm:75 :0]   | initiator self cfg#0                                     |
[1795324546.9] [vm:75 :0]   | remote memory read by ucp_get* into host memory from host |
[1795324546.9] [vm:75 :0]   | Range  | Description | Config                            |
[1795324546.9] [vm:75 :0]   | 0..inf | zero-copy   | posix/memory                      |
[1795324547.0] [vm:75 :0]   | initiator inter-node cfg#1                               |
[1795324547.0] [vm:75 :0]   | remote memory write by ucp_put* from host memory to host |
[1795324547.0] [vm:75 :0]   | Range  | Description | Config                            |
[1795324547.0] [vm:75 :0]   | 0..inf | zero-copy   | 52% on tcp/lo and 48% on tcp/eth0 |
[1795324548.0] [vm:75 :0]   | initiator inter-node cfg#1                               |
[1795324548.0] [vm:75 :0]   | remote memory read by ucp_get* into cuda memory from cuda |
[1795324548.0] [vm:75 :0]   | Range     | Description | Config                         |
[1795324548.0] [vm:75 :0]   | 0..16515  | copy-out    | tcp/eth0                       |
[1795324548.0] [vm:75 :0]   | 16516..1M | zero-copy   | rc_mlx5/mlx5_0:1               |
[1795324548.0] [vm:75 :0]   | >1M       | odd         | a row of a later version       |
[1795324548.0] [vm:75 :0]   | 1048577..inf | zero-copy | 50% on rc_mlx5/mlx5_0:1 and 50% on rc_mlx5/mlx5_2:1 |
"""


def test_only_reads_from_the_peer_count() -> None:
    found = read_protocols(LOG)
    assert [row.lanes for row in found] == [
        ("tcp/eth0",),
        ("rc_mlx5/mlx5_0:1",),
        ("rc_mlx5/mlx5_0:1", "rc_mlx5/mlx5_2:1"),
    ]
    assert found[1] == ReadProtocol(16516, 1 << 20, "zero-copy", ("rc_mlx5/mlx5_0:1",))
    assert found[2].last_bytes == math.inf


@pytest.mark.parametrize(
    ("size", "transport"), [(1, Transport.TCP), (65536, Transport.RDMA), (256 << 20, Transport.RDMA)]
)
def test_size_picks_the_row(size: int, transport: Transport) -> None:
    row = used_for(read_protocols(LOG), size)
    assert row is not None
    assert row.transport is transport


def test_a_log_without_tables_says_nothing() -> None:
    assert used_for(read_protocols("UCX INFO hello"), 1) is None


@given(st.text(alphabet="|0123456789.inf KMGcfg# ucp_get\n-+", max_size=300))
def test_no_log_breaks_the_reader(log: str) -> None:
    read_protocols(log)


@pytest.mark.parametrize(
    ("lane", "transport"),
    [
        ("cma/memory", Transport.SHARED_MEMORY),
        ("posix/memory", Transport.SHARED_MEMORY),
        ("tcp/eth0", Transport.TCP),
        ("rc_verbs/mlx5_0:1", Transport.RDMA),
        ("dc_mlx5/mlx5_0:1", Transport.RDMA),
        ("cuda_ipc/cuda", Transport.NVLINK),
        ("cuda_copy/cuda", None),
    ],
)
def test_lanes_have_the_specs_names(lane: str, transport: Transport | None) -> None:
    assert transport_of(lane) is transport


def test_ucx_error_is_found() -> None:
    log = "[1.2] [vm:1 :0]  select.c:722  UCX  ERROR   no active messages transport to peer\nmore"
    assert problem(log) == "no active messages transport to peer"
    assert problem("all is well") == ""
