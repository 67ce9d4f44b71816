"""Sampling and structured output fields of an OpenAI request. Pure.

What OpenAI has no name for goes by vLLM's.
"""

from __future__ import annotations

import json
from typing import Any

from baton.v1 import inference_pb2
from interface.http.fields import INT32_MAX, INT64_MAX, Fields

_NUMBERS = ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")


def read_sampling(fields: Fields) -> inference_pb2.Sampling:
    """Take the sampling fields. Whether a temperature is sensible is the gateway's to say; here only types count.

    Raises:
        InvalidRequest: a field has the wrong type, or a value that protobuf cannot carry.
    """
    sampling = inference_pb2.Sampling()
    for name in _NUMBERS:
        if (number := fields.number(name)) is not None:
            setattr(sampling, name, number)
    if (top_k := fields.integer("top_k", low=-1, high=INT32_MAX)) is not None:
        sampling.top_k = top_k
    if (seed := fields.integer("seed", low=-INT64_MAX - 1, high=INT64_MAX)) is not None:
        sampling.seed = seed
    sampling.n = fields.integer("n", low=1) or 1
    if (max_tokens := _max_tokens(fields)) is not None:
        sampling.max_tokens = max_tokens
    sampling.min_tokens = fields.integer("min_tokens") or 0
    sampling.stop.extend(_stop(fields))
    sampling.stop_token_ids.extend(fields.ids("stop_token_ids") or ())
    sampling.stop_in_reasoning = bool(fields.flag("stop_in_reasoning"))
    sampling.include_stop_in_output = bool(fields.flag("include_stop_str_in_output"))
    sampling.ignore_eos = bool(fields.flag("ignore_eos"))
    for token_id, bias in (fields.biases("logit_bias") or {}).items():
        sampling.logit_bias[token_id] = bias
    sampling.allowed_token_ids.extend(fields.ids("allowed_token_ids") or ())
    sampling.bad_words.extend(fields.texts("bad_words") or ())
    if (skip := fields.flag("skip_special_tokens")) is not None:
        sampling.skip_special_tokens = skip
    structured = read_structured_output(fields)
    if structured is not None:
        sampling.structured_output.CopyFrom(structured)
    return sampling


def read_structured_output(fields: Fields) -> inference_pb2.StructuredOutput | None:
    """Take ``response_format``, ``structured_outputs`` and the older ``guided_*`` fields; at most one may be given."""
    found: list[inference_pb2.StructuredOutput] = []
    if (tree := fields.tree("response_format")) is not None:
        found += _response_format(Fields(tree, "response_format"))
    if (tree := fields.tree("structured_outputs")) is not None:
        inner = Fields(tree, "structured_outputs")
        found += _constraints(inner, "")
        inner.finish()
    found += _constraints(fields, "guided_")
    if len(found) > 1:
        raise fields.wrong("structured_outputs", "give one constraint, in one place")
    return found[0] if found else None


def _max_tokens(fields: Fields) -> int | None:
    older, newer = fields.integer("max_tokens"), fields.integer("max_completion_tokens")
    return older if newer is None else newer


def _stop(fields: Fields) -> list[str]:
    value = fields.raw("stop")
    if value is None:
        return []
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return value
    raise fields.wrong("stop", "expected a string or an array of strings")


def _response_format(fields: Fields) -> list[inference_pb2.StructuredOutput]:
    kind = fields.text("type")
    found = []
    match kind:
        case "text":
            pass
        case "json_object":
            found = [inference_pb2.StructuredOutput(json_object=True)]
        case "json_schema":
            inner = Fields(fields.raw("json_schema"), fields.name("json_schema"))
            schema = inner.raw("schema")
            inner.drop(frozenset({"name", "description", "strict"}))
            inner.finish()
            found = [_schema(inner, "schema", schema)]
        case _:
            raise fields.wrong("type", "expected text, json_object or json_schema")
    fields.finish()
    return found


def _constraints(fields: Fields, prefix: str) -> list[inference_pb2.StructuredOutput]:
    found = []
    if (schema := fields.raw(f"{prefix}json")) is not None:
        found.append(_schema(fields, f"{prefix}json", schema))
    if (regex := fields.text(f"{prefix}regex")) is not None:
        found.append(inference_pb2.StructuredOutput(regex=regex))
    if (grammar := fields.text(f"{prefix}grammar")) is not None:
        found.append(inference_pb2.StructuredOutput(grammar=grammar))
    if (values := fields.texts(f"{prefix}choice")) is not None:
        choices = inference_pb2.StructuredOutput.Choices(values=values)
        found.append(inference_pb2.StructuredOutput(choices=choices))
    if fields.flag(f"{prefix}json_object"):
        found.append(inference_pb2.StructuredOutput(json_object=True))
    return found


def _schema(fields: Fields, name: str, schema: Any) -> inference_pb2.StructuredOutput:
    if isinstance(schema, str):
        return inference_pb2.StructuredOutput(json_schema=schema)
    if isinstance(schema, dict):
        return inference_pb2.StructuredOutput(json_schema=json.dumps(schema))
    raise fields.wrong(name, "expected a JSON schema")
