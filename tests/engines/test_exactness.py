"""Greedy tokens through prefill, handoff and decode equal those of one colocated engine, token for token."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from pathlib import Path

import pytest

from baton.v1 import inference_pb2 as pb
from orchestrator.gateway.gateway import Gateway
from tests.fakes.live_cluster import Reply
from tests.support.live_cluster import LiveCluster

pytestmark = pytest.mark.engine

LENGTHS = (1, 31, 32, 33, 63, 64, 65, 500, 1984)
"""Around the block size of 32, and up to the model's 2,048 less the output."""
OUTPUT_TOKENS = 64


def request(isl_tokens: int, draw_seed: int, **sampling: object) -> pb.GenerateRequest:
    draw = random.Random(f"{isl_tokens}-{draw_seed}")
    ids = [draw.randrange(5, 60) for _ in range(isl_tokens)]
    options = {"temperature": 0.0, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True} | sampling
    return pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=ids), sampling=pb.Sampling(**options))  # type: ignore[arg-type]


async def tokens(gateway: Gateway, message: pb.GenerateRequest) -> tuple[list[int], pb.Finished]:
    ids: list[int] = []
    async for event in gateway.generate(message):
        if event.HasField("delta"):
            ids += event.delta.token_ids
        if event.HasField("finished"):
            finished = event.finished
    return ids, finished


async def test_every_length_alone_and_sixteen_at_once(cluster: LiveCluster) -> None:
    messages = {isl: request(isl, 0) for isl in LENGTHS}
    batch = [request(isl, seed) for seed in range(1, 3) for isl in LENGTHS][:16]
    async with cluster.gateway("colocated") as colocated:
        expected = {isl: (await tokens(colocated, message))[0] for isl, message in messages.items()}
        expected_together = [(await tokens(colocated, message))[0] for message in batch]
    async with cluster.gateway("prefill", "decode") as gateway:
        for isl, message in messages.items():
            got, finished = await tokens(gateway, message)
            assert got == expected[isl], f"ISL {isl} alone"
            assert len(got) == OUTPUT_TOKENS
            choice = finished.choices[0]
            assert choice.workers.prefill == "prefill-0"
            assert choice.workers.decode in ("decode-0", "decode-1")
            assert choice.retries == 0
        together = await asyncio.gather(*(tokens(gateway, message) for message in batch))
        for message, (got, _), wanted in zip(batch, together, expected_together, strict=True):
            assert got == wanted, f"ISL {len(message.prompt_token_ids.ids)} among sixteen"


