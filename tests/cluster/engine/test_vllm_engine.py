"""The adapter around vLLM with vLLM played by the test: what its outputs and errors become."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from baton.v1.inference_pb2 import Sampling
from cluster.engine import vllm_engine
from cluster.engine.protocol import EngineLeg, EngineOutput, TransferFigures
from cluster.engine.vllm_engine import VllmEngine
from cluster.engine.vllm_settings import VllmSettings
from cluster.errors import EngineFailed, InvalidRequest, ServingError, TransferBroken, WorkerDied

IMPORT, EXPORT = {"do_remote_prefill": True}, {"do_remote_decode": True}


class VLLMValidationError(Exception):
    pass


class EngineDeadError(Exception):
    pass


def step(*tokens: int, finish: str | None = None, cached: int | None = None, **more: Any) -> SimpleNamespace:
    """One of vLLM's outputs."""
    kv_params = more.pop("kv_transfer_params", None)
    done = SimpleNamespace(token_ids=tokens, finish_reason=finish, stop_reason=None, logprobs=None)
    done.__dict__.update(more)
    return SimpleNamespace(outputs=[done], num_cached_tokens=cached, kv_transfer_params=kv_params, prompt_logprobs=None)


@dataclass
class Llm:
    """`AsyncLLM` as far as the adapter uses it."""

    steps: list[Any] = field(default_factory=list)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    resets: list[bool | Exception] = field(default_factory=list)
    dead: bool = False
    ranks: Any = None

    async def generate(self, prompt: Any, sampling: Any, request_id: str, **more: Any) -> AsyncIterator[Any]:
        self.calls.append((prompt, sampling, request_id, more))
        for each in self.steps:
            if isinstance(each, Exception):
                raise each
            yield each

    async def abort(self, request_id: str) -> None:
        self.calls.append(("abort", request_id))

    async def notify_kv_transfer_request_rejected(self, request_id: str, params: Any) -> None:
        self.calls.append(("rejected", request_id, params))

    async def reset_prefix_cache(self, *, reset_running_requests: bool) -> bool:
        assert reset_running_requests
        result = self.resets.pop(0)
        if isinstance(result, Exception):
            raise result
        return result

    async def check_health(self) -> None:
        if self.dead:
            raise EngineDeadError

    async def collective_rpc(self, method: str, args: tuple[Any, ...] = ()) -> Any:
        self.calls.append((method, args))
        if isinstance(self.ranks, Exception):
            raise self.ranks
        return self.ranks

    def shutdown(self) -> None:
        self.calls.append(("shutdown",))


@pytest.fixture(autouse=True)
def no_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    """The few names of vLLM that the adapter takes at run time."""
    modules: dict[str, dict[str, Any]] = {
        "vllm": {"SamplingParams": lambda **arguments: SimpleNamespace(**arguments)},
        "vllm.sampling_params": {
            "RequestOutputKind": SimpleNamespace(DELTA="delta"),
            "StructuredOutputsParams": lambda **arguments: SimpleNamespace(**arguments),
        },
        "vllm.exceptions": {"VLLMValidationError": VLLMValidationError},
        "vllm.v1": {},
        "vllm.v1.engine": {},
        "vllm.v1.engine.exceptions": {"EngineDeadError": EngineDeadError},
    }
    for name, contents in modules.items():
        module = ModuleType(name)
        module.__dict__.update(contents)
        monkeypatch.setitem(sys.modules, name, module)


def engine_over(llm: Llm) -> VllmEngine:
    engine = VllmEngine(VllmSettings("/models/m", 1024, "bfloat16", 32, on_cpu=True))
    engine._llm = llm
    return engine


def leg(**fields: Any) -> EngineLeg:
    return EngineLeg("leg", **{"token_ids": [1] * 100, "sampling": Sampling(), "max_tokens": 8, **fields})


async def outputs_of(engine: VllmEngine, request: EngineLeg) -> list[EngineOutput]:
    return [output async for output in engine.generate(request)]


async def test_tokens_and_the_end_come_through() -> None:
    llm = Llm([step(5, cached=64), step(6, 7, finish="stop", stop_reason=9)])
    outputs = await outputs_of(engine_over(llm), leg(priority=3, cache_salt="s"))
    assert [output.token_ids for output in outputs] == [[5], [6, 7]]
    assert [(output.finish_reason, output.stop_reason) for output in outputs] == [("", ""), ("stop", "9")]
    assert [output.cached_tokens for output in outputs] == [64, 0]  # with the first one only
    ((prompt, sampling, request_id, more),) = llm.calls
    assert prompt == {"prompt_token_ids": [1] * 100, "cache_salt": "s"}
    assert (request_id, more, sampling.output_kind) == ("leg", {"priority": -3}, "delta")  # vLLM's first is the least


@pytest.mark.parametrize(("params", "finish", "kept"), [(EXPORT, "length", True), (None, "length", False)])
async def test_only_a_leg_that_exports_returns_transfer_parameters(params: Any, finish: str, kept: bool) -> None:
    llm = Llm([step(5, kv_transfer_params={"early": 1}), step(6, finish=finish, kv_transfer_params={"port": 1})])
    first, last = await outputs_of(engine_over(llm), leg(transfer_params=params))
    assert first.transfer_params is None
    assert last.transfer_params == ({"port": 1} if kept else None)


