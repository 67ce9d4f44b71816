"""Send what nobody should send, and see that every request gets a proper answer and the cluster serves on.

    python benchmarks/fuzz.py --requests 100000             # over fake engines, in this process
    python benchmarks/fuzz.py --requests 5000 --grpc HOST:PORT --http http://HOST:PORT --targets protocol http
    python benchmarks/fuzz_atheris.py request -runs=100000    # coverage-guided, where atheris is installed

The protocol and HTTP targets go through real sockets, the real gateway and real worker services. Every `CHECK_EVERY`
requests a good one is sent, and its tokens compared with the first answer.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import aiohttp
import grpc
from google.protobuf.message import DecodeError

from baton.v1.inference_pb2 import GenerateRequest
from benchmarks import fuzz_cases as cases
from cluster.errors import ServingError
from cluster.spec.config import ClusterSpec, GatewaySettings, parse
from interface.client.client import AsyncClient
from interface.http.body import parse_json
from interface.http.completions.request import read_chat_call, read_completion_call
from kv_transfer import ticket as tickets
from orchestrator.request.model_front import ModelFront, load_model_front
from orchestrator.request.prepare import prepare

ANSWER_TIMEOUT_S = 120.0
"""A request without an answer after this hangs. Generous: nothing here takes a second on a machine that is free."""
CHECK_EVERY = 500
IN_FLIGHT = 16
PROPER_CODES = {"OK", "INVALID_ARGUMENT", "NOT_FOUND", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
PROPER_HTTP = {200, 400, 404, 413, 429, 503, 504}


@dataclass
class Outcome:
    """What one target answered."""

    target: str
    sent: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def count(self, answer: str, *, proper: bool, case: object) -> None:
        """Note one answer."""
        self.sent += 1
        self.answers[answer] += 1
        if not proper:
            self.faults.append(f"{answer}: {case!r:.400}")


@functools.cache
def _front() -> tuple[ModelFront, ClusterSpec]:
    """What a gateway knows of the small reasoner, and a spec for it."""
    spec = parse(cases.REASONER_SPEC)
    return load_model_front(spec, Path(__file__).resolve().parents[1] / "models" / "reasoner"), spec


def one_pure(target: str, data: bytes) -> str:
    """Feed bytes to a parser; returns ``ok`` or the error's class. It raises a fault: all but a `ServingError`."""
    try:
        match target:
            case "spec":
                parse(data.decode(errors="replace"))
            case "ticket":
                try:
                    given = json.loads(data)
                except (ValueError, RecursionError):
                    return "no JSON"
                tickets.issue(given, source_id="p", incarnation="engine", block_size_tokens=32, deadline_s=1.0)
            case "body":
                given = parse_json(data)
                read_chat_call(given, request_id="r")
                read_completion_call(given, request_id="r", max_prompts=8)
            case "request":
                message = GenerateRequest()
                try:
                    message.ParseFromString(data)
                except DecodeError:
                    return "no message"
                prepare(message, *_front(), now_s=0.0)
            case _:
                raise AssertionError(target)
    except ServingError as error:
        return type(error).__name__
    return "ok"


def fuzz_pure(target: str, requests: int, seed: int) -> Outcome:
    """Spec and ticket, called directly."""
    rng, outcome = random.Random(f"{target}{seed}"), Outcome(target)
    for _ in range(requests):
        data = (cases.spec(rng) if target == "spec" else json.dumps(cases.params(rng))).encode(errors="replace")
        try:
            outcome.count(one_pure(target, data), proper=True, case=data)
        except Exception as error:
            outcome.count(type(error).__name__, proper=False, case=(error, data))
    return outcome


async def fuzz_protocol(address: str, requests: int, seed: int, check: Callable[[], Awaitable[None]]) -> Outcome:
    """Bytes to `Inference.Generate`."""
    rng, outcome = random.Random(f"protocol{seed}"), Outcome("protocol")
    async with grpc.aio.insecure_channel(address) as channel:
        generate = channel.unary_stream("/baton.v1.Inference/Generate")

        async def one() -> None:
            data = cases.message(rng)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_S):
                    async for _ in generate(data, timeout=ANSWER_TIMEOUT_S - 10):
                        pass
                outcome.count("OK", proper=True, case=data)
            except grpc.aio.AioRpcError as error:
                code = error.code().name
                outcome.count(code, proper=code in PROPER_CODES, case=(error.details(), data))
            except TimeoutError:
                outcome.count("no answer", proper=False, case=data)

        await _many(one, requests, check)
    return outcome


async def fuzz_http(url: str, model: str, requests: int, seed: int, check: Callable[[], Awaitable[None]]) -> Outcome:
    """Bodies to the OpenAI interface."""
    rng, outcome = random.Random(f"http{seed}"), Outcome("http")
    timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
    async with aiohttp.ClientSession(url, timeout=timeout) as session:

        async def one() -> None:
            path, data = cases.body(rng, model)
            try:
                headers = {"Content-Type": "application/json"}
                async with session.post(path, data=data, headers=headers) as answer:
                    text = await answer.read()
                proper = answer.status in PROPER_HTTP
                if answer.status != 200:
                    proper = proper and bool(json.loads(text)["error"]["message"])
                outcome.count(str(answer.status), proper=proper, case=(path, data, text))
            except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
                outcome.count(type(error).__name__, proper=False, case=(path, data))

        await _many(one, requests, check)
    return outcome


