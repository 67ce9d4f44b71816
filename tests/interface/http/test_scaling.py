"""`inference_scaling` over HTTP: read, refused, and written into replies and chunks."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest
from cluster.spec.config import GatewaySettings
from interface.http.completions.request import read_chat_call
from interface.http.server import serve_http
from tests.fakes.live_cluster import Cluster, cluster_of

SETTINGS = GatewaySettings(grpc_port=0, http_port=0)
HELLO = [{"role": "user", "content": "What is 6 times 7?"}]


def read(**scaling: Any) -> pb.InferenceScaling:
    call = read_chat_call({"model": "fake", "messages": HELLO, "inference_scaling": scaling})
    return call.requests[0].inference_scaling


def test_every_field_arrives() -> None:
    assert read(
        strategy="vote",
        samples={"min": 4, "max": 16},
        agree=0.9,
        budget={"tokens": 1000, "seconds": 30, "usd": 0.02},
        answer={"boxed": True},
        return_candidates=True,
        progress=True,
        options={"weight": "confidence"},
    ) == pb.InferenceScaling(
        strategy="vote",
        samples=pb.Samples(min=4, max=16),
        agree=0.9,
        budget=pb.ScalingBudget(tokens=1000, seconds=30.0, usd=0.02),
        answer=pb.AnswerFormat(boxed=True),
        return_candidates=True,
        progress=True,
        options={"weight": "confidence"},
    )
    assert read() == pb.InferenceScaling()


@pytest.mark.parametrize(
    ("scaling", "field"),
    [
        ({"wat": 1}, "inference_scaling.wat"),
        ({"samples": {"most": 1}}, "inference_scaling.samples.most"),
        ({"budget": {"usd": "1"}}, "inference_scaling.budget.usd"),
        ({"answer": {"boxed": True, "regex": "x"}}, "inference_scaling.answer.regex"),
        ({"options": {"keep": 1}}, "inference_scaling.options"),
    ],
)
def test_what_does_not_fit_is_refused(scaling: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(**scaling)
    assert refused.value.field == field


def write_answers(cluster: Cluster, *texts: str) -> None:
    for worker in cluster.workers.values():
        engine = worker.engine

        def next_of(leg: Any, state: Any, made: int) -> tuple[int, bool]:
            index = int(leg.leg_id.rsplit("/", 1)[0].rsplit(".", 2)[1])
            text = texts[min(index, len(texts) - 1)].encode()
            at = bytes(state.ledger).decode().rpartition("assistant:")[2]
            return text[len(at)], len(at) + 1 == len(text)

        engine._next = next_of  # type: ignore[method-assign]


async def test_a_whole_reply_and_a_stream_have_the_account() -> None:
    async with cluster_of("prefill-0", "decode-0", total_blocks=256) as cluster, aiohttp.ClientSession() as session:
        runner, port = await serve_http(cluster.gateway, SETTINGS)
        write_answers(cluster, "it is 42", "42.0", "forty", "say 42", "so 42")
        scaling = {"samples": {"max": 8}, "answer": {"last_number": True}, "return_candidates": True, "progress": True}
        body = {"model": "fake", "messages": HELLO, "max_tokens": 20, "inference_scaling": scaling}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        async with asyncio.timeout(30), session.post(url, json=body) as reply:
            tree = await reply.json()
        account = tree["inference_scaling"]
        assert account["strategy"] == "vote"
        assert account["votes"] == {"42": 4}
        assert account["branches"]["no_vote"] == 1
        assert tree["choices"][0]["message"]["content"] in ("it is 42", "42.0", "say 42", "so 42")
        assert len(tree["choices"]) == 1
        assert tree["usage"]["completion_tokens"] == sum(account["tokens"].values())
        assert {each["text"] for each in account["candidates"]} >= {"forty", "42.0"}
        async with asyncio.timeout(30), session.post(url, json=body | {"stream": True}) as reply:
            lines = (await reply.read()).decode().split("\n\n")
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]
        text = "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
        assert "42" in text
        assert any("progress" in chunk for chunk in chunks)
        assert chunks[-1]["inference_scaling"]["votes"] == {"42": 4}
        body["inference_scaling"] = {"strategy": "guess"}
        async with session.post(url, json=body) as reply:
            assert reply.status == 400
            assert (await reply.json())["error"]["param"] == "inference_scaling.strategy"
        await cluster.idle()
        await runner.cleanup()
