from __future__ import annotations

import pytest

from cluster.spec.config import Role
from orchestrator.policy.readiness import can_serve, on_its_way


@pytest.mark.parametrize(
    ("members", "ready"),
    [
        ([], False),
        ([("prefill", True)], False),
        ([("prefill", True), ("decode", False)], False),
        ([("prefill", True), ("decode", True)], True),
        ([("colocated", True)], True),
    ],
)
def test_a_gateway_is_ready_when_it_can_serve(members: list[tuple[str, bool]], ready: bool) -> None:
    assert can_serve(members) is ready


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize("loaded", [False, True])
@pytest.mark.parametrize("standby", [False, True])
@pytest.mark.parametrize("given_up", [False, True])
def test_a_worker_is_on_its_way_while_it_starts_to_serve(
    role: Role, loaded: bool, standby: bool, given_up: bool
) -> None:
    expected = role in (Role.DECODE, Role.COLOCATED) and (loaded, standby, given_up) == (False, False, False)
    assert on_its_way(role, loaded=loaded, standby=standby, given_up=given_up) is expected
