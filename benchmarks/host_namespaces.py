"""Hosts on one machine: network namespaces on a bridge, whose links can be cut, lamed and slowed. For root on Linux.

    with hosts("head", "prefill", "decode") as net:
        process = net.start("prefill", ["ray", "start", ...], env=..., log=path)
        net.cut("decode"); net.heal()

Names and addresses are of this run alone, so that runs do not meet. Nothing stays: namespaces end with all that runs in
them when the block is left, and when the process that made them was killed, by a guard beside it. Process ids, /tmp and
/dev/shm are the machine's: only the network is each host's own.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

NETWORK = "10.77"
GRACE_S = 5.0
NOBODY = "02:00:00:00:00:99"
"""A hardware address that no host has: the bridge passes on what is sent there, and nobody takes it."""
_ESTABLISHED, _LISTEN = "01", "0A"


class HostsUnavailable(Exception):
    """Namespaces cannot be made here; the text says why."""


def _run(*command: str) -> str:
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if result.returncode:
        raise OSError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


class Hosts:
    """Hosts of one run. The machine itself is at `gateway`, on the bridge, and outside them all."""

    def __init__(self, names: Sequence[str]) -> None:
        self._run_id = f"bt{os.getpid()}"
        self._bridge = f"{self._run_id}br"
        self._numbers = {name: number for number, name in enumerate(names, start=1)}
        self._isolated: set[str] = set()
        self._cut: set[str] = set()
        self._slow: set[str] = set()
        self._deaf: list[tuple[str, str]] = []
        self.subnet = ""

    # --- names ----------------------------------------------------------------------------------------------

    @property
    def names(self) -> list[str]:
        """All hosts."""
        return list(self._numbers)

    @property
    def gateway(self) -> str:
        """The machine's own address on the bridge."""
        return f"{self.subnet}.254"

    def address(self, name: str) -> str:
        """Address of a host."""
        return f"{self.subnet}.{self._numbers[name]}"

    def namespace(self, name: str) -> str:
        """Name of its namespace."""
        return f"{self._run_id}-{self._numbers[name]}"

    def _link(self, name: str) -> str:
        """The bridge's end of a host's cable."""
        return f"{self._run_id}v{self._numbers[name]}"

    # --- life -----------------------------------------------------------------------------------------------

    def make(self) -> None:
        """Make bridge and hosts.

        Raises:
            HostsUnavailable: this machine does not let us.
        """
        if shutil.which("ip") is None:
            raise HostsUnavailable("iproute2's `ip` is not installed")
        try:
            with _alone():
                self.subnet = _free_subnet()
                _run("ip", "link", "add", self._bridge, "type", "bridge")
                _run("ip", "addr", "add", f"{self.gateway}/24", "dev", self._bridge)
            _run("ip", "link", "set", self._bridge, "up")
            for name in self.names:
                inside = self.namespace(name)
                _run("ip", "netns", "add", inside)
                _run("ip", "link", "add", self._link(name), "type", "veth", "peer", "name", "eth0", "netns", inside)
                _run("ip", "link", "set", self._link(name), "master", self._bridge, "up")
                _run("ip", "-n", inside, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
                _run("ip", "-n", inside, "link", "set", "lo", "up")
                self._lift(name)
        except (OSError, ValueError) as error:
            with contextlib.suppress(OSError, ValueError):
                self.end()
            raise HostsUnavailable(f"network namespaces cannot be made here: {error}") from error

    def _lift(self, name: str) -> None:
        _run("ip", "-n", self.namespace(name), "link", "set", "eth0", "up")
        _run("ip", "-n", self.namespace(name), "route", "replace", "default", "via", self.gateway)

    def end(self) -> None:
        """End all that runs on the hosts, and the hosts."""
        end_run(self._run_id, grace_s=GRACE_S)

    # --- processes ------------------------------------------------------------------------------------------

    def command(self, name: str, command: Sequence[str]) -> list[str]:
        """The command, run on a host."""
        return ["ip", "netns", "exec", self.namespace(name), *command]

    def start(self, name: str, command: Sequence[str], *, env: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process on a host."""
        with log.open("ab") as out:
            return subprocess.Popen(
                self.command(name, command), env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out
            )

    def processes(self, name: str) -> list[psutil.Process]:
        """What runs on a host."""
        return _processes(self.namespace(name))

    # --- faults ---------------------------------------------------------------------------------------------

    def cut(self, name: str) -> None:
        """Pull a host's cable."""
        _run("ip", "link", "set", self._link(name), "down")
        self._cut.add(name)

    def part(self, one: str, other: str) -> None:
        """Have two hosts not reach each other; each reaches all others, but those partitioned as well."""
        for name in (one, other):
            _run("ip", "link", "set", "dev", self._link(name), "type", "bridge_slave", "isolated", "on")
            self._isolated.add(name)

    def lose(self, source: str, target: str) -> None:
        """Lose all that one host sends to another; what comes back arrives."""
        inside = self.namespace(source)
        _run("ip", "-n", inside, "neigh", "replace", self.address(target), "lladdr", NOBODY, "dev", "eth0", "nud",
             "permanent")  # fmt: skip
        self._deaf.append((source, target))

    def slow(self, name: str, kbit_per_s: int) -> None:
        """Give what a host sends and is sent no more than this rate, with a queue of a tenth of a second at least."""
        burst = max(4096, kbit_per_s * 125 // 50)
        for where in (["ip", "netns", "exec", self.namespace(name)], []):
            device = "eth0" if where else self._link(name)
            _run(*where, "tc", "qdisc", "replace", "dev", device, "root", "tbf", "rate", f"{kbit_per_s}kbit", "burst",
                 str(burst), "latency", "400ms")  # fmt: skip
        self._slow.add(name)

    def heal(self) -> None:
        """Take all faults back."""
        for name in self._cut:
            _run("ip", "link", "set", self._link(name), "up")
        for name in self._isolated:
            _run("ip", "link", "set", "dev", self._link(name), "type", "bridge_slave", "isolated", "off")
        for source, target in self._deaf:
            _run("ip", "-n", self.namespace(source), "neigh", "del", self.address(target), "dev", "eth0")
        for name in self._slow:
            _run("tc", "qdisc", "del", "dev", self._link(name), "root")
            _run("ip", "netns", "exec", self.namespace(name), "tc", "qdisc", "del", "dev", "eth0", "root")
        self._cut, self._isolated, self._deaf, self._slow = set(), set(), [], set()

    # --- sockets --------------------------------------------------------------------------------------------

    def half_open(self) -> list[str]:
        """TCP connections between hosts of which one end knows and the other does not."""
        known: dict[tuple[str, str], str] = {}
        for name in self.names:
            for process in self.processes(name)[:1]:
                known |= dict.fromkeys(established(process.pid), name)
        inside = {_in_table(self.address(name)) for name in self.names}
        return [
            f"{name}: {local} - {remote}"
            for (local, remote), name in known.items()
            if (remote, local) not in known and remote.split(":")[0] in inside and local.split(":")[0] in inside
        ]


def established(pid: int) -> set[tuple[str, str]]:
    """TCP connections of a process's network, as ``/proc/net/tcp`` writes addresses; IPv4 ones, mapped or not."""
    return {(row[1][-13:], row[2][-13:]) for row in _rows(pid) if row[3] == _ESTABLISHED}


def _rows(pid: int) -> list[list[str]]:
    tables = [Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6")]
    return [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]


def connections(process: psutil.Process) -> int:
    """Open TCP connections of one process on whichever host, listeners left out."""
    own = set()
    for path in Path(f"/proc/{process.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            own.add(str(path.readlink()))
    return sum(row[3] != _LISTEN and f"socket:[{row[9]}]" in own for row in _rows(process.pid))


def _in_table(address: str) -> str:
    return bytes(reversed([int(part) for part in address.split(".")])).hex().upper()


def _processes(namespace: str) -> list[psutil.Process]:
    found = []
    for pid in _run("ip", "netns", "pids", namespace).split():
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(int(pid)))
    return found


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """One run at a time looks for a free network."""
    path = Path(tempfile.gettempdir()) / "baton-hosts.lock"
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _free_subnet() -> str:
    taken = {
        address["local"].rsplit(".", 1)[0]
        for link in json.loads(_run("ip", "-j", "-4", "addr"))
        for address in link["addr_info"]
    }
    free = (subnet for number in range(256) if (subnet := f"{NETWORK}.{number}") not in taken)
    return next(free)


def end_run(run_id: str, *, grace_s: float) -> None:
    """End the hosts of a run, and all that runs there and nowhere else."""
    spaces = [
        entry["name"]
        for entry in json.loads(_run("ip", "-j", "netns", "list") or "[]")
        if entry["name"].startswith(f"{run_id}-")
    ]
    for signum, wait_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, GRACE_S)):
        running = [process for space in spaces for process in _processes(space)]
        for process in running if wait_s else []:
            with contextlib.suppress(psutil.Error):
                process.send_signal(signum)
        psutil.wait_procs(running, timeout=wait_s)
    for space in spaces:
        _run("ip", "netns", "del", space)
    for link in json.loads(_run("ip", "-j", "link")):
        if link["ifname"].startswith((f"{run_id}br", f"{run_id}v")):
            with contextlib.suppress(OSError):  # a cable goes with its namespace, in the kernel's own time
                _run("ip", "link", "del", link["ifname"])


@contextlib.contextmanager
def hosts(*names: str) -> Iterator[Hosts]:
    """Hosts of these names, for the time of the block.

    Raises:
        HostsUnavailable: this machine does not let us make any.
    """
    made = Hosts(names)
    made.make()
    guard = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.host_namespaces", made._run_id],
        cwd=Path(__file__).resolve().parent.parent,
        stdin=subprocess.PIPE,
        process_group=0,
    )
    try:
        yield made
    finally:
        try:
            made.end()
        finally:
            guard.communicate(timeout=60)


def why_not() -> str:
    """Why hosts cannot be made here; empty where they can."""
    try:
        with hosts("one"):
            return ""
    except HostsUnavailable as error:
        return str(error)


def main() -> None:
    """The guard: ends a run once its standard input ends, which is when the process that made the hosts ends."""
    sys.stdin.buffer.read()
    time.sleep(0.1)
    end_run(sys.argv[1], grace_s=0.0)


if __name__ == "__main__":
    main()
