"""Whatever comes, the answer is a valid reply or a proper JSON error, and the server lives on."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from baton.v1 import inference_pb2
from interface.http.known import HARMLESS, REFUSED
from interface.http.server import serve_http
from tests.fakes.backend import FakeBackend, reply
from tests.interface.conftest import SETTINGS

PATHS = ("/v1/chat/completions", "/v1/completions")
NAMES = sorted(
    {
        field
        for cls in (inference_pb2.Sampling, inference_pb2.GenerateRequest)
        for field in cls.DESCRIPTOR.fields_by_name
    }
    | REFUSED.keys()
    | HARMLESS
    | {"messages", "stream", "stream_options", "top_logprobs", "max_completion_tokens", "echo", "user", "tools"}
    | {"tool_choice", "response_format", "structured_outputs", "guided_json", "guided_choice", "return_token_ids"}
    | {"chat_template_kwargs", "continue_final_message", "add_generation_prompt", "enable_thinking", "thinking"}
    | {"reasoning", "include_reasoning", "cache_control", "x-any"}
    | {"thinking_token_budget", "reasoning_effort", "session_id", "kv_transfer_params", "stop_token_ids"}
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text(st.characters(categories=["Cs"]), min_size=1, max_size=2)
    | st.sampled_from(["text", "user", "role", "type", "auto", "json_schema", "include_usage", "low"])
)
keys = st.text(max_size=5) | st.sampled_from(
    [
        "effort",
        "max_tokens",
        "enabled",
        "id",
        "budget_tokens",
        "role",
        "content",
        "type",
        "text",
        "json",
        "regex",
        "include_usage",
        "1",
    ]
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
)
messages = st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text() | values}), max_size=3)
near_misses = st.builds(
    lambda good, more: {**good, **more},
    st.fixed_dictionaries({"model": st.just("m"), "prompt": st.text() | values, "messages": messages}),
    st.dictionaries(st.sampled_from(NAMES), values, max_size=4),
)
one_field = st.tuples(st.sampled_from(NAMES), values)


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """The server in a thread of its own, because hypothesis runs its examples synchronously."""
    loop = asyncio.new_event_loop()
    runner, port = loop.run_until_complete(serve_http(FakeBackend(script=reply()), SETTINGS))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield port
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


def check(port: int, path: str, body: bytes) -> int:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    if answer.status != 200:
        assert answer.status in {400, 404, 413, 504}, data
        error = json.loads(data)["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    elif answer.headers["Content-Type"].startswith("text/event-stream"):
        assert data.endswith(b"data: [DONE]\n\n")
        for event in data.removesuffix(b"\n\n").split(b"\n\n")[:-1]:
            assert "choices" in json.loads(event.removeprefix(b"data: "))
    else:
        assert json.loads(data)["choices"]
    return answer.status


fuzz = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(path=st.sampled_from(PATHS), body=st.binary() | st.text().map(str.encode))
def test_any_bytes(port: int, path: str, body: bytes) -> None:
    check(port, path, body)


@fuzz
@given(path=st.sampled_from(PATHS), tree=values | near_misses)
def test_any_json(port: int, path: str, tree: Any) -> None:
    check(port, path, json.dumps(tree).encode())


@fuzz
@given(path=st.sampled_from(PATHS), field=one_field)
def test_any_one_field_of_a_good_request(port: int, path: str, field: tuple[str, Any]) -> None:
    good: dict[str, Any] = {"model": "m"}
    good |= {"messages": [{"role": "user", "content": "Hi"}]} if "chat" in path else {"prompt": "Hi"}
    check(port, path, json.dumps(good | dict([field])).encode())
    assert check(port, path, json.dumps(good).encode()) == 200
