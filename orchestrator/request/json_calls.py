"""Calls written as JSON objects with a name and arguments, given out while they are written. Pure.

Only for output that a grammar holds to that form: what is free may turn out to be no call. vLLM reads such calls when
they are complete and writes their arguments again as JSON; here the same text comes piece by piece.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

from orchestrator.request.output_parser import CallPiece

_HEAD = re.compile(r'"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*"(?:arguments|parameters)"\s*:')
_BREAKS = ' \t\r\n,:{}[]"'


class JsonCalls:
    """Finds calls in text that comes in pieces.

    Args:
        new_id: Makes an id for a call.

    Example:
        >>> calls = JsonCalls(lambda: "1")
        >>> parts = '{"name":"f","argum', 'ents":{"a":', '1}}'
        >>> [piece.name or piece.arguments for part in parts for piece in calls.push(part)]
        ['f', '{"a": ', '1}']
    """

    def __init__(self, new_id: Callable[[], str]) -> None:
        self._new_id = new_id
        self._text = ""
        self._at = 0
        self._index = -1
        self._arguments: JsonAgain | None = None

    def push(self, text: str) -> list[CallPiece]:
        """Take text; returns what it adds to calls."""
        self._text += text
        pieces: list[CallPiece] = []
        while True:
            if self._arguments is None:
                head = _HEAD.search(self._text, self._at)
                if head is None:
                    return pieces
                self._at, self._index, self._arguments = head.end(), self._index + 1, JsonAgain()
                pieces.append(CallPiece(self._index, self._new_id(), json.loads(f'"{head[1]}"')))
            written, used = self._arguments.push(self._text[self._at :])
            self._at += used
            if written:
                pieces.append(CallPiece(self._index, arguments=written))
            if not self._arguments.done:
                return pieces
            self._arguments = None


class JsonAgain:
    """Writes one JSON value as Python's `json.dumps` does, from text that comes in pieces and is spaced in any way.

    Keys that come twice stay; nothing else differs from reading the whole value and writing it.

    Example:
        >>> again = JsonAgain()
        >>> again.push('{"a" :1.50,"b":["c'), again.push('"]} and more')
        (('{"a": 1.5, "b": ["c', 18), ('"]}', 3))
    """

    def __init__(self) -> None:
        self.done = False
        self._depth = 0
        self._in_string = False
        self._escape = ""
        self._literal = ""

    def push(self, text: str) -> tuple[str, int]:
        """Take text; returns what is written for it, and how many characters of it the value has."""
        written: list[str] = []
        for used, char in enumerate(text):
            if self.done:
                return "".join(written), used
            written.append(self._of_string(char) if self._in_string else self._outside(char))
        return "".join(written), len(text)

    def _outside(self, char: str) -> str:
        if char not in _BREAKS:
            self._literal += char
            return ""
        before = self._ended_literal()
        if before and not self._depth:
            self.done = True
            return before
        match char:
            case '"':
                self._in_string = True
            case "{" | "[":
                self._depth += 1
            case "}" | "]":
                self._depth -= 1
                self.done = self._depth <= 0
            case "," | ":":
                char += " "
            case _:
                char = ""
        return before + char

    def _ended_literal(self) -> str:
        literal, self._literal = self._literal, ""
        try:
            return json.dumps(json.loads(literal)) if literal else ""
        except ValueError:  # no JSON: the whole will not be, either
            return literal

    def _of_string(self, char: str) -> str:
        if self._escape:
            self._escape += char
            return self._ended_escape()
        if char == "\\":
            self._escape = char
            return ""
        if char == '"':
            self._in_string = False
            self.done = not self._depth
            return char
        return json.dumps(char, ensure_ascii=False)[1:-1]

    def _ended_escape(self) -> str:
        escape = self._escape
        if escape[1:2] == "u":
            if len(escape) < 6:
                return ""
            first = re.fullmatch(r"\\u[dD][89abAB][0-9a-fA-F]{2}", escape[:6])  # of a pair
            if first and len(escape) < 12:
                if r"\u".startswith(escape[6:8]):
                    return ""
                # Half a pair is no text that could be sent; what stands in place of the other half is read as ever.
                self._escape = ""
                return "?" + "".join(map(self._of_string, escape[6:]))
        self._escape = ""
        try:
            text: str = json.loads(f'"{escape}"')
        except ValueError:
            return escape
        return json.dumps(text.encode(errors="replace").decode(), ensure_ascii=False)[1:-1]
