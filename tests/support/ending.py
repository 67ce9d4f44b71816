"""The end of what tests start: by the folder a process is for and, where pytest is killed, by descent from it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

SAMPLE_INTERVAL_S = 1.0
END_TIMEOUT_S = 20.0
GRACE_S = 5.0
RUN = "BATON_TEST_RUN"
"""Says of which run of the tests a process is."""


def marked(folder: Path) -> list[psutil.Process]:
    """Processes that were started for the cache folder, which is in their environment, and all below them."""
    return _with("BATON_CACHE", str(folder))


def _with(variable: str, value: str) -> list[psutil.Process]:
    """Ray's workers overwrite their environment with their title; they are below their raylet."""
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(variable) == value:
                for each in (process, *process.children(recursive=True)):
                    found[each.pid] = each
    return [process for process in found.values() if _lives(process)]


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def end_marked(folder: Path) -> list[str]:
    """Kill what still runs for the folder; returns what that was."""
    names: list[str] = []
    deadline_s = time.monotonic() + END_TIMEOUT_S
    # Again and again: what starts a process while it is being killed has started it by the next pass.
    while (found := marked(folder)) and time.monotonic() < deadline_s:
        names += [named(process) for process in found]
        _kill(found)
    return names


def named(process: psutil.Process) -> str:
    """Its id and how it was started."""
    try:
        return f"{process.pid} {' '.join(process.cmdline()[:4])}"
    except psutil.Error:
        return f"{process.pid}"


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(processes, timeout=1)


@contextlib.contextmanager
def ended(folder: Path) -> Iterator[None]:
    """Whatever happens inside, nothing that was started for the folder outlives it."""
    try:
        yield
    finally:
        end_marked(folder)


# --- when pytest itself is killed -------------------------------------------------------------------------------


def start_watcher() -> subprocess.Popen[bytes]:
    """A process that remembers all that descends from this one, and kills what is left of it when this one has ended.

    Its standard input ends with this process, however that ends. What was an orphan before the first sample is
    known by its environment.
    """
    os.environ[RUN] = f"{os.getpid()}-{time.time_ns()}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.support.ending"],
        cwd=Path(__file__).resolve().parents[2],
        stdin=subprocess.PIPE,
        process_group=0,  # a Ctrl-C is for pytest, whose fixtures end what they started
    )


class Family:
    """A process and all that it or they started, orphans among them included, as far as it was sampled in time."""

    def __init__(self, root: psutil.Process) -> None:
        self._known = {root.pid: root}

    def sample(self) -> None:
        """Add the processes that joined, drop those that ended."""
        parents = {process: process.info["ppid"] for process in psutil.process_iter(["ppid"])}
        joined = True
        while joined:
            joined = False
            for process, parent in parents.items():
                if parent in self._known and process.pid not in self._known:
                    self._known[process.pid] = process
                    joined = True
        self._known = {pid: process for pid, process in self._known.items() if _lives(process)}

    def living(self) -> list[psutil.Process]:
        """All that live."""
        return list(self._known.values())


def main(parent_pipe: IO[bytes]) -> None:
    """Watch over the parent until it has ended."""
    ending = threading.Event()

    def listen() -> None:
        parent_pipe.read()
        ending.set()

    threading.Thread(target=listen, daemon=True).start()
    own = psutil.Process()
    parent = own.ppid()
    family = Family(psutil.Process(parent))
    while not ending.wait(SAMPLE_INTERVAL_S):
        family.sample()
    family.sample()
    # Ray's agents take some seconds to see that their node is gone.
    seen = {process.pid: process for process in (*family.living(), *_with(RUN, os.environ[RUN]))}
    _, left = psutil.wait_procs([seen[pid] for pid in seen.keys() - {own.pid, parent}], timeout=GRACE_S)
    if left:
        print("\nleft by the tests and ended:", *(named(each) for each in left), sep="\n  ")
        _kill(left)


if __name__ == "__main__":
    main(sys.stdin.buffer)
