from __future__ import annotations

import psutil
import pytest
from rich.console import Console

from baton.internal.v1 import registry_pb2
from cluster.errors import ConfigError
from interface.cli import drain_command


def member(worker_id: str, address: str, state: str = "ready") -> registry_pb2.Member:
    return registry_pb2.Member(worker_id=worker_id, address=address, state=state)


def test_local_means_ready_workers_on_an_address_of_this_machine() -> None:
    own = next(
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.address.startswith("127.")
    )
    members = [
        member("decode-0", f"{own}:4000"),
        member("decode-1", "203.0.113.9:4000"),
        member("decode-2", f"{own}:4001", "lost"),
    ]
    assert drain_command.on_this_machine(members) == ["decode-0"]


@pytest.mark.parametrize(("workers", "local"), [([], False), (["decode-0"], True)])
def test_workers_or_local_but_not_both(workers: list[str], local: bool) -> None:
    with pytest.raises(ConfigError, match="name the workers to drain, or give --local"):
        drain_command.drain(
            workers, None, "127.0.0.1:1", None, local=local, replace=False, timeout_s=None, as_json=False
        )


def test_the_bar_fills_as_requests_leave() -> None:
    progress = registry_pb2.DrainResponse(elapsed_s=1.5, timeout_s=60)
    progress.workers.add(
        worker_id="decode-0",
        stage=registry_pb2.DRAIN_STAGE_DRAINING,
        requests_at_start=16,
        requests=4,
        used_blocks=90,
    )
    progress.workers.add(worker_id="decode-1", stage=registry_pb2.DRAIN_STAGE_DRAINED)
    console = Console(width=120, record=True, force_terminal=False)
    console.print(drain_command.render(progress))
    first, second = console.export_text().strip().splitlines()
    assert first.count("█") == 18
    assert "4 requests, 90 KV blocks left" in first
    assert "1.5 of 60 s" in first
    assert second.count("█") == 24
    assert "empty" in second
