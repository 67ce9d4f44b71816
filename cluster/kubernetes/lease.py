"""A Kubernetes Lease: of all processes that ask for it, one acts."""

from __future__ import annotations

import asyncio
import datetime
import time
from collections.abc import Callable

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from cluster.errors import ConfigError, ServingError
from cluster.kubernetes.api import Api, Conflict, KubernetesUnavailable

DURATION_S = 15.0
RENEW_S = 4.0


class LeaseLost(ServingError):
    """Another holds the lease, or it could not be renewed in time: stop acting at once."""


class Lease:
    """One lease and this process's claim to it.

    The other's clock is not trusted: a lease has run out when it has not changed for its duration by our own clock.

    Args:
        api: Client.
        namespace: Where the lease is.
        name: Its name.
        holder: Name of this process, unlike any other's (the pod's).
        duration_s: Seconds after which a lease that is not renewed is free.
        now: Monotonic seconds.
    """

    def __init__(
        self,
        api: Api,
        namespace: str,
        name: str,
        *,
        holder: str,
        duration_s: float = DURATION_S,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._leases = client.CoordinationV1Api(api.client)
        self._namespace = namespace
        self._name = name
        self.holder = holder
        self._duration_s = duration_s
        self._now = now
        self._seen: tuple[str, float] = ("", 0.0)

    async def acquire(self) -> None:
        """Wait until the lease is ours."""
        while not await self.try_acquire():
            await self._api.sleep(RENEW_S)

    async def try_acquire(self) -> bool:
        """Take the lease if it is free, or renew it if it is ours; returns whether it is ours.

        Raises:
            KubernetesUnavailable: the server does not answer.
        """
        try:
            lease = await self._api.call(self._read)
            if lease is None:
                await self._api.call(
                    self._leases.create_namespaced_lease,
                    self._namespace,
                    client.V1Lease(
                        metadata=client.V1ObjectMeta(name=self._name, namespace=self._namespace),
                        spec=self._spec(transitions=0),
                    ),
                )
                return True
            spec = lease.spec
            version = lease.metadata.resource_version
            if version != self._seen[0]:
                self._seen = (version, self._now())
            taken = bool(spec.holder_identity) and spec.holder_identity != self.holder
            if taken and self._now() - self._seen[1] < (spec.lease_duration_seconds or self._duration_s):
                return False
            mine = spec.holder_identity == self.holder
            lease.spec = self._spec(transitions=(spec.lease_transitions or 0) + (not mine))
            if mine:
                lease.spec.acquire_time = spec.acquire_time
            # Carries the resourceVersion that was read: of two that take it at once, one gets 409.
            await self._api.call(self._leases.replace_namespaced_lease, self._name, self._namespace, lease)
        except Conflict:
            return False
        return True

    async def keep(self) -> None:
        """Renew until cancelled.

        Raises:
            LeaseLost: it is another's, or the server did not let us renew it for its duration.
        """
        renewed_s = self._now()
        while True:
            await self._api.sleep(RENEW_S)
            try:
                remaining_s = self._duration_s - (self._now() - renewed_s)
                async with asyncio.timeout(max(0.0, remaining_s)):
                    if not await self.try_acquire():
                        raise LeaseLost(f"the lease {self._name} is another's", holder=self.holder)
            except TimeoutError as error:
                raise LeaseLost(f"the lease {self._name} could not be renewed in time", holder=self.holder) from error
            except KubernetesUnavailable as error:
                if self._now() - renewed_s >= self._duration_s:
                    raise LeaseLost(f"the lease {self._name} could not be renewed: {error}") from error
                continue
            renewed_s = self._now()

    async def release(self) -> None:
        """Give the lease up, so that the next one need not wait; a failure only costs that wait."""
        try:
            lease = await self._api.call(self._read)
            if lease is not None and lease.spec.holder_identity == self.holder:
                lease.spec.holder_identity = ""
                await self._api.call(self._leases.replace_namespaced_lease, self._name, self._namespace, lease)
        except (Conflict, KubernetesUnavailable, ConfigError):
            return

    def _read(self, **options: float) -> client.V1Lease | None:
        try:
            return self._leases.read_namespaced_lease(self._name, self._namespace, **options)
        except ApiException as error:
            if error.status == 404:
                return None
            raise

    def _spec(self, *, transitions: int) -> client.V1LeaseSpec:
        now = datetime.datetime.now(datetime.UTC)
        return client.V1LeaseSpec(
            holder_identity=self.holder,
            lease_duration_seconds=int(self._duration_s),
            acquire_time=now,
            renew_time=now,
            lease_transitions=transitions,
        )
