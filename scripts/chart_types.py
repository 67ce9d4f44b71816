"""Types of the chart's values: closed sections, labels, and objects that have the form Kubernetes gives them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema
from pydantic.alias_generators import to_camel

KUBERNETES = "x-kubernetes"
"""Placeholder in a schema for a definition of Kubernetes; `scripts/chart_schema.py` puts it in."""
LABEL_KEY = r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$"
LABEL_VALUE = r"^([A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?)?$"
DNS_NAME = r"^[a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?$"
HOST = r"^((\*\.)?[a-z0-9]([a-z0-9.-]*[a-z0-9])?)?$"
CIDR = r"^([0-9]{1,3}(\.[0-9]{1,3}){3}/[0-9]{1,2}|[0-9a-fA-F:]*:[0-9a-fA-F:.]*/[0-9]{1,3})$"

Object = dict[str, Any]
Objects = list[dict[str, Any]]


class Values(BaseModel):
    """Base of all sections: camelCase keys, closed to unknown ones."""

    model_config = ConfigDict(
        extra="forbid", use_attribute_docstrings=True, alias_generator=to_camel, populate_by_name=True
    )


def kubernetes(kind: str) -> dict[str, Any]:
    """Schema of a value that Kubernetes defines, such as `core.v1.Toleration`."""
    return {KUBERNETES: f"io.k8s.api.{kind}"}


def given(test: dict[str, Any], then: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """One schema or another. `anyOf` would answer a mistake with every branch that does not fit."""
    return {"if": test, "then": then, "else": other}


def each(kind: str) -> WithJsonSchema:
    """Annotation of a list whose items Kubernetes defines."""
    return WithJsonSchema({"type": "array", "items": kubernetes(kind)})


def a(kind: str) -> WithJsonSchema:
    """Annotation of an object that Kubernetes defines."""
    return WithJsonSchema(kubernetes(kind))


def closed(required: list[str], **properties: dict[str, Any]) -> dict[str, Any]:
    """Schema of an object with these keys and no other."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT = {"type": "string"}
_ENV_VALUE = given({"type": "object"}, closed([], value=TEXT, valueFrom=kubernetes("core.v1.EnvVarSource")), TEXT)

Labels = Annotated[
    dict[str, str],
    WithJsonSchema(
        {
            "type": "object",
            "propertyNames": {"pattern": LABEL_KEY},
            "additionalProperties": {"type": "string", "pattern": LABEL_VALUE},
        }
    ),
]
Annotations = Annotated[
    dict[str, str],
    WithJsonSchema({"type": "object", "propertyNames": {"pattern": LABEL_KEY}, "additionalProperties": TEXT}),
]
Env = Annotated[
    dict[str, Any] | list[dict[str, Any]],
    WithJsonSchema(
        given(
            {"type": "array"},
            {"items": kubernetes("core.v1.EnvVar")},
            {"type": "object", "additionalProperties": _ENV_VALUE},
        )
    ),
]
"""`{NAME: text}`, `{NAME: {valueFrom: ...}}`, or a list as in a pod."""
SecretNames = Annotated[
    list[Any],
    WithJsonSchema(
        {
            "type": "array",
            "items": given(
                {"type": "object"},
                closed(["name"], name={"type": "string", "pattern": DNS_NAME}),
                {"type": "string", "pattern": DNS_NAME},
            ),
        }
    ),
]
"""`[name]` or `[{name: name}]`."""
ObjectName = Annotated[str, Field(pattern=rf"^$|{DNS_NAME}")]
"""Name of an object of Kubernetes; empty: none."""
ResourceName = Annotated[
    str, Field(pattern=r"^$|^[a-z0-9]([a-z0-9.-]*[a-z0-9])?/[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$")
]
"""Extended resource of a node; empty: none."""
Cidrs = list[Annotated[str, Field(pattern=CIDR)]]
"""Blocks of addresses, `10.0.0.0/8`."""
