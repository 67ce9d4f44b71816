"""What `baton plan emit` writes renders to exactly the GPUs that the plan costed."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from planner.capacity.emit import helm_values
from planner.capacity.planner import plan_for
from planner.capacity.resolve import resolve
from planner.capacity.spec import Mode, load
from tests.helm.chart import ROOT, Chart

PLANS = sorted((ROOT / "examples" / "plans").glob("users-*.yaml"))


def test_there_are_three_example_plans() -> None:
    assert len(PLANS) == 3


@pytest.mark.parametrize("path", PLANS, ids=lambda path: path.stem)
def test_emitted_values_render_to_the_costed_gpus(chart: Chart, path: Path) -> None:
    plan = plan_for(resolve(load(path)))
    candidates = [found for found in (plan.best, *(plan.best_of(mode) for mode in Mode)) if found is not None]
    assert candidates
    for chosen in candidates:
        values = yaml.safe_load(yaml.safe_dump(helm_values(plan.problem, chosen)))
        rendered = chart.render(values | {"model": {"kind": "pvc", "claim": "models"}})
        assert rendered.gpus == chosen.gpus
        kinds = {name: group["resources"] for name, group in rendered.groups.items()}
        assert set(kinds) == {pool.role.value for pool in chosen.pools}
        for pool in chosen.pools:
            assert any(key.startswith("accelerator_type:") for key in kinds[pool.role.value])
