"""kill -9 of one of two gateways over real engines: the streams go on at the other one, to the same tokens."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from baton.v1 import inference_pb2 as pb
from cluster.errors import InvalidRequest
from interface.client.client import AsyncClient
from interface.client.completion import Completion
from tests.support.gateway_process import gateway_processes
from tests.support.live_cluster import LiveCluster

pytestmark = pytest.mark.engine

PROMPTS = [[5 + (index * 7 + position) % 80 for position in range(40 + index)] for index in range(4)]
TOKENS = 200


async def test_greedy_streams_survive_their_gateway(cluster: LiveCluster, tmp_path: Path) -> None:
    options = {"temperature": 0.0, "max_tokens": TOKENS, "ignore_eos": True}
    async with AsyncClient(cluster.grpc) as quiet:
        undisturbed = [await quiet.complete(prompt_token_ids=prompt, **options) for prompt in PROMPTS]
    text = cluster.spec_path.read_text()
    async with (
        gateway_processes(text, cluster.state.registry, tmp_path, count=2) as (first, second),
        AsyncClient([first.grpc, second.grpc]) as client,
    ):
        begun: list[int] = []

        async def follow(prompt: list[int], **more: object) -> Completion:
            completion = Completion()
            async for event in client.generate(prompt_token_ids=prompt, **{**options, **more}):
                completion.add(event)
                if isinstance(event, pb.Delta) and prompt[0] not in begun:
                    begun.append(prompt[0])
                    if len(begun) == len(PROMPTS):
                        await first.kill()
            return completion

        seeded = asyncio.create_task(follow(PROMPTS[0], seed=3, temperature=1.0))
        replies = await asyncio.gather(*(follow(prompt) for prompt in PROMPTS))
        assert [reply.token_ids for reply in replies] == [reply.token_ids for reply in undisturbed]
        assert [reply.text for reply in replies] == [reply.text for reply in undisturbed]
        assert any(reply.choices[0].summary.resumed_tokens for reply in replies)
        assert first.process.returncode == -9
        try:
            assert len((await seeded).token_ids) == TOKENS  # it was done before
        except InvalidRequest as error:
            assert "seed counts over the output" in str(error)
