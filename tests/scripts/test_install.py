"""`scripts/install.py`: when it does nothing, what it refuses, and what is shown of a pip that fails."""

from __future__ import annotations

import hashlib
import stat
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scripts import install

PIP = """#!/bin/sh
echo "$@" >> "{log}"
{play}
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with lock files, and a virtual environment whose Python only writes down what it was asked."""
    (tmp_path / "requirements").mkdir()
    for variant in ("cpu", "cuda"):
        (tmp_path / "requirements" / f"{variant}.txt").write_text(f"{variant}==1\n")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    venv = tmp_path / ".venv"
    (venv / "bin").mkdir(parents=True)
    for name, value in {"ROOT": tmp_path, "VENV": venv, "STAMP": venv / "baton-installed", "TERMINAL": False}.items():
        monkeypatch.setattr(install, name, value)
    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: SimpleNamespace(free=100 << 30))
    monkeypatch.setattr(sys, "argv", ["install.py"])
    pip(tmp_path, "exit 0")
    return tmp_path


def pip(root: Path, play: str) -> None:
    program = root / ".venv" / "bin" / "python"
    program.write_text(PIP.format(log=root / "calls", play=play))
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def calls(root: Path) -> list[str]:
    path = root / "calls"
    return path.read_text().splitlines() if path.exists() else []


def test_the_lock_is_installed_and_then_baton_and_nothing_is_resolved(root: Path) -> None:
    install.main()
    locked, baton = calls(root)
    assert locked.endswith(f"--no-deps -r {root}/requirements/cpu.txt")
    assert baton.endswith(f"--no-deps --no-build-isolation -e {root}")
    digest = hashlib.sha256(b"cpu==1\n[project]\n").hexdigest()
    assert (root / ".venv" / "baton-installed").read_text() == f"{digest} {root}"


def test_a_second_time_nothing_is_done(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install.main()
    capsys.readouterr()
    install.main()
    assert len(calls(root)) == 2
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("changed", ["requirements/cpu.txt", "pyproject.toml"])
def test_a_changed_lock_or_project_is_installed_again(root: Path, changed: str) -> None:
    install.main()
    with (root / changed).open("a") as out:
        out.write("more\n")
    install.main()
    assert len(calls(root)) == 4


def test_another_variant_is_installed_over_it(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install.main()
    monkeypatch.setattr(sys, "argv", ["install.py", "cuda"])
    install.main()
    assert calls(root)[2].endswith("requirements/cuda.txt")


def test_a_checkout_that_was_moved_is_installed_again(root: Path) -> None:
    """An editable install points at the folder it was made in."""
    install.main()
    stamp = root / ".venv" / "baton-installed"
    stamp.write_text(stamp.read_text().replace(str(root), "/elsewhere"))
    install.main()
    assert len(calls(root)) == 4


@pytest.mark.parametrize("version", [(3, 10, 9), (3, 13, 0), (2, 7, 18)])
def test_a_python_that_the_engines_are_not_built_for_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    with pytest.raises(SystemExit) as refused:
        install.main()
    assert "Baton needs Python 3.11 or 3.12" in str(refused.value.code)
    assert not calls(root)


def test_a_full_disk_is_refused_before_anything_is_downloaded(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install.shutil, "disk_usage", lambda path: SimpleNamespace(free=(8 << 30) - 1))
    with pytest.raises(SystemExit) as refused:
        install.main()
    assert "8 GiB" in str(refused.value.code)
    assert not calls(root)


def test_of_a_pip_that_fails_the_last_lines_are_shown_and_the_rest_is_kept(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pip(root, "for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; done; echo WARNING: old; echo ERROR: no match; exit 1")
    with pytest.raises(SystemExit) as failed:
        install.main()
    assert failed.value.code == 1
    out = capsys.readouterr().out
    log = root / ".venv" / "install.log"
    assert f"the last lines of {log}" in out
    shown = [line.strip() for line in out.splitlines() if line.startswith("    ")]
    assert shown == [f"line {i}" for i in range(5, 11)] + ["ERROR: no match"]
    assert "line 1\n" in log.read_text()
    assert not (root / ".venv" / "baton-installed").exists()
    assert len(calls(root)) == 1


@pytest.mark.parametrize(("line", "hint"), [("ERROR: No matching distribution for torch==2", True), ("ERROR", False)])
def test_a_missing_torch_has_a_hint_of_its_own(
    root: Path, capsys: pytest.CaptureFixture[str], line: str, hint: bool
) -> None:
    pip(root, f"echo '{line}'; exit 1")
    with pytest.raises(SystemExit):
        install.main()
    assert ("PIP_EXTRA_INDEX_URL" in capsys.readouterr().out) is hint


def test_on_a_terminal_a_line_is_written_over_the_counter(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(install, "TERMINAL", True)
    install.say("done")
    assert capsys.readouterr().out == "\r\033[Kdone\n"


def test_packages_are_counted_while_pip_goes_on(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock: Any = iter(range(0, 10_000, 20))
    monkeypatch.setattr(install.time, "monotonic", lambda: next(clock))
    pip(root, "echo Collecting ray==2; echo '  Using cached'; echo Collecting vllm==1; exit 0")
    install.run_pip("locked packages", [])
    lines = [line.split("s   ")[0] for line in capsys.readouterr().out.splitlines()]
    assert [line.strip().partition(",")[0] for line in lines[:3]] == [
        "locked packages: 1 packages", "locked packages: 1 packages", "locked packages: 2 packages"
    ]  # fmt: skip
    assert "done in" in lines[3]
