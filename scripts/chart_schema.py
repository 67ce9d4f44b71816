"""The JSON schema of the chart's values: from the models, and from Kubernetes' own definitions."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any

from scripts.chart_types import KUBERNETES
from scripts.chart_values import ChartValues

OLDEST = "1.31"
"""What values may hold of Kubernetes' objects is what its oldest supported version knows, so that all know it."""
NULLABLE = ("core.v1.PodSecurityContext", "core.v1.SecurityContext")
"""Definitions in which null says something: it removes what the chart sets."""
_PREFIX = "io.k8s."


def schema() -> dict[str, Any]:
    """The JSON schema of the values, closed to unknown keys at every level but `global`."""
    tree = _plain(ChartValues.model_json_schema(by_alias=True))
    tree["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    known = json.loads(
        (
            files("kubernetes_validate") / f"kubernetes-json-schema/v{OLDEST}.0-local-strict/_definitions.json"
        ).read_text()
    )["$defs"]
    wanted = sorted(_names(tree))
    while wanted:
        name = wanted.pop()
        if name not in tree["$defs"]:
            tree["$defs"][name] = _definition(known[name], keep_null=name.endswith(NULLABLE))
            wanted += sorted(_names(tree["$defs"][name]))
    return dict(tree)


def _plain(tree: Any) -> Any:
    """Drop titles, which repeat the keys; put references to Kubernetes' definitions in; say `or null` without `anyOf`,
    which answers a mistake with every branch that does not fit."""
    if isinstance(tree, list):
        return [_plain(item) for item in tree]
    if not isinstance(tree, dict):
        return tree
    tree = {
        key: _plain(value)
        for key, value in tree.items()
        if not (key == "title" and isinstance(value, str)) and key != "discriminator"
    }
    if KUBERNETES in tree:
        tree["$ref"] = f"#/$defs/{tree.pop(KUBERNETES)}"
    options = tree.get("anyOf", [])
    if len(options) == 2 and {"type": "null"} in options:
        (other,) = (option for option in options if option != {"type": "null"})
        del tree["anyOf"]
        if isinstance(other.get("type"), str) and "enum" not in other:
            tree |= other | {"type": [other["type"], "null"]}
        else:
            tree |= {"if": {"not": {"type": "null"}}, "then": other}
    return tree


def _definition(tree: Any, *, keep_null: bool) -> Any:
    """A definition of Kubernetes without its texts, and without null where null says nothing."""
    if isinstance(tree, list):
        return [_definition(item, keep_null=keep_null) for item in tree]
    if not isinstance(tree, dict):
        return tree
    plain = {}
    for key, value in tree.items():
        if key.startswith("x-kubernetes") or (key in ("description", "format") and isinstance(value, str)):
            continue
        if key == "$ref":
            plain[key] = f"#/$defs/{value.rsplit('/', 1)[1]}"
        elif key == "type" and isinstance(value, list) and not keep_null:
            (plain[key],) = (name for name in value if name != "null")
        elif key == "oneOf":  # a number or a text: a quantity, a port
            plain["type"] = [name for option in value for name in option["type"] if name != "null"]
        else:
            plain[key] = _definition(value, keep_null=keep_null)
    return plain


def _names(tree: Any) -> set[str]:
    """Definitions of Kubernetes that a schema refers to."""
    if isinstance(tree, list):
        return {name for item in tree for name in _names(item)}
    if not isinstance(tree, dict):
        return set()
    own = {tree["$ref"].rsplit("/", 1)[1]} if isinstance(tree.get("$ref"), str) else set()
    return {name for name in own if name.startswith(_PREFIX)} | {
        name for value in tree.values() for name in _names(value)
    }
