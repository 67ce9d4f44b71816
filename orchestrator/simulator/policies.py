"""Scaling policies by name, for ``baton simulate --policy``.

A policy is made anew for each run from the scenario it runs in: its fleet, objectives and workload's seed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cluster.errors import ConfigError
from orchestrator.simulator.scaling import ScalingPolicy

if TYPE_CHECKING:
    from orchestrator.simulator.scenario import Scenario

PolicyMaker = Callable[["Scenario"], ScalingPolicy | None]


def _static(scenario: Scenario) -> ScalingPolicy | None:
    """The fleet as it stands."""
    return None


POLICIES: dict[str, PolicyMaker] = {"static": _static}


def policies_named(text: str) -> dict[str, PolicyMaker]:
    """Policies of a comma-separated list, in its order.

    Raises:
        ConfigError: an unknown name, or the same one twice.
    Example:
        >>> list(policies_named("static"))
        ['static']
    """
    names = [each.strip() for each in text.split(",")]
    for name in names:
        if name not in POLICIES:
            raise ConfigError(f"--policy: {name!r} is unknown; expected one of {', '.join(sorted(POLICIES))}")
    if len(set(names)) < len(names):
        raise ConfigError(f"--policy={text}: each policy once")
    return {name: POLICIES[name] for name in names}
