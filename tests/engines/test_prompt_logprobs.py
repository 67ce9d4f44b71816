"""A prompt's log-probabilities through the cluster are those of its engine alone, and of the model."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from baton.v1 import inference_pb2 as pb
from cluster.engine.protocol import EngineLeg
from orchestrator.gateway.gateway import Gateway
from tests.support.live_cluster import LiveCluster
from tests.support.reference import prompt_logprobs_reference
from tests.support.remote_engine import remote_engines

pytestmark = pytest.mark.engine

LENGTHS = (1, 2, 32, 33, 500, 1900)
TOP = 5


def prompt_of(isl_tokens: int) -> list[int]:
    draw = random.Random(f"scored-{isl_tokens}")
    return [draw.randrange(5, 60) for _ in range(isl_tokens)]


def ask(prompt: list[int], max_tokens: int, **sampling: object) -> pb.GenerateRequest:
    options = {"temperature": 0.0, "ignore_eos": True, "prompt_logprobs": TOP, "max_tokens": max_tokens} | sampling
    return pb.GenerateRequest(prompt_token_ids=pb.TokenIds(ids=prompt), sampling=pb.Sampling(**options))  # type: ignore[arg-type]


async def scored(
    gateway: Gateway, request: pb.GenerateRequest
) -> tuple[list[pb.TokenLogprobs], list[int], pb.Finished]:
    rows: list[pb.TokenLogprobs] = []
    ids: list[int] = []
    async for event in gateway.generate(request):
        rows += event.prompt_logprobs.tokens
        ids += event.delta.token_ids
        if event.HasField("finished"):
            finished = event.finished
    return rows, ids, finished


async def test_values_are_the_engines_own_and_the_models(cluster: LiveCluster) -> None:
    prompts = {length: prompt_of(length) for length in LENGTHS}
    alone = {}
    async with remote_engines(cluster.state.registry) as engines:
        engine, _ = engines["colocated-0"]
        for length, prompt in prompts.items():
            leg = EngineLeg(f"scored-{length}", prompt, ask(prompt, 1).sampling, max_tokens=1)
            made = [output async for output in engine.generate(leg)]
            alone[length] = made[0].prompt_scores
    reference = dict(
        zip(LENGTHS, prompt_logprobs_reference(Path(cluster.spec.model.path), list(prompts.values())), strict=True)
    )
    async with cluster.gateway("prefill", "decode") as gateway:
        for length, prompt in prompts.items():
            for max_tokens in (0, 3):
                rows, ids, finished = await scored(gateway, ask(prompt, max_tokens))
                assert [row.chosen.token_id for row in rows] == prompt
                assert len(ids) == max_tokens
                workers = finished.choices[0].workers
                assert workers.prefill == "prefill-0"
                assert bool(finished.choices[0].handoff.bytes) is bool(max_tokens)
                got = np.asarray([[row.chosen.logprob, *(top.logprob for top in row.top)] for row in rows[1:]])
                own = alone[length]
                assert own is not None
                np.testing.assert_allclose(got.reshape(own.logprobs.shape), own.logprobs, atol=1e-4)
                np.testing.assert_allclose(got[:, 0] if length > 1 else [], reference[length], atol=1e-3)


async def test_scoring_changes_no_token(cluster: LiveCluster) -> None:
    prompt = prompt_of(200)
    async with cluster.gateway("prefill", "decode") as gateway:
        for sampling in ({}, {"presence_penalty": 1.0}, {"seed": 7, "temperature": 0.9}):
            plain = ask(prompt, 12, **sampling)
            plain.sampling.ClearField("prompt_logprobs")
            _, expected, _ = await scored(gateway, plain)
            rows, got, finished = await scored(gateway, ask(prompt, 12, **sampling))
            assert got == expected
            assert len(rows) == len(prompt)
            assert finished.usage.cached_tokens == 0
