"""Chats as text: by real templates through transformers, over a tokenizer of bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from baton.v1 import inference_pb2 as pb
from cluster.errors import ConfigError, InvalidRequest
from cluster.spec.config import parse
from orchestrator.request.chat_template import ChatTemplate, read_template_file
from orchestrator.request.model_front import ModelFront, load_model_front
from orchestrator.request.prepare import PreparedRequest, prepare
from orchestrator.request.resume import fingerprint
from tests.fakes.tokenizer import END_THINK, MARKERS, THINK, byte_tokenizer, front

SPEC = parse("""
model: {path: m, served_name: fake, max_model_len_tokens: 1024, reasoning: {}}
pools: {colocated: {replicas: 1}}
""")
TURNS = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}"
    "{% if not loop.last or m.role != 'assistant' %};{% endif %}{% endfor %}"
)
PLAIN = TURNS + "{% if add_generation_prompt %}[assistant]{% endif %}"
SWITCHED = (
    PLAIN + "{% if add_generation_prompt and enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}"
)
OPTED_IN = PLAIN + "{% if add_generation_prompt %}{% if thinking %}<think>{% else %}</think>{% endif %}{% endif %}"
OPENS = PLAIN + "{% if add_generation_prompt %}<think>{% endif %}"
TOOLS = (
    "{% for m in messages %}{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments | tojson }}{% endfor %}{{ m.content }}{% endfor %}"
)
USER = pb.ChatMessage(role="user", content="hi")


def model(template: str, **fields: Any) -> ModelFront:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer())
    tokenizer.chat_template = template
    return replace(front(markers=MARKERS), template=ChatTemplate(tokenizer), **fields)


def ready(template: str, *messages: pb.ChatMessage, reasoning: Any = None, **chat: Any) -> PreparedRequest:
    if "variables" in chat:
        chat["template_variables_json"] = json.dumps(chat.pop("variables"))
    request = pb.GenerateRequest(chat=pb.Chat(messages=messages or [USER], **chat), reasoning=reasoning)
    return prepare(request, model(template), SPEC, now_s=0.0)


def text(made: PreparedRequest) -> str:
    names = {THINK: "<think>", END_THINK: "</think>"}
    return "".join(names.get(token) or chr(token) for token in made.prompt_ids)


def test_any_key_that_the_template_reads_reaches_it() -> None:
    made = ready(
        "{{ messages[0].content }} {{ tone }} {{ tags | join('+') }}", variables={"tone": "dry", "tags": [1, 2]}
    )
    assert text(made) == "hi dry 1+2"
    assert text(ready(PLAIN, variables={"nobody": "reads it"})) == "[user]hi;[assistant]"
    shown = "{{ messages[0].content }}{% for d in documents %}{{ d.title }}{% endfor %}"
    assert text(ready(shown, variables={"documents": [{"title": "A", "text": "a"}]})) == "hiA"


@pytest.mark.parametrize(
    "name",
    ["messages", "tools", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message", "self"],
)
def test_names_that_rendering_uses_are_refused(name: str) -> None:
    with pytest.raises(InvalidRequest, match="may not be set here") as refused:
        ready(PLAIN, variables={name: True})
    assert refused.value.field == f"chat_template_kwargs.{name}"


@pytest.mark.parametrize("given_text", ["{", "[]", "3"])
def test_variables_are_an_object(given_text: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ready(PLAIN, template_variables_json=given_text)
    assert refused.value.field == "template_variables_json"


OFF: list[dict[str, Any]] = [
    {"variables": {"enable_thinking": False}},
    {"variables": {"thinking": False}},
    {"reasoning": pb.Reasoning(effort=pb.EFFORT_NONE)},
    {"reasoning": pb.Reasoning(budget_tokens=0)},
    {"reasoning": pb.Reasoning(enabled=False)},
]
ON: list[dict[str, Any]] = [
    {"variables": {"enable_thinking": True}},
    {"variables": {"thinking": True}},
    {"reasoning": pb.Reasoning(effort=pb.EFFORT_LOW)},
    {"reasoning": pb.Reasoning(budget_tokens=50)},
    {"reasoning": pb.Reasoning(enabled=True)},
]


@pytest.mark.parametrize(
    ("template", "behind"),
    [
        (SWITCHED, "<think>\n\n</think>\n\n"),
        (OPTED_IN, "</think>"),
        (OPENS, "<think></think>"),
        (PLAIN, "<think></think>"),
    ],
    ids=["its own switch", "opts in", "always opens", "knows nothing of it"],
)
@pytest.mark.parametrize("way", OFF, ids=str)
def test_off_is_off_whatever_the_template_has_for_it(template: str, behind: str, way: dict[str, Any]) -> None:
    made = ready(template, **way)
    assert text(made) == f"[user]hi;[assistant]{behind}"
    assert (made.reasoning_closed, made.reasoning_limit_tokens, made.thinking_budget_tokens) == (True, 0, 0)
    assert made.request_class == "/none"


@pytest.mark.parametrize(("template", "behind"), [(SWITCHED, ""), (OPTED_IN, "<think>"), (OPENS, "<think>")])
@pytest.mark.parametrize("way", ON, ids=str)
def test_on_is_on(template: str, behind: str, way: dict[str, Any]) -> None:
    made = ready(template, **way)
    assert text(made) == f"[user]hi;[assistant]{behind}"
    assert not made.reasoning_closed


def test_a_template_that_opts_in_is_left_alone_where_nothing_is_said() -> None:
    assert text(ready(OPTED_IN)) == "[user]hi;[assistant]</think>"


def test_a_template_is_given_the_effort_that_holds() -> None:
    reads = "{{ messages[0].content }} {{ reasoning_effort }}"
    assert text(ready(reads, reasoning=pb.Reasoning(effort=pb.EFFORT_MAX))) == "hi high"
    named = {"reasoning": pb.Reasoning(effort=pb.EFFORT_LOW), "variables": {"reasoning_effort": "mine"}}
    assert text(ready(reads, **named)) == "hi mine"


def test_the_final_message_is_continued() -> None:
    turns = [USER, pb.ChatMessage(role="assistant", content="The answer is ")]
    assert text(ready(PLAIN, *turns, continue_final_message=True)) == "[user]hi;[assistant]The answer is "
    assert text(ready(PLAIN, *turns, continue_final_message=True, add_generation_prompt=False)).endswith("is ")
    with pytest.raises(InvalidRequest, match="give one") as refused:
        ready(PLAIN, *turns, continue_final_message=True, add_generation_prompt=True)
    assert refused.value.field == "continue_final_message"


def test_an_answer_that_goes_on_is_not_broken_by_markers() -> None:
    none = pb.Reasoning(effort=pb.EFFORT_NONE)
    answer = pb.ChatMessage(role="assistant", content="4")
    made = ready(PLAIN, USER, answer, continue_final_message=True, reasoning=none)
    assert text(made) == "[user]hi;[assistant]4"
    thought = pb.ChatMessage(role="assistant", content="<think>2 and 2")
    made = ready(PLAIN, USER, thought, continue_final_message=True, reasoning=none)
    assert text(made) == "[user]hi;[assistant]<think>2 and 2</think>"


def test_a_template_that_leaves_the_final_message_out_cannot_continue_it() -> None:
    secret = pb.ChatMessage(role="assistant", content="x" * 900)
    with pytest.raises(InvalidRequest, match="continue_final_message is set") as refused:
        ready("{{ messages[0].content }}", USER, secret, continue_final_message=True)
    assert len(refused.value.message) < 400


def test_a_developer_is_a_system_message_where_the_template_knows_none() -> None:
    turns = [
        pb.ChatMessage(role="system", content="a"),
        USER,
        pb.ChatMessage(role="developer", content="b"),
        pb.ChatMessage(role="developer", content=""),
    ]
    assert text(ready(PLAIN, *turns)) == "[system]a\n\nb;[user]hi;[assistant]"
    knows = "{# developer #}" + PLAIN
    assert text(ready(knows, *turns)) == "[system]a;[user]hi;[developer]b;[developer];[assistant]"
    # Without one, system messages stay where they are.
    assert text(ready(PLAIN, USER, turns[0])) == "[user]hi;[system]a;[assistant]"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [('{"a": [1]}', '{"a": [1]}'), ({"a": 1}, '{"a": 1}'), ("", "{}"), (None, "{}"), ("{", "{}"), ("[1]", "{}")],
)
def test_arguments_of_tool_calls_are_objects(arguments: Any, shown: str) -> None:
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": arguments}}]
    turn = pb.ChatMessage(role="assistant", tool_calls_json=json.dumps(calls), reasoning="Hm")
    result = pb.ChatMessage(role="tool", tool_call_id="1")
    assert text(ready(TOOLS, USER, turn, result)) == f"hi(Hm){shown}"


@pytest.mark.parametrize("calls", ["{}", "[1]", '["f"]'])
def test_tool_calls_of_another_form_are_refused(calls: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        ready(TOOLS, USER, pb.ChatMessage(role="assistant", tool_calls_json=calls))
    assert refused.value.field == "messages[1].tool_calls_json"


def test_a_template_cannot_make_a_prompt_without_end() -> None:
    with pytest.raises(InvalidRequest, match="longer than the model can take"):
        ready("{{ messages[0].content * 40000 }}")


def test_a_resumed_chat_is_rendered_as_before() -> None:
    """Else the caller's tokens would go on behind another prompt."""
    chat = pb.Chat(
        messages=[USER, pb.ChatMessage(role="assistant", content="So ")],
        continue_final_message=True,
        template_variables_json='{"enable_thinking": true, "tone": "dry"}',
    )
    request = pb.GenerateRequest(chat=chat, reasoning=pb.Reasoning(effort=pb.EFFORT_XHIGH))
    toned = PLAIN + "{{ tone }}"
    first = prepare(request, model(toned), SPEC, now_s=0.0)
    request.resume.CopyFrom(pb.Resume(token_ids=[7, 8], prompt_fingerprint=fingerprint(first.prompt_ids)))
    again = prepare(request, model(toned), SPEC, now_s=5.0)
    assert again.prompt_ids == first.prompt_ids
    assert again.thinking_budget_tokens == first.thinking_budget_tokens == 1024
    request.chat.ClearField("continue_final_message")
    with pytest.raises(InvalidRequest, match="other tokens"):
        prepare(request, model(toned), SPEC, now_s=5.0)


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from([PLAIN, SWITCHED, OPTED_IN, OPENS]),
    st.lists(
        st.tuples(st.sampled_from(["system", "developer", "user", "assistant", "tool"]), st.text("ab ", max_size=6))
    ),
    st.dictionaries(st.sampled_from(["enable_thinking", "thinking", "tone"]), st.booleans() | st.text(max_size=3)),
    st.builds(pb.Reasoning, effort=st.integers(0, 7), enabled=st.none() | st.booleans()),
    st.booleans(),
)
def test_off_never_leaves_a_trace_open(
    template: str, turns: list[tuple[str, str]], variables: dict[str, Any], reasoning: pb.Reasoning, goes_on: bool
) -> None:
    messages = [pb.ChatMessage(role=role, content=content) for role, content in turns]
    try:
        made = ready(template, *messages, variables=variables, reasoning=reasoning, continue_final_message=goes_on)
    except InvalidRequest:
        return
    if made.reasoning_closed:
        assert text(made).rfind("</think>") >= text(made).rfind("<think>")
    off = any(variables.get(name) is False for name in ("enable_thinking", "thinking"))
    assert made.reasoning_closed or not off


