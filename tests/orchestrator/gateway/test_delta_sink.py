"""What goes past a run's iterator: the same deltas in the same order, and nothing while its reader is behind."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from baton.v1 import inference_pb2 as pb
from orchestrator.policy.phases import Phase
from tests.fakes.gateway_parts import prepared
from tests.fakes.tokenizer import END_THINK, THINK
from tests.orchestrator.gateway.test_choice_run import Bench


class Sink:
    """Keeps deltas in one list with the events of the iterator."""

    def __init__(self, seen: list[Any], ready: bool = True) -> None:
        self.seen, self.ready = seen, ready

    def take(self, choice: int, phase: Phase, text: str, token_ids: Sequence[int]) -> None:
        assert self.ready
        self.seen.append(("sink", pb.Delta(choice=choice, phase=int(phase), text=text, token_ids=token_ids)))  # type: ignore[arg-type]


def merged(seen: list[Any]) -> list[Any]:
    """Deltas of one phase as one, since tokens may come together in any way; and kinds of the other events."""
    rows: list[Any] = []
    for _, event in seen:
        if isinstance(event, pb.Delta) or event.HasField("delta"):
            delta = event if isinstance(event, pb.Delta) else event.delta
            if rows and isinstance(rows[-1], pb.Delta) and rows[-1].phase == delta.phase:
                rows[-1].MergeFrom(pb.Delta(token_ids=delta.token_ids, finish_reason=delta.finish_reason))
                rows[-1].text += delta.text
                rows[-1].stop_matched = delta.stop_matched
            else:
                rows.append(pb.Delta.FromString(delta.SerializeToString()))
        else:
            rows.append(event.WhichOneof("event"))
    return rows


async def played(steps: list[tuple[list[int], bool]], sunk: bool, **fields: Any) -> tuple[list[Any], Bench]:
    """A run whose decode leg says these tokens; the sink is ready or not before each."""
    request = prepared(64, 40, **fields)
    if "stop" in fields:
        request.sampling.stop.append("x")
    bench = Bench(request)
    seen: list[Any] = []
    sink = Sink(seen)
    bench.stream = bench.run.run(sink if sunk else None)

    async def read() -> None:
        async for event in bench.stream:
            seen.append(("run", event))

    reader = asyncio.create_task(read())
    while len(bench.fleet.legs) < 1:  # noqa: ASYNC110
        await asyncio.sleep(0)
    bench.fleet.say(65, finish_reason="length", transfer_params_json="t1")
    while len(bench.fleet.legs) < 2:  # noqa: ASYNC110
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    for token_ids, ready in steps:
        sink.ready = ready
        bench.fleet.say(*token_ids)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    if not reader.done():
        bench.fleet.say(66, finish_reason="stop")
    await asyncio.wait_for(reader, 5)
    return seen, bench


@given(
    st.lists(
        st.tuples(st.lists(st.sampled_from([65, 66, 120, 0xC3, 0xA4, 10, THINK, END_THINK]), min_size=1, max_size=4),
                  st.booleans()),
        max_size=12,
    ),
    st.sampled_from([{}, {"exclude": True}]),
)  # fmt: skip
def test_with_a_sink_the_caller_gets_the_same(steps: list[tuple[list[int], bool]], ask: dict[str, bool]) -> None:
    fields = {"reasoning": pb.Reasoning(**ask)}
    plain, one = asyncio.run(played(steps, sunk=False, **fields))
    direct, other = asyncio.run(played(steps, sunk=True, **fields))
    assert merged(direct) == merged(plain)
    assert other.run.life.output_ids == one.run.life.output_ids
    assert other.run.summary.usage == one.run.summary.usage
    assert other.fleet.done == one.fleet.done


async def test_in_the_midst_of_a_leg_the_iterator_is_not_woken() -> None:
    seen, _ = await played([([66], True), ([67], True), ([68, 69], True)], sunk=True)
    # Admitted, first token and its delta, decode's first token, which ends the handoff; what is under test; the end.
    assert [way for way, _ in seen] == ["run"] * 4 + ["sink"] * 2 + ["run"] * 2


async def test_while_the_reader_is_behind_tokens_wait_and_come_together() -> None:
    seen, _ = await played([([66], True), ([67], True), ([68], False), ([69], True)], sunk=True)
    assert [way for way, _ in seen][4:7] == ["sink", "run", "sink"]
    assert list(seen[5][1].delta.token_ids) == [68]


@pytest.mark.parametrize("logprobs", [0, 2])
async def test_with_log_probabilities_nothing_goes_past_the_iterator(logprobs: int) -> None:
    request = prepared(64, 40)
    request.sampling.logprobs = logprobs
    bench = Bench(request)
    assert not bench.run._output.streams
