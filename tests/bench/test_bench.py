"""The whole load generator against servers that send exactly known things."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import typer
from aiohttp import web
from typer.testing import CliRunner

from baton.v1 import inference_pb2, inference_pb2_grpc
from bench.command import bench
from bench.measure import BenchRun, measure
from bench.report import Slo
from bench.target import RequestStyle
from bench.workload import ClosedPlan, PlannedRequest
from cluster.errors import ConfigError, WorkerDied

Handler = Callable[[web.Request, int], Awaitable[web.StreamResponse]]
STEP_S = 0.01


class FakeOpenAi:
    """Answers the n-th generation with `handler(request, n)`; keeps bodies."""

    def __init__(self, handler: Handler) -> None:
        self.bodies: list[dict[str, Any]] = []
        self._handler = handler

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        self.bodies.append(await request.json())
        return await self._handler(request, len(self.bodies) - 1)

    async def __aenter__(self) -> str:
        app = web.Application()

        async def models(request: web.Request) -> web.Response:
            return web.json_response({"data": [{"id": "fake"}]})

        app.router.add_get("/v1/models", models)
        app.router.add_post("/v1/completions", self._generate)
        app.router.add_post("/v1/chat/completions", self._generate)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()


async def stream(request: web.Request, parts: list[Any], *, done: bool = True) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for part in parts:
        await asyncio.sleep(STEP_S)
        await response.write(f"data: {json.dumps(part)}\n\n".encode())
    if done:
        await response.write(b"data: [DONE]\n\n")
    return response


def texts(*pieces: str, tokens: int) -> list[Any]:
    return [
        *[{"choices": [{"text": piece}]} for piece in pieces],
        {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": tokens}},
    ]


def style(**changes: Any) -> RequestStyle:
    return RequestStyle(**{"model": "", "timeout_s": 5.0, **changes})


async def test_http_records_what_was_sent() -> None:
    async def handler(request: web.Request, number: int) -> web.StreamResponse:
        return await stream(request, texts("a", "bc", "d", tokens=4))

    fake = FakeOpenAi(handler)
    async with fake as url:
        found, records = await measure(
            BenchRun(url, ClosedPlan(7, 4, 6), style(), concurrency=2, warmup=2, slo=Slo(ttft_s=5))
        )
    assert found["model"] == "fake"
    assert (found["completed"], found["failed"], found["output_tokens"]) == (6, 0, 24)
    assert found["prompt_tokens"] == 42
    assert found["slo_met"] == 6
    assert found["tokens_per_message"] == pytest.approx(4 / 3)
    assert found["client_cpu_us_per_token"] > 0
    for record in records:
        assert len(record.message_s) == 3
        assert record.ttft_s is not None and record.ttft_s >= STEP_S
        gaps = record.gaps_s()
        assert gaps[2] == 0
        assert min(gaps[:2]) > STEP_S / 2
    assert len(fake.bodies) == 8
    assert all(len(body["prompt"]) == 7 and body["ignore_eos"] and body["max_tokens"] == 4 for body in fake.bodies)
    assert len({tuple(body["prompt"]) for body in fake.bodies}) == 8


async def test_chat_reports_reasoning_from_answer() -> None:
    async def handler(request: web.Request, number: int) -> web.StreamResponse:
        deltas = [
            {"role": "assistant", "content": ""},
            {"reasoning_content": "hm"},
            {"content": "yes"},
            {"content": "!"},
            {},
        ]
        usage = {
            "prompt_tokens": 9,
            "completion_tokens": 3,
            "completion_tokens_details": {"reasoning_tokens": 1},
        }
        parts = [{"choices": [{"delta": delta}]} for delta in deltas]
        return await stream(request, [*parts, {"choices": [], "usage": usage}])

    fake = FakeOpenAi(handler)
    async with fake as url:
        _, (record,) = await measure(BenchRun(url, ClosedPlan(5, 3, 1), style(api="chat")))
    assert record.ok, record.detail
    assert (record.output_tokens, record.reasoning_tokens, record.prompt_tokens) == (3, 1, 9)
    assert record.ttft_s is not None and record.first_answer_s is not None
    assert record.ttft_s > 1.5 * STEP_S
    assert record.first_answer_s > record.ttft_s
    assert fake.bodies[0]["messages"][0]["role"] == "user"


async def test_failures_are_counted_by_kind() -> None:
    async def handler(request: web.Request, number: int) -> web.StreamResponse:
        match number:
            case 0:
                return web.json_response({"error": {"message": "busy"}}, status=429)
            case 1:
                return await stream(request, texts("a", tokens=1), done=False)
            case 2:
                return await stream(request, texts("a", tokens=1))
            case 3:
                return await stream(request, [{"error": {"message": "engine died"}}])
            case 4:
                await asyncio.sleep(1)
            case 5:
                assert request.transport is not None
                request.transport.abort()
        return await stream(request, texts("a", "b", tokens=2))

    async with FakeOpenAi(handler) as url:
        found, records = await measure(BenchRun(url, ClosedPlan(5, 2, 7), style(timeout_s=0.5)))
    assert [record.failure for record in records] == [
        "http 429",
        "broken",
        "short",
        "error event",
        "timeout",
        "broken",
        "",
    ]
    assert found["failures"] == {"http 429": 1, "broken": 2, "short": 1, "error event": 1, "timeout": 1}
    assert "busy" in found["failure_details"]["http 429"]
    assert found["completed"] == 1


async def test_nobody_there() -> None:
    with pytest.raises(WorkerDied, match=r"no answer from 127\.0\.0\.1:9"):
        await measure(BenchRun("http://127.0.0.1:9", ClosedPlan(5, 2, 1), style()))
    found, _ = await measure(BenchRun("http://127.0.0.1:9", ClosedPlan(5, 2, 3), style(model="m")))
    assert found["failures"] == {"connect": 3}


async def test_open_loop_sends_on_time_whatever_the_server_does() -> None:
    async def handler(request: web.Request, number: int) -> web.StreamResponse:
        await asyncio.sleep(0.3)
        return await stream(request, texts("a", tokens=1))

    plan = [PlannedRequest(index, 5, 1, arrival_s=0.05 * index) for index in range(6)]
    async with FakeOpenAi(handler) as url:
        found, records = await measure(BenchRun(url, plan, style(), concurrency=None))
    assert found["completed"] == 6
    assert [record.start_s for record in records] == pytest.approx([0.05 * index for index in range(6)], abs=0.1)
    assert found["duration_s"] < 6 * 0.3


async def test_turns_of_a_session_wait_for_the_answer_before() -> None:
    async def handler(request: web.Request, number: int) -> web.StreamResponse:
        return await stream(request, texts("a", tokens=1))

    last = PlannedRequest(3, 7, 1, think_s=0.05)
    second = PlannedRequest(2, 6, 1, then=last, think_s=0.1)
    plan = [PlannedRequest(0, 5, 1, arrival_s=0.0, then=second), PlannedRequest(1, 4, 1, arrival_s=0.0)]
    for concurrency in (None, 1):
        async with FakeOpenAi(handler) as url:
            found, records = await measure(BenchRun(url, plan, style(), concurrency=concurrency))
        assert found["completed"] == 4
        turns = [record for record in records if record.index != 1]
        assert [record.isl_tokens for record in turns] == [5, 6, 7]
        for before, after, think_s in ((turns[0], turns[1], 0.1), (turns[1], turns[2], 0.05)):
            assert after.start_s >= before.start_s + before.end_s + think_s


class FakeInference(inference_pb2_grpc.InferenceServicer):
    def __init__(self) -> None:
        self.requests: list[Any] = []

    async def ListModels(self, request: Any, context: Any) -> Any:  # noqa: N802
        return inference_pb2.ListModelsResponse(models=[inference_pb2.Model(name="fake")])

    async def Generate(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        self.requests.append(request)
        if len(self.requests) == 3:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "queue full")
        yield inference_pb2.GenerateResponse(admitted={"request_id": "r"})
        yield inference_pb2.GenerateResponse(first_token={"ttft_s": 0.1})
        for phase, ids in ((1, [5]), (1, [6, 7]), (2, [8])):
            await asyncio.sleep(STEP_S)
            yield inference_pb2.GenerateResponse(delta={"phase": phase, "text": "x", "token_ids": ids})
        usage = {"prompt_tokens": 7, "reasoning_tokens": 3, "answer_tokens": 1}
        yield inference_pb2.GenerateResponse(finished={"usage": usage})


async def test_grpc_records_what_was_sent() -> None:
    servicer = FakeInference()
    server = grpc.aio.server()
    inference_pb2_grpc.add_InferenceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        found, records = await measure(BenchRun(f"grpc://127.0.0.1:{port}", ClosedPlan(7, 4, 4), style()))
    finally:
        await server.stop(0)
    assert found["model"] == "fake"
    assert found["failures"] == {"grpc RESOURCE_EXHAUSTED": 1}
    assert found["failure_details"] == {"grpc RESOURCE_EXHAUSTED": "queue full"}
    assert found["output_tokens"] == 12
    good = records[0]
    assert (good.output_tokens, good.reasoning_tokens, good.prompt_tokens) == (4, 3, 7)
    assert len(good.message_s) == 3
    assert good.gaps_s()[2] == 0
    assert good.first_answer_s == good.message_s[2]
    assert len(servicer.requests[0].prompt_token_ids.ids) == 7
    assert servicer.requests[0].sampling.ignore_eos


@pytest.mark.parametrize("endpoint", ["ftp://x", "grpc://nowhere", "host:1"])
async def test_a_wrong_endpoint_is_refused(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="expected"):
        await measure(BenchRun(endpoint, ClosedPlan(1, 1, 1), style()))


def test_the_command_prints_json_and_writes_records(tmp_path: Path) -> None:
    # The command runs a loop of its own, so the server needs a process or a thread; a thread is cheaper.
    import threading

    async def handler(request: web.Request, number: int) -> web.StreamResponse:
        return await stream(request, texts("a", "b", tokens=2))

    started, stop = threading.Event(), asyncio.Event()
    box: dict[str, Any] = {}

    async def serve() -> None:
        box["loop"] = asyncio.get_running_loop()
        async with FakeOpenAi(handler) as url:
            box["url"] = url
            started.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        assert started.wait(10)
        app = typer.Typer()
        app.command()(bench)
        out = tmp_path / "out.json"
        arguments = [box["url"], "-n", "3", "-c", "2", "--osl", "2", "--isl", "4", "--out", str(out)]
        result = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
        assert result.exit_code == 0
        assert json.loads(result.stdout)["completed"] == 3
        assert len(json.loads(out.read_text())["records"]) == 3
        table = CliRunner().invoke(app, arguments, catch_exceptions=False)
        assert "3 of 3 requests ended well" in table.stdout
        trace = tmp_path / "trace.jsonl"
        trace.write_text('{"input_lens": [4, 5], "output_lens": [2, 2]}')
        untimed = CliRunner().invoke(app, [box["url"], "--trace", str(trace), "-c", "1", "--json"])
        assert json.loads(untimed.stdout)["completed"] == 2
        assert "vllm_bench, 2 requests, no times" in untimed.stderr
        at_rate = CliRunner().invoke(app, [box["url"], "--trace", str(trace), "--rate", "50", "--json"])
        assert json.loads(at_rate.stdout)["completed"] == 2
        with pytest.raises(ConfigError, match="no times: say --rate for arrivals, or -c"):
            CliRunner().invoke(app, [box["url"], "--trace", str(trace)], catch_exceptions=False)
        failed = CliRunner().invoke(app, [box["url"], "-n", "1", "--osl", "9"], catch_exceptions=False)
        assert failed.exit_code == 1
    finally:
        box["loop"].call_soon_threadsafe(stop.set)
        thread.join()


@pytest.mark.parametrize(
    "arguments",
    [["--api", "x"], ["--rate", "1", "-c", "2"], ["--token-ids", "9:3"], ["--trace", "x", "--unit", "weeks"]],
)
def test_options_that_do_not_fit_are_refused(arguments: list[str]) -> None:
    app = typer.Typer()
    app.command()(bench)
    with pytest.raises(ConfigError):
        CliRunner().invoke(app, ["http://127.0.0.1:9", *arguments], catch_exceptions=False)
