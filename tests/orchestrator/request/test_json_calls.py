from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.request.json_calls import JsonAgain, JsonCalls
from orchestrator.request.output_parser import CallPiece

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
objects = st.dictionaries(st.text(), values, max_size=4)
forms = st.fixed_dictionaries(
    {
        "ensure_ascii": st.booleans(),
        "separators": st.sampled_from([(",", ":"), (", ", ": "), (" ,\n", " :\t")]),
        "indent": st.none() | st.just(2),
    }
)
cuts_of = st.lists(st.integers(0, 10_000), max_size=12)


def cut(text: str, cuts: Iterable[int]) -> list[str]:
    edges = sorted({0, len(text), *(each % (len(text) + 1) for each in cuts)})
    return [text[start:end] for start, end in pairwise(edges)]


@given(objects, forms, cuts_of, st.sampled_from(["", "}", "}\n</tool_call>", " rest"]))
def test_a_value_is_written_again_as_a_whole(value: Any, form: dict[str, Any], cuts: list[int], rest: str) -> None:
    text = json.dumps(value, **form)
    again = JsonAgain()
    written, used = "", 0
    for piece in cut(text + rest, cuts):
        if not again.done:
            more, taken = again.push(piece)
            written += more
            used += taken
    assert written == json.dumps(value, ensure_ascii=False)
    assert again.done and used == len(text)


@pytest.mark.parametrize("key", ["arguments", "parameters"])
@given(calls=st.lists(st.tuples(st.text(min_size=1), objects), min_size=1, max_size=3), form=forms, cuts=cuts_of)
def test_calls_are_found_however_the_text_is_cut(
    key: str, calls: list[tuple[str, Any]], form: dict[str, Any], cuts: list[int]
) -> None:
    text = "".join(
        f"<tool_call>\n{json.dumps({'name': name, key: arguments}, **form)}\n</tool_call>\n"
        for name, arguments in calls
    )
    ids = itertools.count()
    found = JsonCalls(lambda: f"id-{next(ids)}")
    pieces: list[CallPiece] = [piece for part in cut(text, cuts) for piece in found.push(part)]
    read: list[list[str]] = []
    for piece in pieces:
        if piece.index == len(read):
            assert piece.id == f"id-{piece.index}"
            read.append([piece.name, ""])
        read[piece.index][1] += piece.arguments
    assert read == [[name, json.dumps(arguments, ensure_ascii=False)] for name, arguments in calls]


def test_arguments_come_while_they_are_written() -> None:
    found = JsonCalls(lambda: "1")
    head = found.push('<tool_call>\n{"name": "f", "arguments": {"text": "On')
    assert [(piece.name, piece.arguments) for piece in head] == [("f", ""), ("", '{"text": "On')]
    assert [piece.arguments for piece in found.push("ce upon")] == ["ce upon"]


@pytest.mark.parametrize("text", [r'{"a": "\ud83d"}', r'{"a": "\ud83dx"}', r'{"a": "\ud83d\n"}'])
def test_half_a_pair_is_replaced(text: str) -> None:
    written = "".join(JsonAgain().push(text)[0])
    whole = json.dumps(json.loads(text), ensure_ascii=False).encode(errors="replace").decode()
    assert written == whole
