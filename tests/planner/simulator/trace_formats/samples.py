"""Small files of every format, made up row by row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

Row = tuple[int, int, int]
"""Arrival in ms, prompt and output tokens."""
START = datetime(2024, 5, 12, tzinfo=UTC)


def lines(values: Sequence[Any]) -> str:
    return "".join(json.dumps(each) + "\n" for each in values)


def azure(rows: Sequence[Row], form: str = "{:%Y-%m-%d %H:%M:%S.%f}+00:00") -> str:
    dated = [(form.format(START + timedelta(milliseconds=at)), isl, osl) for at, isl, osl in rows]
    return "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(f"{at},{isl},{osl}\n" for at, isl, osl in dated)


def azure_2025(rows: Sequence[Row]) -> str:
    text = "TIMESTAMP,NumImages,ContextTokens,GeneratedTokens\n"
    for at, isl, osl in rows:
        date = START + timedelta(milliseconds=at)
        text += f"{date:%Y-%m-%dT%H:%M:%S}.{date.microsecond // 1000:03}Z,{isl % 3},{isl},{osl}\n"
    return text


def burstgpt(rows: Sequence[Row]) -> str:
    text = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    return text + "".join(
        f"{at / 1000},{('ChatGPT', 'GPT-4')[isl % 2]},{isl},{osl},{isl + osl},API log\n" for at, isl, osl in rows
    )


def burstgpt_3(rows: Sequence[Row]) -> str:
    text = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    return text + "".join(
        f"{at / 1000},{isl % 7},1.5,GPT-4,{isl},{osl},{isl + osl},Conversation log\n" for at, isl, osl in rows
    )


def mooncake(rows: Sequence[Row]) -> str:
    return lines(
        [
            {"timestamp": at, "input_length": isl, "output_length": osl, "hash_ids": list(range(-(-isl // 512)))}
            for at, isl, osl in rows
        ]
    )


def bailian(rows: Sequence[Row]) -> str:
    return lines(
        [
            {
                "chat_id": index,
                "parent_chat_id": -1,
                "timestamp": at / 1000,
                "input_length": isl,
                "output_length": osl,
                "type": "text",
                "turn": 1,
                "hash_ids": list(range(-(-isl // 16))),
            }
            for index, (at, isl, osl) in enumerate(rows)
        ]
    )


def sample(rows: Sequence[Row]) -> str:
    text = "arrival_s,client_id,input_tokens,output_tokens,reason_tokens,answer_tokens\n"
    return text + "".join(f"{at / 1000},{isl % 5},{isl},{osl},{osl // 2},{osl - osl // 2}\n" for at, isl, osl in rows)


def log(rows: Sequence[Row]) -> str:
    return lines(
        [
            {"arrival_s": at / 1000, "isl_tokens": isl, "reasoning_tokens": osl // 2, "answer_tokens": osl - osl // 2}
            for at, isl, osl in rows
        ]
    )


def vllm_bench(rows: Sequence[Row]) -> str:
    columns: dict[str, list[Any]] = {
        "input_lens": [isl for _, isl, _ in rows],
        "output_lens": [osl for *_, osl in rows],
        "start_times": [5000.0 + at / 1000 for at, *_ in rows],
        "errors": ["" for _ in rows],
    }
    return json.dumps({"mean_ttft_ms": 1.0, "completed": len(rows), **columns})


def guidellm(rows: Sequence[Row]) -> str:
    requests = [
        {"request_start_time": START.timestamp() + at / 1000, "prompt_tokens": isl, "output_tokens": osl}
        for at, isl, osl in rows
    ]
    made = {"successful": requests, "errored": [{"prompt_tokens": 1}], "incomplete": []}
    return json.dumps({"metadata": {}, "benchmarks": [{"requests": made}]}, indent=1)


def aiperf(rows: Sequence[Row]) -> str:
    found: list[dict[str, Any]] = []
    for at, isl, osl in rows:
        start = int(START.timestamp()) * 10**9 + at * 10**6
        metadata = {"request_start_ns": start, "benchmark_phase": "profiling", "was_cancelled": False}
        lengths = {"input_sequence_length": isl, "output_sequence_length": osl, "reasoning_token_count": osl // 2}
        metrics = {name: {"value": value, "unit": "tokens"} for name, value in lengths.items()}
        found.append({"metadata": metadata, "metrics": metrics, "error": None})
    failed = {"metadata": found[0]["metadata"], "metrics": {}, "error": {"code": 499}}
    return lines([*found, failed])


def inference_perf(rows: Sequence[Row]) -> str:
    found: list[dict[str, Any]] = []
    for index, (at, isl, osl) in enumerate(rows):
        usage = {"prompt_tokens": isl, "completion_tokens": osl} if index % 2 else None
        # The client's own count counts where the server gave none.
        response = {"output_tokens": osl if usage is None else osl + 1, "server_usage": usage}
        request = {"text": {"input_tokens": isl if usage is None else isl + 1}}
        start = 100.0 + at / 1000
        info = {"request_metrics": request, "response_metrics": response}
        found.append({"start_time": start, "end_time": start + 1, "request": "", "info": info, "error": None})
    error = {"error_type": "x", "error_msg": "y"}
    failed = {"start_time": 1.0, "end_time": 2.0, "request": "", "info": {"request_metrics": {}}, "error": error}
    return json.dumps([*found, failed])


def baton_bench(rows: Sequence[Row]) -> str:
    records = [
        {"start_s": at / 1000, "isl_tokens": isl, "output_tokens": osl, "reasoning_tokens": osl // 2, "failure": ""}
        for at, isl, osl in rows
    ]
    return json.dumps({"completed": len(rows), "records": [*records, {"failure": "timeout", "isl_tokens": 3}]})


def sharegpt(rows: Sequence[Row]) -> str:
    """Text of as many characters as tokens: to be read with one character to a token."""
    return json.dumps(
        [
            {
                "id": str(at),
                "conversations": [{"from": "human", "value": "a" * isl}, {"from": "gpt", "value": "b" * osl}],
            }
            for at, isl, osl in rows
        ],
        indent=1,
    )


TIMED: dict[str, Callable[[Sequence[Row]], str]] = {
    "azure": azure,
    "azure 2025": azure_2025,
    "burstgpt": burstgpt,
    "burstgpt 3": burstgpt_3,
    "mooncake": mooncake,
    "bailian": bailian,
    "sample": sample,
    "log": log,
    "vllm_bench": vllm_bench,
    "guidellm": guidellm,
    "aiperf": aiperf,
    "inference_perf": inference_perf,
    "baton_bench": baton_bench,
}
"""Writers by format (the first word), of files with times."""
SOME: list[Row] = [(0, 700, 20), (40, 1300, 35), (200, 5, 1), (1500, 4000, 300), (61_000, 90, 7), (180_000, 1024, 512)]
