"""The end of a cluster's processes on this machine, whichever process started them and whatever they still do."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import psutil

from orchestrator.local.state_file import ProcessMark

SHARED_MEMORY = Path("/dev/shm")


def marks_of(pids: Iterable[int]) -> list[ProcessMark]:
    """Marks of those processes that live."""
    return [mark for pid in dict.fromkeys(pids) if (mark := ProcessMark.of(pid))]


def descendants(pids: Iterable[int]) -> list[int]:
    """The processes and all their children: an engine core is a child of its worker."""
    found: list[int] = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            found += [pid, *(child.pid for child in process.children(recursive=True))]
    return found


def end_processes(marks: Sequence[ProcessMark], *, grace_s: float) -> None:
    """End exactly these processes: by a signal first, then by force."""
    alive = [process for mark in marks if (process := mark.process())]
    for process in alive:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    _, rest = psutil.wait_procs(alive, timeout=grace_s)
    for process in rest:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(rest, timeout=grace_s)


def remove_openmp_segments(pids: Iterable[int]) -> None:
    """Intel's OpenMP registers each process in shared memory and forgets that when the process is killed."""
    for pid in pids:
        if not psutil.pid_exists(pid):
            for path in SHARED_MEMORY.glob(f"__KMP_REGISTERED_LIB_{pid}_*"):
                path.unlink(missing_ok=True)
