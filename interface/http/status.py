"""The cluster's status and models as JSON. Pure."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from baton.v1 import inference_pb2


def to_json(message: Message) -> dict[str, Any]:
    """A message with every field present, by its proto name. Protobuf's own JSON writes 64-bit integers as strings.

    Example:
        >>> to_json(inference_pb2.Model(name="m"))
        {'name': 'm', 'max_model_len_tokens': 0, 'reasoning': False, 'tools': False}
    """
    tree: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            tree[field.name] = [_value(field, item) for item in value]
        elif field.message_type is not None and not message.HasField(field.name):
            tree[field.name] = None
        else:
            tree[field.name] = _value(field, value)
    return tree


def model_object(model: inference_pb2.Model) -> dict[str, Any]:
    """One entry of ``/v1/models``."""
    return {
        "id": model.name,
        "object": "model",
        "created": 0,
        "owned_by": "baton",
        "max_model_len": model.max_model_len_tokens,
        "reasoning": model.reasoning,
    }


def _value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        return to_json(value)
    if field.enum_type is not None:
        item = field.enum_type.values_by_number.get(value)
        return item.name if item is not None else value
    return value
