"""The answer in a trace's text, in a form in which equal answers are equal strings. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

import regex

from cluster.errors import InvalidRequest

MAX_PATTERN_CHARS = 512
MOST_CHARS = 65536
"""Text that is searched, from its end."""
MATCH_TIMEOUT_S = 0.02
"""A pattern that takes longer finds nothing: it runs on the gateway's loop."""
MOST_REPEATS = 1000
"""Product of all counted repeats of a pattern: compiling writes them out, nested ones too."""
_COUNTED = regex.compile(r"\{\s*(\d+)\s*(?:,\s*(\d*)\s*)?\}")
MOST_DIGITS = 28
"""Of a number that may be written in another way: what decimal arithmetic keeps exactly."""
_NUMBER = regex.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][-+]?\d+)?")
_STEP = regex.compile(r"\.([^.\[\]]+)|\[(\d+)\]")


@dataclass(frozen=True, slots=True)
class Extractor:
    """Where the answer stands; by default the whole text.

    ``regex`` gives its last match, or the first group of that; ``boxed`` the last LaTeX box; ``json_path`` a value of
    the JSON that the text is; ``last_number`` the last number.

    Example:
        >>> Extractor(last_number=True)("so it is 1,042.0"), Extractor(json_path="$.a[1]")('{"a": [1, "X "]}')
        ('1042', 'x')
    """

    regex: str = ""
    boxed: bool = False
    json_path: str = ""
    last_number: bool = False

    def __post_init__(self) -> None:
        """Check it.

        Raises:
            InvalidRequest: more than one kind, or one that cannot be read.
        """
        field = "inference_scaling.answer"
        if sum(map(bool, (self.regex, self.boxed, self.json_path, self.last_number))) > 1:
            raise InvalidRequest(f"{field}: expected one of regex, boxed, json_path and last_number", field=field)
        if len(self.regex) > MAX_PATTERN_CHARS or len(self.json_path) > MAX_PATTERN_CHARS:
            raise InvalidRequest(f"{field}: expected at most {MAX_PATTERN_CHARS} characters", field=field)
        if _repeats(self.regex) > MOST_REPEATS:
            text = f"{field}.regex: its counted repeats multiply to more than {MOST_REPEATS}"
            raise InvalidRequest(text, field=f"{field}.regex")
        try:
            regex.compile(self.regex)
        except regex.error as error:
            raise InvalidRequest(f"{field}.regex: {error}", field=f"{field}.regex") from error
        if self.json_path and _path(self.json_path) is None:
            text = f"{field}.json_path={self.json_path!r}: expected a path such as $.steps[0].value"
            raise InvalidRequest(text, field=f"{field}.json_path")

    def __call__(self, text: str) -> str | None:
        """The normalised answer; None where there is none."""
        text = text[-MOST_CHARS:]
        found: str | None = text
        if self.regex:
            found = _last_match(self.regex, text)
        elif self.boxed:
            found = _last_box(text)
        elif self.json_path:
            found = _json_value(self.json_path, text)
        elif self.last_number:
            found = next((match[0] for match in reversed(list(_NUMBER.finditer(text)))), None)
        return normalised(found) or None if found is not None else None


def normalised(answer: str) -> str:
    """Equal answers as equal strings: spaces, quotes, a full stop, case and the way of writing a number do not matter.

    Example:
        >>> [normalised(text) for text in (" 42.", "$1,042.50", "The  Answer", "-0.0", "7e2", "1.10.3")]
        ['42', '1042.5', 'the answer', '0', '700', '1.10.3']
    """
    text = " ".join(answer.split()).strip("`'\"$ ").rstrip(".").strip()
    if len(text) <= MOST_DIGITS and _NUMBER.fullmatch(text):
        try:
            value = Decimal(text.replace(",", "")).normalize()
        except InvalidOperation:
            return text.casefold()
        if abs(value.adjusted()) < 64:
            return f"{value + 0:f}"
    return text.casefold()


def _repeats(pattern: str) -> int:
    """The product of all counted repeats, as if each were within the others.

    Example:
        >>> _repeats("(a{9}){11}b{,3}"), _repeats("[0-9]+")
        (297, 1)
    """
    product = 1
    for match in _COUNTED.finditer(pattern.replace("{,", "{0,")):
        product = min(product * max(1, int(match[1]), int(match[2] or 0)), MOST_REPEATS + 1)
    return product


def _last_match(pattern: str, text: str) -> str | None:
    found: str | None = None
    try:
        for match in regex.finditer(pattern, text, timeout=MATCH_TIMEOUT_S):
            found = match[1] if match.re.groups else match[0]
    except TimeoutError:
        return None
    return found


def _last_box(text: str) -> str | None:
    begin = text.rfind("\\boxed{")
    if begin < 0:
        return None
    depth, start = 1, begin + len("\\boxed{")
    for index in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if not depth:
            return text[start:index]
    return None


def _path(path: str) -> list[str | int] | None:
    if not path.startswith("$"):
        return None
    steps: list[str | int] = []
    at = 1
    while at < len(path):
        match = _STEP.match(path, at)
        if match is None:
            return None
        steps.append(match[1] if match[1] is not None else int(match[2]))
        at = match.end()
    return steps


def _json_value(path: str, text: str) -> str | None:
    try:
        value: Any = json.loads(text)
        for step in _path(path) or []:
            value = value[step]
    except (ValueError, RecursionError, LookupError, TypeError):
        return None
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