async def test_a_legs_transfer_is_reported_once_and_to_no_other() -> None:
    engine = engine_over(Llm([step(5), step(6, finish="length")]))
    figures = engine._counters.transfers["leg"] = TransferFigures(4096, 0.1, 9.0, 2)
    engine._counters.transfers["other"] = TransferFigures(1, 0.1, 9.0, 1)
    first, last = await outputs_of(engine, leg(transfer_params=IMPORT))
    assert first.transfer is figures
    assert last.transfer is None
    assert list(engine._counters.transfers) == ["other"]


async def test_the_chosen_token_comes_first_among_its_alternatives() -> None:
    entry = lambda logprob, rank: SimpleNamespace(logprob=logprob, rank=rank)  # noqa: E731
    position = {9: entry(-0.1, 1), 4: entry(-0.5, 2), 5: entry(-2.0, None)}
    (output,) = await outputs_of(engine_over(Llm([step(5, finish="stop", logprobs=[position])])), leg())
    assert output.logprobs[0].rows == [(5, -2.0, 0), (9, -0.1, 1), (4, -0.5, 2)]


@pytest.mark.parametrize(
    ("failure", "becomes"),
    [
        (EngineDeadError(), WorkerDied),
        (VLLMValidationError("bad"), InvalidRequest),
        (ValueError("bad"), InvalidRequest),
        (TypeError("bad"), InvalidRequest),
        (RuntimeError("odd"), EngineFailed),
        (TransferBroken("ours"), TransferBroken),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
async def test_each_failure_becomes_what_the_gateway_should_do(failure: Exception, becomes: type[ServingError]) -> None:
    with pytest.raises(ServingError) as raised:
        await outputs_of(engine_over(Llm([step(5), failure])), leg())
    assert type(raised.value) is becomes


@pytest.mark.parametrize(
    ("params", "becomes"), [(IMPORT, TransferBroken), (EXPORT, EngineFailed), (None, EngineFailed)]
)
async def test_a_leg_that_the_engine_ends_with_an_error_failed_to_read_if_it_was_to_read(
    params: Any, becomes: type[ServingError]
) -> None:
    with pytest.raises(becomes, match="error"):
        await outputs_of(engine_over(Llm([step(finish="error")])), leg(transfer_params=params))


@pytest.mark.parametrize(
    ("fields", "running", "counts"),
    [({}, 0, True), ({}, 1, False), ({"cache_salt": "canary"}, 0, False), ({"transfer_params": IMPORT}, 0, False)],
)
async def test_the_rate_of_a_prefill_is_taken_alone(fields: dict[str, Any], running: int, counts: bool) -> None:
    engine = engine_over(Llm([step(5, finish="length")]))
    engine._counters.running = running
    await outputs_of(engine, leg(**fields))
    assert (engine.load().prefill_tokens_per_s > 0) is counts


async def test_a_short_remainder_gives_no_rate() -> None:
    engine = engine_over(Llm([step(5, finish="length", cached=96)]))
    await outputs_of(engine, leg())
    assert engine.load().prefill_tokens_per_s == 0


async def test_a_ticket_is_given_back_under_a_name_of_its_own() -> None:
    llm = Llm()
    engine = engine_over(llm)
    await engine.release(IMPORT)
    await engine.release(IMPORT)
    (_, first, params), (_, second, _) = llm.calls
    assert first != second
    assert params == IMPORT


async def test_cached_kv_is_dropped_as_soon_as_vllm_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "FORGET_RETRY_S", 0.0)
    llm = Llm(resets=[False, RuntimeError("a request waits for KV"), True, True])
    await engine_over(llm).forget_kv()
    assert len(llm.resets) == 1


async def test_kv_that_stays_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "FORGET_RETRY_S", 0.0)
    with pytest.raises(EngineFailed, match="could not be dropped"):
        await engine_over(Llm(resets=[False] * vllm_engine.FORGET_TRIES)).forget_kv()


async def test_weights_of_all_ranks_come_as_one_sum() -> None:
    rank = {"layout": "x", "pieces": 3, "first": 1, "sums": ["a"], "duration_s": 0.1}
    llm = Llm(ranks=[rank, {**rank, "sums": ["b"]}])
    assert (await engine_over(llm).read_weights(1, 0.5)).sums == ["a+b"]
    assert llm.calls == [("baton_read_weights", (1, 0.5))]
    with pytest.raises(EngineFailed, match="cannot be read"):
        await engine_over(Llm(ranks=RuntimeError("gone"))).read_weights(0, 0.5)


async def test_a_core_that_is_gone_is_a_dead_worker() -> None:
    await engine_over(Llm()).check_health()
    with pytest.raises(WorkerDied):
        await engine_over(Llm(dead=True)).check_health()


async def test_an_engine_is_stopped_once() -> None:
    llm = Llm()
    engine = engine_over(llm)
    await engine.stop()
    await engine.stop()
    assert llm.calls == [("shutdown",)]
