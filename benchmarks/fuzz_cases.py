"""What the fuzzer sends: bytes and trees that are nearly right, wrong, or nonsense. All from one seeded generator."""

from __future__ import annotations

import json
import math
import random
from importlib import resources
from typing import Any

import yaml
from google.protobuf.descriptor import FieldDescriptor

from baton.v1 import inference_pb2 as pb

MAX_TOKENS = 6
"""What a request that is accepted may cost; the rest of the run is for those that are not."""
_WORDS = [
    "",
    "a",
    "system",
    "user",
    "assistant",
    "Hi there",
    "é漢\U0001f600",
    "x" * 300,
    "\x00",
    "null",
    "fake",
    "reasoner",
]
_NUMBERS = [
    0,
    1,
    -1,
    2,
    31,
    32,
    33,
    255,
    256,
    1 << 16,
    (1 << 31) - 1,
    1 << 31,
    (1 << 32) - 1,
    (1 << 63) - 1,
    -(1 << 63),
]
_FLOATS = [0.0, -0.0, 1.0, 0.5, -1.0, 1e-9, 1e9, 3.4e38, math.inf, -math.inf, math.nan]


def damaged(rng: random.Random, data: bytes) -> bytes:
    """Bytes with some of them flipped, cut, doubled or put in."""
    out = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(5):
            case 0 if at < len(out):
                out[at] ^= 1 << rng.randrange(8)
            case 1:
                del out[at:]
            case 2:
                out[at:at] = rng.randbytes(rng.randint(1, 8))
            case 3:
                out[at:at] = out[at : at + rng.randint(1, 32)]
            case _:
                del out[at : at + rng.randint(1, 8)]
    return bytes(out)


# --- the protocol ---------------------------------------------------------------------------------------------------


def good_message(rng: random.Random) -> pb.GenerateRequest:
    """A request that is served."""
    return pb.GenerateRequest(
        prompt_token_ids=pb.TokenIds(ids=[rng.randrange(65, 91) for _ in range(rng.randint(1, 70))]),
        sampling=pb.Sampling(temperature=0.0, max_tokens=rng.randint(1, MAX_TOKENS)),
    )


def message(rng: random.Random) -> bytes:
    """Bytes for `Inference.Generate`."""
    match rng.randrange(4):
        case 0:
            return rng.randbytes(rng.randrange(64))
        case 1:
            return damaged(rng, good_message(rng).SerializeToString())
        case 2:
            request = pb.GenerateRequest()
            _fill(rng, request, 0)
        case _:
            request = good_message(rng)
            odd = pb.GenerateRequest()
            _fill(rng, odd, 0)
            for field, _ in rng.sample(odd.ListFields(), min(len(odd.ListFields()), 2)):
                odd_part = pb.GenerateRequest()
                odd_part.CopyFrom(odd)
                for other, _ in odd.ListFields():
                    if other.name != field.name:
                        odd_part.ClearField(other.name)
                request.MergeFrom(odd_part)
    if request.sampling.max_tokens > MAX_TOKENS or not request.sampling.HasField("max_tokens"):
        request.sampling.max_tokens = MAX_TOKENS
    request.sampling.n = min(request.sampling.n, 20)
    return request.SerializeToString()


def _fill(rng: random.Random, target: Any, depth: int) -> None:
    """Set some fields of any message, to values that its type allows."""
    for field in target.DESCRIPTOR.fields:
        if rng.random() < 0.6 or depth > 4:
            continue
        count = rng.randint(0, 3) if field.is_repeated else 1
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            key, value = (field.message_type.fields_by_name[name] for name in ("key", "value"))
            for _ in range(count):
                getattr(target, field.name)[_scalar(rng, key)] = _scalar(rng, value)
        elif field.message_type is not None:
            for _ in range(count):
                inner = getattr(target, field.name)
                inner = inner.add() if field.is_repeated else inner
                inner.SetInParent()
                _fill(rng, inner, depth + 1)
        elif field.is_repeated:
            getattr(target, field.name).extend(_scalar(rng, field) for _ in range(count))
        else:
            setattr(target, field.name, _scalar(rng, field))


