"""What one tenant may have at once and over time. Pure: time is an argument.

The rate limit is a token bucket that may go into debt: a request is let in while the bucket is not empty, and takes
its prompt and its expected output out at once, so that a prompt larger than the burst can be served at all. Over any
stretch of time a tenant gets at most the burst, the rate times the stretch, and one request.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster.errors import RequestRejected
from cluster.spec.config import TenantSettings
from orchestrator.policy.admission import MAX_RETRY_AFTER_S, MIN_RETRY_AFTER_S

DAY_S = 86400.0
FORGET_ABOVE = 4096
"""Tenants remembered before those with nothing in flight and a full bucket are forgotten."""


class TokenBucket:
    """Fills at ``rate_per_s`` up to ``burst``; starts full.

    Example:
        >>> bucket = TokenBucket(rate_per_s=10, burst=50, now_s=0)
        >>> bucket.take(80, now_s=0)
        >>> bucket.wait_s(now_s=1)
        2.0
        >>> bucket.wait_s(now_s=3.5)
        0.0
    """

    def __init__(self, rate_per_s: float, burst: float, *, now_s: float) -> None:
        self._rate_per_s = rate_per_s
        self._burst = burst
        self._level = burst
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """Tokens in it; below 0 is debt."""
        if now_s > self._at_s:
            self._level = min(self._burst, self._level + (now_s - self._at_s) * self._rate_per_s)
            self._at_s = now_s
        return self._level

    def take(self, tokens: float, *, now_s: float) -> None:
        """Charge, or put back what is below 0."""
        self._level = min(self._burst, self.level(now_s) - tokens)

    def wait_s(self, now_s: float) -> float:
        """Seconds until it holds something."""
        level = self.level(now_s)
        return 0.0 if level > 0 else -level / self._rate_per_s

    def is_full(self, now_s: float) -> bool:
        """Whether nothing is remembered of the past."""
        return self.level(now_s) >= self._burst


@dataclass(slots=True)
class _Account:
    in_flight: int = 0
    bucket: TokenBucket | None = None
    usd: TokenBucket | None = None

    def rested(self, now_s: float) -> bool:
        """Whether nothing of it is worth remembering."""
        buckets = [bucket for bucket in (self.bucket, self.usd) if bucket is not None]
        return not self.in_flight and all(bucket.is_full(now_s) for bucket in buckets)


class TenantLimits:
    """In-flight and token-rate limits of all tenants.

    Args:
        settings_of: Limits of a tenant.
        share: Part of each limit that holds here; 1 over the number of gateways.
    """

    def __init__(self, settings_of: Callable[[str], TenantSettings], *, share: float = 1.0) -> None:
        self._settings_of = settings_of
        self._share = share
        self._accounts: dict[str, _Account] = {}

    def enter(self, tenant: str, *, now_s: float) -> None:
        """Let a request in; `leave` must follow.

        Raises:
            RequestRejected: the tenant has too many in flight, or used up its rate; with the time to come back.
        """
        settings = self._settings_of(tenant)
        account = self._account(tenant, settings, now_s)
        if settings.max_in_flight is not None:
            limit = max(1, int(settings.max_in_flight * self._share))
            if account.in_flight >= limit:
                raise RequestRejected(
                    f"the tenant has {limit} requests in flight, which is its limit; retry when one has ended",
                    retry_after_s=MIN_RETRY_AFTER_S,
                    reason="tenant_in_flight",
                )
        wait_s = account.bucket.wait_s(now_s) if account.bucket else 0.0
        if wait_s > 0 or (account.bucket and account.bucket.level(now_s) <= 0):
            raise RequestRejected(
                f"the tenant is over its rate of {settings.tokens_per_s:g} tokens a second; retry later",
                retry_after_s=min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, wait_s)),
                reason="tenant_rate",
            )
        wait_s = account.usd.wait_s(now_s) if account.usd else 0.0
        if wait_s > 0 or (account.usd and account.usd.level(now_s) <= 0):
            raise RequestRejected(
                f"the tenant has spent its {settings.usd_per_day:g} dollars a day; retry later",
                retry_after_s=min(MAX_RETRY_AFTER_S, max(MIN_RETRY_AFTER_S, wait_s)),
                reason="tenant_usd",
            )
        account.in_flight += 1

    def charge(self, tenant: str, tokens: float, *, now_s: float) -> None:
        """Take tokens off the tenant's rate; below 0 gives back what was charged too much."""
        account = self._accounts.get(tenant)
        if account is not None and account.bucket is not None:
            account.bucket.take(tokens, now_s=now_s)

    def spend(self, tenant: str, usd: float, *, now_s: float) -> None:
        """A request cost so much."""
        account = self._accounts.get(tenant)
        if account is not None and account.usd is not None:
            account.usd.take(usd, now_s=now_s)

    def leave(self, tenant: str, *, now_s: float) -> None:
        """A request that was let in has ended."""
        account = self._accounts[tenant]
        account.in_flight -= 1
        if len(self._accounts) > FORGET_ABOVE:
            self._accounts = {name: kept for name, kept in self._accounts.items() if not kept.rested(now_s)}

    def in_flight(self, tenant: str) -> int:
        """Requests of the tenant that are in."""
        account = self._accounts.get(tenant)
        return account.in_flight if account else 0

    def _account(self, tenant: str, settings: TenantSettings, now_s: float) -> _Account:
        account = self._accounts.get(tenant)
        if account is None:
            account = self._accounts[tenant] = _Account()
            if settings.tokens_per_s is not None:
                rate = settings.tokens_per_s * self._share
                burst = (settings.burst_tokens or 10 * settings.tokens_per_s) * self._share
                account.bucket = TokenBucket(rate, burst, now_s=now_s)
            if settings.usd_per_day is not None:
                usd = settings.usd_per_day * self._share
                account.usd = TokenBucket(usd / DAY_S, usd, now_s=now_s)
        return account
