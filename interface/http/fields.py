"""Reading a JSON object field by field, with a sentence for everything that does not fit. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from cluster.errors import InvalidRequest

UINT32_MAX = 2**32 - 1
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
FLOAT32_MAX = 3.4028234663852886e38
"""Largest finite value of a proto ``float``; above it protobuf silently makes infinity."""

T = TypeVar("T")

_NAMES: dict[type, str] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    float: "a number",
    bool: "a boolean",
    type(None): "null",
}


def kind_of(value: object) -> str:
    """The JSON name of the value's type. Values themselves are never quoted: they may be prompt text."""
    return _NAMES.get(type(value), type(value).__name__)


class Fields:
    """The fields of one JSON object, taken one by one; `finish` refuses what nobody took.

    A field that is null counts as absent, as OpenAI has it. ``path`` goes before each name in errors. ``ignored`` has
    what was let through without effect, in this object and those `inside` it, by names of which there are few.

    Example:
        >>> fields = Fields({"n": 2, "wat": 1})
        >>> fields.integer("n", low=1)
        2
        >>> fields.finish()
        Traceback (most recent call last):
            ...
        cluster.errors.InvalidRequest: wat: unknown field
    """

    def __init__(self, tree: object, path: str = "", ignored: set[str] | None = None) -> None:
        self._path = path
        self.ignored: set[str] = set() if ignored is None else ignored
        if not isinstance(tree, dict):
            name = path or "the body"
            raise InvalidRequest(f"{name}: expected an object, got {kind_of(tree)}", field=path)
        self._left: dict[str, Any] = dict(tree)

    def inside(self, tree: object, path: str) -> Fields:
        """The fields of an object within this one; ``path`` is from the body on."""
        return Fields(tree, path, self.ignored)

    def name(self, field: str) -> str:
        """The full path of a field."""
        return f"{self._path}.{field}" if self._path else field

    def wrong(self, field: str, text: str) -> InvalidRequest:
        """The error that says what is wrong with a field."""
        name = self.name(field)
        return InvalidRequest(f"{name}: {text}", field=name)

    def has(self, field: str) -> bool:
        """Whether the field is there at all, null included."""
        return field in self._left

    def raw(self, field: str) -> Any:
        """The value as it came; None where absent."""
        return self._left.pop(field, None)

    def text(self, field: str) -> str | None:
        """A string."""
        return self._of(field, str, "a string")

    def flag(self, field: str) -> bool | None:
        """True or false."""
        return self._of(field, bool, "a boolean")

    def tree(self, field: str) -> dict[str, Any] | None:
        """An object."""
        return self._of(field, dict, "an object")

    def items(self, field: str) -> list[Any] | None:
        """An array."""
        return self._of(field, list, "an array")

    def integer(self, field: str, *, low: int = 0, high: int = UINT32_MAX) -> int | None:
        """An integer of the range. 2.0 counts as 2, since some JSON writers know only doubles."""
        value = self.raw(field)
        if value is None:
            return None
        return self._integer(field, value, low, high)

    def number(self, field: str) -> float | None:
        """A finite number."""
        value = self.raw(field)
        return None if value is None else self._number(field, value)

    def texts(self, field: str) -> list[str] | None:
        """An array of strings."""
        return self._each(field, "an array of strings", lambda value: isinstance(value, str))

    def ids(self, field: str) -> list[int] | None:
        """An array of token ids."""
        return self._each(field, "an array of token ids", is_token_id)

    def biases(self, field: str) -> dict[int, float] | None:
        """An object from token id, written as a string, to number."""
        tree = self.tree(field)
        if tree is None:
            return None
        biases = {}
        for key, value in tree.items():
            if not (key.isascii() and key.isdigit() and len(key) <= 10 and int(key) <= UINT32_MAX):
                raise self.wrong(field, "expected token ids as keys")
            biases[int(key)] = self._number(field, value)
        return biases

    def drop(self, names: frozenset[str], prefix: str = "") -> None:
        """Take fields that mean nothing here and harm nothing, and note them as ignored under prefix and name."""
        for name in names & self._left.keys():
            if self._left.pop(name) is not None:
                self.ignored.add(f"{prefix}{name}")

    def drop_vendors(self, prefix: str = "") -> None:
        """Take extensions that vendors mark as such, ``x-`` or ``x_`` before the name."""
        for name in [name for name in self._left if name.lower().startswith(("x-", "x_"))]:
            if self._left.pop(name) is not None:
                self.ignored.add(f"{prefix}x-*")

    def refuse(self, refusals: dict[str, tuple[tuple[Any, ...], str]]) -> None:
        """Refuse fields whose meaning cannot be kept, unless they are null or say what is done anyway.

        Args:
            refusals: For each field the values that change nothing, and the sentence for all others.
        """
        for field in refusals.keys() & self._left.keys():
            value = self._left.pop(field)
            neutral, reason = refusals[field]
            # `True == 1` in Python, and a wrong type is not the neutral value.
            if value is None or any(value == item and type(value) is type(item) for item in neutral):
                continue
            raise self.wrong(field, reason)

    def finish(self) -> None:
        """Refuse what is left.

        Raises:
            InvalidRequest: a field is unknown.
        """
        left = next((field for field, value in self._left.items() if value is not None), None)
        if left is not None:
            # The name is the caller's own text, so it is cut and made printable.
            shown = left[:64].encode("ascii", "backslashreplace").decode()
            raise self.wrong(shown, "unknown field")

    def _of(self, field: str, kind: type[T], expected: str) -> T | None:
        value = self.raw(field)
        if value is None or isinstance(value, kind):
            return value
        raise self.wrong(field, f"expected {expected}, got {kind_of(value)}")

    def _each(self, field: str, expected: str, fits: Callable[[Any], bool]) -> list[Any] | None:
        values = self.items(field)
        if values is not None and not all(map(fits, values)):
            raise self.wrong(field, f"expected {expected}")
        return values

    def _integer(self, field: str, value: Any, low: int, high: int) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(field, f"expected an integer, got {kind_of(value)}")
        if not low <= value <= high:
            raise self.wrong(field, f"expected an integer from {low} to {high}")
        return value

    def _number(self, field: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.wrong(field, f"expected a number, got {kind_of(value)}")
        if not abs(value) <= FLOAT32_MAX or not math.isfinite(value):
            raise self.wrong(field, "expected a finite number")
        return float(value)


def is_token_id(value: object) -> bool:
    """Whether the value can be a token id; whether the vocabulary has it is the gateway's to say."""
    return type(value) is int and 0 <= value <= UINT32_MAX
