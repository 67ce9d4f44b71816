"""What the readers of HTTP bodies take, noted while they read samples, as JSON schemas."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

from interface.http.fields import UINT32_MAX, Fields

Schema = dict[str, Any]

VENDORS = r"^[xX][-_]"
_TYPED: dict[str, Schema] = {
    "text": {"type": "string"},
    "flag": {"type": "boolean"},
    "number": {"type": "number"},
    "tree": {"type": "object"},
    "items": {"type": "array"},
    "texts": {"type": "array", "items": {"type": "string"}},
    "ids": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": UINT32_MAX}},
    "biases": {"type": "object", "patternProperties": {"^[0-9]{1,9}$": {"type": "number"}}},
}


class Recorder:
    """Collects the fields that are asked for, by the path of their object: ``""`` is the body, ``a[]`` an array's."""

    def __init__(self) -> None:
        self.fields: dict[str, dict[str, Schema]] = {}
        self.ignored: set[tuple[str, str]] = set()
        self.refused: set[tuple[str, str]] = set()
        self.vendors: set[str] = set()
        self._within = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note what is read until the end of the context."""
        with contextlib.ExitStack() as stack:
            for method in (*_TYPED, "integer", "raw", "drop", "drop_vendors", "refuse"):
                stack.enter_context(mock.patch.object(Fields, method, self._noting(method)))
            yield

    def schema(self, path: str, overrides: dict[str, Schema]) -> Schema:
        """The object at a path. ``overrides`` has what was read as it came, by path; ``{"$at": path}`` in it is that
        object."""
        properties = {}
        for name, found in sorted(self.fields.get(path, {}).items()):
            inner = f"{path}.{name}" if path else name
            if inner in overrides:
                properties[name] = self._resolved(overrides[inner], overrides)
            elif found.get("type") == "object" and inner in self.fields:
                properties[name] = nullable(self.schema(inner, overrides))
            elif found == {"type": "array"} and f"{inner}[]" in self.fields:
                properties[name] = nullable({"type": "array", "items": self.schema(f"{inner}[]", overrides)})
            else:
                properties[name] = nullable(found)
        whole: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
        if path in self.vendors:
            whole["patternProperties"] = {VENDORS: {}}
        return whole

    def _resolved(self, value: Any, overrides: dict[str, Schema]) -> Any:
        if isinstance(value, dict):
            if "$at" in value:
                return self.schema(value["$at"], overrides)
            return {key: self._resolved(item, overrides) for key, item in value.items()}
        return [self._resolved(item, overrides) for item in value] if isinstance(value, list) else value

    def _noting(self, method: str) -> Callable[..., Any]:
        original = getattr(Fields, method)

        def noted(fields: Fields, *arguments: Any, **options: Any) -> Any:
            if self._within:  # one method asks by another
                return original(fields, *arguments, **options)
            self._note(re.sub(r"\[\d+\]", "[]", fields._path), method, arguments, options)
            self._within = True
            try:
                return original(fields, *arguments, **options)
            finally:
                self._within = False

        return noted

    def _note(self, path: str, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        known = self.fields.setdefault(path, {})
        match method:
            case "drop":
                for name in arguments[0]:
                    known.setdefault(name, {"description": "Let through without effect."})
                    self.ignored.add((path, name))
            case "drop_vendors":
                self.vendors.add(path)
            case "refuse":
                for name, (neutral, reason) in arguments[0].items():
                    known.setdefault(name, {"enum": [None, *neutral], "description": reason})
                    self.refused.add((path, name))
            case "integer":
                limits = {"minimum": options.get("low", 0), "maximum": options.get("high", UINT32_MAX)}
                self._keep(known, arguments[0], {"type": "integer", **limits})
            case "raw":
                known.setdefault(arguments[0], {})
            case _:
                self._keep(known, arguments[0], _TYPED[method])

    @staticmethod
    def _keep(known: dict[str, Schema], name: str, found: Schema) -> None:
        before = known.get(name, {})
        if "type" in before and before != found:
            raise ValueError(f"{name} is read as {before} and as {found}")
        known[name] = found


def nullable(schema: Schema) -> Schema:
    """The same or null: a field that is null counts as absent."""
    if "type" not in schema:
        return schema
    return {**schema, "type": [schema["type"], "null"]}
