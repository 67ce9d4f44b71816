"""Plan files for the tests, as mappings."""

from __future__ import annotations

from typing import Any

from planner.capacity.resolve import Problem, resolve
from planner.capacity.spec import parse


def tree(**changes: Any) -> dict[str, Any]:
    """A plan for a 32 B model on two kinds of GPU; keyword arguments replace whole blocks."""
    found: dict[str, Any] = {
        "model": {"name": "Qwen3-32B", "precision": "fp8"},
        "workload": {
            "rate_per_s": 10.0,
            "input_tokens": {"mean": 1000, "cv": 1},
            "reasoning_tokens": {"mean": 3000, "cv": 1},
            "answer_tokens": {"mean": 500, "cv": 0.8},
        },
    }
    return found | changes


def workload(**changes: Any) -> dict[str, Any]:
    """The workload block with some keys replaced."""
    found: dict[str, Any] = tree()["workload"] | changes
    return found


def problem(**changes: Any) -> Problem:
    """The plan, looked up."""
    return resolve(parse(tree(**changes)))
