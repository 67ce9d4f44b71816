"""Hosts as network namespaces: each fault does what it says, and nothing of them stays."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.host_namespaces import Hosts, hosts, why_not

ROOT = Path(__file__).resolve().parents[2]
PORT = 5000
SERVE = f"""
import socket
server = socket.create_server(("0.0.0.0", {PORT}))
print(flush=True)
while True:
    server.accept()[0].sendall(b"x" * 20_000)
"""
ASK = f"""
import socket, sys
sys.stdout.write("ready\\n")
for target in sys.stdin:
    try:
        with socket.create_connection((target.strip(), {PORT}), timeout=0.5) as asked:
            print(bool(asked.recv(1)), flush=True)
    except OSError:
        print(False, flush=True)
"""
MAKE_AND_WAIT = """
import subprocess, sys
from benchmarks.host_namespaces import hosts
with hosts("one", "two") as net:
    subprocess.Popen(net.command("two", ["sleep", "1000"]))
    while not net.processes("two"):
        pass
    print(net.namespace("two"), net._bridge, net.processes("two")[0].pid, flush=True)
    sys.stdin.read()
"""

pytestmark = pytest.mark.skipif(bool(reason := why_not()), reason=reason)


class Net:
    """Hosts that serve and ask each other."""

    def __init__(self, net: Hosts) -> None:
        self.net = net
        self._askers = {}
        for name in net.names:
            server = self._start(name, SERVE)
            assert server.stdout is not None
            server.stdout.readline()
            self._askers[name] = self._start(name, ASK)

    def _start(self, name: str, script: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            self.net.command(name, [sys.executable, "-u", "-c", script]),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def reaches(self, source: str, target: str) -> bool:
        asker = self._askers[source]
        assert asker.stdin is not None
        assert asker.stdout is not None
        print(self.net.address(target), file=asker.stdin, flush=True)
        while (line := asker.stdout.readline().strip()) == "ready":
            pass
        return line == "True"

    def all_reach(self) -> bool:
        names = self.net.names
        return all(self.reaches(one, other) for one in names for other in names if one != other)

    def whole_again(self) -> bool:
        """After a fault; a host may have to ask again where another one is."""
        self.net.heal()
        deadline_s = time.monotonic() + 20
        while not self.all_reach():
            if time.monotonic() > deadline_s:
                return False
        return True


@pytest.fixture
def net() -> Iterator[Net]:
    with hosts("head", "prefill", "decode") as made:
        yield Net(made)


def test_faults_do_what_they_say_and_are_taken_back(net: Net) -> None:
    assert net.all_reach()
    net.net.cut("decode")
    assert not net.reaches("head", "decode")
    assert not net.reaches("decode", "prefill")
    assert net.reaches("head", "prefill")
    assert net.whole_again()
    net.net.part("prefill", "decode")
    assert not net.reaches("prefill", "decode")
    assert not net.reaches("decode", "prefill")
    assert net.reaches("head", "decode")
    assert net.reaches("prefill", "head")
    assert net.whole_again()
    net.net.lose("prefill", "decode")
    assert not net.reaches("decode", "prefill")  # the request arrives, the answer does not
    assert net.reaches("decode", "head")
    assert net.reaches("prefill", "head")
    assert net.whole_again()
    net.net.slow("decode", 2000)
    assert net.reaches("head", "decode")
    assert "tbf" in subprocess.run(
        net.net.command("decode", ["tc", "qdisc", "show", "dev", "eth0"]), capture_output=True, text=True, check=True
    ).stdout  # fmt: skip
    assert net.whole_again()


def test_two_runs_at_once_have_networks_of_their_own() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE_AND_WAIT], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with hosts("one") as mine:
        assert process.stdout is not None
        other = process.stdout.readline().split()
        assert other[0] != mine.namespace("one")
        networks = subprocess.run(["ip", "-4", "-br", "addr"], capture_output=True, text=True, check=True).stdout
        (theirs,) = (line.split()[2] for line in networks.splitlines() if line.startswith(other[1]))
        assert not theirs.startswith(f"{mine.subnet}.")
    process.communicate("", timeout=60)
    assert process.returncode == 0


def test_hosts_of_a_killed_process_are_ended() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE_AND_WAIT], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    namespace, bridge, pid = process.stdout.readline().split()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    deadline_s = time.monotonic() + 30
    while (left := traces_of(namespace, bridge, pid)) and time.monotonic() < deadline_s:
        time.sleep(0.1)
    assert not left


def traces_of(namespace: str, bridge: str, pid: str) -> list[str]:
    spaces = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
    links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
    lives = Path(f"/proc/{pid}/cmdline").exists() and Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    return [
        name for name, found in ((namespace, namespace in spaces), (bridge, bridge in links), (pid, lives)) if found
    ]
