"""Structured output behind the reasoning, and budgets: the small reasoner's problems through a real cluster.

    python benchmarks/structured_answers.py [--problems 200] [--output docs/structured_answers.json]

Two clusters, one after the other (float32, greedy): one colocated worker, then one prefill and two decode workers. Each
mode asks the problems with a JSON schema for the answer and compares them with the same problems without one:
valid JSON, right answers, and whether the traces have the same tokens. Then budgets cut to shares of each problem's own
trace: whether content has a marker, is null or no number, and how many reasoning tokens there were beyond the budget.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import statistics
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from contenders import MODEL_NAME, Server, baton

from models.problems import Problem, generate_many

ROOT = Path(__file__).resolve().parent.parent


def schema_format(schema: dict[str, Any]) -> dict[str, Any]:
    """A `response_format` of this schema."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}


NUMBER = {"type": "integer", "minimum": 0, "maximum": 99}
INTEGER = schema_format(NUMBER)
"""The answer as the model has learned to give it, so that right answers can be compared with and without the schema."""
OBJECT = schema_format(
    {"type": "object", "properties": {"answer": NUMBER}, "required": ["answer"], "additionalProperties": False}
)
"""A form that the model has never seen: what it says in it is worth little, but the form must hold."""
SHARES = (0.0, 0.01, 0.05, 0.2, 0.25, 0.9, 1.0)
MAX_TOKENS = 1200
SLACK_TOKENS = 16
"""`model.reasoning.hard_stop_slack_tokens`."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back for one problem."""

    content: str | None
    reasoning: str
    reasoning_tokens: int
    finish_reason: str
    stop_reason: str | int | None
    error: str = ""


async def ask(session: aiohttp.ClientSession, url: str, problem: Problem, **fields: Any) -> Answer:
    """Ask once, streamed or whole."""
    body = {"model": MODEL_NAME, "messages": problem.messages, "temperature": 0, "max_tokens": MAX_TOKENS, **fields}
    async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
        if body.get("stream"):
            return await _streamed(reply)
        tree = await reply.json()
    if "error" in tree:
        return Answer(None, "", 0, "error", None, tree["error"]["message"])
    choice, message = tree["choices"][0], tree["choices"][0]["message"]
    used = tree["usage"]["completion_tokens_details"]["reasoning_tokens"]
    reasoning = message.get("reasoning_content", "")
    return Answer(message["content"], reasoning, used, choice["finish_reason"], choice["stop_reason"])


async def _streamed(reply: aiohttp.ClientResponse) -> Answer:
    content, reasoning, used, finish, stop = "", "", 0, "", None
    async for line in reply.content:
        if not line.startswith(b"data: {"):
            continue
        tree = json.loads(line[6:])
        if "error" in tree:
            return Answer(None, reasoning, 0, "error", None, tree["error"]["message"])
        if tree.get("usage"):
            used = tree["usage"]["completion_tokens_details"]["reasoning_tokens"]
        for choice in tree["choices"]:
            content += choice["delta"].get("content") or ""
            reasoning += choice["delta"].get("reasoning_content") or ""
            finish, stop = choice["finish_reason"] or finish, choice.get("stop_reason") or stop
    return Answer(content, reasoning, used, finish, stop)


async def ask_all(
    url: str, problems: Sequence[Problem], at_once: int, fields: Sequence[dict[str, Any]] | None = None, **same: Any
) -> list[Answer]:
    """Ask every problem, some at once."""
    gate = asyncio.Semaphore(at_once)
    timeout = aiohttp.ClientTimeout(total=900)
    async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(index: int, problem: Problem) -> Answer:
            async with gate:
                return await ask(session, url, problem, **same, **(fields[index] if fields else {}))

        return await asyncio.gather(*(one(index, problem) for index, problem in enumerate(problems)))


def answer_of(content: str | None) -> int | None:
    """The number in a structured answer of either schema; None if it is not of the schema."""
    try:
        tree = json.loads(content or "")
    except ValueError:
        return None
    if isinstance(tree, dict) and list(tree) == ["answer"]:
        tree = tree["answer"]
    return tree if type(tree) is int and 0 <= tree <= 99 else None


