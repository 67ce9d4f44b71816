"""A cluster that does not come to be leaves no process behind, whichever side gave up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.ending import ended
from tests.support.live_cluster import marked_processes, run_baton

pytestmark = [pytest.mark.engine, pytest.mark.ray]

SPEC = """
name: given-up
model: {{path: {model}, served_name: m, max_model_len_tokens: 1024}}
pools: {{colocated: {{replicas: 1}}}}
gateway: {{grpc_port: 0, http_port: 0, metrics_port: 0}}
"""


@pytest.mark.parametrize("how", [["--detach"], []], ids=["detached", "in the foreground"])
def test_a_killed_start_leaves_nothing(how: list[str], tmp_path: Path, test_model: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.format(model=test_model))
    with ended(tmp_path):
        process = subprocess.Popen(
            [sys.executable, "-m", "interface.cli.main", "up", "-f", str(spec), *how],
            env=os.environ | {"BATON_CACHE": str(tmp_path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if "colocated-0: loading" in line:
                break
        else:
            raise AssertionError("".join(said))
        process.kill()
        process.wait(10)
        assert not (left := marked_processes(tmp_path, wait_s=90)), left
        down = run_baton(tmp_path, "down", "--json")
        assert down.returncode == 0, down.stderr
        assert not list((tmp_path / "clusters" / "given-up").glob("state.json"))
        process.stdout.close()
