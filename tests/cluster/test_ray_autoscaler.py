"""Ray's autoscaler brings a node of the right pool for a worker that is ordered, and takes it away when it has none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.ending import ended
from tests.support.short_folder import short_folder

pytestmark = pytest.mark.ray


@pytest.fixture
def folder() -> Iterator[Path]:
    """Fake nodes are orphans once their head is gone: those that are for it end with it."""
    with short_folder() as path, ended(path):
        yield path


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
