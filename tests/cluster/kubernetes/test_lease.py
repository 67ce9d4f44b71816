"""The controller's lease, against a mock Kubernetes API server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from kmock import RawHandler, Response

from cluster.kubernetes.api import Api
from cluster.kubernetes.lease import Lease, LeaseLost
from tests.support.kube_mock import Clock, Tree, bump, ok, status

# The mock's own emulation answers PATCH before the replies given here; a plain server asks them alone.
pytestmark = pytest.mark.kmock(cls=RawHandler)

LEASES = "/apis/coordination.k8s.io/v1/namespaces/serving/leases"
LEASE = f"{LEASES}/baton-r1-controller"


class LeaseServer:
    """One lease behind the mock, with resourceVersions."""

    def __init__(self, kmock: RawHandler) -> None:
        self.tree: Tree | None = None
        self.fail: list[Response] = []
        kmock[f"get {LEASE}"] << (lambda _: ok(self.tree or status(404, "NotFound")))

        async def created(request: Any) -> Response:
            return ok(await self.create(request))

        async def replaced(request: Any) -> Response:
            return ok(await self.replace(request))

        kmock[f"post {LEASES}"] << created
        kmock[f"put {LEASE}"] << replaced

    async def create(self, request: Any) -> Any:
        if self.tree is not None:
            return status(409, "AlreadyExists")
        self.tree = json.loads(request.body)
        self.tree["metadata"]["resourceVersion"] = "1"
        return self.tree

    async def replace(self, request: Any) -> Any:
        if self.fail:
            return self.fail.pop(0)
        assert self.tree is not None
        if json.loads(request.body)["metadata"]["resourceVersion"] != self.tree["metadata"]["resourceVersion"]:
            return status(409, "Conflict")
        self.tree = json.loads(request.body)
        bump(self.tree)
        return self.tree

    @property
    def holder(self) -> str:
        assert self.tree is not None
        return str(self.tree["spec"]["holderIdentity"])


@pytest.fixture
def two(kmock: RawHandler, api: Api, clock: Clock) -> tuple[LeaseServer, Lease, Lease]:
    server = LeaseServer(kmock)
    make = {"now": clock.now}
    return (
        server,
        Lease(api, "serving", "baton-r1-controller", holder="a", **make),
        Lease(api, "serving", "baton-r1-controller", holder="b", **make),
    )


async def test_one_holds_the_lease(two: tuple[LeaseServer, Lease, Lease], clock: Clock) -> None:
    server, first, second = two
    assert await first.try_acquire()
    assert not await second.try_acquire()
    clock.now_s += 14
    assert await first.try_acquire()  # renewed
    clock.now_s += 14
    assert not await second.try_acquire()  # saw the renewal just now
    assert server.holder == "a"


async def test_a_lease_nobody_renews_is_taken_after_its_time(
    two: tuple[LeaseServer, Lease, Lease], clock: Clock
) -> None:
    server, first, second = two
    await first.acquire()
    await second.acquire()
    assert server.holder == "b"
    assert clock.now_s >= 15
    assert server.tree is not None
    assert server.tree["spec"]["leaseTransitions"] == 1


async def test_who_lost_the_lease_stops(two: tuple[LeaseServer, Lease, Lease], clock: Clock) -> None:
    server, first, _ = two
    await first.acquire()
    assert server.tree is not None
    server.tree["spec"]["holderIdentity"] = "b"
    bump(server.tree)
    with pytest.raises(LeaseLost, match="another's"):
        await first.keep()


async def test_who_cannot_renew_in_time_stops(two: tuple[LeaseServer, Lease, Lease], clock: Clock) -> None:
    """The API server is down: another may hold the lease once ours has run out."""
    server, first, _ = two
    await first.acquire()
    server.fail = [status(503, "ServiceUnavailable") for _ in range(99)]
    with pytest.raises(LeaseLost, match="could not be renewed"):
        await first.keep()


async def test_of_two_that_take_a_free_lease_one_gets_it(two: tuple[LeaseServer, Lease, Lease]) -> None:
    server, first, second = two
    assert sorted(await asyncio.gather(first.try_acquire(), second.try_acquire())) == [False, True]
    assert server.holder in ("a", "b")


async def test_a_released_lease_is_free_at_once(two: tuple[LeaseServer, Lease, Lease], clock: Clock) -> None:
    server, first, second = two
    await first.acquire()
    await first.release()
    assert await second.try_acquire()
    assert server.holder == "b"
    assert clock.now_s == 0
