"""Chats as clients send them, recorded: through the HTTP server and the gateway's own checks; answers are scripted.

Two models, as in the list of what failed: a reasoner whose template reads no switch, and one that does not reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import Any

import openai
import pytest
from transformers import PreTrainedTokenizerFast

from baton.v1 import inference_pb2 as pb
from cluster.spec.config import ClusterSpec, parse
from interface.http.server import serve_http
from orchestrator.gateway.metrics import GatewayMetrics
from orchestrator.request.chat_template import ChatTemplate
from orchestrator.request.model_front import ModelFront
from orchestrator.request.prepare import PreparedRequest, prepare
from tests.fakes.backend import FakeBackend, reply
from tests.fakes.tokenizer import MARKERS, byte_tokenizer, front
from tests.interface.conftest import SETTINGS

HELLO: list[Any] = [{"role": "user", "content": "Hi"}]
TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
SPEC = """
model: {path: m, served_name: m, max_model_len_tokens: 65536%s}
pools: {colocated: {replicas: 1}}
"""


@dataclass
class Served(FakeBackend):
    """A backend that has each request checked as the gateway does, before it plays its script."""

    front: ModelFront = field(default_factory=front)
    spec: ClusterSpec = field(default_factory=lambda: parse(SPEC % ""))
    prepared: list[PreparedRequest] = field(default_factory=list)
    client: openai.AsyncOpenAI = field(default_factory=lambda: openai.AsyncOpenAI(api_key="any"))
    metrics: GatewayMetrics = field(default_factory=GatewayMetrics)

    async def generate(self, request: pb.GenerateRequest, sink: object = None) -> AsyncIterator[pb.GenerateResponse]:
        made = prepare(request, self.front, self.spec, now_s=0.0)
        self.prepared.append(made)
        async for event in super().generate(request):
            if event.HasField("finished") and made.thinking_budget_tokens is not None:
                event.finished.usage.thinking_budget_tokens = made.thinking_budget_tokens
            yield event

    async def chat(self, messages: list[Any] = HELLO, **body: Any) -> Any:
        return await self.client.chat.completions.create(model="m", messages=messages, extra_body=body)

    @property
    def prompt(self) -> str:
        tokens = {256: "<think>", 257: "</think>"}
        return "".join(tokens.get(token) or chr(token) for token in self.prepared[-1].prompt_ids)

    def ignored(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for metric in self.metrics.registry.collect():
            for sample in metric.samples:
                if sample.name == "baton_ignored_fields_total":
                    found[sample.labels["field"]] += int(sample.value)
        return found


async def serving(backend: Served, *, reasons: bool, template: str, more: str = "") -> AsyncIterator[Served]:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    tokenizer.chat_template = template
    made = front(markers=MARKERS if reasons else None, max_model_len_tokens=65536)
    backend.front = replace(made, name="m", template=ChatTemplate(tokenizer))
    backend.spec = parse(SPEC % (", reasoning: {}" if reasons else more))
    runner, port = await serve_http(backend, SETTINGS, count_ignored=backend.metrics.count_ignored)
    backend.client = openai.AsyncOpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any", max_retries=0)
    async with backend.client:
        yield backend
    await runner.cleanup()


@pytest.fixture
async def reasoner() -> AsyncIterator[Served]:
    opens = TEMPLATE + "{% if add_generation_prompt %}<think>{% endif %}"
    backend = Served(script=reply(answer=("4", "2"), reasoning=("Hm", "m")))
    async for served in serving(backend, reasons=True, template=opens):
        yield served


@pytest.fixture
async def plain() -> AsyncIterator[Served]:
    async for served in serving(Served(), reasons=False, template=TEMPLATE):
        yield served


# --- rows 1 and 6: what the template is given -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "closed"),
    [
        ({"chat_template_kwargs": {"enable_thinking": False}}, True),
        ({"chat_template_kwargs": {"thinking": True}}, False),
        ({"enable_thinking": False}, True),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": True}}, False),
        ({"separate_reasoning": True, "stream_reasoning": True}, False),
    ],
)
async def test_switches(reasoner: Served, body: dict[str, Any], closed: bool) -> None:
    await reasoner.chat(**body)
    assert reasoner.prompt == "[user]Hi[assistant]<think>" + ("</think>" if closed else "")
    sent = json.loads(reasoner.requests[-1].chat.template_variables_json or "{}")
    assert sent == {
        **{name: body[name] for name in ("enable_thinking",) if name in body},
        **body.get("chat_template_kwargs", {}),
    }


async def test_any_key_reaches_the_template(plain: Served) -> None:
    plain.front.template.tokenizer.chat_template = "{{ messages[0].content }}{{ tone }}"
    await plain.chat(chat_template_kwargs={"tone": "dry"})
    assert plain.prompt == "Hidry"


# --- rows 2, 4 and 5: how much to think -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "budget"),
    [
        ({"reasoning_effort": "minimal"}, 512),
        ({"reasoning_effort": "low"}, 512),
        ({"reasoning_effort": "xhigh"}, 32768),
        ({"reasoning_effort": "max"}, 32768),
        ({"thinking": {"type": "enabled", "budget_tokens": 1024}}, 1024),
        ({"thinking": {"type": "disabled"}}, 0),
        ({"thinking": {"type": "adaptive"}}, None),
        ({"reasoning": {"effort": "low"}}, 512),
        ({"reasoning": {"effort": "low", "summary": "auto"}, "reasoning_effort": "low"}, 512),
        ({"reasoning": {"max_tokens": 500}}, 500),
        ({"reasoning": {"exclude": True}}, None),
        ({"reasoning": {"enabled": False}}, 0),
        ({"reasoning": {"enabled": True}}, None),
        ({"reasoning": {}}, None),
        ({"reasoning_effort": "high", "thinking_token_budget": 64}, 64),
        ({"reasoning_effort": "none", "thinking": {"type": "disabled"}, "enable_thinking": False}, 0),
    ],
    ids=str,
)
async def test_budgets_are_kept_and_stated(reasoner: Served, body: dict[str, Any], budget: int | None) -> None:
    answer = await reasoner.chat(**body)
    assert reasoner.prepared[-1].thinking_budget_tokens == budget
    details = answer.usage.completion_tokens_details.model_dump(exclude_none=True)
    assert details.get("thinking_budget_tokens") == budget
    completion = await reasoner.client.completions.create(model="m", prompt="Hi", extra_body=body)
    assert completion.choices[0].text == "42"
    assert reasoner.prepared[-1].thinking_budget_tokens == budget


@pytest.mark.parametrize(
    ("body", "names"),
    [
        ({"reasoning_effort": "low", "reasoning": {"effort": "high"}}, ("reasoning_effort", "reasoning.effort")),
        ({"reasoning": {"effort": "low", "max_tokens": 9}}, ("reasoning.effort", "reasoning.max_tokens")),
        ({"reasoning": {"enabled": False, "max_tokens": 9}}, ("reasoning.max_tokens", "reasoning.enabled")),
        ({"thinking": {"type": "disabled", "budget_tokens": 9}}, ("thinking.budget_tokens", "thinking.type")),
        ({"thinking": {"type": "enabled", "budget_tokens": 0}}, ("thinking.budget_tokens", "thinking.type")),
        (
            {"thinking": {"type": "enabled", "budget_tokens": 9}, "reasoning_effort": "low"},
            ("reasoning_effort", "thinking.budget_tokens"),
        ),
        ({"reasoning_effort": "none", "thinking_token_budget": 9}, ("reasoning_effort", "thinking_token_budget")),
        ({"reasoning": {"exclude": True}, "include_reasoning": True}, ("include_reasoning", "reasoning.exclude")),
        ({"enable_thinking": False, "reasoning_effort": "high"}, ("enable_thinking", "effort")),
        (
            {"enable_thinking": False, "chat_template_kwargs": {"enable_thinking": True}},
            ("enable_thinking", "chat_template_kwargs.enable_thinking"),
        ),
        (
            {"thinking": {"type": "enabled"}, "chat_template_kwargs": {"thinking": False}},
            ("thinking", "reasoning.enabled"),
        ),
    ],
    ids=str,
)
async def test_contradictions_are_refused_with_a_sentence(
    reasoner: Served, body: dict[str, Any], names: tuple[str, str]
) -> None:
    with pytest.raises(openai.BadRequestError, match="give one of them") as refused:
        await reasoner.chat(**body)
    assert all(name in refused.value.message for name in names)
    assert not reasoner.requests


@pytest.mark.parametrize(
    "body",
    [
        {"reasoning": {"wat": 1}},
        {"reasoning": "low"},
        {"reasoning": {"effort": "huge"}},
        {"reasoning": {"max_tokens": -1}},
        {"thinking": {"type": "a lot"}},
        {"thinking": {}},
        {"thinking": True},
        {"thinking": {"type": "enabled", "wat": 1}},
        {"enable_thinking": "yes"},
        {"include_reasoning": "no"},
        {"separate_reasoning": False},
        {"stream_reasoning": False},
        {"chat_template_kwargs": [1]},
        {"chat_template_kwargs": {"tokenize": True}},
        {"chat_template": "{{ messages }}"},
    ],
    ids=str,
)
async def test_what_cannot_be_kept_is_refused(reasoner: Served, body: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await reasoner.chat(**body)
    assert next(iter(body)) in (refused.value.param or "")


# --- row 3: a model that does not reason ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        {"reasoning_effort": "low"},
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"reasoning": {"enabled": True}},
    ],
)
async def test_a_model_that_does_not_reason_refuses_as_openai_does(plain: Served, body: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="does not reason") as refused:
        await plain.chat(**body)
    assert refused.value.param == "reasoning"
    plain.spec = parse(SPEC % ", accept_reasoning_effort: true")
    assert (await plain.chat(**body)).choices[0].message.content == "Hello"


@pytest.mark.parametrize(
    "body",
    [
        {"reasoning_effort": "none"},
        {"reasoning": {"enabled": False, "exclude": True}},
        {"thinking": {"type": "disabled"}},
        {"enable_thinking": False},
        {"include_reasoning": False},
    ],
)
async def test_it_takes_what_asks_for_none(plain: Served, body: dict[str, Any]) -> None:
    assert (await plain.chat(**body)).choices[0].message.content == "Hello"
    assert plain.prompt == "[user]Hi[assistant]"


# --- row 6: reasoning left out --------------------------------------------------------------------------------------

LEFT_OUT = [{"include_reasoning": False}, {"reasoning": {"exclude": True}}]


@pytest.mark.parametrize("body", LEFT_OUT)
async def test_reasoning_is_left_out(reasoner: Served, body: dict[str, Any]) -> None:
    answer = await reasoner.client.chat.completions.create(
        model="m", messages=HELLO, logprobs=True, extra_body={**body, "return_token_ids": True}
    )
    choice = answer.choices[0].model_dump()
    assert choice["message"]["content"] == "42"
    assert not {"reasoning", "reasoning_content"} & choice["message"].keys()
    assert "reasoning_content" not in choice["logprobs"]
    assert len(choice["logprobs"]["content"]) == len(choice["token_ids"]) == 2
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2
    completion = await reasoner.client.completions.create(model="m", prompt="Hi", extra_body=body)
    assert "reasoning" not in completion.choices[0].model_dump()


@pytest.mark.parametrize("body", LEFT_OUT)
@pytest.mark.parametrize("more", [{}, {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}])
async def test_reasoning_is_left_out_of_a_stream(reasoner: Served, body: dict[str, Any], more: dict[str, Any]) -> None:
    stream = await reasoner.client.chat.completions.create(
        model="m", messages=HELLO, stream=True, extra_body={**body, **more}
    )
    chunks = [chunk.model_dump() async for chunk in stream]
    assert "Hm" not in json.dumps(chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks if chunk["choices"]]
    # The first chunk is there before the answer is.
    assert (deltas[0]["role"], deltas[0]["content"]) == ("assistant", "")
    assert "".join(delta["content"] for delta in deltas) == "42"
    if more:
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == [1, 2, 3, 4, 4]


async def test_a_trace_that_is_left_out_and_cut_off_leaves_no_answer(reasoner: Served) -> None:
    reasoner.script = reply(answer=(), reasoning=("Hm", "m"), finish="LENGTH")
    answer = await reasoner.chat(include_reasoning=False)
    assert (answer.choices[0].message.content, answer.choices[0].finish_reason) == (None, "length")
    stream = await reasoner.client.chat.completions.create(
        model="m", messages=HELLO, stream=True, extra_body={"include_reasoning": False}
    )
    chunks = [chunk.choices[0] async for chunk in stream]
    assert [chunk.finish_reason for chunk in chunks] == [None, "length"]
    assert not any(chunk.delta.content for chunk in chunks)


async def test_a_completions_echo_comes_before_reasoning_that_is_left_out(reasoner: Served) -> None:
    stream = await reasoner.client.completions.create(
        model="m", prompt="Hi", echo=True, stream=True, extra_body={"include_reasoning": False}
    )
    assert [chunk.choices[0].text async for chunk in stream] == ["Hi", "4", "2"]


# --- row 9: tools ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "result", ["12 C", None, [], [{"type": "text", "text": "12"}, {"type": "input_text", "text": "C"}]]
)
async def test_a_call_of_a_tool_and_its_result(plain: Served, result: Any) -> None:
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": result},
    ]
    await plain.chat(messages, tools=[{"type": "function", "function": {"name": "weather"}}])
    shown = {"12 C": "12 C", "None": "", "[]": ""}.get(str(result), "12\nC")
    assert plain.prompt == f"[user]Hi[assistant]weather(Ulm)[tool]{shown}[assistant]"


async def test_a_developer_speaks_as_the_system(plain: Served) -> None:
    await plain.chat([{"role": "developer", "content": "Be brief"}, *HELLO])
    assert plain.prompt == "[system]Be brief[user]Hi[assistant]"


async def test_earlier_reasoning_goes_to_the_template(reasoner: Served) -> None:
    answer = await reasoner.chat()
    await reasoner.chat([*HELLO, answer.choices[0].message.model_dump(), *HELLO])
    messages = reasoner.requests[-1].chat.messages
    assert [(message.content, message.reasoning) for message in messages] == [("Hi", ""), ("42", "Hmm"), ("Hi", "")]


# --- row 10: what is harmless ---------------------------------------------------------------------------------------


async def test_harmless_fields_pass_and_are_counted(plain: Served) -> None:
    cached = {"type": "ephemeral"}
    parts = [
        {"type": "text", "text": "H", "cache_control": cached, "x_mine": 1},
        {"type": "input_text", "text": "i", "cache_control": cached},
    ]
    messages = [{"role": "user", "id": "msg_1", "cache_control": cached, "X-Vendor": {"a": 1}, "content": parts}]
    more = {"metadata": {"a": "b"}, "x_one": 1, "x-two": 2, "provider": {"order": ["a"]}, "store": None}
    await plain.chat(messages, **more)
    assert plain.prompt == "[user]H\ni[assistant]"
    assert plain.ignored() == {
        "messages.id": 1,
        "messages.cache_control": 1,
        "messages.x-*": 1,
        "messages.content.cache_control": 1,
        "messages.content.x-*": 1,
        "metadata": 1,
        "x-*": 1,
        "provider": 1,
    }
    await plain.chat(messages)
    assert plain.ignored()["messages.id"] == 2
    assert plain.ignored()["metadata"] == 1


@pytest.mark.parametrize(
    ("message", "more"),
    [
        ({"role": "user", "content": "Hi", "colour": "red"}, {}),
        ({"role": "user", "content": [{"type": "text", "text": "Hi", "colour": "red"}]}, {}),
        ({"role": "user", "content": None}, {}),
        ({"role": "assistant", "content": None, "tool_calls": ["f"]}, {}),
        ({"role": "user", "content": "Hi", "reasoning": {"a": 1}}, {}),
        ({"role": "user", "content": "Hi"}, {"colour": "red"}),
        ({"role": "user", "content": "Hi"}, {"documents": [{"text": "a"}]}),
    ],
)
async def test_a_field_that_might_change_the_answer_is_refused(
    plain: Served, message: dict[str, Any], more: dict[str, Any]
) -> None:
    with pytest.raises(openai.BadRequestError):
        await plain.chat([message], **more)
    assert not plain.requests


# --- row 17: the final message --------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [{}, {"add_generation_prompt": False}])
async def test_the_final_message_is_continued(plain: Served, more: dict[str, Any]) -> None:
    messages = [*HELLO, {"role": "assistant", "content": "The answer"}]
    await plain.chat(messages, continue_final_message=True, **more)
    assert plain.prompt == "[user]Hi[assistant]The answer"


async def test_no_turn_is_begun_where_none_is_wanted(plain: Served) -> None:
    await plain.chat(add_generation_prompt=False)
    assert plain.prompt == "[user]Hi"
    with pytest.raises(openai.BadRequestError, match="give one of them"):
        await plain.chat(add_generation_prompt=True, continue_final_message=True)


@pytest.mark.parametrize(
    "body",
    [{"chat_template_kwargs": {"a": 1}}, {"continue_final_message": True}, {"add_generation_prompt": True}],
)
async def test_a_completion_has_no_template(plain: Served, body: dict[str, Any]) -> None:
    with pytest.raises(openai.BadRequestError, match="is for chats"):
        await plain.client.completions.create(model="m", prompt="Hi", extra_body=body)
