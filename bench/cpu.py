"""CPU seconds of processes and all that they start."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import psutil


def marked(name: str, value: str) -> list[int]:
    """Processes whose environment holds ``name=value``: everything a command started, daemons included."""
    return [process.pid for process in psutil.process_iter() if _environment(process).get(name) == value]


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except (psutil.Error, OSError):
        return {}


class CpuMeter:
    """CPU seconds used between `start` and `stop` by ``pids``, their children and grandchildren, and by this process.

    A process that ends in between counts only up to its parent's reaping of it, as the kernel adds it there.
    """

    def __init__(self, pids: Sequence[int]) -> None:
        self._pids = pids
        self._before: dict[tuple[int, float], float] = {}
        self._used: dict[int, float] = {}
        self._own_s = 0.0

    def start(self) -> None:
        """Note where every process is."""
        self._before = dict(self._read())
        self._own_s = time.process_time()

    def stop(self) -> tuple[float | None, float]:
        """Seconds of the server's processes (None where no pid was given) and of this one."""
        own_s = time.process_time() - self._own_s
        if not self._pids:
            return None, own_s
        self._used = {key[0]: max(0.0, used - self._before.get(key, 0.0)) for key, used in self._read()}
        return sum(self._used.values()), own_s

    def by_process(self) -> dict[int, float]:
        """CPU seconds of each process id between `start` and `stop`."""
        return dict(self._used)

    def _read(self) -> Iterator[tuple[tuple[int, float], float]]:
        seen: set[int] = set()
        for pid in self._pids:
            try:
                root = psutil.Process(pid)
                family = [root, *root.children(recursive=True)]
            except psutil.Error:
                continue
            for process in family:
                if process.pid in seen:
                    continue
                seen.add(process.pid)
                try:
                    times = process.cpu_times()
                    yield (process.pid, process.create_time()), times.user + times.system
                except psutil.Error:
                    continue
