"""kill -9 of one of two real gateway processes, while its streams run: their callers notice nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from baton.v1 import inference_pb2 as pb
from cluster.errors import ConfigError, InvalidRequest
from cluster.spec.config import GatewaySettings, parse
from interface.client.client import AsyncClient, Client
from interface.client.completion import Completion
from orchestrator.local.gateway_group import GatewayGroup, ports_of
from tests.fakes.engine import continuation
from tests.fakes.live_cluster import eventually
from tests.support.gateway_process import fake_workers, spec_text

PROMPTS = [[1 + index, *range(40, 60)] for index in range(6)]
TOKENS = 40
PATIENCE_S = 240.0
"""Two processes of 4 s of imports each, on a machine that may have much else to do."""


async def test_streams_of_a_killed_gateway_go_on_at_the_other_and_a_new_one_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.local.gateway_group.START_TIMEOUT_S", PATIENCE_S)
    text = spec_text(gateway={"replicas": 2, "grpc_port": 0, "http_port": 0, "metrics_port": 0})
    spec = parse(text)
    (tmp_path / "spec.yaml").write_text(text)
    said: list[tuple[str, str]] = []
    async with fake_workers(spec, "prefill-0", "decode-0", "decode-1", total_blocks=256) as workers:
        group = GatewayGroup(
            spec.gateway,
            tmp_path / "spec.yaml",
            workers.registry,
            tmp_path,
            lambda who, what, _: said.append((who, what)),
        )
        await group.start()
        restarted = asyncio.Event()
        try:
            await group.ready()
            ports = [dict(each) for each in group.ports]
            watching = asyncio.create_task(group.watch(restarted.set))
            addresses = [f"127.0.0.1:{each['grpc_port']}" for each in ports]
            holds = [workers.engines[name].hold(7) for name in ("decode-0", "decode-1")]
            async with AsyncClient(addresses) as client, AsyncClient(addresses[1]) as other:

                async def follow(prompt: list[int], **options: Any) -> tuple[Completion, list[str]]:
                    completion, kinds = Completion(), []
                    async for event in client.generate(prompt_token_ids=prompt, max_tokens=TOKENS, **options):
                        kinds.append(type(event).__name__)
                        completion.add(event)
                        if kinds[-1] == "Delta" and kinds.count("Delta") == 1:
                            begun.append(prompt[0])
                    return completion, kinds

                begun: list[int] = []
                tasks = [asyncio.create_task(follow(prompt, temperature=0.0)) for prompt in PROMPTS]
                seeded = asyncio.create_task(follow(PROMPTS[0], temperature=1.0, seed=5))
                sync = asyncio.create_task(asyncio.to_thread(_sync, ",".join(addresses), begun))
                async with asyncio.timeout(PATIENCE_S):
                    while len(begun) < 8:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
                status = await other.get_status()
                assert status.requests.decoding == 0  # all are the first gateway's
                os.kill(group.pids[0], signal.SIGKILL)
                for hold in holds:
                    hold.open()
                for prompt, task in zip(PROMPTS, tasks, strict=True):
                    completion, kinds = await task
                    assert completion.token_ids == continuation(prompt, TOKENS)
                    assert completion.finish_reason == pb.FINISH_REASON_LENGTH
                    assert completion.choices[0].summary.resumed_tokens >= 1
                    assert kinds.count("Admitted") == kinds.count("FirstToken") == kinds.count("Finished") == 1
                with pytest.raises(InvalidRequest, match="seed counts over the output"):
                    await seeded
                assert (await sync).token_ids == continuation(PROMPTS[1], TOKENS)
                for engine in workers.engines.values():
                    await eventually(lambda engine=engine: engine.used_blocks == 0, "no block is left behind")
            await asyncio.wait_for(restarted.wait(), PATIENCE_S)
            assert group.ports == ports
            assert ("gateway-0", "lost") in said
            async with AsyncClient(addresses[0]) as client:
                done = await client.complete(prompt_token_ids=PROMPTS[2], temperature=0.0, max_tokens=5)
                assert done.token_ids == continuation(PROMPTS[2], 5)
            assert not watching.done()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        finally:
            await group.stop()
        assert not group.pids


def _sync(addresses: str, begun: list[int]) -> Completion:
    completion = Completion()
    with Client(addresses) as client:
        for event in client.generate(prompt_token_ids=PROMPTS[1], temperature=0.0, max_tokens=TOKENS):
            if isinstance(event, pb.Delta) and not completion.choices:
                begun.append(0)
            completion.add(event)
    return completion


def test_ports_follow_one_another_and_must_exist() -> None:
    settings = GatewaySettings(grpc_port=65535, http_port=0, metrics_port=10, replicas=2)
    assert ports_of(settings, 0) == {"grpc_port": 65535, "http_port": 0, "metrics_port": 10}
    with pytest.raises(ConfigError, match=r"gateway\.replicas=2"):
        ports_of(settings, 1)
