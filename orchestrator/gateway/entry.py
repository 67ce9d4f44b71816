"""What a gateway holds at once, by tenant: counts requests in and out, and charges what they take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from cluster.errors import RequestRejected
from cluster.spec.config import ClusterSpec
from orchestrator.policy.tenants import TenantLimits


class Entry:
    """Owns what a gateway holds at once: its own limit, and its share of the tenants' limits."""

    def __init__(self, spec: ClusterSpec) -> None:
        self._max_streams = spec.gateway.max_streams
        self._tenants = TenantLimits(spec.tenant, share=1 / spec.gateway.replicas)
        self._streams = 0

    @contextlib.contextmanager
    def enter(self, tenant: str) -> Iterator[None]:
        """Count a request in for as long as the context lasts; before it is tokenised, so that a flood costs little.

        Raises:
            RequestRejected: the gateway or the tenant has as many as it may.
        """
        if self._streams >= self._max_streams:
            raise RequestRejected(
                f"the gateway holds {self._streams} requests, which is its limit; retry later",
                retry_after_s=1.0,
                reason="streams",
            )
        self._tenants.enter(tenant, now_s=time.monotonic())
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1
            self._tenants.leave(tenant, now_s=time.monotonic())

    def charge(self, tenant: str, tokens: float) -> None:
        """Take tokens off the tenant's rate; below 0 gives back."""
        self._tenants.charge(tenant, tokens, now_s=time.monotonic())

    def spend(self, tenant: str, usd: float) -> None:
        """A request of the tenant cost so much."""
        self._tenants.spend(tenant, usd, now_s=time.monotonic())
