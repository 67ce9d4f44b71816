"""The shared cluster called as its users call it: gRPC client, openai client, command line, metrics."""

from __future__ import annotations

import json
import urllib.request

import anthropic
import openai
import pytest

from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest, ModelNotFound, RequestTooLarge
from interface.client.client import AsyncClient, Client
from tests.support.live_cluster import LiveCluster

pytestmark = pytest.mark.engine
IDS = [20 + (index * 7) % 40 for index in range(50)]


def test_grpc_client_streams_in_order(cluster: LiveCluster) -> None:
    with Client(cluster.grpc) as client:
        events = list(client.generate(prompt_token_ids=IDS, max_tokens=12, temperature=0.0, ignore_eos=True))
        kinds = [type(event).__name__ for event in events]
        assert kinds[0] == "Admitted"
        assert kinds[1] == "FirstToken"
        assert kinds[2] == "Delta"
        assert kinds[-1] == "Finished"
        assert sum(len(event.token_ids) for event in events if isinstance(event, pb.Delta)) == 12
        assert [model.name for model in client.list_models()] == ["reasoner"]


async def test_async_client_and_status(cluster: LiveCluster) -> None:
    async with AsyncClient(cluster.grpc) as client:
        completion = await client.complete(prompt_token_ids=IDS, max_tokens=5, temperature=0.0, ignore_eos=True)
        assert len(completion.token_ids) == 5
        assert completion.cost_usd > 0
        status = await client.get_status()
    assert {worker.worker_id for worker in status.workers} == {"prefill-0", "decode-0", "decode-1", "colocated-0"}
    assert [(pair.prefill, pair.decode, pair.transport) for pair in status.pairs] == [
        ("prefill-0", "decode-0", "shared_memory"),
        ("prefill-0", "decode-1", "shared_memory"),
    ]


def test_openai_client(cluster: LiveCluster) -> None:
    with openai.OpenAI(base_url=f"{cluster.http}/v1", api_key="none", max_retries=0) as client:
        plain = client.completions.create(
            model="reasoner", prompt=IDS, max_tokens=16, temperature=0, extra_body={"ignore_eos": True}
        )
        assert plain.usage is not None
        assert plain.usage.completion_tokens == 16
        chunks = list(
            client.completions.create(
                model="reasoner",
                prompt=IDS,
                max_tokens=16,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"ignore_eos": True},
            )
        )
        assert chunks[-1].usage == plain.usage.model_copy(
            update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details if chunks[-1].usage else None}
        )
        assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == plain.choices[0].text
        chat = client.chat.completions.create(
            model="reasoner", messages=[{"role": "user", "content": "3 + 4"}], max_tokens=64, temperature=0
        )
        assert chat.usage is not None
        assert chat.usage.completion_tokens_details is not None
        with pytest.raises(openai.NotFoundError):
            client.completions.create(model="another", prompt="x")


def test_three_dialects_give_one_answer(cluster: LiveCluster) -> None:
    """Streamed and whole, through prefill and decode; and a conversation of responses is one session."""
    ask = {"model": "reasoner", "temperature": 0.0}
    messages = [{"role": "user", "content": "3 + 4"}]
    with (
        openai.OpenAI(base_url=f"{cluster.http}/v1", api_key="none", max_retries=0) as client,
        anthropic.Anthropic(base_url=cluster.http, api_key="none", max_retries=0) as claude,
    ):
        chat = client.chat.completions.create(**ask, messages=messages, max_tokens=400)  # type: ignore[call-overload]
        said = chat.choices[0].message
        assert chat.choices[0].finish_reason == "stop"
        response = client.responses.create(**ask, input="3 + 4", max_output_tokens=400)  # type: ignore[call-overload]
        with client.responses.stream(**ask, input=messages, max_output_tokens=400) as events:  # type: ignore[arg-type]
            streamed = events.until_done().get_final_response()
        for made in (response, streamed):
            assert made.status == "completed"
            assert (made.output[0].content[0].text, made.output_text) == (said.reasoning, said.content)
            assert made.usage.output_tokens == chat.usage.completion_tokens
            assert made.usage.input_tokens == chat.usage.prompt_tokens
            assert (
                made.usage.output_tokens_details.reasoning_tokens
                == chat.usage.completion_tokens_details.reasoning_tokens
            )
        more = client.responses.create(
            **ask, input="5 + 4", previous_response_id=response.id, background=True, max_output_tokens=400
        )  # type: ignore[call-overload]
        while more.status in ("queued", "in_progress"):
            more = client.responses.retrieve(more.id)
        assert (more.status, more.previous_response_id) == ("completed", response.id)
        whole = {"model": "reasoner", "messages": messages, "max_tokens": 400, "extra_body": {"temperature": 0.0}}
        message = claude.messages.create(**whole)  # type: ignore[call-overload]
        with claude.messages.stream(**whole) as stream:
            final = stream.get_final_message()
        for each in (message, final):
            assert [block.type for block in each.content] == ["thinking", "text"]
            assert (each.content[0].thinking, each.content[1].text) == (said.reasoning, said.content)
            assert (each.stop_reason, each.usage.output_tokens) == ("end_turn", chat.usage.completion_tokens)
            assert each.usage.input_tokens + each.usage.cache_read_input_tokens == chat.usage.prompt_tokens
        counted = claude.messages.count_tokens(model="reasoner", messages=messages)  # type: ignore[arg-type]
        assert counted.input_tokens == chat.usage.prompt_tokens


