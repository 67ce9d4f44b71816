# ruff: noqa: E501  # outputs stand as models write them
"""Outputs as models of several families write them, and a small tokenizer with a family's special tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tokenizers import AddedToken
from transformers import PreTrainedTokenizerFast

from tests.fakes.tokenizer import byte_tokenizer

TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather of a city",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "number"},
                    "tags": {"type": "array", "items": {"type": "string"}},
                    "options": {"type": "object", "properties": {"exact": {"type": "boolean"}}},
                },
            },
        },
    },
]
WEATHER = '{"city": "Zürich \\"Nord\\"", "days": 3}'
ADD = '{"a":1.50,"tags":["p","q"],"options":{"exact":true}}'
_DEEPSEEK = (
    "<｜tool▁calls▁begin｜>",
    "<｜tool▁call▁begin｜>",
    "<｜tool▁sep｜>",
    "<｜tool▁call▁end｜>",
    "<｜tool▁calls▁end｜>",
)
_KIMI = (
    "<|tool_calls_section_begin|>",
    "<|tool_calls_section_end|>",
    "<|tool_call_begin|>",
    "<|tool_call_argument_begin|>",
    "<|tool_call_end|>",
)
_DSML = "｜DSML｜"


@dataclass(frozen=True)
class Family:
    """One family's parsers, special tokens, and outputs. ``thinks``: the prompt opens the reasoning."""

    tool: str
    reasoning: str | None
    tokens: tuple[str, ...]
    outputs: tuple[str, ...]
    template_variables: dict[str, Any] = field(default_factory=dict)
    thinks: bool = True

    def tokenizer(self) -> PreTrainedTokenizerFast:
        tokenizer = byte_tokenizer()
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in self.tokens])
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def _hermes_call(name: str, arguments: str) -> str:
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


