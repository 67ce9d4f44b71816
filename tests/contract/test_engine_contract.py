"""What every engine must do. The fake and vLLM run the same tests; the fake is worth something only for that reason."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from baton.v1.inference_pb2 import Sampling, StructuredOutput
from cluster.engine.protocol import Engine, EngineInfo, EngineLeg, EngineOutput
from cluster.engine.reasoning_end import ends_within
from cluster.errors import ServingError
from kv_transfer.ticket import HandoffTicket, issue
from models.tokenizer import encode
from tests.fakes.engine import FakeEngine, Network
from tests.support.remote_engine import remote_engines

_names = itertools.count()


@dataclass
class EnginePair:
    """A prefill and a decode engine that can reach each other, started."""

    prefill: Engine
    decode: Engine
    prefill_info: EngineInfo
    decode_info: EngineInfo
    encode: Callable[[str], list[int]]
    """Token ids of a text."""


@pytest.fixture(params=["fake", pytest.param("real", marks=pytest.mark.engine)])
async def engines(request: pytest.FixtureRequest) -> AsyncIterator[EnginePair]:
    if request.param == "real":
        cluster = request.getfixturevalue("cluster")
        async with remote_engines(cluster.state.registry) as real:
            (prefill, prefill_info), (decode, decode_info) = real["prefill-0"], real["decode-0"]
            yield EnginePair(prefill, decode, prefill_info, decode_info, encode)
        return
    network = Network()
    prefill, decode = FakeEngine(network), FakeEngine(network)
    yield EnginePair(prefill, decode, await prefill.start(), await decode.start(), lambda text: list(text.encode()))
    await prefill.stop()
    await decode.stop()


def leg(length: int = 40, max_tokens: int = 8, **changes: Any) -> EngineLeg:
    number = next(_names)
    ids = [(number * 7 + position * 3) % 50 + 5 for position in range(length)]
    fields = {"sampling": Sampling(temperature=0.0, ignore_eos=True), "token_ids": ids, **changes}
    return EngineLeg(leg_id=f"contract-{number}", max_tokens=max_tokens, **fields)


async def outputs(engine: Engine, work: EngineLeg) -> list[EngineOutput]:
    return [output async for output in engine.generate(work)]


def tokens(made: list[EngineOutput]) -> list[int]:
    return [token for output in made for token in output.token_ids]


async def until_idle(engine: Engine) -> None:
    """Until no block is in use; the real engine reports after a step, and its lease news travel."""
    async with asyncio.timeout(20):
        while engine.load().used_blocks or engine.load().running_requests:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def export(pair: EnginePair, work: EngineLeg) -> tuple[list[int], HandoffTicket]:
    made = await outputs(pair.prefill, work)
    ticket = issue(
        made[-1].transfer_params,
        source_id="prefill",
        incarnation=pair.prefill_info.incarnation,
        block_size_tokens=pair.prefill_info.block_size_tokens,
        deadline_s=time.monotonic() + 20,
    )
    return tokens(made), ticket


EXPORT = {"do_remote_prefill": False, "do_remote_decode": True}


async def test_it_makes_max_tokens_and_says_length(engines: EnginePair) -> None:
    made = await outputs(engines.decode, leg(max_tokens=8))
    assert len(tokens(made)) == 8
    assert [output.finish_reason for output in made] == [*[""] * (len(made) - 1), "length"]
    await until_idle(engines.decode)


async def test_it_stops_at_a_stop_token_and_names_it(engines: EnginePair) -> None:
    work = leg(max_tokens=8)
    third = tokens(await outputs(engines.decode, work))[2]
    again = leg(token_ids=work.token_ids, sampling=Sampling(temperature=0.0, ignore_eos=True, stop_token_ids=[third]))
    made = await outputs(engines.decode, again)
    assert tokens(made)[-1] == third
    assert len(tokens(made)) <= 3
    assert (made[-1].finish_reason, made[-1].stop_reason) == ("stop", str(third))


async def test_an_abort_ends_the_leg_and_frees_its_blocks(engines: EnginePair) -> None:
    work = leg(max_tokens=400)
    reasons = []
    async for output in engines.decode.generate(work):
        reasons.append(output.finish_reason)
        await engines.decode.abort(work.leg_id)
    assert reasons[-1] == "abort"
    await engines.decode.abort(work.leg_id)
    await engines.decode.abort("never-heard-of")
    await until_idle(engines.decode)


@pytest.mark.parametrize("length", [1, 31, 32, 33, 64, 65])
async def test_decode_goes_on_exactly_where_prefill_ended(engines: EnginePair, length: int) -> None:
    prompt = leg(length).token_ids
    whole = tokens(await outputs(engines.prefill, leg(token_ids=prompt, max_tokens=8)))
    first, ticket = await export(engines, leg(token_ids=prompt, max_tokens=1, transfer_params=dict(EXPORT)))
    assert ticket.num_tokens == length
    made = await outputs(engines.decode, leg(token_ids=prompt + first, max_tokens=7, transfer_params=ticket.params))
    assert first + tokens(made) == whole
    assert made[0].transfer is not None or any(output.transfer for output in made)
    await until_idle(engines.prefill)
    await until_idle(engines.decode)


async def test_a_release_frees_what_was_kept(engines: EnginePair) -> None:
    _, ticket = await export(engines, leg(max_tokens=1, transfer_params=dict(EXPORT)))
    await engines.decode.release(ticket.params)
    await until_idle(engines.prefill)


async def test_load_counts_steps_and_tokens(engines: EnginePair) -> None:
    before = engines.decode.load()
    await outputs(engines.decode, leg(40, max_tokens=8))
    after = engines.decode.load()
    assert after.steps > before.steps
    assert after.output_tokens - before.output_tokens >= 7
    assert after.prompt_tokens > before.prompt_tokens
    await engines.decode.check_health()


async def test_a_salt_keeps_caches_apart_and_changes_no_token(engines: EnginePair) -> None:
    work = leg(80, max_tokens=2)
    first = await outputs(engines.decode, work)
    again = [
        await outputs(engines.decode, replace(work, leg_id=f"{work.leg_id}-{index}", cache_salt=salt))
        for index, salt in enumerate(("", "one", "one", "other"))
    ]
    assert [made[0].cached_tokens > 0 for made in again] == [True, False, True, False]
    assert all(tokens(made) == tokens(first) for made in again)


async def test_logprobs_come_with_each_token(engines: EnginePair) -> None:
    made = await outputs(
        engines.decode, leg(max_tokens=4, sampling=Sampling(temperature=0.0, ignore_eos=True, logprobs=2))
    )
    rows = [position.rows for output in made for position in output.logprobs]
    assert [row[0][0] for row in rows] == tokens(made)
    assert all(len(row) >= 2 and row[0][1] <= 0 for row in rows)


@pytest.mark.parametrize("length", [1, 2, 33, 100])
async def test_a_prompt_is_scored_whole_whatever_is_cached(engines: EnginePair, length: int) -> None:
    sampling = Sampling(temperature=0.0, ignore_eos=True, prompt_logprobs=3)
    work = leg(length, max_tokens=3, sampling=sampling)
    for index in range(2):
        made = await outputs(engines.prefill, replace(work, leg_id=f"{work.leg_id}-{index}"))
        assert made[0].cached_tokens == 0
        assert all(output.prompt_scores is None for output in made[1:])
        scores = made[0].prompt_scores
        assert scores is not None
        assert scores.token_ids.shape == scores.logprobs.shape
        assert scores.ranks.tolist().count(0) == 0
        if length > 1:
            assert scores.token_ids[:, 0].tolist() == work.token_ids[1:]
            assert scores.token_ids.shape == (length - 1, 4)
            assert (np.diff(scores.logprobs[:, 1:]) <= 0).all(), "the likeliest first"
        else:
            assert len(scores.ranks) == 0
    without = await outputs(engines.prefill, leg(length))
    assert without[0].prompt_scores is None


# --- a grammar and a model that reasons -----------------------------------------------------------------------------


NO_EOS = {2: -100.0}
"""The reasoner ends a text of nonsense early; a grammar that is at its end leaves nothing else, whatever the bias."""


def yes_or_no(**changes: Any) -> Sampling:
    choices = StructuredOutput.Choices(values=["yes"])
    output = StructuredOutput(choices=choices)
    return Sampling(temperature=0.0, logit_bias=NO_EOS, structured_output=output, **changes)


def free() -> Sampling:
    return Sampling(temperature=0.0, logit_bias=NO_EOS)


async def test_a_grammar_may_begin_at_once(engines: EnginePair) -> None:
    work = leg(sampling=yes_or_no(), reasoning_ended=True, reasoning_end_ids=[1])
    made = await outputs(engines.decode, work)
    assert tokens(made)[:3] == engines.encode("yes")
    assert made[-1].finish_reason == "stop"


@pytest.mark.parametrize("marker_tokens", [1, 2, 3])
async def test_a_grammar_begins_behind_the_end_marker(engines: EnginePair, marker_tokens: int) -> None:
    plain = leg(max_tokens=6, sampling=free())
    said = tokens(await outputs(engines.decode, plain))
    marker = said[3 - marker_tokens : 3]  # any tokens can be one
    end = next(at for at in range(1, 7) if ends_within(said[:at], 1, marker))
    work = leg(
        token_ids=plain.token_ids,
        sampling=yes_or_no(),
        max_tokens=16,
        reasoning_ended=False,
        reasoning_end_ids=marker,
    )
    made = await outputs(engines.decode, work)
    assert tokens(made)[: end + 3] == [*said[:end], *engines.encode("yes")]
    assert made[-1].finish_reason == "stop"


async def test_an_end_marker_in_the_prompt_begins_no_grammar(engines: EnginePair) -> None:
    plain = leg(max_tokens=6, sampling=free())
    said = tokens(await outputs(engines.decode, plain))
    pairs = (plain.token_ids[at : at + 2] for at in range(len(plain.token_ids) - 2, 0, -1))
    end = next(two for two in pairs if not ends_within([plain.token_ids[-1], *said], len(said), two))
    work = leg(
        token_ids=plain.token_ids,
        sampling=yes_or_no(),
        max_tokens=6,
        reasoning_ended=False,
        reasoning_end_ids=end,
    )
    assert tokens(await outputs(engines.decode, work)) == said


@pytest.mark.parametrize("marker", [(0, 1), (0, 2), (1, 3), (2, 3)])
async def test_a_grammar_begins_behind_a_handoff_though_the_marker_began_before_it(
    engines: EnginePair, marker: tuple[int, int]
) -> None:
    plain = leg(max_tokens=4, sampling=free())
    said = tokens(await outputs(engines.prefill, plain))
    fields = {"sampling": yes_or_no(), "reasoning_end_ids": said[slice(*marker)]}
    prompt = plain.token_ids
    first, ticket = await export(
        engines,
        leg(token_ids=prompt, max_tokens=1, transfer_params=dict(EXPORT), reasoning_ended=False, **fields),
    )
    assert first == said[:1]
    ended = ends_within(first, 1, fields["reasoning_end_ids"])
    work = leg(token_ids=prompt + first, max_tokens=16, transfer_params=ticket.params, reasoning_ended=ended, **fields)
    made = await outputs(engines.decode, work)
    text = first + tokens(made)
    end = next(at for at in range(1, 5) if ends_within(text[:at], 1, fields["reasoning_end_ids"]))
    assert text[: end + 3] == [*said[:end], *engines.encode("yes")]
    assert made[-1].finish_reason == "stop"
    await until_idle(engines.prefill)
    await until_idle(engines.decode)


async def test_bad_settings_raise_an_error_of_ours(engines: EnginePair) -> None:
    with pytest.raises(ServingError):
        await outputs(engines.decode, leg(sampling=Sampling(temperature=-1.0)))