def test_stop_strings_span_the_handoff(cluster: LiveCluster) -> None:
    with Client(cluster.grpc) as client:
        options = {"prompt_token_ids": IDS, "max_tokens": 30, "temperature": 0.0, "ignore_eos": True}
        full = client.complete(**options)  # type: ignore[arg-type]
        text = full.choices[0].reasoning + full.text
        stop = text[:3]  # begins with prefill's token and ends in decode's
        cut = client.complete(stop=[stop], **options)  # type: ignore[arg-type]
        assert cut.text + cut.choices[0].reasoning == ""
        assert cut.finish_reason == pb.FINISH_REASON_STOP
        kept = client.complete(stop=[stop], include_stop_in_output=True, **options)  # type: ignore[arg-type]
        assert kept.choices[0].reasoning + kept.text == stop


def test_bad_input_costs_nothing(cluster: LiveCluster) -> None:
    with Client(cluster.grpc) as client:
        before = _prompt_tokens(client)
        for options in (
            {"prompt": ""},
            {"prompt_token_ids": [1] * 2048},
            {"prompt_token_ids": [10**6]},
            {"prompt": "x", "temperature": -1.0},
            {"prompt": "x", "max_tokens": 0},
            {"prompt": "x", "top_p": 7.0},
            {"messages": []},
        ):
            with pytest.raises(InvalidRequest):
                client.complete(**options)  # type: ignore[arg-type]
        with pytest.raises(ModelNotFound):
            client.complete(prompt="x", model="gpt-7")
        with pytest.raises((RequestTooLarge, InvalidRequest)):
            client.complete(prompt="x" * (2 << 20))
        assert _prompt_tokens(client) == before


def _prompt_tokens(client: Client) -> dict[str, int]:
    """Prompt tokens by worker, after the workers have reported twice without a change (every second when idle)."""
    seen: list[dict[str, int]] = []
    for status in client.watch_status(interval_s=1.2):
        seen.append({worker.worker_id: worker.prompt_tokens for worker in status.workers})
        if len(seen) >= 3 and seen[-1] == seen[-2]:
            return seen[-1]
    raise AssertionError("the stream of states ended")


def test_grammar_that_no_engine_can_read_is_refused(cluster: LiveCluster) -> None:
    with Client(cluster.grpc) as client:
        for structured in (
            pb.StructuredOutput(regex="(unclosed"),
            pb.StructuredOutput(json_schema='{"type": "nonsense"}'),
            pb.StructuredOutput(grammar="root ::= ???"),
        ):
            with pytest.raises(InvalidRequest):
                client.complete(prompt_token_ids=IDS, structured_output=structured, max_tokens=8)
        assert client.complete(prompt_token_ids=IDS, max_tokens=2).token_ids


def test_command_line(cluster: LiveCluster) -> None:
    result = cluster.baton("generate", "3 + 4", "--json", "--max-tokens", "20", "--temperature", "0")
    assert result.returncode == 0, result.stderr
    reply = json.loads(result.stdout)
    assert reply["usage"]["prompt_tokens"] > 0
    assert reply["timings"]["first_token_s"] > 0
    status = json.loads(cluster.baton("status", "--json").stdout)
    assert {worker["state"] for worker in status["workers"]} == {"WORKER_STATE_READY"}
    shown = cluster.baton("status").stdout
    assert "prefill-0 → decode-0" in shown
    again = cluster.baton("up", "-f", str(cluster.spec_path))
    assert again.returncode == 2
    assert "runs already" in again.stderr


def test_metrics_of_gateway_and_workers(cluster: LiveCluster) -> None:
    def scrape(address: str) -> str:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:
            text: str = reply.read().decode()
            return text

    gateway = scrape(f"127.0.0.1:{cluster.state.metrics_port}")
    for name in (
        "baton_ttft_seconds", "baton_ttfat_seconds", "baton_itl_seconds", "baton_e2e_seconds", "baton_queue_seconds",
        "baton_handoff_seconds", "baton_handoff_bytes", "baton_tokens_total", "baton_kv_used_ratio",
        "baton_in_flight_requests", "baton_requests_rejected",
    ):  # fmt: skip
        assert name in gateway, name
    with Client(cluster.grpc) as client:
        workers = {worker.worker_id: worker for worker in client.get_status().workers}
    for worker_id, worker in workers.items():
        text = scrape(worker.metrics_address)
        assert f'worker="{worker_id}"' in text
        assert "vllm:" in text, "vLLM's own metrics pass through"
        assert "baton_worker_used_kv_blocks" in text