async def _many(one: Callable[[], Awaitable[None]], requests: int, check: Callable[[], Awaitable[None]]) -> None:
    """``requests`` times, some at once, with checks between."""
    left = requests
    while left:
        batch = min(left, CHECK_EVERY)
        todo = iter(range(batch))

        async def work(todo: Any = todo) -> None:
            for _ in todo:
                await one()

        await asyncio.gather(*(work() for _ in range(IN_FLIGHT)))
        await check()
        left -= batch


@contextlib.asynccontextmanager
async def fake_cluster() -> AsyncIterator[tuple[str, str, Callable[[], Awaitable[None]]]]:
    """The real gateway and worker services over fake engines; yields gRPC address, URL and a check that all is free."""
    from interface.grpc_server import serve_grpc
    from interface.http.server import serve_http
    from tests.fakes.live_cluster import cluster_of

    async with cluster_of("prefill-0", "decode-0", total_blocks=4096, queue=64) as cluster:
        settings = GatewaySettings(grpc_port=0, http_port=0, max_request_bytes=1 << 16)
        server, grpc_port = await serve_grpc(cluster.gateway, settings)
        runner, http_port = await serve_http(cluster.gateway, settings)
        try:
            yield f"127.0.0.1:{grpc_port}", f"http://127.0.0.1:{http_port}", cluster.idle
        finally:
            await runner.cleanup()
            await server.stop(0)


async def fuzz_served(
    targets: list[str], requests: int, seed: int, address: str, url: str, idle: Callable[[], Awaitable[None]]
) -> list[Outcome]:
    """Protocol and HTTP against a cluster that runs.

    Raises:
        AssertionError: a good request was not served as at the start, an engine died, or blocks were not given back.
    """
    good: dict[str, Any] = {"prompt_token_ids": [65, 66, 67, 68], "temperature": 0.0, "max_tokens": 8}
    async with AsyncClient(address) as client:
        before = {worker.worker_id: worker.incarnation for worker in (await client.get_status()).workers}
        first = (await client.complete(**good, ignore_eos=True)).token_ids

        async def check() -> None:
            again = await client.complete(**good, ignore_eos=True)
            assert again.token_ids == first, f"a good request got {again.token_ids}, at first {first}"

        outcomes = []
        if "protocol" in targets:
            outcomes.append(await fuzz_protocol(address, requests, seed, check))
        if "http" in targets:
            model = (await client.list_models())[0].name
            outcomes.append(await fuzz_http(url, model, requests, seed, check))
        after = {worker.worker_id: worker.incarnation for worker in (await client.get_status()).workers}
        assert after == before, f"engines died: {before} before, {after} after"
    await idle()
    return outcomes


async def wait_idle(address: str) -> None:
    """Wait until every block of a live cluster has come back (within a lease)."""
    async with AsyncClient(address) as client, asyncio.timeout(90):
        while True:
            status = await client.get_status()
            if not any(worker.used_blocks or worker.reserved_blocks for worker in status.workers):
                return
            await asyncio.sleep(1)


async def run(
    targets: list[str], requests: int, seed: int, grpc_address: str | None = None, url: str | None = None
) -> list[Outcome]:
    """``requests`` for each target."""
    outcomes = [fuzz_pure(target, requests, seed) for target in targets if target in ("spec", "ticket")]
    if not {"protocol", "http"} & set(targets):
        return outcomes
    if grpc_address and url:
        return outcomes + await fuzz_served(targets, requests, seed, grpc_address, url, lambda: wait_idle(grpc_address))
    async with fake_cluster() as (address, base, idle):
        return outcomes + await fuzz_served(targets, requests, seed, address, base, idle)


def main() -> None:
    """Entry point; exit code 1 when there was a fault."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=100_000, help="in all, shared by the targets")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--targets", nargs="+", default=["protocol", "http", "spec", "ticket"])
    parser.add_argument("--grpc", help="gateway of a live cluster, in place of fake engines")
    parser.add_argument("--http", help="its OpenAI interface")
    given = parser.parse_args()
    began_s = time.monotonic()
    each = -(-given.requests // len(given.targets))
    outcomes = asyncio.run(run(given.targets, each, given.seed, given.grpc, given.http))
    for outcome in outcomes:
        answers = ", ".join(f"{name} {count}" for name, count in outcome.answers.most_common())
        print(f"{outcome.target}: {outcome.sent} sent, {len(outcome.faults)} faults; {answers}")
        for fault in outcome.faults[:5]:
            print(f"  fault: {fault}")
    print(f"{sum(outcome.sent for outcome in outcomes)} requests in {time.monotonic() - began_s:.0f} s")
    sys.exit(any(outcome.faults for outcome in outcomes))


if __name__ == "__main__":
    main()
