"""Weighted fairness between tenants, by tokens. Pure.

Start-time fair queueing (Goyal, Vin and Cheng, SIGCOMM 1996): each request gets a start tag, the later of virtual time
and its tenant's last finish tag; the lowest tag goes first, and virtual time is the tag of what went last. While two
tenants both have requests waiting, what they got differs by at most one largest request of each, over its weight. A
tenant that was idle saves nothing up, and one that had the cluster for itself owes nothing for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

PRUNE_ABOVE = 1024
"""Tenants remembered before those that are owed and owe nothing are forgotten."""


class FairShare:
    """Tags of the tenants of one priority.

    Args:
        weight_of: Weight of a tenant, above 0; twice the weight is twice the tokens.

    Example:
        >>> share = FairShare(lambda tenant: 2.0 if tenant == "big" else 1.0)
        >>> share.charge("big", 100); share.charge("small", 100)
        >>> share.start_tag("big"), share.start_tag("small")
        (50.0, 100.0)
    """

    def __init__(self, weight_of: Callable[[str], float]) -> None:
        self._weight_of = weight_of
        self._finish: dict[str, float] = {}
        self._virtual = 0.0

    def start_tag(self, tenant: str) -> float:
        """Tag that the tenant's next request has; the lowest goes first."""
        return max(self._virtual, self._finish.get(tenant, 0.0))

    def tags(self, tenant: str, costs_tokens: Iterable[float]) -> list[float]:
        """Tags of the tenant's next requests, in their order, of these costs."""
        tag, weight, result = self.start_tag(tenant), self._weight_of(tenant), []
        for cost in costs_tokens:
            result.append(tag)
            tag += cost / weight
        return result

    def charge(self, tenant: str, cost_tokens: float) -> None:
        """The tenant's next request is served, at this cost."""
        start = self.start_tag(tenant)
        self._virtual = start
        self._finish[tenant] = start + cost_tokens / self._weight_of(tenant)
        if len(self._finish) > PRUNE_ABOVE:
            self._finish = {name: tag for name, tag in self._finish.items() if tag > start}

    def settle(self, tenant: str, more_tokens: float) -> None:
        """A request took this many tokens more (or, below 0, fewer) than it was charged."""
        if tenant in self._finish or more_tokens > 0:
            self._finish[tenant] = self._finish.get(tenant, self._virtual) + more_tokens / self._weight_of(tenant)
