from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.spec.config import GatewaySettings
from interface.http.server import serve_http
from tests.fakes.backend import MODEL, FakeBackend, delta, finished, reply, script
from tests.interface.conftest import LIMIT_BYTES, Edge

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}


async def send(edge: Edge, data: Any, path: str = CHAT, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    async with edge.session.post(f"{edge.url}{path}", data=data, headers=headers or JSON) as answer:
        assert answer.content_type == "application/json"
        return answer.status, (await answer.json())["error"]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"{", "not JSON"),
        (b"[]", "expected an object, got an array"),
        (b"null", "expected an object, got null"),
        (b'"x"', "expected an object, got a string"),
        (b'{"model": "\xff\xfe"}', "not UTF-8: byte 11"),
        (b"\xef\xbb\xbf", "empty"),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", "not JSON"),
        (b'{"model": NaN}', "NaN"),
        (b'{"model": -Infinity}', "Infinity"),
        (b'{"model": "m", "prompt": "\\ud800"}', "lone surrogate"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "too long"),
        (b"[" * 30_000, "nested too deeply"),
        (b'{"a":' * 10_000 + b"1" + b"}" * 10_000, "nested too deeply"),
    ],
)
async def test_bodies_that_are_no_request(edge: Edge, data: bytes, text: str) -> None:
    for path in (CHAT, "/v1/completions"):
        status, error = await send(edge, data, path)
        assert status == 400
        assert text in error["message"]
        assert error["type"] == "invalid_request_error"
    assert edge.backend.requests == []


async def test_a_surrogate_pair_is_text(edge: Edge) -> None:
    body = b'{"model": "m", "prompt": "\\ud83d\\ude00"}'
    async with edge.session.post(f"{edge.url}/v1/completions", data=body, headers=JSON) as answer:
        assert answer.status == 200
    assert edge.backend.requests[0].prompt == "\N{GRINNING FACE}"


async def test_a_body_that_says_it_is_too_long_is_not_read(edge: Edge) -> None:
    host, _, port = edge.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {10**9}\r\n\r\n"
    writer.write(head.encode())
    answer = await asyncio.wait_for(reader.readuntil(b"}}"), 5)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_too_large"
    writer.close()
    await writer.wait_closed()


async def test_a_chunked_body_is_read_up_to_the_limit_and_no_further(edge: Edge) -> None:
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 16 << 10
            yield b" " * (16 << 10)

    status, error = await asyncio.wait_for(send(edge, endless()), 5)
    assert (status, error["code"]) == (413, "request_too_large")
    assert str(LIMIT_BYTES) in error["message"]


