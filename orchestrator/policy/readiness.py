"""When a worker has loaded, and when workers together can serve. Pure."""

from __future__ import annotations

from collections.abc import Iterable

LOADED = ("ready", "standby")
"""States of a worker whose pairs have all completed their handshake."""


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
