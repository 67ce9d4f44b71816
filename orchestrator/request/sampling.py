"""Sampling settings of a request: their ranges, the model's defaults, and what they ask of a handoff."""

from __future__ import annotations

import math
from typing import Any

from baton.v1.inference_pb2 import Sampling
from cluster.errors import InvalidRequest
from cluster.spec.config import ClusterSpec
from orchestrator.request.fields import json_field
from orchestrator.request.lifecycle_messages import Handoff
from orchestrator.request.model_front import ModelFront

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, 100.0, "0 to 100"),
    "top_p": (1e-9, 1.0, "above 0, at most 1"),
    "top_k": (-1, 1 << 30, "-1 (off) or more"),
    "min_p": (0.0, 1.0, "0 to 1"),
    "presence_penalty": (-2.0, 2.0, "-2 to 2"),
    "frequency_penalty": (-2.0, 2.0, "-2 to 2"),
    "repetition_penalty": (1e-9, 100.0, "above 0, at most 100"),
    "seed": (-(1 << 63), (1 << 63) - 1, "a 64-bit integer"),
}


def checked_sampling(asked: Sampling, front: ModelFront, spec: ClusterSpec) -> Sampling:
    """A copy of what was asked for, with the model's defaults filled in.

    Raises:
        InvalidRequest: a setting is out of range or malformed.
    """
    sampling = Sampling()
    sampling.CopyFrom(asked)
    _check_numbers(sampling, spec)
    _check_stops(sampling)
    _check_token_ids(sampling, front)
    if any(not word for word in sampling.bad_words):
        raise InvalidRequest("bad_words: expected words that are not empty", field="sampling.bad_words")
    if sampling.HasField("structured_output"):
        _check_structured_output(sampling)
    for name, value in front.sampling_defaults.items():
        if not sampling.HasField(name):
            setattr(sampling, name, value)
    return sampling


def _check_numbers(sampling: Sampling, spec: ClusterSpec) -> None:
    for name, (low, high, words) in _RANGES.items():
        if sampling.HasField(name):
            value = getattr(sampling, name)
            if math.isnan(value) or not low <= value <= high:
                raise InvalidRequest(f"{name}={value:g}: expected {words}", field=f"sampling.{name}")
    for name in ("logprobs", "prompt_logprobs"):
        if sampling.HasField(name) and (count := getattr(sampling, name)) > spec.gateway.max_logprobs:
            text = f"{name}={count}: expected at most {spec.gateway.max_logprobs}"
            raise InvalidRequest(text, field=f"sampling.{name}")
    if sampling.n > spec.gateway.max_choices:
        raise InvalidRequest(f"n={sampling.n}: expected at most {spec.gateway.max_choices}", field="sampling.n")


def _check_stops(sampling: Sampling) -> None:
    if len(sampling.stop) > MAX_STOPS or any(not stop or len(stop) > MAX_STOP_CHARS for stop in sampling.stop):
        raise InvalidRequest(
            f"stop: expected at most {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters", field="sampling.stop"
        )


def _check_token_ids(sampling: Sampling, front: ModelFront) -> None:
    ids: dict[str, Any] = {
        "stop_token_ids": sampling.stop_token_ids,
        "allowed_token_ids": sampling.allowed_token_ids,
        "logit_bias": list(sampling.logit_bias),
    }
    for name, values in ids.items():
        bad = next((token for token in values if token >= front.vocab_size), None)
        if bad is not None:
            raise InvalidRequest(
                f"{name}: token id {bad} is out of the vocabulary (0 to {front.vocab_size - 1})",
                field=f"sampling.{name}",
            )
    if any(math.isnan(bias) or not -100 <= bias <= 100 for bias in sampling.logit_bias.values()):
        raise InvalidRequest("logit_bias: expected biases of -100 to 100", field="sampling.logit_bias")


def _check_structured_output(sampling: Sampling) -> None:
    kind = sampling.structured_output.WhichOneof("kind")
    value = getattr(sampling.structured_output, kind) if kind else None
    if not value or (kind == "choices" and not (value.values and all(value.values))):
        raise InvalidRequest("structured_output is empty", field="sampling.structured_output")
    if kind == "json_schema":
        name = "sampling.structured_output.json_schema"
        if not isinstance(json_field(value, name), dict | bool):
            raise InvalidRequest(f"{name}: expected an object", field=name)


def choice_seed(seed: int, index: int) -> int:
    """The engine's seed of one choice: 63 bits, because to vLLM a seed of -1 is none at all.

    Example:
        >>> choice_seed(7, 2), choice_seed(-1, 0), choice_seed(-2, 1) == choice_seed(-1, 0)
        (9, 9223372036854775807, True)
    """
    return (seed + index) & ((1 << 63) - 1)


def handoff_of(sampling: Sampling, *, thinks: bool) -> Handoff:
    """PLAIN where the engine must count the first token as its own output to keep the sampling's meaning.

    A grammar counts the answer alone, so where the prompt leaves the reasoning open it has not begun by then.
    """
    temperature = sampling.temperature if sampling.HasField("temperature") else 1.0
    counted = (
        sampling.presence_penalty != 0
        or sampling.frequency_penalty != 0
        or bool(sampling.bad_words)
        or (sampling.HasField("structured_output") and not thinks)
        # A seeded generator has drawn once for prefill's token; decode would draw the same number again.
        or (sampling.HasField("seed") and temperature > 0)
    )
    return Handoff.PLAIN if counted else Handoff.FIRST_TOKEN