def judge(problems: Sequence[Problem], plain: Sequence[Answer], structured: Sequence[Answer]) -> dict[str, Any]:
    """One mode's figures."""
    count = len(problems)
    right = sum(a.content == str(p.answer) for p, a in zip(problems, plain, strict=True))
    valid = right_structured = same_trace = 0
    errors: Counter[str] = Counter()
    for problem, wanted, got in zip(problems, plain, structured, strict=True):
        if got.error:
            errors[got.error] += 1
            continue
        same_trace += got.reasoning == wanted.reasoning
        value = answer_of(got.content)
        if value is None:
            errors[f"not of the schema: {got.content!r:.60}"] += 1
            continue
        valid += 1
        right_structured += value == problem.answer
    return {
        "problems": count,
        "valid_json": valid / count,
        "right_plain": right / count,
        "right_structured": right_structured / count,
        "same_trace": same_trace / count,
        "errors": dict(errors.most_common(5)),
    }


def judge_budget(problems: Sequence[Problem], budgets: Sequence[int], answers: Sequence[Answer]) -> dict[str, Any]:
    """One share's figures."""
    over = [answer.reasoning_tokens - budget for budget, answer in zip(budgets, answers, strict=True)]
    return {
        "null": sum(answer.content is None for answer in answers),
        "empty": sum(answer.content == "" for answer in answers),
        "markers": sum("think>" in (answer.content or "") for answer in answers),
        "numbers": sum((answer.content or "").strip().isdecimal() for answer in answers),
        "lines": sum("\n" in (answer.content or "").strip() for answer in answers),
        "right": sum(answer.content == str(p.answer) for p, answer in zip(problems, answers, strict=True)),
        "most_over_budget": max(over),
        "within_slack": sum(tokens <= SLACK_TOKENS for tokens in over),
        "budget_reported": sum(answer.stop_reason == "thinking_budget" for answer in answers),
        "finish": dict(Counter(answer.finish_reason for answer in answers)),
        "errors": sum(bool(answer.error) for answer in answers),
    }