# --- the spec's template file ---------------------------------------------------------------------------------------


def test_a_file_replaces_the_models_template(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.jinja").write_text("mine: {{ messages[0].content }}")
    loaded = read_template_file("mine.jinja", tmp_path)
    base = model(PLAIN)
    mine = replace(base, template=replace(base.template, file_text=loaded))
    made = prepare(pb.GenerateRequest(chat=pb.Chat(messages=[USER])), mine, SPEC, now_s=0.0)
    assert text(made) == "mine: hi"
    monkeypatch.setenv("WHERE", str(tmp_path))
    assert read_template_file("${WHERE}/mine.jinja", Path("/nowhere")) == loaded
    assert read_template_file(None, tmp_path) is None
    without = replace(mine, template=ChatTemplate(PreTrainedTokenizerFast(tokenizer_object=byte_tokenizer()), loaded))
    assert text(prepare(pb.GenerateRequest(chat=pb.Chat(messages=[USER])), without, SPEC, now_s=0.0)) == "mine: hi"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "cannot read .*absent.jinja: No such file"),
        (b"{{ messages }\n", "line 1 of"),
        (b"a\n{% if messages %}", "line 2 of"),
        (b"\xff", "not UTF-8"),
        (b"Hello", "does not read `messages`"),
        (b" " * (1 << 20) + b"{{ messages }}", "over 1048576 bytes"),
    ],
)
def test_a_file_that_is_no_template_is_refused_at_the_start(
    tmp_path: Path, content: bytes | None, sentence: str
) -> None:
    name = "absent.jinja" if content is None else "there.jinja"
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=rf"model\.chat_template={name}: .*{sentence}"):
        read_template_file(name, tmp_path)


REASONER = Path(__file__).parents[3] / "models" / "reasoner"


def test_the_shipped_reasoner_takes_a_switch_that_its_template_does_not_read(tmp_path: Path) -> None:
    (tmp_path / "mine.jinja").write_text("<bos>{{ messages[0].content }}<think>1")
    for path, behind in ((None, "<think>"), (str(tmp_path / "mine.jinja"), "<think>1")):
        settings = SPEC.model.model_copy(update={"chat_template": path})
        loaded = load_model_front(SPEC.model_copy(update={"model": settings}), REASONER)
        for off in (False, True):
            request = pb.GenerateRequest(chat=pb.Chat(messages=[pb.ChatMessage(role="user", content="2 + 2")]))
            request.chat.template_variables_json = json.dumps({"enable_thinking": not off})
            made = prepare(request, loaded, SPEC, now_s=0.0)
            shown = loaded.tokenizer.decode(list(made.prompt_ids), skip_special_tokens=False)
            assert shown == f"<bos>2 + 2{behind}" + ("</think>" if off else "")