def _scalar(rng: random.Random, field: FieldDescriptor) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return rng.choice(_WORDS).encode() if field.type == FieldDescriptor.TYPE_BYTES else rng.choice(_WORDS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_FLOAT | FieldDescriptor.CPPTYPE_DOUBLE:
            return rng.choice(_FLOATS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice([0, 1, 2, 99, -1])
        case FieldDescriptor.CPPTYPE_UINT32 | FieldDescriptor.CPPTYPE_UINT64:
            top = (1 << 32) - 1 if field.cpp_type == FieldDescriptor.CPPTYPE_UINT32 else (1 << 64) - 1
            return min(abs(rng.choice(_NUMBERS)), top)
        case FieldDescriptor.CPPTYPE_INT32:
            return max(-(1 << 31), min((1 << 31) - 1, rng.choice(_NUMBERS)))
        case _:
            return rng.choice(_NUMBERS)


# --- HTTP -----------------------------------------------------------------------------------------------------------

_HTTP_NAMES = [
    *pb.Sampling.DESCRIPTOR.fields_by_name,
    *(
        "messages",
        "prompt",
        "model",
        "stream",
        "stream_options",
        "tools",
        "response_format",
        "user",
        "reasoning_effort",
        "reasoning",
        "thinking",
        "chat_template_kwargs",
        "continue_final_message",
    ),
    *(
        "logprobs",
        "top_logprobs",
        "max_completion_tokens",
        "echo",
        "best_of",
        "suffix",
        "kv_transfer_params",
        "priority",
    ),
]


def tree(rng: random.Random, depth: int = 0) -> Any:
    """Any JSON value."""
    kind = rng.randrange(6 if depth < 4 else 4)
    match kind:
        case 0:
            return rng.choice([None, True, False])
        case 1:
            return rng.choice([*_NUMBERS, *_FLOATS[:8]])
        case 2 | 3:
            return rng.choice(_WORDS)
        case 4:
            return [tree(rng, depth + 1) for _ in range(rng.randrange(4))]
        case _:
            names = ["role", "content", "type", "text", "json_schema", "schema", *rng.sample(_HTTP_NAMES, 3)]
            return {rng.choice(names): tree(rng, depth + 1) for _ in range(rng.randrange(4))}


def body(rng: random.Random, model: str) -> tuple[str, bytes]:
    """A path and the body to post there."""
    path = rng.choice(["/v1/chat/completions", "/v1/completions"])
    good: dict[str, Any] = {"model": model, "max_tokens": rng.randint(1, MAX_TOKENS), "temperature": 0}
    if "chat" in path:
        good["messages"] = [{"role": "user", "content": "What is 2 + 2?"}]
    else:
        good["prompt"] = "What is 2 + 2?"
    match rng.randrange(4):
        case 0:
            return path, rng.randbytes(rng.randrange(64))
        case 1:
            return path, damaged(rng, json.dumps(good).encode())
        case 2:
            return path, json.dumps(tree(rng)).encode()
        case _:
            odd = {rng.choice(_HTTP_NAMES): tree(rng) for _ in range(rng.randint(1, 3))}
            limits = {key: good[key] for key in ("max_tokens",) if rng.random() < 0.9}
            return path, json.dumps({**good, **odd, **limits}).encode()


# --- spec and ticket ------------------------------------------------------------------------------------------------

SPEC = resources.files("cluster.spec").joinpath("local.yaml").read_text()


REASONER_SPEC = """
name: fuzz
model:
  path: models/reasoner
  served_name: reasoner
  max_model_len_tokens: 2048
  reasoning: {effort_budgets_tokens: {none: 0, low: 16, medium: 64, high: 1024}}
pools: {prefill: {replicas: 1}, decode: {replicas: 1}}
"""


def spec(rng: random.Random) -> str:
    """Text for a spec."""
    match rng.randrange(3):
        case 0:
            return damaged(rng, SPEC.encode()).decode(errors="replace")
        case 1:
            parsed = yaml.safe_load(SPEC)
            _replace_one(rng, parsed)
            return yaml.safe_dump(parsed)
        case _:
            return rng.choice([yaml.safe_dump(tree(rng)), rng.randbytes(40).decode("latin-1"), json.dumps(tree(rng))])


GOOD_PARAMS: dict[str, Any] = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[0, 1]],
    "remote_engine_id": "engine",
    "remote_request_id": "leg-1",
    "remote_host": "127.0.0.1",
    "remote_port": 5600,
    "tp_size": 1,
    "remote_num_tokens": 40,
}


def params(rng: random.Random) -> Any:
    """Transfer parameters as an engine might return them."""
    if rng.random() < 0.1:
        return tree(rng)
    changed: dict[str, Any] = json.loads(json.dumps(GOOD_PARAMS))
    for _ in range(rng.randint(0, 2)):
        _replace_one(rng, changed)
    return changed


def _replace_one(rng: random.Random, parsed: Any) -> None:
    """Change, drop or add one key somewhere."""
    here = parsed
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            return
        key = rng.choice(keys)
        if isinstance(here[key], dict | list) and rng.random() < 0.6:
            here = here[key]
            continue
        match rng.randrange(3):
            case 0:
                del here[key]
            case 1 if isinstance(here, dict):
                here[rng.choice([*_WORDS, "replicas", "tp_size"])] = tree(rng)
            case _:
                here[key] = tree(rng)
        return
