from __future__ import annotations

import pytest

from orchestrator.policy.readiness import can_serve


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
