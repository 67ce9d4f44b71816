"""A chunk written from a frame is the chunk that the general way writes."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from baton.v1 import inference_pb2 as pb
from interface.http.completions.chunk import Chunks
from interface.http.completions.request import HttpCall, read_chat_call, read_completion_call
from orchestrator.policy.phases import Phase


def call(chat: bool, more: dict[str, Any]) -> HttpCall:
    if chat:
        messages = [{"role": "user", "content": "Hi"}]
        return read_chat_call({"model": 'm"x', "messages": messages, "stream": True, **more}, request_id="r")
    return read_completion_call({"model": 'm"x', "prompt": "Hi", "stream": True, **more}, request_id="r")


@given(
    chat=st.booleans(),
    include_usage=st.booleans(),
    excluded=st.booleans(),
    deltas=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.sampled_from([Phase.REASONING, Phase.ANSWER]),
            st.text() | st.sampled_from(["text", "\0", '"text"']),
        ),
        max_size=8,
    ),
)
def test_frames_give_the_same_chunks(
    chat: bool, include_usage: bool, excluded: bool, deltas: list[tuple[int, Phase, str]]
) -> None:
    more: dict[str, Any] = {"stream_options": {"include_usage": True}} if include_usage else {}
    if excluded:
        more["include_reasoning"] = False
    general, framed = (Chunks(call(chat, {"n": 3, **more}), 7) for _ in range(2))
    assert framed.plain
    started = set()
    for choice, phase, text in deltas:
        delta = pb.Delta(choice=choice, phase=pb.Phase.Value(f"PHASE_{phase.name}"), text=text, token_ids=[1])
        expected = general.take(0, pb.GenerateResponse(delta=delta))
        if choice in started:
            assert framed.text(choice, phase, text) == expected
        started.add(choice)