async def test_first_token_is_sent_before_the_transfer_begins(cluster: LiveCluster) -> None:
    async with cluster.gateway("prefill", "decode") as gateway:
        for isl in (33, 700, 1500):
            _, finished = await tokens(gateway, request(isl, 77))
            timings, handoff = finished.choices[0].timings, finished.choices[0].handoff
            assert 0 < timings.first_token_s < timings.handoff_start_s < timings.transfer_start_s
            assert timings.transfer_start_s < timings.transfer_end_s <= timings.decode_first_token_s
            assert handoff.transport == "shared_memory"
            assert handoff.tokens == isl
            # Whole blocks travel; those that decode has cached from an earlier run of the tests do not.
            block_bytes = kv_bytes_per_token_float32(cluster) * 32
            assert handoff.bytes % block_bytes == 0
            assert 0 < handoff.bytes <= -(-isl // 32) * block_bytes


def kv_bytes_per_token_float32(cluster: LiveCluster) -> int:
    config = json.loads((Path(cluster.spec.model.path) / "config.json").read_text())
    return 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["head_dim"] * 4


async def test_plain_handoff_keeps_what_the_engine_counts(cluster: LiveCluster) -> None:
    cases = {
        "penalties": {"presence_penalty": 1.5, "frequency_penalty": 1.0},
        "repetition": {"repetition_penalty": 1.3},
        "seed": {"temperature": 0.9, "seed": 7},
        "bias": {"logit_bias": {20: 5.0, 30: -100.0}},
        "allowed": {"allowed_token_ids": [10, 11, 12, 13, 14]},
        "minimum": {"ignore_eos": False, "min_tokens": 20, "max_tokens": 30},
        "grammar": {"structured_output": pb.StructuredOutput(regex="(ab|cd){8}"), "ignore_eos": False},
        "choices": {
            "structured_output": pb.StructuredOutput(choices=pb.StructuredOutput.Choices(values=["yes", "no"])),
            "ignore_eos": False,
        },
    }
    async with cluster.gateway("colocated") as colocated, cluster.gateway("prefill", "decode") as gateway:
        for name, sampling in cases.items():
            for isl in (32, 45):
                message = request(isl, 5, **sampling)
                expected, _ = await tokens(colocated, message)
                got, finished = await tokens(gateway, message)
                assert got == expected, f"{name}, ISL {isl}"
                plain = name in ("penalties", "seed", "grammar", "choices")
                assert finished.choices[0].handoff.plain is plain, name


async def test_logprobs_come_from_both_legs(cluster: LiveCluster) -> None:
    message = request(40, 3, logprobs=2, max_tokens=8)
    async with cluster.gateway("colocated") as colocated, cluster.gateway("prefill", "decode") as gateway:
        rows = []
        for served_by in (colocated, gateway):
            entries = [
                entry
                async for event in served_by.generate(message)
                if event.HasField("delta")
                for entry in event.delta.logprobs
            ]
            rows.append([(entry.chosen.token_id, round(entry.chosen.logprob, 3), len(entry.top)) for entry in entries])
    assert rows[0] == rows[1]
    assert len(rows[0]) == 8
    assert all(top == 2 for _, _, top in rows[0])


async def test_thinking_budget_holds_across_the_handoff(cluster: LiveCluster) -> None:
    for budget in (1, 12):
        message = request(40, 9, max_tokens=60)
        message.prompt_token_ids.ids.append(3)  # <think>
        message.reasoning.budget_tokens = budget
        async with cluster.gateway("colocated") as colocated, cluster.gateway("prefill", "decode") as gateway:
            expected, _ = await tokens(colocated, message)
            got, finished = await tokens(gateway, message)
        assert got == expected
        assert finished.usage.reasoning_tokens <= budget + 2
        assert finished.usage.answer_tokens > 0


@pytest.mark.parametrize("isl_tokens", [200, 500, 1500])
async def test_eight_choices_take_one_prefill_and_one_transfer(cluster: LiveCluster, isl_tokens: int) -> None:
    """Greedy choices equal the one of ``n`` = 1, token for token; seeded ones those of a colocated engine."""
    draw = random.randrange(1 << 30)  # a prompt that no run before has left in a cache
    block = 32
    async with cluster.gateway("colocated") as colocated, cluster.gateway("prefill", "decode") as gateway:
        for sampling in ({}, {"temperature": 0.9, "seed": 7}):
            draw += 1
            message = request(isl_tokens, draw, n=8, max_tokens=24, **sampling)
            served, wanted = Reply(), Reply()
            async for event in gateway.generate(message):
                served.take(event)
            async for event in colocated.generate(message):
                wanted.take(event)
            assert served.finished is not None
            assert served.token_ids == wanted.token_ids
            alone, _ = await tokens(colocated, request(isl_tokens, draw, max_tokens=24, **sampling))
            assert served.token_ids[0] == alone
            if not sampling:
                assert served.token_ids == dict.fromkeys(range(8), alone)
            choices = served.finished.choices
            assert [choice.workers.prefill for choice in choices] == ["prefill-0"] + [""] * 7
            assert len({choice.workers.decode for choice in choices}) == 1
            kv_bytes = -(-isl_tokens // block) * block * kv_bytes_per_token_float32(cluster)
            assert [choice.handoff.bytes for choice in choices] == [kv_bytes] + [0] * 7
            full = (isl_tokens - 1) // block * block
            assert [choice.usage.cached_tokens for choice in choices[1:]] == [full] * 7


async def test_cancelled_choices_leave_no_block(cluster: LiveCluster) -> None:
    draw = random.Random(16)
    async with cluster.gateway("prefill", "decode") as gateway:

        async def cancelled(number: int) -> None:
            message = request(draw.randrange(1, 200), 5000 + number, n=draw.randrange(2, 9), max_tokens=24)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(draw.random()):
                    await tokens(gateway, message)

        for first in range(0, 60, 6):
            await asyncio.gather(*(cancelled(first + number) for number in range(6)))
        for worker in gateway.model.fleet.workers.values():
            assert not worker.reserved
            assert not worker.legs
        async with asyncio.timeout(45):  # the lease is 30 s
            while any(worker.load.used_blocks for worker in gateway.model.fleet.workers.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)


async def test_blocks_come_back_after_cancels(cluster: LiveCluster) -> None:
    async with cluster.gateway("prefill", "decode") as gateway:
        for stop_after in (0, 1, 2, 5):
            stream = gateway.generate(request(300, 100 + stop_after, max_tokens=200))
            seen = 0
            async for event in stream:
                seen += event.HasField("delta")
                if seen >= stop_after:
                    break
            await stream.aclose()
        async with asyncio.timeout(45):  # the lease is 30 s
            while any(worker.load.used_blocks for worker in gateway.model.fleet.workers.values()):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