def _status(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/v1/status", timeout=10) as reply:
        tree: dict[str, Any] = json.load(reply)
    return tree


@contextlib.asynccontextmanager
async def killing(url: str, every_s: float) -> AsyncIterator[list[str]]:
    """Kill the decode worker that decodes most, again and again, each time when two serve."""
    killed: list[str] = []

    async def kill() -> None:
        while True:
            await asyncio.sleep(every_s)
            workers = [w for w in (await asyncio.to_thread(_status, url))["workers"] if w["role"] == "ROLE_DECODE"]
            ready = [w for w in workers if w["state"] == "WORKER_STATE_READY"]
            if len(ready) < 2:
                continue
            busiest = max(ready, key=lambda w: w["running_requests"])
            if busiest["running_requests"]:
                os.kill(busiest["pid"], signal.SIGKILL)
                killed.append(busiest["worker_id"])

    task = asyncio.create_task(kill())
    try:
        yield killed
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def show(name: str, row: dict[str, Any], began_s: float) -> None:
    print(f"{name:34} {time.monotonic() - began_s:6.1f} s  {json.dumps(row)}", flush=True)


async def alone(url: str, problems: list[Problem], result: dict[str, Any]) -> None:
    """One colocated worker: one at a time, 16 at once, every kind of grammar, and the budgets."""
    plain: list[Answer] = []
    for name, at_once in (("alone", 1), ("16 at once", 16)):
        plain = await ask_all(url, problems, at_once)
        await schemas(url, problems, plain, name, at_once, result)
    await kinds(url, problems, plain, result)
    await budgets(url, problems, [len(answer.reasoning) for answer in plain], "alone", result)


async def schemas(
    url: str,
    problems: list[Problem],
    plain: list[Answer],
    name: str,
    at_once: int,
    result: dict[str, Any],
    **more: Any,
) -> None:
    """Both schemas."""
    for kind, form in (("integer", INTEGER), ("object", OBJECT)):
        began_s = time.monotonic()
        answers = await ask_all(url, problems, at_once, response_format=form, **more)
        row = result[f"{name}, {kind}"] = judge(problems, plain, answers)
        show(f"{name}, {kind}", row, began_s)


async def kinds(url: str, problems: list[Problem], plain: list[Answer], result: dict[str, Any]) -> None:
    """The other kinds of grammar."""
    for kind, field in {
        "json_object": {"response_format": {"type": "json_object"}, "max_tokens": 1100},
        "regex": {"structured_outputs": {"regex": "=[0-9]{1,2}"}},
        "choice": {"guided_choice": [f"={number}" for number in range(100)]},
        "grammar": {"guided_grammar": 'root ::= "=" [0-9] [0-9]?'},
    }.items():
        began_s = time.monotonic()
        answers = await ask_all(url, problems, 16, **field)
        first = "{" if kind == "json_object" else "="
        row = {
            "form": sum((answer.content or "").startswith(first) for answer in answers),
            "same_trace": sum(a.reasoning == b.reasoning for a, b in zip(answers, plain, strict=True)),
        }
        result[kind] = row
        show(kind, row, began_s)


async def budgets(
    url: str,
    problems: list[Problem],
    natural: list[int],
    where: str,
    result: dict[str, Any],
    shares: Sequence[float] = SHARES,
) -> None:
    """Budgets as shares of each problem's own trace, with a schema and without."""
    for share in shares:
        tokens = [round(share * length) for length in natural]
        fields = [{"thinking_token_budget": budget} for budget in tokens]
        for kind, more in (("plain", {}), ("streamed", {"stream": True, "stream_options": {"include_usage": True}})):
            began_s = time.monotonic()
            row = judge_budget(problems, tokens, await ask_all(url, problems, 16, fields, **more))
            result[f"budget {share:.0%} {kind}, {where}"] = row
            show(f"budget {share:.0%} {kind}, {where}", row, began_s)
        began_s = time.monotonic()
        answers = await ask_all(url, problems, 16, fields, response_format=OBJECT)
        row = judge_budget(problems, tokens, answers)
        row["valid_json"] = sum(answer_of(answer.content) is not None for answer in answers)
        result[f"budget {share:.0%} schema, {where}"] = row
        show(f"budget {share:.0%} schema, {where}", row, began_s)


async def apart(url: str, problems: list[Problem], result: dict[str, Any]) -> None:
    """Prefill and decode apart: whole, streamed, some budgets, and with decode workers killed."""
    plain = await ask_all(url, problems, 16)
    await schemas(url, problems, plain, "handoff", 16, result)
    usage = {"stream": True, "stream_options": {"include_usage": True}}
    await schemas(url, problems, plain, "streamed", 16, result, **usage)
    await budgets(url, problems, [len(answer.reasoning) for answer in plain], "handoff", result, (0.05, 0.25, 0.9))
    began_s = time.monotonic()
    async with killing(url, 2.0) as killed:
        answers = await ask_all(url, problems, 16, response_format=INTEGER)
    result["kill -9 of decode"] = {**judge(problems, plain, answers), "killed": len(killed)}
    show("kill -9 of decode", result["kill -9 of decode"], began_s)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "models" / "reasoner")
    parser.add_argument("--problems", type=int, default=200)
    parser.add_argument("--only", choices=["alone", "apart"])
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    problems = generate_many(23, given.problems)
    result: dict[str, Any] = {"median_trace_tokens": statistics.median(len(problem.trace) for problem in problems)}
    parts = {"alone": ({"colocated": 1}, alone), "apart": ({"prefill": 1, "decode": 2}, apart)}
    for name, (pools, part) in parts.items():
        if given.only in (None, name):
            with baton(given.model, dtype="float32", max_model_len=2048, pools=pools, reasons=True) as server:
                asyncio.run(part(_url(server), problems, result))
    if given.output:
        given.output.write_text(json.dumps(result, indent=1) + "\n")


def _url(server: Server) -> str:
    return server.endpoints["http"]


if __name__ == "__main__":
    main()
