"""Any sequence of the core's events is a well-formed stream, and put together it is the whole response."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given, settings
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from cluster.errors import RequestRejected, ServingError, WorkerDied
from interface.http.responses.reply import ResponseReply
from interface.http.responses.request import LOGPROBS, ResponsesCall, read_responses_call
from interface.http.responses.stream import ResponseEvents
from tests.fakes.backend import Event, admitted, finished
from tests.fakes.turns import Part, events, sequences

EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
OVER = {"response.completed", "response.incomplete", "response.failed"}


def call(**body: Any) -> ResponsesCall:
    return read_responses_call(
        {"model": "m", "input": "Hi", **body}, request_id="1f", named=False, lookup=lambda _: None
    )


CALL = call(include=[LOGPROBS], top_logprobs=1)


def read(data: bytes) -> list[dict[str, Any]]:
    """The events, each checked against OpenAI's own type."""
    rows = data.decode().split("\n\n")
    assert rows.pop() == ""
    found = []
    for number, row in enumerate(rows):
        name, _, body = row.partition("\n")
        event: dict[str, Any] = json.loads(body.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        assert event["sequence_number"] == number
        EVENTS.validate_python(event)
        found.append(event)
    return found


def streamed(sequence: list[Event]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The events, and what was kept."""
    kept: list[dict[str, Any]] = []
    writer = ResponseEvents(CALL, 7, keep=lambda _, made: kept.append(made))
    return read(b"".join(writer.take(0, event) for event in sequence) + writer.end()), kept


def whole(sequence: list[Event], made_by: ResponsesCall = CALL) -> dict[str, Any]:
    kept: list[dict[str, Any]] = []
    reply = ResponseReply(made_by, 7, keep=lambda _, made: kept.append(made))
    for event in sequence:
        reply.add(0, event)
    found: dict[str, Any] = json.loads(json.dumps(reply.object()))
    assert kept == [found]
    Response.model_validate(found)
    return found


def put_together(stream: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The output by the events alone: items open one after another, and every part ends as its deltas say."""
    output: list[dict[str, Any]] = []
    open_item: dict[str, Any] | None = None
    text = ""
    logprobs: list[Any] = []
    for event in stream:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert open_item is None
            assert event["output_index"] == len(output)
            open_item, text, logprobs = event["item"], "", []
            assert open_item["status"] == "in_progress"
        elif kind == "response.output_item.done":
            assert open_item is not None
            assert event["item"]["id"] == open_item["id"]
            output.append(event["item"])
            open_item = None
        else:
            assert open_item is not None
            assert event["item_id"] == open_item["id"]
            assert event["output_index"] == len(output)
            if kind.endswith(".delta"):
                text += event["delta"]
                logprobs += event.get("logprobs", [])
            elif kind.endswith((".output_text.done", ".reasoning_text.done")):
                assert event["text"] == text
                assert event.get("logprobs", [])[: len(logprobs)] == logprobs
            elif kind.endswith("_arguments.done"):
                assert event["arguments"] == text
            else:
                assert kind in ("response.content_part.added", "response.content_part.done")
    assert open_item is None
    return output


@settings(max_examples=150, deadline=None)
@given(sequences())
def test_a_stream_put_together_is_the_whole_response(made: tuple[list[Event], int]) -> None:
    sequence, _ = made
    stream, kept = streamed(sequence)
    expected = whole(sequence)
    assert [event["type"] for event in stream[:2]] == ["response.created", "response.in_progress"]
    assert stream[-1]["type"] == f"response.{expected['status']}"
    assert stream[-1]["response"] == expected == kept[0]
    assert put_together(stream[2:-1]) == expected["output"]
    assert stream[0]["response"]["output"] == []


@settings(max_examples=60, deadline=None)
@given(sequences())
def test_an_error_at_any_point_ends_the_stream(made: tuple[list[Event], int]) -> None:
    sequence, taken = made
    writer = ResponseEvents(CALL, 7, keep=lambda *_: None)
    data = b"".join(writer.take(0, event) for event in sequence[:taken])
    stream = read(data + writer.fail(RequestRejected("full", retry_after_s=1)))
    assert [event["type"] in OVER for event in stream] == [False] * (len(stream) - 1) + [True]
    assert stream[-1]["response"]["error"] == {"code": "rate_limit_exceeded", "message": "full"}
    assert stream[-1]["response"]["status"] == "failed"


def test_codes_of_failures() -> None:
    def code(error: ServingError) -> str:
        writer = ResponseEvents(CALL, 7, keep=lambda *_: None)
        found: str = read(writer.fail(error))[-1]["response"]["error"]["code"]
        return found

    assert code(WorkerDied("gone")) == "server_error"


def test_a_response_that_was_cut_is_incomplete_and_so_is_its_last_item() -> None:
    response = whole(events([Part("text", ("a",)), Part("call", ('{"a": ',), "f")], "LENGTH"))
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert [item["status"] for item in response["output"]] == ["completed", "incomplete"]


def test_a_turn_without_a_word_has_an_empty_message() -> None:
    response = whole([admitted(), finished()])
    assert [item["content"][0]["text"] for item in response["output"]] == [""]
    thought = whole(events([Part("reasoning", ("Hm",))], "LENGTH"))
    assert [item["type"] for item in thought["output"]] == ["reasoning"]


def test_usage_has_cached_and_reasoning_tokens() -> None:
    usage = whole(events([Part("reasoning", ("Hm", "m")), Part("text", ("4",))], "STOP"))["usage"]
    assert usage == {
        "input_tokens": 5,
        "input_tokens_details": {"cached_tokens": 2, "cache_write_tokens": 0},
        "output_tokens": 3,
        "output_tokens_details": {"reasoning_tokens": 2},
        "total_tokens": 8,
    }


def test_log_probabilities_only_where_asked_for() -> None:
    sequence = events([Part("text", ("a", "b"))], "STOP", logprobs=1)
    [part] = whole(sequence)["output"][0]["content"]
    assert [row["token"] for row in part["logprobs"]] == ["a", "b"]
    assert whole(sequence, call())["output"][0]["content"][0]["logprobs"] == []
