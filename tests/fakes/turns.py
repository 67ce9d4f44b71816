"""Turns of a model as the core sends them: reasoning, text and tool calls, in every order and cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from baton.v1 import inference_pb2 as pb
from tests.fakes.backend import Event, Script, Step, admitted, delta, finished, first_token


def call_piece(index: int, *, call_id: str = "", name: str = "", arguments: str = "", finish: str = "") -> Event:
    """A delta with a piece of a tool call."""
    event = delta("", finish=finish)
    event.delta.phase = pb.PHASE_TOOL_CALL
    event.delta.tool_calls.add(index=index, id=call_id, name=name, arguments=arguments)
    return event


@dataclass(frozen=True)
class Part:
    """A run of one kind: ``name`` is a tool's for calls."""

    kind: str
    pieces: tuple[str, ...]
    name: str = ""


def events(parts: Sequence[Part], finish: str, *, logprobs: int | None = None) -> list[Event]:
    """What the core sends for these parts, one piece a delta."""
    found: list[Event] = [admitted(), first_token()]
    calls = thoughts = words = 0
    for part in parts:
        if part.kind == "call":
            found.append(call_piece(calls, call_id=f"call_{calls}", name=part.name))
            found += [call_piece(calls, arguments=piece) for piece in part.pieces]
            calls += 1
        for position, piece in enumerate(part.pieces if part.kind != "call" else ()):
            thinks = part.kind == "reasoning"
            thoughts, words = thoughts + thinks, words + (not thinks)
            found.append(delta(piece, reasoning=thinks, ids=(100 + position,), logprobs=logprobs))
    found.append(delta("", finish=finish))
    return [*found, finished(reasoning=thoughts, answer=words + calls, finish=finish)]


def turn(*parts: Part, finish: str = "") -> list[Step]:
    """A turn that ends by itself, or as ``finish`` says."""
    calls = any(part.kind == "call" for part in parts)
    return [*events(parts, finish or ("TOOL_CALLS" if calls else "STOP"))]


def thought(*pieces: str) -> Part:
    return Part("reasoning", pieces)


def text(*pieces: str) -> Part:
    return Part("text", pieces)


def call(name: str, **arguments: Any) -> Part:
    """A call whose arguments come in pieces of three characters."""
    written = json.dumps(arguments)
    return Part("call", tuple(written[start : start + 3] for start in range(0, len(written), 3)), name)


def conversation(*turns: Sequence[Step]) -> Script:
    """One turn for each request."""
    left = iter(turns)
    return lambda request: next(left)


_words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1, max_size=6)
_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**31), 2**31) | _words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_words, inner, max_size=2),
    max_leaves=4,
)


@st.composite
def _calls(draw: st.DrawFn) -> Part:
    written = json.dumps(draw(st.dictionaries(_words, _values, max_size=3)))
    cuts = sorted(draw(st.sets(st.integers(1, max(1, len(written) - 1)), max_size=3)))
    pieces = [written[a:b] for a, b in zip([0, *cuts], [*cuts, len(written)], strict=True)]
    return Part("call", tuple(piece for piece in pieces if piece), draw(st.sampled_from(["weather", "add"])))


parts = st.lists(
    st.builds(Part, st.sampled_from(["reasoning", "text"]), st.lists(_words, max_size=3).map(tuple)) | _calls(),
    max_size=5,
)
"""Whatever a model may write, a turn that is empty too."""


@st.composite
def sequences(draw: st.DrawFn) -> tuple[list[Event], int]:
    """The core's events of a turn, several deltas joined as for a slow reader, and how many of them have come."""
    finish = draw(st.sampled_from(["STOP", "LENGTH", "TOOL_CALLS"]))
    whole = events(draw(parts), finish, logprobs=draw(st.none() | st.just(1)))
    joined: list[Event] = []
    for event in whole:
        last = joined[-1] if joined else None
        if (
            last is not None
            and last.HasField("delta")
            and event.HasField("delta")
            and last.delta.phase == event.delta.phase
            and draw(st.booleans())
        ):
            both = Event(delta=last.delta)
            both.delta.text += event.delta.text
            both.delta.tool_calls.extend(event.delta.tool_calls)
            both.delta.token_ids.extend(event.delta.token_ids)
            both.delta.logprobs.extend(event.delta.logprobs)
            both.delta.finish_reason = event.delta.finish_reason
            joined[-1] = both
        else:
            joined.append(event)
    return joined, draw(st.integers(0, len(joined)))
