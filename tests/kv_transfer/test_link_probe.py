import time
from pathlib import Path

import psutil
import pytest

from cluster.errors import TransferBroken, TransferTimeout
from kv_transfer.link_channel import listen
from kv_transfer.link_probe import ProbeRequest, ProbeServer, check_backend, probe_client, probe_local

pytestmark = pytest.mark.engine  # real NIXL, in processes of its own

SIZES = (4096, 65536, 4 << 20)


def request(ucx_tls: str = "self,sm,tcp", **changes: float) -> ProbeRequest:
    return ProbeRequest(ucx_tls=ucx_tls, sizes_bytes=SIZES, repetitions=2, **changes)  # type: ignore[arg-type]


def ucx_segments() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir() if "ucx" in path.name}


def children() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_a_local_link_is_measured_and_named_and_leaves_nothing() -> None:
    segments, processes = ucx_segments(), children()
    found = probe_local(request())
    assert found.used == "shared_memory"
    assert found.intact
    assert [size for size, _ in found.fit.times_s] == list(SIZES)
    assert 0 < found.fit.latency_s < found.handshake_s
    assert found.copy_bytes_per_s > 1e6
    assert ucx_segments() == segments
    assert children() <= processes


def test_tcp_alone_is_named_tcp() -> None:
    found = probe_local(request("tcp"))
    assert found.used == "tcp"
    assert found.protocol is not None
    assert all(lane.startswith("tcp/") for lane in found.protocol.lanes)


def test_a_peer_that_is_not_there_is_named() -> None:
    server = listen("127.0.0.1")
    port = server.getsockname()[1]
    server.close()
    with pytest.raises(TransferBroken, match=f"cannot reach 127.0.0.1:{port}"):
        probe_client(request(), "127.0.0.1", port)


def test_a_peer_that_never_answers_costs_the_timeout_and_no_process() -> None:
    processes = children()
    start = time.monotonic()
    with listen("127.0.0.1") as server, pytest.raises(TransferTimeout, match=r"in time|within"):
        probe_client(request(timeout_s=6), "127.0.0.1", server.getsockname()[1])
    assert time.monotonic() - start < 20
    assert children() <= processes


def test_a_server_nobody_reads_ends_when_stopped() -> None:
    processes = children()
    server = ProbeServer(request())
    server.start()
    assert children() > processes
    server.stop()
    assert children() <= processes


def test_transports_that_cannot_start_say_why() -> None:
    # Shared memory alone has no transport that notices a dead peer, which NIXL asks of UCX.
    with pytest.raises(TransferBroken, match="no active messages transport"):
        check_backend("self,sm")
