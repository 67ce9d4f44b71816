"""Ray's autoscaler brings a node of the right pool for a worker that is ordered, and takes it away when it has none."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.support.live_cluster import marked_processes

pytestmark = pytest.mark.ray


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, since Unix socket names end at 107 bytes. What was started for it is ended with it."""
    with tempfile.TemporaryDirectory(prefix="baton-nodes-", ignore_cleanup_errors=True) as name:
        path = Path(name)
        yield path
        # Fake nodes are orphans once their head is gone: end those that are ours.
        for line in marked_processes(path, wait_s=0):
            with contextlib.suppress(psutil.Error):
                psutil.Process(int(line.split()[0])).kill()
        assert not marked_processes(path)


def test_nodes_of_the_right_pool_come_and_go(folder: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.support.autoscaled_ray", str(folder)],
        env=os.environ | {"BATON_CACHE": str(folder), "RAY_worker_niceness": "0"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert json.loads(result.stdout.splitlines()[-1]) == [
        {},
        {"prefill": 1},  # the order for a prefill worker
        {"prefill": 1, "decode": 1},  # the order for a decode worker, which no prefill node serves
        {"prefill": 1},  # without its worker
    ]
