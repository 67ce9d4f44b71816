"""Whatever comes to the readers of responses and messages, it is read or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from interface.http.messages.request import HARMLESS_IN_MESSAGES, REFUSED_IN_MESSAGES, read_messages_call
from interface.http.responses.items import listed_items
from interface.http.responses.request import (
    HARMLESS_IN_RESPONSES,
    REFUSED_IN_RESPONSES,
    read_responses_call,
)

_KINDS = (
    "text input_text output_text input_image message function_call function_call_output reasoning item_reference "
    "thinking redacted_thinking tool_use tool_result user assistant system developer function custom allowed_tools "
    "auto any tool none required json_schema enabled disabled adaptive low clear_thinking_1 f"
)
KINDS = _KINDS.split()
_KEYS = (
    "type role content text id call_id name arguments output summary encrypted_content tool_use_id input is_error "
    "signature thinking data input_schema parameters strict description mode tools format schema effort budget_tokens "
    "display edits user_id cache_control x-any"
)
KEYS = _KEYS.split()
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(max_size=4)
    | st.sampled_from(KINDS)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)
SHARED = [
    "temperature",
    "top_k",
    "stop",
    "seed",
    "stream",
    "stream_options",
    "metadata",
    "tools",
    "tool_choice",
    "user",
]
RESPONSES = [
    *SHARED, *HARMLESS_IN_RESPONSES, *REFUSED_IN_RESPONSES, "input", "instructions", "text", "include", "top_logprobs",
    "reasoning", "previous_response_id", "store", "background", "max_output_tokens", "parallel_tool_calls",
]  # fmt: skip
MESSAGES = [
    *SHARED, *HARMLESS_IN_MESSAGES, *REFUSED_IN_MESSAGES, "messages", "system", "max_tokens", "thinking",
    "output_config", "output_format", "context_management", "stop_sequences", "chat_template_kwargs",
]  # fmt: skip
GOOD: dict[str, dict[str, Any]] = {
    "responses": {"model": "m", "input": [{"role": "user", "content": "Hi"}]},
    "messages": {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]},
}


def read(dialect: str, tree: Any) -> None:
    try:
        if dialect == "responses":
            call = read_responses_call(tree, lookup=lambda _: None)
            listed_items(call.items, call.response_id)
        else:
            read_messages_call(tree)
    except InvalidRequest as error:
        assert error.message


@pytest.mark.parametrize(("dialect", "names"), [("responses", RESPONSES), ("messages", MESSAGES)])
def test_any_body_is_read_or_refused(dialect: str, names: list[str]) -> None:
    @settings(max_examples=300, deadline=None)
    @given(values | st.dictionaries(st.sampled_from(names), values, max_size=4).map(lambda more: GOOD[dialect] | more))
    def check(tree: Any) -> None:
        read(dialect, tree)

    check()


@pytest.mark.parametrize("dialect", GOOD)
def test_any_items_are_read_or_refused(dialect: str) -> None:
    name = "input" if dialect == "responses" else "messages"

    @settings(max_examples=300, deadline=None)
    @given(st.lists(st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=4), min_size=1, max_size=3))
    def check(items: list[Any]) -> None:
        read(dialect, GOOD[dialect] | {name: items})

    check()
