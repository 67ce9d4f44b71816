from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest

from cluster import errors
from cluster.errors import InvalidRequest, RequestRejected, ServingError
from interface.client.client import AsyncClient
from interface.status import ROWS, from_rpc, http_headers, status_of, trailing_metadata
from tests.fakes.backend import admitted, script
from tests.interface.conftest import Edge


def tree(root: type[ServingError]) -> Iterator[type[ServingError]]:
    yield root
    for child in root.__subclasses__():
        yield from tree(child)


CLASSES = [kind for kind in tree(ServingError) if kind.__module__ == errors.__name__]


def make(kind: type[ServingError]) -> ServingError:
    if issubclass(kind, RequestRejected):
        return kind("it failed", retry_after_s=2.5)
    if issubclass(kind, InvalidRequest):
        return kind("it failed", field="sampling.top_p")
    return kind("it failed", worker_id="decode-0")


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_has_a_row_of_its_own(kind: type[ServingError]) -> None:
    assert kind in ROWS, f"interface/status.py has no row for {kind.__name__}"


def test_the_table_has_no_row_for_anything_else() -> None:
    assert set(ROWS) == set(CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
def test_unavailable_means_that_a_retry_can_help(kind: type[ServingError]) -> None:
    status = ROWS[kind]
    if status.grpc is grpc.StatusCode.UNAVAILABLE:
        assert kind.retryable
        assert status.http == 503


def test_a_class_without_a_row_takes_its_nearest_base() -> None:
    # Made without the class statement's side effect on other tests: `CLASSES` was taken before.
    newer = type("NewerWorkerDied", (errors.WorkerDied,), {})
    assert status_of(newer("gone")) is ROWS[errors.WorkerDied]
    assert dict(trailing_metadata(newer("gone")))["baton-error-kind"] == "WorkerDied"


@pytest.mark.parametrize("kind", CLASSES)
def test_a_status_maps_back_to_the_class_it_came_from(kind: type[ServingError]) -> None:
    error = make(kind)
    back = from_rpc(status_of(error).grpc, error.message, trailing_metadata(error, request_id="mine"))
    assert type(back) is kind
    assert back.ids == {"request_id": "mine"}
    assert back.message == "it failed"
    assert getattr(back, "retry_after_s", None) == getattr(error, "retry_after_s", None)
    assert getattr(back, "field", None) == getattr(error, "field", None)


def test_statuses_of_other_servers_map_by_code() -> None:
    assert type(from_rpc(grpc.StatusCode.UNAVAILABLE, None, None)) is errors.NoReadyWorker
    assert type(from_rpc(grpc.StatusCode.RESOURCE_EXHAUSTED, "too long", ())) is errors.RequestTooLarge
    rejected = from_rpc(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", [("retry-after-s", "soon")])
    assert isinstance(rejected, RequestRejected)
    assert rejected.retry_after_s == 1.0
    assert type(from_rpc(grpc.StatusCode.DATA_LOSS, "lost", None)) is ServingError


def test_only_a_rejection_carries_a_retry_hint() -> None:
    assert http_headers(errors.OutOfBlocks("full")) == {}
    assert http_headers(RequestRejected("full", retry_after_s=1.2)) == {"Retry-After": "2", "retry-after-ms": "1200"}


@pytest.mark.parametrize("late", [False, True], ids=["at_once", "after_admission"])
@pytest.mark.parametrize("kind", CLASSES)
async def test_every_error_reaches_both_protocols(edge: Edge, kind: type[ServingError], late: bool) -> None:
    error = make(kind)
    edge.backend.script = script(*([admitted()] if late else []), error)
    row = ROWS[kind]
    for stream in (False, True):
        body = {"model": "tiny-thinker", "prompt": "Hi", "stream": stream}
        async with edge.session.post(f"{edge.url}/v1/completions", json=body) as reply:
            assert reply.status == row.http
            assert await reply.json() == {
                "error": {
                    "message": "it failed",
                    "type": row.type,
                    "code": row.code,
                    "param": "top_p" if isinstance(error, InvalidRequest) else None,
                }
            }
            assert ("Retry-After" in reply.headers) == isinstance(error, RequestRejected)
    async with AsyncClient(edge.grpc_address) as client:
        with pytest.raises(ServingError) as caught:
            await client.complete(prompt="Hi", deadline_s=10)
    assert type(caught.value) is kind
    cause = caught.value.__cause__
    assert isinstance(cause, grpc.RpcError)
    assert cause.code() is row.grpc
