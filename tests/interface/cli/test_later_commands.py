"""Commands that are imported when they are called."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from interface.cli.later_commands import LATER
from interface.cli.main import app


@pytest.mark.parametrize("name", LATER)
def test_each_is_there_and_shows_its_help(name: str) -> None:
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert f" {name} " in shown.output.splitlines()[1]


def test_the_list_of_commands_has_them() -> None:
    shown = CliRunner().invoke(app, ["--help"])
    assert all(f" {name} " in shown.output for name in LATER)


def test_other_commands_do_not_wait_for_their_imports() -> None:
    code = "import sys, interface.cli.main; print({'bench', 'doctor', 'planner', 'numpy'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
