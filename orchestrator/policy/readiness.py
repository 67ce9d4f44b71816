"""When a worker has loaded, when one is on its way, and when workers together can serve. Pure."""

from __future__ import annotations

from collections.abc import Iterable

from cluster.spec.config import Role

LOADED = ("ready", "standby")
"""States of a worker whose pairs have all completed their handshake."""


def on_its_way(role: Role, *, loaded: bool, standby: bool, given_up: bool) -> bool:
    """Whether a worker on which requests could decode is being started to serve.

    Then a running request may be preempted for one that finds no KV: more is coming, for both.

    Args:
        role: Its role.
        loaded: It could serve at this moment (`LOADED`).
        standby: It is to wait once it is ready.
        given_up: It is to serve no more, or its last start failed.

    Example:
        >>> on_its_way(Role.DECODE, loaded=False, standby=False, given_up=False)
        True
        >>> on_its_way(Role.PREFILL, loaded=False, standby=False, given_up=False)
        False
    """
    return role is not Role.PREFILL and not (loaded or standby or given_up)


def can_serve(workers: Iterable[tuple[str, bool]]) -> bool:
    """Whether requests can be served, of ``(role, accepting)`` of each worker.

    Example:
        >>> can_serve([("prefill", True), ("decode", False)])
        False
        >>> can_serve([("prefill", True), ("decode", True)]), can_serve([("colocated", True)])
        (True, True)
    """
    roles = {role for role, accepting in workers if accepting}
    return "colocated" in roles or {"prefill", "decode"} <= roles