FAMILIES: dict[str, Family] = {
    "hermes": Family(
        "hermes",
        None,
        ("<tool_call>", "</tool_call>"),
        (
            f"Let me look.\n{_hermes_call('get_weather', WEATHER)}\n{_hermes_call('add', ADD)}",
            _hermes_call("add", "{}"),
            "It is 3 < 4, as in {json: 1}, and a <tool> is none.\n",
            _hermes_call("add", ADD)[:-20],
            "<tool_call>\nno JSON\n</tool_call>",
        ),
        thinks=False,
    ),
    "qwen3": Family(
        "hermes",
        "qwen3",
        ("<tool_call>", "</tool_call>"),
        (
            f"The weather, then.\n</think>\n\nLet me look.\n{_hermes_call('get_weather', WEATHER)}",
            f"Two.\n</think>\n\n{_hermes_call('get_weather', WEATHER)}\n{_hermes_call('add', ADD)}",
            "Nothing to call.\n</think>\n\nIt is warm.",
        ),
    ),
    "qwen3 coder": Family(
        "qwen3_xml",
        "qwen3",
        ("<tool_call>", "</tool_call>"),
        (
            'Hm.\n</think>\n\nI look.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nZürich "Nord"\n</parameter>\n'
            "<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>\n<tool_call>\n<function=add>\n<parameter=a>\n1.50\n"
            '</parameter>\n<parameter=tags>\n["p", "q"]\n</parameter>\n</function>\n</tool_call>',
            "Now.<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>",
            "Hm.\n</think>\n\nThe tag <b> is bold.\n",
        ),
    ),
    "deepseek r1": Family(
        "deepseek_v3",
        "deepseek_r1",
        _DEEPSEEK,
        (
            "Both.\n</think>\n\nI look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
            f"{WEATHER}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{ADD}\n```"
            "<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "None.\n</think>\n\nIt is warm.",
            "One.\n</think>\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n{",
        ),
    ),
    "deepseek v3.1": Family(
        "deepseek_v31",
        "deepseek_v3",
        _DEEPSEEK,
        (
            f"Both.</think>I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{WEATHER}"
            f"<｜tool▁call▁end｜><｜tool▁call▁begin｜>add<｜tool▁sep｜>{ADD}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
            "None.</think>It is warm.",
        ),
        template_variables={"thinking": True},
    ),
    "deepseek v3.2": Family(
        "deepseek_v32",
        "deepseek_v3",
        (f"<{_DSML}function_calls>", f"</{_DSML}function_calls>"),
        (
            f'Both.</think>I look.\n\n<{_DSML}function_calls>\n<{_DSML}invoke name="get_weather">\n<{_DSML}parameter '
            f'name="city" string="true">Zürich "Nord"</{_DSML}parameter>\n<{_DSML}parameter name="days" string="false">3'
            f'</{_DSML}parameter>\n</{_DSML}invoke>\n<{_DSML}invoke name="add">\n<{_DSML}parameter name="a" '
            f'string="false">1.50</{_DSML}parameter>\n</{_DSML}invoke>\n</{_DSML}function_calls>',
            "None.</think>It is warm.",
        ),
        template_variables={"thinking": True},
    ),
    "glm": Family(
        "glm45",
        "glm45",
        ("<tool_call>", "</tool_call>", "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"),
        (
            "<think>Both.</think>\nI look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Zürich</arg_value>\n"
            "<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n</tool_call>\n<tool_call>add\n<arg_key>tags</arg_key>\n"
            '<arg_value>["p", "q"]</arg_value>\n</tool_call>',
            "<think>None.</think>\nIt is warm.",
        ),
        thinks=False,
    ),
    "kimi": Family(
        "kimi_k2",
        "kimi_k2",
        _KIMI,
        (
            "<think>Both.</think>I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0"
            f"<|tool_call_argument_begin|>{WEATHER}<|tool_call_end|><|tool_call_begin|>functions.add:1"
            f"<|tool_call_argument_begin|>{ADD}<|tool_call_end|><|tool_calls_section_end|>",
            "<think>None.</think>It is warm.",
            "<think>Cut.</think><|tool_calls_section_begin|><|tool_call_begin|>functions.add:0<|tool_call_argument_begin|>{",
        ),
        thinks=False,
    ),
    "llama": Family(
        "llama3_json",
        None,
        ("<|python_tag|>",),
        (
            f'{{"name": "get_weather", "parameters": {WEATHER}}}',
            f'<|python_tag|>{{"name": "get_weather", "parameters": {WEATHER}}}; {{"name": "add", "parameters": {ADD}}}',
            'An object like {x} or {"a": 1} is no call.',
            '{"name": "get_weather", "parameters": {"ci',
        ),
        thinks=False,
    ),
    "mistral": Family(
        "mistral",
        None,
        ("[TOOL_CALLS]", "[ARGS]"),
        (
            f"I look.[TOOL_CALLS]get_weather[ARGS]{WEATHER}[TOOL_CALLS]add[ARGS]{ADD}",
            "It is [warm].",
            "[TOOL_CALLS]add[ARGS]{",
        ),
        thinks=False,
    ),
    "mistral before v11": Family(
        "mistral",
        None,
        ("[TOOL_CALLS]",),
        (
            f'[TOOL_CALLS] [{{"name": "get_weather", "arguments": {WEATHER}}}, {{"name": "add", "arguments": {ADD}}}]',
            "It is [warm].",
        ),
        thinks=False,
    ),
}
HARMONY = (
    f"<|channel|>analysis<|message|>One.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather "
    f"<|constrain|>json<|message|>{WEATHER}<|call|>",
    "<|channel|>analysis<|message|>None.<|end|><|start|>assistant<|channel|>final<|message|>It is warm.<|return|>",
    "<|channel|>analysis<|message|>Both.<|end|><|start|>assistant<|channel|>analysis<|message|>Really.<|end|>"
    "<|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
    f"to=functions.get_weather <|constrain|>json<|message|>{WEATHER}<|end|><|start|>assistant<|channel|>commentary "
    f"to=functions.add <|constrain|>json<|message|>{ADD}<|call|>",
    "<|channel|>analysis<|message|>Cut o",
)
"""gpt-oss, whose tokenizer is its own."""
