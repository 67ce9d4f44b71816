"""A module fits a sitting, a function a screen, and a class a breath."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.support.packages import PACKAGES, ROOT

SOURCE = (*(package for package in PACKAGES if package != "baton"), "benchmarks", "models", "scripts")
"""`baton/` is generated."""


class Limits(NamedTuple):
    module_lines: int
    function_lines: int
    public_methods: int


OURS = Limits(400, 60, 20)
TESTS = Limits(600, 75, 20)
"""A test module stays with the module that it tests, and a scenario is read from top to bottom."""


def too_large(path: Path, limits: Limits) -> Iterator[str]:
    text = path.read_text()
    name = path.relative_to(ROOT)
    if (lines := text.count("\n")) > limits.module_lines:
        yield f"{name}: {lines} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            if length > limits.function_lines:
                yield f"{name}: {node.name} has {length} lines"
        if isinstance(node, ast.ClassDef):
            methods = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            public = sum(not each.name.startswith("_") for each in methods)
            if public > limits.public_methods:
                yield f"{name}: {node.name} has {public} public methods"


@pytest.mark.parametrize("package", SOURCE)
def test_nothing_outgrows_its_reader(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    assert [each for path in paths for each in too_large(path, OURS)] == []


def test_nor_do_tests() -> None:
    assert [each for path in sorted((ROOT / "tests").rglob("*.py")) for each in too_large(path, TESTS)] == []


def test_what_is_too_large_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{__name__}.ROOT", tmp_path)
    methods = "".join(f"    def m{index}(self) -> None: ...\n" for index in range(21))
    long = "def long() -> None:\n" + "    pass\n" * 60
    module = tmp_path / "module.py"
    module.write_text(f"class Wide:\n{methods}{long}" + "#\n" * 400)
    found = list(too_large(module, OURS))
    assert [each.split(": ", 1)[1] for each in found] == [
        f"{1 + 21 + 61 + 400} lines", "Wide has 21 public methods", "long has 61 lines",
    ]  # fmt: skip
