"""What tests start ends with them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.support.ending import ended, marked

ROOT = Path(__file__).resolve().parent.parent
ORPHAN = "sleep 1000 & sleep 0.1"
"""The first one's parent ends before the watcher has looked."""
KILLED = f"""
import subprocess, sys
from tests.support.ending import start_watcher
start_watcher()
subprocess.Popen(["sh", "-c", {ORPHAN!r}], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL).wait()
print(flush=True)
sys.stdin.read()
"""


def test_a_failure_ends_what_was_started_for_the_folder(tmp_path: Path) -> None:
    env = os.environ | {"BATON_CACHE": str(tmp_path)}
    with pytest.raises(RuntimeError), ended(tmp_path):
        subprocess.Popen(["sh", "-c", "sleep 1000 & sleep 1000"], env=env)
        child = subprocess.Popen(["sh", "-c", "env -u BATON_CACHE sleep 1000; true"], env=env)
        while not psutil.Process(child.pid).children():
            pass
        assert len(marked(tmp_path)) >= 4
        (below,) = psutil.Process(child.pid).children()
        raise RuntimeError
    assert not marked(tmp_path)
    assert not below.is_running() or below.status() == psutil.STATUS_ZOMBIE


def test_what_a_killed_pytest_started_is_ended(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        cwd=ROOT,
        env=os.environ | {"BATON_CACHE": str(tmp_path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with ended(tmp_path):
        assert process.stdout is not None
        process.stdout.readline()
        (orphan,) = (each for each in marked(tmp_path) if each.name() == "sleep")
        assert orphan.ppid() != process.pid
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.communicate()
        psutil.wait_procs([orphan], timeout=120)
        assert not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE
