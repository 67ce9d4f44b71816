"""A Ray cluster started by hand is joined with and without its token, whatever local clusters there were before."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from cluster.ray_token import own_token, token_of
from tests.support.ending import ended
from tests.support.live_cluster import START_TIMEOUT_S
from tests.support.ports import free_port
from tests.support.short_folder import short_folder

HEAD_IP = "127.0.0.31"
"""Not 127.0.0.1: Ray takes that for the machine's own address."""
LOCAL = """
from cluster.ray_runtime import RayRuntime
runtime = RayRuntime()
runtime.start()
print(len(runtime.nodes()), oct((runtime.session_folder / "auth_token").stat().st_mode & 0o777))
runtime.stop()
"""
JOIN = """
import os, sys
from cluster.errors import ConfigError
from cluster.ray_runtime import RayRuntime
before = {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
runtime = RayRuntime(sys.argv[1])
try:
    runtime.start()
    print("joined", len(runtime.nodes()))
except ConfigError as error:
    print(error)
runtime.stop()
assert before == {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")}
"""


class Machine:
    """A home folder, and Ray commands that know no other."""

    def __init__(self, home: Path) -> None:
        self.home = home
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        own = {"HOME": home, "RAY_TMPDIR": home, "BATON_CACHE": home, "RAY_USAGE_STATS_ENABLED": 0}
        self.env = kept | {name: str(value) for name, value in own.items()}

    def python(self, script: str, *arguments: str, **more: str) -> str:
        result = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            env=self.env | more, capture_output=True, text=True, timeout=START_TIMEOUT_S, check=False,
        )  # fmt: skip
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    @contextmanager
    def head(self, **more: str) -> Iterator[str]:
        """Address of a cluster that `ray start --head` starts."""
        port, log = free_port(HEAD_IP), self.home / "head.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [
                    str(Path(sys.executable).parent / "ray"), "start", "--head", "--block", "--num-cpus=1",
                    f"--port={port}", f"--node-ip-address={HEAD_IP}", "--include-dashboard=false",
                    f"--object-store-memory={80 << 20}",
                ],
                env=self.env | more, stdin=subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        try:
            deadline_s = time.monotonic() + START_TIMEOUT_S
            while "Ray runtime started" not in log.read_text():
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline_s, log.read_text()
                time.sleep(0.1)
            yield f"{HEAD_IP}:{port}"
        finally:
            process.terminate()
            process.wait(60)


@pytest.fixture
def machine() -> Iterator[Machine]:
    with short_folder() as home, ended(home):
        yield Machine(home)


@pytest.mark.ray
def test_a_local_cluster_leaves_no_token_in_the_home_folder(machine: Machine) -> None:
    assert machine.python(LOCAL) == "1 0o600"
    assert not (machine.home / ".ray").exists()
    with machine.head() as address:  # which asks for a token where it finds one
        assert machine.python(JOIN, address) == "joined 1"


@pytest.mark.ray
def test_a_cluster_that_asks_for_a_token_is_joined_with_it(machine: Machine) -> None:
    token = machine.home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("a" * 64)
    with machine.head() as address:
        assert machine.python(JOIN, address) == "joined 1"
        assert machine.python(JOIN, address, RAY_AUTH_MODE="token") == "joined 1"
        assert "refuses the token" in machine.python(JOIN, address, RAY_AUTH_TOKEN="b" * 64)
        assert "unset RAY_AUTH_MODE=disabled" in machine.python(JOIN, address, RAY_AUTH_MODE="disabled")
        token.unlink()
        said = machine.python(JOIN, address)
        assert "asks for a token and none is here; set RAY_AUTH_TOKEN" in said
        assert machine.python(JOIN, address, RAY_AUTH_TOKEN="a" * 64) == "joined 1"


def test_where_no_cluster_is_the_error_says_so() -> None:
    address = f"{HEAD_IP}:{free_port(HEAD_IP)}"
    with pytest.raises(ConfigError, match=f"no Ray cluster answers at {address}"), token_of(address):
        pass


@pytest.mark.parametrize(
    "said", [{"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": "a" * 64}, {"RAY_AUTH_TOKEN_PATH": "/some/file"}]
)
def test_what_the_environment_says_of_the_token_stands(
    said: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    with own_token(tmp_path):
        assert {name: value for name, value in os.environ.items() if name.startswith("RAY_AUTH")} == said
    assert not list(tmp_path.iterdir())
