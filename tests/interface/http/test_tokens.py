"""`/tokenize` and `/detokenize`, as vLLM's server answers them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from cluster.errors import InvalidRequest
from cluster.spec.config import parse
from cluster.spec.model_settings import ReasoningSettings
from interface.http.messages.request import read_count_call
from interface.http.server import serve_http
from interface.http.tokens import read_detokenize_call, read_tokenize_call
from orchestrator.gateway import tokenization
from orchestrator.gateway.tokenization import Tokenization
from orchestrator.request.chat_template import ChatTemplate
from tests.fakes.backend import MODEL
from tests.fakes.live_cluster import gateway_of
from tests.fakes.tokenizer import END_THINK, MARKERS, byte_tokenizer, front
from tests.interface.conftest import SETTINGS, Edge

SPEC = parse("""
model: {path: m, served_name: fake, max_model_len_tokens: 1024}
pools: {prefill: {replicas: 1}, decode: {replicas: 1}}
""")
HI = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """A session to a real gateway without workers: none is needed."""
    gateway = gateway_of(SPEC, front())
    runner, port = await serve_http(gateway, SETTINGS)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        yield session
    await runner.cleanup()
    await gateway.close()


async def post(session: aiohttp.ClientSession, path: str, body: Any) -> tuple[int, Any]:
    async with session.post(path, json=body) as answer:
        return answer.status, await answer.json()


async def test_a_prompt(session: aiohttp.ClientSession) -> None:
    expected = {"count": 3, "max_model_len": 1024, "tokens": [72, 105, 257], "token_strs": None}
    for more in ({}, {"model": "fake"}, {"add_special_tokens": False}, {"return_token_strs": False}):
        assert await post(session, "/tokenize", {"prompt": "Hi</think>", **more}) == (200, expected)
    _, answer = await post(session, "/tokenize", {"prompt": "a b", "return_token_strs": True})
    assert (answer["tokens"], answer["token_strs"]) == ([97, 32, 98], ["a", "Ġ", "b"])
    _, answer = await post(session, "/tokenize", {"prompt": ""})
    assert (answer["count"], answer["tokens"]) == (0, [])


async def test_messages_are_rendered_as_for_a_chat(session: aiohttp.ClientSession) -> None:
    _, answer = await post(session, "/tokenize", {"messages": HI})
    assert bytes(answer["tokens"]).decode() == "user:Hi;assistant:"
    _, answer = await post(session, "/tokenize", {"model": "fake", "messages": HI, "add_generation_prompt": False})
    assert bytes(answer["tokens"]).decode() == "user:Hi;"
    assert answer["count"] == 8


async def test_what_a_generation_takes_for_its_template_is_taken(edge: Edge) -> None:
    body = {"messages": HI, "continue_final_message": True, "chat_template_kwargs": {"a": 1}, "x-trace": "t"}
    assert (await edge.post("/tokenize", body))[1]["count"] == 3
    chat = read_tokenize_call(body).request.chat
    assert chat.continue_final_message
    assert chat.template_variables_json == '{"a": 1}'


async def test_a_text_that_is_too_long_for_the_model_is_counted(session: aiohttp.ClientSession) -> None:
    _, answer = await post(session, "/tokenize", {"prompt": "x" * 60_000})
    assert answer["count"] == 60_000


async def test_tokens_to_text(session: aiohttp.ClientSession) -> None:
    for more in ({}, {"model": "fake"}):
        assert await post(session, "/detokenize", {"tokens": [72, 105, END_THINK], **more}) == (
            200,
            {"prompt": "Hi</think>"},
        )
    assert await post(session, "/detokenize", {"tokens": []}) == (200, {"prompt": ""})


@pytest.mark.parametrize(
    ("path", "body", "status", "text"),
    [
        ("/tokenize", {}, 400, "prompt: missing"),
        ("/tokenize", {"prompt": ["a"]}, 400, "prompt: expected a string"),
        ("/tokenize", {"messages": []}, 400, "messages: expected at least one"),
        ("/tokenize", {"messages": [{"role": "refused", "content": ""}]}, 400, "roles must alternate"),
        ("/tokenize", {"messages": HI, "add_special_tokens": True}, 400, "add_special_tokens"),
        ("/tokenize", {"messages": HI, "prompt": "Hi"}, 400, "prompt: unknown field"),
        ("/tokenize", {"prompt": "Hi", "wat": 1}, 400, "wat: unknown field"),
        ("/tokenize", {"prompt": "Hi", "model": "other"}, 404, "no model 'other' here"),
        ("/tokenize", [], 400, "expected an object"),
        ("/detokenize", {}, 400, "tokens: missing"),
        ("/detokenize", {"tokens": ["a"]}, 400, "tokens: expected an array of token ids"),
        ("/detokenize", {"tokens": [-1]}, 400, "tokens: expected an array of token ids"),
        ("/detokenize", {"tokens": [1, 258]}, 400, "id 258 is out of the vocabulary (0 to 257)"),
        ("/detokenize", {"tokens": [2**40]}, 400, "tokens"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "no model 'other' here"),
    ],
)
async def test_what_is_refused(session: aiohttp.ClientSession, path: str, body: Any, status: int, text: str) -> None:
    found, answer = await post(session, path, body)
    assert found == status
    assert text in answer["error"]["message"]


async def test_no_worker_is_asked(edge: Edge) -> None:
    status, answer = await edge.post("/tokenize", {"model": MODEL, "prompt": "Hi", "return_token_strs": True})
    assert status == 200
    assert answer == {"count": 3, "max_model_len": 2048, "tokens": [256, 72, 105], "token_strs": ["<s>", "H", "i"]}
    assert (await edge.post("/detokenize/", {"tokens": [72]}))[1] == {"prompt": "H"}
    assert edge.backend.requests == []


async def test_long_texts_are_done_in_threads_and_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[int] = []
    in_thread = tokenization.asyncio.to_thread

    async def to_thread(work: Any) -> Any:
        threads.append(1)
        return await in_thread(work)

    monkeypatch.setattr(tokenization.asyncio, "to_thread", to_thread)
    owner = Tokenization(front())
    text = "é" * tokenization.ON_LOOP_ITEMS
    ids = await owner.tokenize(read_tokenize_call({"prompt": text}).request, special_tokens=True)
    assert await owner.detokenize(ids) == text
    assert len(threads) == 2
    assert await owner.detokenize(ids[:2]) == "é"
    assert len(threads) == 2


async def test_a_chats_template_gets_what_a_generation_gives_it() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    tokenizer.chat_template = "{{ messages[0].content }}{{ enable_thinking }}{{ reasoning_effort }}{{ tone }}"
    owner = Tokenization(replace(front(markers=MARKERS), template=ChatTemplate(tokenizer)), ReasoningSettings())
    messages = [{"role": "user", "content": "Hi"}]
    tokenized = read_tokenize_call({"messages": messages, "chat_template_kwargs": {"tone": "!"}}).request
    assert bytes(await owner.tokenize(tokenized, special_tokens=True)) == b"Hi!"
    counted = read_count_call({"model": "fake", "messages": messages, "output_config": {"effort": "low"}})
    assert bytes(await owner.tokenize(counted, special_tokens=True)) == b"HiTruelow"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.floats(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)
NAMES = ["model", "prompt", "messages", "tokens", "tools", "add_special_tokens", "return_token_strs", "suffix"]


@given(tree=values | st.dictionaries(st.sampled_from(NAMES), values, max_size=5))
def test_any_json_is_read_or_refused(tree: Any) -> None:
    for read in (read_tokenize_call, read_detokenize_call):
        try:
            read(tree)
        except InvalidRequest as error:
            assert error.message
