"""``plan.lock.json``: every input, constant and version of a plan, from which it comes out again the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.hardware.catalogue import GpuSpec
from cluster.hardware.engine_constants import EngineConstants
from cluster.model.model_spec import ModelSpec
from planner.capacity.plan import Plan
from planner.capacity.planner import plan_for
from planner.capacity.resolve import Problem
from planner.capacity.spec import parse
from planner.capacity.view import candidate_record

FORMAT = 1


def _version() -> str:
    try:
        return version("baton-inference")
    except PackageNotFoundError:
        return "source"


def lock(plan: Plan) -> dict[str, Any]:
    """The plan's inputs, constants and answer."""
    problem = plan.problem
    inputs = {
        "spec": problem.spec.model_dump(mode="json"),
        "model": asdict(problem.model),
        "gpus": [asdict(each) for each in problem.gpus],
        "engine": asdict(problem.engine),
    }
    return {
        "format": FORMAT,
        "baton": _version(),
        "inputs": inputs,
        "inputs_sha256": _digest(inputs),
        "chosen": candidate_record(plan.best),
        "candidates": len(plan.candidates),
    }


def _digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def write(plan: Plan, path: Path) -> None:
    """Write the lock file."""
    path.write_text(json.dumps(lock(plan), indent=2) + "\n")


def reproduce(path: Path) -> tuple[Plan, list[str]]:
    """Plan again from a lock file; the second value lists what came out otherwise, empty when nothing did.

    Raises:
        ConfigError: the file is not a lock file, or its inputs were changed by hand.
    """
    try:
        tree = json.loads(path.read_text())
        inputs = tree["inputs"]
        if tree["format"] != FORMAT or _digest(inputs) != tree["inputs_sha256"]:
            raise ConfigError(f"{path}: the inputs do not match their digest, or the format is not {FORMAT}")
        spec = parse(inputs["spec"], source=str(path))
        problem = Problem(
            spec=spec,
            model=ModelSpec.from_record(inputs["model"]),
            gpus=tuple(GpuSpec(**each) for each in inputs["gpus"]),
            engine=EngineConstants(**inputs["engine"]),
            lengths=spec.workload.lengths(),
        )
    except (OSError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path}: not a plan lock ({type(error).__name__}: {error})") from error
    plan = plan_for(problem)
    return plan, _differences(tree["chosen"], candidate_record(plan.best))


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    keys = sorted(set(old) | set(new))
    return [f"{key}: {old.get(key)} became {new.get(key)}" for key in keys if old.get(key) != new.get(key)]