async def test_broken_http_is_an_error_and_not_logged(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    host, _, port = edge.url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    writer.write(head.encode())
    await writer.drain()
    writer.write(b"zz\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    # What is not even HTTP gets aiohttp's own plain answer.
    assert answer.split(b" ")[1] == b"400"
    assert caplog.records == []
    writer.close()
    await writer.wait_closed()


async def test_unknown_paths_and_methods(edge: Edge) -> None:
    assert (await send(edge, b"{}", "/v1/embeddings"))[0] == 404
    async with edge.session.get(f"{edge.url}{CHAT}") as answer:
        assert (answer.status, answer.headers["Allow"]) == (405, "POST")
        assert "POST" in (await answer.json())["error"]["message"]


async def test_a_deadline_already_past(edge: Edge) -> None:
    status, answer = await edge.complete(deadline_s=0)
    assert (status, answer["error"]["code"]) == (504, "deadline_exceeded")
    assert edge.backend.requests == []


async def test_kv_transfer_params_never_get_through(edge: Edge) -> None:
    for value in ({"do_remote_prefill": True}, {}, None):
        for call in (edge.chat, edge.complete):
            status, answer = await call(kv_transfer_params=value)
            assert (status, answer["error"]["param"]) == (400, "kv_transfer_params")
    assert edge.backend.requests == []


async def test_the_requests_id_is_the_headers(edge: Edge) -> None:
    body = {"model": MODEL, "prompt": "Hi"}
    headers = {"X-Request-Id": "from-header"}
    async with edge.session.post(f"{edge.url}/v1/completions", json=body, headers=headers) as answer:
        assert answer.headers["X-Request-Id"] == "from-header"
        assert (await answer.json())["id"] == "cmpl-from-header"
    assert edge.backend.requests[0].request_id == "from-header"


async def test_status_and_health(edge: Edge) -> None:
    async with edge.session.get(f"{edge.url}/v1/status") as answer:
        status = await answer.json()
    assert status["workers"][0]["state"] == "WORKER_STATE_READY"
    assert status["workers"][0]["output_tokens"] == 1 << 40
    assert status["requests"]["finished"] == 3
    assert status["pairs"] == []
    async with edge.session.get(f"{edge.url}/health") as answer:
        assert (answer.status, await answer.json()) == (200, {"status": "ok"})


async def test_a_closed_trace_is_reported(edge: Edge) -> None:
    edge.backend.script = reply(answer=("4", "2"), reasoning=("Hm", "m"), finish="STOP", reasoning_closed=True)
    [choice] = (await edge.chat())[1]["choices"]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ("42", "Hmm")
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", "thinking_budget")
    edge.backend.script = reply(
        answer=("4", "2"), reasoning=("Hm",), finish="STOP", stop_matched="END", reasoning_closed=True
    )
    assert (await edge.chat())[1]["choices"][0]["stop_reason"] == "END"


async def test_cut_off_while_thinking(edge: Edge) -> None:
    edge.backend.script = reply(answer=(), reasoning=("Hm", "m"), finish="LENGTH")
    [choice] = (await edge.chat())[1]["choices"]
    assert choice["message"]["content"] is None
    assert choice["message"]["reasoning_content"] == "Hmm"
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", None)
    [choice] = (await edge.complete())[1]["choices"]
    assert (choice["text"], choice["reasoning_content"]) == ("", "Hmm")


@pytest.mark.parametrize(
    ("stops", "matched", "reported"), [(["7"], "7", "7"), ([], "7", 7), (["END"], "END", "END"), ([], "", None)]
)
async def test_what_stopped_it(edge: Edge, stops: list[str], matched: str, reported: str | int | None) -> None:
    edge.backend.script = script(delta("Hi", finish="STOP", stop_matched=matched), finished())
    [choice] = (await edge.complete(stop=stops))[1]["choices"]
    assert choice["stop_reason"] == reported


async def test_logprobs_of_a_chat(edge: Edge) -> None:
    edge.backend.script = reply(answer=("é", "!"))
    [choice] = (await edge.chat(logprobs=True, top_logprobs=2))[1]["choices"]
    first, second = choice["logprobs"]["content"]
    chosen = {"token": "é", "logprob": -0.5, "bytes": [195, 169]}
    alternative = {"token": "alt0", "logprob": -1.0, "bytes": [97, 108, 116, 48]}
    assert first == {**chosen, "top_logprobs": [chosen, alternative]}
    assert second["token"] == "!"
    [choice] = (await edge.chat(logprobs=True))[1]["choices"]
    assert [item["top_logprobs"] for item in choice["logprobs"]["content"]] == [[], []]
    assert (await edge.chat())[1]["choices"][0]["logprobs"] is None


async def test_logprobs_of_reasoning_stand_beside_those_of_the_content(edge: Edge) -> None:
    edge.backend.script = reply(answer=("4", "2"), reasoning=("Hm", "m"))
    [choice] = (await edge.chat(logprobs=True))[1]["choices"]
    shown = choice["logprobs"]
    assert [item["token"] for item in shown["content"]] == ["4", "2"]
    assert [item["token"] for item in shown["reasoning_content"]] == ["Hm", "m"]
    [choice] = (await edge.complete(logprobs=0))[1]["choices"]
    shown = choice["logprobs"]
    assert (shown["tokens"], shown["text_offset"]) == (["4", "2"], [0, 1])
    assert (shown["reasoning_content"]["tokens"], shown["reasoning_content"]["text_offset"]) == (["Hm", "m"], [0, 2])
    body = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "logprobs": True}
    events = (await edge.stream("/v1/chat/completions", **body))[:-1]
    parts = [json.loads(event[6:])["choices"][0] for event in events]
    assert len(parts) == 4
    for part in parts:
        thinks = "reasoning_content" in part["delta"]
        assert bool(part["logprobs"].get("reasoning_content")) is thinks
        assert bool(part["logprobs"]["content"]) is not thinks


async def test_logprobs_of_a_completion(edge: Edge) -> None:
    [choice] = (await edge.complete(logprobs=2))[1]["choices"]
    expected = {
        "tokens": ["Hel", "lo"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"Hel": -0.5, "alt0": -1.0}, {"lo": -0.5, "alt0": -1.0}],
        "text_offset": [0, 3],
    }
    assert choice["logprobs"] == expected
    body = {"model": MODEL, "prompt": "Hi", "logprobs": 2}
    events = [json.loads(event[6:]) for event in (await edge.stream("/v1/completions", **body))[:-1]]
    parts = [event["choices"][0]["logprobs"] for event in events]
    assert {key: [item for part in parts for item in part[key]] for key in expected} == expected
    [choice] = (await edge.complete(logprobs=0))[1]["choices"]
    assert choice["logprobs"]["top_logprobs"] == [{"Hel": -0.5}, {"lo": -0.5}]


async def test_refusals_are_logged_once_without_the_prompt(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    await edge.complete(prompt="the secret prompt", temperature="the secret prompt", request_id="id-7")
    [record] = [record for record in caplog.records if record.name == "baton.api"]
    assert record.levelno == logging.INFO
    assert "secret" not in record.getMessage()
    assert "temperature" in record.getMessage()


async def test_an_unforeseen_error_reports_nothing(edge: Edge, caplog: pytest.LogCaptureFixture) -> None:
    edge.backend.script = script(KeyError("the secret prompt"))
    body = {"model": MODEL, "prompt": "Hi", "request_id": "id-7"}
    async with edge.session.post(f"{edge.url}/v1/completions", json=body) as answer:
        error = (await answer.json())["error"]
        assert (answer.status, answer.headers["X-Request-Id"]) == (500, "id-7")
    assert error["code"] == "internal_error"
    assert "secret" not in error["message"]
    [record] = [record for record in caplog.records if record.name == "baton.api"]
    assert "id-7" in record.getMessage()
    assert "secret" not in record.getMessage()


async def test_a_taken_port_is_a_config_error(edge: Edge) -> None:
    port = int(edge.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"gateway.http_port={port}"):
        await serve_http(FakeBackend(), GatewaySettings(http_port=port))
