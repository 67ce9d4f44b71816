"""Any sequence of the core's events is a well-formed stream, and put together it is the whole message."""

from __future__ import annotations

import json
from typing import Any

from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from pydantic import TypeAdapter

from cluster.errors import EngineFailed, RequestRejected
from interface.http.messages.reply import MessageReply
from interface.http.messages.request import MessagesCall, read_messages_call
from interface.http.messages.stream import MessageEvents
from tests.fakes.backend import Event, admitted, delta, finished
from tests.fakes.turns import Part, call_piece, events, sequences

CALL = read_messages_call(
    {
        "model": "m",
        "max_tokens": 9,
        "stream": True,
        "stop_sequences": ["END"],
        "messages": [{"role": "user", "content": "Hi"}],
    }
)
EVENTS: TypeAdapter[Any] = TypeAdapter(RawMessageStreamEvent)


def read(data: bytes) -> list[dict[str, Any]]:
    """The events, each checked against Anthropic's own type."""
    rows = data.decode().split("\n\n")
    assert rows.pop() == ""
    found = []
    for row in rows:
        name, _, body = row.partition("\n")
        event: dict[str, Any] = json.loads(body.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        if event["type"] not in ("ping", "error"):
            EVENTS.validate_python(event)
        found.append(event)
    return found


def streamed(sequence: list[Event], call: MessagesCall = CALL) -> list[dict[str, Any]]:
    writer = MessageEvents(call, 7)
    return read(b"".join(writer.take(0, event) for event in sequence) + writer.end())


def whole(sequence: list[Event], call: MessagesCall = CALL) -> dict[str, Any]:
    reply = MessageReply(call, 7)
    for event in sequence:
        reply.add(0, event)
    found: dict[str, Any] = json.loads(json.dumps(reply.object()))
    Message.model_validate(found)
    return found


def put_together(stream: list[dict[str, Any]]) -> dict[str, Any]:
    """As Anthropic documents it."""
    kinds = [event["type"] for event in stream]
    assert kinds[:2] == ["message_start", "ping"]
    assert kinds[-2:] == ["message_delta", "message_stop"]
    message: dict[str, Any] = stream[0]["message"]
    assert message["content"] == []
    open_index: int | None = None
    arguments = ""
    for event in stream[2:-2]:
        content = message["content"]
        match event["type"]:
            case "content_block_start":
                assert open_index is None
                assert event["index"] == len(content)
                open_index, arguments = event["index"], ""
                content.append(event["content_block"])
            case "content_block_delta":
                assert event["index"] == open_index
                block = content[-1]
                match event["delta"]:
                    case {"type": "text_delta", "text": text}:
                        block["text"] += text
                    case {"type": "thinking_delta", "thinking": text}:
                        block["thinking"] += text
                    case {"type": "signature_delta", "signature": text}:
                        block["signature"] = text
                    case {"type": "input_json_delta", "partial_json": text}:
                        arguments += text
                    case _:
                        raise AssertionError(event)
            case "content_block_stop":
                assert event["index"] == open_index
                if content[-1]["type"] == "tool_use":
                    content[-1]["input"] = json.loads(arguments or "{}")
                open_index = None
            case _:
                raise AssertionError(event)
    assert open_index is None
    return message | stream[-2]["delta"] | {"usage": stream[-2]["usage"]}


@settings(max_examples=150, deadline=None)
@given(sequences())
def test_a_stream_put_together_is_the_whole_message(made: tuple[list[Event], int]) -> None:
    sequence, _ = made
    assert put_together(streamed(sequence)) == whole(sequence)


@settings(max_examples=60, deadline=None)
@given(sequences())
def test_an_error_at_any_point_ends_the_stream(made: tuple[list[Event], int]) -> None:
    sequence, taken = made
    writer = MessageEvents(CALL, 7)
    data = b"".join(writer.take(0, event) for event in sequence[:taken])
    *before, last = read(data + writer.fail(RequestRejected("full", retry_after_s=1)))
    assert last == {"type": "error", "error": {"type": "rate_limit_error", "message": "full"}}
    assert all(event["type"] != "message_stop" for event in before)


def test_why_a_message_ended() -> None:
    def stop(*sequence: Event) -> tuple[str, str | None]:
        message = whole([admitted(), *sequence, finished()])
        return message["stop_reason"], message["stop_sequence"]

    assert stop(delta("a", finish="STOP")) == ("end_turn", None)
    assert stop(delta("a", finish="STOP", stop_matched="END")) == ("stop_sequence", "END")
    assert stop(delta("a", finish="STOP", stop_matched="2")) == ("end_turn", None)
    assert stop(delta("a", finish="LENGTH")) == ("max_tokens", None)
    assert stop(call_piece(0, call_id="c", name="f", finish="TOOL_CALLS")) == ("tool_use", None)


def test_a_call_that_was_cut_off_has_no_input() -> None:
    message = whole(events([Part("call", ('{"a": ',), "f")], "LENGTH"))
    assert [block["input"] for block in message["content"]] == [{}]


def test_a_turn_without_a_word_has_an_empty_text() -> None:
    assert whole([admitted(), finished()])["content"] == [{"type": "text", "text": ""}]
    thought = whole(events([Part("reasoning", ("Hm",))], "LENGTH"))
    assert [block["type"] for block in thought["content"]] == ["thinking"]


def test_input_tokens_are_those_that_were_not_in_the_cache() -> None:
    sequence = events([Part("reasoning", ("Hm", "m")), Part("text", ("4",))], "STOP")
    usage = whole(sequence)["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"], usage["output_tokens"]) == (3, 2, 3)
    assert usage["output_tokens_details"] == {"thinking_tokens": 2}
    assert streamed(sequence)[0]["message"]["usage"]["cache_read_input_tokens"] == 2


def test_a_piece_of_a_call_that_has_ended_is_the_engines_fault() -> None:
    writer = MessageEvents(CALL, 7)
    writer.take(0, call_piece(0, call_id="a", name="f"))
    writer.take(0, call_piece(1, call_id="b", name="g"))
    try:
        writer.take(0, call_piece(0, arguments="{}"))
    except EngineFailed:
        return
    raise AssertionError("taken")
