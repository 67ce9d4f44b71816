"""The OpenAPI document is what the server takes, and no request that it allows or forbids makes the server fail."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from cluster.errors import InvalidRequest
from cluster.spec.config import GatewaySettings
from interface.authentication import Authentication
from interface.http.openapi import DOCUMENT, document
from interface.http.server import HttpServer, serve_http
from scripts.generate_openapi import document as generated
from scripts.openapi_bodies import BODIES
from tests.fakes.backend import FakeBackend
from tests.fakes.live_cluster import cluster_of
from tests.interface.conftest import Edge

CASES = int(os.environ.get("BATON_HTTP_CASES", "80"))
"""Requests in all; 5,000 by hand before a release."""


def properties(path: str) -> dict[str, Any]:
    body = generated()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    found: dict[str, Any] = body["properties"]
    return found


def test_the_file_is_what_the_readers_take() -> None:
    assert json.loads(DOCUMENT.read_text()) == generated(), "run `make openapi`"


async def test_it_is_served_with_the_version(edge: Edge) -> None:
    async with edge.session.get(f"{edge.url}/openapi.json") as reply:
        assert await reply.json() == json.loads(document("0"))


def test_it_has_every_path_and_method_and_no_other() -> None:
    app = HttpServer(FakeBackend(), GatewaySettings(), Authentication()).app()
    served = {
        (re.sub(r"{(\w+)(:[^{}]*)?}", r"{\1}", route.resource.canonical).rstrip("/"), route.method.lower())
        for route in app.router.routes()
        if route.resource is not None and route.method != "HEAD"
    }
    listed = {(path, method) for path, item in generated()["paths"].items() for method in item}
    assert served == listed


@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_body_may_have_the_fields_of_the_document_alone(path: str) -> None:
    """Null counts as absent, so every field of the document may be null beside a sample, and no other may be there."""
    body = BODIES[path]
    sample = body.samples[0]
    for name in properties(path).keys() - sample.keys() - {"kv_transfer_params"}:
        body.read({**sample, name: None})
    with pytest.raises(InvalidRequest, match="unknown field"):
        body.read({**sample, "no_such_field": 1})
    for name in body.required:
        with pytest.raises(InvalidRequest):
            body.read({key: value for key, value in sample.items() if key != name})


@pytest.mark.parametrize("path", sorted(BODIES))
def test_every_sample_is_taken(path: str) -> None:
    for sample in BODIES[path].samples:
        BODIES[path].read(sample)


VALUES: tuple[Any, ...] = (None, True, 0, -1, 1.5, 1e300, "x", [], [[]], [{}], [1], ["x"], {}, {"type": []}, {"x": {}})


@pytest.mark.parametrize("path", sorted(BODIES))
def test_a_field_with_any_value_is_taken_or_refused(path: str) -> None:
    """Whatever kind of value: a list in place of a name raised another error, which is the server's failure."""
    body = BODIES[path]
    for name in properties(path):
        for value in VALUES:
            with contextlib.suppress(InvalidRequest):
                body.read({**body.samples[0], name: value})


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The HTTP server over a real gateway with fake engines, in a thread of its own."""
    loop = asyncio.new_event_loop()
    stop, ready, urls = asyncio.Event(), threading.Event(), []

    async def serve() -> None:
        async with cluster_of("prefill-0", "decode-0") as cluster:
            runner, port = await serve_http(cluster.gateway, GatewaySettings(http_port=0))
            urls.append(f"http://127.0.0.1:{port}")
            ready.set()
            await stop.wait()
            await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    assert ready.wait(20)
    yield urls[0]
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    loop.close()


def test_no_request_makes_the_server_fail(served: str) -> None:
    """Requests that the document allows, and others close to them, each checked against what it says of the reply."""
    schemathesis = pytest.importorskip("schemathesis", reason="in the extra `clients`")
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks = [not_a_server_error, content_type_conformance, response_schema_conformance, status_code_conformance]
    tree = generated()
    for item in tree["paths"].values():
        for operation in item.values():
            for content in operation.get("requestBody", {}).get("content", {}).values():
                fields = content["schema"]["properties"]
                fields["model"] = {"enum": ["fake", "fake", "other"]}
    schema = schemathesis.openapi.from_dict(tree)
    operations = [result.ok() for result in schema.get_all_operations()]
    weights = [8 if operation.body else 1 for operation in operations]
    seen = 0
    for operation, weight in zip(operations, weights, strict=True):
        for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
            if mode is schemathesis.GenerationMode.NEGATIVE and not operation.body:
                continue

            @settings(
                max_examples=max(1, CASES * weight // sum(weights) // 2),
                deadline=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(case=operation.as_strategy(generation_mode=mode))
            def check(case: Any) -> None:
                nonlocal seen
                seen += 1
                response = case.call(base_url=served, timeout=30)
                if response.status_code == 504 and "deadline_s" in case.body:
                    return  # a deadline that has passed, as the body asks for: no failure of the server
                case.validate_response(response, checks=checks)

            check()
    print(f"{seen} requests")
    assert seen >= CASES // 4
